package watch

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"quorate/internal/kv"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// bench is a store with a hub on it, for tests that read like a conversation.
type bench struct {
	t  testing.TB
	st *store
	h  *Hub
}

// start makes a bench whose goroutines run until the test ends. It returns it with one
// stream.
func start(t testing.TB, l limits) (*bench, *Stream) {
	b := &bench{t: t, st: newStore()}
	b.h = newHub(b.st.options(), l)
	b.h.run()
	t.Cleanup(b.h.Close)
	return b, b.h.Stream()
}

func (b *bench) put(keys ...string) {
	var ops []op
	for _, k := range keys {
		ops = append(ops, op{key: k, value: "v"})
	}
	evs := b.st.apply(ops...)
	b.h.Publish(evs, b.st.revision())
}

func (b *bench) delete(key string) {
	b.h.Publish(b.st.apply(op{key: key, delete: true}), b.st.revision())
}

// next is the next response, in one line.
func (b *bench) next(s *Stream) string {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 10*time.Second)
	defer cancel()
	parts, err := s.Next(ctx)
	if err != nil {
		b.t.Fatalf("Next: %v", err)
	}
	return line(decode(parts))
}

func (b *bench) want(s *Stream, lines ...string) {
	b.t.Helper()
	for _, want := range lines {
		if got := b.next(s); got != want {
			b.t.Fatalf("got  %s\nwant %s", got, want)
		}
	}
}

// silent checks that there is no response.
func (b *bench) silent(s *Stream) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 20*time.Millisecond)
	defer cancel()
	if parts, err := s.Next(ctx); err == nil {
		b.t.Fatalf("got  %s\nwant silence", line(decode(parts)))
	}
}

func line(r *pb.WatchResponse) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d@%d", r.WatchId, r.Header.Revision)
	if r.Created {
		b.WriteString(" created")
	}
	if r.Canceled {
		b.WriteString(" canceled")
	}
	if r.CompactRevision != 0 {
		fmt.Fprintf(&b, " compacted %d", r.CompactRevision)
	}
	if r.CancelReason != "" {
		fmt.Fprintf(&b, " because %s", r.CancelReason)
	}
	if r.Fragment {
		b.WriteString(" fragment")
	}
	for _, e := range r.Events {
		fmt.Fprintf(&b, " %s %s=%s c%d m%d v%d", e.Type, e.Kv.Key, e.Kv.Value, e.Kv.CreateRevision, e.Kv.ModRevision, e.Kv.Version)
		if e.PrevKv != nil {
			fmt.Fprintf(&b, " (m%d)", e.PrevKv.ModRevision)
		}
	}
	return b.String()
}

func create(key, end string, start int64) Create {
	return Create{Span: kv.Span{Key: []byte(key), End: []byte(end)}, Start: start}
}

