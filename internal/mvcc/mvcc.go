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
package mvcc

import (
	"context"
	"io"

	"quorate/internal/kv"
)

// Options configure a Store.
type Options struct {
	// OnFlush is called after each flush, by the flusher, with the raft index and term
	// up to which everything applied is durable in the file.
	OnFlush func(index, term uint64)
	// OnFailure is called once when the file can no longer be written for a reason
	// other than a full disk. The member must stop.
	OnFailure func(error)
	// OnLeasedKey is called for every live key that has a lease, while Open (or, if the
	// index loads in the background, the loader) finds them.
	OnLeasedKey func(id kv.LeaseID, key []byte)
	// NoSync leaves out every fsync of the file (--unsafe-no-fsync).
	NoSync bool
}

// Store is the multi-version store on one B+tree file.
type Store struct{}

// Open opens or creates the file at path (etcd's member/snap/db) and rebuilds the index.
func Open(path string, opts Options) (*Store, error) { panic("unbuilt") }

// Close flushes what is published, stops the flusher and closes the file.
func (s *Store) Close() error { panic("unbuilt") }

// Applied is the raft index and term that the file held when it was opened.
func (s *Store) Applied() (index, term uint64) { panic("unbuilt") }

// ---- the applier's side ----

// Begin starts one request's changes. Only the applier may call it, one at a time.
func (s *Store) Begin() *Tx { panic("unbuilt") }

// Tx is one request's changes. All of them get the same main revision. Reads through a
// Tx see the changes made so far.
type Tx struct{}

// Rev is the revision that reads through tx see: the store's, or one more once tx has
// changed something.
func (tx *Tx) Rev() int64 { panic("unbuilt") }

// Get returns the live value of key.
func (tx *Tx) Get(key []byte) (kv.Record, bool) { panic("unbuilt") }

// Put sets key, and returns the value it replaced. The slices are copied.
func (tx *Tx) Put(key, value []byte, lease kv.LeaseID) (prev kv.Record, had bool) { panic("unbuilt") }

// Delete deletes every live key of span, in key order, and calls each with the record
// that it deleted (each may be nil). It returns how many there were.
func (tx *Tx) Delete(span kv.Span, each func(prev kv.Record)) int64 { panic("unbuilt") }

// Range is View.Range over the state that tx sees.
func (tx *Tx) Range(r *kv.Range, emit func(keyValue []byte)) (Found, error) { panic("unbuilt") }

// End closes tx. It returns the store's revision now, and tx's changes in order; both
// become visible to others with Publish. The events are valid until the view that
// Publish makes is released.
func (tx *Tx) End() (rev int64, events []kv.Event) { panic("unbuilt") }

// PutBucket and DeleteBucket change one of etcd's buckets beside "key" (lease, alarm,
// cluster, members, members_removed, meta, auth...). They become durable in the same
// file transaction as the key changes around them.
func (s *Store) PutBucket(bucket string, key, value []byte) { panic("unbuilt") }
func (s *Store) DeleteBucket(bucket string, key []byte)     { panic("unbuilt") }

// ReadBucket calls fn for every pair of bucket, in key order, flushed or not. The slices
// are valid during the call.
func (s *Store) ReadBucket(bucket string, fn func(key, value []byte) error) error { panic("unbuilt") }

// Compact makes every revision below rev that is superseded at rev unreadable, from the
// next Publish on, and has the flusher give the space back in small steps. done is closed
// when it has. It returns kv.ErrCompacted or kv.ErrFutureRevision.
func (s *Store) Compact(rev int64) (done <-chan struct{}, err error) { panic("unbuilt") }

// Publish makes everything since the last Publish visible, as the state after raft entry
// index of term. It blocks while the tail is at its bound.
func (s *Store) Publish(index, term uint64) { panic("unbuilt") }

// ---- readers ----

// View returns the newest published state. Release it when done.
func (s *Store) View() *View { panic("unbuilt") }

// View is the store as it was at one Publish. It is immutable; any number of goroutines
// may read it at once. Holding one keeps replaced pages of the file from being reused.
type View struct{}

// Release gives v back. Records read through v must not be used after.
func (v *View) Release() { panic("unbuilt") }

// Rev is the store's revision in v; CompactRev the last compacted one, -1 if none.
func (v *View) Rev() int64        { panic("unbuilt") }
func (v *View) CompactRev() int64 { panic("unbuilt") }

// Applied is the raft index that v is the state after.
func (v *View) Applied() uint64 { panic("unbuilt") }

// Found is the part of a RangeResponse that is not its keys.
type Found struct {
	Count int64 // keys of the span at the revision; no limit or filter counts
	More  bool  // the limit cut the result
}

// Range calls emit with each found mvccpb.KeyValue in wire form, in the order asked for.
// The slice is valid during the call only. It returns kv.ErrCompacted or
// kv.ErrFutureRevision, before any emit.
func (v *View) Range(r *kv.Range, emit func(keyValue []byte)) (Found, error) { panic("unbuilt") }

// Record returns the change of key that was current at main revision rev, which may be a
// tombstone. It is how a watcher finds the previous value: Record(key, mod-1).
func (v *View) Record(key []byte, rev int64) (kv.Record, bool) { panic("unbuilt") }

// Changes calls fn with every change from main revision lo to hi, both included, in
// order, until fn returns false. It returns kv.ErrCompacted if lo is below the compacted
// revision. Prev of the events is not set.
func (v *View) Changes(lo, hi int64, fn func(kv.Event) bool) error { panic("unbuilt") }

// HashKV is etcd's checksum of all revisions up to rev (0: all), as if v had already
// dropped everything that its compaction drops.
func (v *View) HashKV(rev int64) (hash uint32, compactRev, hashRev int64, err error) {
	panic("unbuilt")
}

// ---- maintenance ----

// Flush returns once everything published before the call is in the file, durably.
func (s *Store) Flush(ctx context.Context) error { panic("unbuilt") }

// Flushed is the raft index up to which everything is in the file.
func (s *Store) Flushed() uint64 { panic("unbuilt") }

// Stalled is the error that keeps the flusher from writing (a full disk), else nil. It
// goes on by itself when there is room.
func (s *Store) Stalled() error { panic("unbuilt") }

// Size is the file's length and the part of it in use, tail included, in bytes.
func (s *Store) Size() (total, inUse int64) { panic("unbuilt") }

// TailBytes is how much is applied but not flushed.
func (s *Store) TailBytes() int64 { panic("unbuilt") }

// Hash is a checksum of the whole file (the Hash call).
func (s *Store) Hash(ctx context.Context) (uint32, error) { panic("unbuilt") }

// Snapshot flushes and returns the file as it then is. Writes go on meanwhile.
func (s *Store) Snapshot(ctx context.Context) (*Snapshot, error) { panic("unbuilt") }

// Snapshot is a consistent copy of the file: Size bytes from WriteTo.
type Snapshot struct{ Size int64 }

func (sn *Snapshot) WriteTo(w io.Writer) (int64, error) { panic("unbuilt") }
func (sn *Snapshot) Close() error                       { panic("unbuilt") }

// Defragment rewrites the file without its free pages, in the background and in small
// steps; reads and writes go on. It returns when the new file is in place.
func (s *Store) Defragment(ctx context.Context) error { panic("unbuilt") }
