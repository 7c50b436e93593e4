package rpc

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"quorate/internal/kv"
	"quorate/internal/mvcc"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/dynamicpb"
)

// lineClient calls Lock and Election.
type lineClient struct{ *grpc.ClientConn }

func (c lineClient) call(ctx context.Context, j string, in message) (message, error) {
	i := slices.IndexFunc(jsonMethods, func(m jsonMethod) bool { return strings.HasSuffix(m.method, "/"+j) })
	out := message{dynamicpb.NewMessage(jsonMethods[i].out)}
	return out, c.Invoke(ctx, jsonMethods[i].method, in, out)
}

func (c lineClient) lock(ctx context.Context, name string, lease int64) (message, error) {
	return c.call(ctx, "Lock", newMessage(lockpb, "LockRequest").setBytes("name", []byte(name)).setInt("lease", lease))
}

func (c lineClient) unlock(ctx context.Context, key []byte) error {
	_, err := c.call(ctx, "Unlock", newMessage(lockpb, "UnlockRequest").setBytes("key", key))
	return err
}

func (m message) header() *pb.ResponseHeader {
	b, err := proto.Marshal(m.Get(m.field("header")).Message().Interface())
	if err != nil {
		panic(err)
	}
	var h pb.ResponseHeader
	if err := proto.Unmarshal(b, &h); err != nil {
		panic(err)
	}
	return &h
}

// keyAt is key as it was at rev, nil if it was not there or rev is compacted.
func keyAt(v *mvcc.View, key []byte, rev int64) (found *mvccpb.KeyValue) {
	_, err := v.Range(&kv.Range{Span: kv.Span{Key: key}, Revision: rev}, func(keyValue []byte) { found = decodeKeyValue(keyValue) })
	if err != nil {
		return nil
	}
	return found
}

// firstInLine is the key that had the turn at revision rev, nil if there was none.
func firstInLine(v *mvcc.View, line kv.Span, rev int64) (first *mvccpb.KeyValue, err error) {
	_, err = v.Range(&kv.Range{
		Span: line, Revision: rev, SortTarget: kv.SortByCreate, SortOrder: kv.SortAscend, Limit: 1,
	}, func(keyValue []byte) { first = decodeKeyValue(keyValue) })
	return first, err
}

func grant(t testing.TB, conn *grpc.ClientConn, ids ...int64) {
	t.Helper()
	for _, id := range ids {
		if _, err := pb.NewLeaseClient(conn).LeaseGrant(context.Background(), &pb.LeaseGrantRequest{ID: id, TTL: 600}); err != nil {
			t.Fatal(err)
		}
	}
}

func revoke(t testing.TB, conn *grpc.ClientConn, id int64) {
	t.Helper()
	if _, err := pb.NewLeaseClient(conn).LeaseRevoke(context.Background(), &pb.LeaseRevokeRequest{ID: id}); err != nil {
		t.Fatal(err)
	}
}

// keys are all keys of the store in order of creation.
func (m *member) keys(t testing.TB) (list []string) {
	t.Helper()
	v := m.store.View()
	defer v.Release()
	all := kv.Range{Span: kv.Span{Key: []byte{0}, End: []byte{0}}, SortTarget: kv.SortByCreate}
	if _, err := v.Range(&all, func(b []byte) { list = append(list, string(decodeKeyValue(b).Key)) }); err != nil {
		t.Fatal(err)
	}
	return list
}

func (m *member) awaitKeys(t testing.TB, want ...string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		got := m.keys(t)
		if slices.Equal(got, want) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("keys %q, want %q", got, want)
		}
	}
}

func wantStatus(t testing.TB, what string, err error, code codes.Code, text string) {
	t.Helper()
	if s := status.Convert(err); s.Code() != code || s.Message() != text {
		t.Errorf("%s: got %v %q, want %v %q", what, s.Code(), s.Message(), code, text)
	}
}

