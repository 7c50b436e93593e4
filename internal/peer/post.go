package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"quorate/internal/membership"

	"go.etcd.io/raft/v3/raftpb"
)

const (
	pipelineWorkers = 4
	pipelineQueue   = 64
)

// pipeline sends messages in requests of their own while there is no stream for them. Up
// to four are under way, so they may overtake each other.
type pipeline struct {
	queue chan *raftpb.Message

	mu      sync.Mutex
	workers int
}

// put queues m; false: there is no room.
func (p *pipeline) put(r *remote, m *raftpb.Message) bool {
	select {
	case p.queue <- m:
	default:
		return false
	}
	p.mu.Lock()
	start := p.workers < pipelineWorkers
	if start {
		p.workers++
	}
	p.mu.Unlock()
	if start && !r.t.run(func() { p.work(r) }) {
		p.leave()
	}
	return true
}

func (p *pipeline) leave() {
	p.mu.Lock()
	p.workers--
	p.mu.Unlock()
}

// work sends what waits, and ends when nothing does.
func (p *pipeline) work(r *remote) {
	for {
		select {
		case m := <-p.queue:
			r.post(m)
			continue
		default:
		}
		p.leave()
		// What was queued between the two would wait for the next message otherwise.
		if len(p.queue) == 0 {
			return
		}
		p.mu.Lock()
		p.workers++
		p.mu.Unlock()
	}
}

// post sends one message.
func (r *remote) post(m *raftpb.Message) {
	if r.ctx.Err() != nil {
		return
	}
	data, err := appendMessage(nil, m)
	if err == nil {
		err = r.postTo(r.t.posts, pathRaft, "application/protobuf", io.NopCloser(bytes.NewReader(data)), int64(len(data)))
	}
	if err != nil {
		r.t.log.Debug("cannot send a message", "remote-peer-id", r.idStr, "error", err)
		r.lost(1)
		return
	}
	r.count.sentBytes.Add(uint64(len(data)))
	r.sent()
}

// postTo sends body to one URL of the member.
func (r *remote) postTo(by *http.Transport, path, contentType string, body io.ReadCloser, size int64) error {
	u := r.pick()[0]
	err := r.postURL(by, &url.URL{Scheme: u.Scheme, Host: u.Host, Path: path}, contentType, body, size)
	if err != nil {
		r.unreachable(u)
		if errors.Is(err, errRemoved) {
			r.t.h.Removed()
		}
	}
	return err
}

func (r *remote) postURL(by *http.Transport, target *url.URL, contentType string, body io.ReadCloser, size int64) error {
	req, err := http.NewRequestWithContext(r.ctx, http.MethodPost, target.String(), body)
	if err != nil {
		return errors.Join(err, body.Close())
	}
	req.ContentLength = size
	r.t.setHeaders(req.Header)
	req.Header.Set("Content-Type", contentType)
	resp, err := by.RoundTrip(req)
	if err != nil {
		return err
	}
	if resp.StatusCode == http.StatusNoContent {
		return resp.Body.Close()
	}
	return errors.Join(refusal(resp), resp.Body.Close())
}

// snapshotStall is for how long the sending of a snapshot may make no progress, and
// snapshotAnswer how long the other member may take to put it on disk.
const (
	snapshotStall  = 30 * time.Second
	snapshotAnswer = 10 * time.Minute
)

// sendSnapshot is SendSnapshot's goroutine.
func (t *Transport) sendSnapshot(m *raftpb.Message, db io.ReadCloser, size int64) {
	to := membership.ID(m.GetTo())
	r := t.remote(to)
	err := errUnknown
	switch {
	case r == nil:
	case !r.snapshots.CompareAndSwap(false, true):
		err = errSnapshotBusy
	default:
		err = r.snapshot(m, db, size)
		r.snapshots.Store(false)
	}
	if err := errors.Join(err, db.Close()); err != nil {
		t.log.Warn("cannot send a snapshot", "remote-peer-id", to.String(), "snapshot-index", m.GetSnapshot().GetMetadata().GetIndex(), "error", err)
	}
	t.h.SnapshotSent(to, err)
}

func (r *remote) snapshot(m *raftpb.Message, db io.Reader, size int64) error {
	begin := time.Now()
	head, err := appendSized(nil, m)
	if err != nil {
		return err
	}
	total := int64(-1)
	if size >= 0 {
		db = io.LimitReader(db, size)
		total = size + int64(len(head))
	}
	body := &snapshotBody{r: io.MultiReader(bytes.NewReader(head), db), closed: make(chan struct{})}
	// Who sends it may still read when the answer is there: db must stay until then.
	defer func() { <-body.closed }()
	met := r.t.met
	met.SnapshotSendsInFlight.With(r.idStr).Add(1)
	defer met.SnapshotSendsInFlight.With(r.idStr).Add(-1)
	r.t.log.Info("sending a snapshot", "remote-peer-id", r.idStr, "snapshot-index", m.GetSnapshot().GetMetadata().GetIndex(), "bytes", total)
	if err := r.postTo(r.t.bulk, pathSnapshot, "application/octet-stream", body, total); err != nil {
		met.SnapshotSendFailures.With(r.idStr).Inc()
		r.count.sentFailed.Inc()
		return fmt.Errorf("after %d bytes: %w", body.n.Load(), err)
	}
	r.count.sentBytes.Add(uint64(body.n.Load()))
	met.SnapshotSends.With(r.idStr).Inc()
	met.SnapshotSendSeconds.With(r.idStr).Since(begin)
	r.t.log.Info("sent a snapshot", "remote-peer-id", r.idStr, "bytes", body.n.Load(), "took", time.Since(begin).String())
	return nil
}

// snapshotBody is the body of a request with a snapshot.
type snapshotBody struct {
	r      io.Reader
	n      atomic.Int64 // bytes read
	once   sync.Once
	closed chan struct{}
}

func (b *snapshotBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.n.Add(int64(n))
	return n, err
}

// Close is called once the body is not read any more.
func (b *snapshotBody) Close() error {
	b.once.Do(func() { close(b.closed) })
	return nil
}

// probeEvery must be shorter than idleMax, so that round trips are measured on a
// connection that stands.
const probeEvery = 4 * time.Second

// clockDiffMax is a difference of clocks that is worth a warning.
const clockDiffMax = time.Second

// probe measures round trips to the member.
func (r *remote) probe() {
	rtt := r.t.met.PeerRTTSeconds.With(r.idStr)
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		if r.activeSince().IsZero() {
			// The readers look for it already.
		} else if took, diff, err := r.probeOnce(); err != nil {
			r.t.log.Debug("cannot probe a peer", "remote-peer-id", r.idStr, "error", err)
		} else {
			rtt.Observe(took.Seconds())
			if diff.Abs() > clockDiffMax {
				r.t.log.Warn("the clock of a peer differs", "remote-peer-id", r.idStr, "clock-drift", diff.String(), "rtt", took.String())
			}
		}
		select {
		case <-tick.C:
		case <-r.ctx.Done():
			return
		}
	}
}

// probeOnce returns how long a request took, and how far the other clock is ahead.
func (r *remote) probeOnce() (took, diff time.Duration, err error) {
	ctx, cancel := context.WithTimeout(r.ctx, r.t.o.ReadTimeout)
	defer cancel()
	u := r.pick()[0]
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: pathProbing}).String(), nil)
	if err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	resp, err := r.t.posts.RoundTrip(req)
	if err != nil {
		return 0, 0, err
	}
	var h health
	err = readJSON(resp, 1<<10, &h)
	took = time.Since(begin)
	return took, h.Now.Sub(begin.Add(took / 2)), err
}
