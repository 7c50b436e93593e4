package config

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// table is every flag of a Config, in the groups and the order of the help text. The
// same table reads the environment and the file.
type table struct {
	fs     *flag.FlagSet // parses as etcd does: -name and --name alike
	groups []group
	notes  *notes

	configFile string
	version    bool
}

type group struct {
	title string
	names []string
}

func (t *table) group(title string) { t.groups = append(t.groups, group{title: title}) }

// listed puts a flag that was just defined into the help text.
func (t *table) listed(name string) {
	g := &t.groups[len(t.groups)-1]
	g.names = append(g.names, name)
}

func (t *table) text(p *string, name, usage string) {
	t.fs.StringVar(p, name, *p, usage)
	t.listed(name)
}
func (t *table) yes(p *bool, name, usage string)    { t.fs.BoolVar(p, name, *p, usage); t.listed(name) }
func (t *table) integer(p *int, name, usage string) { t.fs.IntVar(p, name, *p, usage); t.listed(name) }
func (t *table) uint(p *uint, name, usage string)   { t.fs.UintVar(p, name, *p, usage); t.listed(name) }
func (t *table) uint64(p *uint64, name, usage string) {
	t.fs.Uint64Var(p, name, *p, usage)
	t.listed(name)
}
func (t *table) int64(p *int64, name, usage string) {
	t.fs.Int64Var(p, name, *p, usage)
	t.listed(name)
}
func (t *table) duration(p *time.Duration, name, usage string) {
	t.fs.DurationVar(p, name, *p, usage)
	t.listed(name)
}
func (t *table) value(v flag.Value, name, usage string) { t.fs.Var(v, name, usage); t.listed(name) }

// newTable binds every flag to its field of c, whose values are the defaults.
func newTable(c *Config, n *notes) *table {
	t := &table{fs: flag.NewFlagSet("", flag.ContinueOnError), notes: n}
	t.fs.SetOutput(discard{})
	t.fs.Usage = func() {}
	t.member(c)
	t.clustering(c)
	t.security(c)
	t.operation(c)
	t.compatibility(c)
	t.ours(c)
	t.legacy(c)
	return t
}

func (t *table) member(c *Config) {
	t.group("Member")
	t.text(&c.Name, "name", "Name of this member, for people.")
	t.text(&c.DataDir, "data-dir", "Directory of the member's data; empty: <name>.etcd.")
	t.text(&c.WALDir, "wal-dir", "Directory of the log; empty: inside the data directory.")
	t.uint64(&c.SnapshotCount, "snapshot-count", "Committed entries after which the log gets a mark that bounds it.")
	t.value((*millis)(&c.HeartbeatInterval), "heartbeat-interval", "Time between heartbeats, in milliseconds.")
	t.value((*millis)(&c.ElectionTimeout), "election-timeout", "Time without a leader after which an election begins, in milliseconds; at least 5 heartbeats.")
	t.value(&c.ListenPeerURLs, "listen-peer-urls", "URLs to listen on for other members.")
	t.value(&c.ListenClientURLs, "listen-client-urls", "URLs to listen on for clients: gRPC, and HTTP unless --listen-client-http-urls is given.")
	t.value(&c.ListenClientHTTPURLs, "listen-client-http-urls", "URLs to listen on for HTTP alone; --listen-client-urls then speak gRPC alone.")
	t.int64(&c.QuotaBytes, "quota-backend-bytes", "Bytes that the data may use before writes are refused; 0: 2 GiB, negative: no limit.")
	t.uint(&c.MaxTxnOps, "max-txn-ops", "Operations that one transaction may have.")
	t.uint(&c.MaxRequestBytes, "max-request-bytes", "Bytes that one request may have.")
	t.value((*uint32Value)(&c.MaxConcurrentStreams), "max-concurrent-streams", "Streams that one client connection may have open.")
	t.duration(&c.GRPCKeepAliveMinTime, "grpc-keepalive-min-time", "Least time between pings of a client; one that pings faster is disconnected.")
	t.duration(&c.GRPCKeepAliveInterval, "grpc-keepalive-interval", "Time between pings to an idle client; 0: none.")
	t.duration(&c.GRPCKeepAliveTimeout, "grpc-keepalive-timeout", "Time that a client has to answer a ping; 0: no pings.")
	t.yes(&c.SocketReusePort, "socket-reuse-port", "Set SO_REUSEPORT on listeners.")
	t.yes(&c.SocketReuseAddress, "socket-reuse-address", "Set SO_REUSEADDR on listeners.")
	t.yes(&c.EnableGateway, "enable-grpc-gateway", "Serve the API as JSON under /v3/.")
	t.value(&c.Features, "feature-gates", "Feature gates as name=true|false, comma-separated:\n"+gateList())
	t.text(&t.configFile, "config-file", "YAML file with the configuration; all other flags and the environment are ignored then.")
	t.yes(&t.version, "version", "Print the version and exit.")
}

