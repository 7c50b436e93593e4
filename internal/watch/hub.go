package watch

import (
	"slices"

	"quorate/internal/kv"
)

// Publish gives the hub the events of one applied batch, in revision order, and the
// store's revision after it. A view that holds them must have been published before.
// Only the applier calls it. It does not block and does not keep the slice; the events'
// bytes it keeps until it has encoded them, soon after.
func (h *Hub) Publish(events []kv.Event, rev int64) {
	p := &h.pending
	size := 0
	for i := range events {
		size += len(events[i].KV)
	}
	p.Lock()
	p.rev = max(p.rev, rev)
	if p.live == 0 {
		// Nobody would get them, and who comes later for them reads history. The hub
		// learns the revision when the next watcher comes.
		p.lost = p.rev
		p.Unlock()
		return
	}
	if len(p.events)+len(events) > h.limits.pendingEvents || p.bytes+size > h.limits.pendingBytes {
		p.dropLocked()
	} else {
		p.events = append(p.events, events...)
		p.bytes += size
	}
	p.Unlock()
	signal(h.wakeHub)
}

// Reload tells that the store's content was replaced by a newer one (a snapshot) at rev
// without events: every live watcher goes on from history. A view of the new content
// must have been published before. Only the applier calls it.
func (h *Hub) Reload(rev int64) {
	p := &h.pending
	p.Lock()
	p.rev = max(p.rev, rev)
	p.dropLocked()
	p.Unlock()
	signal(h.wakeHub)
}

// dropLocked gives up the events up to rev.
func (p *pending) dropLocked() {
	p.events, p.bytes = nil, 0
	p.lost = p.rev
	p.missed = p.live > 0
}

// recycle gives back a slice that was taken, for the next events.
func (p *pending) recycle(events []kv.Event) {
	if cap(events) > recycledEvents {
		return
	}
	clear(events) // lets go of their bytes
	p.Lock()
	defer p.Unlock()
	if p.events == nil {
		p.events = events[:0]
	}
}

// recycledEvents bounds what the hub keeps in reserve.
const recycledEvents = 1 << 10

// dispatchPending hands out what the applier has told so far, and reports false if there
// was nothing.
func (h *Hub) dispatchPending() bool {
	p := &h.pending
	p.Lock()
	events, rev, lost, missed := p.events, p.rev, p.lost, p.missed
	p.events, p.bytes, p.missed = nil, 0, false
	p.Unlock()

	h.mu.Lock()
	defer h.mu.Unlock()
	if missed {
		h.allFallBehind(lost)
	}
	if rev == h.dispatched {
		return false
	}
	taken := events
	for len(events) > 0 {
		part := wholeRevisions(events, h.limits.dispatch)
		events = events[len(part):]
		h.dispatch(part)
		h.dispatched = part[len(part)-1].Rev.Main
		// Let those in who wait for the lock: requests, and Next of who fell behind.
		h.mu.Unlock()
		h.mu.Lock()
	}
	h.dispatched = rev
	h.answerAsked()
	p.recycle(taken)
	return true
}

// wholeRevisions is the first n events and as many more as belong to the same revision.
func wholeRevisions(events []kv.Event, n int) []kv.Event {
	if len(events) <= n {
		return events
	}
	for n < len(events) && events[n].Rev.Main == events[n-1].Rev.Main {
		n++
	}
	return events[:n]
}

// dispatch puts events into the queues of the live watchers that want them.
func (h *Hub) dispatch(events []kv.Event) {
	m := &h.matcher
	defer m.reset()
	for i := range events {
		m.add(&events[i])
	}
	b := m.finish(&h.ring)
	if b == nil {
		return
	}
	for _, g := range m.touched {
		msg := g.message
		// Backwards, because who falls behind is replaced by the last.
		for i := len(g.live) - 1; i >= 0; i-- {
			w := g.live[i]
			from := msg.from(w.next)
			if from < len(msg.events) && !w.stream.offer(w, msg, from) {
				h.fallBehind(w, b.events[msg.events[from]].rev)
			}
		}
	}
	b.release(&h.ring)
}

