package mvcc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"go.etcd.io/bbolt"

	"quorate/internal/kv"
)

// Replace makes the file at path the store's, in place of its own: a snapshot that another
// member sent. The file must be complete, durable, on the same file system and the state
// after a raft entry that is not before the last published one. It takes the store's name
// in one step, so a crash leaves the one or the other, whole, under the name; which one
// Replace left, Applied says.
//
// What was not flushed is dropped, for the file holds it, and so is what was not published.
// Views and snapshots from before stay as they are until they are released; everything
// from now on is of the new file. Who waits in Flush or for a Compact is answered, and a
// Defragment under way begins anew in the new file. Reads go on throughout.
//
// onLeasedKey is as Options.OnLeasedKey. OnFlush is not called for the new file itself,
// and once Replace has returned never again for the old one.
//
// After an error the store goes on in its own file, unless it has failed (OnFailure). Only
// the applier may call it, outside of a Tx; records that a Tx returned are void then.
func (s *Store) Replace(path string, onLeasedKey func(id kv.LeaseID, key []byte)) error {
	if err := s.replace(path, onLeasedKey); err != nil {
		return fmt.Errorf("replace %s by %s: %w", s.path, path, err)
	}
	return nil
}

func (s *Store) replace(path string, onLeasedKey func(kv.LeaseID, []byte)) error {
	if _, _, err := Check(path); err != nil {
		return err
	}
	if err := s.suspend(); err != nil {
		return err
	}
	defer s.resume()
	l, err := loadFile(path, onLeasedKey)
	if err != nil {
		return err
	}
	if err := s.follows(l); err != nil {
		return err
	}
	db, err := openDB(path, s.opts.NoSync)
	if err != nil {
		return err
	}
	f := s.newFile(db)
	taken := false
	err = createBuckets(db)
	if err == nil {
		var swapErr error
		err = s.call(context.Background(), func() { taken, swapErr = s.adoptFile(path, f, l) })
		err = errors.Join(err, swapErr)
	}
	if !taken {
		f.release()
		<-f.closed
		return errors.Join(err, f.err)
	}
	s.releaseHeld()
	return err
}

// Check reports whether the file at path can be a store's, and the raft index and term
// that it is the state after. It reads no records and takes no time that matters; what it
// lets pass may still be damaged inside, which Open and Replace find out.
func Check(path string) (index, term uint64, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, 0, err
	}
	if info.Size() == 0 {
		return 0, 0, errors.New("it is empty")
	}
	l := &loaded{}
	err = readFile(path, info.Size(), func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{bucketKey, bucketMeta} {
			if tx.Bucket(name) == nil {
				return fmt.Errorf("it is not a database of a member: it has no bucket %s", name)
			}
		}
		return l.readMeta(tx.Bucket(bucketMeta))
	})
	return l.index, l.term, err
}

// follows returns an error if the file that l is of is not newer than the store.
func (s *Store) follows(l *loaded) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.index < s.pub.applied || l.rev < s.pub.rev {
		return fmt.Errorf("it is older than what it shall replace: it ends at entry %d, revision %d, the store at entry %d, revision %d",
			l.index, l.rev, s.pub.applied, s.pub.rev)
	}
	return nil
}

// errReplaced ends a Defragment whose file is about to be replaced.
var errReplaced = errors.New("the file is being replaced")

// suspend has the flusher write nothing and no Defragment run, until resume.
func (s *Store) suspend() error {
	s.suspended(true)
	select {
	case <-s.defrags:
		return nil
	case <-s.flusher.ended:
		s.suspended(false)
		return errClosed
	}
}

func (s *Store) suspended(yes bool) {
	s.mu.Lock()
	s.replacing = yes
	if yes && s.stopDefrag != nil {
		s.stopDefrag(errReplaced)
	}
	s.mu.Unlock()
	s.flusher.wake()
}

func (s *Store) resume() {
	s.suspended(false)
	s.defrags <- struct{}{}
}

// adoptFile is the last step of Replace, in the flusher: it makes f, whose content is l,
// the store's file. If taken, f is the store's even if there is an error.
func (s *Store) adoptFile(path string, f *file, l *loaded) (taken bool, err error) {
	if s.failure != nil {
		return false, s.failure
	}
	im, err := newImage(f, l.rev)
	if err != nil {
		return false, err
	}
	taken, err = s.switchFile(path, im, func() { s.adopt(l) })
	if taken {
		w := &s.flusher
		w.due, w.drops = nil, nil
		w.retryAt, w.compactAt = time.Time{}, time.Time{}
	}
	return taken, err
}

// adopt makes what a file holds the store's state. The caller holds mu, or is alone.
func (s *Store) adopt(l *loaded) {
	s.openIndex, s.openTerm = l.index, l.term
	s.index, s.rev, s.compactRev = l.tree.Edit(), l.rev, l.compactRev
	s.superseded, s.tombstones, s.leased = l.superseded, l.tombstones, l.leased
	s.dirty = false
	s.tail, s.events = tail{}, nil
	s.opsFirst += int64(len(s.ops))
	s.ops = nil

	s.sequence++
	s.pub = published{tree: l.tree, rev: l.rev, compactRev: l.compactRev, applied: l.index}
	s.bounds = nil
	s.bytesCut = s.bytesIn
	s.tailBytes.Store(0)
	s.done = bound{
		sequence: s.sequence, index: l.index, term: l.term, rev: l.rev,
		op: s.opsFirst, bytes: s.bytesIn,
	}
	s.flushed.Store(l.index)
	s.stall.Store(nil)
	s.adoptCompactions(l.scheduled, l.finished)
	s.tellLocked()
}

// adoptCompactions goes on with the compaction that the file has begun, if any. Who waits
// for one that the file has done, or knows nothing of, waits no longer.
func (s *Store) adoptCompactions(scheduled, finished int64) {
	waiting := append(s.compactions, s.scheduled...)
	s.compactions, s.scheduled = nil, nil
	under := false
	for _, c := range waiting {
		if c.rev <= finished || c.rev > scheduled {
			close(c.done)
			continue
		}
		under = under || c.rev == scheduled
		s.compactions = append(s.compactions, c)
	}
	if scheduled > finished && !under {
		s.compactions = append(s.compactions, compaction{rev: scheduled, begun: time.Now(), done: make(chan struct{})})
	}
}
