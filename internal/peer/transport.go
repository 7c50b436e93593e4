package peer

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"quorate/internal/membership"
	"quorate/internal/metrics"

	"go.etcd.io/raft/v3/raftpb"
)

// Options say how a Transport behaves. Zero fields have the defaults that they name.
type Options struct {
	// ServerVersion is of etcd, as other members see it ("3.7.1").
	ServerVersion string
	// PeerURLs are the addresses that this member tells those who do not know it yet.
	PeerURLs []string
	// LocalAddr is the address (without port) that connections come from; empty: any.
	LocalAddr string
	// ClientTLS is asked for each new connection, so that certificates can change. nil,
	// or returning nil, is a TLS configuration with the system's authorities.
	ClientTLS func() *tls.Config

	// ReadTimeout is for how long a stream may be silent, and a write may make no
	// progress. Default 5 s, as etcd has.
	ReadTimeout time.Duration
	// DialTimeout bounds making a connection, and an answer to the question whether the
	// other member is there. Default 2 s.
	DialTimeout time.Duration
	// QueueMessages and QueueBytes bound what waits for one stream. Defaults 4096 and 128 MiB.
	QueueMessages, QueueBytes int

	Metrics *metrics.Set // nil: counted for nobody
	Logger  *slog.Logger // nil: silent
}

func (o *Options) setDefaults() {
	if o.ReadTimeout == 0 {
		o.ReadTimeout = 5 * time.Second
	}
	if o.DialTimeout == 0 {
		o.DialTimeout = 2 * time.Second
	}
	if o.QueueMessages == 0 {
		o.QueueMessages = 4096
	}
	if o.QueueBytes == 0 {
		o.QueueBytes = 128 << 20
	}
	if o.Metrics == nil {
		o.Metrics = metrics.New(false)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// Transport carries messages between this member and the others. All methods may be
// called from any goroutine; none blocks but Close.
type Transport struct {
	o   Options
	log *slog.Logger
	met *metrics.Set

	// posts is for what is short, bulk for snapshots.
	posts, bulk *http.Transport
	dialer      dialer
	mux         *http.ServeMux

	// Set by Open, constant after it.
	self, cluster membership.ID
	h             Handler
	opened        atomic.Bool

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup // every goroutine; enter adds

	mu      sync.RWMutex
	closed  bool
	remotes map[membership.ID]*remote
}

// New returns a Transport that answers 503 and dials nobody until Open.
func New(o Options) *Transport {
	o.setDefaults()
	t := &Transport{o: o, log: o.Logger, met: o.Metrics, remotes: make(map[membership.ID]*remote)}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.dialer = newDialer(o.LocalAddr, o.DialTimeout, o.ClientTLS)
	t.posts = t.dialer.transport(t.o.ReadTimeout)
	t.posts.ResponseHeaderTimeout = o.ReadTimeout
	t.bulk = t.dialer.transport(snapshotStall)
	t.bulk.ResponseHeaderTimeout = snapshotAnswer
	t.mux = t.routes()
	return t
}

// Open gives the Transport its identity and the member behind it. It is called once.
func (t *Transport) Open(self, cluster membership.ID, h Handler) {
	t.self, t.cluster, t.h = self, cluster, h
	t.known(self, 1)
	t.opened.Store(true)
}

// known notes in the metrics whether a member is known to be one: 1 or 0.
func (t *Transport) known(id membership.ID, is int64) {
	t.met.KnownPeers.With(t.self.String(), id.String()).Set(is)
}

// Handler is the whole peer port. Streams need HTTP/1.1.
func (t *Transport) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !t.opened.Load() || !t.enter() {
			http.Error(w, "Service Unavailable", http.StatusServiceUnavailable)
			return
		}
		defer t.tasks.Done()
		t.mux.ServeHTTP(w, r)
	})
}

// enter counts one more goroutine, unless the Transport is closed.
func (t *Transport) enter() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.closed {
		return false
	}
	t.tasks.Add(1)
	return true
}

// run runs fn in the background, unless the Transport is closed.
func (t *Transport) run(fn func()) bool {
	if !t.enter() {
		return false
	}
	go func() {
		defer t.tasks.Done()
		fn()
	}()
	return true
}

// Add makes a member known, by its URLs, and connects to it. For one that is known
// already, only Update does something.
func (t *Transport) Add(id membership.ID, peerURLs []string) { t.add(id, peerURLs, true) }

// add makes a member known. One that is not a member as far as this one can tell
// (connect is false) is sent messages by the pipeline alone, as in etcd: it may be a
// leader that this member, being behind, has not heard of.
func (t *Transport) add(id membership.ID, peerURLs []string, connect bool) {
	if id == t.self || id == 0 {
		return
	}
	urls, err := parseURLs(peerURLs)
	if err != nil {
		t.log.Warn("cannot connect to a member", "remote-peer-id", id.String(), "error", err)
		return
	}
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return
	}
	r := t.remotes[id]
	if r == nil {
		if !connect && t.strangersLocked() >= strangersMax {
			t.mu.Unlock()
			return
		}
		r = newRemote(t, id, urls)
		t.remotes[id] = r
	}
	start := connect && !r.connects
	if start {
		r.connects = true
		t.tasks.Add(int(kinds) + 1)
	}
	t.mu.Unlock()

	if start {
		t.known(id, 1)
		r.update(urls)
		r.start()
		t.log.Info("added a peer", "remote-peer-id", id.String(), "remote-peer-urls", peerURLs)
	}
}

