package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"quorate/internal/auth"
	"quorate/internal/kv"
	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/mvcc"
	"quorate/internal/peer"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

func newTestLogger(name string) *slog.Logger {
	return slog.New(slog.NewTextHandler(os.Stderr, nil)).With("member", name)
}

// same waits until all members hold the same state, and compares it.
func (c *cluster) same() {
	c.t.Helper()
	var rev int64
	for _, n := range c.nodes {
		if n != nil {
			v := n.View()
			rev = max(rev, v.Rev())
			v.Release()
		}
	}
	var want uint32
	for i, n := range c.nodes {
		if n == nil {
			continue
		}
		eventually(c.t, fmt.Sprintf("revision %d on member %d", rev, i), func() bool {
			v := n.View()
			defer v.Release()
			return v.Rev() >= rev
		})
		v := n.View()
		sum, _, _, err := v.HashKV(rev)
		v.Release()
		if err != nil {
			c.t.Fatal(err)
		}
		if want == 0 {
			want = sum
		}
		if sum != want {
			c.t.Errorf("member %d: hash %x at revision %d, others have %x", i, sum, rev, want)
		}
	}
}

func TestClusterAgrees(t *testing.T) {
	c := newCluster(t, 3, nil)
	for i, n := range c.nodes {
		put(t, n, fmt.Sprint("from", i), "x")
	}
	for i, n := range c.nodes {
		for j := range c.nodes {
			if err := n.ReadIndex(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, ok := get(t, n, fmt.Sprint("from", j)); !ok {
				t.Errorf("member %d has no key of member %d after a linearizable read", i, j)
			}
		}
	}
	c.same()
	if got := len(c.nodes[0].Members()); got != 3 {
		t.Errorf("%d members", got)
	}
	eventually(t, "a cluster version", func() bool { return c.nodes[1].Status().ClusterVersion == "3.7.0" })
}

// writers put from every member that lives, in sequence, until stop is called, which
// returns how many were acknowledged, and the longest gap between two.
type writers struct {
	name int64 // begins their keys; no other writers have it
	wg   sync.WaitGroup
	done chan struct{}
	mu   sync.Mutex
	puts map[string]bool
	errs []error
	gap  time.Duration
}

var writersNamed atomic.Int64

func (c *cluster) write(except ...int) *writers {
	w := &writers{name: writersNamed.Add(1), done: make(chan struct{}), puts: map[string]bool{}}
	for i, n := range c.nodes {
		skip := n == nil
		for _, e := range except {
			skip = skip || e == i
		}
		if skip {
			continue
		}
		w.wg.Go(func() {
			last := time.Now()
			for k := 0; ; k++ {
				select {
				case <-w.done:
					return
				default:
				}
				key := fmt.Sprintf("%d/%d/%d", w.name, i, k)
				body, _ := proto.Marshal(&pb.PutRequest{Key: []byte(key), Value: []byte(key)})
				res, err := n.Propose(context.Background(), wire.FieldPut, body)
				w.mu.Lock()
				if err = errors.Join(err, res.Err); err != nil {
					w.errs = append(w.errs, fmt.Errorf("%s: %w", key, err))
				} else {
					w.puts[key] = true
				}
				w.gap = max(w.gap, time.Since(last))
				w.mu.Unlock()
				last = time.Now()
			}
		})
	}
	return w
}

// stop ends the writers and checks that every put was applied exactly once.
func (w *writers) stop(t *testing.T, n *Node) {
	t.Helper()
	close(w.done)
	w.wg.Wait()
	for _, err := range w.errs {
		t.Errorf("a writer on a survivor got an error: %v", err)
	}
	if len(w.puts) == 0 {
		t.Error("nothing was written")
	}
	if err := n.ReadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	v := n.View()
	defer v.Release()
	for key := range w.puts {
		found := 0
		_, err := v.Range(&kv.Range{Span: kv.Span{Key: []byte(key)}}, func(b []byte) {
			item, err := wire.DecodeKeyValue(b)
			if err != nil || item.Version != 1 {
				t.Errorf("%s: version %d, %v: it was applied more than once", key, item.Version, err)
			}
			found++
		})
		if err != nil || found != 1 {
			t.Fatalf("%s was acknowledged and is not there: %v", key, err)
		}
	}
	t.Logf("%d puts, longest gap %v", len(w.puts), w.gap)
}

func TestDeadLeaderIsNotNoticed(t *testing.T) {
	c := newCluster(t, 3, nil)
	for range 5 {
		lead := c.leader()
		w := c.write(lead)
		time.Sleep(50 * time.Millisecond)
		c.kill(membership.ID(c.nodes[lead].id))
		time.Sleep(150 * time.Millisecond)
		c.stop(lead)
		w.stop(t, c.nodes[c.leader()])
		c.start(lead)
		c.awaitReady(lead)
	}
	c.same()
}

func TestCutOffLeaderIsNotNoticed(t *testing.T) {
	c := newCluster(t, 3, nil)
	lead := c.leader()
	id := membership.ID(c.nodes[lead].id)
	w := c.write(lead)
	time.Sleep(50 * time.Millisecond)
	c.isolate(id, true)
	time.Sleep(500 * time.Millisecond)
	c.isolate(id, false)
	time.Sleep(100 * time.Millisecond)
	w.stop(t, c.nodes[c.leader()])
	c.same()
}

func TestHandOverIsNotNoticed(t *testing.T) {
	// Raft gives a transfer one election timeout, which a busy machine may need.
	c := newCluster(t, 3, func(cfg *Config) { cfg.ElectionTicks = 100 })
	w := c.write()
	for range 10 {
		time.Sleep(20 * time.Millisecond)
		lead := c.leader()
		c.nodes[lead].HandOver(t.Context())
		if c.nodes[lead].leader.Load() == c.nodes[lead].id {
			t.Error("leadership was not handed over")
		}
	}
	w.stop(t, c.nodes[c.leader()])
	c.same()
}

// An etcd does not send a proposal again: who hands leadership over stays for as long as one
// may be under way, and passes it on.
func TestHandOverAmongEtcdsStaysAWhile(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.ElectionTicks = 100 })
	n := c.nodes[c.leader()]
	n.network.(*wireEnd).amongEtcds.Store(true)
	var followed time.Time
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		n.awaitLeader(t.Context(), func(lead uint64) bool { return lead != n.id && lead != 0 })
		followed = time.Now()
	}()
	n.HandOver(t.Context())
	over := time.Now()
	<-watching
	if stayed := over.Sub(followed); stayed < n.cfg.Tick {
		t.Errorf("it stayed for %s after another led, with ticks of %s", stayed, n.cfg.Tick)
	}
}