func TestLock(t *testing.T) {
	m, conn := serveMember(t)
	c, ctx := lineClient{conn}, t.Context()
	grant(t, conn, 0xabc, -1)
	r, err := c.lock(ctx, "a", 0xabc)
	if err != nil || string(r.bytes("key")) != "a/abc" {
		t.Fatalf("lock: %v, %v", r, err)
	}
	if want := (&pb.ResponseHeader{ClusterId: testCluster, MemberId: testMember, RaftTerm: testTerm, Revision: 2}); !proto.Equal(r.header(), want) {
		t.Errorf("header %v, want %v", r.header(), want)
	}
	if again, err := c.lock(ctx, "a", 0xabc); err != nil || !proto.Equal(again, r) {
		t.Errorf("lock again with the same lease: %v, %v", again, err)
	}
	if r, err := c.lock(ctx, "", -1); err != nil || string(r.bytes("key")) != "/-1" {
		t.Errorf("lock without a name: %v, %v", r, err)
	}
	if err := c.unlock(ctx, []byte("a/abc")); err != nil {
		t.Error(err)
	}
	m.awaitKeys(t, "/-1")
	r, err = c.lock(ctx, "b", 0)
	if err != nil || len(m.leases.List()) != 3 {
		t.Fatalf("lock with a lease of its own: %v, %v, leases %v", r, err, m.leases.List())
	}
	if err := c.unlock(ctx, []byte("none")); err != nil {
		t.Errorf("unlock of nothing: %v", err)
	}
	wantStatus(t, "unlock without a key", c.unlock(ctx, nil), codes.Unknown, "etcdserver: key is not provided")
	wantStatus(t, "no such lease", second(c.lock(ctx, "a", 5)), codes.Unknown, "etcdserver: requested lease not found")
	wantStatus(t, "too large", second(c.lock(ctx, strings.Repeat("a", 1<<20), -1)), codes.Unknown, "etcdserver: request is too large")
	wantStatus(t, "too large, own lease", second(c.lock(ctx, strings.Repeat("a", 1<<20), 0)), codes.Unknown, "etcdserver: request is too large")
	if n := len(m.leases.List()); n != 3 {
		t.Errorf("%d leases are left", n)
	}
	var out []byte
	err = conn.Invoke(ctx, "/v3lockpb.Lock/Lock", []byte{0x0a, 0xff}, &out, grpc.ForceCodec(rawCodec{}))
	if status.Code(err) != codes.Internal {
		t.Errorf("malformed request: %v", err)
	}
}

// waiting starts a Lock that has to wait and returns once its key is in line.
func waiting(t *testing.T, m *member, c lineClient, ctx context.Context, name string, lease int64) <-chan error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- second(c.lock(ctx, name, lease)) }()
	key := fmt.Sprintf("%s/%x", name, lease)
	for deadline := time.Now().Add(10 * time.Second); !slices.Contains(m.keys(t), key); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s is not in line", key)
		}
	}
	return done
}

func stillWaits(t *testing.T, what string, done <-chan error) {
	t.Helper()
	select {
	case err := <-done:
		t.Fatalf("%s returned: %v", what, err)
	case <-time.After(20 * time.Millisecond):
	}
}

func ended(t *testing.T, what string, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatalf("%s does not end", what)
		return nil
	}
}

// TestLockLine lets those who stand in line get the lock, leave, and lose their leases.
func TestLockLine(t *testing.T) {
	m, conn := serveMember(t)
	c, ctx := lineClient{conn}, t.Context()
	grant(t, conn, 1, 2, 3, 4, 5)
	if _, err := c.lock(ctx, "a", 1); err != nil {
		t.Fatal(err)
	}
	impatient, cancel := context.WithCancel(ctx)
	second := waiting(t, m, c, impatient, "a", 2)
	third := waiting(t, m, c, ctx, "a", 3)
	fourth := waiting(t, m, c, ctx, "a", 4)
	fifth := waiting(t, m, c, ctx, "a", 5)
	m.awaitKeys(t, "a/1", "a/2", "a/3", "a/4", "a/5")

	cancel()
	if err := ended(t, "the second", second); status.Code(err) != codes.Canceled {
		t.Error(err)
	}
	m.awaitKeys(t, "a/1", "a/3", "a/4", "a/5")
	revoke(t, conn, 4)
	wantStatus(t, "the fourth", ended(t, "the fourth", fourth), codes.Unknown, "mutex: session is expired")
	stillWaits(t, "the third", third)
	if _, err := pb.NewKVClient(conn).Compact(ctx, &pb.CompactionRequest{Revision: m.store.Rev()}); err != nil {
		t.Fatal(err)
	}
	stillWaits(t, "the third, with its history compacted", third)
	revoke(t, conn, 1)
	if err := ended(t, "the third", third); err != nil {
		t.Error(err)
	}
	stillWaits(t, "the fifth", fifth)
	if err := c.unlock(ctx, []byte("a/3")); err != nil {
		t.Error(err)
	}
	if err := ended(t, "the fifth", fifth); err != nil {
		t.Error(err)
	}
	m.awaitKeys(t, "a/5")

	// Who has no lease of its own leaves nothing behind.
	leases := len(m.leases.List())
	short, stop := context.WithTimeout(ctx, 50*time.Millisecond)
	defer stop()
	if _, err := c.lock(short, "a", 0); status.Code(err) != codes.DeadlineExceeded {
		t.Error(err)
	}
	m.awaitKeys(t, "a/5")
	if n := len(m.leases.List()); n != leases {
		t.Errorf("%d leases, want %d", n, leases)
	}
}

