package watch

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"quorate/internal/kv"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

var (
	twinSeed = flag.Uint64("watch.seed", 0, "first seed of TestTwin; 0 takes a fixed one")
	twinTime = flag.Duration("watch.time", 3*time.Second, "how long TestTwin runs")
)

// TestTwin drives a hub step by step from a seed, through interleavings of everything
// that may happen to it, and holds each response against the naive twin, which knows
// what a watcher is owed by reading the whole history again.
func TestTwin(t *testing.T) {
	seed := *twinSeed
	if seed == 0 {
		seed = 1
	}
	var sum twinCounts
	runs := 0
	for end := time.Now().Add(*twinTime); time.Now().Before(end); seed++ {
		if err := runTwin(seed, 400, &sum); err != nil {
			t.Fatalf("go test -run TestTwin -watch.seed=%d: %v", seed, err)
		}
		runs++
	}
	t.Logf("%d histories: %+v", runs, sum)
	// The driver must reach every path, or it proves nothing.
	if runs > 50 {
		for name, n := range map[string]int{
			"responses": sum.Responses, "events": sum.Events, "fragments": sum.Fragments,
			"progress": sum.Progress, "progress ticks": sum.Ticks, "compacted": sum.Compacted, "canceled": sum.Canceled,
			"falls": sum.Falls, "ring evictions": sum.Rewinds, "lost batches": sum.Lost, "previous values": sum.Prev,
			"previous values compacted away": sum.NoPrev, "several revisions in a response": sum.Merged,
		} {
			if n == 0 {
				t.Errorf("the driver never got to see: %s", name)
			}
		}
	}
}

// twinCounts says what the driver has reached.
type twinCounts struct {
	Responses, Events, Fragments, Progress, Ticks, Compacted, Canceled int
	Falls, Rewinds, Lost, Prev, NoPrev, Merged                         int
}

// twinWatcher is what the test knows of a watcher: what it asked for and what it got.
type twinWatcher struct {
	Create
	id       int64
	from     int64 // the first revision it is owed
	got      int   // events, all of which were checked
	last     int64 // revision of the last one
	header   int64 // the highest revision that it was told
	partial  bool  // in the middle of fragments
	canceled bool  // the cancel was sent
	over     bool  // a cancel was answered
}

type twinStream struct {
	s        *Stream
	watchers map[int64]*twinWatcher
	asked    []*twinWatcher // created, not answered; in order
	slow     bool
}

type twin struct {
	rnd       *rand.Rand
	st        *store
	h         *Hub
	c         catchUp
	streams   []*twinStream
	published [][]kv.Event // applied and visible, not yet told to the hub
	told      int64        // the last revision that the hub was told
	counts    *twinCounts
	reading   bool // within a catch-up step, of which there is one at a time
}

var twinKeys = []string{"a", "aa", "ab", "b", "ba", "c", "\xff"}

func runTwin(seed uint64, steps int, counts *twinCounts) (err error) {
	r := rand.New(rand.NewPCG(seed, 1))
	t := &twin{rnd: r, st: newStore(), counts: counts, told: 1}
	opts := t.st.options()
	opts.FragmentBytes = 60 + r.IntN(200)
	opts.ProgressInterval = time.Hour // ticks are the driver's
	l := limits{
		watchers:      1 << 30,
		pendingEvents: 1 + r.IntN(20), pendingBytes: 100 + r.IntN(2000), dispatch: 1 + r.IntN(5),
		ring: 100 + r.IntN(1+r.IntN(3000)), frames: 1 + r.IntN(10), queueBytes: 50 + r.IntN(1000), answers: 1000,
		roomFrames: r.IntN(4), roomBytes: r.IntN(300), chunkEvents: 1 + r.IntN(10), chunkBytes: 1 + r.IntN(300),
		response: 1 + r.IntN(300),
	}
	t.h = newHub(opts, l)
	t.c = catchUp{hub: t.h}
	// Whatever may happen, may happen while the catch-up goroutine reads history.
	t.st.during = func() {
		t.reading = true
		for range r.IntN(12) {
			t.step()
		}
		t.reading = false
	}
	defer catch(&err)
	for range steps {
		t.step()
	}
	t.finish()
	counts.Falls += int(t.h.fell.Load())
	return nil
}

