package mvcc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"quorate/internal/kv"
)

// flusher is the goroutine that writes the file, and what is its alone.
type flusher struct {
	kick  chan struct{}
	calls chan func() // to be run between two writes
	ended chan struct{}

	file      *file         // the current one
	listed    bool          // it holds its list of free pages, see freelistMax
	compactAt time.Time     // not before, the next step of a compaction
	due       []queue       // what the compaction took to drop
	drops     []kv.Revision // the same in the order of the file; one of both is empty
	retryAt   time.Time     // not before, anything, while the disk is full
}

var errClosed = errors.New("the store is closed")

// wake has the flusher look for work.
func (f *flusher) wake() {
	select {
	case f.kick <- struct{}{}:
	default:
	}
}

// write is what one transaction of the flusher puts into the file: a piece of the tail,
// a step of a compaction, or both.
type write struct {
	flush bool
	to    bound // flush up to here
	tail  tail
	ops   []bucketOp

	compact bool
	target  int64         // the revision to compact to
	drops   []kv.Revision // what to delete
	finish  bool          // nothing is left to drop after these
	keys    [][]byte      // of drops

	stats bbolt.TxStats // of the transaction, once it is committed
}

// run is the flusher's life.
func (s *Store) run() {
	defer close(s.flusher.ended)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		w, at, end := s.next(time.Now())
		if end {
			s.fail(s.finishFile())
			return
		}
		if w.flush || w.compact {
			begin := time.Now()
			if w.compact {
				s.step(&w)
			}
			err := s.commit(&w)
			if err == nil {
				s.opts.Meters.committed(&w, time.Since(begin))
				err = s.install(&w)
			}
			if err != nil && s.writeFailed(&w, err) {
				return
			}
			continue
		}
		if at.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(at))
		}
		select {
		case <-s.flusher.kick:
		case <-timer.C:
		case call := <-s.flusher.calls:
			call()
		}
	}
}

// next says what to write now, or else when to look again (zero: when woken), or that the
// flusher shall end.
func (s *Store) next(now time.Time) (w write, at time.Time, end bool) {
	f := &s.flusher
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure != nil || s.closing && len(s.bounds) == 0 {
		return w, at, s.closing
	}
	if s.replacing && !s.closing {
		return w, at, false
	}
	soonest := func(t time.Time) bool { // and whether that is now
		if t.Before(f.retryAt) && !s.closing {
			t = f.retryAt
		}
		if at.IsZero() || t.Before(at) {
			at = t
		}
		return !t.After(now)
	}
	if len(s.bounds) > 0 {
		t := s.since.Add(flushDelay)
		if s.flushDueLocked() || s.closing {
			t = now
		}
		if soonest(t) {
			s.takeTail(&w)
		}
	}
	if target := s.compactTarget(); target >= 0 && !s.closing && soonest(f.compactAt) {
		s.takeDrops(&w, target)
	}
	return w, at, false
}

// flushDueLocked reports whether a flush shall not wait for flushDelay.
func (s *Store) flushDueLocked() bool {
	return len(s.bounds) > 0 && (s.wanted > s.done.sequence || s.bytesIn-s.done.bytes >= flushBytes)
}

// takeTail makes w a flush of flushBytes, about, up to one of the bounds, which it takes.
func (s *Store) takeTail(w *write) {
	n := 1
	for n < len(s.bounds) && s.bounds[n].bytes-s.done.bytes <= flushBytes {
		n++
	}
	w.flush, w.to = true, s.bounds[n-1]
	w.tail = s.tail
	w.tail.hi = w.to.record
	w.ops = s.ops[:w.to.op-s.opsFirst]
	s.bounds = append([]bound(nil), s.bounds[n:]...)
}

// freelistMax is up to how many free pages the file's transactions write their list. With
// the list in it, a file opens without reading all of its pages. A longer one costs more
// to write each time than it saves, and is written by Close alone.
const freelistMax = 16 << 10

