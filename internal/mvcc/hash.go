package mvcc

import (
	"context"
	"fmt"
	"hash"
	"hash/crc32"
	"slices"

	"quorate/internal/kv"
	"quorate/internal/wire"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// all is the span of every key, with the empty one that no request can name.
var all = kv.Span{End: []byte{0}}

// HashKV is etcd's checksum of all revisions up to rev (0: all), as if v had already
// dropped everything that its compaction drops. It returns kv.ErrCompacted or
// kv.ErrFutureRevision.
//
// The checksum is CRC-32C over the bucket's name and every record's key and value, in
// order. Of the records up to the compacted revision those count that are the current,
// live value of their key at rev; if no key is live at rev, those that the compaction
// left. A tombstone of exactly the compacted revision never counts. For all this a key
// that the change at rev itself deleted and put again is not live at rev.
//
// (etcd remembers the checksum that it took during each of its last compactions, before
// it deleted, and answers with that when asked for exactly that revision, until it is
// restarted. Here the answer is always what it is after a restart.)
func (v *View) HashKV(rev int64) (sum uint32, compactRev, hashRev int64, err error) {
	switch {
	case rev > 0 && rev < v.compactRev:
		return 0, 0, 0, kv.ErrCompacted
	case rev > v.rev:
		return 0, 0, 0, kv.ErrFutureRevision
	case rev == 0:
		rev = v.rev
	}
	keep := v.kept(rev)
	h := recordHash{Hash32: crc32.New(castagnoli)}
	h.write(bucketKey)
	v.records(0, rev, func(r kv.Record) bool {
		if r.Rev.Main <= v.compactRev {
			for len(keep) > 0 && keep[0].Less(r.Rev) {
				keep = keep[1:]
			}
			if len(keep) == 0 || keep[0] != r.Rev {
				return true
			}
		}
		h.add(r)
		return true
	})
	return h.Sum32(), v.compactRev, rev, nil
}

// kept returns, in order, the revisions up to the compacted one that count for the
// checksum at rev.
func (v *View) kept(rev int64) []kv.Revision {
	var keep []kv.Revision
	some := false
	reborn := v.reborn(rev)
	collect := func(mod kv.Revision) bool {
		if slices.Contains(reborn, mod) {
			return true
		}
		some = true
		if mod.Main <= v.compactRev {
			keep = append(keep, mod)
		}
		return true
	}
	v.tree.Revisions(all, rev, collect)
	if !some && v.compactRev > 0 {
		v.tree.Revisions(all, v.compactRev, collect)
	}
	slices.SortFunc(keep, kv.Revision.Compare)
	return keep
}

// reborn is the puts of main revision rev that follow a deletion of their key in it.
func (v *View) reborn(rev int64) []kv.Revision {
	if rev <= 0 {
		return nil // no such revision; a request may name it all the same
	}
	var reborn []kv.Revision
	deleted := make(map[string]bool)
	v.records(rev, rev, func(r kv.Record) bool {
		key := string(wire.KeyOf(r.KV))
		if r.Tombstone {
			deleted[key] = true
		} else if deleted[key] {
			reborn = append(reborn, r.Rev)
		}
		return true
	})
	return reborn
}

// recordHash is a checksum of records as they are in the file.
type recordHash struct {
	hash.Hash32
	key [revLen + 1]byte
}

func (h *recordHash) add(r kv.Record) {
	h.write(appendRev(h.key[:0], r.Rev, r.Tombstone))
	h.write(r.KV)
}

// write cannot fail: a hash takes everything.
func (h *recordHash) write(b []byte) { _, _ = h.Write(b) }

// Hash is a checksum of the whole file (the Hash call), as it is after a flush. Like
// etcd's it leaves out the applied index and term and the storage version, which members
// of one cluster need not have in common.
func (s *Store) Hash(ctx context.Context) (uint32, error) {
	if err := s.Flush(ctx); err != nil {
		return 0, err
	}
	im := s.acquireImage()
	defer im.release()
	h := recordHash{Hash32: crc32.New(castagnoli)}
	c := im.tx.Cursor()
	for name, _ := c.First(); name != nil; name, _ = c.Next() {
		b := im.tx.Bucket(name)
		if b == nil {
			return 0, fmt.Errorf("hash %s: %q is not a bucket", s.path, name)
		}
		h.write(name)
		pairs := 0
		err := b.ForEach(func(k, v []byte) error {
			if !unhashed(string(name), string(k)) {
				h.write(k)
				h.write(v)
			}
			if pairs++; pairs%4096 == 0 {
				return ctx.Err()
			}
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return h.Sum32(), nil
}

func unhashed(bucket, key string) bool {
	return bucket == string(bucketMeta) &&
		(key == string(metaIndex) || key == string(metaTerm) || key == string(metaVersion))
}

// acquireImage returns the file as the last flush left it.
func (s *Store) acquireImage() *image {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.image.acquire()
}