type twinError string

// catch turns what failf threw into an error.
func catch(err *error) {
	switch p := recover().(type) {
	case nil:
	case twinError:
		*err = errors.New(string(p))
	default:
		panic(p)
	}
}

func (t *twin) failf(format string, args ...any) {
	panic(twinError(fmt.Sprintf(format, args...)))
}

func (t *twin) step() {
	r := t.rnd
	switch r.IntN(24) {
	case 0, 1, 2, 3, 4, 5: // a change, visible at once, told to the hub later
		n := 1
		if r.IntN(4) == 0 {
			n = 1 + r.IntN(len(twinKeys))
		}
		var ops []op
		for _, i := range r.Perm(len(twinKeys))[:n] {
			o := op{key: twinKeys[i], value: string(bytes.Repeat([]byte{'v'}, r.IntN(40)))}
			if prev, ok := t.st.at([]byte(o.key), t.st.rev); r.IntN(3) == 0 && ok && !prev.Tombstone {
				o.delete = true
			}
			ops = append(ops, o)
		}
		t.published = append(t.published, t.st.apply(ops...))
	case 6, 7, 8:
		t.publish()
	case 9, 10, 11:
		t.dispatch()
	case 12, 13, 14:
		if !t.reading {
			t.c.step()
		}
	case 15:
		t.create()
	case 16, 17, 18, 19:
		if s := t.stream(); s != nil && !s.slow {
			t.read(s, 1+r.IntN(4))
		}
	case 20:
		t.control()
	case 21:
		if r.IntN(3) == 0 && t.st.rev > 2 {
			// Never beyond what there is, and never backwards.
			t.st.compact = max(t.st.compact, t.st.rev-int64(r.IntN(int(min(t.st.rev-1, 40)))))
		}
	case 22:
		if s := t.stream(); s != nil {
			s.slow = !s.slow
		}
	case 23:
		switch {
		case len(t.streams) < 4:
			t.streams = append(t.streams, &twinStream{s: t.h.Stream(), watchers: map[int64]*twinWatcher{}})
		case r.IntN(10) == 0:
			i := r.IntN(len(t.streams))
			t.streams[i].s.Close()
			t.streams = append(t.streams[:i], t.streams[i+1:]...)
		}
	}
	t.checkHub()
}

func (t *twin) stream() *twinStream {
	if len(t.streams) == 0 {
		return nil
	}
	return t.streams[t.rnd.IntN(len(t.streams))]
}

// publish tells the hub some of what the store shows.
func (t *twin) publish() {
	n := min(len(t.published), 1+t.rnd.IntN(3))
	var batch []kv.Event
	for _, evs := range t.published[:n] {
		batch = append(batch, evs...)
	}
	t.published = t.published[n:]
	if len(batch) == 0 {
		return
	}
	t.told = batch[len(batch)-1].Rev.Main
	if t.rnd.IntN(40) == 0 {
		t.h.Reload(t.told)
	} else {
		t.h.Publish(batch, t.told)
	}
	clear(batch) // the slice is not kept
	if t.h.pending.missed {
		t.counts.Lost++
	}
}

func (t *twin) dispatch() { t.h.dispatchPending() }

func (t *twin) create() {
	r, s := t.rnd, t.stream()
	if s == nil {
		return
	}
	c := Create{PrevKV: r.IntN(2) == 0, Progress: r.IntN(2) == 0, Fragment: r.IntN(3) == 0,
		NoPut: r.IntN(6) == 0, NoDelete: r.IntN(6) == 0}
	if r.IntN(8) > 0 {
		c.Key = []byte(twinKeys[r.IntN(len(twinKeys))])
	}
	switch r.IntN(4) {
	case 0:
		c.End = []byte{0}
	case 1:
		c.End = []byte(twinKeys[r.IntN(len(twinKeys))])
	}
	switch r.IntN(6) {
	case 0, 1:
	case 2:
		c.Start = t.st.revision() + int64(r.IntN(6))
	case 3:
		c.Start = -int64(r.IntN(3))
	default:
		c.Start = 1 + r.Int64N(t.st.revision())
	}
	if r.IntN(3) == 0 {
		c.ID = int64(r.IntN(4))
	}
	w := &twinWatcher{Create: c}
	s.asked = append(s.asked, w)
	s.s.Create(c)
}