// commit writes w to the file.
func (s *Store) commit(w *write) error {
	db := s.flusher.file.db
	tx, err := db.Begin(true)
	if err != nil {
		return fmt.Errorf("begin to write: %w", err)
	}
	if err := w.put(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	if s.opts.hooks.commit != nil {
		if err := s.opts.hooks.commit(); err != nil {
			return errors.Join(err, tx.Rollback())
		}
	}
	stats := db.Stats()
	s.flusher.listed = stats.FreePageN+stats.PendingPageN <= freelistMax
	db.NoFreelistSync = !s.flusher.listed
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	w.stats = tx.Stats()
	s.opts.hooks.stepped("commit")
	return nil
}

// put makes w's changes in tx.
func (w *write) put(tx *bbolt.Tx) error {
	var buf [revLen + 1]byte
	keys := tx.Bucket(bucketKey)
	keys.FillPercent = 1 // records are only ever added at the end
	for n := w.tail.lo; w.flush && n < w.tail.hi; n++ {
		r := w.tail.at(n)
		if err := keys.Put(appendRev(buf[:0], r.Rev, r.Tombstone), r.KV); err != nil {
			return fmt.Errorf("put revision %v: %w", r.Rev, err)
		}
	}
	for i := range w.ops {
		if err := w.ops[i].apply(tx); err != nil {
			return err
		}
	}
	if w.compact {
		if err := w.drop(tx, keys); err != nil {
			return err
		}
	}
	if !w.flush {
		return nil
	}
	return putApplied(tx, w.to.index, w.to.term)
}

// putApplied notes up to which raft entry the file is complete. As in etcd, zero is not
// written.
func putApplied(tx *bbolt.Tx, index, term uint64) error {
	meta := tx.Bucket(bucketMeta)
	for _, m := range []struct {
		key   []byte
		value uint64
	}{{metaIndex, index}, {metaTerm, term}} {
		if m.value == 0 {
			continue
		}
		if err := meta.Put(m.key, binary.BigEndian.AppendUint64(nil, m.value)); err != nil {
			return fmt.Errorf("put %s: %w", m.key, err)
		}
	}
	return nil
}

// install makes the file as w left it the newest image, cuts off the tail what is in it
// now, and tells those who wait.
func (s *Store) install(w *write) error {
	f := &s.flusher
	rev := s.image.rev
	if w.flush {
		rev = w.to.rev
	}
	im, err := newImage(f.file, rev)
	if err != nil {
		return err
	}
	s.measure(im)
	f.retryAt = time.Time{}
	s.stall.Store(nil)

	s.mu.Lock()
	oldImage := s.image
	s.image = im
	if w.flush {
		s.tail.trim(w.to.record)
		if s.ops = s.ops[w.to.op-s.opsFirst:]; len(s.ops) == 0 {
			s.ops = nil
		}
		s.opsFirst = w.to.op
		s.tailBytes.Add(s.done.bytes - w.to.bytes)
		s.done = w.to
		s.since = time.Now()
	}
	var finished []compaction
	if w.compact {
		f.drops = f.drops[len(w.drops):]
		if w.finish {
			finished = s.takeFinished(w.target)
		}
	}
	oldView := s.show()
	s.tellLocked()
	s.mu.Unlock()

	oldView.Release()
	oldImage.release()
	if w.flush {
		s.flushed.Store(w.to.index)
		if s.opts.OnFlush != nil {
			s.opts.OnFlush(w.to.index, w.to.term)
		}
	}
	if w.compact {
		s.forget(w.keys, w.target)
		f.compactAt = time.Now().Add(compactPause)
		for _, c := range finished {
			s.opts.Meters.compacted(time.Since(c.begun))
			close(c.done)
		}
	}
	return nil
}

// tellLocked wakes all who wait for the flusher.
func (s *Store) tellLocked() {
	close(s.progress)
	s.progress = make(chan struct{})
	s.room.Broadcast()
}

// measure takes the file's size for Size.
func (s *Store) measure(im *image) {
	stats := im.file.db.Stats()
	s.fileBytes.Store(im.tx.Size())
	s.freeBytes.Store(int64(stats.FreePageN+stats.PendingPageN) * int64(im.file.db.Info().PageSize))
}

// writeFailed deals with an error of commit or install. It reports whether the flusher
// shall end.
func (s *Store) writeFailed(w *write, err error) (end bool) {
	err = fmt.Errorf("write %s: %w", s.path, err)
	if !diskFull(err) {
		s.fail(err)
		return false // next has the flusher wait for Close
	}
	s.flusher.retryAt = time.Now().Add(stallRetry)
	s.stall.Store(&stall{err})
	s.mu.Lock()
	if w.flush {
		s.bounds = append([]bound{w.to}, s.bounds...)
	}
	closing := s.closing
	s.tellLocked()
	s.mu.Unlock()
	if closing {
		s.fail(err)
	}
	return closing
}

// fail ends flushing for good, for the given reason or, if nil, because the store is
// being closed.
func (s *Store) fail(err error) {
	s.mu.Lock()
	report := err != nil && s.failure == nil && !s.closing
	if err == nil {
		err = errClosed
	}
	if s.failure == nil {
		s.failure = err
	}
	s.tellLocked()
	s.mu.Unlock()
	if report && s.opts.OnFailure != nil {
		s.opts.OnFailure(err)
	}
}

// diskFull reports whether err means that there was no room, and that it can be tried
// again. bbolt hands on some errors as text alone.
func diskFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, berrors.ErrMaxSizeReached) ||
		strings.Contains(err.Error(), syscall.ENOSPC.Error()) || strings.Contains(err.Error(), syscall.EDQUOT.Error())
}

// finishFile leaves the file with its list of free pages, so that it opens fast.
func (s *Store) finishFile() error {
	if s.flusher.listed || s.failure != nil {
		return nil
	}
	db := s.flusher.file.db
	db.NoFreelistSync = false
	if err := db.Update(func(*bbolt.Tx) error { return nil }); err != nil && !diskFull(err) {
		return fmt.Errorf("write %s: %w", s.path, err)
	}
	return nil
}

// Flush returns once everything published before the call is in the file, durably. It
// returns an error at once while the disk is full, see Stalled.
func (s *Store) Flush(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for want := s.sequence; s.done.sequence < want; {
		if s.failure != nil {
			return fmt.Errorf("flush: %w", s.failure)
		}
		if err := s.Stalled(); err != nil {
			return fmt.Errorf("flush: %w", err)
		}
		s.wanted = max(s.wanted, want)
		progress := s.progress
		s.mu.Unlock()
		s.flusher.wake()
		select {
		case <-progress:
		case <-ctx.Done():
		}
		s.mu.Lock()
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// call runs fn in the flusher, between two writes.
func (s *Store) call(ctx context.Context, fn func()) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ran := make(chan struct{})
	select {
	case s.flusher.calls <- func() { fn(); close(ran) }:
		<-ran
		return nil
	case <-s.flusher.ended:
		return errClosed
	case <-ctx.Done():
		return ctx.Err()
	}
}