// Messages are lost at random; whoever waits is answered in the end, and once.
func TestLossIsNotNoticed(t *testing.T) {
	c := newCluster(t, 3, nil)
	count := 0
	w := c.write()
	c.mu.Lock()
	c.drop = func(*raftpb.Message) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		count++
		return count%10 == 0
	}
	c.mu.Unlock()
	time.Sleep(time.Second)
	c.mu.Lock()
	c.drop = nil
	c.mu.Unlock()
	w.stop(t, c.nodes[c.leader()])
	c.same()
}

func TestRestartedMemberCatchesUp(t *testing.T) {
	c := newCluster(t, 3, nil)
	f := c.follower()
	c.stop(f)
	for i := range 300 {
		put(t, c.nodes[c.leader()], fmt.Sprint("k", i), "v")
	}
	c.start(f)
	c.awaitReady(f)
	c.same()
}

// A member that lacks more than the log of the others holds gets their database file.
func TestLateMemberGetsASnapshot(t *testing.T) {
	c := newCluster(t, 3, func(cfg *Config) { cfg.CatchUpEntries = 10; cfg.SnapshotCount = 50 })
	f := c.follower()
	c.stop(f)
	lead := c.leader()
	propose(t, c.nodes[lead], wire.FieldLeaseGrant, &pb.LeaseGrantRequest{ID: 7, TTL: 1000})
	propose(t, c.nodes[lead], wire.FieldPut, &pb.PutRequest{Key: []byte("leased"), Lease: 7})
	for i := range 300 {
		put(t, c.nodes[lead], fmt.Sprint("k", i), "v")
	}
	c.start(f)
	c.awaitReady(f)
	c.same()
	if !c.nodes[f].Leases().Exists(7) {
		t.Error("the lease did not come with the snapshot")
	}
	// It goes on from there, and again after a restart.
	put(t, c.nodes[f], "after", "x")
	c.stop(f)
	c.start(f)
	c.awaitReady(f)
	if _, ok := get(t, c.nodes[f], "after"); !ok {
		t.Error("a write after the snapshot is gone")
	}
	c.same()
}

