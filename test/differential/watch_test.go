package differential

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"go.etcd.io/etcd/api/v3/mvccpb"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// watchWithin bounds how long what a watcher is owed may take to arrive.
const watchWithin = 10 * time.Second

// watchStream is one Watch call to one server. A goroutine receives; everything else,
// including every check, is done by the run's goroutine in drain.
type watchStream struct {
	side   *side
	stream pb.Watch_WatchClient
	cancel context.CancelFunc
	done   chan struct{} // closed when the receiver has ended

	mu      sync.Mutex
	inbox   []*pb.WatchResponse
	err     error
	arrived chan struct{} // holds a token when inbox or err is new

	// What drain made of the responses.
	created  []*pb.WatchResponse
	canceled map[int64]*pb.WatchResponse
	events   map[int64][]*mvccpb.Event
	progress []int64           // revisions of answers to progress requests, in order
	floor    map[int64]int64   // per watch id: everything up to this revision was delivered or announced
	notified map[int64][]int64 // revisions of unasked progress, per watch id
	part     map[int64]*pb.WatchResponse
	starts   map[int64]int64 // start revisions that were in the future
	ghosts   map[int64]bool  // canceled by request while a compaction might cancel them too
	// Of all responses: how many were fragments, and the size of the largest fragment.
	fragments, largest int

	fault error // the first breach of a rule that concerns one stream alone
}

