package mvcc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"go.etcd.io/bbolt"

	"quorate/internal/kv"
	"quorate/internal/mvcc/index"
	"quorate/internal/wire"
)

// The index is built from all records: read in the order of revisions and sorted by key,
// by several goroutines, then merged by one and put together by another. Where the keys
// were written in order there is nothing to sort.
//
// A record may have an empty key: etcdutl snapshot restore --bump-revision writes one. No
// request reaches it, but checksums count it until it is compacted.

// entry is one record on its way into the index. It has no pointers, for there are
// millions, and the collector would look at each again and again.
type entry struct {
	create, version int64
	lease           kv.LeaseID
	main            int64
	text, from      uint32 // where the key is: in which of the reader's texts, and from where on
	length          uint32
	sub             uint32 // twice, and one more for a tombstone
}

func (e *entry) rev() kv.Revision { return kv.Revision{Main: e.main, Sub: int64(e.sub >> 1)} }
func (e *entry) dead() bool       { return e.sub&1 != 0 }

// reader reads a part of the records.
type reader struct {
	blocks [][]entry // in the order of revisions
	texts  [][]byte  // keys; to read them in the file once more, in their order, is slow
	order  []short   // the entries in the order of keys
	next   int       // the next one, for merge

	last   *entry // the last one read
	common int    // how long a prefix all keys share
	sorted bool   // whether they were read in the order of keys
}

const (
	blockLen  = 1 << 12
	textBytes = 1 << 20
	subMax    = 1<<31 - 1
)

// short stands for an entry: the 8 bytes of its key after the common prefix, which mostly
// tell it from others, and its number.
type short struct {
	head uint64
	n    uint32
}

func (r *reader) entry(n int) *entry { return &r.blocks[n/blockLen][n%blockLen] }

func (r *reader) key(e *entry) []byte {
	return r.texts[e.text][e.from:][:e.length]
}

func (r *reader) len() int {
	if len(r.blocks) == 0 {
		return 0
	}
	n := len(r.blocks) - 1
	return n*blockLen + len(r.blocks[n])
}

// less orders by key and revision; b may be another reader's.
func (r *reader) less(a *entry, other *reader, b *entry) bool {
	if c := bytes.Compare(r.key(a), other.key(b)); c != 0 {
		return c < 0
	}
	return a.rev().Less(b.rev())
}

// loadParts is how many ranges of revisions the readers share out among themselves, so
// that they end at about the same time however the records are spread.
const loadParts = 64

