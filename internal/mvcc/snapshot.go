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
	sn := &Snapshot{Size: im.tx.Size(), image: im}
	sn.close = sync.OnceFunc(im.release)
	return sn, nil
}

// Snapshot is a consistent copy of the file: Size bytes from WriteTo. Until it is closed,
// replaced pages of the file are not reused.
type Snapshot struct {
	Size int64

	image *image
	close func()
}

// WriteTo writes the copy, a complete B+tree file. It can be called again.
func (sn *Snapshot) WriteTo(w io.Writer) (int64, error) { return sn.image.tx.WriteTo(w) }

// Close lets go of the file. It can be called again.
func (sn *Snapshot) Close() error {
	sn.close()
	return nil
}
