package rpc

import (
	"context"
	"slices"
	"sync"

	"quorate/internal/kv"
	"quorate/internal/mvcc"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// lineWatches are the lines in which somebody waits on this member, by the key that they begin
// with. The zero value is ready.
type lineWatches struct {
	sync.Mutex
	byLine map[string]*lineWatch
}

// lineWatch watches a line for all who wait in it on this member, and wakes whoever has the
// turn, or has lost the place. A change of the line is looked at once, however many wait.
//
// The first who waits starts its goroutine, the last who leaves ends it.
type lineWatch struct {
	*services
	users  int // guarded by lineWatches
	cancel context.CancelFunc
	done   chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex
	front   front
	loaded  bool // front shows the line
	waiting map[string][]*waiter
	err     error // that ended it; whoever comes now gets it
}

// waiter is a call that waits for the turn of its place.
type waiter struct {
	*place
	woken chan error // nil: it is the place's turn; has room for the one that is sent
}

// await returns nil once it is or was the place's turn; errPlaceLost if the turn never
// comes; else why ctx has ended, or kv.ErrStopped.
func (p *place) await(ctx context.Context) error {
	w := &waiter{place: p, woken: make(chan error, 1)}
	l := p.watchLine(w)
	defer p.leaveLine(l, w)
	select {
	case err := <-w.woken:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// watchLine has somebody watch the line for w, until leaveLine.
func (s *services) watchLine(w *waiter) *lineWatch {
	s.lineWatches.Lock()
	l := s.lineWatches.byLine[string(w.line.Key)]
	if l == nil {
		ctx, cancel := context.WithCancel(context.Background())
		l = &lineWatch{
			services: s, cancel: cancel, done: make(chan struct{}),
			front: front{line: w.line, limit: defaultFrontLimit}, waiting: make(map[string][]*waiter),
		}
		if s.lineWatches.byLine == nil {
			s.lineWatches.byLine = make(map[string]*lineWatch)
		}
		s.lineWatches.byLine[string(w.line.Key)] = l
		go l.run(ctx)
	}
	l.users++
	s.lineWatches.Unlock()

	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		w.woken <- l.err
		return l
	}
	l.waiting[string(w.key)] = append(l.waiting[string(w.key)], w)
	// What it saw of the line before w came, it does not see again. A view of now holds
	// all of that.
	v := l.View()
	defer v.Release()
	l.loseGone(v, string(w.key))
	l.wakeFirst()
	return l
}

// leaveLine ends what watchLine began. Who leaves last waits for the goroutine's end.
func (s *services) leaveLine(l *lineWatch, w *waiter) {
	l.mu.Lock()
	l.keep(string(w.key), func(o *waiter) bool { return o != w })
	l.mu.Unlock()

	s.lineWatches.Lock()
	l.users--
	last := l.users == 0
	if last {
		delete(s.lineWatches.byLine, string(w.line.Key))
	}
	s.lineWatches.Unlock()
	if last {
		l.cancel()
		<-l.done
	}
}

// lineFront is the front of a line as those who wait in it on this member know it, an empty
// one if nobody does. A View that is taken afterwards is not older.
func (s *services) lineFront(line kv.Span) front {
	f := front{line: line, limit: defaultFrontLimit}
	s.lineWatches.Lock()
	l := s.lineWatches.byLine[string(line.Key)]
	s.lineWatches.Unlock()
	if l != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		f = l.front
		f.first = slices.Clone(f.first)
	}
	return f
}

// keep leaves only those with key waiting whom ok says yes to.
func (l *lineWatch) keep(key string, ok func(*waiter) bool) {
	ws := l.waiting[key]
	if len(ws) == 0 {
		return
	}
	ws = slices.DeleteFunc(ws, func(w *waiter) bool { return !ok(w) })
	if l.waiting[key] = ws; len(ws) == 0 {
		delete(l.waiting, key)
	}
}

// run is the goroutine.
func (l *lineWatch) run(ctx context.Context) {
	defer close(l.done)
	for {
		err := l.reload()
		if err == nil {
			err = l.follow(ctx)
		}
		if err != nil {
			l.end(err)
			return
		}
	}
}

// end wakes all with err.
func (l *lineWatch) end(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = err
	for _, ws := range l.waiting {
		for _, w := range ws {
			w.woken <- err
		}
	}
	clear(l.waiting)
}

// reload reads the line anew: what has changed since it was last seen is not known.
func (l *lineWatch) reload() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := l.View()
	defer v.Release()
	if err := l.front.load(v, 0); err != nil {
		return err
	}
	l.loaded = true
	for key := range l.waiting {
		l.loseGone(v, key)
	}
	l.wakeFirst()
	return nil
}

// readOn has the front read again when those whom it held have gone. Called with mu held.
// The changes up to then are still to come: who has lost the place hears of it then.
func (l *lineWatch) readOn() error {
	v := l.View()
	defer v.Release()
	return l.front.load(v, 0)
}

// follow goes along with the line's changes until ctx ends; it returns nil if the line has
// to be read again, because the changes that come next were compacted.
func (l *lineWatch) follow(ctx context.Context) error {
	w := l.watchKeys(l.front.line, l.front.rev+1)
	defer w.Close()
	for {
		r, err := w.next(ctx)
		if err != nil || r.Canceled {
			return err
		}
		if err := l.changed(r.Events); err != nil {
			return err
		}
	}
}

// changed takes in what changed in the line, in whole revisions.
func (l *lineWatch) changed(events []*mvccpb.Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range events {
		l.front.change(e)
		if e.Type == mvccpb.Event_DELETE {
			l.lose(string(e.Kv.Key), e.Kv.ModRevision)
		}
	}
	l.front.rev = max(l.front.rev, events[len(events)-1].Kv.ModRevision)
	if l.front.unknown() {
		if err := l.readOn(); err != nil {
			return err
		}
	}
	l.wakeFirst()
	return nil
}

// wakeFirst wakes those whose turn it is: whose key was created first. It may be more than
// one key if a transaction created several.
func (l *lineWatch) wakeFirst() {
	if !l.loaded || len(l.front.first) == 0 {
		return
	}
	created := l.front.first[0].created
	for _, s := range l.front.first {
		if s.created != created {
			return
		}
		l.wake(s.key, nil, func(w *waiter) bool { return w.rev == created })
	}
	if l.front.whole {
		return
	}
	// There was no room for all: others of that transaction may stand behind. Who does not
	// any more hears of it by the change that is still to come.
	v := l.View()
	defer v.Release()
	for key := range l.waiting {
		l.wake(key, nil, func(w *waiter) bool { return w.rev == created && createdAs(v, w.key) == created })
	}
}

// loseGone tells those with key who have lost their place in v, which shows all that was
// there when they entered.
func (l *lineWatch) loseGone(v *mvcc.View, key string) {
	created := createdAs(v, []byte(key))
	l.wake(key, errPlaceLost, func(w *waiter) bool { return w.rev != created && w.rev <= v.Rev() })
}

// lose tells those with key that it was deleted at rev.
func (l *lineWatch) lose(key string, rev int64) {
	l.wake(key, errPlaceLost, func(w *waiter) bool { return w.rev < rev })
}

// wake ends the waiting of those with key whom which says yes to.
func (l *lineWatch) wake(key string, err error, which func(*waiter) bool) {
	l.keep(key, func(w *waiter) bool {
		if !which(w) {
			return true
		}
		w.woken <- err
		return false
	})
}
