package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"time"

	"quorate/internal/vfs"
)

// preparer writes zeros ahead of the appends: first to the end of the tail, then into the
// segment that will come after it. So an append only ever overwrites what has its place
// on disk: its sync touches no metadata, and it never finds the disk full.
//
// The goroutine of run does all that. It and the log writer never write to the same
// part of a file: the one writes at filled and above, the other below. Each has the file
// open for itself: a system tells a failure to write data back once to each open file, to
// whoever syncs first, and one that concerns a record must not be taken for the zeros'.
type preparer struct {
	fs      vfs.FS
	dir     string
	bytes   int64 // of a segment
	onFull  func(error)
	stop    chan struct{}
	stopped chan struct{}
	wake    chan struct{} // capacity 1

	mu   sync.Mutex
	cond *sync.Cond // what is below has changed
	tail space
	next space      // f is nil while there is none
	old  []vfs.File // zeros of tails gone by
	used int64      // of the tail, by records
	// waiting is the space without more of which an append cannot go on, nil if none.
	waiting *space
	closed  bool  // nobody may wait any more
	err     error // why nothing can be prepared now; it is tried again
}

// space is a file of which the first filled bytes have their place on disk.
type space struct {
	f      vfs.File // for records; it holds the lock
	zeros  vfs.File // the same file, for run alone
	filled int64
	target int64 // up to where it is to be filled
	failed bool  // a fill has failed, since when f has not been synced
}

const (
	fillBytes  = 256 << 10            // written and synced at a time
	fillPause  = 3 * time.Millisecond // between that, when there is no hurry
	fillAhead  = 4 << 20              // of the tail's records, in any case
	retryPause = time.Second
)

func newPreparer(fsys vfs.FS, dir string, bytes int64, tail space, used int64, onFull func(error)) *preparer {
	p := &preparer{
		fs: fsys, dir: dir, bytes: bytes, onFull: onFull, tail: tail, used: used,
		stop: make(chan struct{}), stopped: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	p.cond = sync.NewCond(&p.mu)
	go p.run()
	return p
}

// interrupt ends all waiting for space that there is not: what can be prepared still is.
func (p *preparer) interrupt() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.cond.Broadcast()
}

// close ends run and removes the prepared segment. It comes after interrupt.
func (p *preparer) close() error {
	close(p.stop)
	<-p.stopped
	p.mu.Lock()
	defer p.mu.Unlock()
	err := closeFiles(append(p.old, p.tail.zeros))
	if p.next.f == nil {
		return err
	}
	err = errors.Join(err, closeFiles([]vfs.File{p.next.zeros, p.next.f}))
	p.next = space{}
	rerr := p.fs.Remove(filepath.Join(p.dir, preparedName))
	if errors.Is(rerr, fs.ErrNotExist) {
		rerr = nil // it had got its name when the log broke
	}
	return errors.Join(err, rerr)
}

