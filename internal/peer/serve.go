package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"quorate/internal/membership"

	"go.etcd.io/raft/v3/raftpb"
)

// Paths and headers of the peer port.
const (
	pathRaft     = "/raft"
	pathStream   = "/raft/stream/"
	pathSnapshot = "/raft/snapshot"
	pathProbing  = "/raft/probing"
	pathVersion  = "/version"
	pathMembers  = "/members"
	pathPromote  = "/members/promote/"
	PathHashKV   = "/members/hashkv" // what other members compare data by
	pathLeases   = "/leases"
	pathLeasesIn = "/leases/internal"
	pathDowngrad = "/downgrade/enabled"

	headerFrom       = "X-Server-From"
	headerTo         = "X-Raft-To"
	headerVersion    = "X-Server-Version"
	headerMinVersion = "X-Min-Cluster-Version"
	headerCluster    = "X-Etcd-Cluster-ID"
	headerPeerURLs   = "X-PeerURLs"
	// headerQuorate is not etcd's: who sends it is a quorate.
	headerQuorate  = "X-Quorate-Version"
	quorateVersion = "1"
	// headerPause, in the answer that begins a stream, is not etcd's either: for how many
	// milliseconds at most nothing comes on it.
	headerPause = "X-Quorate-Stream-Pause"
)

// textRemoved is etcd's, in the answer to a removed member's message.
const textRemoved = "removed member"

// minClusterVersion is the lowest version that a member may have to be talked to, and
// the versions that etcd takes a member without headers to have.
var (
	minClusterVersion = membership.Version{Major: 3}
	unsaidVersion     = membership.Version{Major: 2}
)

// routes makes the handler of the peer port.
func (t *Transport) routes() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc(pathRaft, t.only(http.MethodPost, t.compatible(t.servePost)))
	mux.HandleFunc(pathSnapshot, t.only(http.MethodPost, t.compatible(t.serveSnapshot)))
	mux.HandleFunc(pathStream, t.only(http.MethodGet, t.compatible(t.serveStream)))
	mux.HandleFunc(pathProbing, serveProbe)
	t.askRoutes(mux)
	return mux
}

// only answers other methods than the one as etcd does.
func (t *Transport) only(method string, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != method {
			w.Header().Set("Allow", method)
			http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set(headerCluster, t.cluster.String())
		if r.Body == http.NoBody {
			h(w, r)
		} else {
			t.awaited(h)(w, r)
		}
	}
}

// compatible refuses members of another cluster and of another time.
func (t *Transport) compatible(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := t.check(r.Header); err != nil {
			t.log.Warn("refused a request of a peer", "remote-peer-id", r.Header.Get(headerFrom), "remote-peer-server-version", r.Header.Get(headerVersion), "remote-peer-cluster-id", r.Header.Get(headerCluster), "error", err)
			w.Header().Set(headerVersion, t.o.ServerVersion)
			http.Error(w, err.Error(), http.StatusPreconditionFailed)
			return
		}
		h(w, r)
	}
}

// check is why the sender of a request cannot be talked to.
func (t *Transport) check(h http.Header) error {
	local, err := membership.ParseVersion(t.o.ServerVersion)
	if err != nil {
		return errIncompatible
	}
	server, err1 := headerVersionOf(h, headerVersion)
	least, err2 := headerVersionOf(h, headerMinVersion)
	if err1 != nil || err2 != nil || server.MinorOnly().Less(minClusterVersion) || local.MinorOnly().Less(least.MinorOnly()) {
		return errIncompatible
	}
	if h.Get(headerCluster) != t.cluster.String() {
		return errClusterMismatch
	}
	return nil
}

func headerVersionOf(h http.Header, name string) (membership.Version, error) {
	s := h.Get(name)
	if s == "" {
		return unsaidVersion, nil
	}
	return membership.ParseVersion(s)
}

// meet remembers where the sender of a request can be reached, if it is not known.
func (t *Transport) meet(h http.Header) {
	id, err := membership.ParseID(h.Get(headerFrom))
	if urls := h.Get(headerPeerURLs); err == nil && urls != "" && !t.h.IsRemoved(id) {
		t.add(id, strings.Split(urls, ","), false)
	}
}

