package ctl

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// TestClusterAgainstEtcdctl runs the verbs about members, leaders, locks and elections with etcdctl and
// with this package, each against three etcds of its own.
func TestClusterAgainstEtcdctl(t *testing.T) {
	t.Parallel()
	peers := findPeers(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	etcd := []string{filepath.Join(peers, "etcd")}
	compareParties(t, peers, 3, clusterSteps(),
		party{client: []string{filepath.Join(peers, "etcdctl")}, server: etcd},
		party{client: []string{self}, server: etcd, env: []string{envActAsClient + "=1"}})
}

// TestClusterServerAgainstEtcd runs them with etcdctl against three etcds and, with this package, against
// three of quorate's servers.
func TestClusterServerAgainstEtcd(t *testing.T) {
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
	compareParties(t, peers, 3, clusterSteps(),
		party{client: []string{filepath.Join(peers, "etcdctl")}, server: []string{filepath.Join(peers, "etcd")}},
		party{client: []string{self}, server: []string{server, "serve"}, env: []string{envActAsClient + "=1"}})
}

// clusterSteps returns the invocations to compare on three members, m1 to m3 with the ids {M1} to {M3};
// {M4} and so on are those that steps have added.
func clusterSteps() (steps []step) {
	run := func(args ...string) {
		for _, a := range args {
			steps = append(steps, step{args: a})
		}
	}
	with := func(s step) { steps = append(steps, s) }
	const refused = "etcdctl asks first and fails then"

	// Bad arguments.
	run("member", "member add", "member add a", "member add a b", "member add a HTTP://x:1 http://y:2", "member remove", "member remove zz",
		"member remove 1 2", "member update", "member update zz", "member update 1", "member promote", "member promote zz", "member bogus",
		"move-leader", "move-leader zz", "move-leader 1 2", "lock", "elect", "elect a", "elect a b -l", "elect a b c")
	// Members and endpoints.
	run("member list", "member list -w json", "member list -w json --hex", "member list -w fields", "member list -w table", "member list --consistency s",
		"endpoint status --cluster", "endpoint status --cluster -w json", "endpoint status --cluster -w fields", "endpoint status --cluster -w table",
		"put a 1", "endpoint hashkv --cluster --rev 2", "endpoint hashkv --cluster --rev 2 -w json", "endpoint hashkv --cluster --rev 2 -w fields",
		"endpoint hashkv --cluster --rev 2 -w table", "defrag --cluster")
	for i := len(steps) - 1; i >= 0; i-- {
		if strings.HasPrefix(steps[i].args, "endpoint status") {
			// Which of them leads is a matter of chance until it is asked for.
			steps[i].before = leadTo("m1")
		}
	}
	// The leader.
	with(step{args: "--endpoints {all} move-leader {M2}", before: leadTo("m1")})
	with(step{args: "--endpoints {all} move-leader {M3} -w json", before: leadTo("m2")})
	with(step{args: "--endpoints {all} move-leader {M1} -w protobuf", before: leadTo("m3")})
	with(step{args: "move-leader {M2}", before: leadTo("m3")})
	with(step{args: "--endpoints {all} move-leader 1234", before: leadTo("m1")})
	with(step{args: "--endpoints {all} move-leader {M2} -w fields", ours: "Error: fields not supported as output format", ourCode: 4, why: refused})
	// Changes.
	run("member remove 1234", "member update 1234 --peer-urls http://127.0.0.1:1", "member promote 1234", "member promote {M2}",
		"member add x --peer-urls bogus", "member add x --peer-urls http://127.0.0.1", "member add x --peer-urls http://127.0.0.1:1,ftp://127.0.0.1:2",
		"member add new --peer-urls http://127.0.0.1:1,http://127.0.0.1:2 --learner", "member add new --peer-urls http://127.0.0.1:1 --learner",
		"member add newer --peer-urls http://127.0.0.1:3 --learner", "member list -w json", "member promote {M4}",
		"member update {M4} --peer-urls http://127.0.0.1:4", "member update {M4} --peer-urls http://127.0.0.1:5 -w json", "member remove {M4}", "member remove {M4}",
		// An id is computed from URLs and second: the same URLs in the second of a removal are refused.
		"member add json --peer-urls http://127.0.0.1:6 --learner -w json", "member remove {M5} -w json --hex",
		"member add hex --peer-urls http://127.0.0.1:8 --learner -w json --hex", "member remove {M6} -w json",
		"member add voter --peer-urls http://127.0.0.1:7", "member remove {M7}")
	for _, verb := range []string{"add x --peer-urls http://127.0.0.1:1", "remove {M3}", "update {M3} --peer-urls http://127.0.0.1:1", "promote {M3}"} {
		for _, w := range []string{"fields", "table"} {
			with(step{args: "member " + verb + " -w " + w, ours: "Error: " + w + " not supported as output format", ourCode: 4, why: refused})
		}
	}
	// Locks.
	run("lock l echo held", "lock l -- sh -c 'echo $ETCD_LOCK_KEY; echo oops >&2; exit 7'", "lock l no-such-command", "lock l --ttl 5 -- sh -c 'kill $$'",
		"lock l --ttl 0 echo held", "lock l cat", "get --prefix l/")
	with(step{args: "lock l1", lines: 2})
	with(step{args: "lock l2 --ttl 30 -w fields", lines: 6})
	// Elections: a killed leader's key stays until its lease has run out.
	with(step{args: "elect e first", lines: 2})
	with(step{args: "elect -l e", lines: 2})
	with(step{args: "elect --listen e -w fields", lines: 6})
	with(step{args: "elect f first -w fields", lines: 6})
	steps = append(steps, signalSteps()...)
	return steps
}

// signalSteps returns the invocations of verbs that wait or hold and are told to stop.
func signalSteps() (steps []step) {
	for i, s := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM} {
		name := func(what string) string { return fmt.Sprintf("s%s%d", what, i) }
		with := func(what, args string, st step) {
			st.signal, st.queue = s, name(what)
			st.args = strings.ReplaceAll(args, "NAME", name(what))
			steps = append(steps, st)
		}
		held := func(what string) step { return step{before: hold(name(what))} }
		with("a", "lock NAME", step{lines: 2})
		with("b", "lock NAME --ttl 30 -w fields", step{lines: 8})
		with("c", "lock NAME -- sh -c 'echo in; sleep 1; echo out'", step{lines: 1})
		with("d", "lock NAME -- sh -c 'echo in; sleep 1; exit 3'", step{lines: 1})
		with("e", "lock NAME", held("e"))
		with("f", "lock NAME -- echo never", held("f"))
		with("g", "elect NAME me", step{lines: 2})
		with("h", "elect NAME me -w fields", step{lines: 8})
		with("i", "elect NAME me", held("i"))
		with("j", "elect -l NAME", step{lines: 2, before: hold(name("j"))})
	}
	return steps
}

