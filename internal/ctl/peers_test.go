package ctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// The test binary is the client itself when this variable is set: processes have exit codes,
// standard streams and an environment, which calls have not.
const envActAsClient = "QUORATE_CTL_TEST_CLIENT"

// envPeers names the directory with the binaries of etcd, etcdctl and etcdutl to compare with.
const envPeers = "QUORATE_PEERS"

// TestMain runs the tests, or the client.
func TestMain(m *testing.M) {
	if os.Getenv(envActAsClient) != "" {
		os.Exit(Execute(context.Background(), Command()))
	}
	// Servers in this process use gRPC before the first verb runs.
	grpcLogOnce.Do(func() {})
	os.Exit(m.Run())
}

// A step is one run of the client, or a change made behind its back.
type step struct {
	args  string // words, split as the client splits interactive input; {L1} is the first granted lease, {dir} a directory
	stdin string
	env   []string
	lines int // the client does not end by itself: kill it after so many lines of standard output

	// The client is not killed but sent this signal, after so many lines, or else once it waits in a queue: two keys
	// are below the prefix then. What it leaves there, and of leases, is compared.
	signal syscall.Signal
	queue  string

	before func(t *testing.T, c *clientv3.Client)

	// What is known to be different, and why.
	ignore   bool   // run it only
	alarmed  bool   // an alarm is on, which quorate's server takes back by itself when it has no cause
	looseErr bool   // standard error need not be equal
	ours     string // our standard output and error must contain this, and exit with code ourCode; etcdctl's are not looked at
	ourCode  int
	why      string
}

// envServer names a binary of quorate, whose server is then held against etcd's too.
const envServer = "QUORATE_BIN"

// findPeers returns the directory of the real binaries, or skips the test.
func findPeers(t *testing.T) string {
	t.Helper()
	peers := os.Getenv(envPeers)
	if peers == "" {
		t.Skipf("%s is not set: no etcdctl to compare with", envPeers)
	}
	for _, name := range []string{"etcd", "etcdctl", "etcdutl"} {
		if _, err := os.Stat(filepath.Join(peers, name)); err != nil {
			t.Skipf("%s names no directory with the peers: %v", envPeers, err)
		}
	}
	return peers
}

// A party is a client and the server that it is run against, as command lines.
type party struct {
	client, server []string
	env            []string // of the client, beyond that of the test
}

