package config

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"quorate/internal/logging"
)

// onlyInHelp are flags that etcd 3.7.1's help names and its parser refuses.
var onlyInHelp = []string{"discovery", "discovery-proxy"}

// sample is a value other than the default for a flag.
func sample(t *testing.T, f *flag.Flag) string {
	switch f.Name {
	case "listen-client-urls", "advertise-client-urls":
		return "http://127.0.0.1:12379"
	case "listen-peer-urls", "initial-advertise-peer-urls":
		return "http://127.0.0.1:12380"
	case "listen-client-http-urls":
		return "http://127.0.0.1:12382"
	case "listen-metrics-urls":
		return "http://127.0.0.1:12381"
	case "feature-gates":
		return "InitialCorruptCheck=true"
	case "initial-cluster-state":
		return StateExisting
	case "discovery-fallback":
		return "exit"
	case "v2-deprecation":
		return "gone"
	case "cors":
		return "http://example.com:80"
	case "cipher-suites":
		return "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"
	case "tls-min-version", "tls-max-version":
		return "TLS1.2"
	case "log-level":
		return "debug"
	case "log-format":
		return "console"
	case "log-outputs":
		return "stdout"
	case "log-rotation-config-json":
		return `{"maxsize": 1}`
	case "logger":
		return "zap"
	case "metrics":
		return "extensive"
	case "auto-compaction-mode":
		return "revision"
	case "election-timeout":
		return "1500"
	}
	g, ok := f.Value.(flag.Getter)
	if !ok {
		if _, err := fmt.Sscan(f.DefValue, new(int)); err == nil {
			return "150" // milliseconds, uint32
		}
		return "a,b"
	}
	switch v := g.Get().(type) {
	case bool:
		return fmt.Sprint(!v)
	case time.Duration:
		return "7s"
	case string:
		return "x"
	case int, uint, int64, uint64:
		return "7"
	default:
		t.Fatalf("flag %s has a value of %T", f.Name, v)
		return ""
	}
}

func readLines(t *testing.T, name string) []string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(data))
}

// Every flag of etcd 3.7.1's --help is taken with one dash and with two, with "=" and
// without, from the environment and from a file, and means the same each time.
func TestEveryFlagFromEverySource(t *testing.T) {
	probe := newTable(Default(), new(notes))
	fromFile := make(map[string]string)
	for key, name := range probe.fileKeys() {
		fromFile[name] = key
	}
	for _, name := range readLines(t, "testdata/etcd-3.7.1-flags.txt") {
		if slices.Contains(onlyInHelp, name) {
			if probe.fs.Lookup(name) != nil {
				t.Errorf("--%s: etcd refuses it", name)
			}
			continue
		}
		f := probe.fs.Lookup(name)
		if f == nil {
			t.Errorf("--%s is unknown", name)
			continue
		}
		value := sample(t, f)
		want := parseRaw(t, []string{"--" + name + "=" + value}, nil)
		if reflect.DeepEqual(want, Default()) && !slices.Contains([]string{"logger", "tls-min-version", "discovery-fallback", "v2-deprecation"}, name) {
			t.Errorf("--%s=%s changes nothing", name, value)
		}
		forms := map[string][]string{"one dash": {"-" + name + "=" + value}}
		if b, ok := f.Value.(interface{ IsBoolFlag() bool }); !ok || !b.IsBoolFlag() {
			forms["two words"] = []string{"--" + name, value}
			forms["one dash, two words"] = []string{"-" + name, value}
		}
		for form, args := range forms {
			if got := parseRaw(t, args, nil); !reflect.DeepEqual(got, want) {
				t.Errorf("--%s: %s differs", name, form)
			}
		}
		env := "ETCD_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_")) + "=" + value
		if got := parseRaw(t, nil, []string{env}); !reflect.DeepEqual(got, want) {
			t.Errorf("%s differs from the flag", env)
		}
		key, ok := fromFile[name]
		if !ok {
			if !slices.Contains(notInFile, name) {
				t.Errorf("--%s has no key in a file", name)
			}
			continue
		}
		if got := loadRaw(t, yamlOf(key, value)); !reflect.DeepEqual(got, want) {
			t.Errorf("--%s: key %s of a file differs from the flag", name, key)
		}
	}
}