func (t *table) clustering(c *Config) {
	t.group("Clustering")
	t.value(&c.AdvertisePeerURLs, "initial-advertise-peer-urls", "URLs of this member, for the other members.")
	t.text(&c.InitialCluster, "initial-cluster", "Members of a new cluster: name=URL, comma-separated.")
	t.value(&choice{&c.InitialClusterState, []string{StateNew, StateExisting}}, "initial-cluster-state", "'new' for a new cluster, 'existing' to join one; ignored once there is data.")
	t.text(&c.InitialClusterToken, "initial-cluster-token", "Token that keeps clusters apart which are made alike.")
	t.value(&c.AdvertiseClientURLs, "advertise-client-urls", "URLs of this member, for clients; required with --listen-client-urls.")
	t.yes(&c.StrictReconfigCheck, "strict-reconfig-check", "Refuse membership changes that would lose the quorum.")
	t.yes(&c.PreVote, "pre-vote", "Ask for votes before an election is begun in earnest.")
	t.integer(&c.MaxLearners, "max-learners", "Learners that the cluster may have.")
	t.text(&c.CompactionMode, "auto-compaction-mode", "What --auto-compaction-retention means: 'periodic' a time, 'revision' a number of revisions.")
	t.text(&c.CompactionRetention, "auto-compaction-retention", "History to keep: a time ('5m'; a bare number is hours) or a number of revisions; 0: all.")
	t.text(&c.DiscoverySRV, "discovery-srv", "DNS domain whose SRV records _etcd-server-ssl._tcp and _etcd-server._tcp name the members of a new cluster, in place of --initial-cluster.")
	t.text(&c.DiscoverySRVName, "discovery-srv-name", "Suffix of the names of these services: _etcd-server-<suffix>._tcp.")
}