func (t *twin) control() {
	s := t.stream()
	if s == nil {
		return
	}
	switch t.rnd.IntN(4) {
	case 0:
		id := int64(t.rnd.IntN(6))
		if w := s.watchers[id]; w != nil && !w.canceled {
			w.canceled = true
			s.s.Cancel(id)
		}
	case 1:
		t.h.mu.Lock()
		running := s.s.timer != nil
		t.h.mu.Unlock()
		if running {
			s.s.tick()
		}
	default:
		s.s.Progress()
	}
}

// read takes at most n responses off a stream.
func (t *twin) read(s *twinStream, n int) int {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for i := range n {
		voidBefore := s.s.gen
		parts, err := s.s.Next(ctx)
		if s.s.gen != voidBefore {
			t.counts.Rewinds++
		}
		if err == context.Canceled {
			return i
		}
		if err != nil {
			t.failf("Next: %v", err)
		}
		t.check(s, decode(parts))
	}
	return n
}

// owed is the events that w is to see, from the first on, in order.
func (t *twin) owed(w *twinWatcher) []kv.Event {
	c := w.Create
	if len(c.Key) == 0 {
		c.Key = []byte{0}
	}
	var evs []kv.Event
	for _, e := range t.st.changes {
		if e.Rev.Main >= w.from && c.Contains(e.Key) && !(e.Tombstone && c.NoDelete) && !(!e.Tombstone && c.NoPut) {
			evs = append(evs, e)
		}
	}
	return evs
}

func (t *twin) check(s *twinStream, r *pb.WatchResponse) {
	t.counts.Responses++
	if r.Header.GetClusterId() != 7 || r.Header.GetMemberId() != 8 || r.Header.GetRaftTerm() != 9 {
		t.failf("header %v", r.Header)
	}
	if r.Created {
		t.checkCreated(s, r)
		return
	}
	if r.WatchId == noWatcher {
		t.counts.Progress++
		if len(r.Events) > 0 || r.Canceled {
			t.failf("unexpected %v", r)
		}
		if len(s.watchers) == 0 {
			t.failf("progress on a stream without watchers")
		}
		for _, w := range s.watchers {
			if !w.over {
				t.checkProgress(w, r.Header.Revision)
			}
		}
		return
	}
	w := s.watchers[r.WatchId]
	if w == nil || w.over && !r.Canceled {
		t.failf("response for no watcher: %v", r)
	}
	switch {
	case r.CompactRevision != 0:
		t.counts.Compacted++
		if w.over || !r.Canceled || r.Header.Revision != 0 || len(r.Events) > 0 {
			t.failf("compacted %v", r)
		}
		if next := max(w.from, w.last+1); next >= r.CompactRevision || r.CompactRevision > t.st.compact {
			t.failf("watcher %+v: %v, compacted is %d", w, r, t.st.compact)
		}
		w.over = true
	case r.Canceled:
		t.counts.Canceled++
		if !w.canceled || r.CancelReason != "" || len(r.Events) > 0 {
			t.failf("cancel %v", r)
		}
		delete(s.watchers, r.WatchId)
	case len(r.Events) == 0:
		t.counts.Ticks++
		if !w.Progress {
			t.failf("progress for one that has not asked: %v", r)
		}
		t.checkProgress(w, r.Header.Revision)
	default:
		t.checkEvents(w, r)
	}
}

