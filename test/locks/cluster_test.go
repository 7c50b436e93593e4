package locks

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/test/harness"
)

// TestLeaderChanges has clients of two members lock and unlock, keep their leases alive and
// watch, while the third member leads and is killed, stopped and paused. None of their
// calls and streams may fail, and never do two hold the lock.
func TestLeaderChanges(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	c, err := harness.NewCluster(t.TempDir(), []harness.Kind{harness.Quorate, harness.Quorate, harness.Quorate})
	must(err)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	must(c.Start(ctx))

	running, stop := context.WithCancel(ctx)
	defer stop()
	var wg sync.WaitGroup
	l := &locking{T: t, ctx: ctx, running: running}
	for i := range 8 {
		conn, err := harness.Dial(c.Members[i%2].Addr)
		must(err)
		defer conn.Close()
		lease := int64(i + 1)
		_, err = pb.NewLeaseClient(conn).LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: lease, TTL: 8})
		must(err)
		wg.Go(func() { l.keepAlive(conn, lease) })
		wg.Go(func() { l.lockAndUnlock(conn, lease) })
		if i < 2 {
			wg.Go(func() { l.watch(conn) })
		}
	}
	victim := c.Members[2]
	for _, fault := range []struct {
		name     string
		do, undo func() error
	}{
		{"kill", func() error { victim.Kill(); return nil }, victim.Launch},
		{"stop", victim.Stop, victim.Launch},
		{"pause", victim.Pause, victim.Resume},
	} {
		must(c.Lead(ctx, victim))
		before := l.turns.Load()
		must(fault.do())
		for deadline := time.Now().Add(20 * time.Second); l.turns.Load() < before+50; time.Sleep(time.Millisecond) {
			if t.Failed() || time.Now().After(deadline) {
				t.Fatalf("%s: %d turns since", fault.name, l.turns.Load()-before)
			}
		}
		must(fault.undo())
		must(victim.WaitReady(ctx))
	}
	stop()
	wg.Wait()
	t.Logf("%d turns, %d renewals, %d watched events", l.turns.Load(), l.renewals.Load(), l.events.Load())
}

type locking struct {
	*testing.T
	ctx, running context.Context

	holders  atomic.Int32
	turns    atomic.Int64
	renewals atomic.Int64
	events   atomic.Int64
}

// fault reports an error, unless the test is over.
func (l *locking) fault(what string, err error) {
	if err != nil && l.running.Err() == nil {
		l.Errorf("%s: %v", what, err)
	}
}

func (l *locking) lockAndUnlock(conn *grpc.ClientConn, lease int64) {
	rng := rand.New(rand.NewPCG(9, uint64(lease)))
	for l.running.Err() == nil {
		var b []byte
		err := conn.Invoke(l.ctx, "/v3lockpb.Lock/Lock", lockRequest("l", lease), &b, grpc.ForceCodecV2(raw{}))
		if err != nil {
			l.Errorf("lock by %d: %v", lease, err)
			return
		}
		if n := l.holders.Add(1); n != 1 {
			l.Errorf("%d hold the lock", n)
		}
		time.Sleep(time.Duration(rng.IntN(3)) * time.Millisecond)
		l.holders.Add(-1)
		l.turns.Add(1)
		err = conn.Invoke(l.ctx, "/v3lockpb.Lock/Unlock", unlockRequest(fmt.Sprintf("l/%x", lease)), &b, grpc.ForceCodecV2(raw{}))
		if err != nil {
			l.Errorf("unlock by %d: %v", lease, err)
			return
		}
	}
}

func (l *locking) keepAlive(conn *grpc.ClientConn, lease int64) {
	stream, err := pb.NewLeaseClient(conn).LeaseKeepAlive(l.running)
	for err == nil {
		if err = stream.Send(&pb.LeaseKeepAliveRequest{ID: lease}); err != nil {
			break
		}
		var r *pb.LeaseKeepAliveResponse
		if r, err = stream.Recv(); err != nil {
			break
		}
		if r.TTL != 8 {
			l.Errorf("lease %d is renewed to %d", lease, r.TTL)
		}
		l.renewals.Add(1)
		time.Sleep(50 * time.Millisecond)
	}
	l.fault("keep alive", err)
}

// watch watches the lock's keys, as a client that requires a leader.
func (l *locking) watch(conn *grpc.ClientConn) {
	stream, err := pb.NewWatchClient(conn).Watch(metadata.AppendToOutgoingContext(l.running, "hasleader", "true"))
	if err == nil {
		err = stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("l/"), RangeEnd: []byte("l0")}}})
	}
	for err == nil {
		var r *pb.WatchResponse
		if r, err = stream.Recv(); err == nil {
			l.events.Add(int64(len(r.Events)))
		}
	}
	l.fault("watch", err)
}
