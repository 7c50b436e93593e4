package mvcc

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"slices"
	"sort"

	"quorate/internal/kv"
	"quorate/internal/mvcc/index"
	"quorate/internal/wire"
)

// state is what one reader sees: which revisions there are, and where their records are.
type state struct {
	keys       keys
	image      *image
	tail       tail
	rev        int64 // newest main revision
	compactRev int64 // last compacted one, -1 if none
}

// keys is the index of a View (a Tree) or of the applier (a Writer).
type keys interface {
	Get(key []byte) (index.Entry, bool)
	Count(span kv.Span) int64
	Ascend(span kv.Span, fn func(index.Entry) bool)
	Revisions(span kv.Span, rev int64, fn func(mod kv.Revision) bool)
	RevisionsDown(span kv.Span, rev int64, fn func(mod kv.Revision) bool)
}

// lookup finds the records of a state. It must be ended with done.
type lookup struct {
	st *state
	f  *finder // for the file, once it is needed
}

func (st *state) lookup() lookup { return lookup{st: st} }

func (l *lookup) done() {
	if l.f != nil {
		l.st.image.put(l.f)
	}
}

// record returns the record of a revision that the index names.
func (l *lookup) record(rev kv.Revision) kv.Record {
	if rev.Main > l.st.image.rev {
		if r, ok := l.st.tail.find(rev); ok {
			return *r
		}
	} else {
		if l.f == nil {
			l.f = l.st.image.finder()
		}
		if r, ok := l.f.find(rev); ok {
			return r
		}
	}
	panic(fmt.Sprintf("mvcc: the index names revision %v, which has no record (store at %d, compacted at %d, file at %d)",
		rev, l.st.rev, l.st.compactRev, l.st.image.rev))
}

// Found is the part of a RangeResponse that is not its keys.
type Found struct {
	Count int64 // keys of the span at the revision; no limit or filter counts
	More  bool  // the limit cut the result
}

// readRange is Range, of View and Tx.
func (st *state) readRange(r *kv.Range, emit func(keyValue []byte)) (Found, error) {
	rev := r.Revision
	if rev <= 0 {
		rev = st.rev
	}
	switch {
	case rev > st.rev:
		return Found{}, kv.ErrFutureRevision
	case rev < st.compactRev:
		return Found{}, kv.ErrCompacted
	case r.CountOnly:
		return Found{Count: st.count(r.Span, rev)}, nil
	}
	if r.KeysOnly {
		whole, buf := emit, []byte(nil)
		emit = func(b []byte) {
			buf = wire.AppendWithoutValue(buf[:0], b)
			whole(buf)
		}
	}
	l := st.lookup()
	defer l.done()
	if r.Single() && rev == st.rev && !r.Filtered() { // by far the most frequent: no closure, no allocation
		e, ok := st.keys.Get(r.Key)
		if !ok {
			return Found{}, nil
		}
		emit(l.record(e.Mod).KV)
		return Found{Count: 1}, nil
	}
	if r.Filtered() || r.SortTarget != kv.SortByKey {
		return l.sorted(r, rev, emit), nil
	}
	return l.inOrder(r, rev, emit), nil
}

// count is the number of keys of span that were live at main revision rev.
func (st *state) count(span kv.Span, rev int64) int64 {
	if rev == st.rev {
		return st.keys.Count(span)
	}
	var n int64
	st.keys.Revisions(span, rev, func(kv.Revision) bool { n++; return true })
	return n
}

// inOrder is a Range in key order, up or down, without filters: it touches no more keys
// than it emits if rev is the newest revision.
func (l *lookup) inOrder(r *kv.Range, rev int64, emit func([]byte)) Found {
	limit := r.Limit
	if limit <= 0 {
		limit = math.MaxInt64
	}
	var n int64
	live := rev == l.st.rev
	visit := func(mod kv.Revision) bool {
		if n < limit {
			emit(l.record(mod).KV)
		}
		n++
		return !live || n < limit
	}
	if r.SortOrder == kv.SortDescend {
		l.st.keys.RevisionsDown(r.Span, rev, visit)
	} else {
		l.st.keys.Revisions(r.Span, rev, visit)
	}
	count := n
	if live && n == limit {
		count = l.st.keys.Count(r.Span)
	}
	return Found{Count: count, More: count > limit}
}