func (t *table) security(c *Config) {
	t.group("Security")
	t.text(&c.ClientTLS.CertFile, "cert-file", "Certificate of the client port. This file and the next ones are read again when they change.")
	t.text(&c.ClientTLS.KeyFile, "key-file", "Key of --cert-file.")
	t.text(&c.ClientTLS.TrustedCAFile, "trusted-ca-file", "Authorities that must have signed the certificates of clients.")
	t.yes(&c.ClientTLS.ClientCertAuth, "client-cert-auth", "Require certificates from clients.")
	t.text(&c.ClientTLS.CRLFile, "client-crl-file", "Revoked client certificates.")
	t.value((*list)(&c.ClientTLS.AllowedHostnames), "client-cert-allowed-hostname", "Host names of which a client certificate must have one.")
	t.text(&c.ClientTLS.ClientCertFile, "client-cert-file", "Certificate to show as a client; empty: --cert-file.")
	t.text(&c.ClientTLS.ClientKeyFile, "client-key-file", "Key of --client-cert-file.")
	t.yes(&c.ClientAutoTLS, "auto-tls", "Make a certificate for the client port if none is given.")
	t.text(&c.PeerTLS.CertFile, "peer-cert-file", "Certificate of the peer port.")
	t.text(&c.PeerTLS.KeyFile, "peer-key-file", "Key of --peer-cert-file.")
	t.text(&c.PeerTLS.TrustedCAFile, "peer-trusted-ca-file", "Authorities that must have signed the certificates of members.")
	t.yes(&c.PeerTLS.ClientCertAuth, "peer-client-cert-auth", "Require certificates from other members.")
	t.text(&c.PeerTLS.CRLFile, "peer-crl-file", "Revoked member certificates.")
	t.value((*list)(&c.PeerTLS.AllowedCNs), "peer-cert-allowed-cn", "Common names of which a member's certificate must have one.")
	t.value((*list)(&c.PeerTLS.AllowedHostnames), "peer-cert-allowed-hostname", "Host names of which a member's certificate must have one.")
	t.yes(&c.PeerTLS.SkipClientSANVerify, "peer-skip-client-san-verification", "Do not compare a member's address with its certificate.")
	t.text(&c.PeerTLS.ClientCertFile, "peer-client-cert-file", "Certificate to show to other members; empty: --peer-cert-file.")
	t.text(&c.PeerTLS.ClientKeyFile, "peer-client-key-file", "Key of --peer-client-cert-file.")
	t.yes(&c.PeerAutoTLS, "peer-auto-tls", "Make a certificate for the peer port if none is given.")
	t.uint(&c.AutoTLSYears, "self-signed-cert-validity", "Years that a made certificate is valid.")
	t.value((*list)(&c.TLS.CipherSuites), "cipher-suites", "TLS cipher suites; empty: Go's choice.")
	t.text(&c.TLS.MinVersion, "tls-min-version", "Lowest TLS version: TLS1.2 or TLS1.3.")
	t.text(&c.TLS.MaxVersion, "tls-max-version", "Highest TLS version: TLS1.2 or TLS1.3; empty: the newest.")
	t.value((*origins)(&c.CORS), "cors", "Origins that browsers may call from; '*': all.")
	t.value((*list)(&c.HostWhitelist), "host-whitelist", "Host headers that are served without TLS; '*': all.")

	t.group("Auth")
	t.text(&c.AuthToken, "auth-token", "Kind of tokens: 'simple', or 'jwt' with its options.")
	t.uint(&c.BcryptCost, "bcrypt-cost", "Cost of hashing passwords, 4 to 31.")
	t.uint(&c.AuthTokenTTL, "auth-token-ttl", "Seconds that a token lives.")
}

func (t *table) operation(c *Config) {
	t.group("Profiling and monitoring")
	t.value(&c.ListenMetricsURLs, "listen-metrics-urls", "URLs to listen on for /metrics and the health checks alone.")
	t.text(&c.Metrics, "metrics", "'basic', or 'extensive' for latencies of each gRPC method too.")
	t.yes(&c.EnablePprof, "enable-pprof", "Serve profiles under /debug/pprof/ on the client port.")

	t.group("Logging")
	t.text(&c.Logger, "logger", "'zap', which stands for structured lines.")
	t.value((*list)(&c.Log.Outputs), "log-outputs", "Where to: 'default' (stderr), 'stderr', 'stdout', 'systemd/journal' or files.")
	t.text(&c.Log.Level, "log-level", "debug, info, warn, error, panic or fatal.")
	t.text(&c.Log.Format, "log-format", "'json' or 'console'.")
	t.yes(&c.Log.Rotate, "enable-log-rotation", "Rotate the one file in --log-outputs.")
	t.text(&c.Log.Rotation, "log-rotation-config-json", "How: maxsize (MB), maxage (days), maxbackups, localtime, compress.")
	t.duration(&c.WarnUnaryDuration, "warning-unary-request-duration", "Time after which a request is logged as slow.")
	t.duration(&c.WarnApplyDuration, "warning-apply-duration", "Time after which applying a request is logged as slow.")

	t.group("Features")
	t.duration(&c.ProgressNotifyInterval, "watch-progress-notify-interval", "Time after which an idle watch that wants it is told the revision.")
	t.uint64(&c.SnapshotCatchUpEntries, "snapshot-catchup-entries", "Entries to keep for a slow follower behind a mark in the log.")

	t.duration(&c.CorruptCheckTime, "corrupt-check-time", "Time after which the leader compares the data of all members again; 0: never.")

	t.group("Unsafe")
	t.yes(&c.ForceNewCluster, "force-new-cluster", "Go on as the only member on the data of a larger cluster.")
	t.yes(&c.UnsafeNoFsync, "unsafe-no-fsync", "Do not sync: a crash of the machine loses acknowledged writes.")
}

