package mvcc

import (
	"bytes"
	"cmp"
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

// The index is built from all records: read in the order of revisions, by several
// goroutines, sorted by key, and put together in one pass. Where the keys were written in
// order there is nothing to sort.

// entry is one record on its way into the index. key points into the file.
type entry struct {
	key             []byte
	create, version int64
	lease           kv.LeaseID
	main            int64
	sub             uint32
	dead            bool
}

func (e *entry) rev() kv.Revision { return kv.Revision{Main: e.main, Sub: int64(e.sub)} }

func (e *entry) compare(o *entry) int {
	return cmp.Or(bytes.Compare(e.key, o.key), cmp.Compare(e.main, o.main), cmp.Compare(e.sub, o.sub))
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

	readers := min(runtime.GOMAXPROCS(0), 8)
	lists := make([][]entry, readers)
	errs := make([]error, readers)
	var part atomic.Int64
	var wg sync.WaitGroup
	for i := range readers {
		wg.Go(func() {
			errs[i] = guard(func() error {
				for {
					n := part.Add(1) - 1
					if n >= loadParts {
						break
					}
					from, to := share(lo.Main, hi.Main, n), share(lo.Main, hi.Main, n+1)
					var err error
					if lists[i], err = readPart(records, lists[i], from, to); err != nil {
						return err
					}
				}
				sortEntries(lists[i])
				return nil
			})
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return l.merge(lists, onLeased)
}

// share is where the n-th of loadParts ranges of [lo, hi] begins.
func share(lo, hi, n int64) int64 {
	width := uint64(hi-lo) + 1
	return lo + int64(width/loadParts*uint64(n)+width%loadParts*uint64(n)/loadParts)
}

// readPart appends to list the records of main revisions from (included) to to.
func readPart(records *bbolt.Bucket, list []entry, from, to int64) ([]entry, error) {
	c := records.Cursor()
	k, v := c.Seek(binary.BigEndian.AppendUint64(nil, uint64(from)))
	for ; k != nil; k, v = c.Next() {
		rev, dead, ok := parseRev(k)
		if !ok || rev.Sub > 1<<32-1 {
			return nil, fmt.Errorf("it is damaged: bucket key has key %x", k)
		}
		if rev.Main >= to {
			break
		}
		e, err := wire.DecodeKeyValue(v)
		if err != nil {
			return nil, fmt.Errorf("it is damaged: record of revision %v: %w", rev, err)
		}
		list = append(list, entry{
			key: e.Key, create: e.Create, version: e.Version, lease: e.Lease,
			main: rev.Main, sub: uint32(rev.Sub), dead: dead,
		})
	}
	return list, nil
}

// sortEntries sorts list by key and revision. Most comparisons need no more than the 8
// bytes of a key that follow what all keys have in common, so these are sorted.
func sortEntries(list []entry) {
	if slices.IsSortedFunc(list, func(a, b entry) int { return a.compare(&b) }) {
		return
	}
	common := len(list[0].key)
	for i := range list {
		n := min(common, len(list[i].key))
		for n > 0 && !bytes.Equal(list[i].key[:n], list[0].key[:n]) {
			n--
		}
		common = n
	}
	type short struct {
		head uint64
		n    int32
	}
	shorts := make([]short, len(list))
	for i := range list {
		var head [8]byte
		copy(head[:], list[i].key[common:])
		shorts[i] = short{binary.BigEndian.Uint64(head[:]), int32(i)}
	}
	slices.SortFunc(shorts, func(a, b short) int {
		if a.head != b.head {
			return cmp.Compare(a.head, b.head)
		}
		return list[a.n].compare(&list[b.n])
	})
	sorted := make([]entry, len(list))
	for i, s := range shorts {
		sorted[i] = list[s.n]
	}
	copy(list, sorted)
}

// merge builds the index from sorted lists.
func (l *loaded) merge(lists [][]entry, onLeased func(kv.LeaseID, []byte)) error {
	lists = slices.DeleteFunc(lists, func(list []entry) bool { return len(list) == 0 })
	var b index.Builder
	var superseded, dead []drop
	var prev *entry
	finish := func() { // prev is the newest change of its key
		if prev != nil && !prev.dead && prev.lease != kv.NoLease {
			l.leased++
			if onLeased != nil {
				onLeased(prev.lease, bytes.Clone(prev.key))
			}
		}
	}
	for len(lists) > 0 {
		from := 0
		for i := 1; i < len(lists); i++ {
			if lists[i][0].compare(&lists[from][0]) < 0 {
				from = i
			}
		}
		e := &lists[from][0]
		if lists[from] = lists[from][1:]; len(lists[from]) == 0 {
			lists = slices.Delete(lists, from, from+1)
		}
		if err := b.Add(e.key, e.rev(), e.dead, e.create, e.version); err != nil {
			return fmt.Errorf("it is damaged: %w", err)
		}
		if prev == nil || !bytes.Equal(prev.key, e.key) {
			finish()
		} else if !prev.dead {
			superseded = append(superseded, drop{prev.rev(), e.main})
		}
		if e.dead {
			dead = append(dead, drop{e.rev(), e.main + 1})
		}
		prev = e
	}
	finish()
	l.tree = b.Tree()
	l.superseded = newQueue(superseded)
	l.tombstones = newQueue(dead)
	return nil
}

// newQueue makes a queue of drops in any order.
func newQueue(drops []drop) (q queue) {
	slices.SortFunc(drops, func(a, b drop) int {
		return cmp.Or(cmp.Compare(a.due, b.due), cmp.Compare(a.rev.Main, b.rev.Main), cmp.Compare(a.rev.Sub, b.rev.Sub))
	})
	for _, d := range drops {
		q.push(d.rev, d.due)
	}
	return q
}
