package sim

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"quorate/internal/kv"
	"quorate/internal/watch"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// watcher is a client that watches, through one member at a time, and goes on elsewhere
// where it left off.
type watcher struct {
	w    *world
	i    int
	span kv.Span
	next int64 // revision that it wants
	last int64 // revision of the last event
	told int64 // up to where it was told that it has got everything
	pos  int   // in the checker's changes
	on   *member
	end  context.CancelFunc
	live func() bool // the run of the member that it is at
	ask  func()      // for progress, there

	mu  sync.Mutex
	got []*pb.WatchResponse
}

func newWatcher(w *world, i int) *watcher {
	l := &watcher{w: w, i: i, next: 2, span: kv.Span{Key: []byte("k"), End: []byte("m")}}
	if w.rnd.IntN(3) == 0 {
		l.span = kv.Span{Key: []byte("k0")}
	}
	w.later(w.between(0, w.plan.active/2), l.open)
	return l
}

func (l *watcher) stop() {
	if l.end != nil {
		l.end()
	}
}

// open starts to watch at some member.
func (l *watcher) open() {
	w := l.w
	m := w.members[w.rnd.IntN(len(w.members))]
	if m.n == nil {
		w.later(w.between(0, w.plan.tick), l.open)
		return
	}
	w.note("watch", uint64(l.i), uint64(m.i), uint64(l.next))
	ctx, cancel := context.WithCancel(context.Background())
	l.end, l.live, l.on = cancel, m.alive(), m
	s := m.n.Watch().Stream()
	s.Create(watch.Create{Span: l.span, Start: l.next})
	l.told, l.ask = 0, s.Progress
	go func() {
		defer s.Close()
		for {
			parts, err := s.Next(ctx)
			if err != nil {
				return
			}
			r := &pb.WatchResponse{}
			if err := proto.Unmarshal(bytes.Join(parts, nil), r); err != nil {
				r = &pb.WatchResponse{Canceled: true, CancelReason: err.Error()}
			}
			l.mu.Lock()
			l.got = append(l.got, r)
			l.mu.Unlock()
		}
	}()
}

// poll looks at what has come.
func (l *watcher) poll() {
	if l.live == nil {
		return
	}
	w := l.w
	l.mu.Lock()
	got := w.plan.plant.delivered(l.got)
	l.got = nil
	l.mu.Unlock()
	if !l.live() {
		l.reopen() // what came last may have been lost with the connection
		return
	}
	if len(got) > 0 {
		w.check.learn(l.on)
	}
	for _, r := range got {
		switch {
		case r.Canceled && r.CompactRevision > l.next:
			w.note("compacted", uint64(l.i), uint64(r.CompactRevision))
			l.next = r.CompactRevision
			l.seek()
			l.reopen()
			return
		case r.Canceled:
			w.fail("watcher %d was canceled at revision %d: %q, compacted %d", l.i, l.next, r.CancelReason, r.CompactRevision)
			return
		}
		for _, e := range r.Events {
			l.take(e)
		}
		if len(r.Events) == 0 && !r.Created {
			l.progress(r.Header.Revision)
		}
	}
	switch {
	case w.calm:
	case w.rnd.IntN(2000) == 0:
		l.reopen()
	case w.rnd.IntN(100) == 0:
		l.askProgress()
	}
}

// unaware reports whether the watcher may be told that it has got more than it knows. One
// that starts after the last revision is told nothing.
func (l *watcher) unaware() bool { return l.told < l.w.check.rev && l.next <= l.w.check.rev }

// askProgress asks the member up to which revision the watcher has got everything.
func (l *watcher) askProgress() {
	if l.live != nil {
		l.w.later(0, func() { go l.ask() }) // by itself, in no race with what happens now
	}
}

// progress compares the answer with the changes that the watcher has to see.
func (l *watcher) progress(rev int64) {
	l.w.note("progress", uint64(l.i), uint64(rev))
	if want := l.expected(); want != nil && want.rev <= rev {
		l.w.fail("watcher %d was told that it has got everything up to %d, and lacks %+v", l.i, rev, *want)
	}
	if rev < l.told {
		l.w.fail("watcher %d was told of progress to %d after %d", l.i, rev, l.told)
	}
	l.told = rev
}

func (l *watcher) reopen() {
	l.end()
	l.live = nil
	// All events of a revision come in one response.
	if l.last >= l.next {
		l.next = l.last + 1
		l.seek()
	}
	l.w.later(l.w.between(0, l.w.plan.tick), l.open)
}

// seek goes to the first change that the watcher is to see.
func (l *watcher) seek() {
	l.pos, _ = slices.BinarySearchFunc(l.w.check.changes, l.next, func(c change, rev int64) int {
		if c.rev < rev {
			return -1
		}
		return 1
	})
}

// expected is the next change that the watcher has to see, nil if it has seen all.
func (l *watcher) expected() *change {
	changes := l.w.check.changes
	for ; l.pos < len(changes); l.pos++ {
		if c := &changes[l.pos]; c.rev >= l.next && l.span.Contains([]byte(c.key)) {
			return c
		}
	}
	return nil
}

func (l *watcher) caughtUp() bool { return l.live != nil && l.expected() == nil }

// take compares an event with the change that it has to be.
func (l *watcher) take(e *mvccpb.Event) {
	w := l.w
	got := change{rev: e.Kv.ModRevision, key: string(e.Kv.Key), value: string(e.Kv.Value), deleted: e.Type == mvccpb.Event_DELETE}
	w.note("event", uint64(l.i), uint64(got.rev))
	want := l.expected()
	if want == nil || *want != got {
		w.fail("watcher %d got %+v, want %+v", l.i, got, want)
		return
	}
	if got.rev <= l.told {
		w.fail("watcher %d got %+v after it was told that it has got everything up to %d", l.i, got, l.told)
	}
	l.pos++
	l.last = got.rev
}