// tryJoin makes a new watcher or one that is behind live, if all events from w.next on
// are still to be dispatched: w.next > max(dispatched, lost).
func (h *Hub) tryJoin(w *watcher) bool {
	p := &h.pending
	p.Lock()
	ok := w.next > max(h.dispatched, p.lost)
	if ok {
		p.live++
	}
	stale := p.rev > h.dispatched
	p.Unlock()
	if !ok {
		return false
	}
	h.detach(w)
	w.state = live
	w.slot = int32(len(w.group.live))
	w.group.live = append(w.group.live, w)
	if stale {
		signal(h.wakeHub) // nobody may have told it while nobody was live
	}
	return true
}

// detach takes a watcher out of the live ones or those behind.
func (h *Hub) detach(w *watcher) {
	switch w.state {
	case live:
		h.pending.Lock()
		h.pending.live--
		h.pending.Unlock()
		w.group.live = unslot(w.group.live, w)
	case behind:
		h.behind--
		w.stream.behind = unslot(w.stream.behind, w)
		w.stream.lagging.Add(-1)
	}
	w.state = detached
}

// unslot takes w out of ws, in which it is at w.slot.
func unslot(ws []*watcher, w *watcher) []*watcher {
	last := len(ws) - 1
	ws[w.slot] = ws[last]
	ws[w.slot].slot = w.slot
	ws[last] = nil
	if last == 0 {
		return nil
	}
	return ws[:last]
}

// fallBehind has a live watcher go on from history at rev.
func (h *Hub) fallBehind(w *watcher, rev int64) {
	h.detach(w)
	h.fell.Add(1)
	h.follow(w, rev)
}

// follow puts a detached watcher among those behind, to go on at rev.
func (h *Hub) follow(w *watcher, rev int64) {
	s := w.stream
	w.state = behind
	w.next = rev
	w.slot = int32(len(s.behind))
	s.behind = append(s.behind, w)
	h.behind++
	// First told, then looked: Next looks the other way round, so one of the two sees
	// that the queue has room and a watcher wants to fill it.
	s.lagging.Add(1)
	h.feed(s)
}

// feed has a stream's watchers fed from history if its queue has room.
func (h *Hub) feed(s *Stream) {
	if !s.hungry && len(s.behind) > 0 && s.hasRoom() {
		s.hungry = true
		h.hungry = append(h.hungry, s)
		signal(h.wakeCatchUp)
	}
}

// allFallBehind has every live watcher that wanted an event up to lost go on from
// history, from the first that it has not got.
func (h *Hub) allFallBehind(lost int64) {
	for s := range h.streams {
		for _, w := range s.watchers {
			if w.state == live && w.next <= lost {
				h.fallBehind(w, max(w.next, h.dispatched+1))
			}
		}
	}
}

// rewind has a watcher go on from history at rev, and makes what is queued for it void,
// unless what was queued under gen is void already. If the watch has ended meanwhile,
// the rest of its events is lost, which is as if it had ended earlier.
func (h *Hub) rewind(w *watcher, gen uint32, rev int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if w.gen != gen {
		return
	}
	s := w.stream
	s.mu.Lock()
	w.gen++
	s.gen++ // progress of all was queued for this watcher as well
	s.mu.Unlock()
	switch w.state {
	case live:
		h.fallBehind(w, rev)
	case behind:
		h.detach(w)
		h.follow(w, rev)
	}
}

// answerAsked answers the progress requests that waited for dispatched.
func (h *Hub) answerAsked() {
	h.asked = slices.DeleteFunc(h.asked, func(s *Stream) bool {
		if s.progressAt > h.dispatched {
			return false
		}
		s.progressAt = 0
		s.answerProgress()
		return true
	})
}