// readRecords builds the index of records and all that depends on it.
func (l *loaded) readRecords(records *bbolt.Bucket, onLeased func(kv.LeaseID, []byte)) error {
	c := records.Cursor()
	first, _ := c.First()
	last, _ := c.Last()
	if first == nil {
		return nil
	}
	lo, _, ok1 := parseRev(first)
	hi, _, ok2 := parseRev(last)
	if !ok1 || !ok2 {
		return fmt.Errorf("it is damaged: bucket key has keys %x and %x", first, last)
	}
	l.rev = max(l.rev, hi.Main)

	readers := make([]*reader, min(runtime.GOMAXPROCS(0), 8))
	errs := make([]error, len(readers))
	var part atomic.Int64
	var wg sync.WaitGroup
	for i := range readers {
		r := &reader{sorted: true}
		readers[i] = r
		wg.Go(func() {
			errs[i] = guard(func() error {
				for n := part.Add(1) - 1; n < loadParts; n = part.Add(1) - 1 {
					if err := r.read(records, share(lo.Main, hi.Main, n), share(lo.Main, hi.Main, n+1)); err != nil {
						return err
					}
				}
				return nil
			})
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	readers = slices.DeleteFunc(readers, func(r *reader) bool { return r.last == nil })
	common := commonPrefix(readers)
	for _, r := range readers {
		wg.Go(func() { r.sort(common) })
	}
	wg.Wait()
	return l.build(readers, onLeased)
}

// commonPrefix is how long a prefix the keys of all readers share.
func commonPrefix(readers []*reader) int {
	first := readers[0].key(readers[0].last)
	common := readers[0].common
	for _, r := range readers[1:] {
		key := r.key(r.last)
		common = min(common, r.common)
		for !bytes.Equal(first[:common], key[:common]) {
			common--
		}
	}
	return common
}

// share is where the n-th of loadParts ranges of [lo, hi] begins.
func share(lo, hi, n int64) int64 {
	width := uint64(hi-lo) + 1
	return lo + int64(width/loadParts*uint64(n)+width%loadParts*uint64(n)/loadParts)
}

// read adds the records of main revisions from (included) to to.
func (r *reader) read(records *bbolt.Bucket, from, to int64) error {
	c := records.Cursor()
	k, v := c.Seek(binary.BigEndian.AppendUint64(nil, uint64(from)))
	for ; k != nil; k, v = c.Next() {
		rev, dead, ok := parseRev(k)
		if !ok || rev.Sub > subMax {
			return fmt.Errorf("it is damaged: bucket key has key %x", k)
		}
		if r.last != nil && !r.last.rev().Less(rev) {
			return fmt.Errorf("it is damaged: revision %v follows %v in bucket key", rev, r.last.rev())
		}
		if rev.Main >= to {
			break
		}
		e, err := wire.DecodeKeyValue(v)
		if err != nil {
			return fmt.Errorf("it is damaged: record of revision %v: %w", rev, err)
		}
		sub := uint32(rev.Sub) << 1
		if dead {
			sub |= 1
		}
		r.add(e.Key, entry{create: e.Create, version: e.Version, lease: e.Lease, main: rev.Main, sub: sub})
	}
	return nil
}

func (r *reader) add(key []byte, e entry) {
	t := len(r.texts)
	if t == 0 || len(key) > cap(r.texts[t-1])-len(r.texts[t-1]) {
		r.texts = append(r.texts, make([]byte, 0, max(textBytes, len(key))))
		t++
	}
	e.text, e.from, e.length = uint32(t-1), uint32(len(r.texts[t-1])), uint32(len(key))
	r.texts[t-1] = append(r.texts[t-1], key...)
	n := len(r.blocks)
	if n == 0 || len(r.blocks[n-1]) == blockLen {
		r.blocks = append(r.blocks, make([]entry, 0, blockLen))
		n++
	}
	r.blocks[n-1] = append(r.blocks[n-1], e)
	at := &r.blocks[n-1][len(r.blocks[n-1])-1]
	if r.last == nil {
		r.common = len(key)
	} else {
		last := r.key(r.last)
		r.common = min(r.common, len(key))
		for !bytes.Equal(last[:r.common], key[:r.common]) {
			r.common--
		}
		if r.sorted && r.less(at, r, r.last) {
			r.sorted = false
		}
	}
	r.last = at
}

// sort puts the entries in the order of keys. Most comparisons need no more than what a
// short has of a key, beyond the prefix that all readers' keys share.
func (r *reader) sort(common int) {
	r.order = make([]short, r.len())
	for n := range r.order {
		var head [8]byte
		copy(head[:], r.key(r.entry(n))[common:])
		r.order[n] = short{binary.BigEndian.Uint64(head[:]), uint32(n)}
	}
	if r.sorted {
		return
	}
	r.order = sortByHead(r.order, func(s *short) uint64 { return s.head }, func(a, b short) int {
		if r.less(r.entry(int(a.n)), r, r.entry(int(b.n))) {
			return -1
		}
		return 1 // no two are equal
	})
}

// before reports whether entry a of reader r comes before entry b of reader s.
func before(r *reader, a short, s *reader, b short) bool {
	if a.head != b.head {
		return a.head < b.head
	}
	return r.less(r.entry(int(a.n)), s, s.entry(int(b.n)))
}

// merged is a part of all records in the order of keys. Its keys stand one after the
// other, as the readers' do not, so that whoever builds the index finds them at hand.
type merged struct {
	entries []entry // from is where the key is in keys
	keys    []byte
	readers []*reader // of each entry
}

const (
	mergedLen = 1 << 10
	// mergedAhead is how many parts may wait for the builder.
	mergedAhead = 4
)

// merge sends what readers have in the order of keys, and closes out. Parts that come
// back through used are filled again.
func merge(readers []*reader, out chan<- *merged, used <-chan *merged) {
	defer close(out)
	var m *merged
	for {
		var from *reader
		for _, r := range readers {
			if r.next < len(r.order) && (from == nil || before(r, r.order[r.next], from, from.order[from.next])) {
				from = r
			}
		}
		if m != nil && (from == nil || len(m.entries) == mergedLen) {
			m.collectKeys()
			out <- m
			m = nil
		}
		if from == nil {
			return
		}
		if m == nil {
			m = <-used
			m.entries, m.keys, m.readers = m.entries[:0], m.keys[:0], m.readers[:0]
		}
		m.entries = append(m.entries, *from.entry(int(from.order[from.next].n)))
		m.readers = append(m.readers, from)
		from.next++
	}
}

// collectKeys fills keys. Entries and keys lie all over the memory; to fetch many of the
// one and then many of the other keeps more of them on their way at a time.
func (m *merged) collectKeys() {
	for i := range m.entries {
		e := &m.entries[i]
		key := m.readers[i].key(e)
		e.from = uint32(len(m.keys))
		m.keys = append(m.keys, key...)
	}
}

// build builds the index from what readers have.
func (l *loaded) build(readers []*reader, onLeased func(kv.LeaseID, []byte)) error {
	parts := make(chan *merged, mergedAhead)
	used := make(chan *merged, mergedAhead+2) // all there are: nobody ever waits to give one back
	for range cap(used) {
		used <- &merged{entries: make([]entry, 0, mergedLen)}
	}
	go merge(readers, parts, used)

	var b index.Builder
	var superseded, dead []drop
	var prev entry // the last one, if prevKey is not nil
	var prevKey []byte
	finish := func() { // prev is the newest change of its key
		if prevKey != nil && !prev.dead() && prev.lease != kv.NoLease {
			l.leased++
			if onLeased != nil {
				onLeased(prev.lease, bytes.Clone(prevKey))
			}
		}
	}
	var failed error
	for m := range parts { // to the end in any case, so that merge ends
		for i := 0; i < len(m.entries) && failed == nil; i++ {
			e := &m.entries[i]
			key := m.keys[e.from:][:e.length]
			if err := b.Add(key, e.rev(), e.dead(), e.create, e.version); err != nil {
				failed = fmt.Errorf("it is damaged: %w", err)
			}
			if prevKey == nil || !bytes.Equal(prevKey, key) {
				finish()
			} else if !prev.dead() {
				superseded = append(superseded, drop{prev.rev(), e.main})
			}
			if e.dead() {
				dead = append(dead, drop{e.rev(), e.main + 1})
			}
			prev, prevKey = *e, key
		}
		// The part will be filled again, but the last key must last.
		prevKey = append(make([]byte, 0, len(prevKey)), prevKey...)
		used <- m
	}
	finish()
	if failed != nil {
		return failed
	}
	l.tree = b.Tree()
	l.superseded = newQueue(superseded)
	l.tombstones = newQueue(dead)
	return nil
}

// newQueue makes a queue of drops in any order.
func newQueue(drops []drop) (q queue) {
	drops = sortByHead(drops, func(d *drop) uint64 { return uint64(d.due) }, func(a, b drop) int { return a.rev.Compare(b.rev) })
	for _, d := range drops {
		q.push(d.rev, d.due)
	}
	return q
}