// A sole voter that keeps --force-new-cluster in its flags loses nothing by it: what it has on
// disk is committed, even if it had no time to note that.
func TestForceNewClusterAgain(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.SnapshotCount, cfg.ForceNewCluster = 1<<40, true
	n := run(t, cfg)
	for i := range 5 {
		key := fmt.Sprint("k", i)
		put(t, n, key, "v")
		crashed := cfg
		crashed.DataDir, crashed.Network, crashed.Metrics = t.TempDir(), newWires().to(), metrics.New(false)
		if err := os.CopyFS(crashed.DataDir, os.DirFS(cfg.DataDir)); err != nil {
			t.Fatal(err)
		}
		again := run(t, crashed)
		if _, found := get(t, again, key); !found {
			t.Errorf("%s was acknowledged and is lost", key)
		}
	}
}

// TestForceNewCluster goes on alone on the data of one of several members, with all that it
// knows to be committed; the data of a learner is refused.
func TestForceNewCluster(t *testing.T) {
	c := newCluster(t, 3, nil)
	added, _, err := c.nodes[0].AddMember(t.Context(), []string{"http://10.0.0.3:2380"}, true)
	if err != nil {
		t.Fatal(err)
	}
	cfg := c.config(3)
	cfg.InitialCluster = c.cfgs[0].InitialCluster + ",m3=http://10.0.0.3:2380"
	cfg.NewCluster = false
	c.cfgs, c.nodes = append(c.cfgs, cfg), append(c.nodes, nil)
	c.start(3)
	c.awaitReady(3)
	put(t, c.nodes[1], "before", "v")
	c.same()
	for i := range c.nodes {
		c.stop(i)
	}

	for _, i := range []int{1, 3} {
		c.cfgs[i].ForceNewCluster = true
	}
	c.cfgs[3].Network = c.to()
	if n, err := Start(c.cfgs[3]); err == nil || !strings.Contains(err.Error(), "no vote") {
		t.Errorf("member %x, a learner, alone: %v", added.ID, err)
		if err == nil {
			_ = n.Close() // it should not be there
		}
	}
	c.start(1)
	c.awaitReady(1)
	if ms := c.nodes[1].Members(); len(ms) != 1 || ms[0].ID != c.nodes[1].id {
		t.Errorf("alone, there are the members %v", ms)
	}
	if v, ok := get(t, c.nodes[1], "before"); !ok || v != "v" {
		t.Errorf("what was there before is %q, %v", v, ok)
	}
	put(t, c.nodes[1], "after", "w")
	c.stop(1)
	c.cfgs[1].ForceNewCluster = false
	c.start(1)
	c.awaitReady(1)
	if v, ok := get(t, c.nodes[1], "after"); !ok || v != "w" {
		t.Errorf("what was written alone is %q, %v", v, ok)
	}
}