// parseRaw reads flags and environment without the rules between fields.
func parseRaw(t *testing.T, args, environ []string) *Config {
	t.Helper()
	c := Default()
	tab := newTable(c, new(notes))
	if err := tab.fs.Parse(args); err != nil {
		t.Errorf("%v: %v", args, err)
	}
	if err := tab.readEnvironment(newEnvironment(environ)); err != nil {
		t.Error(err)
	}
	return c
}

func loadRaw(t *testing.T, text string) *Config {
	t.Helper()
	c := Default()
	if err := newTable(c, new(notes)).readFile(writeFile(t, text)); err != nil {
		t.Errorf("%s\n%v", text, err)
	}
	return c
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "etcd.conf.yml")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// yamlOf writes a dotted key and its value; durations as etcd has them.
func yamlOf(key, value string) string {
	if d, err := time.ParseDuration(value); err == nil && value != "7" && value != "0" {
		value = fmt.Sprint(d.Nanoseconds())
	} else if strings.ContainsAny(value, "{:") {
		value = "'" + value + "'"
	}
	var b strings.Builder
	for i, k := range strings.Split(key, ".") {
		if i > 0 {
			fmt.Fprintf(&b, ":\n%s", strings.Repeat("  ", i))
		}
		b.WriteString(k)
	}
	return b.String() + ": " + value + "\n"
}

func TestNoFlagIsMissingFromEtcdsList(t *testing.T) {
	etcds := readLines(t, "testdata/etcd-3.7.1-flags.txt")
	tab := newTable(Default(), new(notes))
	for _, g := range tab.groups {
		for _, name := range g.names {
			ours := g.title == "Only here, not in etcd"
			// etcd's help does not list these two in their own lines.
			special := name == "config-file" || name == "version"
			if slices.Contains(etcds, name) == ours && !special {
				t.Errorf("--%s is in group %q", name, g.title)
			}
		}
	}
}

func parse(t *testing.T, args ...string) (*Parsed, error) {
	t.Helper()
	return Parse(args, nil)
}

// What kubeadm starts today, and what it started for etcd 3.5.
func TestKubeadm(t *testing.T) {
	common := []string{
		"--name=cp", "--listen-client-urls=https://127.0.0.1:2379,https://10.0.0.5:2379",
		"--advertise-client-urls=https://10.0.0.5:2379", "--listen-peer-urls=https://10.0.0.5:2380",
		"--initial-advertise-peer-urls=https://10.0.0.5:2380", "--data-dir=/var/lib/etcd",
		"--cert-file=/pki/server.crt", "--key-file=/pki/server.key", "--trusted-ca-file=/pki/ca.crt",
		"--client-cert-auth=true", "--peer-cert-file=/pki/peer.crt", "--peer-key-file=/pki/peer.key",
		"--peer-trusted-ca-file=/pki/ca.crt", "--peer-client-cert-auth=true", "--snapshot-count=10000",
		"--listen-metrics-urls=http://127.0.0.1:2381", "--initial-cluster=cp=https://10.0.0.5:2380",
	}
	for name, extra := range map[string][]string{
		"now": {"--feature-gates=InitialCorruptCheck=true", "--watch-progress-notify-interval=5s"},
		"3.5": {"--experimental-initial-corrupt-check=true", "--experimental-watch-progress-notify-interval=5s"},
	} {
		p, err := parse(t, append(extra, common...)...)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !p.Features.Enabled("InitialCorruptCheck") || p.ProgressNotifyInterval != 5*time.Second {
			t.Errorf("%s: features %s, progress %v", name, p.Features, p.ProgressNotifyInterval)
		}
		if got := p.ListenClientURLs.String(); got != "https://10.0.0.5:2379,https://127.0.0.1:2379" {
			t.Errorf("listen-client-urls %s", got)
		}
		if p.ClientTLS.KeyFile != "/pki/server.key" || !p.PeerTLS.ClientCertAuth || p.DataDir != "/var/lib/etcd" {
			t.Errorf("%s: %+v", name, p.Config)
		}
	}
}

