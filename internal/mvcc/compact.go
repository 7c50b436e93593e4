package mvcc

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"quorate/internal/kv"
	"quorate/internal/wire"
)

// A compaction is a promise first: from the next Publish on, nothing below its revision
// can be read, and the file says so (scheduledCompactRev). What nobody can read any more
// then goes in small steps, each a part of one of the flusher's transactions, and last
// the file says that it is done (finishedCompactRev). A store that is opened in between
// goes on where it was.
//
// What goes, as in etcd: of each key's changes at or below the revision all but the
// newest, and that too if it is a tombstone of before the revision.

const (
	dropsMax     = 1000                  // deletions in one step
	dueChunksMax = 512                   // chunks of due revisions that the flusher takes at a time
	compactPause = 10 * time.Millisecond // between two steps, for others to use the disk
	forgetHold   = 32                    // keys that one hold of the lock takes from the index
)

// compaction is one Compact.
type compaction struct {
	rev   int64
	op    int64 // number of the first bucket change after the one that schedules it
	begun time.Time
	done  chan struct{}
}

// Compact makes every revision below rev that is superseded at rev unreadable, from the
// next Publish on, and has the flusher give the space back in small steps. done is closed
// when it has, or when the store is closed. It returns kv.ErrCompacted or
// kv.ErrFutureRevision. Only the applier may call it, outside of a Tx.
func (s *Store) Compact(rev int64) (done <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case rev <= s.compactRev:
		return nil, kv.ErrCompacted
	case rev > s.rev:
		return nil, kv.ErrFutureRevision
	}
	s.compactRev = rev
	value := appendRev(nil, kv.Revision{Main: rev}, false)
	s.ops = append(s.ops, bucketOp{string(bucketMeta), metaScheduled, value})
	s.grow(recordCost + len(metaScheduled) + len(value))
	c := compaction{rev: rev, op: s.opsFirst + int64(len(s.ops)), begun: time.Now(), done: make(chan struct{})}
	s.scheduled = append(s.scheduled, c)
	return c.done, nil
}

// compactTarget is the highest revision that the file says is to be compacted to, -1 if
// that is done. Before the file says it, nothing may go.
func (s *Store) compactTarget() int64 {
	target := int64(-1)
	for _, c := range s.compactions {
		if c.op <= s.done.op && s.stopDefrag == nil {
			target = max(target, c.rev)
		}
	}
	return target
}

// takeDrops makes w a step of the compaction to target.
//
// Revisions become due in the order of the changes that superseded them, and lie in the
// file in the order in which they were made themselves. The flusher takes many at a time
// and drops them in the file's order. So a step touches few of the file's pages, and a
// crash leaves of each key's history a later part, whole. (Where a tombstone is left and
// not the put that came after it, etcd takes the next put for the one that created the key.)
func (s *Store) takeDrops(w *write, target int64) {
	f := &s.flusher
	if len(f.drops) == 0 && len(f.due) == 0 {
		to := s.superseded.bound(target, dueChunksMax)
		f.due = []queue{s.superseded.cut(to), s.tombstones.cut(min(to+1, target))}
	}
	w.compact, w.target = true, target
	w.finish = !s.superseded.due(target) && !s.tombstones.due(target)
}

// step chooses what w drops, and thereby whether anything is left.
func (s *Store) step(w *write) {
	f := &s.flusher
	if len(f.due) > 0 {
		f.drops = nil
		for _, q := range f.due {
			f.drops = q.appendTo(f.drops)
		}
		f.due = nil
		slices.SortFunc(f.drops, kv.Revision.Compare)
	}
	n := min(len(f.drops), cmp.Or(s.opts.hooks.drops, dropsMax))
	w.drops = f.drops[:n]
	w.finish = w.finish && n == len(f.drops)
}

// drop deletes w.drops and collects their keys.
func (w *write) drop(tx *bbolt.Tx, records *bbolt.Bucket) error {
	var buf [revLen + 1]byte
	c := records.Cursor()
	for _, drop := range w.drops {
		k, v := c.Seek(appendRev(buf[:0], drop, false))
		if rev, _, ok := parseRev(k); !ok || rev != drop {
			return fmt.Errorf("compact: revision %v is not in the file", drop)
		}
		// The same key often follows itself; the index need not hear of it twice.
		if key := wire.KeyOf(v); len(w.keys) == 0 || !bytes.Equal(w.keys[len(w.keys)-1], key) {
			w.keys = append(w.keys, bytes.Clone(key))
		}
		if err := c.Delete(); err != nil {
			return fmt.Errorf("compact: delete revision %v: %w", drop, err)
		}
	}
	if !w.finish {
		return nil
	}
	value := appendRev(nil, kv.Revision{Main: w.target}, false)
	if err := tx.Bucket(bucketMeta).Put(metaFinished, value); err != nil {
		return fmt.Errorf("put %s: %w", metaFinished, err)
	}
	return nil
}

// takeFinished removes and returns the compactions up to rev.
func (s *Store) takeFinished(rev int64) (finished []compaction) {
	var left []compaction
	for _, c := range s.compactions {
		if c.rev <= rev {
			finished = append(finished, c)
		} else {
			left = append(left, c)
		}
	}
	s.compactions = left
	return finished
}

// forget takes what a compaction to rev drops of keys out of the index. The applier can
// go on in between. Views see the smaller index from the next Publish on, or at once if
// the applier rests.
func (s *Store) forget(keys [][]byte, rev int64) {
	for len(keys) > 0 {
		n := min(len(keys), forgetHold)
		begin := time.Now()
		s.mu.Lock()
		for _, key := range keys[:n] {
			s.index.Compact(key, rev)
		}
		var old *View
		if keys = keys[n:]; len(keys) == 0 && !s.dirty {
			s.pub.tree = s.index.Tree()
			old = s.show()
		}
		s.mu.Unlock()
		s.opts.Meters.indexStep(time.Since(begin))
		if old != nil {
			old.Release()
		}
	}
}
