package watch

import (
	"slices"
	"sync"
	"sync/atomic"

	"quorate/internal/kv"
	"quorate/internal/wire"
)

// batch is events that were matched together, encoded for all who see them. Queues refer
// to its events by number.
type batch struct {
	// Constant once the batch is in a queue.
	events []event
	upTo   int64 // the revision up to which history was read for it; 0 for live events

	// plain is the events in wire form; nil once the ring has dropped the batch. prev is
	// the same with previous values, made by the first who needs it.
	plain  atomic.Pointer[encoding]
	prev   atomic.Pointer[encoding]
	prevMu sync.Mutex

	// refs counts the queue entries that refer to the batch, and who is making them.
	refs atomic.Int32

	// Guarded by the ring.
	older, newer *batch
	bytes        int
	inRing       bool
}

// event is what is known of an event beside its bytes.
type event struct {
	rev       int64
	kvLen     int32 // its KeyValue is the last so many bytes of the plain encoding
	tombstone bool
	wantsPrev bool // somebody who gets the event wants its previous value
}

// encoding is the events of a batch as they stand in a WatchResponse, one after the
// other: event i is bytes[ends[i-1]:ends[i]].
type encoding struct {
	bytes []byte
	ends  []int
}

func (e *encoding) start(i int) int {
	if i == 0 {
		return 0
	}
	return e.ends[i-1]
}

// message is what a group's watchers share: which events of a batch they see. With no
// batch it is an answer of one stream, in wire form.
type message struct {
	batch  *batch
	events []int32
	bytes  int // of the events, without previous values
	answer []byte
}

// from is the index of the first of m's events with a revision of at least rev.
func (m *message) from(rev int64) int {
	if m.batch.events[m.events[0]].rev >= rev {
		return 0
	}
	i, _ := slices.BinarySearchFunc(m.events, rev, func(e int32, rev int64) int {
		if m.batch.events[e].rev < rev {
			return -1
		}
		return 1
	})
	return i
}

// matcher collects the events that the groups of a set want into a batch.
type matcher struct {
	set      *set
	liveOnly bool // leave out groups without live watchers

	// Of the batch that is being made.
	enc     encoding
	events  []event
	touched []*group

	found   []*group
	scratch []byte
}

// add matches one event. Events must come in revision order.
func (m *matcher) add(ev *kv.Event) {
	m.found = m.set.match(m.found[:0], ev.Key)
	number := int32(-1)
	for _, first := range m.found {
		for g := first; g != nil; g = g.sibling {
			if m.liveOnly && len(g.live) == 0 || !g.wants(ev.Tombstone) {
				continue
			}
			if number < 0 {
				number = m.encode(ev)
			}
			if g.flags&withPrev != 0 {
				m.events[number].wantsPrev = true
			}
			if len(g.hits) == 0 {
				m.touched = append(m.touched, g)
			}
			g.hits = append(g.hits, number)
		}
	}
}

// encode adds ev to the batch and returns its number.
func (m *matcher) encode(ev *kv.Event) int32 {
	keyValue := ev.KV
	if ev.Tombstone {
		// The store keeps a deleted key alone; watchers learn when it was deleted.
		m.scratch = wire.AppendKeyValue(m.scratch[:0], &wire.KeyValue{Key: ev.Key, Mod: ev.Rev.Main})
		keyValue = m.scratch
	}
	if m.enc.bytes == nil {
		m.enc.bytes = make([]byte, 0, wire.WatchEventSize(ev.Tombstone, keyValue, nil))
	}
	m.enc.bytes = wire.AppendWatchEvent(m.enc.bytes, ev.Tombstone, keyValue, nil)
	m.enc.ends = append(m.enc.ends, len(m.enc.bytes))
	m.events = append(m.events, event{rev: ev.Rev.Main, kvLen: int32(len(keyValue)), tombstone: ev.Tombstone})
	return int32(len(m.events) - 1)
}

// finish makes the batch, with one reference that is the caller's, and the message of
// every touched group. It returns nil if nobody wants anything. After reset the matcher
// may be used again.
func (m *matcher) finish(r *ring) *batch {
	if len(m.events) == 0 {
		return nil
	}
	b := &batch{events: m.events, bytes: cap(m.enc.bytes)}
	enc := m.enc
	b.plain.Store(&enc)
	b.refs.Store(1)
	for _, g := range m.touched {
		msg := &message{batch: b, events: g.hits}
		for _, i := range g.hits {
			msg.bytes += enc.ends[i] - enc.start(int(i))
		}
		g.hits, g.message = nil, msg
	}
	r.add(b)
	return b
}