// TestAgainstEtcdctl runs the same long list of invocations with etcdctl and with this package, each
// against an etcd of its own, and wants equal standard output, standard error and exit codes.
func TestAgainstEtcdctl(t *testing.T) {
	t.Parallel()
	peers := findPeers(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	etcd := []string{filepath.Join(peers, "etcd")}
	steps := peerSteps()
	compareParties(t, peers, 1, steps,
		party{client: []string{filepath.Join(peers, "etcdctl")}, server: etcd},
		party{client: []string{self}, server: etcd, env: []string{envActAsClient + "=1"}})
}

// TestServerAgainstEtcd runs the list with etcdctl against etcd and, with this package, against
// quorate's server.
func TestServerAgainstEtcd(t *testing.T) {
	t.Parallel()
	server := os.Getenv(envServer)
	if server == "" {
		t.Skipf("%s is not set: no server to compare", envServer)
	}
	peers := findPeers(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	steps := peerSteps()
	// Left out, not only ignored: whether the put among them is refused depends on when the server takes
	// the alarm back, and the revisions of all later steps depend on that put.
	steps = slices.DeleteFunc(steps, func(s step) bool { return s.alarmed })
	compareParties(t, peers, 1, steps,
		party{client: []string{filepath.Join(peers, "etcdctl")}, server: []string{filepath.Join(peers, "etcd")}},
		party{client: []string{self}, server: []string{server, "serve"}, env: []string{envActAsClient + "=1"}})
}

// compareParties runs the list of invocations with both, on so many servers, and holds the second to the
// first.
func compareParties(t *testing.T, peers string, members int, steps []step, want, got party) {
	t.Helper()
	// The same ports for both, one after the other: etcd derives its ids from its peer URL.
	var ports [][2]int
	for range members {
		ports = append(ports, [2]int{freePort(t), freePort(t)})
	}
	wants := runSteps(t, peers, want, ports, steps)
	gots := runSteps(t, peers, got, ports, steps)
	if t.Failed() {
		return
	}
	for i, s := range steps {
		name := fmt.Sprintf("step %d: etcdctl %s", i, s.args)
		want, got := wants[i], gots[i]
		if s.ignore {
			continue
		}
		if s.ours != "" {
			if out := got.stdout + got.stderr; got.code != s.ourCode || !strings.Contains(out, s.ours) {
				t.Errorf("%s (%s)\ngot code %d: %s\nwant code %d: %s", name, s.why, got.code, out, s.ourCode, s.ours)
			}
			continue
		}
		if got.stdout != want.stdout {
			t.Errorf("%s\nstdin: %q\nstdout:\n%s\nwant:\n%s", name, s.stdin, got.stdout, want.stdout)
		}
		if !s.looseErr && got.stderr != want.stderr {
			t.Errorf("%s\nstdin: %q\nstderr:\n%s\nwant:\n%s", name, s.stdin, got.stderr, want.stderr)
		}
		if got.left != want.left {
			t.Errorf("%s, %v\nleaves %s\nwant   %s", name, s.signal, got.left, want.left)
		}
		if (s.lines == 0 || s.signal != 0) && got.code != want.code {
			t.Errorf("%s\nstdin: %q\nexit code %d, want %d (stderr %s)", name, s.stdin, got.code, want.code, got.stderr)
		}
	}
	t.Logf("%d invocations compared", len(steps))
}

// checkSnapshot wants etcdutl to take the snapshot that a client saved.
func checkSnapshot(t *testing.T, peers, path string) {
	t.Helper()
	restored := filepath.Join(t.TempDir(), "restored")
	for _, args := range [][]string{{"snapshot", "status", path, "-w", "json"}, {"snapshot", "restore", path, "--data-dir", restored}} {
		if out, err := exec.Command(filepath.Join(peers, "etcdutl"), args...).CombinedOutput(); err != nil {
			t.Errorf("etcdutl %v: %v\n%s", args, err, out)
		}
	}
}

// A result is what one invocation gave, without what differs from run to run.
type result struct {
	stdout, stderr string
	code           int
	left           string // of keys and leases, by a client that was sent a signal
}

// startServers starts a cluster of p's servers, as many as there are pairs of a client and a peer port,
// and returns a client of them. Alone, a member has the default name.
func startServers(t *testing.T, p party, dir string, ports [][2]int) *clientv3.Client {
	t.Helper()
	var endpoints, initial, names []string
	url := func(port int) string { return fmt.Sprintf("http://127.0.0.1:%d", port) }
	for i, port := range ports {
		names = append(names, "default")
		if len(ports) > 1 {
			names[i] = fmt.Sprintf("m%d", i+1)
		}
		endpoints = append(endpoints, fmt.Sprintf("127.0.0.1:%d", port[0]))
		initial = append(initial, names[i]+"="+url(port[1]))
	}
	ctx, cancel := context.WithCancel(context.Background())
	var servers []*exec.Cmd
	t.Cleanup(func() {
		cancel()
		for _, s := range servers {
			_ = s.Wait() // killed: its exit code says nothing
		}
	})
	for i, port := range ports {
		server := exec.CommandContext(ctx, p.server[0], append(p.server[1:len(p.server):len(p.server)],
			"--name", names[i], "--data-dir", filepath.Join(dir, names[i]),
			"--listen-client-urls", url(port[0]), "--advertise-client-urls", url(port[0]),
			"--listen-peer-urls", url(port[1]), "--initial-advertise-peer-urls", url(port[1]),
			"--initial-cluster", strings.Join(initial, ","),
			"--bcrypt-cost", "4")...) // as cheap as can be: there are many passwords
		if err := server.Start(); err != nil {
			t.Fatal(err)
		}
		servers = append(servers, server)
	}
	c, err := clientv3.New(clientv3.Config{Endpoints: endpoints})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	ready, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	if _, err := c.Get(ready, "a", clientv3.WithLimit(1)); err != nil {
		t.Fatalf("%s is not ready: %v", p.server[0], err)
	}
	return c
}

// runSteps runs steps with a client against fresh servers.
func runSteps(t *testing.T, peers string, p party, ports [][2]int, steps []step) (results []result) {
	t.Helper()
	// A test of its own ends its servers before the ports are used again.
	t.Run(filepath.Base(p.client[0]), func(t *testing.T) { results = runStepsAgainst(t, peers, p, ports, steps) })
	return results
}

func runStepsAgainst(t *testing.T, peers string, p party, ports [][2]int, steps []step) []result {
	t.Helper()
	dir := t.TempDir()
	c := startServers(t, p, dir, ports)
	endpoint := fmt.Sprintf("127.0.0.1:%d", ports[0][0])
	n := &normalizer{dir: dir}
	if len(ports) > 1 {
		n.learnMembers(t, c)
		// A member takes part in changes of membership when it has been connected for a while.
		time.Sleep(6 * time.Second)
	}
	var results []result
	for _, s := range steps {
		if s.before != nil {
			s.before(t, c)
		}
		args, err := splitWords(n.expand(s.args))
		if err != nil {
			t.Fatal(err)
		}
		environ := append(os.Environ(), p.env...)
		environ = append(environ, s.env...)
		if !strings.Contains(s.args, "--endpoints") && !strings.Contains(strings.Join(s.env, " "), "ETCDCTL_ENDPOINTS") {
			environ = append(environ, "ETCDCTL_ENDPOINTS="+endpoint)
		}
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], "{endpoint}", endpoint)
			args[i] = strings.ReplaceAll(args[i], "{all}", strings.Join(c.Endpoints(), ","))
		}
		leases := allLeases(t, c, s)
		got := invoke(t, p.client[0], args, environ, s, c)
		got.left = n.left(t, c, s, leases)
		if len(ports) > 1 && strings.Contains(s.args, "member add") {
			n.learnMembers(t, c)
		}
		r := n.normalize(s.args, got)
		if s.lines > 0 && s.signal == 0 {
			// What came before it could be killed is a matter of chance.
			lines := strings.SplitAfter(r.stdout, "\n")
			if len(lines) <= s.lines {
				t.Errorf("%s: %s wrote %d lines, want %d: %s", p.client[0], s.args, len(lines)-1, s.lines, r.stdout)
			}
			r.stdout = strings.Join(lines[:min(s.lines, len(lines))], "")
		}
		results = append(results, r)
	}
	if len(ports) == 1 {
		checkSnapshot(t, peers, filepath.Join(dir, "snap"))
	}
	return results
}