func TestResponses(t *testing.T) {
	b, s := start(t, defaultLimits)
	s.Create(create("a", "", 0))
	b.want(s, "0@1 created")
	b.put("a")
	b.want(s, "0@2 PUT a=v c2 m2 v1")
	b.put("b")
	b.delete("a")
	b.want(s, "0@4 DELETE a= c0 m4 v0")

	// From history.
	c := create("a", "\x00", 1)
	c.PrevKV = true
	s.Create(c)
	b.want(s, "1@4 created", "1@4 PUT a=v c2 m2 v1 PUT b=v c3 m3 v1 DELETE a= c0 m4 v0 (m2)")
	c = create("", "\x00", 1)
	c.NoPut = true
	s.Create(c)
	b.want(s, "2@4 created", "2@4 DELETE a= c0 m4 v0")

	c = create("a", "", 2)
	c.NoDelete, c.ID = true, 77
	s.Create(c)
	b.want(s, "77@4 created", "77@4 PUT a=v c2 m2 v1")
	s.Cancel(77)
	b.want(s, "77@4 canceled")

	// Refused.
	s.Create(create("b", "a", 0))
	s.Create(create("b", "b", 0))
	s.Create(create("b", "", -1))
	c = create("b", "", 0)
	c.ID = 1
	s.Create(c)
	s.Refuse("no")
	b.want(s,
		"-1@4 created canceled because mvcc: watcher range is empty",
		"-1@4 created canceled because mvcc: watcher range is empty",
		"-1@4 created canceled because etcdserver: mvcc: required revision has been compacted",
		"-1@4 created canceled because mvcc: duplicate watch ID provided on the WatchStream",
		"-1@4 created canceled because no")

	// An id of the client's, and the stream's pick next to it.
	c.ID = 3
	s.Create(c)
	c.ID = 0
	s.Create(c)
	b.want(s, "3@4 created", "4@4 created")

	// Progress, cancel, silence.
	s.Progress()
	b.want(s, "-1@4")
	s.Cancel(99)
	for _, id := range []int64{1, 2, 3, 4} {
		s.Cancel(id)
	}
	s.Cancel(3)
	b.want(s, "1@4 canceled", "2@4 canceled", "3@4 canceled", "4@4 canceled")
	b.put("b")
	b.silent(s)
	s.Cancel(0)
	b.want(s, "0@5 canceled")
	s.Progress()
	b.silent(s)

	// In the future: neither older events nor progress.
	s.Create(create("a", "", 8))
	b.want(s, "5@5 created")
	s.Progress()
	b.put("a")
	b.put("a")
	s.Progress()
	b.silent(s)
	b.put("a")
	b.want(s, "5@8 PUT a=v c6 m8 v3")
	s.Progress()
	b.want(s, "-1@8")

	// Compacted: equal is fine, and the id is kept until it is canceled.
	b.st.compact = 6
	s.Create(create("a", "", 5))
	b.want(s, "6@8 created", "6@0 canceled compacted 6")
	c = create("a", "", 6)
	c.PrevKV = true
	s.Create(c)
	b.want(s, "7@8 created", "7@8 PUT a=v c6 m6 v1 PUT a=v c6 m7 v2 (m6) PUT a=v c6 m8 v3 (m7)")
	c.ID = 6
	s.Create(c)
	b.want(s, "-1@8 created canceled because mvcc: duplicate watch ID provided on the WatchStream")
	s.Progress()
	b.silent(s)
	s.Cancel(6)
	s.Progress()
	b.want(s, "6@8 canceled", "-1@8")
}

func TestOneRevisionOneResponse(t *testing.T) {
	l := defaultLimits
	l.response = 1
	b, s := start(t, l)
	s.Create(create("a", "z", 0))
	b.want(s, "0@1 created")
	b.put("a", "b", "c")
	b.put("d")
	b.want(s, "0@2 PUT a=v c2 m2 v1 PUT b=v c2 m2 v1 PUT c=v c2 m2 v1", "0@3 PUT d=v c3 m3 v1")
}

// TestProgressTicks checks the timer: who got an event since the last tick is left out.
func TestProgressTicks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, s := start(t, defaultLimits)
		interval := b.h.opts.ProgressInterval
		c := create("a", "", 0)
		c.Progress = true
		s.Create(c)
		c = create("b", "", 7)
		c.Progress = true
		s.Create(c)
		s.Create(create("c", "", 0))
		b.want(s, "0@1 created", "1@1 created", "2@1 created")
		began := time.Now()
		b.want(s, "0@1")
		if d := time.Since(began); d < interval || d > interval+interval/10 {
			t.Errorf("told after %v, want %v and at most a tenth more", d, interval)
		}
		b.put("a")
		b.want(s, "0@2 PUT a=v c2 m2 v1")
		began = time.Now()
		b.want(s, "0@2")
		if d := time.Since(began); d < 2*interval-interval/5 {
			t.Errorf("told after %v, although there was an event", d)
		}
		// Nobody wants it any more: the timer ends.
		s.Cancel(0)
		s.Cancel(1)
		b.want(s, "0@2 canceled", "1@2 canceled")
		time.Sleep(3 * interval)
		b.h.mu.Lock()
		if s.timer != nil {
			t.Error("the timer goes on for nobody")
		}
		b.h.mu.Unlock()
		// And begins again.
		c.Start = 0
		s.Create(c)
		b.want(s, "3@2 created", "3@2")
	})
}