// TestPromotionInDoubt loses the leader's answer to a promotion: the member asks again, and
// a promotion that has taken effect by then is one.
func TestPromotionInDoubt(t *testing.T) {
	c := newCluster(t, 3, nil)
	f := c.follower()
	cfg := c.config(3)
	added, _, err := c.nodes[f].AddMember(t.Context(), cfg.PeerURLs, true)
	if err != nil {
		t.Fatal(err)
	}
	cfg.InitialCluster = c.cfgs[0].InitialCluster + ",m3=http://10.0.0.3:2380"
	cfg.NewCluster = false
	c.cfgs, c.nodes = append(c.cfgs, cfg), append(c.nodes, nil)
	c.start(3)
	c.awaitReady(3)
	lost := 0
	c.promoted = func(err error) error {
		if err == nil {
			lost++
			err = peer.ErrUnreachable
		}
		return err
	}
	var all []*pb.Member
	eventually(t, "the learner to catch up", func() bool {
		all, err = c.nodes[f].PromoteMember(t.Context(), added.ID, "")
		return !errors.Is(err, kv.ErrLearnerNotReady)
	})
	if err != nil || lost != 1 {
		t.Fatalf("promote, %d answers lost: %v", lost, err)
	}
	for _, m := range all {
		if m.IsLearner {
			t.Errorf("after the promotion there is a learner: %v", m)
		}
	}
	if len(all) != 4 {
		t.Errorf("after the promotion there are %d members", len(all))
	}
	// Asked once more, it is refused: it is known what became of this one.
	if _, err := c.nodes[f].PromoteMember(t.Context(), added.ID, ""); !errors.Is(err, kv.ErrMemberNotLearner) {
		t.Errorf("promote a voter: %v", err)
	}
}