func TestFile(t *testing.T) {
	text := `
name: infra1
Data-Dir: /data
heartbeat-interval: 50
election-timeout: 500
listen-client-urls: http://0.0.0.0:2379,http://127.0.0.1:4001
cors:
wal-dir:
snapshot-count: 20000
log-outputs: [stderr]
cipher-suites: [
  TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
  TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384
]
watch-progress-notify-interval: 600000000000
grpc-keepalive-interval: 30s
experimental-max-learners: 3
feature-gates: LeaseCheckpoint=true,LeaseCheckpointPersist=true
auto-compaction-retention: "1"
proxy: 'off'
cert-file: not here
client-transport-security:
  cert-file: c.pem
  key-file: k.pem
  client-cert-auth: true
  trusted-ca-file:
  allowed-cn: [a, b]
peer-transport-security:
  allowed-hostname: [h]
  skip-client-san-verification: true
socket-options:
  reuse-port: true
`
	p, err := Parse([]string{"--config-file", writeFile(t, text), "--name=flag"}, []string{"ETCD_NAME=env", "ETCD_PRE_VOTE=false"})
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Name, want.DataDir = "infra1", "/data"
	want.HeartbeatInterval, want.ElectionTimeout = 50*time.Millisecond, 500*time.Millisecond
	want.ListenClientURLs = mustURLs("http://0.0.0.0:2379,http://127.0.0.1:4001")
	want.SnapshotCount = 20000
	want.Log.Outputs = []string{"stderr"}
	want.TLS.CipherSuites = []string{"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"}
	want.ProgressNotifyInterval, want.GRPCKeepAliveInterval = 10*time.Minute, 30*time.Second
	want.MaxLearners = 3
	want.Features = p.Features
	want.CompactionRetention = "1"
	want.ClientTLS.CertFile, want.ClientTLS.KeyFile, want.ClientTLS.ClientCertAuth = "c.pem", "k.pem", true
	want.ClientTLS.AllowedCNs, want.PeerTLS.AllowedHostnames = []string{"a", "b"}, []string{"h"}
	want.PeerTLS.SkipClientSANVerify = true
	want.SocketReusePort = true
	want.InitialCluster = "infra1=http://localhost:2380"
	if !reflect.DeepEqual(p.Config, want) {
		t.Errorf("got\n%+v\nwant\n%+v", p.Config, want)
	}
	if !p.Features.Enabled("LeaseCheckpointPersist") {
		t.Error("feature gates of the file are not set")
	}
	var buf bytes.Buffer
	p.LogNotes(slog.New(slog.NewTextHandler(&buf, nil)))
	for _, s := range []string{"loaded server configuration", "key=proxy", "key=cert-file", "experimental-max-learners is an older name"} {
		if !strings.Contains(buf.String(), s) {
			t.Errorf("no note %q in\n%s", s, &buf)
		}
	}
	if strings.Contains(buf.String(), "ETCD_NAME") {
		t.Error("notes speak of the environment although a file was given")
	}
}

func TestFileFromEnvironment(t *testing.T) {
	p, err := Parse(nil, []string{"ETCD_CONFIG_FILE=" + writeFile(t, "name: f\n"), "ETCD_NAME=env"})
	if err != nil || p.Name != "f" {
		t.Errorf("name %v, %v", p, err)
	}
}

func TestPrecedence(t *testing.T) {
	p, err := Parse([]string{"--name=flag"}, []string{"ETCD_NAME=env", "ETCD_PRE_VOTE=false", "ETCD_WAL_DIR=", "ETCD_FOO=1", "HOME=/"})
	if err != nil {
		t.Fatal(err)
	}
	if p.Name != "flag" || p.PreVote {
		t.Errorf("name %s, pre-vote %v", p.Name, p.PreVote)
	}
	var buf bytes.Buffer
	p.LogNotes(slog.New(slog.NewTextHandler(&buf, nil)))
	for _, s := range []string{"shadowed", "ETCD_FOO=1", "recognized and used environment variable"} {
		if !strings.Contains(buf.String(), s) {
			t.Errorf("no note %q in\n%s", s, &buf)
		}
	}
}

