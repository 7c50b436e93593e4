package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"quorate/internal/fsm"
	"quorate/internal/kv"
	"quorate/internal/metrics"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

func testConfig(dir string) Config {
	return Config{
		Name: "m1", DataDir: dir,
		PeerURLs: []string{"http://127.0.0.1:2380"}, ClientURLs: []string{"http://127.0.0.1:2379"},
		InitialCluster: "m1=http://127.0.0.1:2380", InitialClusterToken: "test", NewCluster: true, MaxLearners: 1,
		Tick: 10 * time.Millisecond, ElectionTicks: 10, PreVote: true,
		SnapshotCount: 100, SlowApply: time.Minute, MaxRequestBytes: 1 << 20,
		ProgressInterval: time.Minute, FragmentBytes: 2 << 20,
		StrictReconfigCheck: true, TickAdvance: true, CatchUpEntries: 5000,
		Network: newWires().to(), Metrics: metrics.New(false), Logger: slog.New(slog.DiscardHandler),
	}
}

func run(t *testing.T, cfg Config) *Node {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	n, err := Run(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func propose(t *testing.T, n *Node, field wire.Field, m proto.Message) fsm.Result {
	t.Helper()
	body, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	res, err := n.Propose(ctx, field, body)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func put(t *testing.T, n *Node, key, value string) fsm.Result {
	t.Helper()
	res := propose(t, n, wire.FieldPut, &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
	if res.Err != nil {
		t.Fatal(res.Err)
	}
	return res
}

func get(t *testing.T, n *Node, key string) (value string, found bool) {
	t.Helper()
	if err := n.ReadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	v := n.View()
	defer v.Release()
	_, err := v.Range(&kv.Range{Span: kv.Span{Key: []byte(key)}}, func(b []byte) {
		k, err := wire.DecodeKeyValue(b)
		if err != nil {
			t.Error(err)
		}
		value, found = string(k.Value), true
	})
	if err != nil {
		t.Fatal(err)
	}
	return value, found
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func TestMemberKeepsWhatItAcknowledged(t *testing.T) {
	cfg := testConfig(t.TempDir())
	n := run(t, cfg)
	const writers, each = 8, 200 // across several marks in the log
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				put(t, n, fmt.Sprintf("w%d/%d", w, i%50), fmt.Sprint(i))
			}
		})
	}
	wg.Wait()
	hash := func(n *Node) string {
		v := n.View()
		defer v.Release()
		h, compact, rev, err := v.HashKV(0)
		return fmt.Sprint(h, compact, rev, err)
	}
	want, id, cluster := hash(n), n.MemberID(), n.ClusterID()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}

	cfg.Metrics = metrics.New(false)
	n = run(t, cfg)
	if got := hash(n); got != want {
		t.Errorf("hash, compact revision, revision, error after a restart: %s, want %s", got, want)
	}
	if n.MemberID() != id || n.ClusterID() != cluster {
		t.Error("the member has another id after a restart")
	}
	for w := range writers {
		if v, _ := get(t, n, fmt.Sprintf("w%d/49", w)); v != fmt.Sprint(each-1) {
			t.Errorf("w%d/49 = %q", w, v)
		}
	}
	if m := n.Members(); len(m) != 1 || m[0].Name != "m1" || len(m[0].ClientURLs) != 1 {
		t.Errorf("members %v", m)
	}
	if s := n.Status(); s.ClusterVersion != "3.7.0" || s.Leader != id {
		t.Errorf("status %+v", s)
	}
}

func TestLeaseEndsWithItsKeysInOneRevision(t *testing.T) {
	n := run(t, testConfig(t.TempDir()))
	res := propose(t, n, wire.FieldLeaseGrant, &pb.LeaseGrantRequest{ID: 7, TTL: 1})
	if res.Err != nil {
		t.Fatal(res.Err)
	}
	for i := range 3 {
		propose(t, n, wire.FieldPut, &pb.PutRequest{Key: fmt.Append(nil, "k", i), Lease: 7})
	}
	before := put(t, n, "other", "x").Rev
	eventually(t, "the lease's keys are deleted", func() bool { _, found := get(t, n, "k0"); return !found })
	v := n.View()
	defer v.Release()
	if v.Rev() != before+1 {
		t.Errorf("revision %d after the end of the lease, want %d", v.Rev(), before+1)
	}
	if _, err := n.RenewLease(t.Context(), 7); !errors.Is(err, kv.ErrLeaseNotFound) {
		t.Errorf("renewal after the end: %v", err)
	}
}

