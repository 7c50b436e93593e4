package lease

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sort"
	"sync"
	"testing"
	"time"

	"quorate/internal/kv"
)

var (
	twinSeed = flag.Uint64("lease.seed", 0, "seed of the random test; 0 runs a few fixed ones")
	twinTime = flag.Duration("lease.time", 0, "how long the random test runs, with ever new seeds")
)

const minTTL = 2

// twin is what a Lessor should be.
type twin struct {
	leases   map[kv.LeaseID]*twinLease
	promoted bool
	from     time.Time // nothing counts as renewed before; zero at first
}

type twinLease struct {
	ttl      int64
	deadline time.Time // while promoted
	returned time.Time // by Expired
	keys     map[string]bool
}

func (t *twin) promote(now time.Time, extend time.Duration) {
	t.promoted, t.from = true, now.Add(extend)
	for _, l := range t.leases {
		l.returned = time.Time{}
		t.renew(l, now)
	}
}

func (t *twin) renew(l *twinLease, now time.Time) {
	if t.from.After(now) {
		now = t.from
	}
	l.deadline = now.Add(seconds(l.ttl))
}

func seconds(ttl int64) time.Duration { return time.Duration(ttl) * time.Second }

func TestTwin(t *testing.T) {
	run := func(seed uint64, steps int) {
		t.Helper()
		if err := twinRun(seed, steps); err != nil {
			t.Fatalf("-lease.seed=%d: %v", seed, err)
		}
	}
	if *twinSeed != 0 {
		run(*twinSeed, 20000)
		return
	}
	for seed := range uint64(20) {
		run(seed+1, 4000)
	}
	for start := time.Now(); time.Since(start) < *twinTime; {
		run(rand.Uint64(), 20000)
	}
}

func twinRun(seed uint64, steps int) error {
	rng := rand.New(rand.NewPCG(seed, 1))
	l := New(minTTL)
	tw := &twin{leases: make(map[kv.LeaseID]*twinLease)}
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	ids := 1 + rng.IntN(60)
	if rng.IntN(3) == 0 {
		ids = 4000 // more than a stride
	}
	id := func() kv.LeaseID { return kv.LeaseID(rng.IntN(ids) - ids/2) }
	for step := range steps {
		if rng.IntN(2) == 0 {
			now = now.Add(time.Duration(rng.Int64N(int64(1) << rng.IntN(34))))
		}
		id := id()
		want := tw.leases[id]
		if err := twinStep(rng, l, tw, id, want, now); err != nil {
			return fmt.Errorf("step %d: lease %d: %w", step, id, err)
		}
		if l.Exists(id) != (tw.leases[id] != nil) || l.Len() != len(tw.leases) {
			return fmt.Errorf("step %d: lease %d of %d exists: %v", step, id, l.Len(), l.Exists(id))
		}
	}
	return nil
}