// TestProgressNotAhead: what is visible but not dispatched yet is not promised.
func TestProgressNotAhead(t *testing.T) {
	st := newStore()
	h := newHub(st.options(), defaultLimits)
	defer h.Close()
	b := &bench{t: t, st: st, h: h}
	s := h.Stream()
	s.Create(create("a", "", 0))
	b.want(s, "0@1 created")
	first := st.apply(op{key: "a", value: "v"})
	second := st.apply(op{key: "b", value: "v"})
	s.Progress()
	s.Progress()
	h.Publish(first, 2)
	b.silent(s)
	h.dispatchPending()
	b.want(s, "0@2 PUT a=v c2 m2 v1")
	b.silent(s)
	h.Publish(second, 3)
	h.dispatchPending()
	b.want(s, "-1@3")
	b.silent(s)
}

// TestNeverReading bounds what a stream costs whose client never reads, and checks that
// others do not notice, and that nothing is lost to it.
func TestNeverReading(t *testing.T) {
	l := defaultLimits
	l.ring, l.frames, l.queueBytes = 64<<10, 32, 16<<10
	b, slow := start(t, l)
	slow.Create(create("", "\x00", 0))
	b.want(slow, "0@1 created")
	quick := b.h.Stream()
	quick.Create(create("", "\x00", 0))
	b.want(quick, "0@1 created")
	const n = 3000
	for i := range n {
		b.put(fmt.Sprintf("key-%040d", i))
		if got := b.next(quick); !strings.HasPrefix(got, fmt.Sprintf("0@%d PUT", i+2)) {
			t.Fatalf("event %d: %s", i, got)
		}
		if s := b.h.Stats(); s.Bytes > l.ring {
			t.Fatalf("%+v, bound %d", s, l.ring)
		}
		slow.mu.Lock()
		if slow.queue.len() > l.frames || slow.bytes > l.queueBytes+1000 {
			t.Fatalf("queue of %d, %d bytes", slow.queue.len(), slow.bytes)
		}
		slow.mu.Unlock()
	}
	if s := b.h.Stats(); s.Behind != 1 || s.Fell != 1 {
		t.Fatalf("%+v, want one behind", s)
	}
	for got := 0; got < n; {
		parts, err := slow.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range decode(parts).Events {
			if want := fmt.Sprintf("key-%040d", got); string(ev.Kv.Key) != want {
				t.Fatalf("got %s, want %s", ev.Kv.Key, want)
			}
			got++
		}
	}
}

// TestUnreadAnswers: a client that asks and never reads waits, until it reads or goes.
func TestUnreadAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := defaultLimits
		l.answers = 3
		b, s := start(t, l)
		asked := 0
		go func() {
			for range 10 {
				s.Create(create("a", "", 0))
				asked++
			}
		}()
		synctest.Wait()
		if asked != 3 {
			t.Fatalf("%d asked, want 3", asked)
		}
		b.want(s, "0@1 created")
		synctest.Wait()
		if asked != 4 {
			t.Fatalf("%d asked, want 4", asked)
		}
		s.Close()
		synctest.Wait()
		if asked != 10 {
			t.Fatalf("%d asked on a closed stream, want 10", asked)
		}
	})
}

// TestReload: after a snapshot, live watchers get from history what no batch brought.
func TestReload(t *testing.T) {
	b, s := start(t, defaultLimits)
	s.Create(create("a", "", 0))
	s.Create(create("a", "", 4))
	b.want(s, "0@1 created", "1@1 created")
	b.st.apply(op{key: "a", value: "v"})
	b.st.apply(op{key: "a", value: "v"})
	b.h.Reload(3)
	b.want(s, "0@3 PUT a=v c2 m2 v1 PUT a=v c2 m3 v2")
	b.put("a")
	got := map[string]bool{b.next(s): true, b.next(s): true}
	if !got["0@4 PUT a=v c2 m4 v3"] || !got["1@4 PUT a=v c2 m4 v3"] {
		t.Fatal(got)
	}
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b, s := start(t, defaultLimits)
		other := b.h.Stream()
		ended := make(chan error, 2)
		for _, s := range []*Stream{s, other} {
			go func() {
				_, err := s.Next(context.Background())
				ended <- err
			}()
		}
		synctest.Wait()
		s.Close()
		if err := <-ended; err != kv.ErrStopped {
			t.Errorf("Next on a stream that is closed: %v", err)
		}
		b.h.Close()
		if err := <-ended; err != kv.ErrStopped {
			t.Errorf("Next on a hub that is closed: %v", err)
		}
		late := b.h.Stream()
		late.Create(create("a", "", 0))
		late.Progress()
		late.Cancel(0)
		late.Refuse("no")
		if _, err := late.Next(t.Context()); err != kv.ErrStopped {
			t.Errorf("Next on a stream of a closed hub: %v", err)
		}
		b.put("a")
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := b.h.Stream().Next(ctx); err != kv.ErrStopped {
			t.Errorf("Next: %v", err)
		}
	})
	b, s := start(t, defaultLimits)
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("cause"))
	if _, err := s.Next(ctx); err != context.Canceled {
		t.Errorf("Next with a canceled context: %v", err)
	}
	_ = b
}

