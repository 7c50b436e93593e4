package watch

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"quorate/internal/kv"
	"quorate/internal/wire"
)

// Why a Create is refused, in etcd's words.
const (
	reasonCompacted  = "etcdserver: mvcc: required revision has been compacted"
	reasonEmptyRange = "mvcc: watcher range is empty"
	reasonDuplicate  = "mvcc: duplicate watch ID provided on the WatchStream"
	reasonFull       = "etcdserver: too many requests"
)

// noWatcher is the watch id of a response that is not about one watcher.
const noWatcher = -1

// state is where a watcher gets its events from.
type state uint8

const (
	detached state = iota // nowhere, while it changes its state
	live                  // from the applier's batches
	behind                // from history
	over                  // compacted: it only keeps its id until it is canceled
)

// watcher is one watch. What follows stream is guarded by Hub.mu if nothing else is said.
type watcher struct {
	// Constant.
	stream   *Stream
	group    *group
	id       int64
	start    int64 // the first revision asked for; 0 for "from now on"
	progress bool
	fragment bool

	state state
	next  int64 // see the package comment
	slot  int32 // in group.live or stream.behind

	// gen changes when what is queued for the watcher becomes void. Changed under
	// Hub.mu and Stream.mu, so either suffices to read it.
	gen uint32
	// quiet: no event was queued since the last progress tick. Guarded by Stream.mu.
	quiet bool
}

// Create is a WatchCreateRequest.
type Create struct {
	kv.Span        // an empty Key is the smallest key, "\x00"
	ID       int64 // 0: the stream picks one
	Start    int64 // first revision wanted; 0: from now on
	PrevKV   bool
	Progress bool
	Fragment bool
	NoPut    bool
	NoDelete bool
	// Own is a watch of the member itself: there are few, and none is refused for want of
	// memory.
	Own bool
}

func (c *Create) flags() flags {
	var f flags
	if c.PrevKV {
		f |= withPrev
	}
	if c.NoPut {
		f |= noPut
	}
	if c.NoDelete {
		f |= noDelete
	}
	return f
}

// Stream is one client's Watch call. One goroutine may call Create, Cancel, Progress and
// Refuse while another calls Next; Close may be called by any.
type Stream struct {
	hub *Hub

	// Guarded by Hub.mu.
	watchers   map[int64]*watcher
	behind     []*watcher
	hungry     bool        // in Hub.hungry
	nextID     int64       // the next that the stream picks
	progressAt int64       // not 0: in Hub.asked, until dispatched is there
	timer      *time.Timer // of progress ticks; nil if nobody wants them

	lagging atomic.Int32 // len(behind), for Next

	mu      sync.Mutex // after Hub.mu
	closed  bool
	asleep  bool // Next waits for wake
	queue   queue
	bytes   int           // of the events in the queue
	answers int           // in the queue
	gen     uint32        // as watcher.gen, for answers about all watchers
	room    chan struct{} // closed when answers are below their bound; nil if nobody waits

	wake chan struct{}

	// Next's alone: what is left of a response in fragments, and scratch.
	fragments [][][]byte
	taken     []entry
	pieces    []piece
}

// entry is a place in a queue.
type entry struct {
	w    *watcher // nil for an answer that nothing makes void, and about all watchers
	msg  *message
	from int32 // events of msg before it are not for w
	gen  uint32
	kind kind
}

type kind uint8

const (
	events        kind = iota
	progressOfOne      // void when what was queued before it is
	progressOfAll      // an answer; void when that of any watcher of the stream is
	answer             // never void
)

// Stream opens a stream; Close ends it. On a closed hub it is closed from the start.
func (h *Hub) Stream() *Stream {
	s := &Stream{hub: h, wake: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		s.closed = true
		return s
	}
	h.streams[s] = struct{}{}
	return s
}

// Close ends the stream and its watchers. A Next that waits returns.
func (s *Stream) Close() {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	s.mu.Lock()
	s.closed = true
	for s.queue.len() > 0 {
		e := s.queue.pop()
		s.account(&e, -1)
		s.release(&e)
	}
	s.queue = queue{}
	if s.room != nil {
		close(s.room)
		s.room = nil
	}
	s.mu.Unlock()
	signal(s.wake)

	delete(h.streams, s)
	if s.progressAt > 0 {
		s.progressAt = 0
		h.asked = slices.DeleteFunc(h.asked, func(o *Stream) bool { return o == s })
	}
	for _, w := range s.watchers {
		h.detach(w)
		h.watchers.remove(w.group)
	}
	s.watchers = nil
	if s.timer != nil {
		s.timer.Stop()
		s.timer = nil
	}
}

