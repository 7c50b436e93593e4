package watch

import (
	"slices"

	"quorate/internal/kv"
	"quorate/internal/wire"
)

// catchUp feeds the watchers that are behind from history. One goroutine owns it, for
// the whole hub: each step reads one chunk of history from one view, for everybody who
// wants something of it, so that ten thousand watchers which come back at the same
// revision cost one reading and not ten thousand.
//
// Steps alternate. Every other goes on with a sweep from old to new: it takes the lowest
// revision that anybody wants at or above where the last one ended, and begins again
// below when there is none; everybody whom it passes goes along, so the sweep reads no
// chunk twice. The steps between serve who wants the highest revision, for those who are
// almost there shall not wait for a sweep through a long history.
type catchUp struct {
	hub   *Hub
	sweep int64 // the next sweeping step begins here
	high  bool  // the next step is for the highest
	taken []participant
}

// participant is a watcher that takes part in a step.
type participant struct {
	w    *watcher
	gen  uint32
	next int64
	g    *group // of the step's own set
}

// deliverMax is how many participants get their events in one go under the hub's lock.
const deliverMax = 256

// step reads one chunk for those who want it. It reports false if nobody wants one.
func (c *catchUp) step() bool {
	h := c.hub
	v := h.opts.View()
	rev := v.Rev()
	lo, ok := c.choose(v)
	if !ok {
		v.Release()
		return false
	}
	if len(c.taken) == 0 {
		v.Release()
		return true
	}

	var wanted set
	for i := range c.taken {
		p := &c.taken[i]
		p.g = wanted.add(p.w.group.span, p.w.group.flags)
	}
	m := matcher{set: &wanted}
	hi, err := c.read(v, &m, lo, rev)
	v.Release()
	if err != nil {
		c.fail(err)
		return true
	}
	b := m.finish(&h.ring)
	if b != nil {
		b.upTo = hi
	}
	for part := range slices.Chunk(c.taken, deliverMax) {
		h.mu.Lock()
		for i := range part {
			h.deliver(&part[i], hi)
		}
		h.mu.Unlock()
	}
	if b != nil {
		b.release(&h.ring)
	}
	if !c.high {
		c.sweep = hi + 1
	}
	c.high = !c.high
	c.forget()
	return true
}

// choose decides where the next chunk begins and who takes part. It also ends the
// watches that compaction has overtaken, and makes those live that have caught up. It
// reports false if nobody is left who wants history.
func (c *catchUp) choose(v View) (lo int64, ok bool) {
	h := c.hub
	rev, compacted := v.Rev(), v.CompactRev()
	h.mu.Lock()
	defer h.mu.Unlock()
	lowest, above, highest := int64(-1), int64(-1), int64(-1)
	h.hungry = slices.DeleteFunc(h.hungry, func(s *Stream) bool {
		if s.hasRoom() {
			for i := len(s.behind) - 1; i >= 0; i-- {
				w := s.behind[i]
				switch {
				case w.next < compacted:
					h.end(w, &wire.WatchHead{WatchID: w.id, Canceled: true, CompactRev: compacted})
				case w.next > rev:
					h.tryJoin(w)
				default:
					if lowest < 0 || w.next < lowest {
						lowest = w.next
					}
					if w.next >= c.sweep && (above < 0 || w.next < above) {
						above = w.next
					}
					highest = max(highest, w.next)
				}
			}
		}
		s.hungry = len(s.behind) > 0 && s.hasRoom()
		return !s.hungry
	})
	switch {
	case len(h.hungry) == 0:
		return 0, false
	case lowest < 0:
		return 0, true // they all want what only a newer view has
	case c.high:
		lo = highest
	case above >= 0:
		lo = above
	default:
		lo = lowest
	}
	for _, s := range h.hungry {
		for _, w := range s.behind {
			if lo <= w.next && w.next <= rev && w.next-lo < int64(h.limits.chunkEvents) {
				c.taken = append(c.taken, participant{w: w, gen: w.gen, next: w.next})
			}
		}
	}
	return lo, true
}

// read matches the changes from lo on, until the chunk is full or rev is reached, always
// whole revisions. It returns the revision up to which it got.
func (c *catchUp) read(v View, m *matcher, lo, rev int64) (hi int64, err error) {
	l := &c.hub.limits
	seen, last := 0, lo-1
	hi = rev
	err = v.Changes(lo, rev, func(ev kv.Event) bool {
		if ev.Rev.Main != last {
			if seen >= l.chunkEvents || len(m.enc.bytes) >= l.chunkBytes {
				hi = last
				return false
			}
			last = ev.Rev.Main
		}
		seen++
		m.add(&ev)
		return true
	})
	return hi, err
}

// deliver queues what p wants of a chunk that ends at hi, and makes p live if it has
// caught up. The caller holds mu.
func (h *Hub) deliver(p *participant, hi int64) {
	w := p.w
	if w.state != behind || w.gen != p.gen {
		return // canceled, or to be read again from a lower revision
	}
	if msg := p.g.message; msg != nil {
		if from := msg.from(p.next); from < len(msg.events) {
			s := w.stream
			s.mu.Lock()
			s.putEvents(w, msg, from)
			s.mu.Unlock()
		}
	}
	w.next = max(w.next, hi+1)
	h.tryJoin(w)
}

// end ends a watch that history cannot serve. Its id stays taken until it is canceled,
// and the header of the answer has no revision, both as in etcd.
func (h *Hub) end(w *watcher, wh *wire.WatchHead) {
	h.detach(w)
	w.state = over
	w.stream.answer(0, wh)
}

// fail ends the watches of a step whose history could not be read: the clients are told,
// and may ask again. It is not expected to happen, for choose has left out what the view
// has compacted.
func (c *catchUp) fail(err error) {
	h := c.hub
	defer c.forget()
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range c.taken {
		if p := &c.taken[i]; p.w.state == behind && p.w.gen == p.gen {
			h.end(p.w, &wire.WatchHead{WatchID: p.w.id, Canceled: true, CancelReason: err.Error()})
		}
	}
}

// forget lets go of what the last step held.
func (c *catchUp) forget() {
	clear(c.taken)
	if c.taken = c.taken[:0]; cap(c.taken) > deliverMax {
		c.taken = nil
	}
}
