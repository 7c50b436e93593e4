// Package mvcc is the multi-version store: every change of a key has a revision, and
// old revisions stay readable until they are compacted.
//
// The applier is the only writer. It makes changes through Tx, then Publish makes all
// of them visible at once in a new immutable View. Published changes live in the tail,
// in memory, until the flusher has put them into the B+tree file together with the
// applied index, in one transaction and off the write path: the log is what makes a
// write durable, the file only bounds how much of the log must be replayed.
//
// Readers hold a View. A View never changes, takes no lock while it reads, and sees the
// index (key to revisions), the tail and the file as they were when it was published.
//
//	applier ── Begin, Put, Delete, End, ... Publish ──▶ View ◀── readers
//	              │                                      │
//	              ▼                                      ├─ index: key → revisions
//	            tail ── flusher, one transaction ──▶ image ─ tail: records above image.rev
//	                                                     └─ image: records up to image.rev
//
// The file is etcd's, byte for byte: see docs/formats/db.md.
//
// # Goroutines
//
// The applier is the caller's. The store has one of its own, the flusher, which writes the
// file: the tail, the deletions of compactions, and the last step of Defragment and of
// Replace. The rest of these runs in their callers'. Close ends the flusher.
//
// One lock, Store.mu, is shared by applier and flusher alone. The applier holds it for one
// request, the flusher for microseconds and never while it reads or writes the file.
package mvcc

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"quorate/internal/kv"
	"quorate/internal/mvcc/index"
)

// Options configure a Store.
type Options struct {
	// OnFlush is called after each flush, by the flusher, with the raft index and term
	// up to which everything applied is durable in the file.
	OnFlush func(index, term uint64)
	// OnFailure is called once, by the flusher, when the file can no longer be written for
	// a reason other than a full disk. The member must stop.
	OnFailure func(error)
	// OnLeasedKey is called by Open for every live key that has a lease, in key order. It
	// may keep key.
	OnLeasedKey func(id kv.LeaseID, key []byte)
	// NoSync leaves out every fsync of the file (--unsafe-no-fsync).
	NoSync bool
	// Meters are told what the flusher does.
	Meters Meters

	hooks hooks
}

// hooks let tests in between the steps of the flusher.
type hooks struct {
	step   func(name string) // after each step that changed something on disk
	commit func() error      // instead of a commit, if it returns an error
	drops  int               // instead of dropsMax, unless 0
}

func (h *hooks) stepped(name string) {
	if h.step != nil {
		h.step(name)
	}
}

// Bounds. The tail has to hold what comes in while one flush takes place, however slow
// the disk, without using memory that matters.
const (
	flushBytes    = 4 << 20                // of the tail that go into one transaction, about
	flushDelay    = 500 * time.Millisecond // the longest that a change waits to be flushed
	tailBytesMax  = 64 << 20               // Publish blocks above
	boundBytesMin = flushBytes / 32        // between points that a flush may end at
	stallRetry    = time.Second
)

// Store is the multi-version store on one B+tree file.
type Store struct {
	path string
	opts Options

	// Changed by Open and Replace alone: the raft index and term that the file then held.
	openIndex, openTerm uint64

	newest  atomic.Pointer[View]
	stall   atomic.Pointer[stall]
	flushed atomic.Uint64 // raft index up to which everything is in the file

	// For Size and OpenReads, from any goroutine.
	fileBytes, freeBytes, tailBytes atomic.Int64
	reads                           atomic.Int64 // images that are open

	// Owned by the applier.
	tx   Tx
	inTx bool
	held []*image // in which records lie that Tx returned since the last Publish

	mu sync.Mutex
	// Guarded by mu, changed by the applier: the newest state, published or not.
	index      *index.Writer
	rev        int64
	compactRev int64
	tail       tail
	slab       slab
	ops        []bucketOp // unflushed changes of other buckets
	opsFirst   int64      // number of ops[0], counted from Open
	events     []kv.Event // since the last Publish
	superseded queue      // what compactions will drop
	tombstones queue
	leased     int64        // live keys that have a lease
	dirty      bool         // index was changed since the last Publish
	scheduled  []compaction // since the last Publish

	// Guarded by mu: what is published.
	pub      published
	bounds   []bound // where a flush may end, oldest first
	sequence uint64  // of the last Publish
	bytesIn  int64   // added to the tail since Open
	bytesCut int64   // bytesIn at the last bound

	// Guarded by mu, changed by the flusher.
	image       *image
	done        bound // what is flushed
	compactions []compaction
	since       time.Time     // when the oldest of bounds came
	wanted      uint64        // sequence that someone waits for to be flushed
	progress    chan struct{} // closed and replaced after each attempt to flush
	room        *sync.Cond    // the tail got smaller, or flushing has ended for good
	failure     error         // why the flusher gave up, errClosed if it was told to
	closing     bool
	unbound     bool                    // the tail may grow beyond tailBytesMax
	replacing   bool                    // the flusher writes nothing, and no Defragment runs
	stopDefrag  context.CancelCauseFunc // of the Defragment that runs, else nil; compactions wait meanwhile

	ends    sync.WaitGroup // of files that are being closed
	flusher flusher
	defrags chan struct{} // holds a token while no Defragment runs
}

// published is what Publish made visible.
type published struct {
	tree            index.Tree
	rev, compactRev int64
	hi              int64 // end of the tail
	applied         uint64
}