const compatibilityTitle = "Accepted for compatibility, without effect"

// compatibility are flags that etcd has and that have nothing to do here.
func (t *table) compatibility(c *Config) {
	t.group(compatibilityTitle)
	t.yes(&c.InitialTickAdvance, "initial-election-tick-advance", "")
	t.uint(&c.MaxSnapshots, "max-snapshots", "")
	t.uint(&c.MaxWALs, "max-wals", "")
	t.yes(&c.MemoryMlock, "memory-mlock", "")
	t.text(&c.BackendFreelist, "backend-bbolt-freelist-type", "")
	t.duration(&c.BackendBatchInterval, "backend-batch-interval", "")
	t.integer(&c.BackendBatchLimit, "backend-batch-limit", "")
	t.uint(&c.BootstrapDefragMB, "bootstrap-defrag-threshold-megabytes", "")
	t.integer(&c.CompactionBatchLimit, "compaction-batch-limit", "")
	t.duration(&c.CompactionSleep, "compaction-sleep-interval", "")
	t.duration(&c.CompactHashCheckTime, "compact-hash-check-time", "")
	t.duration(&c.DowngradeCheckTime, "downgrade-check-time", "")
	t.duration(&c.RaftReadTimeout, "raft-read-timeout", "")
	t.duration(&c.RaftWriteTimeout, "raft-write-timeout", "")
	t.value(&v2Deprecation{&c.V2Deprecation}, "v2-deprecation", "")
	t.yes(&c.Tracing.Enabled, "enable-distributed-tracing", "")
	t.text(&c.Tracing.Address, "distributed-tracing-address", "")
	t.text(&c.Tracing.ServiceName, "distributed-tracing-service-name", "")
	t.text(&c.Tracing.InstanceID, "distributed-tracing-instance-id", "")
	t.integer(&c.Tracing.SamplingRate, "distributed-tracing-sampling-rate", "")
	d := &c.Discovery
	t.text(&d.Token, "discovery-token", "")
	t.value((*list)(&d.Endpoints), "discovery-endpoints", "")
	t.duration(&d.DialTimeout, "discovery-dial-timeout", "")
	t.duration(&d.RequestTimeout, "discovery-request-timeout", "")
	t.duration(&d.KeepAliveTime, "discovery-keepalive-time", "")
	t.duration(&d.KeepAliveTimeout, "discovery-keepalive-timeout", "")
	t.yes(&d.InsecureTransport, "discovery-insecure-transport", "")
	t.yes(&d.InsecureSkipTLSVerify, "discovery-insecure-skip-tls-verify", "")
	t.text(&d.Cert, "discovery-cert", "")
	t.text(&d.Key, "discovery-key", "")
	t.text(&d.CA, "discovery-cacert", "")
	t.text(&d.User, "discovery-user", "")
	t.text(&d.Password, "discovery-password", "")
	t.value(&choice{&d.Fallback, []string{discoveryFallback, "proxy"}}, "discovery-fallback", "")
}