func (m *matcher) reset() {
	for _, g := range m.touched {
		g.message = nil
	}
	clear(m.touched)
	clear(m.found)
	m.enc, m.events = encoding{}, nil
	m.touched, m.found = m.touched[:0], m.found[:0]
}

// withPrev returns the encoding of b's events with previous values, nil if the ring has
// dropped b. A previous value is what a view has now: none if it was compacted away.
func (b *batch) withPrev(h *Hub) *encoding {
	if e := b.prev.Load(); e != nil {
		return e
	}
	b.prevMu.Lock()
	defer b.prevMu.Unlock()
	if e := b.prev.Load(); e != nil {
		return e
	}
	plain := b.plain.Load()
	if plain == nil {
		return nil
	}
	v := h.opts.View()
	defer v.Release()
	e := &encoding{ends: make([]int, len(plain.ends))}
	for i := range b.events {
		ev := &b.events[i]
		if ev.wantsPrev {
			keyValue := plain.bytes[plain.ends[i]-int(ev.kvLen) : plain.ends[i]]
			prev := previous(v, keyValue, ev)
			if e.bytes == nil {
				e.bytes = make([]byte, 0, wire.WatchEventSize(ev.tombstone, keyValue, prev))
			}
			e.bytes = wire.AppendWatchEvent(e.bytes, ev.tombstone, keyValue, prev)
		}
		e.ends[i] = len(e.bytes)
	}
	h.ring.addPrev(b, e)
	return e
}

// previous returns the KeyValue that ev replaced, nil if there was none or it was
// compacted away. It is valid while v is held.
func previous(v View, keyValue []byte, ev *event) []byte {
	before := ev.rev - 1
	if before < v.CompactRev() {
		return nil
	}
	if !ev.tombstone {
		k, err := wire.DecodeKeyValue(keyValue)
		if err != nil || k.Create == ev.rev {
			return nil
		}
	}
	r, ok := v.Record(wire.KeyOf(keyValue), before)
	if !ok || r.Tombstone {
		return nil
	}
	return r.KV
}

// encoding is b's events in wire form, nil if the ring has dropped b.
func (b *batch) encoding(h *Hub, prev bool) *encoding {
	if prev {
		return b.withPrev(h)
	}
	return b.plain.Load()
}

// release gives up one reference.
func (b *batch) release(r *ring) {
	if b.refs.Add(-1) == 0 {
		r.remove(b)
	}
}

// ring bounds the encoded events in all queues together: a batch is in it from when it
// is made until nobody refers to it, or until it is the oldest and the bound is reached.
type ring struct {
	max int // bytes

	mu             sync.Mutex
	oldest, newest *batch
	bytes          int
}

// add puts a new batch in and drops the oldest until the rest is within the bound; the
// new one itself stays, whatever its size.
func (r *ring) add(b *batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	b.inRing = true
	b.older = r.newest
	if r.newest != nil {
		r.newest.newer = b
	} else {
		r.oldest = b
	}
	r.newest = b
	r.bytes += b.bytes
	for r.bytes > r.max && r.oldest != b {
		r.unlink(r.oldest)
	}
}

// addPrev lets b keep e, its events with previous values, unless b has been dropped.
func (r *ring) addPrev(b *batch, e *encoding) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if b.inRing {
		b.bytes += cap(e.bytes)
		r.bytes += cap(e.bytes)
		b.prev.Store(e)
	}
}

func (r *ring) remove(b *batch) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if b.inRing {
		r.unlink(b)
	}
}

func (r *ring) size() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.bytes
}

// unlink takes b out and drops its bytes. The caller holds mu.
func (r *ring) unlink(b *batch) {
	if b.older != nil {
		b.older.newer = b.newer
	} else {
		r.oldest = b.newer
	}
	if b.newer != nil {
		b.newer.older = b.older
	} else {
		r.newest = b.older
	}
	b.older, b.newer, b.inRing = nil, nil, false
	r.bytes -= b.bytes
	b.plain.Store(nil)
	b.prev.Store(nil)
}