func TestLeasesOutliveARestart(t *testing.T) {
	cfg := testConfig(t.TempDir())
	n := run(t, cfg)
	propose(t, n, wire.FieldLeaseGrant, &pb.LeaseGrantRequest{ID: 7, TTL: 3600})
	propose(t, n, wire.FieldPut, &pb.PutRequest{Key: []byte("leased"), Lease: 7})
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	cfg.Metrics = metrics.New(false)
	n = run(t, cfg)
	if ttl, err := n.RenewLease(t.Context(), 7); ttl != 3600 || err != nil {
		t.Errorf("renewal after a restart: %d, %v", ttl, err)
	}
	if res := propose(t, n, wire.FieldLeaseRevoke, &pb.LeaseRevokeRequest{ID: 7}); res.Err != nil {
		t.Fatal(res.Err)
	}
	if _, found := get(t, n, "leased"); found {
		t.Error("the key outlived its lease")
	}
}

// What a start replays may need the leases while they are still being read. (The reader
// once waited for the store, which the applier held while it waited for the reader.)
func TestReplayWaitsForTheLeasesAndNotTheyForIt(t *testing.T) {
	cfg := testConfig(t.TempDir())
	n := run(t, cfg)
	for id := range int64(50) {
		propose(t, n, wire.FieldLeaseGrant, &pb.LeaseGrantRequest{ID: id + 1, TTL: 3600})
	}
	if err := n.Store().Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	for id := range int64(50) {
		propose(t, n, wire.FieldPut, &pb.PutRequest{Key: fmt.Append(nil, "k", id), Lease: id + 1})
	}
	crashed := t.TempDir() // as a crash at this moment would leave it
	if err := os.CopyFS(crashed, os.DirFS(cfg.DataDir)); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		cfg.DataDir, cfg.Metrics = t.TempDir(), metrics.New(false)
		if err := os.CopyFS(cfg.DataDir, os.DirFS(crashed)); err != nil {
			t.Fatal(err)
		}
		n := run(t, cfg)
		if _, found := get(t, n, "k49"); !found {
			t.Fatal("what was acknowledged is not there")
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestQuotaRefusesAndRecovers(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.QuotaBytes = 2 << 20
	n := run(t, cfg)
	value := strings.Repeat("v", 64<<10)
	body, err := proto.Marshal(&pb.PutRequest{Key: []byte("big"), Value: []byte(value)})
	if err != nil {
		t.Fatal(err)
	}
	refused := false
	for range 200 {
		if _, err := n.Propose(t.Context(), wire.FieldPut, body); errors.Is(err, kv.ErrNoSpace) {
			refused = true
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if !refused {
		t.Fatal("200 times 64 KiB fit into a quota of 2 MiB")
	}
	eventually(t, "the alarm is raised", func() bool { return len(n.Status().Alarms) == 1 })
	if _, found := get(t, n, "big"); !found {
		t.Error("reads do not go on")
	}
	// A transaction that only deletes, and a compaction, still work and make room.
	txn := propose(t, n, wire.FieldTxn, &pb.TxnRequest{Success: []*pb.RequestOp{{
		Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("big")}},
	}}})
	if txn.Err != nil {
		t.Fatal(txn.Err)
	}
	done := propose(t, n, wire.FieldCompact, &pb.CompactionRequest{Revision: txn.Rev, Physical: true})
	if done.Err != nil {
		t.Fatal(done.Err)
	}
	<-done.Done
	eventually(t, "the alarm clears itself", func() bool { return len(n.Status().Alarms) == 0 })
	put(t, n, "again", "x")
}

func TestRequestThatIsTooLargeIsRefused(t *testing.T) {
	n := run(t, testConfig(t.TempDir()))
	_, err := n.Propose(t.Context(), wire.FieldPut, make([]byte, 1<<20))
	if !errors.Is(err, kv.ErrTooLarge) {
		t.Errorf("error %v", err)
	}
}

func TestStoppedMemberRefuses(t *testing.T) {
	n := run(t, testConfig(t.TempDir()))
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Propose(context.Background(), wire.FieldPut, nil); !errors.Is(err, kv.ErrStopped) {
		t.Errorf("error %v", err)
	}
	// It asked nobody before a read. Its peers' port is closed after the store.
	if err := n.ReadIndex(context.Background()); !errors.Is(err, kv.ErrStopped) {
		t.Errorf("a read: error %v", err)
	}
	if _, err := (peerHandler{n}).HashKV(context.Background(), 0); !errors.Is(err, kv.ErrStopped) {
		t.Errorf("a peer's hash: error %v", err)
	}
}

func TestDirectoryInPartsIsRefusedAndLeftAlone(t *testing.T) {
	cfg := testConfig(t.TempDir())
	n := run(t, cfg)
	for i := range 300 {
		put(t, n, "k", fmt.Sprint(i))
	}
	// Marked in the log, which then no longer goes back to the beginning.
	if err := n.Store().Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	put(t, n, "k", "last")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"wal", "snap/db"} {
		damaged := cfg
		damaged.DataDir = t.TempDir()
		if err := os.CopyFS(damaged.DataDir, os.DirFS(cfg.DataDir)); err != nil {
			t.Fatal(err)
		}
		if err := os.RemoveAll(filepath.Join(damaged.memberDir(), part)); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := Start(damaged); !errors.Is(err, ErrMismatch) {
				t.Errorf("without %s: %v", part, err)
			}
		}
	}
}