// TestLockStop: a member that stops ends those who wait, in time and without a trace.
func TestLockStop(t *testing.T) {
	m := newMember(t)
	s, addr := start(t, m, nil, nil)
	c := lineClient{dial(t, addr)}
	grant(t, c.ClientConn, 1, 2)
	if _, err := c.lock(t.Context(), "a", 1); err != nil {
		t.Fatal(err)
	}
	waits := waiting(t, m, c, t.Context(), "a", 2)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	s.Shutdown(ctx)
	if ctx.Err() != nil {
		t.Error("the stop waited for one who waits")
	}
	wantStatus(t, "who waits", <-waits, codes.Unavailable, "etcdserver: server stopped")
	m.awaitKeys(t, "a/1")
}

// TestLineMemory: too many who wait are refused, and do not keep others from working.
func TestLineMemory(t *testing.T) {
	m := newMember(t)
	s, addr := start(t, m, func(o *Options) { o.LineMemory = 3 * (waiterBytes + 1000) }, nil)
	c := lineClient{dial(t, addr)}
	grant(t, c.ClientConn, 1, 2, 3, 4, 5)
	if _, err := c.lock(t.Context(), "a", 1); err != nil {
		t.Fatal(err)
	}
	waits := []<-chan error{waiting(t, m, c, t.Context(), "a", 2), waiting(t, m, c, t.Context(), "a", 3), waiting(t, m, c, t.Context(), "a", 4)}
	wantStatus(t, "one too many", second(c.lock(t.Context(), "b", 5)), codes.Unknown, "etcdserver: too many requests")
	for i, key := range []string{"a/1", "a/2", "a/3"} {
		if err := c.unlock(t.Context(), []byte(key)); err != nil {
			t.Error(err)
		}
		if err := <-waits[i]; err != nil {
			t.Error(err)
		}
	}
	if line, requests := s.services.inLine.used.Load(), s.services.requests.used.Load(); line != 0 || requests != 0 {
		t.Errorf("%d and %d bytes are still charged", line, requests)
	}
}