// servePost takes one message.
func (t *Transport) servePost(w http.ResponseWriter, r *http.Request) {
	t.meet(r.Header)
	data, err := readBody(r)
	if err != nil {
		t.met.PeerReceivedFailures.With(t.senderLabel(r.Header)).Inc()
		http.Error(w, "error reading raft message", http.StatusBadRequest)
		return
	}
	m, err := decodeMessage(data)
	if err != nil {
		t.met.PeerReceivedFailures.With(t.senderLabel(r.Header)).Inc()
		http.Error(w, "error unmarshalling raft message", http.StatusBadRequest)
		return
	}
	t.met.PeerReceivedBytes.With(t.label(membership.ID(m.GetFrom()))).Add(uint64(len(data)))
	if err := t.acceptable(m); err != nil {
		t.refuse(w, err)
		return
	}
	t.h.Receive(m)
	w.WriteHeader(http.StatusNoContent)
}

// readBody reads a message that is sent alone.
func readBody(r *http.Request) ([]byte, error) {
	if n := r.ContentLength; n >= 0 {
		return readBytes(r.Body, uint64(n), messageBytesMax)
	}
	data, err := io.ReadAll(io.LimitReader(r.Body, messageBytesMax+1))
	if err == nil && len(data) > messageBytesMax {
		err = errTooLarge
	}
	return data, err
}

// refuse says why a message was not taken, in etcd's words.
func (t *Transport) refuse(w http.ResponseWriter, why error) {
	text, code := "error processing raft message", http.StatusInternalServerError
	switch {
	case errors.Is(why, errRemoved):
		text, code = "cannot process message from "+textRemoved, http.StatusForbidden
	case errors.Is(why, errNotMine):
		text, code = "cannot process message to mismatch member", http.StatusForbidden
	}
	if code != http.StatusForbidden {
		http.Error(w, text, code)
		return
	}
	writeMessage(w, code, text)
}