func twinStep(rng *rand.Rand, l *Lessor, tw *twin, id kv.LeaseID, want *twinLease, now time.Time) error {
	var wantErr error
	if want == nil {
		wantErr = kv.ErrLeaseNotFound
	}
	switch op := rng.IntN(100); {
	case op < 22:
		ttl := rng.Int64N(1 << rng.IntN(34))
		got, err := l.Grant(id, ttl, now)
		wantErr = nil
		switch {
		case id == 0:
			wantErr = kv.ErrLeaseNotFound
		case ttl > TTLMax:
			wantErr = kv.ErrLeaseTTLTooLarge
		case want != nil:
			wantErr = kv.ErrLeaseExists
		default:
			ttl = max(ttl, minTTL)
			want = &twinLease{ttl: ttl, keys: map[string]bool{}}
			tw.renew(want, now)
			tw.leases[id] = want
		}
		if err != wantErr || err == nil && got != ttl {
			return fmt.Errorf("Grant(%d) = %d, %v, want %d, %v", ttl, got, err, ttl, wantErr)
		}
	case op < 24 && id != 0:
		ttl := rng.Int64N(10)
		l.Restore(id, ttl, 0)
		if want == nil {
			want = &twinLease{ttl: max(ttl, minTTL), keys: map[string]bool{}}
			tw.renew(want, tw.from)
			tw.leases[id] = want
		}
	case op < 32:
		keys, err := l.Revoke(id)
		if err != wantErr {
			return fmt.Errorf("Revoke: %v, want %v", err, wantErr)
		}
		if want != nil {
			if err := sameKeys(keys, want.keys); err != nil {
				return err
			}
			delete(tw.leases, id)
		}
	case op < 52 && want != nil:
		key := fmt.Sprint(rng.IntN(1 << rng.IntN(12)))
		for range 1 + rng.IntN(20) {
			l.Attach(id, []byte(key))
			want.keys[key] = true
			key += "x"
		}
	case op < 60:
		key := fmt.Sprint(rng.IntN(20))
		if want != nil && rng.IntN(2) == 0 {
			for key = range want.keys { // any one
				break
			}
		}
		l.Detach(id, []byte(key))
		if want != nil {
			delete(want.keys, key)
			if rng.IntN(4) == 0 {
				for k := range want.keys {
					l.Detach(id, []byte(k))
				}
				clear(want.keys)
			}
		}
	case op < 62:
		extend := time.Duration(rng.Int64N(int64(3 * time.Second)))
		l.Promote(now, extend)
		tw.promote(now, extend)
	case op < 63:
		l.Demote()
		tw.promoted = false
	case op < 80:
		got, err := l.Renew(id, now)
		switch {
		case !tw.promoted:
			wantErr = kv.ErrNotLeader
		case want != nil && !want.deadline.After(now):
			wantErr = ErrExpired
		}
		if err != wantErr || err == nil && got != want.ttl {
			return fmt.Errorf("Renew = %d, %v, want %v", got, err, wantErr)
		}
		if err == nil {
			tw.renew(want, now)
		}
	case op < 90:
		withKeys := rng.IntN(2) == 0
		info, err := l.Lookup(id, withKeys, now)
		if want != nil && !tw.promoted {
			wantErr = kv.ErrNotLeader
		}
		if err != wantErr {
			return fmt.Errorf("Lookup: %v, want %v", err, wantErr)
		}
		if err == nil {
			left := max(0, int64(want.deadline.Sub(now)/time.Second))
			if info.ID != id || info.Granted != want.ttl || info.Remaining != left {
				return fmt.Errorf("Lookup = %+v, want ttl %d, %d left", info, want.ttl, left)
			}
			if withKeys {
				return sameKeys(info.Keys, want.keys)
			}
		}
	case op < 91:
		return tw.compareList(l)
	default:
		limit := 1 + rng.IntN(1<<rng.IntN(12))
		return tw.compareExpired(l, now, limit)
	}
	return nil
}

func sameKeys(got [][]byte, want map[string]bool) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d keys, want %d", len(got), len(want))
	}
	for i, k := range got {
		if !want[string(k)] || i > 0 && string(got[i-1]) >= string(k) {
			return fmt.Errorf("keys %q, want %v", got, want)
		}
	}
	return nil
}

func (t *twin) compareList(l *Lessor) error {
	ids := l.List()
	if len(ids) != len(t.leases) {
		return fmt.Errorf("%d leases, want %d", len(ids), len(t.leases))
	}
	for i, id := range ids {
		if t.leases[id] == nil {
			return fmt.Errorf("there is no lease %d", id)
		}
		if i > 0 && t.promoted && t.leases[id].deadline.Before(t.leases[ids[i-1]].deadline) {
			return fmt.Errorf("lease %d ends before %d", id, ids[i-1])
		}
	}
	if sort.SliceIsSorted(ids, func(i, j int) bool { return ids[i] < ids[j] }) {
		return nil
	}
	slices.Sort(ids)
	if len(slices.Compact(ids)) != len(t.leases) {
		return fmt.Errorf("a lease is listed twice")
	}
	return nil
}

// slack is how late the queue may be.
const slack = 2 * time.Duration(tickLen)

