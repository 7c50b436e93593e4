package mvcc

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
)

// Defragment rewrites the file without its free pages, in small steps; reads and writes
// go on. It returns when the new file is in place. A second call waits for the first and
// then does the same again. Where it fails (a full disk, ctx) the store goes on in the
// old file.
//
// It copies what one image holds into a file beside (db.tmp.*), while the flusher goes on
// in the old one; then what has come since, again and again, until little is left.
// Compactions wait meanwhile, so records only ever come at the end. The last round is the
// flusher's, between two flushes: what is left, then the new file takes the old one's
// name. A crash leaves one of the two, whole, under the name; Open removes the other.
func (s *Store) Defragment(ctx context.Context) error {
	for {
		select {
		case <-s.defrags:
		case <-s.flusher.ended:
			return fmt.Errorf("defragment: %w", errClosed)
		case <-ctx.Done():
			return ctx.Err()
		}
		run, stop := context.WithCancelCause(ctx)
		s.deferCompactions(stop)
		err := s.defragment(run)
		s.deferCompactions(nil)
		s.defrags <- struct{}{} // where Replace waits for it, to Replace
		again := err != nil && context.Cause(run) == errReplaced
		stop(nil)
		if err == nil {
			return nil
		}
		if !again {
			return fmt.Errorf("defragment %s: %w", s.path, err)
		}
	}
}

// deferCompactions keeps compactions from going on while a Defragment runs that stop
// ends, until it is called with nil.
func (s *Store) deferCompactions(stop context.CancelCauseFunc) {
	s.mu.Lock()
	s.stopDefrag = stop
	if s.replacing && stop != nil {
		stop(errReplaced)
	}
	s.mu.Unlock()
	s.flusher.wake()
}

// Pace of the copy. Each step is synced by itself and followed by a pause as long, so that
// the log's syncs never wait for more than one of them.
const (
	copyBytesMax  = 1 << 20 // in one step, about
	copyPauseMax  = 50 * time.Millisecond
	copyRoundsMax = 8       // catching up; writers who outrun that make the last one longer
	copyBytesLast = 4 << 20 // is little enough to be left to the flusher
)

func (s *Store) defragment(ctx context.Context) (err error) {
	// A step of a compaction may be under way that was begun before they had to wait. Once
	// the flusher runs a call, it is over.
	if err := s.call(ctx, func() {}); err != nil {
		return err
	}
	c, err := s.newCopier(ctx)
	if err != nil {
		return err
	}
	taken := false
	defer func() {
		if !taken {
			err = errors.Join(err, c.discard())
		}
	}()
	for range copyRoundsMax {
		im := s.acquireImage()
		n, err := c.round(im)
		im.release()
		if err != nil {
			return err
		}
		if n < copyBytesLast {
			break
		}
	}
	s.opts.hooks.stepped("copied")
	var swapErr error
	if err := s.call(ctx, func() { taken, swapErr = s.swapFile(c) }); err != nil {
		return err
	}
	return swapErr
}

// copier copies images into a new file.
type copier struct {
	ctx   context.Context
	ended <-chan struct{} // the flusher is gone: give up
	db    *bbolt.DB
	path  string
	rev   int64 // records up to here are copied
	pause bool
}

func (s *Store) newCopier(ctx context.Context) (*copier, error) {
	f, err := os.CreateTemp(filepath.Dir(s.path), tempPattern)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	db, err := openDB(f.Name(), s.opts.NoSync)
	if err != nil {
		return nil, errors.Join(err, os.Remove(f.Name()))
	}
	c := &copier{ctx: ctx, ended: s.flusher.ended, db: db, path: f.Name(), rev: -1, pause: true}
	c.db.NoFreelistSync = true // until the last round
	return c, nil
}