// invoke runs the binary to its end, which may be the step's.
func invoke(t *testing.T, binary string, args, env []string, s step, c *clientv3.Client) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Env = env
	end := cancel
	if s.signal != 0 {
		end = sync.OnceFunc(func() {
			if err := cmd.Process.Signal(s.signal); err != nil {
				t.Errorf("%s %q: %v", binary, args, err)
			}
		})
	}
	out := &lineCounter{want: s.lines, reached: end}
	var errw bytes.Buffer
	cmd.Stdout, cmd.Stderr = out, &errw
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if s.signal != 0 && s.lines == 0 {
		awaitQueue(t, c, s.queue)
		end()
	}
	// A client that ended early breaks the pipe, which is no matter. One that is to be killed keeps
	// its input open, since the end of the input ends it too.
	_, _ = in.Write([]byte(s.stdin))
	if s.lines == 0 {
		_ = in.Close()
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s %q: %v", binary, args, err)
	}
	if (s.lines == 0 || s.signal != 0) && ctx.Err() != nil {
		t.Errorf("%s %q did not end", binary, args)
	}
	return result{stdout: out.String(), stderr: errw.String(), code: cmd.ProcessState.ExitCode()}
}

// A lineCounter keeps what is written, and calls reached once there are so many lines.
type lineCounter struct {
	mu      sync.Mutex
	buf     bytes.Buffer
	want    int
	reached func()
}

func (l *lineCounter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Write(p)
	if l.want > 0 && bytes.Count(l.buf.Bytes(), []byte("\n")) >= l.want {
		l.reached()
	}
	return len(p), nil
}

func (l *lineCounter) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// A normalizer replaces what differs from run to run: lease ids, durations, file names, log times.
type normalizer struct {
	dir     string
	leases  []string // hexadecimal, in the order of grants
	members []uint64 // of a cluster: by name, then in the order in which they were added
}

// expand puts the ids of leases and the directory into the words of a step.
func (n *normalizer) expand(s string) string {
	for i, l := range n.leases {
		s = strings.ReplaceAll(s, fmt.Sprintf("{L%d}", i+1), l)
	}
	for i, id := range n.members {
		s = strings.ReplaceAll(s, fmt.Sprintf("{M%d}", i+1), fmt.Sprintf("%x", id))
	}
	return strings.ReplaceAll(s, "{dir}", n.dir)
}

var (
	reGranted  = regexp.MustCompile(`lease ([0-9a-f]{16}) granted`)
	reGrantID  = regexp.MustCompile(`"ID"\s?:\s?([0-9a-f]+)`)
	reDuration = regexp.MustCompile(`\d+\.\d+(µs|ms|s)|\d+(µs|ms)\b`)
	reLog      = regexp.MustCompile(`(?m)^\{"level":"(\w+)".*?"msg":"([^"]*)".*\n`)
	reFileSize = regexp.MustCompile(`"dbSize(?:InUse)?":\d+|"DBSize(?:InUse)?" : \d+|\d+ kB(, |  *│  *)\d+ kB(, |  *│  *)\d+%`)
	// In tables and lists, the term and two indexes follow the two truths about leader and learner.
	reRaftIndex = regexp.MustCompile(`("raft\w*Index":|"Raft\w*Index" :|(?:true|false)[, │]*(?:true|false)[, │]+\d+)[, │]*\d+(?:[, │]+\d+)?`)
	reFrame     = regexp.MustCompile(`─+`)
	reSpaces    = regexp.MustCompile(`  +`)
)

func (n *normalizer) normalize(args string, r result) result {
	if strings.Contains(args, "lease grant") {
		m := reGranted.FindStringSubmatch(r.stdout)
		if m == nil {
			m = reGrantID.FindStringSubmatch(r.stdout)
		}
		if m != nil {
			id := m[1]
			if !strings.Contains(args, "--hex") && len(m[0]) != len("lease  granted")+16 {
				if v, err := strconv.ParseInt(id, 10, 64); err == nil {
					id = fmt.Sprintf("%016x", v)
				}
			}
			n.leases = append(n.leases, id)
		}
	}
	clean := func(s string) string {
		for i, l := range n.leases {
			name := fmt.Sprintf("{L%d}", i+1)
			s = strings.ReplaceAll(s, l, name)
			s = strings.ReplaceAll(s, strings.TrimLeft(l, "0"), name)
			if v, err := strconv.ParseInt(l, 16, 64); err == nil {
				s = strings.ReplaceAll(s, strconv.FormatInt(v, 10), name)
			}
		}
		if len(n.members) > 0 {
			s = n.cleanCluster(s)
		}
		s = strings.ReplaceAll(s, n.dir, "{dir}")
		s = reLog.ReplaceAllString(s, "log $1 $2\n")
		if strings.Contains(args, "health") {
			// The width of the column of durations is that of the longest.
			s = reSpaces.ReplaceAllString(reFrame.ReplaceAllString(s, "─"), " ")
		}
		if strings.Contains(args, "alarm") {
			// protobuf's text puts one or two spaces, by chance, to keep us from relying on it.
			s = reSpaces.ReplaceAllString(s, " ")
		}
		if strings.Contains(args, "status") || strings.Contains(args, "endp st") {
			// The file of etcd grows by steps of time, and its log by the lease checks of a minute.
			s = reFileSize.ReplaceAllString(s, "SIZE")
			s = reRaftIndex.ReplaceAllString(s, "$1 INDEX")
			if len(n.members) > 0 {
				s = reTermInRow.ReplaceAllString(s, "TERM INDEX")
			}
		}
		s = reDuration.ReplaceAllString(s, "DURATION")
		if i := strings.Index(s, "\nUsage:"); i >= 0 {
			s = s[:i] // the wording of help is our own
		}
		return s
	}
	return result{clean(r.stdout), clean(r.stderr), r.code, r.left}
}

// handedOut are the ports that freePort has returned: tests run side by side.
var handedOut sync.Map