func TestDerived(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		want func(*Config) bool
	}{
		{"nothing said", nil, func(c *Config) bool {
			return c.DataDir == "default.etcd" && c.InitialCluster == "default=http://localhost:2380" && c.ElectionTicks() == 10
		}},
		{"a name", []string{"--name=m"}, func(c *Config) bool {
			return c.DataDir == "m.etcd" && c.InitialCluster == "m=http://localhost:2380"
		}},
		{"a name and peer URLs", []string{"--name=m", "--initial-advertise-peer-urls=http://b:1,http://a:1"}, func(c *Config) bool {
			return c.InitialCluster == "m=http://a:1,m=http://b:1"
		}},
		{"peer URLs without a name leave the cluster alone", []string{"--initial-advertise-peer-urls=http://a:1"}, func(c *Config) bool {
			return c.InitialCluster == "default=http://localhost:2380"
		}},
		{"a cluster", []string{"--name=m", "--initial-cluster=m=http://a:1,n=http://b:1"}, func(c *Config) bool {
			return c.InitialCluster == "m=http://a:1,n=http://b:1"
		}},
		{"all addresses", []string{"--listen-peer-urls=http://0.0.0.0:7"}, func(c *Config) bool {
			host, err := defaultHost()
			want := "http://" + host + ":7"
			if err != nil {
				want = defaultPeerURL
			}
			return c.AdvertisePeerURLs.String() == want
		}},
		{"bcrypt cost out of range", []string{"--bcrypt-cost=99"}, func(c *Config) bool { return c.BcryptCost == 10 }},
		{"progress off", []string{"--watch-progress-notify-interval=0"}, func(c *Config) bool { return c.ProgressNotifyInterval == 10*time.Minute }},
		{"raft timeout", []string{"--raft-read-timeout=1s"}, func(c *Config) bool { return c.RaftReadTimeout == 5*time.Second }},
		{"negative values", []string{"--quota-backend-bytes", "-1"}, func(c *Config) bool { return c.QuotaBytes == -1 }},
		{"legacy", []string{"-v", "--force", "--snapshot"}, func(c *Config) bool { return c.Name == "default" }},
		{"cors", []string{"--cors", "http://a:1,http://b:2"}, func(c *Config) bool { return len(c.CORS) == 2 }},
	} {
		p, err := parse(t, tt.args...)
		if err != nil || !tt.want(p.Config) {
			t.Errorf("%s: %v %+v", tt.name, err, p)
		}
	}
}