func TestMembersComeAndGo(t *testing.T) {
	c := newCluster(t, 3, nil)
	ctx := t.Context()
	for i := range 20 {
		put(t, c.nodes[0], fmt.Sprint("k", i), "v")
	}

	// A learner joins, catches up, is promoted.
	cfg := c.config(3)
	added, all, err := c.nodes[c.follower()].AddMember(ctx, cfg.PeerURLs, true)
	if err != nil || len(all) != 4 || !added.IsLearner {
		t.Fatalf("add a learner: %v, %v, %v", added, all, err)
	}
	if _, _, err := c.nodes[0].AddMember(ctx, []string{"http://10.0.0.9:2380"}, true); !errors.Is(err, kv.ErrTooManyLearners) {
		t.Errorf("a second learner: %v", err)
	}
	if _, err := c.nodes[0].PromoteMember(ctx, added.ID, ""); !errors.Is(err, kv.ErrLearnerNotReady) {
		t.Errorf("promote a learner that has not started: %v", err)
	}
	cfg.InitialCluster = c.cfgs[0].InitialCluster + ",m3=http://10.0.0.3:2380"
	cfg.NewCluster = false
	c.cfgs, c.nodes = append(c.cfgs, cfg), append(c.nodes, nil)
	c.start(3)
	c.awaitReady(3)
	if !c.nodes[3].IsLearner() || c.nodes[3].id != added.ID {
		t.Errorf("the new member is %x, learner %v", c.nodes[3].id, c.nodes[3].IsLearner())
	}
	eventually(t, "the learner to be promoted", func() bool {
		_, err = c.nodes[c.follower()].PromoteMember(ctx, added.ID, "")
		return err == nil
	})
	eventually(t, "it to be a voter", func() bool { return !c.nodes[3].IsLearner() })
	c.same()

	// The leader is removed; it stops, and the others go on.
	lead := c.leader()
	w := c.write(lead)
	if _, err := c.nodes[c.follower()].RemoveMember(ctx, c.nodes[lead].id); err != nil {
		t.Fatal(err)
	}
	select {
	case <-c.nodes[lead].Failed():
		if err := c.nodes[lead].Err(); !errors.Is(err, ErrRemoved) {
			t.Errorf("the removed member failed with %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the removed member goes on")
	}
	c.stop(lead)
	w.stop(t, c.nodes[c.leader()])
	c.cfgs[lead].Network = c.to()
	if _, err := Start(c.cfgs[lead]); !errors.Is(err, ErrRemoved) {
		t.Errorf("the removed member starts again: %v", err)
	}
	c.same()
}

// A member that is alone cannot be removed, even without checks. etcd ends in a panic.
func TestLastVoterCannotBeRemoved(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.StrictReconfigCheck = false
	n := run(t, cfg)
	if all, err := n.RemoveMember(t.Context(), n.id); !errors.Is(err, kv.ErrNotEnoughStarted) {
		t.Errorf("removed, %v are left, error %v", all, err)
	}
	if _, err := n.RemoveMember(t.Context(), 4711); !errors.Is(err, kv.ErrMemberNotFound) {
		t.Errorf("remove a stranger: %v", err)
	}
	put(t, n, "k", "v")
}

func TestLeaseOnAnyMember(t *testing.T) {
	c := newCluster(t, 3, nil)
	f := c.nodes[c.follower()]
	propose(t, f, wire.FieldLeaseGrant, &pb.LeaseGrantRequest{ID: 7, TTL: 60})
	if ttl, err := f.RenewLease(t.Context(), 7); err != nil || ttl != 60 {
		t.Errorf("renewed on a follower: %d, %v", ttl, err)
	}
	r, err := f.TimeToLive(t.Context(), 7, true)
	if err != nil || r.GrantedTTL != 60 || r.TTL < 58 {
		t.Errorf("time to live on a follower: %v, %v", r, err)
	}
	if _, err := f.RenewLease(t.Context(), 8); !errors.Is(err, kv.ErrLeaseNotFound) {
		t.Errorf("renew a lease that does not exist: %v", err)
	}
	if r, err := f.TimeToLive(t.Context(), 8, false); err != nil || r.TTL != -1 {
		t.Errorf("time to live of a lease that does not exist: %v, %v", r, err)
	}
}

// A revocation that an old leader's clock asked for must not be carried out under another.
func TestRevocationStaysInItsTerm(t *testing.T) {
	c := newCluster(t, 3, nil)
	lead := c.leader()
	old := c.nodes[lead]
	propose(t, old, wire.FieldLeaseGrant, &pb.LeaseGrantRequest{ID: 7, TTL: 60})
	term := old.Term()
	body, err := proto.Marshal(&pb.LeaseRevokeRequest{ID: 7})
	if err != nil {
		t.Fatal(err)
	}
	c.isolate(membership.ID(old.id), true)
	result := make(chan error, 1)
	go func() {
		p, err := old.begin(term, auth.Identity{}, wire.FieldLeaseRevoke, body)
		if err == nil {
			_, err = old.await(context.Background(), p, wire.FieldLeaseRevoke)
		}
		result <- err
	}()
	time.Sleep(300 * time.Millisecond)
	put(t, c.nodes[c.leader()], "later", "x")
	c.isolate(membership.ID(old.id), false)
	if err := <-result; !errors.Is(err, kv.ErrLeaderChanged) {
		t.Errorf("the old leader's revocation: %v", err)
	}
	c.same()
	if !c.nodes[c.leader()].Leases().Exists(7) {
		t.Error("the lease is gone")
	}
}

func TestJoinIsChecked(t *testing.T) {
	member := func(id membership.ID, urls ...string) membership.Member {
		return membership.Member{ID: id, PeerURLs: urls}
	}
	self := member(1, "http://a:1")
	for _, tc := range []struct {
		name           string
		named, running []membership.Member
		id             membership.ID
		err            string
	}{
		{"added", []membership.Member{self, member(2, "http://b:1")}, []membership.Member{member(11, "http://a:1"), member(12, "http://b:1")}, 11, ""},
		{"count", []membership.Member{self}, []membership.Member{member(11, "http://a:1"), member(12, "http://b:1")}, 0, "member count is unequal"},
		{"unknown", []membership.Member{self, member(2, "http://b:1")}, []membership.Member{member(11, "http://a:1"), member(12, "http://c:1")}, 0, "unmatched member"},
	} {
		id, err := matchMembers(self, tc.named, tc.running)
		if id != tc.id || tc.err == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: %v, %v", tc.name, id, err)
		}
	}
}

