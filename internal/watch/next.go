package watch

import (
	"context"

	"quorate/internal/kv"
	"quorate/internal/wire"
)

// Next returns the next WatchResponse in wire form, as parts to be sent one after the
// other as one message. The parts are shared with other streams and must not be changed.
// It waits until there is one; its errors are ctx's, and kv.ErrStopped once the stream
// or the hub is closed. One goroutine at a time may call it.
func (s *Stream) Next(ctx context.Context) ([][]byte, error) {
	for {
		if len(s.fragments) > 0 {
			response := s.fragments[0]
			s.fragments = s.fragments[1:]
			return response, nil
		}
		s.fragments = nil
		if err := s.fetch(ctx); err != nil {
			return nil, err
		}
		response := s.assemble()
		clear(s.taken)
		clear(s.pieces)
		s.taken, s.pieces = s.taken[:0], s.pieces[:0]
		if cap(s.taken) > keptEntries {
			s.taken, s.pieces = nil, nil
		}
		if response != nil {
			return response, nil
		}
	}
}

// fetch moves from the queue to taken what makes the next response: one answer, or
// events for one watcher. It waits until there is something.
func (s *Stream) fetch(ctx context.Context) error {
	for {
		s.mu.Lock()
		if s.closed {
			s.mu.Unlock()
			return kv.ErrStopped
		}
		s.takeLocked()
		s.asleep = len(s.taken) == 0
		hungry := s.hasRoomLocked() && s.lagging.Load() > 0
		s.mu.Unlock()
		if hungry {
			s.hub.mu.Lock()
			s.hub.feed(s)
			s.hub.mu.Unlock()
		}
		if len(s.taken) > 0 {
			return nil
		}
		select {
		case <-s.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// takeLocked takes from the queue what can be one response, leaving out what is void.
func (s *Stream) takeLocked() {
	bytes := 0
	for s.queue.len() > 0 && bytes < s.hub.limits.response {
		e := s.queue.peek()
		void := s.void(e)
		if !void && len(s.taken) > 0 && (e.kind != events || e.w != s.taken[0].w) {
			return
		}
		got := s.queue.pop()
		s.account(&got, -1)
		if void {
			s.release(&got)
			continue
		}
		s.taken = append(s.taken, got)
		if got.kind != events {
			return
		}
		bytes += got.msg.bytes
	}
}

func (s *Stream) void(e *entry) bool {
	switch e.kind {
	case events, progressOfOne:
		return e.gen != e.w.gen
	case progressOfAll:
		return e.gen != s.gen
	}
	return false
}

// piece is events of one batch that go into a response.
type piece struct {
	enc    *encoding
	events []int32
}

// assemble makes a response of what was taken, the further fragments of which it leaves
// in s.fragments. It returns nil if nothing came of it: the events were dropped by the
// ring, and the watcher now reads them from history.
func (s *Stream) assemble() [][]byte {
	if first := &s.taken[0]; first.kind != events {
		return [][]byte{first.msg.answer}
	}
	w := s.taken[0].w
	rev, count := s.choose()
	defer func() {
		for i := range s.taken {
			s.release(&s.taken[i])
		}
	}()
	if count == 0 {
		return nil
	}
	s.hub.sent.Add(int64(count))
	if !w.fragment {
		f := new(frame)
		run := run{parts: append(f.parts[:0], s.hub.head(f.head[:0], rev, &wire.WatchHead{WatchID: w.id}))}
		for _, p := range s.pieces {
			for _, i := range p.events {
				run.add(p.enc, int(i))
			}
		}
		return run.parts
	}
	return s.split(w.id, rev)
}

// frame is the common response, a head and one run of events, in one allocation.
type frame struct {
	parts [2][]byte
	head  [64]byte
}

// choose finds out how much of what was taken goes into one response, as pieces: all,
// but for what exceeds the bound on a response, which goes back into the queue, and what
// the ring has dropped, which the watcher is to read from history. It returns the
// header's revision and the number of events.
//
// The revision is one up to which the watcher has now got everything: for history the
// one up to which it was read, which is the store's when the watcher has caught up, and
// for live events that of the last one. This is as in etcd, but that etcd tells the
// store's revision before the watcher has caught up with it, too.
func (s *Stream) choose() (rev int64, count int) {
	h, w := s.hub, s.taken[0].w
	prev := w.group.flags&withPrev != 0
	size, last := 0, int64(0)
	for n := range s.taken {
		e := &s.taken[n]
		b := e.msg.batch
		enc := b.encoding(h, prev)
		if enc == nil {
			h.rewind(w, e.gen, b.events[e.msg.events[e.from]].rev)
			return rev, count
		}
		wanted := e.msg.events[e.from:]
		fit := len(wanted)
		for i, number := range wanted {
			if size >= h.limits.response && b.events[number].rev != last {
				fit = i
				break
			}
			size += enc.ends[number] - enc.start(int(number))
			last = b.events[number].rev
		}
		if fit > 0 {
			s.pieces = append(s.pieces, piece{enc, wanted[:fit]})
			count += fit
			rev = last
		}
		if fit < len(wanted) {
			e.from += int32(fit)
			s.putBack(n)
			return rev, count
		}
		rev = max(rev, b.upTo)
	}
	return rev, count
}

// putBack returns what was taken, from the n-th on, to the front of the queue.
func (s *Stream) putBack(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return // and what was taken is released with the rest
	}
	for i := len(s.taken) - 1; i >= n; i-- {
		s.account(&s.taken[i], 1)
		s.queue.unpop(s.taken[i])
	}
	clear(s.taken[n:])
	s.taken = s.taken[:n]
}

// run puts events together into parts, one for each run of events that lie one after the
// other.
type run struct {
	parts [][]byte
	size  int
	count int // events
	enc   *encoding
	end   int
}

func (r *run) add(enc *encoding, i int) {
	start, end := enc.start(i), enc.ends[i]
	if r.enc == enc && r.end == start {
		last := &r.parts[len(r.parts)-1]
		*last = enc.bytes[start-len(*last) : end : end]
	} else {
		r.parts = append(r.parts, enc.bytes[start:end:end])
	}
	r.enc, r.end = enc, end
	r.size += end - start
	r.count++
}

// split makes a response for a watcher that allows fragments: one, if it is small enough
// or has one event only, else as many as are needed, each as large as may be and with
// one event at least.
func (s *Stream) split(id, rev int64) [][]byte {
	h := s.hub
	whole := h.head(nil, rev, &wire.WatchHead{WatchID: id})
	part := h.head(nil, rev, &wire.WatchHead{WatchID: id, Fragment: true})
	total := len(whole)
	var runs []run
	cur := run{parts: [][]byte{part}, size: len(part)}
	for _, p := range s.pieces {
		for _, i := range p.events {
			n := p.enc.ends[i] - p.enc.start(int(i))
			if cur.count > 0 && cur.size+n >= h.opts.FragmentBytes {
				runs = append(runs, cur)
				cur = run{parts: [][]byte{part}, size: len(part)}
			}
			cur.add(p.enc, int(i))
			total += n
		}
	}
	cur.parts[0] = whole // the last of them, or the only one
	if total < h.opts.FragmentBytes {
		// So near the bound that the fragment flag alone made it two.
		parts := [][]byte{whole}
		for _, r := range runs {
			parts = append(parts, r.parts[1:]...)
		}
		return append(parts, cur.parts[1:]...)
	}
	for _, r := range append(runs, cur) {
		s.fragments = append(s.fragments, r.parts)
	}
	first := s.fragments[0]
	s.fragments = s.fragments[1:]
	return first
}