func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		args  string
		usage bool // exit status 2
		want  string
	}{
		// What etcd 3.7.1 answered to these very command lines.
		{"--listen-client-urls foo", true, `invalid value "foo" for flag -listen-client-urls: URL scheme must be http, https, unix, or unixs: foo`},
		{"--pre-vote=maybe", true, `invalid boolean value "maybe" for -pre-vote: parse error`},
		{"--name", true, "flag needs an argument: -name"},
		{"--heartbeat-interval=x", true, `invalid value "x" for flag -heartbeat-interval: parse error`},
		{"--feature-gates=Foo=true", true, `invalid value "Foo=true" for flag -feature-gates: unrecognized feature gate: Foo`},
		{"--max-concurrent-streams=foo", true, `invalid value "foo" for flag -max-concurrent-streams: strconv.ParseUint: parsing "foo": invalid syntax`},
		{"--zzzzzzzzzz", true, "flag provided but not defined: -zzzzzzzzzz"},
		{"--pre-vote false", false, `"false" is not a valid flag`},
		{"--heartbeat-interval 0", false, "--heartbeat-interval must be >0 (set to 0ms)"},
		{"--election-timeout 0", false, "--election-timeout must be >0 (set to 0ms)"},
		{"--election-timeout 400", false, "--election-timeout[400ms] should be at least as 5 times as --heartbeat-interval[100ms]"},
		{"--election-timeout 60000", false, "--election-timeout[60000ms] is too long, and should be set less than 50000ms"},
		{"--listen-client-urls http://127.0.0.1:1", false, "--advertise-client-urls is required when --listen-client-urls is set explicitly"},
		{"--listen-client-urls=", false, "--advertise-client-urls is required when --listen-client-urls is set explicitly"},
		{"--listen-peer-urls http://example.com:1", false, "expected IP in URL for binding (http://example.com:1)"},
		{"--advertise-client-urls http://:1", false, `--advertise-client-urls "http://:1" must be in the format "host:port", "unix:/path/to/socket" or "unixs:/path/to/socket" (unexpected empty host (http://:1))`},
		{"--initial-advertise-peer-urls http://:1", false, `--initial-advertise-peer-urls "http://:1" must be "host:port" (unexpected empty host (http://:1))`},
		{"--auto-compaction-mode=foo", false, `unknown auto-compaction-mode "foo"`},
		{"--auto-compaction-retention=foo", false, `error parsing CompactionRetention: time: invalid duration "foo"`},
		{"--config-file /nonexistent", false, "open /nonexistent: no such file or directory"},
		{"--logger=capnslog", false, "--logger=capnslog is removed in v3.5"},
		{"--log-level=loud", false, `--log-level: unrecognized level: "loud"`},
		{"--tls-min-version=TLS1.3 --cipher-suites=TLS_AES_128_GCM_SHA256", false, "cipher suites cannot be configured when only TLS1.3 is enabled"},
		{"--feature-gates=LeaseCheckpointPersist=true", false, "enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint"},
		{"--discovery-srv=x --initial-cluster=a=http://b:1", false, errBootstrapConflict.Error()},
		{"--discovery-fallback=proxy", false, `v2 proxy is deprecated, and --discovery-fallback can't be configured as "proxy"`},
		{"--listen-client-urls https://127.0.0.1:1 --advertise-client-urls https://127.0.0.1:1", false, "TLS key/cert (--cert-file, --key-file) must be provided for client url https://127.0.0.1:1 with HTTPS scheme"},
		{"--listen-client-urls http://127.0.0.1:1 --listen-client-http-urls http://127.0.0.1:1 --advertise-client-urls http://127.0.0.1:1", false, "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url http://127.0.0.1:1"},
		{"--listen-metrics-urls https://127.0.0.1:1", false, "client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url"},
		{"--compact-hash-check-time=0", false, "--compact-hash-check-time must be >0 (set to 0s)"},
		// What etcd does not say.
		{"--initial-cluster-state=foo", true, `invalid value "foo" for flag -initial-cluster-state: must be new or existing`},
		{"--max-learners=-1", false, "--max-learners must be >=0 (set to -1)"},
		{"gateway start", true, "etcd's gateway is not a part of quorate; etcd's own works with it"},
		{"--date-dir=x", true, "flag provided but not defined: -date-dir\ndid you mean --data-dir?"},
		{"--advertise-client-url=x", true, "flag provided but not defined: -advertise-client-url\ndid you mean --advertise-client-urls?"},
		{"--discovery=x", true, "flag provided but not defined: -discovery\netcd's v2 discovery is gone; name the members with --initial-cluster"},
		{"--discovery-token=t --discovery-endpoints=x", false, "members cannot be discovered by --discovery-endpoints; name them with --initial-cluster or --discovery-srv"},
	} {
		_, err := parse(t, strings.Fields(tt.args)...)
		if err == nil || err.Error() != tt.want {
			t.Errorf("%s:\n got  %v\n want %s", tt.args, err, tt.want)
			continue
		}
		var usage *UsageError
		if errors.As(err, &usage) != tt.usage {
			t.Errorf("%s: usage error %v, want %v", tt.args, !tt.usage, tt.usage)
		}
	}
	if _, err := Parse(nil, []string{"ETCD_HEARTBEAT_INTERVAL=x"}); err == nil || err.Error() != `invalid value "x" for ETCD_HEARTBEAT_INTERVAL: parse error` {
		t.Errorf("environment: %v", err)
	}
	for text, want := range map[string]string{
		"heartbeat-interval: x":               "invalid value x for heartbeat-interval: parse error",
		"pre-vote: [1]":                       "invalid value [1] for pre-vote: unexpected list",
		"peer-transport-security:\n- x\n":     "invalid value [x] for peer-transport-security: it must have keys and values of its own below it",
		"discovery-config:\n  client: x\n":    "invalid value x for discovery-config.client: it must have keys and values of its own below it",
		"name: {a: b}":                        "invalid value map[a:b] for name: it must be a single value",
		"{":                                   "yaml: line 1: did not find expected node content",
		"- a":                                 `it must consist of flags and their values, one "name: value" a line`,
		"a":                                   `it must consist of flags and their values, one "name: value" a line`,
		"watch-progress-notify-interval: 1.5": `invalid value 1.5 for watch-progress-notify-interval: strconv.ParseInt: parsing "1.5": invalid syntax`,
		"nosuch: {a: {b: c}}":                 "",
		"":                                    "",
	} {
		file := writeFile(t, text)
		_, err := parse(t, "--config-file", file)
		if want == "" && err != nil || want != "" && (err == nil || err.Error() != "read "+file+": "+want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestCompaction(t *testing.T) {
	for _, tt := range []struct {
		mode, retention string
		age             time.Duration
		revisions       int64
	}{
		{CompactPeriodic, "0", 0, 0}, {CompactPeriodic, "", 0, 0}, {CompactPeriodic, "5", 5 * time.Hour, 0},
		{CompactPeriodic, "5m", 5 * time.Minute, 0}, {CompactRevision, "1000", 0, 1000}, {CompactRevision, "0", 0, 0},
	} {
		c := Default()
		c.CompactionMode, c.CompactionRetention = tt.mode, tt.retention
		age, revs, err := c.Compaction()
		if err != nil || age != tt.age || revs != tt.revisions {
			t.Errorf("%s %q: %v, %d, %v", tt.mode, tt.retention, age, revs, err)
		}
	}
}

func TestFeatures(t *testing.T) {
	for _, tt := range []struct {
		text    string
		on, off []string
	}{
		{"", []string{"FastLeaseKeepAlive"}, []string{"InitialCorruptCheck", "AllAlpha"}},
		{"AllAlpha=true", []string{"InitialCorruptCheck", "LeaseCheckpoint"}, []string{"AllBeta"}},
		{"PriorityRequest=false,AllAlpha=true", []string{"LeaseCheckpoint"}, []string{"PriorityRequest"}},
		{"AllBeta=false", nil, []string{"FastLeaseKeepAlive", "TxnModeWriteWithSharedBuffer"}},
		{" InitialCorruptCheck = t ,", []string{"InitialCorruptCheck"}, nil},
	} {
		var f Features
		if err := f.Set(tt.text); err != nil {
			t.Fatal(err)
		}
		for _, name := range tt.on {
			if !f.Enabled(name) {
				t.Errorf("%q: %s is off", tt.text, name)
			}
		}
		for _, name := range tt.off {
			if f.Enabled(name) {
				t.Errorf("%q: %s is on", tt.text, name)
			}
		}
	}
	for text, want := range map[string]string{
		"Foo=true":  "unrecognized feature gate: Foo",
		"AllAlpha":  "missing bool value for AllAlpha",
		"AllBeta=2": `invalid value of AllBeta=2, err: strconv.ParseBool: parsing "2": invalid syntax`,
	} {
		var f Features
		if err := f.Set(text); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
	var f Features
	if err := f.Set("LeaseCheckpoint=true,AllBeta=false"); err != nil || f.String() != "AllBeta=false,LeaseCheckpoint=true" {
		t.Errorf("%s, %v", f, err)
	}
}

func TestAddress(t *testing.T) {
	for text, want := range map[string]string{
		"unix:///run/q.sock": "/run/q.sock", "unix://q.sock": "q.sock", "unix:q.sock": "q.sock",
		"http://127.0.0.1:1": "127.0.0.1:1", "https://[::1]:1": "[::1]:1",
	} {
		us, err := ParseURLs(text)
		if err != nil || Address(us[0]) != want {
			t.Errorf("%s: %v, %v", text, us, err)
		}
	}
}

func TestHelpAndVersion(t *testing.T) {
	for _, arg := range []string{"-h", "--help", "-help"} {
		if p, err := parse(t, arg); err != nil || !p.Help {
			t.Errorf("%s: %+v, %v", arg, p, err)
		}
	}
	if p, err := parse(t, "--version"); err != nil || !p.Version {
		t.Errorf("--version: %+v, %v", p, err)
	}
	for line := range strings.Lines(Usage()) {
		if len(line) > 160 {
			t.Errorf("a line of the help text is %d characters long: %s", len(line), line)
		}
	}
}

// A default that etcd's --help shows and ours does not share would surprise operators.
func TestLogDefaults(t *testing.T) {
	if err := logging.Check(Default().Log); err != nil {
		t.Error(err)
	}
	if err := Default().Validate(); err != nil {
		t.Error(err)
	}
}

// FuzzFile: no file makes Parse panic, and what it accepts is valid.
func FuzzFile(f *testing.F) {
	f.Add("name: x\nheartbeat-interval: 100\n")
	f.Add("client-transport-security: {cert-file: a, key-file: b}\nlog-outputs: [a, b]\n")
	f.Add("{\"a\": [1, {\"b\": null}]}")
	f.Fuzz(func(t *testing.T, text string) {
		name := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := Parse([]string{"--config-file", name}, nil)
		if err == nil {
			if err := p.Validate(); err != nil {
				t.Fatalf("accepted, and then: %v", err)
			}
		}
	})
}