func (t *table) ours(c *Config) {
	t.group("Only here, not in etcd")
	t.duration(&c.ShutdownTimeout, "shutdown-timeout", "Time that calls in flight have to end when the server is told to stop.")
	t.yes(&c.LearnerServeReads, "learner-serve-reads", "Serve linearizable reads and watches also as a learner.")
	t.value((*list)(&c.ClientTLS.AllowedCNs), "client-cert-allowed-cn", "Common names of which a client certificate must have one.")
}

// legacyFlags were in etcd long ago. It still ignores them, so that old command lines
// start.
var legacyFlags = []string{
	"cluster-active-size", "cluster-remove-delay", "cluster-sync-interval", "config", "force",
	"max-result-buffer", "max-retry-attempts", "peer-heartbeat-interval", "peer-election-timeout",
	"retry-interval", "snapshot", "v", "vv",
}

// experimental are the names that etcd's flags had until 3.6. etcd 3.7 refuses them; here
// they still mean what they meant.
var experimental = map[string]string{
	"experimental-backend-bbolt-freelist-type":          "backend-bbolt-freelist-type",
	"experimental-bootstrap-defrag-threshold-megabytes": "bootstrap-defrag-threshold-megabytes",
	"experimental-compact-hash-check-time":              "compact-hash-check-time",
	"experimental-compaction-batch-limit":               "compaction-batch-limit",
	"experimental-compaction-sleep-interval":            "compaction-sleep-interval",
	"experimental-corrupt-check-time":                   "corrupt-check-time",
	"experimental-distributed-tracing-address":          "distributed-tracing-address",
	"experimental-distributed-tracing-instance-id":      "distributed-tracing-instance-id",
	"experimental-distributed-tracing-sampling-rate":    "distributed-tracing-sampling-rate",
	"experimental-distributed-tracing-service-name":     "distributed-tracing-service-name",
	"experimental-downgrade-check-time":                 "downgrade-check-time",
	"experimental-enable-distributed-tracing":           "enable-distributed-tracing",
	"experimental-max-learners":                         "max-learners",
	"experimental-memory-mlock":                         "memory-mlock",
	"experimental-peer-skip-client-san-verification":    "peer-skip-client-san-verification",
	"experimental-snapshot-catchup-entries":             "snapshot-catchup-entries",
	"experimental-warning-apply-duration":               "warning-apply-duration",
	"experimental-warning-unary-request-duration":       "warning-unary-request-duration",
	"experimental-watch-progress-notify-interval":       "watch-progress-notify-interval",
}

// experimentalGates became feature gates.
var experimentalGates = map[string]string{
	"experimental-compact-hash-check-enabled":        "CompactHashCheck",
	"experimental-enable-lease-checkpoint":           "LeaseCheckpoint",
	"experimental-enable-lease-checkpoint-persist":   "LeaseCheckpointPersist",
	"experimental-initial-corrupt-check":             "InitialCorruptCheck",
	"experimental-set-member-localaddr":              "SetMemberLocalAddr",
	"experimental-stop-grpc-service-on-defrag":       "StopGRPCServiceOnDefrag",
	"experimental-txn-mode-write-with-shared-buffer": "TxnModeWriteWithSharedBuffer",
}

// legacy defines what the help text does not show.
func (t *table) legacy(c *Config) {
	for _, name := range legacyFlags {
		t.fs.Var(&ignored{name: name, notes: t.notes}, name, "")
	}
	for old, name := range experimental {
		t.fs.Var(&renamed{Value: t.fs.Lookup(name).Value, old: old, now: name, notes: t.notes}, old, "")
	}
	for old, gate := range experimentalGates {
		t.fs.Var(&gateFlag{features: &c.Features, gate: gate, old: old, notes: t.notes}, old, "")
	}
}

// names are all flags, for suggestions: not those that the help text does not show.
func (t *table) names() []string {
	var all []string
	for _, g := range t.groups {
		all = append(all, g.names...)
	}
	return all
}