// freePort returns a port that was free a moment ago. It lies below those that the kernel
// gives to outgoing connections, one of which could take it meanwhile.
func freePort(t *testing.T) int {
	t.Helper()
	var err error
	for range 1000 {
		port := 12_000 + rand.IntN(20_000)
		if _, again := handedOut.LoadOrStore(port, true); again {
			continue
		}
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			if err = l.Close(); err != nil {
				break
			}
			return port
		}
	}
	t.Fatalf("find a free port: %v", err)
	return 0
}

// peerSteps returns the invocations to compare, in an order in which they build on each other.
func peerSteps() (steps []step) {
	run := func(args ...string) {
		for _, a := range args {
			steps = append(steps, step{args: a})
		}
	}
	with := func(s step) { steps = append(steps, s) }

	// Version, unknown verbs and flags.
	run("version", "bogus", "get --bogus", "txn --bogus", "put", "put --lease")
	// Put.
	run("put a 1", "put a 2 --prev-kv", "put a 3 --prev-kv -w fields", "put a 4 --prev-kv -w json", "put a 5 --prev-kv -w protobuf",
		"put b 1 -w json", "put b 2 -w fields", "put b 2 -w protobuf", "--write-out=json put b 3",
		"put c -- -v", "put -- -k v", `put "\x01\xff" "\x02\xfe" --prev-kv`, "put d '' --prev-kv", "put a 6 extra",
		"put '' v", "put nokey --ignore-value", "put a --ignore-value", "put a x --ignore-value", "put a 7 --ignore-lease",
		"put nokey x --ignore-lease", "put a 1 --lease zz", "put a 1 --lease 7b", "put a 1 --lease=-1")
	with(step{args: "put stdin", stdin: "from stdin\nsecond line\n"})
	with(step{args: "put stdin"})
	// Values of flags that do not parse: the wording is that of the version of the flags library.
	for _, a := range []string{"get a --rev 99999999999999999999", "get a --limit x", "--dial-timeout 1x get a", "watch --rev x a", "--hex=2 get a"} {
		with(step{args: a, looseErr: true})
	}
	// Get.
	for _, w := range []string{"", " -w simple", " -w fields", " -w json", " -w protobuf", " --hex", " --hex -w fields", " --hex -w json", " -w table", " -w bogus"} {
		run("get a"+w, "get a z"+w, "get missing"+w, "get --prefix ''"+w)
	}
	run("get", "get a b c", "get --prefix a", "get --from-key b", "get --from-key ''", "get --prefix --from-key a", "get --prefix a b", "get --from-key a b",
		"get --prefix '' --keys-only", "get --prefix '' --count-only", "get --prefix '' --count-only -w fields", "get --prefix '' --count-only -w json",
		"get a --keys-only --count-only", "get --prefix '' --limit 2", "get --prefix '' --limit 2 -w json", "get --prefix '' --limit=-1",
		"get --prefix '' --print-value-only", "get a --print-value-only -w json", "get a --print-value-only --hex",
		"get --prefix '' --order DESCEND", "get --prefix '' --order descend --sort-by key", "get --prefix '' --sort-by VALUE", "get --prefix '' --sort-by value --order ascend",
		"get --prefix '' --sort-by CREATE --order DESCEND", "get --prefix '' --sort-by MODIFY", "get --prefix '' --sort-by version --order DESCEND",
		"get a --order up", "get a --sort-by color", "get a --rev 2", "get a --rev 3 -w json", "get a --rev 1000", "get a --rev=-5",
		"get a --consistency s", "get a --consistency l", "get a --consistency x", "get --prefix '' --min-mod-rev 8", "get --prefix '' --max-mod-rev 8",
		"get --prefix '' --min-create-rev 5 --max-create-rev 9", "get a --min-create-rev 5 --max-create-rev 4", "get a --min-mod-rev 5 --max-mod-rev 4",
		"get --prefix '' --stream", "get --prefix '' --stream -w json", "get --prefix '' --stream --limit 2", "get missing --stream -w fields", "get a --stream --rev 1000",
		"get b a", "get ''", "ge a", "g a")
	// Environment.
	with(step{args: "get a", env: []string{"ETCDCTL_WRITE_OUT=json"}})
	with(step{args: "get a", env: []string{"ETCDCTL_HEX=true", "ETCDCTL_BOGUS=1"}})
	with(step{args: "get a", env: []string{"ETCDCTL_DIAL_TIMEOUT=abc"}, looseErr: true, why: "etcdctl ignores it in silence"})
	with(step{args: "get a --hex", env: []string{"ETCDCTL_HEX=true"}, looseErr: true, why: "etcdctl writes a stack trace"})
	with(step{args: "get a -w json", env: []string{"ETCDCTL_WRITE_OUT=simple"}, looseErr: true})
	with(step{args: "get a", env: []string{"ETCDCTL_API=3"}, looseErr: true, why: "etcdctl warns of the variable that old scripts set"})
	// Bad connections and security flags.
	run("get a --cert ''", "get a --key=", "get a --cacert ''", "get a --cacert /nonexistent", "get a --cert /nonexistent --key /nonexistent", "get a --cert /nonexistent",
		"--endpoints 127.0.0.1:1 --command-timeout 300ms get a", "--endpoints 127.0.0.1:1 --command-timeout 300ms put a 1",
		"--endpoints 127.0.0.1:1 --command-timeout 300ms endpoint status", "--endpoints 127.0.0.1:1 --command-timeout 300ms endpoint status -w json",
		"--endpoints 127.0.0.1:1 --command-timeout 300ms endpoint status -w table",
		"--endpoints 127.0.0.1:1 --command-timeout 300ms endpoint health", "--endpoints 127.0.0.1:1 --command-timeout 300ms endpoint health -w json",
		"--endpoints 127.0.0.1:1 --command-timeout 300ms endpoint health -w table", "--endpoints 127.0.0.1:1 --command-timeout 300ms endpoint health -w fields",
		"--endpoints 127.0.0.1:1 --command-timeout 300ms endpoint hashkv", "--endpoints 127.0.0.1:1 --command-timeout 300ms endpoint status --cluster",
		"--endpoints 127.0.0.1:1 --command-timeout 300ms defrag", "--endpoints 127.0.0.1:1 --command-timeout 300ms member list",
		"--endpoints 127.0.0.1:1,{endpoint} --command-timeout 300ms endpoint status -w simple", "--endpoints '' --command-timeout 300ms get a",
		"--endpoints 'http://{endpoint}' get a", "--endpoints '{endpoint}, {endpoint}' get a", "--insecure-transport=false --command-timeout 300ms get a",
		"--max-recv-bytes 10 get a", "--max-request-bytes 10 put a 1")
	// Delete.
	run("put k1 v1", "put k2 v2", "put k3 v3", "put k4 v4", "put l1 v", "put l2 v", "del", "del a b c", "del k1", "del k1", "del k2 --prev-kv", "del k3 --prev-kv -w json",
		"del missing -w json", "del missing -w fields", "del k4 --prev-kv -w fields", "put k5 v", "del k5 -w protobuf", "del --prefix --from-key a", "del --prefix a b",
		"del --prefix l --prev-kv", "put y 1", "put z 2", "del y zz --range", "put y 1", "put z 2", "del y zz", "del --from-key zzzz", "del ''", "del -w bogus a", "put aa 1", "del --prefix aa --prev-kv --hex")
	// Transactions.
	for _, in := range []string{
		"\n\n\n",
		"mod(\"a\") > \"0\"\n\nput t1 yes\nget t1\n\nput t1 no\n\n",
		"mod(\"a\") < \"0\"\n\nput t1 yes\n\nput t2 \"no way\"\nget --prefix t\ndel t1 --prev-kv\n\n",
		"ver(\"a\") = \"1\"\nc(\"a\") != \"3\"\nval(\"a\") = \"x\"\n\nget a\n\nget a --keys-only\n\n",
		"version(\"a\") > \"1\"\ncreate(\"a\") > \"1\"\nm(\"a\") > \"1\"\nvalue(\"b\") = \"3\"\n\nget a\n\nget b\n\n",
		"\nput t3 'single quoted' --prev-kv\nput t4 \"tab\\there\"\n\n\n",
		"\nput t3 1\nput t3 2\n\n\n", "\n\nput t3\n\n", "\nput t3\n\n\n", "\nget\n\n\n", "\nbogus a\n\n\n", "\nget a --bogus\n\n\n", "\nget a --order up\n\n\n",
		"\nput a \"bad \\q escape\"\n\n\n", "\nget --prefix --from-key a\n\n\n", "\ndel a b c\n\n\n", "\ng a\n\n\n", "\nd missing\n\n\n", "\npu t5 x\n\n\n",
		"", "bogus\n\n\n\n", "mod(a) > 0\n\n\n\n", "mod(\"a\") >\n\n\n\n", "mod(\"a\") > \"x\"\n\n\n\n", "bogus(\"a\") > \"0\"\n\n\n\n", "mod(\"a\")>\"0\"\n\n\n\n",
		"mod(\"a\") > \"0\"\n", "\n\n", "\nput a 1 --lease 7b\n\n\n", "\nget a --rev 1000\n\n\n", "\nput t6 1 --lease x\n\n\n", "val(\"\") = \"\"\n\n\n\n", "\nput '' 1\n\n\n", "\nput t7 1 2 3\n\n\n",
		"\nput a --ignore-value\n\n\n", "\nput a x --ignore-value\n\n\n",
	} {
		with(step{args: "txn", stdin: in})
		if len(in) > 5 && len(in) < 60 {
			with(step{args: "txn -w json", stdin: in})
		}
		if len(in) >= 60 {
			with(step{args: "txn -i", stdin: in})
			with(step{args: "txn -w fields", stdin: in})
			with(step{args: "txn -w protobuf", stdin: in})
		}
	}
	run("txn extra")
	for i := range steps {
		if steps[i].args != "txn" && !strings.HasPrefix(steps[i].args, "txn -") {
			continue
		}
		// etcdctl prints the usage of its parser of requests before the error.
		if strings.Contains(steps[i].stdin, "--bogus") || strings.Contains(steps[i].stdin, "bogus a") {
			steps[i].looseErr = true
		}
	}
	with(step{args: "txn", stdin: "lease(\"a\") = \"0\"\n\nget a\n\nget b\n\n", ours: "SUCCESS", why: "etcdctl panics"})
	with(step{args: "txn", stdin: "lease(\"a\") > \"7b\"\n\n\n\n", ours: "FAILURE", why: "etcdctl panics"})
	with(step{args: "txn", stdin: "ver(\"a\") ~ \"0\"\n\n\n\n", ours: "unknown operator ~", ourCode: 3, why: "etcdctl panics"})
	// Watch.
	with(step{args: "watch --rev 2 a", lines: 9})
	with(step{args: "watch --rev 2 a --prev-kv", lines: 11})
	with(step{args: "watch --rev 2 --prefix k -w json", lines: 1})
	with(step{args: "watch --rev 2 a d -w fields", lines: 20})
	with(step{args: "watch --rev 2 a --hex", lines: 3})
	with(step{args: "watch --rev 2 k1 k3 -- sh -c 'echo ev $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE $ETCD_WATCH_REVISION'", lines: 16})
	with(step{args: "watch --rev 2 -- sh -c 'echo ev $ETCD_WATCH_KEY'", env: []string{"ETCDCTL_WATCH_KEY=k1"}, lines: 4})
	with(step{args: "watch --rev 2", env: []string{"ETCDCTL_WATCH_KEY=k1", "ETCDCTL_WATCH_RANGE_END=k3"}, lines: 6})
	with(step{args: "watch k1 --rev 2 -- false", why: "the command fails"})
	with(step{args: "watch k1", env: []string{"ETCDCTL_WATCH_KEY=k1"}})
	with(step{args: "watch k1 -- echo", env: []string{"ETCDCTL_WATCH_KEY=k1"}})
	with(step{args: "watch k1", env: []string{"ETCDCTL_WATCH_RANGE_END=k1"}})
	run("watch", "watch --prefix", "watch a --", "watch -- echo", "watch --prefix a b", "watch -w bogus a")
	with(step{args: "watch -i", stdin: "watch --rev 2 k1\n", lines: 3})
	with(step{args: "watch -i", stdin: "bogus\n\nwatch\nwatch --rev 2 k1 -- echo hi\n", lines: 4})
	with(step{args: "watch -i", stdin: "watch --rev 2 --prefix k1 k2\nwatch --rev 2 --prefix k1\n", lines: 6})
	with(step{args: "watch -i", stdin: "watch a --\n"})
	with(step{args: "watch -i", stdin: "watch --bogus a\n"})
	with(step{args: "watch -i", stdin: "watch --prefix\n"})
	with(step{args: "watch -i", stdin: "watch a\n", env: []string{"ETCDCTL_WATCH_KEY=k1"}})
	with(step{args: "watch -i", stdin: "watch --rev 2\n", env: []string{"ETCDCTL_WATCH_KEY=k1"}, lines: 3})
	with(step{args: "watch -i", stdin: "watch never\nprogress\n", lines: 1})
	with(step{args: "watch -i"})
	// Compaction.
	run("compaction", "compaction x", "compaction 1000000", "compaction 5", "compaction 5", "compaction 6 --physical", "get a --rev 2", "compaction=3")
	with(step{args: "watch --rev 2 a", looseErr: false})
	with(step{args: "watch --rev 2 a -w json"})
	with(step{args: "watch --rev 2 a -w fields"})
	// Endpoints, members, maintenance.
	for _, w := range []string{"", " -w json", " -w fields", " -w table", " -w protobuf", " --cluster", " --cluster -w json", " -w bogus"} {
		run("endpoint health"+w, "endpoint status"+w, "endpoint hashkv"+w)
	}
	run("endpoint hashkv --rev 8", "endpoint hashkv --rev 2", "endpoint hashkv --rev 2000", "endpoint", "endpoint bogus", "endp st", "endpoint status --hex -w fields")
	for _, w := range []string{"", " -w json", " -w fields", " -w table", " -w protobuf", " --hex -w json", " --hex -w fields", " --consistency s", " --hex -w table"} {
		run("member list" + w)
	}
	with(step{args: "member list --consistency x", ours: `unknown consistency flag "x"`, ourCode: 4, why: "etcdctl names the flag of get"})
	run("member", "alarm", "alarm list", "alarm list -w json", "alarm list -w fields", "alarm list -w protobuf", "alarm list -w table", "alarm disarm", "alarm list extra", "alarm disarm extra")
	alarmed := len(steps)
	with(step{args: "alarm list", before: raiseAlarm})
	run("alarm list -w json", "alarm list -w fields", "alarm list -w fields --hex", "alarm list -w protobuf", "endpoint health", "endpoint health -w json", "endpoint status -w json", "put a nospace", "alarm disarm")
	for i := range steps[alarmed:] {
		steps[alarmed+i].alarmed = true
	}
	run("alarm list", "endpoint health")
	run("defrag", "defrag --cluster", "defrag -w json", "snapshot", "snapshot save", "snapshot save {dir}/snap", "snapshot save {dir}/no/such/dir", "--endpoints 127.0.0.1:1,127.0.0.1:2 snapshot save {dir}/two",
		"snapshot save {dir}/late --command-timeout 20s")
	with(step{args: "--endpoints 127.0.0.1:1 --command-timeout 300ms snapshot save {dir}/none", looseErr: true, why: "the client logs its retries or not, by chance"})
	// Leases.
	run("lease grant", "lease grant x", "lease grant 100", "lease grant 200 -w json", "lease grant 300 -w fields", "lease grant 300 -w fields --hex", "lease grant 0", "lease grant -- -1", "lease grant 99999999999",
		"put leased v --lease={L1}", "get leased -w json", "get leased -w fields", "get leased -w fields --hex",
		"lease timetolive {L1}", "lease timetolive {L1} --keys", "lease timetolive {L1} --keys -w json", "lease timetolive {L1} --keys -w fields", "lease timetolive {L1} --hex --keys -w fields", "lease timetolive 7b", "lease timetolive 7b -w json",
		"lease timetolive zz", "lease timetolive", "lease keep-alive --once {L1}", "lease keep-alive --once {L1} -w json", "lease keep-alive --once {L1} -w fields", "lease keep-alive --once 7b", "lease keep-alive zz", "lease keep-alive",
		"lease keep-alive 7b", "lease keep-alive 7b -w json", "lease revoke {L1}", "lease revoke {L1}", "lease revoke zz", "lease revoke", "lease revoke {L2} -w json", "lease revoke {L3} -w fields", "get leased",
		"lease list", "lease list -w json", "lease list -w fields", "lease list --hex -w fields", "lease", "lease list extra", "lease grant 100 extra")
	with(step{args: "lease keep-alive {L4}", lines: 1})
	with(step{args: "lease revoke {L4} -w protobuf", ours: "\n", why: "etcdctl revokes first and fails then"})
	// Authentication, last because it stays on.
	with(step{args: "get a", before: enableAuth})
	run("--user root:pw get a", "--user root --password pw get a", "--user root:wrong get a", "--user nobody:x get a", "--user root:pw endpoint status -w json", "endpoint health",
		"--user reader:pw endpoint health", "--user reader:pw get a", "--user reader:pw put a 1", "--auth-jwt-token bad get a", "member list")
	const stty = "etcdctl runs stty, which complains where there is no terminal"
	for _, in := range []string{"pw\n", "  pw \r\n", "wrong\n", "pw", ""} {
		with(step{args: "--user root get a", stdin: in, looseErr: true, why: stty})
	}
	steps = append(steps, authSteps()...)
	with(step{args: "--user root:pw put a 1 -w table", ours: "Error: table not supported as output format", ourCode: 4, why: "etcdctl puts first and fails then"})
	return steps
}