func closeFiles(files []vfs.File) error {
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

func (p *preparer) run() {
	defer close(p.stopped)
	for {
		pause, err := p.step()
		p.report(err)
		if err != nil {
			pause = retryPause
		}
		if !p.sleep(pause, err != nil) {
			return
		}
	}
}

// forever is the pause of a preparer that has nothing to do.
const forever time.Duration = -1

// sleep waits for d, for a wake-up unless deaf, or for the end, of which it says false.
func (p *preparer) sleep(d time.Duration, deaf bool) bool {
	wake := p.wake
	if deaf {
		wake = nil
	}
	var after <-chan time.Time
	if d != forever {
		t := time.NewTimer(d)
		defer t.Stop()
		after = t.C
	}
	select {
	case <-p.stop:
		return false
	case <-wake:
	case <-after:
	}
	return true
}

// report keeps err for Room's readers and tells when it comes and goes.
func (p *preparer) report(err error) {
	p.mu.Lock()
	changed := (err == nil) != (p.err == nil)
	p.err = err
	p.cond.Broadcast()
	p.mu.Unlock()
	if changed && p.onFull != nil {
		p.onFull(err)
	}
}

// step does a small part of what there is to do and says how long to rest.
func (p *preparer) step() (time.Duration, error) {
	p.mu.Lock()
	s := p.tail
	if p.waiting == &p.next || s.filled >= s.target {
		s = p.next
	}
	old := p.old
	p.old = nil
	p.mu.Unlock()

	if err := closeFiles(old); err != nil {
		return 0, fmt.Errorf("seal log segment: %w", err)
	}
	if s.f == nil {
		name := filepath.Join(p.dir, preparedName)
		f, err := createLocked(p.fs, name)
		if err != nil {
			return 0, err
		}
		zeros, err := p.fs.Open(name)
		if err != nil {
			return 0, errors.Join(fmt.Errorf("prepare log segment: %w", err), f.Close())
		}
		p.mu.Lock()
		p.next = space{f: f, zeros: zeros, target: max(p.bytes, p.next.target)}
		p.mu.Unlock()
		return 0, nil
	}
	n := min(int64(fillBytes), s.target-s.filled)
	if n <= 0 {
		return forever, nil
	}
	if err := fill(s.zeros, s.filled, n); err != nil {
		p.mu.Lock()
		p.next.failed = p.next.failed || p.next.f == s.f
		p.mu.Unlock()
		return 0, fmt.Errorf("prepare log segment: %w", err)
	}
	return p.filled(s.f, s.filled+n), nil
}

// filled records that f is filled up to end, and says how long to rest.
func (p *preparer) filled(f vfs.File, end int64) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	hurry := p.waiting != nil
	switch f {
	case p.tail.f: // perhaps it was the next one before
		p.tail.filled = end
		hurry = hurry || end-p.used < fillAhead
	case p.next.f:
		p.next.filled = end
		hurry = hurry || end < 2*p.used
	}
	p.cond.Broadcast()
	if hurry {
		return 0
	}
	return fillPause
}

func createLocked(fsys vfs.FS, name string) (vfs.File, error) {
	f, err := fsys.Create(name)
	if err != nil {
		return nil, fmt.Errorf("create log segment: %w", err)
	}
	if err := f.Lock(); err != nil {
		_ = f.Close() // the lock's error says more
		return nil, fmt.Errorf("lock log segment: %w", err)
	}
	return f, nil
}

// fill writes n bytes of zeros at off and syncs them.
func fill(f vfs.File, off, n int64) error {
	if err := writeZeros(f, off, n); err != nil {
		return err
	}
	return f.Sync()
}

func writeZeros(f vfs.File, off, n int64) error {
	for n > 0 {
		b := zeroBlock[:min(n, int64(len(zeroBlock)))]
		if _, err := f.WriteAt(b, off); err != nil {
			return err
		}
		off += int64(len(b))
		n -= int64(len(b))
	}
	return nil
}

// poke wakes run; waking it twice is the same as once.
func (p *preparer) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// waitTail returns once the tail is filled up to end, or ErrClosed.
func (p *preparer) waitTail(end int64) error {
	return p.wait(&p.tail, func() bool {
		p.tail.target = max(p.tail.target, end)
		return p.tail.filled >= end
	})
}

// waitNext returns the next segment once it is filled up to end, or ErrClosed.
func (p *preparer) waitNext(end int64) (vfs.File, error) {
	err := p.wait(&p.next, func() bool {
		p.next.target = max(p.next.target, end)
		return p.next.f != nil && p.next.filled >= end
	})
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	f, failed := p.next.f, p.next.failed
	p.next.failed = false
	p.mu.Unlock()
	if failed {
		// Each open file hears of a failed sync once. This one is to hear of that of zeros
		// now, which have been synced again since, and not when the records in it are synced.
		_ = f.Sync()
	}
	return f, nil
}

// wait waits until done, which is called with mu held, says that s is large enough.
func (p *preparer) wait(s *space, done func() bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer func() { p.waiting = nil }()
	for !done() {
		if p.closed && p.err != nil {
			return ErrClosed
		}
		p.waiting = s
		p.poke()
		p.cond.Wait()
	}
	return nil
}

// advance records that the tail is used up to off; if the next segment has become the
// tail, another one is prepared.
func (p *preparer) advance(off int64, newTail bool) {
	p.mu.Lock()
	p.used = off
	if newTail {
		p.old = append(p.old, p.tail.zeros)
		p.tail, p.next = p.next, space{}
	}
	p.mu.Unlock()
	if newTail {
		p.poke()
	}
}

// room is how many bytes there are in the tail and in the next segment.
func (p *preparer) room() (tail, next int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return max(0, min(p.tail.filled, p.bytes)-p.used), min(p.next.filled, p.bytes)
}