// TestLockRandomly has many clients lock, unlock, give up and die at random. Who gets a
// lock must be the first in line, and in order of arrival.
func TestLockRandomly(t *testing.T) {
	const clients, names = 24, 3
	m := newMember(t)
	s, addr := start(t, m, nil, nil)
	var mu sync.Mutex
	type turn struct{ at, created int64 }
	turns := map[string][]turn{} // of each name
	var got, gaveUp, lost int
	var wg sync.WaitGroup
	stop := time.Now().Add(2 * time.Second)
	for i := range clients {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(7, uint64(i)))
			conn := dial(t, addr)
			c := lineClient{conn}
			for n := int64(1); time.Now().Before(stop); n++ {
				name, lease := fmt.Sprint("n", rng.IntN(names)), int64(i+1)<<20+n
				grant(t, conn, lease)
				ctx, cancel := context.WithCancel(t.Context())
				switch rng.IntN(6) {
				case 0:
					time.AfterFunc(time.Duration(rng.IntN(20))*time.Millisecond, cancel)
				case 1:
					time.AfterFunc(time.Duration(rng.IntN(20))*time.Millisecond, func() {
						_, _ = pb.NewLeaseClient(conn).LeaseRevoke(context.Background(), &pb.LeaseRevokeRequest{ID: lease}) // or it is gone by then
					})
				}
				r, err := c.lock(ctx, name, lease)
				switch {
				case err == nil:
					v := m.store.View()
					own := keyAt(v, r.bytes("key"), r.header().Revision)
					first, err := firstInLine(v, lineOf([]byte(name)), r.header().Revision)
					v.Release()
					mu.Lock()
					if err != nil || own == nil || !proto.Equal(first, own) {
						t.Errorf("%s/%x got the lock but the first in line is %v (%v)", name, lease, first, err)
					} else {
						turns[name] = append(turns[name], turn{r.header().Revision, own.CreateRevision})
					}
					got++
					mu.Unlock()
					if err := c.unlock(t.Context(), r.bytes("key")); err != nil {
						t.Error(err)
					}
				case status.Code(err) == codes.Canceled:
					mu.Lock()
					gaveUp++
					mu.Unlock()
					// The answer may have been on its way: such a client ends its lease.
					if _, err := pb.NewLeaseClient(conn).LeaseRevoke(t.Context(), &pb.LeaseRevokeRequest{ID: lease}); err != nil {
						t.Error(err)
					}
				case status.Convert(err).Message() == "mutex: session is expired", status.Convert(err).Message() == "etcdserver: requested lease not found":
					mu.Lock()
					lost++
					mu.Unlock()
				default:
					t.Error(err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	m.awaitKeys(t)
	for name, ts := range turns {
		slices.SortFunc(ts, func(a, b turn) int { return cmp.Compare(a.at, b.at) })
		for i := range ts[1:] {
			if ts[i].at == ts[i+1].at || ts[i].created >= ts[i+1].created {
				t.Errorf("%s: the turns %v and %v are not in order of arrival", name, ts[i], ts[i+1])
			}
		}
	}
	t.Logf("%d got it, %d gave up, %d lost their leases", got, gaveUp, lost)
	if got == 0 || gaveUp == 0 || lost == 0 {
		t.Error("not everything happened")
	}
	left := func() int {
		s.services.lineWatches.Lock()
		defer s.services.lineWatches.Unlock()
		return len(s.services.lineWatches.byLine)
	}
	for deadline := time.Now().Add(10 * time.Second); m.hub.Stats().Streams != 0 || left() != 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("left behind: %+v and %d lines", m.hub.Stats(), left())
		}
	}
}

// TestLockFateUnknown: a place whose proposal took too long is taken back.
func TestLockFateUnknown(t *testing.T) {
	m, conn := serveMember(t)
	c := lineClient{conn}
	grant(t, conn, 1)
	m.afterPropose = func() error { m.afterPropose = nil; return errors.New("fate unknown") }
	wantStatus(t, "lock", second(c.lock(t.Context(), "a", 1)), codes.Unknown, "fate unknown")
	m.awaitKeys(t)
	// But not one that was there before.
	if _, err := c.lock(t.Context(), "a", 1); err != nil {
		t.Fatal(err)
	}
	m.afterPropose = func() error { m.afterPropose = nil; return errors.New("fate unknown") }
	if _, err := c.lock(t.Context(), "a", 1); err == nil {
		t.Error("no error")
	}
	m.awaitKeys(t, "a/1")
}

// TestLockLostConfirmation: the lease ends just when it is the place's turn.
func TestLockLostConfirmation(t *testing.T) {
	m, conn := serveMember(t)
	c := lineClient{conn}
	grant(t, conn, 1, 2)
	if _, err := c.lock(t.Context(), "a", 1); err != nil {
		t.Fatal(err)
	}
	waits := waiting(t, m, c, t.Context(), "a", 2)
	m.onReadIndex = func() { revoke(t, conn, 2) }
	if err := c.unlock(t.Context(), []byte("a/1")); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, "who waited", ended(t, "who waited", waits), codes.Unknown, "mutex: session is expired")
}