// Create, Cancel, Progress and Refuse are the client's requests; the answers come from
// Next, in order with the events. They wait while too many answers are in the queue, so
// that a client that only asks and never reads costs no memory. On a closed stream they
// do nothing.
//
// Create starts a watch. It is refused, as etcd does, if the span is empty, the id is
// taken, or Start is negative; and if all watchers together hold too much. A Start that is compacted, now or later, is told by a
// response of its own.
func (s *Stream) Create(c Create) {
	if !s.awaitRoom() {
		return
	}
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(c.Key) == 0 {
		c.Key = []byte{0}
	}
	rev := h.revision()
	refused := &wire.WatchHead{WatchID: noWatcher, Created: true, Canceled: true}
	switch {
	case s.isClosed():
		return
	case c.Start < 0:
		refused.CancelReason = reasonCompacted
	case !c.Single() && !c.Unbounded() && bytes.Compare(c.Key, c.End) >= 0:
		refused.CancelReason = reasonEmptyRange
	case c.ID != 0 && s.watchers[c.ID] != nil:
		refused.CancelReason = reasonDuplicate
	case h.watchers.bytes >= h.limits.watchers && !c.Own:
		refused.CancelReason = reasonFull
	}
	if refused.CancelReason != "" {
		s.answer(rev, refused)
		return
	}
	if c.ID == 0 {
		for s.watchers[s.nextID] != nil {
			s.nextID++
		}
		c.ID = s.nextID
		s.nextID++
	}
	w := &watcher{
		stream: s, group: h.watchers.add(spanOf(c.Span), c.flags()), id: c.ID, start: c.Start,
		next: c.Start, progress: c.Progress, fragment: c.Fragment, quiet: true,
	}
	if w.start == 0 {
		w.next = rev + 1
	}
	if s.watchers == nil {
		s.watchers = map[int64]*watcher{}
	}
	s.watchers[w.id] = w
	s.answer(rev, &wire.WatchHead{WatchID: w.id, Created: true})
	if !h.tryJoin(w) {
		h.follow(w, w.next)
	}
	if w.progress && s.timer == nil {
		s.timer = time.AfterFunc(h.progressDelay(), s.tick)
	}
}

// Refuse answers a Create that the caller does not allow.
func (s *Stream) Refuse(reason string) {
	if !s.awaitRoom() {
		return
	}
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.answer(s.hub.revision(), &wire.WatchHead{WatchID: noWatcher, Created: true, Canceled: true, CancelReason: reason})
}

// Cancel ends a watch: its answer is the last that is heard of it. An unknown id is met
// with silence.
func (s *Stream) Cancel(id int64) {
	if !s.awaitRoom() {
		return
	}
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	w := s.watchers[id]
	if w == nil {
		return
	}
	h.detach(w)
	h.watchers.remove(w.group)
	delete(s.watchers, id)
	// What is queued for it stays: progress that is queued behind counts on it.
	s.answer(h.revision(), &wire.WatchHead{WatchID: id, Canceled: true})
}

// Progress asks up to which revision the stream's watchers have got everything. It is
// answered once what was published before the call has been queued, if then every
// watcher is live and none starts later; else, and on a stream without watchers, with
// silence. Requests that wait together get one answer.
func (s *Stream) Progress() {
	if !s.awaitRoom() {
		return
	}
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	rev := h.revision()
	switch {
	case s.isClosed():
	case rev <= h.dispatched:
		s.answerProgress()
	case s.progressAt > 0:
		s.progressAt = rev
	case s.canProgress(rev):
		s.progressAt = rev
		h.asked = append(h.asked, s)
	}
}

// canProgress reports whether all watchers may be told progress once rev is dispatched.
func (s *Stream) canProgress(rev int64) bool {
	for _, w := range s.watchers {
		if !w.canProgress(rev) {
			return false
		}
	}
	return len(s.watchers) > 0
}

// canProgress reports whether w may be told progress once rev is dispatched.
func (w *watcher) canProgress(rev int64) bool {
	return w.state == live && w.next-1 <= rev && w.start <= rev
}

// answerProgress answers a progress request at the revision that has been dispatched.
// The caller holds Hub.mu.
func (s *Stream) answerProgress() {
	rev := s.hub.dispatched
	if !s.canProgress(rev) {
		return
	}
	msg := s.hub.response(rev, &wire.WatchHead{WatchID: noWatcher})
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(entry{msg: msg, gen: s.gen, kind: progressOfAll})
}

// tick tells those who want it how far they are, if they got no event since the last.
func (s *Stream) tick() {
	h := s.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if s.timer == nil {
		return // closed meanwhile
	}
	wanted := false
	for _, w := range s.watchers {
		if w.progress && w.state != over {
			wanted = true
			s.tellProgress(w)
		}
	}
	if !wanted {
		s.timer = nil
		return
	}
	s.timer.Reset(h.progressDelay())
}

// tellProgress tells one watcher its progress, unless it got an event since it was last
// called. A client that does not read its queue is not told either.
func (s *Stream) tellProgress(w *watcher) {
	rev := s.hub.dispatched
	s.mu.Lock()
	defer s.mu.Unlock()
	if w.quiet && w.canProgress(rev) && s.queue.len() < s.hub.limits.frames {
		msg := s.hub.response(rev, &wire.WatchHead{WatchID: w.id})
		s.put(entry{w: w, msg: msg, gen: w.gen, kind: progressOfOne})
	}
	w.quiet = true
}