// writeMessage answers with an error in the form that etcd's members read.
func writeMessage(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"message":%q}`, text) // who asked is gone if this fails
}

// awaitedBody is a request's body whose sender may not rest for long: it would keep its
// place on the port, and what waits for the body, for as long as it likes.
type awaitedBody struct {
	io.ReadCloser
	t  *Transport
	rc *http.ResponseController
}

func (b *awaitedBody) Read(p []byte) (int, error) {
	// An error is the connection's, which the reading meets, too.
	_ = b.rc.SetReadDeadline(time.Now().Add(b.t.o.bodyRest()))
	if b.t.ctx.Err() != nil {
		return 0, errClosed // and no deadline may be in the place of interrupt's
	}
	return b.ReadCloser.Read(p)
}

// bodyRest is how long the sender of a body may make no progress.
func (o *Options) bodyRest() time.Duration { return 2 * o.ReadTimeout }

// awaited bounds how long reading the body of a request may rest, and ends it when the
// Transport is closed.
func (t *Transport) awaited(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		stop := context.AfterFunc(t.ctx, func() {
			if err := rc.SetReadDeadline(time.Unix(1, 0)); err != nil {
				t.log.Debug("cannot interrupt a request", "error", err)
			}
		})
		defer stop()
		r.Body = &awaitedBody{r.Body, t, rc}
		h(w, r)
	}
}

// label names a member in the metrics, or one of the few strangers that are remembered; what
// else senders claim to be is not counted one by one.
func (t *Transport) label(id membership.ID) string {
	if t.remote(id) == nil {
		return "unknown"
	}
	return id.String()
}

func (t *Transport) senderLabel(h http.Header) string {
	id, err := membership.ParseID(h.Get(headerFrom))
	if err != nil {
		return "unknown"
	}
	return t.label(id)
}

// serveSnapshot takes a snapshot: its message, and then the database file.
func (t *Transport) serveSnapshot(w http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	t.meet(r.Header)
	m, size, err := readSnapshotMessage(r)
	from := t.label(membership.ID(m.GetFrom()))
	fail := func(code int, text string) {
		t.log.Warn("refused a snapshot", "remote-snapshot-sender-id", from, "error", text)
		t.met.SnapshotReceiveFailures.With(from).Inc()
		http.Error(w, text, code)
	}
	if err != nil {
		fail(http.StatusBadRequest, fmt.Sprintf("failed to decode raft message (%v)", err))
		return
	}
	if m.GetType() != raftpb.MsgSnap || m.GetSnapshot().GetMetadata().GetIndex() == 0 {
		fail(http.StatusBadRequest, "wrong raft message type")
		return
	}
	if m.GetTo() != uint64(t.self) || t.h.IsRemoved(membership.ID(m.GetFrom())) {
		t.met.SnapshotReceiveFailures.With(from).Inc()
		if m.GetTo() != uint64(t.self) {
			t.refuse(w, errNotMine)
		} else {
			t.refuse(w, errRemoved)
		}
		return
	}
	t.met.SnapshotReceivesInFlight.With(from).Add(1)
	defer t.met.SnapshotReceivesInFlight.With(from).Add(-1)
	db := &countingReader{r: r.Body}
	if err := t.h.ReceiveSnapshot(m, db, size); err != nil {
		fail(http.StatusInternalServerError, fmt.Sprintf("failed to save KV snapshot (%v)", err))
		return
	}
	t.met.PeerReceivedBytes.With(from).Add(uint64(db.n))
	t.met.SnapshotReceives.With(from).Inc()
	t.met.SnapshotReceiveSeconds.With(from).Since(begin)
	w.WriteHeader(http.StatusNoContent)
}

// readSnapshotMessage reads what stands before a snapshot's file, and how long that is if
// the request tells, else -1.
func readSnapshotMessage(r *http.Request) (m *raftpb.Message, size int64, err error) {
	var head [8]byte
	if _, err := io.ReadFull(r.Body, head[:]); err != nil {
		return nil, 0, err
	}
	n := be64(head[:])
	data, err := readBytes(r.Body, n, snapshotMessageMax)
	if err != nil {
		return nil, 0, err
	}
	if m, err = decodeMessage(data); err != nil {
		return nil, 0, err
	}
	if r.ContentLength < 0 {
		return m, -1, nil
	}
	return m, r.ContentLength - int64(len(head)+len(data)), nil
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// serveStream makes the connection of the request a stream to who asks.
func (t *Transport) serveStream(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(headerVersion, t.o.ServerVersion)
	w.Header().Set(headerQuorate, quorateVersion)
	w.Header().Set(headerPause, strconv.FormatInt(t.o.beat().Milliseconds(), 10))
	k := slices.IndexFunc([]kind{streamMessage, streamAppend}, func(k kind) bool {
		return path.Dir(r.URL.Path) == pathStream+k.path()
	})
	if k < 0 {
		http.Error(w, "invalid path", http.StatusNotFound)
		return
	}
	from, err := membership.ParseID(path.Base(r.URL.Path))
	if err != nil {
		http.Error(w, "invalid from", http.StatusNotFound)
		return
	}
	if t.h.IsRemoved(from) {
		http.Error(w, textRemoved, http.StatusGone)
		return
	}
	remote := t.member(from)
	if remote == nil {
		if urls := r.Header.Get(headerPeerURLs); urls != "" {
			t.add(from, strings.Split(urls, ","), false)
		}
		t.log.Warn("failed to find remote peer in cluster", "remote-peer-id-from", from.String())
		http.Error(w, "error sender not found", http.StatusNotFound)
		return
	}
	if r.Header.Get(headerTo) != t.self.String() {
		t.log.Warn("ignored streaming request; ID mismatch", "remote-peer-id-header", r.Header.Get(headerTo), "remote-peer-id-from", from.String())
		http.Error(w, "to field mismatch", http.StatusPreconditionFailed)
		return
	}
	conn, err := t.takeOver(w, r)
	if err != nil {
		http.Error(w, "streams need HTTP/1.1", http.StatusHTTPVersionNotSupported)
		return
	}
	remote.outboxes[k].serve(conn, r.Header.Get(headerQuorate) != "")
}

// member returns the remote of a member, nil if it is only one that says so.
func (t *Transport) member(id membership.ID) *remote {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if r := t.remotes[id]; r != nil && r.connects {
		return r
	}
	return nil
}

// takeOver answers that the stream stands and takes the connection from the HTTP server.
// An error means that the request can still be answered.
func (t *Transport) takeOver(w http.ResponseWriter, r *http.Request) (net.Conn, error) {
	if !r.ProtoAtLeast(1, 1) || r.ProtoAtLeast(2, 0) {
		return nil, http.ErrNotSupported
	}
	var head strings.Builder
	head.WriteString("HTTP/1.1 200 OK\r\n")
	w.Header().Set("Transfer-Encoding", "chunked")
	if err := w.Header().Write(&head); err != nil {
		return nil, err
	}
	w.Header().Del("Transfer-Encoding")
	head.WriteString("\r\n")
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	// The server's time limits are not a stream's. An error shows at the first write.
	if err := conn.SetDeadline(time.Time{}); err != nil {
		t.log.Debug("cannot lift the time limit of a stream", "error", err)
	}
	if _, err := io.WriteString(conn, head.String()); err != nil {
		t.log.Debug("cannot begin a stream", "error", err)
	}
	return conn, nil
}

// health is the answer to a probe.
type health struct {
	OK  bool
	Now time.Time
}

func serveProbe(w http.ResponseWriter, _ *http.Request) {
	json.NewEncoder(w).Encode(health{true, time.Now()}) // who asked is gone if this fails
}