func (c *copier) discard() error {
	err := c.db.Close()
	if rerr := os.Remove(c.path); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

// round copies what im holds and the new file does not. It returns how many bytes of
// records that were.
func (c *copier) round(im *image) (n int64, err error) {
	names := im.tx.Cursor()
	for name, _ := names.First(); name != nil; name, _ = names.Next() {
		if bytes.Equal(name, bucketKey) {
			continue
		}
		if err := c.mirror(name, im.tx.Bucket(name)); err != nil {
			return 0, fmt.Errorf("copy bucket %s: %w", name, err)
		}
	}
	n, err = c.records(im)
	if err != nil {
		return 0, fmt.Errorf("copy bucket %s: %w", bucketKey, err)
	}
	return n, nil
}

// records copies the records that were added since the last round.
func (c *copier) records(im *image) (n int64, err error) {
	from := im.keys.Cursor()
	k, v := from.Seek(binary.BigEndian.AppendUint64(nil, uint64(c.rev+1)))
	for more := true; more; {
		err := c.step(bucketKey, func(b *bbolt.Bucket) error {
			b.FillPercent = 1
			for size := 0; k != nil && size < copyBytesMax; k, v = from.Next() {
				if err := b.Put(k, v); err != nil {
					return err
				}
				size += len(k) + len(v)
				n += int64(len(k) + len(v))
			}
			more = k != nil
			return nil
		})
		if err != nil {
			return n, err
		}
	}
	c.rev = im.rev
	return n, nil
}

// mirror makes bucket name of the new file equal to from: it walks both and changes what
// differs.
func (c *copier) mirror(name []byte, from *bbolt.Bucket) error {
	src := from.Cursor()
	k, v := src.First()
	var at []byte // the key from which on the new bucket is not compared yet
	for more := true; more; {
		err := c.step(name, func(b *bbolt.Bucket) error {
			// Changing a bucket moves its cursors, so changes are collected first.
			var puts [][2][]byte
			var dels [][]byte
			b.FillPercent = 0.9
			dst := b.Cursor()
			dk, dv := dst.Seek(at)
			size := 0
			for ; (k != nil || dk != nil) && size < copyBytesMax; size += 32 {
				order := bytes.Compare(k, dk)
				switch {
				case dk == nil || k != nil && order < 0:
					puts = append(puts, [2][]byte{k, v})
					size += len(k) + len(v)
					k, v = src.Next()
				case k == nil || order > 0:
					dels = append(dels, bytes.Clone(dk))
					dk, dv = dst.Next()
				default:
					if !bytes.Equal(v, dv) {
						puts = append(puts, [2][]byte{k, v})
						size += len(k) + len(v)
					}
					k, v = src.Next()
					dk, dv = dst.Next()
				}
			}
			more = k != nil || dk != nil
			// Everything below both cursors is equal now.
			switch {
			case k == nil || dk != nil && bytes.Compare(dk, k) < 0:
				at = bytes.Clone(dk)
			default:
				at = bytes.Clone(k)
			}
			for _, del := range dels {
				if err := b.Delete(del); err != nil {
					return err
				}
			}
			for _, put := range puts {
				if err := b.Put(put[0], put[1]); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// step runs fn on one bucket of the new file in a transaction of its own.
func (c *copier) step(bucket []byte, fn func(b *bbolt.Bucket) error) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	begin := time.Now()
	err := c.db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(bucket)
		if err != nil {
			return err
		}
		return fn(b)
	})
	if err != nil || !c.pause {
		return err
	}
	select {
	case <-time.After(min(time.Since(begin), copyPauseMax)):
	case <-c.ctx.Done():
	case <-c.ended:
		return errClosed
	}
	return nil
}

// swapFile is the last step of a Defragment: the flusher copies what is left and puts the
// new file in the old one's place. If taken, it is the store's even if there is an error.
func (s *Store) swapFile(c *copier) (taken bool, err error) {
	if s.failure != nil {
		return false, s.failure
	}
	c.pause, c.db.NoFreelistSync = false, false
	if _, err := c.round(s.image); err != nil {
		return false, err
	}
	if err := c.db.Sync(); err != nil {
		return false, err
	}
	im, err := newImage(s.newFile(c.db), s.image.rev)
	if err != nil {
		return false, err
	}
	return s.switchFile(c.path, im, func() {})
}

// switchFile has the flusher go on in im's file, which is at path: it gives it the store's
// name and makes im the newest image, and runs change under mu with that. If not taken, im
// is void; else there may be an error, too, and then the store has failed.
func (s *Store) switchFile(path string, im *image, change func()) (taken bool, err error) {
	s.opts.hooks.stepped("synced")
	nameless, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		im.release()
		return false, err
	}
	if err := os.Rename(path, s.path); err != nil {
		im.release()
		return false, errors.Join(err, nameless.Close())
	}
	s.opts.hooks.stepped("renamed")
	// From here on there is no way back: the next flush must go into the new file, and
	// must not before its name is sure to survive.
	err = syncDir(filepath.Dir(s.path))

	old := s.flusher.file
	old.nameless = nameless
	s.flusher.file, s.flusher.listed = im.file, true
	s.measure(im)
	s.mu.Lock()
	oldImage := s.image
	s.image = im
	change()
	oldView := s.show()
	s.mu.Unlock()
	oldView.Release()
	oldImage.release()
	old.release()
	if err != nil {
		err = fmt.Errorf("sync the directory of %s: %w", s.path, err)
		s.fail(err)
	}
	return true, err
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