// TestSharedHistory: two thousand watchers that come back at neighbouring revisions read
// history once, for all together.
func TestSharedHistory(t *testing.T) {
	st := newStore()
	const changes, streams, each = 2000, 40, 50
	for i := range changes {
		st.apply(op{key: fmt.Sprint("k", i%each), value: "v"})
	}
	l := defaultLimits
	l.chunkEvents = 100
	h := newHub(st.options(), l)
	defer h.Close()
	for i := range streams {
		s := h.Stream()
		for j := range each {
			s.Create(create(fmt.Sprint("k", j), "", 2+int64(i)))
			if _, err := s.Next(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	c := catchUp{hub: h}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for c.step() {
		for s := range h.streams {
			for {
				if _, err := s.Next(ctx); err != nil {
					break
				}
			}
		}
	}
	if s := h.Stats(); s.Behind != 0 || s.Events < streams*(changes-streams) {
		t.Fatalf("%+v", s)
	}
	if st.reads > 2*changes {
		t.Fatalf("%d changes read for %d watchers, history has %d", st.reads, streams*each, changes)
	}
}

// TestMemory bounds what idle streams and watchers cost.
func TestMemory(t *testing.T) {
	st := newStore()
	h := newHub(st.options(), defaultLimits)
	defer h.Close()
	const n = 20000
	before := heap()
	for i := range n {
		s := h.Stream()
		s.Create(create(fmt.Sprintf("/registry/leases/kube-node-lease/node-%05d", i), "", 0))
		if _, err := s.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	perStream := (heap() - before) / n
	s := h.Stream()
	before = heap()
	for i := range n {
		s.Create(create(fmt.Sprintf("/registry/pods/default/pod-%06d", i), "", 0))
		if _, err := s.Next(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	perWatcher := (heap() - before) / n
	t.Logf("%d bytes a stream with a watcher, %d bytes a watcher more", perStream, perWatcher)
	if perStream > 1500 || perWatcher > 600 {
		t.Error("more than was promised")
	}
	runtime.KeepAlive(h)
}

func heap() int {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// TestWatchersAreBounded: spans are charged while they are watched, however many watch them.
func TestWatchersAreBounded(t *testing.T) {
	l := defaultLimits
	l.watchers = 10 << 10
	b, s := start(t, l)
	huge := kv.Span{Key: []byte(strings.Repeat("k", 5000))}
	for range 2 {
		s.Create(Create{Span: huge})
	}
	s.Create(Create{Span: kv.Span{Key: []byte("k")}})
	s.Create(Create{Span: kv.Span{Key: []byte("own")}, Own: true})
	s.Cancel(1)
	s.Create(Create{Span: kv.Span{Key: []byte("k")}})
	for _, want := range []string{"created 0", "created 1", "refused", "created 2", "canceled 1", "created 3"} {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		parts, err := s.Next(ctx)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		r := decode(parts)
		var got string
		switch {
		case r.Created && r.Canceled && r.CancelReason == reasonFull:
			got = "refused"
		case r.Created:
			got = fmt.Sprintf("created %d", r.WatchId)
		case r.Canceled:
			got = fmt.Sprintf("canceled %d", r.WatchId)
		}
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	s.Close()
	b.h.mu.Lock()
	defer b.h.mu.Unlock()
	if left := b.h.watchers.bytes; left != 0 {
		t.Errorf("%d bytes are charged for no watchers", left)
	}
}