// item is one key of a Range that is filtered or sorted before it is emitted.
type item struct {
	mod   kv.Revision
	kv    []byte // nil: not looked up yet
	num   int64  // what is sorted by, or value is
	value []byte
}

// sorted is a Range with filters or an order of its own.
func (l *lookup) sorted(r *kv.Range, rev int64, emit func([]byte)) Found {
	// As in etcd, a target other than the key sorts even if no order is asked for. But
	// the limit then cuts what is sorted to one more than itself, first by key.
	fetch := int64(math.MaxInt64)
	if r.SortOrder == kv.SortNone && !r.Filtered() && r.Limit > 0 && r.Limit < math.MaxInt64 {
		fetch = r.Limit + 1
	}
	decode := r.MinCreate != 0 || r.MaxCreate != 0 ||
		r.SortTarget == kv.SortByVersion || r.SortTarget == kv.SortByCreate || r.SortTarget == kv.SortByValue
	var items []item
	var n int64
	live := rev == l.st.rev
	l.st.keys.Revisions(r.Span, rev, func(mod kv.Revision) bool {
		n++
		if n <= fetch {
			if it := (item{mod: mod, num: mod.Main}); l.admit(r, &it, decode) {
				items = append(items, it)
			}
		}
		return !live || n < fetch
	})
	count := n
	if live && n == fetch {
		count = l.st.keys.Count(r.Span)
	}
	sortItems(items, r.SortTarget, r.SortOrder)
	more := r.Limit > 0 && int64(len(items)) > r.Limit
	if more {
		items = items[:r.Limit]
	}
	for i := range items {
		if items[i].kv == nil {
			items[i].kv = l.record(items[i].mod).KV
		}
		emit(items[i].kv)
	}
	return Found{Count: count, More: more}
}

// admit reports whether r's filters let it through. If decode, it reads what filters and
// order need from the record.
func (l *lookup) admit(r *kv.Range, it *item, decode bool) bool {
	if outside(it.mod.Main, r.MinMod, r.MaxMod) {
		return false
	}
	if !decode {
		return true
	}
	it.kv = l.record(it.mod).KV
	k, err := wire.DecodeKeyValue(it.kv)
	if err != nil {
		panic(fmt.Sprintf("mvcc: record of revision %v: %v", it.mod, err)) // it was read or written well before
	}
	switch r.SortTarget {
	case kv.SortByVersion:
		it.num = k.Version
	case kv.SortByCreate:
		it.num = k.Create
	case kv.SortByValue:
		it.value = k.Value
	}
	return !outside(k.Create, r.MinCreate, r.MaxCreate)
}

func outside(rev, lo, hi int64) bool { return lo != 0 && rev < lo || hi != 0 && rev > hi }

// sortItems sorts items, which are in key order. Equal ones come out as in etcd, which
// uses sort.Sort: it is not stable, but does the same on each call.
func sortItems(items []item, target kv.SortTarget, order kv.SortOrder) {
	if target == kv.SortByKey {
		if order == kv.SortDescend {
			slices.Reverse(items)
		}
		return
	}
	var by sort.Interface = byNumber(items)
	if target == kv.SortByValue {
		by = byValue(items)
	}
	if order == kv.SortDescend {
		by = sort.Reverse(by)
	}
	sort.Sort(by)
}

type byNumber []item

func (s byNumber) Len() int           { return len(s) }
func (s byNumber) Swap(i, j int)      { s[i], s[j] = s[j], s[i] }
func (s byNumber) Less(i, j int) bool { return cmp.Less(s[i].num, s[j].num) }

type byValue []item

func (s byValue) Len() int           { return len(s) }
func (s byValue) Swap(i, j int)      { s[i], s[j] = s[j], s[i] }
func (s byValue) Less(i, j int) bool { return bytes.Compare(s[i].value, s[j].value) < 0 }
