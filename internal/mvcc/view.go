package mvcc

import (
	"sync/atomic"

	"quorate/internal/kv"
	"quorate/internal/mvcc/index"
	"quorate/internal/wire"
)

// View is the store as it was at one Publish. It is immutable; any number of goroutines
// may read it at once. Holding one keeps replaced pages of the file from being reused.
type View struct {
	state
	tree    index.Tree
	applied uint64
	uses    atomic.Int64
}

// View returns the newest published state. Release it when done. It must not be called
// after Close.
func (s *Store) View() *View {
	for {
		v := s.newest.Load()
		if v == nil {
			panic("mvcc: View after Close")
		}
		// A view that was replaced and released in between cannot be had any more, but
		// then there is a newer one.
		for n := v.uses.Load(); n > 0; n = v.uses.Load() {
			if v.uses.CompareAndSwap(n, n+1) {
				return v
			}
		}
	}
}

// Release gives v back. Records read through v must not be used after.
func (v *View) Release() {
	if v.uses.Add(-1) == 0 {
		v.image.release()
	}
}

// Rev is the store's revision in v; CompactRev the last compacted one, -1 if none.
func (v *View) Rev() int64        { return v.rev }
func (v *View) CompactRev() int64 { return v.compactRev }

// Applied is the raft index that v is the state after.
func (v *View) Applied() uint64 { return v.applied }

// Range calls emit with each found mvccpb.KeyValue in wire form, in the order asked for.
// The slice is valid during the call only. It returns kv.ErrCompacted or
// kv.ErrFutureRevision, before any emit.
func (v *View) Range(r *kv.Range, emit func(keyValue []byte)) (Found, error) {
	return v.readRange(r, emit)
}

// Record returns the change of key that was current at main revision rev, which may be a
// tombstone. There is none if rev is below the compacted revision or above the view's, or
// if it is a tombstone of before the compacted revision. It is how a watcher finds the
// previous value: Record(key, mod-1).
func (v *View) Record(key []byte, rev int64) (kv.Record, bool) {
	if rev < v.compactRev || rev > v.rev {
		return kv.Record{}, false
	}
	mod, dead, ok := v.tree.At(key, rev)
	if !ok || dead && mod.Main < v.compactRev { // the file may have forgotten it before the index
		return kv.Record{}, false
	}
	l := v.lookup()
	defer l.done()
	return l.record(mod), true
}

// Changes calls fn with every change from main revision lo to hi, both included, in
// order, until fn returns false. It returns kv.ErrCompacted if lo is below the compacted
// revision. Prev of the events is not set; their bytes are valid as long as v is held.
func (v *View) Changes(lo, hi int64, fn func(kv.Event) bool) error {
	if lo < v.compactRev {
		return kv.ErrCompacted
	}
	v.records(lo, hi, func(r kv.Record) bool {
		return fn(kv.Event{Record: r, Key: wire.KeyOf(r.KV)})
	})
	return nil
}

// records calls fn with the records from main revision lo to hi in order until it
// returns false.
func (st *state) records(lo, hi int64, fn func(kv.Record) bool) {
	hi = min(hi, st.rev)
	if lo <= min(hi, st.image.rev) {
		f := st.image.finder()
		defer st.image.put(f)
		for k, v := f.seek(kv.Revision{Main: max(lo, 0)}); k != nil && f.at.Main <= hi; k, v = f.next() {
			if !fn(kv.Record{Rev: f.at, Tombstone: len(k) > revLen, KV: v}) {
				return
			}
		}
	}
	for n := st.tail.search(kv.Revision{Main: lo}); n < st.tail.hi; n++ {
		r := st.tail.at(n)
		if r.Rev.Main > hi || !fn(*r) {
			return
		}
	}
}