func (t *twin) compareExpired(l *Lessor, now time.Time, limit int) error {
	ids, next := l.Expired(now, limit)
	if len(ids) > limit {
		return fmt.Errorf("%d expired, limit %d", len(ids), limit)
	}
	if !t.promoted {
		if len(ids) > 0 || !next.IsZero() {
			return fmt.Errorf("%d expired without a promotion, next %v", len(ids), next)
		}
		return nil
	}
	for _, id := range ids {
		e := t.leases[id]
		switch {
		case e == nil:
			return fmt.Errorf("there is no lease %d", id)
		case e.deadline.After(now):
			return fmt.Errorf("lease %d ends %v early", id, e.deadline.Sub(now))
		case now.Sub(e.returned) < retryAfter:
			return fmt.Errorf("lease %d is returned again after %v", id, now.Sub(e.returned))
		}
		e.returned = now
	}
	if len(ids) == limit {
		return nil
	}
	for id, e := range t.leases {
		if now.Sub(e.deadline) > slack && now.Sub(e.returned) > retryAfter+slack {
			return fmt.Errorf("lease %d is over for %v and not among %d", id, now.Sub(e.deadline), len(ids))
		}
		if at := e.deadline.Add(slack); e.deadline.After(now) && e.ttl < 1<<28 && (next.IsZero() || at.Before(next)) {
			return fmt.Errorf("lease %d ends %v before the next look", id, next.Sub(e.deadline))
		}
	}
	return nil
}

// TestExpiry follows one lease through its life.
func TestExpiry(t *testing.T) {
	l := New(minTTL)
	now := time.Now()
	after := func(d time.Duration) time.Time { return now.Add(d) }
	expired := func(d time.Duration, want ...kv.LeaseID) {
		t.Helper()
		if got, _ := l.Expired(after(d), 10); !slices.Equal(got, want) {
			t.Fatalf("expired after %v: %v, want %v", d, got, want)
		}
	}
	l.Restore(7, 10, 3)
	expired(time.Hour)
	l.Promote(now, time.Second)
	expired(10900 * time.Millisecond)
	if _, err := l.Renew(7, after(5*time.Second)); err != nil {
		t.Fatal(err)
	}
	expired(14900 * time.Millisecond)
	expired(15100*time.Millisecond, 7)
	expired(17 * time.Second)
	expired(18300*time.Millisecond, 7)
	if _, err := l.Renew(7, after(19*time.Second)); !errors.Is(err, ErrExpired) {
		t.Fatalf("renewal of an expired lease: %v", err)
	}
	// The revocation came to nothing; another leadership gives it time again.
	l.Demote()
	expired(time.Hour)
	l.Promote(after(20*time.Second), 0)
	if ttl, err := l.Renew(7, after(21*time.Second)); err != nil || ttl != 10 {
		t.Fatalf("renewal = %d, %v", ttl, err)
	}
	expired(30900 * time.Millisecond)
	expired(31200*time.Millisecond, 7)
	if _, err := l.Revoke(7); err != nil {
		t.Fatal(err)
	}
	expired(time.Hour)
}

// TestRestoreWhilePromoted: leases are read at start, maybe after the promotion.
func TestRestoreWhilePromoted(t *testing.T) {
	l, now := New(minTTL), time.Now()
	l.Promote(now, time.Second)
	l.Restore(1, 5, 0)
	if ids, _ := l.Expired(now.Add(5900*time.Millisecond), 10); len(ids) != 0 {
		t.Fatal("early")
	}
	if ids, _ := l.Expired(now.Add(6200*time.Millisecond), 10); len(ids) != 1 {
		t.Fatal("late")
	}
}