func openWatch(s *side) (*watchStream, error) {
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := pb.NewWatchClient(s.conn).Watch(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	w := &watchStream{
		side: s, stream: stream, cancel: cancel,
		done:     make(chan struct{}),
		arrived:  make(chan struct{}, 1),
		canceled: map[int64]*pb.WatchResponse{},
		events:   map[int64][]*mvccpb.Event{},
		floor:    map[int64]int64{},
		part:     map[int64]*pb.WatchResponse{},
		starts:   map[int64]int64{},
		notified: map[int64][]int64{},
		ghosts:   map[int64]bool{},
	}
	go w.receive()
	return w, nil
}

func (w *watchStream) receive() {
	defer close(w.done)
	for {
		resp, err := w.stream.Recv()
		w.mu.Lock()
		if err != nil {
			w.err = err
		} else {
			w.inbox = append(w.inbox, resp)
		}
		w.mu.Unlock()
		select {
		case w.arrived <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// close ends the stream and its receiver.
func (w *watchStream) close() {
	w.cancel()
	<-w.done
}

// await drains responses until ok holds.
func (w *watchStream) await(what string, ok func() bool) error {
	deadline := time.NewTimer(watchWithin)
	defer deadline.Stop()
	for {
		if err := w.drain(); err != nil {
			return err
		}
		if ok() {
			return nil
		}
		select {
		case <-w.arrived:
		case <-deadline.C:
			return fmt.Errorf("%v: watch: %s did not come within %v", w.side.kind, what, watchWithin)
		}
	}
}

// drain sorts what has arrived.
func (w *watchStream) drain() error {
	w.mu.Lock()
	inbox, err := w.inbox, w.err
	w.inbox = nil
	w.mu.Unlock()
	for _, resp := range inbox {
		w.take(resp)
	}
	if w.fault == nil && err != nil && !errors.Is(err, io.EOF) {
		w.fault = fmt.Errorf("the stream ended: %w", err)
	}
	if w.fault != nil {
		return fmt.Errorf("%v: watch: %w", w.side.kind, w.fault)
	}
	return nil
}

func (w *watchStream) failf(format string, args ...any) {
	if w.fault == nil {
		w.fault = fmt.Errorf(format, args...)
	}
}

// take sorts one response and holds it to the rules that concern one stream alone:
// revisions rise, a revision is never split over two responses but by fragments, and no
// event comes that progress has announced as delivered.
func (w *watchStream) take(resp *pb.WatchResponse) {
	id := resp.WatchId
	if resp.Header == nil {
		w.failf("a response without a header: %s", text(resp))
		return
	}
	switch {
	case resp.Created:
		w.created = append(w.created, resp)
		if !resp.Canceled {
			delete(w.canceled, id)
			delete(w.events, id)
			delete(w.ghosts, id)
			delete(w.starts, id)
			w.floor[id] = 0
		}
		if len(resp.Events) > 0 {
			w.failf("the response that says created has events: %s", text(resp))
		}
		return
	case resp.Canceled:
		if !w.ghosts[id] {
			w.canceled[id] = resp
		}
		if len(resp.Events) > 0 {
			w.failf("the response that says canceled has events: %s", text(resp))
		}
		return
	case id == -1:
		w.progress = append(w.progress, resp.Header.Revision)
		for other, floor := range w.floor {
			w.floor[other] = max(floor, resp.Header.Revision)
		}
		return
	}
	if w.part[id] != nil || resp.Fragment {
		w.largest = max(w.largest, proto.Size(resp))
	}
	if part := w.part[id]; part != nil {
		part.Events = append(part.Events, resp.Events...)
		part.Fragment = resp.Fragment
		resp = part
	}
	if resp.Fragment {
		w.fragments++
		w.part[id] = resp
		return
	}
	delete(w.part, id)
	last := w.floor[id]
	for _, ev := range resp.Events {
		rev := ev.Kv.ModRevision
		if rev <= w.floor[id] {
			w.failf("watch %d: an event of revision %d after revision %d was complete: %s", id, rev, w.floor[id], text(resp))
		}
		if rev < last {
			w.failf("watch %d: revision %d follows %d: %s", id, rev, last, text(resp))
		}
		last = rev
	}
	if resp.Header.Revision < last {
		w.failf("watch %d: the header says revision %d but %d was delivered: %s", id, resp.Header.Revision, last, text(resp))
	}
	if len(resp.Events) == 0 {
		// A progress notification of this watcher.
		last = max(last, resp.Header.Revision)
		w.notified[id] = append(w.notified[id], last)
		if last < w.starts[id] {
			w.failf("watch %d: progress of revision %d before its start %d", id, last, w.starts[id])
		}
	}
	w.floor[id] = last
	w.events[id] = append(w.events[id], resp.Events...)
}

// watcher is what the test knows of a watcher that exists on both sides.
type watcher struct {
	stream int
	id     int64
	req    *pb.WatchCreateRequest
	first  int64 // the first revision it sees
	next   int   // history[next] is the first event not checked yet
	// late says that it began in the past: until it is known to have caught up, a
	// compaction may cancel it on one side or on both.
	late bool
}

func (w *watcher) String() string {
	return fmt.Sprintf("watch %d of stream %d %s", w.id, w.stream, text(w.req))
}

// sees says whether an event is the watcher's.
func (w *watcher) sees(ev *mvccpb.Event) bool {
	if ev.Kv.ModRevision < w.first || !inSpan(ev.Kv.Key, w.req.Key, w.req.RangeEnd) {
		return false
	}
	for _, f := range w.req.Filters {
		if f == pb.WatchCreateRequest_NOPUT && ev.Type == mvccpb.Event_PUT ||
			f == pb.WatchCreateRequest_NODELETE && ev.Type == mvccpb.Event_DELETE {
			return false
		}
	}
	return true
}

func inSpan(key, from, end []byte) bool {
	k, f, e := string(key), string(from), string(end)
	switch e {
	case "":
		if f == "" {
			f = "\x00"
		}
		return k == f
	case "\x00":
		return k >= f
	}
	return k >= f && k < e
}

// episodeStreams is how many streams, besides the history's, a run keeps open at once.
const episodeStreams = 3

func (r *run) watchStep(g *gen) error {
	switch n := g.IntN(100); {
	case n < 55:
		return r.createWatch(g)
	case n < 75:
		if len(r.watchers) > 0 {
			return r.cancelWatch(g, g.IntN(len(r.watchers)))
		}
		return r.createWatch(g)
	case n < 80:
		return r.cancelUnknown(g)
	case n < 92:
		return r.requestProgress(g)
	case n < 96:
		return r.closeStream(g)
	}
	if err := r.settle(); err != nil {
		return err
	}
	return r.sendWatch(g.IntN(episodeStreams), &pb.WatchRequest{}) // says nothing and gets no answer
}

func (r *run) sendWatch(stream int, req *pb.WatchRequest) error {
	for _, s := range r.sides {
		w := s.watches[stream]
		if w == nil {
			var err error
			if w, err = openWatch(s); err != nil {
				return fmt.Errorf("%v: open a watch stream: %w", s.kind, err)
			}
			s.watches[stream] = w
		}
		if err := w.stream.Send(req); err != nil {
			return fmt.Errorf("%v: send to a watch stream: %w", s.kind, err)
		}
	}
	r.logf("stream %d: %s", stream, text(req))
	return nil
}

// each calls f for the stream's two ends.
func (r *run) each(stream int, f func(*watchStream) error) error {
	for _, s := range r.sides {
		if w := s.watches[stream]; w != nil {
			if err := f(w); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *run) createWatch(g *gen) error {
	if len(r.watchers) >= 24 {
		return r.cancelWatch(g, g.IntN(len(r.watchers)))
	}
	req := &pb.WatchCreateRequest{PrevKv: g.one(2), Fragment: g.one(3), ProgressNotify: g.one(3)}
	req.Key, req.RangeEnd = g.span()
	switch n := g.IntN(20); {
	case n < 7:
	case n < 14:
		low := max(g.compacted, 1)
		req.StartRevision = low + g.Int64N(max(g.rev-low, 0)+1)
	case n < 16:
		req.StartRevision = g.rev + 1 + g.Int64N(20)
	case n < 17:
		req.StartRevision = pick(g, []int64{-1, math.MinInt64, math.MaxInt64, g.rev + 1_000_000})
	default:
		req.StartRevision = g.revision()
	}
	for range pick(g, []int{0, 0, 0, 1, 1, 2}) {
		req.Filters = append(req.Filters, pick(g, []pb.WatchCreateRequest_FilterType{0, 1, 0, 1, 7}))
	}
	if g.one(4) {
		req.WatchId = pick(g, []int64{1, 2, 3, 4, -7, math.MaxInt64})
	}
	stream := g.IntN(episodeStreams)
	var replies [2]*pb.WatchResponse
	err := r.sendWatch(stream, &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}})
	if err != nil {
		return err
	}
	for i, s := range r.sides {
		w := s.watches[stream]
		if err := w.await("the response that says created", func() bool { return len(w.created) > 0 }); err != nil {
			return err
		}
		replies[i], w.created = w.created[0], nil
	}
	if err := r.sameResponse(stream, "created", replies[0], replies[1]); err != nil {
		return err
	}
	if replies[0].Canceled {
		return nil
	}
	w := &watcher{stream: stream, id: replies[0].WatchId, req: req, first: req.StartRevision, next: r.historyAt(req.StartRevision)}
	created := replies[0].Header.Revision
	if created != r.rev {
		return fmt.Errorf("watch created at revision %d, the store is at %d", created, r.rev)
	}
	w.late = req.StartRevision != 0 && req.StartRevision <= created
	if req.StartRevision == 0 {
		w.first = created + 1
		w.next = r.historyAt(w.first)
	}
	if w.late && w.first < r.compacted {
		return r.expectCompacted(w)
	}
	r.watchers = append(r.watchers, w)
	return r.each(stream, func(ws *watchStream) error {
		ws.starts[w.id] = req.StartRevision
		return nil
	})
}

// expectCompacted waits until both sides have canceled a watcher that compaction overtook,
// and then lets go of its id, which etcd keeps until it is asked to cancel.
func (r *run) expectCompacted(w *watcher) error {
	var replies [2]*pb.WatchResponse
	for i, s := range r.sides {
		ws := s.watches[w.stream]
		err := ws.await(fmt.Sprintf("the cancellation of the compacted %v", w), func() bool { return ws.canceled[w.id] != nil })
		if err != nil {
			return err
		}
		replies[i] = ws.canceled[w.id]
		delete(ws.canceled, w.id)
	}
	if err := r.sameResponse(w.stream, "compacted", replies[0], replies[1]); err != nil {
		return err
	}
	if replies[0].CompactRevision != r.compacted {
		return fmt.Errorf("%v was canceled with compact revision %d, the store is compacted to %d", w, replies[0].CompactRevision, r.compacted)
	}
	return r.sendCancel(w.stream, w.id, false)
}

// sendCancel cancels an id that exists and compares the answers; not so when a compaction
// may be canceling it as well, in which case both servers are only seen to answer.
func (r *run) sendCancel(stream int, id int64, late bool) error {
	req := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}
	if err := r.sendWatch(stream, req); err != nil {
		return err
	}
	var replies [2]*pb.WatchResponse
	for i, s := range r.sides {
		w := s.watches[stream]
		if err := w.await("the response that says canceled", func() bool { return w.canceled[id] != nil }); err != nil {
			return err
		}
		replies[i] = w.canceled[id]
		delete(w.canceled, id)
		delete(w.events, id)
		delete(w.floor, id)
		w.ghosts[id] = late
	}
	if late {
		return nil
	}
	return r.sameResponse(stream, "canceled", replies[0], replies[1])
}

func (r *run) sameResponse(stream int, what string, etcd, quorate *pb.WatchResponse) error {
	if proto.Equal(etcd, quorate) {
		return nil
	}
	return fmt.Errorf("stream %d: response that says %s\n  etcd:    %s\n  quorate: %s", stream, what, text(etcd), text(quorate))
}

func (r *run) cancelWatch(g *gen, i int) error {
	if err := r.settle(); err != nil {
		return err
	}
	if i >= len(r.watchers) { // settling found it compacted
		return nil
	}
	w := r.watchers[i]
	r.watchers = append(r.watchers[:i:i], r.watchers[i+1:]...)
	return r.sendCancel(w.stream, w.id, w.late)
}

// cancelUnknown cancels an id that no watcher has, which gets no answer: settle sees one
// that comes.
func (r *run) cancelUnknown(g *gen) error {
	req := &pb.WatchCancelRequest{WatchId: pick(g, []int64{1000, -1, math.MinInt64})}
	return r.sendWatch(g.IntN(episodeStreams), &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: req}})
}

// requestProgress asks a stream for progress. With everything delivered, both sides answer
// with the current revision, or neither does: no watcher, or one that starts in the future.
func (r *run) requestProgress(g *gen) error {
	if err := r.settle(); err != nil {
		return err
	}
	stream := g.IntN(episodeStreams)
	here, future := 0, false
	for _, w := range r.watchers {
		if w.stream == stream {
			here++
			future = future || w.first > r.rev && w.req.StartRevision != 0
		}
	}
	req := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
	silent := here == 0 || future
	if silent && !g.one(4) {
		return nil // to see that nothing comes takes long
	}
	if err := r.sendWatch(stream, req); err != nil {
		return err
	}
	if silent {
		time.Sleep(50 * time.Millisecond)
		return r.each(stream, func(w *watchStream) error {
			if err := w.drain(); err != nil {
				return err
			}
			if len(w.progress) > 0 {
				return fmt.Errorf("%v: stream %d: progress %v was answered, with %d watchers of which one starts in the future: %v", w.side.kind, stream, w.progress, here, future)
			}
			return nil
		})
	}
	overtaken := false
	err := r.each(stream, func(w *watchStream) error {
		// Dropped silently while a watcher is not synced yet: ask again, as clients do.
		for try := 0; ; try++ {
			if err := w.drain(); err != nil {
				return err
			}
			if len(w.progress) > 0 {
				break
			}
			if len(w.canceled) > 0 {
				// A compaction has overtaken a watcher meanwhile, and while its id is not canceled
				// too, etcd does not answer.
				overtaken = true
				return nil
			}
			select {
			case <-w.arrived:
				continue
			case <-time.After(50 * time.Millisecond):
			}
			if try > int(watchWithin/(50*time.Millisecond)) {
				return fmt.Errorf("%v: stream %d: a progress request was not answered within %v", w.side.kind, stream, watchWithin)
			}
			if try%2 == 1 {
				if err := w.stream.Send(req); err != nil {
					return fmt.Errorf("%v: send to a watch stream: %w", w.side.kind, err)
				}
			}
		}
		// What was asked for again may be answered again; nothing changes meanwhile.
		time.Sleep(time.Millisecond)
		if err := w.drain(); err != nil {
			return err
		}
		for _, rev := range w.progress {
			if rev != r.rev {
				return fmt.Errorf("%v: stream %d: progress says revision %d, the store is at %d", w.side.kind, stream, rev, r.rev)
			}
		}
		w.progress = nil
		// A synced watcher is out of reach of compaction.
		for _, x := range r.watchers {
			if x.stream == stream && w.side == r.sides[1] {
				x.late = false
			}
		}
		return nil
	})
	if err != nil || !overtaken {
		return err
	}
	// Answers that were asked for may still come, so the stream is of no more use.
	r.overtaken++
	return r.dropStream(stream)
}

func (r *run) closeStream(g *gen) error {
	if err := r.settle(); err != nil {
		return err
	}
	return r.dropStream(g.IntN(episodeStreams))
}

// dropStream closes both ends of a stream and forgets its watchers.
func (r *run) dropStream(stream int) error {
	r.logf("stream %d: close", stream)
	kept := r.watchers[:0:0]
	for _, w := range r.watchers {
		if w.stream != stream {
			kept = append(kept, w)
		}
	}
	r.watchers = kept
	return r.each(stream, func(w *watchStream) error {
		w.close()
		delete(w.side.watches, stream)
		return nil
	})
}

// historyAt is the place in history of the first event at or after a revision.
func (r *run) historyAt(rev int64) int {
	i := len(r.history)
	for i > 0 && r.history[i-1].Kv.ModRevision >= rev {
		i--
	}
	return i
}

// learn reads the events up to the current revision from the watchers of everything, which
// both sides have from the start; compares them; and appends them to history.
func (r *run) learn() error {
	if r.rev <= r.learned {
		return nil
	}
	for _, s := range r.sides {
		w := s.history
		err := w.await(fmt.Sprintf("the event of revision %d", r.rev), func() bool {
			evs := w.events[0]
			return len(evs) > 0 && evs[len(evs)-1].Kv.ModRevision >= r.rev
		})
		if err != nil {
			return fmt.Errorf("%w\n  have, after revision %d: %s", err, r.learned, eventsText(w.events[0]))
		}
	}
	a, b := r.sides[0].history, r.sides[1].history
	evs := a.events[0]
	if len(evs) != len(b.events[0]) {
		return fmt.Errorf("events of revisions %d to %d\n  etcd:    %d: %s\n  quorate: %d: %s",
			r.learned+1, r.rev, len(evs), eventsText(evs), len(b.events[0]), eventsText(b.events[0]))
	}
	var group []*mvccpb.Event
	for i, ev := range evs {
		full := &mvccpb.Event{Type: ev.Type, Kv: ev.Kv}
		if ev.Type == mvccpb.Event_DELETE || ev.Kv.CreateRevision != ev.Kv.ModRevision {
			full.PrevKv = r.latest[string(ev.Kv.Key)]
		}
		for k, s := range r.sides {
			if err := r.sameEvent(full, s.history.events[0][i], true); err != nil {
				return fmt.Errorf("%v: watch of everything: %w", r.sides[k].kind, err)
			}
		}
		r.history = append(r.history, full)
		group = append(group, ev)
		if i+1 < len(evs) && evs[i+1].Kv.ModRevision == ev.Kv.ModRevision {
			continue
		}
		// prev_kv is of before the revision, even where one revision has two events of a
		// key, as a txn may make with a deletion from a key on.
		for _, ev := range group {
			if ev.Type == mvccpb.Event_DELETE {
				delete(r.latest, string(ev.Kv.Key))
			} else {
				r.latest[string(ev.Kv.Key)] = ev.Kv
			}
		}
		group = group[:0]
	}
	a.events[0], b.events[0] = nil, nil
	r.learned = r.rev
	return nil
}

// emptyAt says whether no key exists at a revision.
func (r *run) emptyAt(rev int64) bool {
	if r.learn() != nil {
		return false // which the next step will report
	}
	live := map[string]bool{}
	for _, ev := range r.history {
		if ev.Kv.ModRevision > rev {
			break
		}
		if ev.Type == mvccpb.Event_DELETE {
			delete(live, string(ev.Kv.Key))
		} else {
			live[string(ev.Kv.Key)] = true
		}
	}
	return len(live) == 0
}

// sameEvent compares an event with what it should be. The previous key-value may be absent
// once its revision is compacted.
func (r *run) sameEvent(want, got *mvccpb.Event, prev bool) error {
	if want.Type == got.Type && proto.Equal(want.Kv, got.Kv) {
		switch {
		case prev && proto.Equal(want.PrevKv, got.PrevKv):
			return nil
		case prev && got.PrevKv == nil && want.Kv.ModRevision-1 < r.compacted:
			return nil
		case !prev && got.PrevKv == nil:
			return nil
		}
	}
	return fmt.Errorf("event (prev_kv wanted: %v)\n  should be %s\n  is        %s", prev, text(want), text(got))
}

// settle waits until every watcher has got everything it is owed up to the current
// revision, and compares it with history.
func (r *run) settle() error {
	if err := r.learn(); err != nil {
		return err
	}
	var alive []*watcher
	for _, w := range r.watchers {
		ok, err := r.settleWatcher(w)
		if err != nil {
			return err
		}
		if ok {
			alive = append(alive, w)
		}
	}
	r.watchers = alive
	// Nothing may have come that nobody asked for.
	for stream := range episodeStreams {
		err := r.each(stream, func(w *watchStream) error {
			if err := w.drain(); err != nil {
				return err
			}
			for id, resp := range w.canceled {
				// A compaction may have overtaken a watcher since it was looked at above; the next
				// look will see it.
				if slices.ContainsFunc(alive, func(x *watcher) bool { return x.stream == stream && x.id == id && x.late }) {
					continue
				}
				return fmt.Errorf("%v: stream %d: canceled without reason: watch %d: %s", w.side.kind, stream, id, text(resp))
			}
			if len(w.created) > 0 {
				return fmt.Errorf("%v: stream %d: created without reason: %s", w.side.kind, stream, text(w.created[0]))
			}
			if len(w.progress) > 0 {
				return fmt.Errorf("%v: stream %d: progress without reason: %v", w.side.kind, stream, w.progress)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// settleWatcher does it for one watcher and says whether it lives on.
func (r *run) settleWatcher(w *watcher) (bool, error) {
	var want []*mvccpb.Event
	for _, ev := range r.history[w.next:] {
		if w.sees(ev) {
			want = append(want, ev)
		}
	}
	w.next = len(r.history)
	overtaken := false
	for _, s := range r.sides {
		ws := s.watches[w.stream]
		err := ws.await(fmt.Sprintf("%d events of %v", len(want), w), func() bool {
			return len(ws.events[w.id]) >= len(want) || ws.canceled[w.id] != nil
		})
		if err != nil {
			return false, fmt.Errorf("%w\n  have %s\n  want %s", err, eventsText(ws.events[w.id]), eventsText(want))
		}
		got := ws.events[w.id]
		ws.events[w.id] = nil
		if c := ws.canceled[w.id]; c != nil {
			if !w.late || c.CompactRevision == 0 {
				return false, fmt.Errorf("%v: %v was canceled: %s", s.kind, w, text(c))
			}
			overtaken = true
		} else if len(got) != len(want) {
			return false, fmt.Errorf("%v: %v\n  has  %d: %s\n  want %d: %s", s.kind, w, len(got), eventsText(got), len(want), eventsText(want))
		}
		for i, ev := range got {
			if err := r.sameEvent(want[i], ev, w.req.PrevKv); err != nil {
				return false, fmt.Errorf("%v: %v: %w", s.kind, w, err)
			}
		}
	}
	if !overtaken {
		if len(want) > 0 {
			w.late = false // it has read history up to now
		}
		return true, nil
	}
	// Compaction overtook it on one side at least, which is a matter of when each server
	// reads history. Both forget it.
	r.overtaken++
	for _, s := range r.sides {
		delete(s.watches[w.stream].canceled, w.id)
	}
	return false, r.sendCancel(w.stream, w.id, true)
}

func eventsText(evs []*mvccpb.Event) string {
	var b []byte
	for i, ev := range evs {
		if i > 8 {
			return fmt.Sprintf("%s … %d in all", b, len(evs))
		}
		b = fmt.Appendf(b, "%s@%d %v; ", shortBytes(ev.Kv.Key), ev.Kv.ModRevision, ev.Type)
	}
	if b == nil {
		return "none"
	}
	return string(b)
}