// authSteps returns the invocations about users and roles. Authentication is on before and after them, with
// the users root and reader.
func authSteps() (steps []step) {
	with := func(s step) { steps = append(steps, s) }
	root := func(args ...string) {
		for _, a := range args {
			with(step{args: "--user root:pw " + a})
		}
	}
	forms := func(args string) {
		for _, w := range []string{"", " -w simple", " -w fields", " -w json", " -w protobuf", " -w fields --hex", " -w json --hex", " -w table", " -w bogus"} {
			root(args + w)
		}
	}
	const stty = "etcdctl runs stty, which complains where there is no terminal"
	const refused = "etcdctl asks first and fails then"

	// Arguments.
	for _, a := range []string{"auth", "auth bogus", "auth enable x", "auth disable x", "auth status x", "user", "user bogus", "user add", "user add a b", "user add :x",
		"user delete", "user delete a b", "user get", "user get a b", "user list a", "user passwd", "user passwd a b", "user grant-role a", "user grant-role a b c",
		"user revoke-role a", "user revoke-role a b c", "role", "role bogus", "role add", "role add a b", "role delete", "role delete a b", "role get", "role get a b", "role list a",
		"role grant-permission a read", "role grant-permission a bogus k", "role grant-permission a read k --prefix --from-key", "role grant-permission a read k e --prefix",
		"role grant-permission a read k e --from-key", "role grant-permission a read '' --prefix --from-key", "role revoke-permission a", "role revoke-permission a k --prefix --from-key",
		"role revoke-permission a k e --prefix", "role revoke-permission a k e --from-key", "role revoke-permission a '' --prefix --from-key"} {
		with(step{args: a})
	}
	// Without credentials, with those of others.
	for _, a := range []string{"auth status", "auth enable", "auth disable", "user list", "user get reader", "user get root", "user add x:y", "role list", "role get root", "role add x",
		"user passwd reader --interactive=false", "user grant-role reader x", "role grant-permission root read k"} {
		with(step{args: a, stdin: "pw\n"})
		with(step{args: "--user reader:pw " + a, stdin: "pw\n"})
	}
	// Users, their passwords.
	forms("auth status")
	root("auth enable", "auth enable -w json", "auth sta", "user add u1:pw", "user add u1:pw", "user add u2:pw:with:colons -w fields", "user add u3:pw -w json", "user add u4: -w protobuf",
		"user add u5 --new-user-password pw", "user add u5:pw --new-user-password pw2", "user add u6 --no-password", "user add u7:pw --no-password", "user add u8 --no-password --new-user-password x",
		"user add '' --no-password", "user list", "user get u1", "user get nobody", "user get ''")
	for _, in := range []string{"pw\npw\n", "pw\nwp\n", "pw\n", "\n\n", "", "  pw  \r\npw\n"} {
		with(step{args: "--user root:pw user add asked", stdin: in, looseErr: true, why: stty})
		with(step{args: "--user root:pw user passwd asked", stdin: in, looseErr: true, why: stty})
	}
	with(step{args: "--user root user add both", stdin: "pw\nx\nx\n", looseErr: true, why: stty})
	for i, in := range []string{"pw\n", "  two words\n", "", "\npw\n", "tab\tbed"} {
		with(step{args: fmt.Sprintf("--user root:pw user add read%d --interactive=false", i), stdin: in})
		with(step{args: "--user root:pw user passwd read0 --interactive=false", stdin: in})
		for _, pw := range []string{"pw", "two", "tab"} {
			with(step{args: fmt.Sprintf("--user read%d:%s get a", i, pw), looseErr: true, why: "whether the client logs a second attempt is chance"})
		}
	}
	with(step{args: "--user root:pw user passwd nobody --interactive=false", stdin: "pw"})
	for _, w := range []string{"fields", "json", "protobuf"} {
		with(step{args: "--user root:pw user passwd read1 --interactive=false -w " + w, stdin: "pw"})
	}
	// Roles and permissions.
	root("role add r1", "role add r1", "role add ''", "role add r2 -w fields", "role add r3 -w json", "role add r4 -w protobuf", "role list", "role get r1", "role get nothing", "role add root",
		"role grant-permission r1 read k", "role grant-permission r1 write k2 k9", "role grant-permission r1 readwrite p --prefix", "role grant-permission r1 read x --from-key -w fields",
		"role grant-permission r1 write k3 -w json", "role grant-permission r1 write k4 -w protobuf", "role grant-permission r1 readwrite k", "role grant-permission nothing read k",
		"role grant-permission r2 read ''", "role grant-permission r2 read '' --prefix", "role grant-permission r2 write '' --from-key", "role grant-permission r2 READ k",
		"role grant-permission r2 read k9 k1", "role grant-permission r2 read k k", "role grant-permission r3 read '' ignored end", "role grant-permission r3 read a b c",
		`role grant-permission r3 write "\xff\xfe" --prefix`, "role grant-permission root read k", "role grant-permission --prefix r4 read pre")
	for _, role := range []string{"r1", "r2", "r3", "r4", "root"} {
		forms("role get " + role)
	}
	forms("role list")
	// Roles of users.
	root("user grant-role u1 r1", "user grant-role u1 r2 -w fields", "user grant-role u1 r3 -w json", "user grant-role u1 r4 -w protobuf", "user grant-role u1 r1", "user grant-role u1 nothing",
		"user grant-role nobody r1", "user grant-role u1 root")
	forms("user get u1")
	forms("user list")
	for _, w := range []string{"", " -w fields", " -w json", " -w protobuf", " -w bogus"} {
		root("user get u1 --detail"+w, "user get u2 --detail"+w)
	}
	root("user get nobody --detail", "user revoke-role u1 root", "user revoke-role u1 r4 -w fields", "user revoke-role u1 r3 -w json", "user revoke-role u1 r2 -w protobuf",
		"user revoke-role u1 r2", "user revoke-role u1 nothing", "user revoke-role nobody r1", "user get u1", "user revoke-role root root")
	for _, a := range []string{"user get u1", "user get u2", "user get u1 --detail", "role get r1", "role get r2", "user list", "put k 1", "put k2 1", "put k9 1", "put p1 1", "get k", "get k2", "get k k3", "get p --prefix",
		"get x --from-key", "get w --from-key", "del k", "del p --prefix", "get '' --prefix", "lease grant 10", "endpoint status -w json", "endpoint hashkv", "compaction 3", "alarm list", "member list", "defrag", "snapshot save {dir}/u1", "auth status",
		"move-leader 1", "member remove 1", "member promote 1"} {
		with(step{args: "--user u1:pw " + a, looseErr: strings.HasPrefix(a, "snapshot")})
	}
	with(step{args: "--user u1:pw txn", stdin: "\nput k 1\nget p1\n\n\n"})
	with(step{args: "--user u1:pw txn", stdin: "\nput k 1\nget q\n\n\n"})
	with(step{args: "--user u1:pw txn", stdin: "mod(\"q\") = \"0\"\n\nput k 1\n\n\n"})
	with(step{args: "--user u1:pw watch q"})
	with(step{args: "--user u1:pw watch --rev 10 p q", lines: 3})
	// Taking away.
	root("role revoke-permission r1 k", "role revoke-permission r1 k", "role revoke-permission r1 k2 k8", "role revoke-permission r1 k2 k9", "role revoke-permission r1 p --prefix -w fields",
		"role revoke-permission r1 x --from-key", "role revoke-permission r1 k3 -w json", "role revoke-permission r1 k4 -w protobuf", "role revoke-permission nothing k",
		"role revoke-permission r2 ''", "role revoke-permission r2 '' --prefix", "role revoke-permission r4 pre --prefix", "role get r1", "role get r2",
		"role delete r1", "role delete r1", "role delete root", "role delete r2 -w fields", "role delete r3 -w json", "role delete r4 -w protobuf", "user get u1",
		"user delete u1", "user delete u1", "user delete root", "user delete u2 -w fields", "user delete u3 -w json", "user delete u4 -w protobuf", "user list", "role list")
	// Off, and on again.
	root("auth disable -w json")
	for _, a := range []string{"auth status", "auth disable", "user list", "user get reader", "role get root", "user revoke-role root root", "role delete root", "auth enable", "role list", "--user root:pw auth status"} {
		with(step{args: a})
	}
	// Last, since the revision of users and roles is another after them.
	for _, a := range []string{"user add x:y", "user delete x", "user passwd x --interactive=false", "user grant-role x r", "user revoke-role x r", "role add x", "role delete x",
		"role grant-permission x read k", "role revoke-permission x k"} {
		with(step{args: "--user root:pw " + a + " -w table", ours: "Error: table not supported as output format", ourCode: 4, why: refused})
	}
	return steps
}

// raiseAlarm sets the alarm of a full disk on every member.
func raiseAlarm(t *testing.T, c *clientv3.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	st, err := c.Status(ctx, c.Endpoints()[0])
	if err != nil {
		t.Fatal(err)
	}
	_, err = pb.NewMaintenanceClient(c.ActiveConnection()).Alarm(ctx, &pb.AlarmRequest{
		Action: pb.AlarmRequest_ACTIVATE, MemberID: st.Header.MemberId, Alarm: pb.AlarmType_NOSPACE})
	if err != nil {
		t.Fatal(err)
	}
}

// enableAuth creates the users root and reader, who may do nothing, and switches authentication on.
func enableAuth(t *testing.T, c *clientv3.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, err1 := c.UserAdd(ctx, "root", "pw")
	_, err2 := c.UserAdd(ctx, "reader", "pw")
	_, err3 := c.RoleAdd(ctx, "root")
	_, err4 := c.UserGrantRole(ctx, "root", "root")
	_, err5 := c.AuthEnable(ctx)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		t.Fatal(err)
	}
}
