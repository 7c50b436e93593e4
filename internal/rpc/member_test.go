package rpc

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"quorate/internal/auth"
	"quorate/internal/fsm"
	"quorate/internal/kv"
	"quorate/internal/lease"
	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/mvcc"
	"quorate/internal/watch"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// member is a Backend made of the real store and state machine, in which a proposal is
// applied at once instead of being replicated.
type member struct {
	t       testing.TB
	store   *mvcc.Store
	leases  *lease.Lessor
	hub     *watch.Hub
	machine *fsm.Machine
	ready   chan struct{}
	leader  atomic.Uint64
	learner atomic.Bool
	reads   atomic.Int64 // read indexes asked for
	readErr error
	block   chan struct{} // if not nil, proposals wait for it

	afterPropose func() error // its error replaces the answer to a proposal
	onReadIndex  func()

	changes   []change // of the membership
	changeErr error    // what they are answered with

	auth      *auth.Store
	tokens    *auth.Tokens
	passwords *auth.Passwords

	mu    sync.Mutex // the applier's turn
	index uint64
}

const (
	testCluster = 1 << 63
	testMember  = 77
	testTerm    = 4
)

func newMember(t testing.TB) *member {
	m := &member{t: t, ready: make(chan struct{})}
	m.leader.Store(testMember)
	store, err := mvcc.Open(filepath.Join(t.TempDir(), "db"), mvcc.Options{OnFlush: func(_, _ uint64) {}, OnFailure: func(err error) { t.Error(err) }, NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	m.store = store
	m.leases = lease.New(2)
	m.leases.Promote(time.Now(), 0)
	m.hub = watch.New(watch.Options{
		View:             func() watch.View { return store.View() },
		AppendHeader:     func(b []byte, rev int64) []byte { return wire.AppendHeader(b, &wire.Header{Revision: rev}) },
		ProgressInterval: time.Hour,
		FragmentBytes:    2 << 20,
	})
	cluster, err := membership.Load(store, membership.Version{Major: 3, Minor: 7, Patch: 1}, 1)
	if err != nil {
		t.Fatal(err)
	}
	alarms, err := fsm.LoadAlarms(store)
	if err != nil {
		t.Fatal(err)
	}
	if m.tokens, err = auth.NewTokens("simple", 0); err != nil {
		t.Fatal(err)
	}
	m.passwords = auth.NewPasswords(bcrypt.MinCost)
	if m.auth, err = auth.Load(store, m.tokens, m.passwords.Cost()); err != nil {
		t.Fatal(err)
	}
	m.machine = fsm.New(store, m.Leases, cluster, alarms, m.auth)
	t.Cleanup(func() {
		m.hub.Close()
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	close(m.ready)
	return m
}

func (m *member) Auth() *auth.State          { return m.auth.State() }
func (m *member) Tokens() *auth.Tokens       { return m.tokens }
func (m *member) Passwords() *auth.Passwords { return m.passwords }
func (m *member) Applied() uint64            { m.mu.Lock(); defer m.mu.Unlock(); return m.index }

func (m *member) Propose(ctx context.Context, field wire.Field, body []byte) (fsm.Result, error) {
	return m.ProposeAs(ctx, auth.Identity{}, field, body)
}

func (m *member) ProposeAs(ctx context.Context, who auth.Identity, field wire.Field, body []byte) (fsm.Result, error) {
	if wire.RaftRequestSize(&wire.RequestHeader{ID: math.MaxUint64}, field, len(body)) > 3<<19 {
		return fsm.Result{}, kv.ErrTooLarge
	}
	if m.block != nil {
		select {
		case <-m.block:
		case <-ctx.Done():
			return fsm.Result{}, ctx.Err()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.index++
	index, term := m.index, uint64(testTerm)
	e := &raftpb.Entry{Index: &index, Term: &term, Data: wire.AppendRaftRequest(nil, &wire.RequestHeader{ID: index, Username: who.User, AuthRevision: who.Revision}, field, body)}
	_, res, err := m.machine.Apply(e, time.Now())
	if err != nil {
		m.t.Error(err)
	}
	m.store.Publish(index, term)
	m.hub.Publish(m.machine.TakeEvents(), m.store.Rev())
	if m.afterPropose != nil {
		if err := m.afterPropose(); err != nil {
			return fsm.Result{}, err
		}
	}
	return res, nil
}

func (m *member) ReadIndex(context.Context) error {
	m.reads.Add(1)
	if m.onReadIndex != nil {
		m.onReadIndex()
	}
	return m.readErr
}

func (m *member) View() *mvcc.View      { return m.store.View() }
func (m *member) Store() *mvcc.Store    { return m.store }
func (m *member) Watch() *watch.Hub     { return m.hub }
func (m *member) Leases() *lease.Lessor { return m.leases }
func (m *member) ClusterID() uint64     { return testCluster }
func (m *member) MemberID() uint64      { return testMember }
func (m *member) Term() uint64          { return testTerm }
func (m *member) Leader() uint64        { return m.leader.Load() }
func (m *member) IsLearner() bool       { return m.learner.Load() }
func (m *member) Ready() <-chan struct{} {
	return m.ready
}

func (m *member) RenewLease(ctx context.Context, id kv.LeaseID) (ttl int64, err error) {
	return ttl, m.untilPromoted(ctx, func() error {
		ttl, err = m.leases.Renew(id, time.Now())
		return err
	})
}

func (m *member) TimeToLive(ctx context.Context, id kv.LeaseID, keys bool) (*pb.LeaseTimeToLiveResponse, error) {
	r := &pb.LeaseTimeToLiveResponse{ID: int64(id), TTL: -1}
	err := m.untilPromoted(ctx, func() error {
		info, err := m.leases.Lookup(id, keys, time.Now())
		if err == nil {
			r.TTL, r.GrantedTTL, r.Keys = info.Remaining, info.Granted, info.Keys
		}
		return err
	})
	if errors.Is(err, kv.ErrLeaseNotFound) {
		err = nil
	}
	return r, err
}

// untilPromoted calls f until somebody leads.
func (m *member) untilPromoted(ctx context.Context, f func() error) error {
	for {
		if err := f(); !errors.Is(err, kv.ErrNotLeader) {
			return err
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// change is a call that changes the membership, as the tests' backend got it.
type change struct {
	what    string
	id      uint64
	urls    []string
	learner bool
}

func (m *member) change(c change) ([]*pb.Member, error) {
	m.changes = append(m.changes, c)
	if m.changeErr != nil {
		return nil, m.changeErr
	}
	return m.Members(), nil
}

func (m *member) AddMember(_ context.Context, urls []string, learner bool) (*pb.Member, []*pb.Member, error) {
	all, err := m.change(change{"add", 0, urls, learner})
	return &pb.Member{ID: 5, PeerURLs: urls, IsLearner: learner}, all, err
}

func (m *member) RemoveMember(_ context.Context, id uint64) ([]*pb.Member, error) {
	return m.change(change{what: "remove", id: id})
}

func (m *member) UpdateMember(_ context.Context, id uint64, urls []string) ([]*pb.Member, error) {
	return m.change(change{what: "update", id: id, urls: urls})
}

func (m *member) PromoteMember(_ context.Context, id uint64, _ string) ([]*pb.Member, error) {
	return m.change(change{what: "promote", id: id})
}

func (m *member) Members() []*pb.Member {
	return []*pb.Member{{ID: testMember, Name: "m", PeerURLs: []string{"http://127.0.0.1:2380"}, ClientURLs: []string{"http://127.0.0.1:2379"}}}
}

func (m *member) MoveLeader(context.Context, uint64) error { return kv.ErrBadTransferee }

func (m *member) status() Status {
	return Status{Leader: m.Leader(), Term: testTerm, Index: m.index, Applied: m.index, ClusterVersion: "3.7.0", StorageVersion: "3.7.0", QuotaBytes: 2 << 30}
}

// start serves m on a port of its own; both end with the test.
func start(t testing.TB, m *member, change func(*Options), l func(*Listener)) (*Server, string) {
	t.Helper()
	opts := Options{
		Backend: m, Status: m.status, Metrics: metrics.New(false), Version: "3.7.1",
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), ElectionTimeout: time.Second,
	}
	if change != nil {
		change(&opts)
	}
	s, err := New(opts)
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	in := Listener{Listener: lis}
	if l != nil {
		l(&in)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(in) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		s.Shutdown(ctx)
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return s, lis.Addr().String()
}

// dial connects to addr.
func dial(t testing.TB, addr string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	opts = append([]grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32))}, opts...)
	c, err := grpc.NewClient(addr, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// serveMember is start and dial in one.
func serveMember(t testing.TB) (*member, *grpc.ClientConn) {
	t.Helper()
	m := newMember(t)
	_, addr := start(t, m, nil, nil)
	return m, dial(t, addr)
}
