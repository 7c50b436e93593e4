package rpc

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"quorate/internal/kv"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// hasLeader is ctx of a client that requires a leader.
func hasLeader(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "hasleader", "true")
}

// openWatch opens a watch of "a" that stands.
func openWatch(t *testing.T, ctx context.Context, conn *grpc.ClientConn) pb.Watch_WatchClient {
	t.Helper()
	w, err := pb.NewWatchClient(conn).Watch(ctx)
	if err == nil {
		err = w.Send(watchCreateRequest(&pb.WatchCreateRequest{Key: []byte("a")}))
	}
	if err == nil {
		_, err = w.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestLeaderLost(t *testing.T) {
	m := newMember(t)
	_, addr := start(t, m, func(o *Options) { o.ElectionTimeout = 10 * time.Millisecond }, nil)
	conn := dial(t, addr)
	requires, does := openWatch(t, hasLeader(t.Context()), conn), openWatch(t, t.Context(), conn)
	m.leader.Store(0)
	lost := time.Now()
	noLeader := func(what string, err error) {
		t.Helper()
		if status.Convert(err).Message() != "etcdserver: no leader" || status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err := requires.Recv()
	noLeader("stream that requires a leader", err)
	if after := time.Since(lost); after < 30*time.Millisecond {
		t.Errorf("the stream ended after %v", after)
	}
	w, err := pb.NewWatchClient(conn).Watch(hasLeader(t.Context()))
	if err == nil {
		_, err = w.Recv()
	}
	noLeader("new stream that requires a leader", err)
	noLeader("call that requires a leader", second(pb.NewKVClient(conn).Put(hasLeader(t.Context()), put("b", ""))))
	m.leader.Store(testMember)
	if _, err := pb.NewKVClient(conn).Put(t.Context(), put("a", "")); err != nil {
		t.Fatal(err)
	}
	if r, err := does.Recv(); err != nil || len(r.Events) != 1 {
		t.Errorf("stream that does not: %v, %v", r, err)
	}
}

// TestLeaderChanges: neither streams nor calls that require a leader fail because it
// changes.
func TestLeaderChanges(t *testing.T) {
	m := newMember(t)
	_, addr := start(t, m, func(o *Options) { o.ElectionTimeout = 200 * time.Millisecond }, nil)
	conn := dial(t, addr)
	w := openWatch(t, hasLeader(t.Context()), conn)
	c := pb.NewKVClient(conn)
	for i := range 5 {
		m.leader.Store(0)
		back := time.AfterFunc(50*time.Millisecond, func() { m.leader.Store(uint64(i) + 1) })
		if _, err := c.Put(hasLeader(t.Context()), put("a", "")); err != nil {
			t.Fatalf("call while the leader changes: %v", err)
		}
		if back.Stop() {
			t.Fatal("the call did not wait for the leader")
		}
		if r, err := w.Recv(); err != nil || len(r.Events) != 1 {
			t.Fatalf("stream while the leader changes: %v, %v", r, err)
		}
	}
	m.leader.Store(0)
	short, cancel := context.WithTimeout(hasLeader(t.Context()), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Put(short, put("a", "")); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("call with a deadline: %v", err)
	}
}

// TestLeaderlessClock steps the clock by which streams end, with leaders that come and go.
func TestLeaderlessClock(t *testing.T) {
	l := newLeaderless(time.Second)
	now := time.Now()
	for i, step := range []struct {
		after  time.Duration
		leader bool
		end    bool
	}{
		{0, false, false}, {2999 * time.Millisecond, false, false}, {time.Millisecond, false, true}, {time.Hour, false, true},
		{0, true, false}, {time.Hour, false, false}, {time.Second, false, false},
		{time.Second, true, false}, {time.Second, false, false}, {2 * time.Second, false, false}, {time.Second, false, true},
	} {
		now = now.Add(step.after)
		if sleep, end := l.seen(step.leader, now); end != step.end || sleep != 100*time.Millisecond {
			t.Errorf("step %d: end %v, sleep %v", i, end, sleep)
		}
	}
}

// TestAwaitLeader runs the waiting in virtual time: when the leader comes back, when it
// does not, and when the caller has no more time.
func TestAwaitLeader(t *testing.T) {
	for _, tc := range []struct {
		name           string
		back, deadline time.Duration
		took           time.Duration
		err            error
	}{
		{"at once", 0, time.Hour, 0, nil},
		{"a short change", 30 * time.Millisecond, time.Hour, 30 * time.Millisecond, nil},
		{"two elections", 2500 * time.Millisecond, time.Hour, 2500 * time.Millisecond, nil},
		{"too long", 4 * time.Second, time.Hour, 3 * time.Second, kv.ErrNoLeader},
		{"the caller's deadline", time.Second, 10 * time.Millisecond, 10 * time.Millisecond, context.DeadlineExceeded},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := &member{}
				s := &services{Backend: m, opts: &Options{}}
				s.leaderless = newLeaderless(time.Second)
				done := make(chan struct{})
				ended := make(chan struct{})
				go func() { s.watchLeader(done); close(ended) }()
				start := time.Now()
				time.AfterFunc(tc.back, func() { m.leader.Store(1) })
				if tc.back == 0 {
					m.leader.Store(1)
				}
				ctx, cancel := context.WithTimeout(t.Context(), tc.deadline)
				defer cancel()
				errs := make(chan error, 2)
				for range cap(errs) {
					go func() { errs <- s.leaderless.await(ctx, m) }()
				}
				for range cap(errs) {
					if err := <-errs; !errors.Is(err, tc.err) {
						t.Errorf("got %v, want %v", err, tc.err)
					}
				}
				if took := time.Since(start); took < tc.took || took > tc.took+5*leaderPoll {
					t.Errorf("took %v, want %v", took, tc.took)
				}
				close(done)
				<-ended
			})
		})
	}
}