// TestConcurrent has clients renew and look while the applier changes leases and the
// leader comes and goes.
func TestConcurrent(t *testing.T) {
	l := New(minTTL)
	const ids = 5000
	stop := make(chan struct{})
	var clients sync.WaitGroup
	client := func(f func(rng *rand.Rand, now time.Time)) {
		clients.Go(func() {
			rng := rand.New(rand.NewPCG(1, rand.Uint64()))
			for {
				select {
				case <-stop:
					return
				default:
					f(rng, time.Now())
				}
			}
		})
	}
	id := func(rng *rand.Rand) kv.LeaseID { return kv.LeaseID(1 + rng.IntN(ids)) }
	client(func(rng *rand.Rand, now time.Time) {
		if _, err := l.Renew(id(rng), now); err != nil && !errors.Is(err, kv.ErrLeaseNotFound) &&
			!errors.Is(err, kv.ErrNotLeader) && !errors.Is(err, ErrExpired) {
			t.Error(err)
		}
	})
	client(func(rng *rand.Rand, now time.Time) {
		info, err := l.Lookup(id(rng), true, now)
		if err == nil && !slices.IsSortedFunc(info.Keys, slices.Compare[[]byte]) {
			t.Errorf("keys %q", info.Keys)
		}
	})
	client(func(rng *rand.Rand, now time.Time) { l.List(); runtime.Gosched() })
	client(func(rng *rand.Rand, now time.Time) { l.Expired(now.Add(10*time.Second), 100) })
	client(func(rng *rand.Rand, now time.Time) {
		l.Promote(now, 0)
		time.Sleep(time.Millisecond)
		if rng.IntN(4) == 0 {
			l.Demote()
		}
	})
	rng := rand.New(rand.NewPCG(2, 3))
	for range 50000 {
		id := id(rng)
		switch rng.IntN(4) {
		case 0, 1:
			if _, err := l.Grant(id, rng.Int64N(20), time.Now()); err == nil {
				l.Attach(id, fmt.Append(nil, "k", id))
			}
		case 2:
			if l.Exists(id) {
				l.Attach(id, fmt.Append(nil, rng.IntN(20)))
			}
			l.Detach(id, fmt.Append(nil, rng.IntN(20)))
		case 3:
			if _, err := l.Revoke(id); err != nil && !errors.Is(err, kv.ErrLeaseNotFound) {
				t.Error(err)
			}
		}
	}
	close(stop)
	clients.Wait()
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkMillion reports what a lease costs among a million, and how long the lock is
// held at most.
func BenchmarkMillion(b *testing.B) {
	const n = 1 << 20
	for _, keys := range []int{0, 1} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			for range b.N {
				before := heap()
				l := New(minTTL)
				now := time.Now()
				key := make([]byte, 32)
				for i := range n {
					id := kv.LeaseID(rand.Int64())
					l.Restore(id, 10+int64(i%100), 0)
					if keys > 0 {
						l.Attach(id, fmt.Appendf(key[:0], "%032d", i))
					}
				}
				begin := time.Now()
				l.Promote(now, 0)
				promoted := time.Now()
				l.Expired(now, 500)
				b.ReportMetric(float64(promoted.Sub(begin).Nanoseconds()), "promote-ns")
				b.ReportMetric(float64(time.Since(promoted).Nanoseconds())/n, "prime-ns/lease")
				b.ReportMetric(float64(heap()-before)/n, "B/lease")
				runtime.KeepAlive(l)
			}
		})
	}
}

func BenchmarkRenew(b *testing.B) {
	const n = 1 << 20
	l, now := New(minTTL), time.Now()
	l.Promote(now, 0)
	for i := range n {
		if _, err := l.Grant(kv.LeaseID(i+1), 60, now); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		if _, err := l.Renew(kv.LeaseID(1+rand.IntN(n)), now); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAttach(b *testing.B) {
	for _, keys := range []int{1, 100_000} {
		b.Run(fmt.Sprintf("of=%d", keys), func(b *testing.B) {
			l := New(minTTL)
			l.Restore(1, 60, 0)
			for i := range keys {
				l.Attach(1, fmt.Appendf(nil, "/registry/events/default/%08x", uint32(i)*0x9e3779b1))
			}
			key := make([]byte, 0, 64)
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				key = fmt.Appendf(key[:0], "/registry/events/default/%08x", uint32(i%keys)*0x9e3779b1)
				l.Detach(1, key)
				l.Attach(1, key)
			}
		})
	}
}