// strangersMax bounds how many members are kept that only they themselves know of.
const strangersMax = 32

func (t *Transport) strangersLocked() (n int) {
	for _, r := range t.remotes {
		if !r.connects {
			n++
		}
	}
	return n
}

// Update gives a known member other URLs. Connections that stand stay.
func (t *Transport) Update(id membership.ID, peerURLs []string) {
	r := t.remote(id)
	if r == nil {
		return
	}
	urls, err := parseURLs(peerURLs)
	if err != nil {
		t.log.Warn("cannot use the URLs of a member", "remote-peer-id", id.String(), "error", err)
		return
	}
	r.update(urls)
}

// Remove ends all connections to a member and forgets it.
func (t *Transport) Remove(id membership.ID) {
	t.mu.Lock()
	r := t.remotes[id]
	delete(t.remotes, id)
	t.mu.Unlock()
	if r != nil {
		t.known(id, 0)
		r.stop()
		t.log.Info("removed a peer", "remote-peer-id", id.String())
	}
}

// Send hands messages to the members that they name. It never blocks: what cannot be
// taken is dropped, and Handler.Lost is called, from here, if the member is known. The
// messages must not change any more.
func (t *Transport) Send(ms []*raftpb.Message) {
	for i := 0; i < len(ms); {
		to := ms[i].GetTo()
		end := i + 1
		for end < len(ms) && ms[end].GetTo() == to {
			end++
		}
		if r := t.remote(membership.ID(to)); r != nil {
			r.send(ms[i:end])
		}
		i = end
	}
}

// SendSnapshot sends m, a MsgSnap, and the database file that it stands for, in the
// background: size bytes, or up to io.EOF if size is -1. It closes db, and then
// Handler.SnapshotSent says how it went, unless the Transport was closed before. A second
// one to a member must wait for that.
func (t *Transport) SendSnapshot(m *raftpb.Message, db io.ReadCloser, size int64) {
	if !t.run(func() { t.sendSnapshot(m, db, size) }) {
		if err := db.Close(); err != nil {
			t.log.Warn("cannot close a snapshot that is not sent", "error", err)
		}
	}
}

// ActiveSince is since when there is a stream to or from the member, zero if there is none.
func (t *Transport) ActiveSince(id membership.ID) time.Time {
	if r := t.remote(id); r != nil {
		return r.activeSince()
	}
	return time.Time{}
}

// IsQuorate reports whether there is a stream to or from the member, and it has said when the
// last of them was made that it is a quorate: it takes numbered proposals.
func (t *Transport) IsQuorate(id membership.ID) bool {
	r := t.remote(id)
	return r != nil && r.isQuorate()
}

// Close ends all connections and returns when every goroutine is gone.
func (t *Transport) Close() {
	t.mu.Lock()
	t.closed = true
	remotes := t.remotes
	t.remotes = nil
	t.mu.Unlock()

	t.cancel()
	for _, r := range remotes {
		r.stop()
	}
	t.tasks.Wait()
	t.posts.CloseIdleConnections()
	t.bulk.CloseIdleConnections()
}

func (t *Transport) remote(id membership.ID) *remote {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.remotes[id]
}

// setHeaders says who asks, as etcd's members do.
func (t *Transport) setHeaders(h http.Header) {
	h.Set(headerFrom, t.self.String())
	h.Set(headerVersion, t.o.ServerVersion)
	h.Set(headerMinVersion, minClusterVersion.String())
	h.Set(headerCluster, t.cluster.String())
	h.Set(headerQuorate, quorateVersion)
	if len(t.o.PeerURLs) > 0 {
		h.Set(headerPeerURLs, joinURLs(t.o.PeerURLs))
	}
}

// acceptable is why a message from the wire is refused, nil if it is taken.
func (t *Transport) acceptable(m *raftpb.Message) error {
	switch {
	case m.GetTo() != uint64(t.self):
		return errNotMine
	case t.h.IsRemoved(membership.ID(m.GetFrom())):
		return errRemoved
	case !slices.Contains(wireTypes, m.GetType()):
		return errLocalMessage
	}
	return nil
}

// wireTypes are the messages that members send each other. The others are for a member's
// own threads, or have a way of their own (MsgSnap).
var wireTypes = []raftpb.MessageType{
	raftpb.MsgApp, raftpb.MsgAppResp, raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp, raftpb.MsgProp,
	raftpb.MsgReadIndex, raftpb.MsgReadIndexResp, raftpb.MsgVote, raftpb.MsgVoteResp,
	raftpb.MsgPreVote, raftpb.MsgPreVoteResp, raftpb.MsgTimeoutNow, raftpb.MsgTransferLeader,
}

// deadlineConn renews a time limit with each write: a transfer may last as long as it makes
// progress.
type deadlineConn struct {
	net.Conn
	write time.Duration
}

func (c deadlineConn) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.write)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}
