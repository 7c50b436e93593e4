// Package watch sends every change to the watchers that asked for it: from any revision
// on, in order, without a gap or a repeat, however slow they read.
//
// # How the pieces meet
//
// A watcher is in one of two states. A live one gets its events from the applier's
// batches, which reach the hub by Publish. A behind one holds nothing but the revision
// that it wants next, and is fed from the store's history, in chunks, whenever its
// client reads. Either way what it gets is put into the queue of its stream, from which
// the transport takes whole responses by Next.
//
//	applier ─ Publish ─▶ pending ─▶ hub goroutine ─▶ stream queues ─ Next ─▶ client
//	                                views ─▶ catch-up goroutine ─┘
//
// An event is encoded once, whoever sees it. Watchers that want the same (span, filters,
// previous values) are one group: matching an event costs one step a group, and handing
// it on 48 bytes a watcher.
//
// # What holds
//
// Let dispatched be the revision up to which the hub has handed out the applier's
// events, and lost the highest revision whose events it did not keep. For each watcher,
//
//	behind: its matching events of [start, next) have been queued, none from next on
//	live:   its matching events of [start, max(next-1, dispatched)] have been queued
//
// so a watcher may become live exactly when next > max(dispatched, lost), and a live one
// that could not be handed an event of revision r goes behind with next = r. "Progress
// up to r" may be told when the watcher is live, next-1 <= r <= dispatched and start <= r.
//
// # Bounds
//
// Events wait for the hub up to a bound; beyond it they are dropped, and all live
// watchers go behind: nothing is lost, because history is in the store. Encoded events
// that wait in queues lie in one ring for the whole hub; when it is full the oldest are
// dropped, and whoever still waited for them goes behind at the revision that it has not
// got. A queue has a bound in bytes and in responses, beyond which its watchers go behind.
// Answers to requests are bounded by letting the requests wait, and watchers by refusing
// more when their spans hold too much.
package watch

import (
	"sync"
	"sync/atomic"
	"time"

	"quorate/internal/kv"
)

// View is what the hub reads of the store: see mvcc.View, which is one.
type View interface {
	Rev() int64
	CompactRev() int64
	Changes(lo, hi int64, fn func(kv.Event) bool) error
	Record(key []byte, rev int64) (kv.Record, bool)
	Release()
}

// Options configure a Hub. All fields are needed.
type Options struct {
	// View returns the store's newest view; the hub releases it. What Publish has told
	// must be in it. Any goroutine calls it.
	View func() View
	// AppendHeader appends the ResponseHeader for revision rev as field 1 of a response;
	// rev 0 leaves the revision out, as in protobuf. Any goroutine calls it.
	AppendHeader func(b []byte, rev int64) []byte
	// ProgressInterval is --watch-progress-notify-interval: how long a watcher that
	// asked for it waits for an event before it is told its progress. Up to a tenth is
	// added at random, so that streams opened together do not answer together.
	ProgressInterval time.Duration
	// FragmentBytes is the size from which on a response is split for a watcher that
	// allows it: max-request-bytes and overhead.
	FragmentBytes int
}

// limits bound what the hub holds. Tests make them small.
type limits struct {
	watchers      int // bytes that all watchers hold, above which no more are taken
	pendingEvents int // that wait for the hub goroutine
	pendingBytes  int // of their KeyValues
	dispatch      int // events handed out in one go, under the lock
	ring          int // bytes of encoded events in all queues together
	frames        int // responses in a queue above which live watchers go behind
	queueBytes    int // the same for the bytes of their events
	answers       int // answers in a queue above which requests wait
	roomFrames    int // a queue with at most so many responses ...
	roomBytes     int // ... and so many bytes is fed from history
	chunkEvents   int // of history, read with one view
	chunkBytes    int // of it that somebody wants
	response      int // bytes from which on a response takes in no further revision
}

var defaultLimits = limits{
	watchers:      1 << 30, // two million
	pendingEvents: 1 << 16,
	pendingBytes:  32 << 20,
	dispatch:      1 << 10,
	ring:          64 << 20,
	frames:        1 << 10,
	queueBytes:    8 << 20,
	answers:       64,
	roomFrames:    16,
	roomBytes:     256 << 10,
	chunkEvents:   4 << 10,
	chunkBytes:    512 << 10,
	response:      1 << 20,
}