func (h *Hub) progressDelay() time.Duration {
	d := h.opts.ProgressInterval
	return d + rand.N(d/10+1)
}

// revision is what the store has published, and at least what the applier has told. The
// caller holds mu.
func (h *Hub) revision() int64 {
	v := h.opts.View()
	rev := v.Rev()
	v.Release()
	h.pending.Lock()
	defer h.pending.Unlock()
	return max(rev, h.pending.rev)
}

// head appends what a response holds before its events.
func (h *Hub) head(b []byte, rev int64, wh *wire.WatchHead) []byte {
	return wire.AppendWatchHead(h.opts.AppendHeader(b, rev), wh)
}

// response is a message without events.
func (h *Hub) response(rev int64, wh *wire.WatchHead) *message {
	return &message{answer: h.head(make([]byte, 0, 64), rev, wh)}
}

// answer queues an answer to a request. The caller holds Hub.mu.
func (s *Stream) answer(rev int64, wh *wire.WatchHead) {
	msg := s.hub.response(rev, wh)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(entry{msg: msg, kind: answer})
}

func (s *Stream) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// awaitRoom returns true once an answer may be queued, false if the stream is closed.
func (s *Stream) awaitRoom() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for !s.closed && s.answers >= s.hub.limits.answers {
		if s.room == nil {
			s.room = make(chan struct{})
		}
		room := s.room
		s.mu.Unlock()
		<-room
		s.mu.Lock()
	}
	return !s.closed
}

// offer queues the events of msg, from the from-th on, for a live watcher. It returns
// false, and does nothing, if the queue is full.
func (s *Stream) offer(w *watcher, msg *message, from int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queue.len() >= s.hub.limits.frames || s.bytes >= s.hub.limits.queueBytes {
		return false
	}
	s.putEvents(w, msg, from)
	return true
}

// putEvents queues events whatever the queue holds. The caller holds mu.
func (s *Stream) putEvents(w *watcher, msg *message, from int) {
	w.quiet = false
	s.put(entry{w: w, msg: msg, from: int32(from), gen: w.gen})
}

// put queues e, unless the stream is closed, and wakes Next. The caller holds mu.
func (s *Stream) put(e entry) {
	if s.closed {
		return
	}
	if e.kind == events {
		e.msg.batch.refs.Add(1)
	}
	s.account(&e, 1)
	s.queue.push(e)
	if s.asleep {
		s.asleep = false
		signal(s.wake)
	}
}

// account adds an entry to what the queue holds, or takes it off with sign -1. The
// caller holds mu.
func (s *Stream) account(e *entry, sign int) {
	switch e.kind {
	case events:
		s.bytes += sign * e.msg.bytes
		s.hub.queued.Add(int64(sign * (len(e.msg.events) - int(e.from))))
	case answer, progressOfAll:
		s.answers += sign
		if s.room != nil && s.answers < s.hub.limits.answers {
			close(s.room)
			s.room = nil
		}
	}
}

// release gives up an entry's reference to its batch.
func (s *Stream) release(e *entry) {
	if e.kind == events {
		e.msg.batch.release(&s.hub.ring)
	}
}

// hasRoom reports whether history may be put into the queue.
func (s *Stream) hasRoom() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.hasRoomLocked()
}

func (s *Stream) hasRoomLocked() bool {
	return !s.closed && s.queue.len() <= s.hub.limits.roomFrames && s.bytes <= s.hub.limits.roomBytes
}

// queue is entries, first in, first out. An empty one holds next to no memory.
type queue struct {
	entries []entry
	first   int
}

// keptEntries is how many places a queue keeps when it is empty.
const keptEntries = 4

func (q *queue) len() int { return len(q.entries) - q.first }

func (q *queue) push(e entry) {
	if q.first > 0 && len(q.entries) == cap(q.entries) && q.first >= len(q.entries)/2 {
		n := copy(q.entries, q.entries[q.first:])
		clear(q.entries[n:])
		q.entries, q.first = q.entries[:n], 0
	}
	q.entries = append(q.entries, e)
}

// unpop puts e in front of all others.
func (q *queue) unpop(e entry) {
	if q.first == 0 {
		q.entries = slices.Insert(q.entries, 0, e)
		return
	}
	q.first--
	q.entries[q.first] = e
}

func (q *queue) peek() *entry { return &q.entries[q.first] }

func (q *queue) pop() entry {
	e := q.entries[q.first]
	q.entries[q.first] = entry{}
	if q.first++; q.first == len(q.entries) {
		q.entries, q.first = q.entries[:0], 0
		if cap(q.entries) > keptEntries {
			q.entries = nil
		}
	}
	return e
}