func (t *twin) checkCreated(s *twinStream, r *pb.WatchResponse) {
	if len(s.asked) == 0 {
		t.failf("created out of nothing: %v", r)
	}
	w := s.asked[0]
	s.asked = s.asked[1:]
	key := w.Key
	if len(key) == 0 {
		key = []byte{0}
	}
	want := ""
	switch {
	case w.Start < 0:
		want = reasonCompacted
	case len(w.End) > 0 && w.End[0] != 0 && bytes.Compare(key, w.End) >= 0:
		want = reasonEmptyRange
	}
	// Whether an id is taken depends on cancels that are on their way.
	if want == "" && r.CancelReason == reasonDuplicate && w.ID != 0 {
		want = reasonDuplicate
	}
	if r.CancelReason != want || r.Canceled != (want != "") {
		t.failf("create %+v: %v", w.Create, r)
	}
	if want != "" {
		if r.WatchId != noWatcher {
			t.failf("refused with id %d", r.WatchId)
		}
		return
	}
	if w.ID != 0 && r.WatchId != w.ID || s.watchers[r.WatchId] != nil {
		t.failf("create %+v got id %d", w.Create, r.WatchId)
	}
	w.id = r.WatchId
	s.watchers[w.id] = w
	w.from = w.Start
	if w.Start == 0 {
		w.from = r.Header.Revision + 1
		w.header = r.Header.Revision
	}
}

func (t *twin) checkProgress(w *twinWatcher, rev int64) {
	if rev < w.Start || rev < w.header || rev > t.st.rev {
		t.failf("watcher %+v told progress %d", w, rev)
	}
	if owed := t.owed(w); w.got < len(owed) && owed[w.got].Rev.Main <= rev {
		t.failf("watcher %+v told progress %d ahead of event %v", w, rev, owed[w.got].Rev)
	}
	w.header = rev
}

func (t *twin) checkEvents(w *twinWatcher, r *pb.WatchResponse) {
	owed := t.owed(w)
	if w.got+len(r.Events) > len(owed) {
		t.failf("watcher %+v got too much: %v", w, r)
	}
	for i, ev := range r.Events {
		want := &owed[w.got+i]
		k, err := wire.DecodeKeyValue(want.KV)
		if err != nil {
			t.failf("%v", err)
		}
		wantKV := &mvccpb.KeyValue{Key: k.Key, CreateRevision: k.Create, ModRevision: want.Rev.Main, Version: k.Version, Value: k.Value}
		if !proto.Equal(ev.Kv, wantKV) || (ev.Type == mvccpb.Event_DELETE) != want.Tombstone {
			t.failf("watcher %+v: event %v, want %v %v", w, ev, want.Rev, wantKV)
		}
		t.checkPrev(w, ev, want)
	}
	t.counts.Events += len(r.Events)
	first, last := owed[w.got], owed[w.got+len(r.Events)-1]
	if first.Rev.Main < last.Rev.Main {
		t.counts.Merged++
	}
	w.got += len(r.Events)
	w.last = last.Rev.Main
	if r.Header.Revision < max(w.last, w.header) || r.Header.Revision > t.st.rev {
		t.failf("watcher %+v: header revision %d, last event %d", w, r.Header.Revision, w.last)
	}
	if !r.Fragment && w.got < len(owed) && owed[w.got].Rev.Main <= r.Header.Revision {
		t.failf("watcher %+v: header revision %d ahead of event %v", w, r.Header.Revision, owed[w.got].Rev)
	}
	w.header = r.Header.Revision
	if r.Fragment {
		t.counts.Fragments++
	}
	if r.Fragment && !w.Fragment {
		t.failf("fragment for one that does not want it")
	}
	w.partial = r.Fragment
	if !r.Fragment && w.got < len(owed) && owed[w.got].Rev.Main == w.last {
		t.failf("watcher %+v: revision %d is split", w, w.last)
	}
	if n := proto.Size(r); w.Fragment && len(r.Events) > 1 && n >= t.h.opts.FragmentBytes {
		t.failf("fragment of %d bytes, bound %d", n, t.h.opts.FragmentBytes)
	}
}

