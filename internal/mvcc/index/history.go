package index

import (
	"sort"
	"sync/atomic"

	"quorate/internal/kv"
)

// change is one older change of a key in 12 bytes: main revision (high, low), and the
// sub revision with the tombstone mark in its lowest bit.
type change [3]uint32

// subMax bounds sub revisions: a request makes fewer changes than this.
const subMax = 1<<31 - 1

func newChange(rev kv.Revision, tombstone bool) change {
	c := change{uint32(uint64(rev.Main) >> 32), uint32(rev.Main), uint32(rev.Sub) << 1}
	if tombstone {
		c[2] |= 1
	}
	return c
}

func (c change) main() int64     { return int64(uint64(c[0])<<32 | uint64(c[1])) }
func (c change) tombstone() bool { return c[2]&1 != 0 }
func (c change) rev() kv.Revision {
	return kv.Revision{Main: c.main(), Sub: int64(c[2] >> 1)}
}

// chunkLen is how many changes make a full chunk of a long history.
const chunkLen = 4096

// history is the changes of a key before its current one, oldest first. It is never
// empty.
//
// All trees that know the key share it, and the writer appends to it in place: an older
// tree that reads meanwhile looks for a main revision below its own current one, finds it
// in front of whatever was appended since, and n tells it how much of the tail it may
// touch. Where there is no room, append makes a new history. A long one keeps full chunks
// apart, so that appending never copies more than one.
type history struct {
	n     atomic.Uint32 // how much of tail is in use
	tail  []change
	older *[][]change // full chunks before tail; not changed in place
	short [2]change   // memory for the first tail, which for most is the last
}

func newHistory(c change) *history {
	h := &history{short: [2]change{c}}
	h.tail = h.short[:]
	h.n.Store(1)
	return h
}

// append adds c and returns the history that now holds all: h or a new one.
func (h *history) append(c change) *history {
	n := int(h.n.Load())
	if !h.tail[n-1].rev().Less(c.rev()) {
		panic("index: a change to an old tree: " + c.rev().String() + " after " + h.tail[n-1].rev().String())
	}
	if n < len(h.tail) {
		h.tail[n] = c
		h.n.Store(uint32(n + 1))
		return h
	}
	next := &history{older: h.older}
	if n < chunkLen {
		next.tail = make([]change, min(2*n, chunkLen))
		copy(next.tail, h.tail)
		next.tail[n] = c
		next.n.Store(uint32(n + 1))
		return next
	}
	var older [][]change
	if h.older != nil {
		older = *h.older
	}
	// A copy costs eight bytes per 4096 changes; an append in place would save it only
	// to make "not changed in place" untrue.
	older = append(older[:len(older):len(older)], h.tail)
	next.older = &older
	next.tail = make([]change, chunkLen/16)
	next.tail[0] = c
	next.n.Store(1)
	return next
}

// at returns the newest change at or below main revision rev.
func (h *history) at(rev int64) (change, bool) {
	chunk := h.tail[:h.n.Load()]
	if h.older != nil && chunk[0].main() > rev {
		older := *h.older
		i := sort.Search(len(older), func(i int) bool { return older[i][0].main() > rev })
		if i == 0 {
			return change{}, false
		}
		chunk = older[i-1]
	}
	i := upper(chunk, rev)
	if i == 0 {
		return change{}, false
	}
	return chunk[i-1], true
}

// upper is the number of changes in chunk at or below main revision rev.
func upper(chunk []change, rev int64) int {
	lo, hi := 0, len(chunk)
	for lo < hi {
		if mid := int(uint(lo+hi) / 2); chunk[mid].main() <= rev {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// compact returns the history without what a compaction at rev drops, nil if nothing
// stays: h itself if it drops nothing. The key's current change must be above rev.
func (h *history) compact(rev int64) *history {
	survivor, ok := h.at(rev)
	if !ok {
		return h
	}
	if survivor.tombstone() && survivor.main() < rev {
		// Drop it too: what is at or below rev is then just what is to go.
		return h.after(survivor.rev())
	}
	return h.from(survivor.rev())
}

// from returns the history without the changes before first, after without those up to
// and including last.
func (h *history) from(first kv.Revision) *history {
	return h.cut(func(c change) bool { return c.rev().Less(first) })
}

func (h *history) after(last kv.Revision) *history {
	return h.cut(func(c change) bool { return !last.Less(c.rev()) })
}

// cut returns the history without the changes at its beginning for which drop is true.
func (h *history) cut(drop func(change) bool) *history {
	if h.older != nil {
		older := *h.older
		i := sort.Search(len(older), func(i int) bool { c := older[i]; return !drop(c[len(c)-1]) })
		if i < len(older) {
			j := sort.Search(len(older[i]), func(j int) bool { return !drop(older[i][j]) })
			if i == 0 && j == 0 {
				return h
			}
			next := &history{tail: h.tail}
			next.n.Store(h.n.Load())
			older = append([][]change(nil), older[i:]...)
			older[0] = older[0][j:]
			if cap(older[0]) > 2*len(older[0]) {
				older[0] = append([]change(nil), older[0]...)
			}
			next.older = &older
			return next
		}
	}
	tail := h.tail[:h.n.Load()]
	j := sort.Search(len(tail), func(j int) bool { return !drop(tail[j]) })
	if j == 0 && h.older == nil {
		return h
	}
	if j == len(tail) {
		return nil
	}
	next := &history{tail: append([]change(nil), tail[j:]...)}
	next.n.Store(uint32(len(next.tail)))
	return next
}

// len is the number of changes.
func (h *history) len() int {
	n := int(h.n.Load())
	if h.older != nil {
		for _, c := range *h.older {
			n += len(c)
		}
	}
	return n
}

func (h *history) bytes() int64 {
	n := 64
	if cap(h.tail) > len(h.short) {
		n += 12 * cap(h.tail)
	}
	if h.older != nil {
		for _, c := range *h.older {
			n += 24 + 12*cap(c)
		}
	}
	return int64(n)
}