// Hub owns all watchers of a member.
type Hub struct {
	opts   Options
	limits limits
	ring   ring

	pending pending

	// Lock order: mu before Stream.mu, pending and ring, which are never held together
	// but for Stream.mu before ring. What follows is guarded by mu.
	mu         sync.Mutex
	closed     bool
	streams    map[*Stream]struct{}
	watchers   set       // all of them, by what they watch
	matcher    matcher   // of watchers
	dispatched int64     // all events up to it are in the queues of live watchers
	asked      []*Stream // that wait for dispatched to reach Stream.progressAt
	hungry     []*Stream // with watchers behind and room in their queue
	behind     int       // watchers

	wakeHub     chan struct{}
	wakeCatchUp chan struct{}
	stop        chan struct{}
	running     sync.WaitGroup

	queued atomic.Int64 // events in stream queues
	sent   atomic.Int64 // events handed out by Next
	fell   atomic.Int64 // times that a watcher went from live to behind
}

// pending is what the applier has told and the hub goroutine not yet taken. It has its
// own lock, which nobody holds for long, so that Publish never waits.
type pending struct {
	sync.Mutex
	events []kv.Event
	bytes  int   // of their KeyValues
	rev    int64 // up to which the applier has told
	live   int   // watchers that want events; changed under Hub.mu as well
	lost   int64 // the highest revision whose events were not kept
	missed bool  // live watchers missed events up to lost
}

// New starts a hub; Close ends it and all its streams.
func New(opts Options) *Hub {
	h := newHub(opts, defaultLimits)
	h.run()
	return h
}

// newHub returns a hub whose goroutines do not run yet.
func newHub(opts Options, l limits) *Hub {
	h := &Hub{
		opts:        opts,
		limits:      l,
		streams:     map[*Stream]struct{}{},
		wakeHub:     make(chan struct{}, 1),
		wakeCatchUp: make(chan struct{}, 1),
		stop:        make(chan struct{}),
	}
	h.ring.max = l.ring
	h.matcher = matcher{set: &h.watchers, liveOnly: true}
	v := opts.View()
	h.dispatched = v.Rev()
	h.pending.rev = v.Rev()
	v.Release()
	return h
}

// run starts the two goroutines.
func (h *Hub) run() {
	h.running.Go(func() { h.loop(h.wakeHub, h.dispatchPending) })
	c := catchUp{hub: h}
	h.running.Go(func() { h.loop(h.wakeCatchUp, c.step) })
}

// loop calls step until it finds nothing to do, each time that it is woken.
func (h *Hub) loop(wake <-chan struct{}, step func() bool) {
	for {
		select {
		case <-wake:
		case <-h.stop:
			return
		}
		for step() {
			select {
			case <-h.stop:
				return
			default:
			}
		}
	}
}

// signal wakes a loop, or a Next; one that is awake looks once more before it sleeps.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Close ends the hub and all its streams. It returns after its goroutines have ended.
// Publish may be called afterwards, without effect.
func (h *Hub) Close() {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return
	}
	h.closed = true
	streams := make([]*Stream, 0, len(h.streams))
	for s := range h.streams {
		streams = append(streams, s)
	}
	h.mu.Unlock()
	close(h.stop)
	h.running.Wait()
	for _, s := range streams {
		s.Close()
	}
}

// Stats are the hub's gauges and counters.
type Stats struct {
	Streams  int
	Watchers int
	Behind   int   // watchers that are fed from history
	Pending  int64 // events in queues, once for each watcher
	Bytes    int   // encoded events that wait in queues
	Events   int64 // handed to transports since the start, once for each watcher
	Fell     int64 // times that a live watcher fell behind since the start
}

// Stats returns the hub's gauges and counters now.
func (h *Hub) Stats() Stats {
	h.mu.Lock()
	s := Stats{Streams: len(h.streams), Watchers: h.watchers.size, Behind: h.behind}
	h.mu.Unlock()
	s.Pending, s.Events, s.Fell = h.queued.Load(), h.sent.Load(), h.fell.Load()
	s.Bytes = h.ring.size()
	return s
}
