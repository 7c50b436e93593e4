package mvcc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"

	"quorate/internal/kv"
)

// file is one open B+tree file. Defragment replaces it, readers may still be in the old
// one: it closes when the last has left.
type file struct {
	db     *bbolt.DB
	uses   atomic.Int64
	reads  *atomic.Int64   // the store's
	ends   *sync.WaitGroup // the store's, of files that are being closed
	closed chan struct{}   // closed when it is, err is set then
	err    error

	// nameless, if not nil, is the file once another has taken its name.
	nameless *os.File
}

func (s *Store) newFile(db *bbolt.DB) *file {
	f := &file{db: db, reads: &s.reads, ends: &s.ends, closed: make(chan struct{})}
	f.uses.Store(1)
	return f
}

// release lets go of one use. The last closes the file, in a goroutine of its own, which
// ends when closed is closed: unmapping takes too long for a reader or the applier.
func (f *file) release() {
	if f.uses.Add(-1) == 0 {
		f.ends.Go(func() {
			f.err = f.db.Close()
			if f.nameless != nil {
				f.err = errors.Join(f.err, dissolve(f.nameless))
			}
			close(f.closed)
		})
	}
}

const (
	dissolveBytes = 8 << 20
	dissolvePause = 5 * time.Millisecond
)

// dissolve closes a file without a name, in small steps: a file system that gives back
// hundreds of megabytes at once lets the log's syncs wait meanwhile.
func dissolve(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	for size := info.Size(); size > 0; time.Sleep(dissolvePause) {
		size = max(0, size-dissolveBytes)
		if err := f.Truncate(size); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return f.Close()
}

// image is the file as it was after one flush: a read transaction that all views
// published until the next flush share, and all their readers.
//
// bbolt says that a transaction is for one goroutine. Here only its key bucket is used,
// which was opened before it was shared, and each reader has a cursor of its own: a
// cursor of a read transaction changes nothing but itself. (etcd relies on the same.)
// TestReadersShareAnImage holds this against the race detector.
type image struct {
	file *file
	tx   *bbolt.Tx
	keys *bbolt.Bucket
	rev  int64 // records up to this main revision are here, later ones in the tail
	uses atomic.Int64

	finders sync.Pool
}

// newImage opens the newest state of f. rev is the main revision that it holds.
func newImage(f *file, rev int64) (*image, error) {
	tx, err := f.db.Begin(false)
	if err != nil {
		return nil, fmt.Errorf("begin to read: %w", err)
	}
	im := &image{file: f, tx: tx, keys: tx.Bucket(bucketKey), rev: rev}
	im.uses.Store(1)
	f.uses.Add(1)
	f.reads.Add(1)
	return im, nil
}

// acquire adds a use; the caller must know that there is one already.
func (im *image) acquire() *image {
	im.uses.Add(1)
	return im
}

func (im *image) release() {
	if im.uses.Add(-1) != 0 {
		return
	}
	if err := im.tx.Rollback(); err != nil {
		panic("mvcc: end a read transaction: " + err.Error()) // it was ended twice
	}
	im.file.reads.Add(-1)
	im.file.release()
}

// finder finds records of one image. It is for one goroutine at a time.
type finder struct {
	cursor *bbolt.Cursor
	at     kv.Revision // where cursor stands; zero: nowhere
	key    [revLen + 1]byte
}

func (im *image) finder() *finder {
	if f, ok := im.finders.Get().(*finder); ok {
		f.at = kv.Revision{}
		return f
	}
	return &finder{cursor: im.keys.Cursor()}
}

func (im *image) put(f *finder) { im.finders.Put(f) }

// stepsMax is how many records a finder steps over before it searches from the root: a
// step costs about a tenth of a search.
const stepsMax = 3

// find returns the record of rev; its bytes are the file's, valid as long as the image.
// Records that were written one after the other are found fastest in that order.
func (f *finder) find(rev kv.Revision) (kv.Record, bool) {
	if !f.at.IsZero() && f.at.Less(rev) && rev.Main-f.at.Main <= stepsMax {
		for range stepsMax {
			k, v := f.cursor.Next()
			if k == nil {
				break
			}
			f.at.Main, f.at.Sub = int64(binary.BigEndian.Uint64(k)), int64(binary.BigEndian.Uint64(k[9:]))
			if f.at == rev {
				return kv.Record{Rev: rev, Tombstone: len(k) > revLen, KV: v}, true
			}
			if rev.Less(f.at) {
				return kv.Record{}, false
			}
		}
	}
	k, v := f.seek(rev)
	if k == nil || f.at != rev {
		return kv.Record{}, false
	}
	return kv.Record{Rev: rev, Tombstone: len(k) > revLen, KV: v}, true
}

// seek goes to the first record that is not before rev.
func (f *finder) seek(rev kv.Revision) (key, value []byte) {
	k, v := f.cursor.Seek(appendRev(f.key[:0], rev, false))
	f.note(k)
	return k, v
}

func (f *finder) next() (key, value []byte) {
	k, v := f.cursor.Next()
	f.note(k)
	return k, v
}

// note remembers where the cursor stands. Every key was checked when it was loaded or was
// written by this process.
func (f *finder) note(k []byte) {
	if k == nil {
		f.at = kv.Revision{}
		return
	}
	f.at = kv.Revision{Main: int64(binary.BigEndian.Uint64(k)), Sub: int64(binary.BigEndian.Uint64(k[9:]))}
}
