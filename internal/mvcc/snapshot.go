package mvcc

import (
	"context"
	"fmt"
	"io"
	"sync"
)

// Snapshot flushes and returns the file as it then is. Writes go on meanwhile.
func (s *Store) Snapshot(ctx context.Context) (*Snapshot, error) {
	if err := s.Flush(ctx); err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	im := s.acquireImage()
	l := &loaded{}
	if err := l.readMeta(im.tx.Bucket(bucketMeta)); err != nil {
		im.release()
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	sn := &Snapshot{Size: im.tx.Size(), image: im, index: l.index, term: l.term}
	sn.close = sync.OnceFunc(im.release)
	return sn, nil
}

// Snapshot is a consistent copy of the file: Size bytes from WriteTo. Until it is closed,
// replaced pages of the file are not reused.
type Snapshot struct {
	Size int64

	image       *image
	index, term uint64
	close       func()
}

// Applied is the raft index and term that the copy is the state after.
func (sn *Snapshot) Applied() (index, term uint64) { return sn.index, sn.term }

// ReadBucket calls fn for every pair of a bucket of the copy, in key order, until it
// returns an error, which it returns. The slices are valid during the call. A bucket that
// is not there is empty. It must not be called after Close.
func (sn *Snapshot) ReadBucket(bucket string, fn func(key, value []byte) error) error {
	b := Bucket{name: bucket, image: sn.image.acquire()}
	return b.Each(fn)
}

// WriteTo writes the copy, a complete B+tree file. It can be called again.
func (sn *Snapshot) WriteTo(w io.Writer) (int64, error) { return sn.image.tx.WriteTo(w) }

// Close lets go of the file. It can be called again.
func (sn *Snapshot) Close() error {
	sn.close()
	return nil
}