// hold takes the lock, or wins the election, of that name, for as long as the test goes on.
func hold(name string) func(*testing.T, *clientv3.Client) {
	return func(t *testing.T, c *clientv3.Client) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		s, err := concurrency.NewSession(c)
		if err == nil {
			err = concurrency.NewElection(s, name).Campaign(ctx, "other")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// awaitQueue waits until somebody waits behind who holds the lock or election of that name.
func awaitQueue(t *testing.T, c *clientv3.Client, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	for {
		resp, err := c.Get(ctx, name+"/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil {
			t.Fatalf("nobody waits for %s: %v", name, err)
		}
		if resp.Count == 2 {
			// Its key is there; what it asks and waits for next takes a moment.
			time.Sleep(300 * time.Millisecond)
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// allLeases returns the leases that there are before a step that is sent a signal.
func allLeases(t *testing.T, c *clientv3.Client, s step) []clientv3.LeaseID {
	t.Helper()
	if s.signal == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	resp, err := c.Leases(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var ids []clientv3.LeaseID
	for _, l := range resp.Leases {
		ids = append(ids, l.ID)
	}
	return ids
}

// left says what a step that was sent a signal has left: keys, and leases beyond those of before.
func (n *normalizer) left(t *testing.T, c *clientv3.Client, s step, before []clientv3.LeaseID) string {
	t.Helper()
	if s.signal == 0 {
		return ""
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var left []string
	resp, err := c.Get(ctx, s.queue+"/", clientv3.WithPrefix())
	if err != nil {
		t.Fatal(err)
	}
	for _, kv := range resp.Kvs {
		left = append(left, n.cleanCluster(string(kv.Key))+" "+string(kv.Value))
	}
	for _, id := range allLeases(t, c, s) {
		if slices.Contains(before, id) {
			continue
		}
		ttl, err := c.TimeToLive(ctx, id, clientv3.WithAttachedKeys())
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, fmt.Sprintf("a lease of %d s with %d keys", ttl.GrantedTTL, len(ttl.Keys)))
	}
	return fmt.Sprintf("%q", left)
}

// leadTo makes the member of that name the leader.
func leadTo(name string) func(*testing.T, *clientv3.Client) {
	return func(t *testing.T, c *clientv3.Client) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		list, err := c.MemberList(ctx)
		if err != nil {
			t.Fatal(err)
		}
		endpoints := make(map[uint64]string)
		var to uint64
		for _, m := range list.Members {
			if len(m.ClientURLs) > 0 {
				endpoints[m.ID] = m.ClientURLs[0]
			}
			if m.Name == name {
				to = m.ID
			}
		}
		for ctx.Err() == nil {
			agreed := 0
			for id, ep := range endpoints {
				st, err := c.Status(ctx, ep)
				if err != nil {
					t.Fatal(err)
				}
				if st.Leader == to {
					agreed++
				} else if st.Leader == id {
					one, err := clientv3.New(clientv3.Config{Endpoints: []string{ep}})
					if err != nil {
						t.Fatal(err)
					}
					_, _ = one.MoveLeader(ctx, to) // tried again
					if err := one.Close(); err != nil {
						t.Fatal(err)
					}
				}
			}
			if agreed == len(endpoints) {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Fatalf("%s was not made the leader", name)
	}
}

// learnMembers notes the ids of members that are new.
func (n *normalizer) learnMembers(t *testing.T, c *clientv3.Client) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		list, err := c.MemberList(ctx)
		if err != nil {
			t.Fatal(err)
		}
		known := len(n.members) > 0
		if !known && slices.ContainsFunc(list.Members, func(m *pb.Member) bool { return m.Name == "" }) {
			time.Sleep(50 * time.Millisecond) // it has not told its name yet
			continue
		}
		slices.SortFunc(list.Members, func(a, b *pb.Member) int { return strings.Compare(a.Name, b.Name) })
		for _, m := range list.Members {
			if !slices.Contains(n.members, m.ID) {
				n.members = append(n.members, m.ID)
			}
		}
		return
	}
}

var (
	reTerm    = regexp.MustCompile(`("RaftTerm" :|"(?:raftTerm|raft_term)":) ?\d+`)
	reLockKey = regexp.MustCompile(`\b(l|l1|l2|e|f|s[a-j]\d)/[0-9a-f]+`)
	reLeaseNo = regexp.MustCompile(`("Lease" :) \d+`)
	// In tables and lists the term stands before the indexes.
	reTermInRow = regexp.MustCompile(`\d+ INDEX`)
	reInitial   = regexp.MustCompile(`ETCD_INITIAL_CLUSTER="([^"]*)"`)
)

// cleanCluster replaces what differs from one cluster to the next: the ids of members that were added
// and the order that follows from them, terms, and lease ids in keys.
func (n *normalizer) cleanCluster(s string) string {
	for i, id := range n.members {
		name := fmt.Sprintf("{M%d}", i+1)
		s = strings.ReplaceAll(s, fmt.Sprintf("%16x", id), name)
		s = strings.ReplaceAll(s, fmt.Sprintf("%x", id), name) // one in sixteen is shorter
		s = strings.ReplaceAll(s, strconv.FormatUint(id, 10), name)
	}
	s = reTerm.ReplaceAllString(s, "$1 TERM")
	s = reLockKey.ReplaceAllString(s, "$1/LEASE")
	s = reLeaseNo.ReplaceAllString(s, "$1 LEASE")
	s = reInitial.ReplaceAllStringFunc(s, func(line string) string {
		urls := strings.Split(reInitial.FindStringSubmatch(line)[1], ",")
		slices.Sort(urls)
		return "initial cluster " + strings.Join(urls, ",")
	})
	i := strings.Index(s, `"members":[`)
	if i < 0 {
		return s
	}
	// The names in braces stand where numbers stood.
	var members []json.RawMessage
	text := regexp.MustCompile(`"ID":(\{M\d+\})`).ReplaceAllString(s[i+len(`"members":`):], `"ID":"n$1"`)
	if err := json.NewDecoder(strings.NewReader(text)).Decode(&members); err != nil {
		return s
	}
	var sorted []string
	for _, m := range members {
		sorted = append(sorted, string(m))
	}
	slices.Sort(sorted)
	return s[:i] + "sorted members: " + strings.Join(sorted, " ")
}
