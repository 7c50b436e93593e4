package peer

import (
	"context"
	"errors"
	"io"
	"net/url"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"quorate/internal/membership"
	"quorate/internal/metrics"

	"go.etcd.io/raft/v3/raftpb"
)

// remote is another member as seen from here.
type remote struct {
	t     *Transport
	id    membership.ID
	idStr string
	count remoteMetrics

	ctx      context.Context // ends when the member is removed or the Transport closed
	cancel   context.CancelFunc
	connects bool // readers and prober run; guarded by t.mu

	outboxes [kinds]outbox
	kick     [kinds]chan struct{} // ends a reader's wait before its next try
	pipeline pipeline

	losing    atomic.Bool // Lost was called in this burst
	snapshots atomic.Bool // one is being sent

	mu       sync.Mutex
	urls     []*url.URL
	picked   int
	standing int       // streams that stand, either way
	since    time.Time // when the first of them came to stand
	died     bool      // a stream ended by the other side's hand, and none came to stand since
	quorate  bool      // the last that came to stand is a quorate's; false if none stands
}

// remoteMetrics are the counters that a message touches.
type remoteMetrics struct {
	sentBytes, sentFailed         *metrics.Counter
	receivedBytes, receivedFailed *metrics.Counter
}

func newRemote(t *Transport, id membership.ID, urls []*url.URL) *remote {
	r := &remote{t: t, id: id, idStr: id.String(), urls: urls}
	r.ctx, r.cancel = context.WithCancel(t.ctx)
	r.count = remoteMetrics{
		sentBytes: t.met.PeerSentBytes.With(r.idStr), sentFailed: t.met.PeerSentFailures.With(r.idStr),
		receivedBytes: t.met.PeerReceivedBytes.With(r.idStr), receivedFailed: t.met.PeerReceivedFailures.With(r.idStr),
	}
	for k := range r.outboxes {
		r.outboxes[k].init(r, kind(k))
		r.kick[k] = make(chan struct{}, 1)
	}
	r.pipeline.queue = make(chan *raftpb.Message, pipelineQueue)
	return r
}

// start starts the readers and the prober, for which t.tasks is prepared.
func (r *remote) start() {
	for k := range kinds {
		go func() {
			defer r.t.tasks.Done()
			r.read(k)
		}()
	}
	go func() {
		defer r.t.tasks.Done()
		r.probe()
	}()
}

// stop ends everything about the remote; t.tasks tells when it is gone.
func (r *remote) stop() {
	r.cancel()
	for k := range r.outboxes {
		r.outboxes[k].breakOff(errClosed)
	}
}

// send queues messages to this member, dropping what cannot be taken.
func (r *remote) send(ms []*raftpb.Message) {
	dropped := 0
	for _, m := range ms {
		if !r.queue(m) {
			dropped++
		}
	}
	if dropped > 0 {
		r.lost(dropped)
	}
}

// queue gives m to the stream for it; to the other one if that does not stand, and to the
// pipeline if none does. Not to another one if it is full: order would be lost, and a
// member that cannot read one stream will not read the other.
func (r *remote) queue(m *raftpb.Message) bool {
	if m.GetType() == raftpb.MsgApp {
		if taken, stands := r.outboxes[streamAppend].put(m); stands {
			return taken
		}
	}
	if taken, stands := r.outboxes[streamMessage].put(m); stands {
		return taken
	}
	return r.pipeline.put(r, m)
}

// lost counts n dropped messages and tells the member of it, once a burst.
func (r *remote) lost(n int) {
	r.count.sentFailed.Add(uint64(n))
	if r.losing.CompareAndSwap(false, true) && r.ctx.Err() == nil {
		r.t.h.Lost(r.id)
	}
}

// sent ends a burst of losses.
func (r *remote) sent() {
	if r.losing.Load() {
		r.losing.Store(false)
	}
}

func (r *remote) update(urls []*url.URL) {
	r.mu.Lock()
	r.urls, r.picked = urls, 0
	r.mu.Unlock()
	r.redial()
}

// pick returns the member's URLs in the order in which to try them.
func (r *remote) pick() (urls []*url.URL) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append(r.urls[r.picked:len(r.urls):len(r.urls)], r.urls[:r.picked]...)
}

// unreachable makes another URL than u the first to try.
func (r *remote) unreachable(u *url.URL) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.urls[r.picked] == u {
		r.picked = (r.picked + 1) % len(r.urls)
	}
}

// redial makes readers that wait for their next try do it now.
func (r *remote) redial() {
	for _, c := range r.kick {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// stood notes that a stream came to stand, and whether a quorate is at its other end.
func (r *remote) stood(quorate bool) {
	r.mu.Lock()
	r.died, r.quorate = false, quorate
	r.standing++
	first := r.standing == 1
	if first {
		r.since = time.Now()
	}
	r.mu.Unlock()
	if first {
		r.t.met.ActivePeers.With(r.t.self.String(), r.idStr).Add(1)
		r.t.log.Info("peer became active", "peer-id", r.idStr)
	}
}

// ended notes that a stream has ended, and why. A try to connect must follow, which tells
// whether the member is gone.
func (r *remote) ended(why error) {
	r.mu.Lock()
	r.standing--
	last := r.standing == 0
	if last {
		r.since, r.quorate = time.Time{}, false
	}
	r.died = r.died || byOther(why)
	r.mu.Unlock()
	if last {
		r.t.met.ActivePeers.With(r.t.self.String(), r.idStr).Add(-1)
		r.t.met.DisconnectedPeers.With(r.t.self.String(), r.idStr).Inc()
		if r.ctx.Err() == nil {
			r.t.log.Warn("peer became inactive", "peer-id", r.idStr, "error", why)
		}
	}
}

// refused notes that all addresses of the member refuse connections: if its streams have
// ended, too, its process is dead.
func (r *remote) refused() {
	r.mu.Lock()
	gone := r.died && r.standing == 0
	if gone {
		r.died = false // once
	}
	r.mu.Unlock()
	if gone && r.ctx.Err() == nil {
		r.t.log.Warn("the process of a peer has ended", "peer-id", r.idStr)
		r.t.h.Gone(r.id)
	}
}

func (r *remote) isQuorate() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.quorate
}

func (r *remote) activeSince() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.since
}

// byOther reports whether a stream was ended by the other side: its process closed the
// connection, or its kernel on behalf of a process that is no more.
func byOther(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
