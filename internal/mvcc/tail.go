package mvcc

import (
	"sort"

	"quorate/internal/kv"
)

// tail is a run of records in revision order: what is applied but not yet in the file.
//
// Records have numbers, which count on from when the store was opened; a tail holds those
// in [lo, hi). Copies share the chunks. Only the applier appends, behind the hi of every
// copy that a reader has, so readers need no lock.
type tail struct {
	chunks []*chunk
	first  int64 // number of chunks[0][0], a multiple of chunkLen
	lo, hi int64
}

const chunkLen = 512

type chunk [chunkLen]kv.Record

func (t *tail) at(n int64) *kv.Record {
	n -= t.first
	return &t.chunks[n/chunkLen][n%chunkLen]
}

func (t *tail) append(r kv.Record) {
	if t.hi == t.first+int64(len(t.chunks))*chunkLen {
		t.chunks = append(t.chunks, new(chunk))
	}
	*t.at(t.hi) = r
	t.hi++
}

// trim leaves out what is below number lo. Copies keep what they had.
func (t *tail) trim(lo int64) {
	t.lo = lo
	if n := (lo - t.first) / chunkLen; n > 0 {
		t.chunks = append([]*chunk(nil), t.chunks[n:]...)
		t.first += n * chunkLen
	}
}

// search returns the number of the first record that is not before rev, hi if none.
func (t *tail) search(rev kv.Revision) int64 {
	lo, hi := t.lo, t.hi
	if lo == hi {
		return hi
	}
	// Main revisions follow each other without a gap and each has a record, so counting
	// from either end bounds the place. Mostly that leaves one.
	if d := rev.Main - t.at(lo).Rev.Main; d > 0 {
		lo = min(lo+d, hi)
	}
	if d := t.at(hi-1).Rev.Main - rev.Main; d > 0 {
		hi = max(hi-d, lo)
	}
	return lo + int64(sort.Search(int(hi-lo), func(i int) bool {
		return !t.at(lo + int64(i)).Rev.Less(rev)
	}))
}

// find returns the record of rev.
func (t *tail) find(rev kv.Revision) (*kv.Record, bool) {
	n := t.search(rev)
	if n == t.hi {
		return nil, false
	}
	r := t.at(n)
	return r, r.Rev == rev
}

// slab hands out memory for encoded records in large pieces. What it handed out is never
// used again: the collector takes a piece back when nobody holds any of it.
type slab struct{ free []byte }

const (
	slabBytes    = 256 << 10
	slabBytesOwn = slabBytes / 8 // from this size on, a record gets memory of its own
)

// alloc returns an empty slice with room for n bytes.
func (s *slab) alloc(n int) []byte {
	if n >= slabBytesOwn {
		return make([]byte, 0, n)
	}
	if n > cap(s.free) {
		s.free = make([]byte, 0, slabBytes)
	}
	b := s.free[0:0:n]
	s.free = s.free[n:n:cap(s.free)]
	return b
}