// TestLockWakesOne: the end of a key wakes the one behind it and nobody else, and is looked
// at once, however many wait.
func TestLockWakesOne(t *testing.T) {
	const waiters = 30
	m := newMember(t)
	s, addr := start(t, m, nil, nil)
	conn := dial(t, addr)
	c, ctx := lineClient{conn}, t.Context()
	var waits []<-chan error
	for lease := range int64(waiters + 1) {
		grant(t, conn, lease+1)
		if lease == 0 {
			if _, err := c.lock(ctx, "a", 1); err != nil {
				t.Fatal(err)
			}
			continue
		}
		waits = append(waits, waiting(t, m, c, ctx, "a", lease+1))
	}
	l := awaitWaiters(t, s.services, "a", waiters)
	reads, events := m.reads.Load(), m.hub.Stats().Events
	for i, done := range waits {
		if err := c.unlock(ctx, fmt.Appendf(nil, "a/%x", i+1)); err != nil {
			t.Fatal(err)
		}
		if err := ended(t, "who is next", done); err != nil {
			t.Fatal(err)
		}
		if n := l.count(); n != waiters-i-1 {
			t.Fatalf("%d wait still after %d turns", n, i+1)
		}
	}
	if n := m.hub.Stats().Events - events; n != waiters {
		t.Errorf("%d ends were told %d times", waiters, n)
	}
	if n := m.reads.Load() - reads; n != waiters {
		t.Errorf("%d read indexes for %d turns", n, waiters)
	}
}

// count is how many wait.
func (l *lineWatch) count() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ws := range l.waiting {
		n += len(ws)
	}
	return n
}

// awaitWaiters returns the watch of the line of name once n wait in it and all that was
// created is known to it.
func awaitWaiters(t testing.TB, s *services, name string, n int) *lineWatch {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		s.lineWatches.Lock()
		l := s.lineWatches.byLine[name+"/"]
		s.lineWatches.Unlock()
		if l != nil && l.count() == n {
			v := s.View()
			rev := v.Rev()
			v.Release()
			l.mu.Lock()
			known := l.front.rev == rev
			l.mu.Unlock()
			if known {
				return l
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("there are not %d who wait", n)
		}
	}
}

// TestWaitingIsNotSlow: that a call waited for others is not logged as the member's fault.
func TestWaitingIsNotSlow(t *testing.T) {
	m := newMember(t)
	var log bytes.Buffer
	s, addr := start(t, m, func(o *Options) {
		o.Logger = slog.New(slog.NewTextHandler(&log, nil))
		o.SlowRequest = time.Nanosecond
	}, nil)
	c := lineClient{dial(t, addr)}
	grant(t, c.ClientConn, 1)
	if _, err := c.lock(t.Context(), "a", 1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	s.Shutdown(ctx) // so that nobody logs any more
	if text := log.String(); strings.Contains(text, "v3lockpb") || !strings.Contains(text, "LeaseGrant") {
		t.Errorf("logged: %s", text)
	}
}

// BenchmarkLine has n stand in a line of a member and then gives the turn from each to the
// next. What one costs hardly depends on n.
func BenchmarkLine(b *testing.B) {
	for _, n := range []int{100, 1000, 3000} {
		b.Run(fmt.Sprint("waiters=", n), func(b *testing.B) {
			m := newMember(b)
			s, addr := start(b, m, nil, nil)
			grant(b, dial(b, addr), 1)
			for b.Loop() {
				begin := time.Now()
				turns := make(chan int, n)
				for i := range n {
					p := &place{services: s.services, line: lineOf([]byte("a")), lease: 1, key: fmt.Appendf(nil, "a/%x", i)}
					if _, err := p.enter(b.Context(), nil); err != nil {
						b.Fatal(err)
					}
					go func() {
						if _, err := p.awaitTurn(b.Context()); err != nil {
							b.Error(err)
						}
						turns <- i
					}()
				}
				awaitWaiters(b, s.services, "a", n-1)
				entered := time.Now()
				for i := range n {
					if got := <-turns; got != i {
						b.Fatalf("the turn is %d's, not %d's", got, i)
					}
					if _, err := s.services.proposeMessage(b.Context(), wire.FieldDelete, &pb.DeleteRangeRequest{Key: fmt.Appendf(nil, "a/%x", i)}); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(entered.Sub(begin).Microseconds())/float64(n), "µs/enter")
				b.ReportMetric(float64(time.Since(entered).Microseconds())/float64(n), "µs/turn")
			}
		})
	}
}
