package mvcc

import (
	"quorate/internal/kv"
	"quorate/internal/mvcc/index"
	"quorate/internal/wire"
)

// Tx is one request's changes. All of them get the same main revision. Reads through a
// Tx see the changes made so far.
//
// A Tx holds the store's lock from Begin to End; the flusher, which alone shares it, never
// holds it for longer than a small step.
type Tx struct {
	s    *Store
	rev  int64 // of the changes
	subs int64 // how many there are
	from int   // where they begin in s.events
}

// Begin starts one request's changes. Only the applier may call it, one at a time.
func (s *Store) Begin() *Tx {
	s.mu.Lock()
	s.holdImage()
	s.tx = Tx{s: s, rev: s.rev + 1, from: len(s.events)}
	s.inTx = true
	return &s.tx
}

// holdImage keeps the records that the applier reads until the next Publish valid.
func (s *Store) holdImage() {
	if n := len(s.held); n == 0 || s.held[n-1] != s.image {
		s.held = append(s.held, s.image.acquire())
	}
}

func (s *Store) releaseHeld() {
	for _, im := range s.held {
		im.release()
	}
	s.held = nil
}

// End closes tx. It returns the store's revision now, and tx's changes in order. Both
// become visible to others with Publish. The events are ordinary memory that is never
// changed: they are valid as long as anyone holds them.
func (tx *Tx) End() (rev int64, events []kv.Event) {
	s := tx.s
	if tx.subs > 0 {
		s.rev = tx.rev
		s.dirty = true
	}
	rev, events = s.rev, s.events[tx.from:len(s.events):len(s.events)]
	s.inTx = false
	s.mu.Unlock()
	return rev, events
}

// Rev is the revision that reads through tx see: the store's, or one more once tx has
// changed something.
func (tx *Tx) Rev() int64 {
	if tx.subs > 0 {
		return tx.rev
	}
	return tx.rev - 1
}

// CompactRev is the last compacted revision, -1 if none. It counts a Compact that is not
// published yet.
func (tx *Tx) CompactRev() int64 { return tx.s.compactRev }

func (tx *Tx) state() state {
	s := tx.s
	return state{keys: s.index, image: s.image, tail: s.tail, rev: tx.Rev(), compactRev: s.compactRev}
}

// Get returns the live value of key. It is valid until the next Publish.
func (tx *Tx) Get(key []byte) (kv.Record, bool) {
	e, ok := tx.s.index.Get(key)
	if !ok {
		return kv.Record{}, false
	}
	return tx.record(e.Mod), true
}

func (tx *Tx) record(rev kv.Revision) kv.Record {
	st := tx.state()
	l := st.lookup()
	defer l.done()
	return l.record(rev)
}

// Range is View.Range over the state that tx sees.
func (tx *Tx) Range(r *kv.Range, emit func(keyValue []byte)) (Found, error) {
	st := tx.state()
	return st.readRange(r, emit)
}

// Put sets key and returns the lease that the value it replaced hung on, kv.NoLease if
// none. key must not be empty. The slices are copied.
func (tx *Tx) Put(key, value []byte, lease kv.LeaseID) (old kv.LeaseID) {
	s := tx.s
	rev := kv.Revision{Main: tx.rev, Sub: tx.subs}
	prev, live := s.index.Put(key, rev)
	k := wire.KeyValue{Key: key, Create: rev.Main, Mod: rev.Main, Version: 1, Value: value, Lease: lease}
	if live {
		k.Create, k.Version = prev.Create, prev.Version+1
		old = tx.unlease(prev.Mod)
		s.superseded.push(prev.Mod, rev.Main)
	}
	if lease != kv.NoLease {
		s.leased++
	}
	tx.add(kv.Record{Rev: rev, KV: wire.AppendKeyValue(s.slab.alloc(k.Size()), &k)}, prev.Mod)
	return old
}

// unlease returns the lease of a record that is being replaced, and counts it out. The
// record is not looked up, which may mean to read the file, while no key has a lease.
func (tx *Tx) unlease(rev kv.Revision) kv.LeaseID {
	if tx.s.leased == 0 {
		return kv.NoLease
	}
	id := wire.LeaseOf(tx.record(rev).KV)
	if id != kv.NoLease {
		tx.s.leased--
	}
	return id
}

// Delete deletes every live key of span, in key order, and returns how many there were.
// It calls each, unless nil, with each record that it deletes, which is valid until the
// next Publish, and detach, unless nil, with each key that had a lease.
func (tx *Tx) Delete(span kv.Span, each func(prev kv.Record), detach func(id kv.LeaseID, key []byte)) int64 {
	s := tx.s
	var doomed []index.Entry
	s.index.Ascend(span, func(e index.Entry) bool {
		doomed = append(doomed, e)
		return true
	})
	for _, e := range doomed {
		if each != nil {
			each(tx.record(e.Mod))
		}
		rev := kv.Revision{Main: tx.rev, Sub: tx.subs}
		if id := tx.unlease(e.Mod); id != kv.NoLease && detach != nil {
			detach(id, e.Key)
		}
		s.index.Delete(e.Key, rev)
		s.superseded.push(e.Mod, rev.Main)
		s.tombstones.push(rev, rev.Main+1)
		k := wire.KeyValue{Key: e.Key}
		tx.add(kv.Record{Rev: rev, Tombstone: true, KV: wire.AppendKeyValue(s.slab.alloc(k.Size()), &k)}, e.Mod)
	}
	return int64(len(doomed))
}

// add puts one change behind the tail.
func (tx *Tx) add(r kv.Record, prev kv.Revision) {
	s := tx.s
	s.tail.append(r)
	s.grow(recordCost + len(r.KV))
	s.events = append(s.events, kv.Event{Record: r, Key: wire.KeyOf(r.KV), Prev: prev})
	tx.subs++
}

// recordCost is what a record or a bucket change takes beside its bytes, about.
const recordCost = 96