func (t *twin) checkPrev(w *twinWatcher, ev *mvccpb.Event, want *kv.Event) {
	rec, ok := t.st.at(want.Key, want.Rev.Main-1)
	ok = ok && !rec.Tombstone && w.PrevKV
	switch {
	case ev.PrevKv == nil && !ok:
	case ev.PrevKv == nil && want.Rev.Main-1 < t.st.compact:
		t.counts.NoPrev++
	case ev.PrevKv == nil || !ok:
		t.failf("watcher %+v: previous value of %v is %v", w, want.Rev, ev.PrevKv)
	default:
		t.counts.Prev++
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(ev.PrevKv)
		if err != nil || !bytes.Equal(b, rec.KV) {
			t.failf("watcher %+v: previous value of %v is %v", w, want.Rev, ev.PrevKv)
		}
	}
}

// checkHub checks what must hold of the hub between any two steps.
func (t *twin) checkHub() {
	h := t.h
	nlive, nbehind, n := 0, 0, 0
	for s := range h.streams {
		for _, w := range s.watchers {
			n++
			switch w.state {
			case live:
				nlive++
				if w.group.live[w.slot] != w {
					t.failf("slot of a live watcher")
				}
			case behind:
				nbehind++
				if s.behind[w.slot] != w {
					t.failf("slot of a watcher behind")
				}
			case detached:
				t.failf("detached watcher")
			}
		}
		if int(s.lagging.Load()) != len(s.behind) {
			t.failf("lagging %d, behind %d", s.lagging.Load(), len(s.behind))
		}
		if len(s.behind) > 0 && s.hasRoom() && !s.hungry {
			t.failf("a stream with room is not fed")
		}
		if max := h.limits.frames + len(s.watchers) + h.limits.answers; s.queue.len() > max {
			t.failf("queue of %d, bound %d", s.queue.len(), max)
		}
	}
	if nlive != h.pending.live || nbehind != h.behind || n != h.watchers.size {
		t.failf("live %d of %d, behind %d of %d, all %d of %d", h.pending.live, nlive, h.behind, nbehind, h.watchers.size, n)
	}
	bytes := 0
	for b := h.ring.oldest; b != nil; b = b.newer {
		bytes += b.bytes
	}
	if bytes != h.ring.bytes {
		t.failf("ring of %d bytes counts %d", bytes, h.ring.bytes)
	}
	if t.st.views != 0 && !t.reading {
		t.failf("%d views not released", t.st.views)
	}
}

// finish lets everything come to rest, and checks that everybody got all that is owed.
func (t *twin) finish() {
	t.st.during = nil
	for len(t.published) > 0 {
		t.publish()
	}
	for busy := true; busy; {
		busy = t.h.dispatchPending()
		busy = t.c.step() || busy
		for _, s := range t.streams {
			busy = t.read(s, 100) > 0 || busy
		}
		t.checkHub()
	}
	for _, s := range t.streams {
		if len(s.asked) > 0 {
			t.failf("%d creates without answer", len(s.asked))
		}
		for _, w := range s.watchers {
			if owed := t.owed(w); !w.over && w.got != len(owed) {
				t.failf("watcher %+v got %d of %d events", w, w.got, len(owed))
			}
			if w.partial {
				t.failf("watcher %+v waits for a fragment", w)
			}
			if !w.over && s.s.watchers[w.id].state != live {
				t.failf("watcher %+v is not live", w)
			}
		}
		// At rest, progress is answered for the newest revision.
		open, future := 0, false
		for _, w := range s.watchers {
			if w.over {
				future = true
			}
			open++
			future = future || w.Start > t.st.rev
		}
		before := t.counts.Progress
		s.s.Progress()
		t.read(s, 10)
		if got := t.counts.Progress - before; (got == 1) != (open > 0 && !future) {
			t.failf("%d answers to a progress request at rest, %d watchers", got, open)
		}
	}
	if t.h.ring.bytes != 0 || t.h.queued.Load() != 0 {
		t.failf("%d bytes and %d events in queues that are empty", t.h.ring.bytes, t.h.queued.Load())
	}
	t.h.Close()
	if len(t.h.streams) > 0 || t.h.watchers.size > 0 || t.h.watchers.spans != nil || t.h.watchers.keys != nil {
		t.failf("something outlives the hub")
	}
}