// ---- kinds of values that package flag does not have ----

// millis is a duration that is written in whole milliseconds.
type millis time.Duration

func (m *millis) Set(s string) error {
	n, err := strconv.ParseUint(s, 0, 31)
	if err != nil {
		return errors.New("parse error")
	}
	*m = millis(time.Duration(n) * time.Millisecond)
	return nil
}
func (m *millis) String() string { return strconv.FormatInt(time.Duration(*m).Milliseconds(), 10) }

type uint32Value uint32

func (v *uint32Value) Set(s string) error {
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		return err
	}
	*v = uint32Value(n)
	return nil
}
func (v *uint32Value) String() string { return strconv.FormatUint(uint64(*v), 10) }

// list is comma-separated, without repeats, in the order given.
type list []string

func (l *list) Set(s string) error {
	*l = nil
	if s == "" {
		return nil
	}
	for v := range strings.SplitSeq(s, ",") {
		if !slices.Contains(*l, v) {
			*l = append(*l, v)
		}
	}
	return nil
}
func (l *list) String() string { return strings.Join(*l, ",") }

// origins is "*" or a list of URLs.
type origins []string

func (o *origins) Set(s string) error {
	if s == "*" || s == "" {
		*o = origins{"*"}
		return nil
	}
	us, err := ParseURLs(s)
	if err != nil {
		return err
	}
	*o = us.Strings()
	return nil
}
func (o *origins) String() string { return strings.Join(*o, ",") }

// choice is one of a few words.
type choice struct {
	value *string
	of    []string
}

func (c *choice) Set(s string) error {
	if !slices.Contains(c.of, s) {
		return fmt.Errorf("must be %s", strings.Join(c.of, " or "))
	}
	*c.value = s
	return nil
}
func (c *choice) String() string {
	if c.value == nil { // package flag asks the zero value
		return ""
	}
	return *c.value
}

// v2Deprecation checks its words as etcd does, and keeps the default.
type v2Deprecation struct{ value *string }

func (v *v2Deprecation) Set(s string) error {
	for w := range strings.SplitSeq(s, ",") {
		switch w {
		case "write-only", "write-only-skip-check", "write-only-drop-data", "gone":
		default:
			return fmt.Errorf("invalid value %q", w)
		}
	}
	return nil
}
func (v *v2Deprecation) String() string {
	if v.value == nil {
		return ""
	}
	return *v.value
}

// ignored is a legacy flag, with or without a value.
type ignored struct {
	name  string
	notes *notes
}

func (i *ignored) IsBoolFlag() bool { return true }
func (i *ignored) String() string   { return "" }
func (i *ignored) Set(string) error {
	i.notes.warn("flag is no longer supported - ignoring", "flag-name", i.name)
	return nil
}

// renamed sets another flag's value.
type renamed struct {
	flag.Value
	old, now string
	notes    *notes
}

func (r *renamed) IsBoolFlag() bool {
	b, ok := r.Value.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}
func (r *renamed) String() string {
	if r.Value == nil {
		return ""
	}
	return r.Value.String()
}
func (r *renamed) Set(s string) error {
	r.notes.warn("--" + r.old + " is an older name; use --" + r.now)
	return r.Value.Set(s)
}

// gateFlag is a flag that became a feature gate.
type gateFlag struct {
	features  *Features
	gate, old string
	notes     *notes
}

func (g *gateFlag) IsBoolFlag() bool { return true }
func (g *gateFlag) String() string   { return "" }
func (g *gateFlag) Set(s string) error {
	on, err := strconv.ParseBool(s)
	if err != nil {
		return errors.New("parse error")
	}
	g.notes.warn(fmt.Sprintf("--%s is an older name; use --feature-gates=%s=%t", g.old, g.gate, on))
	return g.features.Set(fmt.Sprintf("%s=%t", g.gate, on))
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