// Where the leader of two members is removed and the other does not hear that this is
// committed, the other needs the vote of the one that leaves.
func TestRemovedLeaderOfTwoVotesOnceMore(t *testing.T) {
	c := newCluster(t, 2, func(cfg *Config) { cfg.Tick = 100 * time.Millisecond })
	put(t, c.nodes[0], "a", "b")
	l := c.leader()
	n, other := c.nodes[l], c.nodes[1-l]
	var removal uint64 // its index
	c.mu.Lock()
	c.drop = func(m *raftpb.Message) bool {
		if m.GetFrom() != n.id || m.GetType() != raftpb.MsgApp {
			return false
		}
		for _, e := range m.Entries {
			if e.GetType() == raftpb.EntryConfChange {
				removal = e.GetIndex()
				return false
			}
		}
		return removal != 0 && m.GetCommit() >= removal
	}
	c.mu.Unlock()
	if _, err := n.RemoveMember(t.Context(), n.id); err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	c.drop = nil
	c.mu.Unlock()
	<-n.Failed()
	if !errors.Is(n.Err(), ErrRemoved) {
		t.Errorf("the removed member has ended with %v", n.Err())
	}
	c.stop(l)
	eventually(t, "the other member leads alone", func() bool { return other.Leader() == other.id && len(other.Members()) == 1 })
}

// A restore from a backup leaves the file with the confState of the cluster that the backup
// is of. A snapshot is not sent with that, and the next start writes the right one.
func TestConfStateOfABackupIsNotSent(t *testing.T) {
	c := newCluster(t, 3, nil)
	put(t, c.nodes[0], "a", "b")
	c.same()
	c.stop(0)
	stale, err := mvcc.Open(c.cfgs[0].dbPath(), mvcc.Options{})
	if err != nil {
		t.Fatal(err)
	}
	stale.PutBucket("meta", []byte("confState"), []byte(`{"voters":[1],"auto_leave":false}`))
	stale.Publish(stale.Applied())
	if err := errors.Join(stale.Flush(t.Context()), stale.Close()); err != nil {
		t.Fatal(err)
	}
	voters := func(s *mvcc.Store) string {
		sn, err := s.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer sn.Close()
		m, err := describeSnapshot(&raftpb.Message{}, sn)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprint(m.Snapshot.GetMetadata().GetConfState().GetVoters())
	}
	if stale, err = mvcc.Open(c.cfgs[0].dbPath(), mvcc.Options{}); err != nil {
		t.Fatal(err)
	}
	sent := voters(stale)
	if err := stale.Close(); err != nil {
		t.Fatal(err)
	}
	c.start(0)
	c.awaitReady(0)
	put(t, c.nodes[0], "c", "d")
	if err := c.nodes[0].Store().Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := voters(c.nodes[1].Store()); sent != want {
		t.Errorf("sent with voters %s, want %s", sent, want)
	}
	var kept raftpb.ConfState
	err = c.nodes[0].Store().ReadBucket("meta", func(key, value []byte) error {
		if string(key) != "confState" {
			return nil
		}
		return json.Unmarshal(value, &kept)
	})
	if got := len(kept.GetVoters()); err != nil || got != 3 {
		t.Errorf("after the next start the file names %d voters: %v", got, err)
	}
}