// bound is a point between two batches, at which a flush may end: everything before it is
// the state after a raft entry.
type bound struct {
	sequence    uint64
	index, term uint64
	rev         int64 // of the store
	record, op  int64 // numbers of the first that come after
	bytes       int64 // bytesIn
}

// Close flushes what is published, stops the flusher and closes the file. Views that are
// still held keep the file open and Close waiting. The applier must have ended or be
// waiting in Publish, which then returns.
func (s *Store) Close() error {
	s.mu.Lock()
	s.closing = true
	s.room.Broadcast()
	s.mu.Unlock()
	s.flusher.wake()
	<-s.flusher.ended
	<-s.defrags // a Defragment that still ran has noticed

	s.mu.Lock()
	err, im := s.failure, s.image
	if err == errClosed {
		err = nil
	}
	for _, c := range s.compactions {
		close(c.done) // it goes on at the next start; nobody shall wait for that
	}
	s.compactions = nil
	s.mu.Unlock()

	s.releaseHeld()
	s.newest.Swap(nil).Release()
	f := im.file
	im.release()
	f.release()
	<-f.closed
	s.ends.Wait() // of files that were replaced, unless a reader still holds one
	if f.err != nil && err == nil {
		err = fmt.Errorf("close %s: %w", s.path, f.err)
	}
	return err
}

// Applied is the raft index and term that the file held when it was opened, or with which
// Replace put it in place. Only the applier may call it, or who opened the store before
// there is one.
func (s *Store) Applied() (index, term uint64) { return s.openIndex, s.openTerm }

// Rev is the revision of the last change, published or not. Only the applier may call it.
func (s *Store) Rev() int64 { return s.rev }

// grow counts n bytes more in the tail.
func (s *Store) grow(n int) {
	s.bytesIn += int64(n)
	s.tailBytes.Add(int64(n))
}

// Publish makes everything since the last Publish visible, as the state after raft entry
// index of term. It blocks while the tail is at its bound: until there is room, or Close
// is called or OnFailure was.
func (s *Store) Publish(index, term uint64) {
	s.mu.Lock()
	s.sequence++
	if s.dirty {
		s.pub.tree = s.index.Tree()
		s.dirty = false
	}
	s.pub.rev, s.pub.compactRev, s.pub.applied = s.rev, s.compactRev, index
	s.pub.hi = s.tail.hi
	first := len(s.bounds) == 0
	s.addBound(bound{
		sequence: s.sequence, index: index, term: term, rev: s.rev,
		record: s.tail.hi, op: s.opsFirst + int64(len(s.ops)), bytes: s.bytesIn,
	})
	if len(s.scheduled) > 0 {
		s.compactions = append(s.compactions, s.scheduled...)
		s.scheduled = nil
		s.wanted = s.sequence
	}
	s.events = nil
	old := s.show()
	wake := first || s.flushDueLocked()
	full := s.bytesIn-s.done.bytes > tailBytesMax
	s.mu.Unlock()

	if wake {
		s.flusher.wake()
	}
	old.Release()
	s.releaseHeld()
	if full {
		s.waitForRoom()
	}
}

func (s *Store) waitForRoom() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.bytesIn-s.done.bytes > tailBytesMax && s.failure == nil && !s.closing && !s.unbound {
		s.flusher.wake()
		s.room.Wait()
	}
}

// Unbound lets the tail grow beyond its bound from now on, so that Publish never blocks.
// It is called before Close by an owner that has to wait for the applier, which a full
// disk could keep blocked for ever.
func (s *Store) Unbound() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unbound = true
	s.room.Broadcast()
}

// addBound notes b as a point where a flush may end. It takes the place of the last one
// if that is not far behind, so that there are few.
func (s *Store) addBound(b bound) {
	n := len(s.bounds)
	if n == 0 {
		s.since = time.Now()
	}
	if n == 0 || b.bytes-s.bytesCut >= boundBytesMin {
		if n > 0 {
			s.bytesCut = s.bounds[n-1].bytes
		} else {
			s.bytesCut = s.done.bytes
		}
		s.bounds = append(s.bounds, b)
		return
	}
	s.bounds[n-1] = b
}

// show makes the published state the newest view and returns the one before. The caller
// holds mu, and releases the old view when it does not any more.
func (s *Store) show() *View {
	v := &View{tree: s.pub.tree, applied: s.pub.applied}
	v.state = state{keys: &v.tree, image: s.image.acquire(), tail: s.tail, rev: s.pub.rev, compactRev: s.pub.compactRev}
	v.tail.hi = s.pub.hi
	v.uses.Store(1)
	return s.newest.Swap(v)
}

// Flushed is the raft index up to which everything is in the file.
func (s *Store) Flushed() uint64 { return s.flushed.Load() }

// Stalled is the error that keeps the flusher from writing (a full disk), else nil. It
// goes on by itself when there is room.
func (s *Store) Stalled() error {
	if st := s.stall.Load(); st != nil {
		return st.err
	}
	return nil
}

type stall struct{ err error }

// Size is the file's length, as far as it was ever used, and the part of it in use, with
// the tail, in bytes.
func (s *Store) Size() (total, inUse int64) {
	total = s.fileBytes.Load()
	inUse = total - s.freeBytes.Load() + s.tailBytes.Load()
	return max(total, inUse), inUse
}

// OpenReads is how many states of the file are held at the moment: the newest and those
// that readers still have. Pages that came free since the oldest are not used again.
func (s *Store) OpenReads() int64 { return s.reads.Load() }

// TailBytes is how much is applied but not flushed.
func (s *Store) TailBytes() int64 { return s.tailBytes.Load() }
