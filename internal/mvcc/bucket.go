package mvcc

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/bbolt"
)

// etcd's buckets. All of them are in a file from the start.
var (
	bucketKey  = []byte("key")
	bucketMeta = []byte("meta")
	allBuckets = []string{"key", "meta", "lease", "alarm", "cluster", "members", "members_removed",
		"auth", "authUsers", "authRoles"}
)

// Keys of bucket meta that belong to this package.
var (
	metaIndex     = []byte("consistent_index")
	metaTerm      = []byte("term")
	metaScheduled = []byte("scheduledCompactRev")
	metaFinished  = []byte("finishedCompactRev")
	metaVersion   = []byte("storageVersion") // written by the applier, see StorageVersion
)

// bucketOp is one change of a bucket beside "key". A nil value deletes.
type bucketOp struct {
	bucket     string
	key, value []byte
}

// PutBucket and DeleteBucket change one of etcd's buckets beside "key" (lease, alarm,
// cluster, members, members_removed, meta, auth...). They become durable in the same
// file transaction as the key changes around them. Only the applier may call them, in a
// Tx or outside; key must not be empty. The slices are copied.
//
// Of bucket meta, consistent_index, term, scheduledCompactRev and finishedCompactRev are
// the store's own; confState and storageVersion are the caller's.
func (s *Store) PutBucket(bucket string, key, value []byte) {
	s.addOp(bucketOp{bucket, bytes.Clone(key), append([]byte{}, value...)})
}
func (s *Store) DeleteBucket(bucket string, key []byte) {
	s.addOp(bucketOp{bucket: bucket, key: bytes.Clone(key)})
}

func (s *Store) addOp(op bucketOp) {
	if len(op.key) == 0 || op.bucket == string(bucketKey) {
		panic(fmt.Sprintf("mvcc: change of key %q of bucket %s", op.key, op.bucket))
	}
	if !s.inTx {
		s.mu.Lock()
		defer s.mu.Unlock()
	}
	s.ops = append(s.ops, op)
	s.grow(recordCost + len(op.key) + len(op.value))
}

// ReadBucket calls fn for every pair of bucket, in key order, flushed or not, published or
// not, until it returns an error, which it returns. The slices are valid during the call.
// It must not be called between Begin and End.
func (s *Store) ReadBucket(bucket string, fn func(key, value []byte) error) error {
	return s.Bucket(bucket).Each(fn)
}

// Bucket is one bucket as it was at one moment. It holds on to the file until Each.
type Bucket struct {
	name  string
	image *image
	ops   []bucketOp
}

// Bucket returns a bucket as it is now. It must not be called between Begin and End; what
// it returns may be read then, so that the applier can wait for the reader.
func (s *Store) Bucket(name string) *Bucket {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &Bucket{name, s.image.acquire(), slices.Clone(s.ops)}
}

// Each is ReadBucket for b. It may be called once.
func (b *Bucket) Each(fn func(key, value []byte) error) error {
	bucket, im, ops := b.name, b.image, b.ops
	defer im.release()

	// What the unflushed changes make of their keys, in key order.
	ops = slices.DeleteFunc(ops, func(op bucketOp) bool { return op.bucket != bucket })
	slices.SortStableFunc(ops, func(a, b bucketOp) int { return bytes.Compare(a.key, b.key) })
	merge := func(upTo []byte) error { // those below upTo, or all
		for len(ops) > 0 && (upTo == nil || bytes.Compare(ops[0].key, upTo) < 0) {
			op := ops[0]
			if ops = ops[1:]; len(ops) > 0 && bytes.Equal(ops[0].key, op.key) {
				continue // a later change of the same key follows
			}
			if op.value != nil {
				if err := fn(op.key, op.value); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if b := im.tx.Bucket([]byte(bucket)); b != nil {
		err := b.ForEach(func(k, v []byte) error {
			if err := merge(k); err != nil {
				return err
			}
			if len(ops) > 0 && bytes.Equal(ops[0].key, k) {
				return nil // merged with the next key, or at the end
			}
			return fn(k, v)
		})
		if err != nil {
			return err
		}
	}
	return merge(nil)
}

// StorageVersion is the version of the file's format: "3.7.0", "3.6.0", or "3.5.0" where
// the file does not say. etcd writes it (PutBucket "meta", "storageVersion") once the
// cluster version is known and differs, and the applier should do the same.
func (s *Store) StorageVersion() string {
	version := ""
	err := s.ReadBucket(string(bucketMeta), func(k, v []byte) error {
		if bytes.Equal(k, metaVersion) {
			version = string(v)
		}
		return nil
	})
	if err != nil || version == "" {
		return "3.5.0"
	}
	return version
}

// checkVersion returns an error if the format of the file is not one that is known here.
func checkVersion(version string) error {
	if version == "" {
		return nil // before 3.6
	}
	var major, minor, patch int
	if _, err := fmt.Sscanf(strings.TrimSpace(version), "%d.%d.%d", &major, &minor, &patch); err != nil {
		return nil // etcd ignores what it cannot read
	}
	if major != 3 || minor > 7 {
		return fmt.Errorf("it has storage version %s, and this version knows 3.7 and before: use the version that wrote it, or downgrade the cluster with that first", version)
	}
	return nil
}

// apply makes the change in a write transaction.
func (op *bucketOp) apply(tx *bbolt.Tx) error {
	b := tx.Bucket([]byte(op.bucket))
	if b == nil {
		if op.value == nil {
			return nil
		}
		var err error
		if b, err = tx.CreateBucket([]byte(op.bucket)); err != nil {
			return fmt.Errorf("create bucket %s: %w", op.bucket, err)
		}
	}
	var err error
	if op.value == nil {
		err = b.Delete(op.key)
	} else {
		err = b.Put(op.key, op.value)
	}
	if err != nil {
		return fmt.Errorf("change key %q of bucket %s: %w", op.key, op.bucket, err)
	}
	return nil
}
