package lease

import (
	"iter"
	"time"

	"quorate/internal/kv"
)

// lease is what is known of one. A million of them should cost what their bytes cost, so
// each is 48 bytes in a slab, and is named by its slot there.
type lease struct {
	id      kv.LeaseID // NoLease: the slot is free
	ttl     int64      // seconds
	renewed instant    // -1: never by this member
	few     fewKeys    // its keys, unless Lessor.many has them
	due     tick       // when the queue looks at it again, if it is in the queue
	place   uint32     // where in the queue, if it is
}

// slot names a lease in a slab.
type slot uint32

// slab holds leases in chunks, so that growing copies nothing.
type slab struct {
	chunks []*[chunkLen]lease
	n      slot   // slots ever used
	unused []slot // of these, those that are free
}

const chunkLen = 1024

func (b *slab) at(s slot) *lease { return &b.chunks[s/chunkLen][s%chunkLen] }

// end is above all slots in use.
func (b *slab) end() slot { return b.n }

func (b *slab) add(e lease) slot {
	var s slot
	if n := len(b.unused); n > 0 {
		s = b.unused[n-1]
		b.unused = b.unused[:n-1]
	} else {
		if b.n%chunkLen == 0 {
			b.chunks = append(b.chunks, new([chunkLen]lease))
		}
		s = b.n
		b.n++
	}
	*b.at(s) = e
	return s
}

func (b *slab) free(s slot) {
	*b.at(s) = lease{}
	b.unused = append(b.unused, s)
}

// used yields the slots in use from from on, before to.
func (b *slab) used(from, to slot) iter.Seq[slot] {
	return func(yield func(slot) bool) {
		for s := from; s < min(to, b.n); s++ {
			if b.at(s).id != kv.NoLease && !yield(s) {
				return
			}
		}
	}
}

// tick is an instant in steps of a tenth of a second, rounded up, because half the bytes
// do. What is more than 13 years after the start of the process is never.
type tick uint32

const (
	tickLen = instant(100 * time.Millisecond)
	never   = tick(1<<32 - 1)
)

func (i instant) tick() tick { return tick(min((i-1)/tickLen+1, instant(never))) }

func (t tick) instant() instant { return instant(t) * tickLen }

// queue is a heap of leases by when to look at them again. Each node has four children,
// which makes it flat and lets siblings share a cache line.
type queue struct {
	heap []slot
}

const fanout = 4

// has reports whether s is in the queue. A lease's place is from another time if not.
func (q *queue) has(b *slab, s slot) bool {
	place := b.at(s).place
	return int(place) < len(q.heap) && q.heap[place] == s
}

func (q *queue) push(b *slab, s slot, due instant) {
	b.at(s).due = due.tick()
	q.heap = append(q.heap, s)
	q.up(b, len(q.heap)-1)
}

// first is the lease to look at next, and when.
func (q *queue) first(b *slab) (s slot, due instant, ok bool) {
	if len(q.heap) == 0 || b.at(q.heap[0]).due == never {
		return 0, 0, false
	}
	return q.heap[0], b.at(q.heap[0]).due.instant(), true
}

// later moves s, which must be in the queue, to a later time.
func (q *queue) later(b *slab, s slot, due instant) {
	e := b.at(s)
	e.due = due.tick()
	q.down(b, int(e.place))
}

// remove takes s out if it is there.
func (q *queue) remove(b *slab, s slot) {
	if !q.has(b, s) {
		return
	}
	i, last := int(b.at(s).place), len(q.heap)-1
	q.heap[i] = q.heap[last]
	q.heap = q.heap[:last]
	if i < last {
		q.down(b, q.up(b, i))
	}
}

// up moves the entry at i to where it belongs towards the first, and returns where.
func (q *queue) up(b *slab, i int) int {
	s := q.heap[i]
	due := b.at(s).due
	for i > 0 {
		parent := (i - 1) / fanout
		if b.at(q.heap[parent]).due <= due {
			break
		}
		q.put(b, i, q.heap[parent])
		i = parent
	}
	q.put(b, i, s)
	return i
}

// down moves the entry at i to where it belongs away from the first.
func (q *queue) down(b *slab, i int) {
	s := q.heap[i]
	due := b.at(s).due
	for {
		least, leastDue := -1, due
		for kid := fanout*i + 1; kid <= fanout*i+fanout && kid < len(q.heap); kid++ {
			if d := b.at(q.heap[kid]).due; d < leastDue {
				least, leastDue = kid, d
			}
		}
		if least < 0 {
			break
		}
		q.put(b, i, q.heap[least])
		i = least
	}
	q.put(b, i, s)
}

func (q *queue) put(b *slab, i int, s slot) {
	q.heap[i] = s
	b.at(s).place = uint32(i)
}
