package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"quorate/internal/kv"
	"quorate/internal/membership"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// What members ask each other beside Raft: who belongs to the cluster, versions, and what
// only the leader knows. Answers have etcd's paths, status codes and texts.

const (
	// leaseWait is how long a lease request may wait for the member to catch up, as in etcd.
	leaseWait = time.Second
	// askWait bounds the other requests.
	askWait = 7 * time.Second
	// hashWait is for reading all keys.
	hashWait = 10 * time.Minute

	askBytesMax    = 64 << 10
	answerBytesMax = 100 << 20
)

// headerError carries the text of an error of package kv where etcd's answer does not tell.
const headerError = "X-Quorate-Error"

// etcd's texts.
const (
	textIDNotFound     = "membership: ID not found"
	textNotLearner     = "membership: can only promote a learner member"
	textNotReady       = "etcdserver: can only promote a learner member which is in sync with leader"
	textLeaseNotFound  = "lease not found"
	textNotPrimary     = "not a primary lessor"
	textLeaseTimeout   = "waiting for node to catch up its applied index has timed out"
	textCompacted      = "mvcc: required revision has been compacted"
	textFutureRevision = "mvcc: required revision is a future revision"
)

func (t *Transport) askRoutes(mux *http.ServeMux) {
	mux.HandleFunc(pathVersion, t.only(http.MethodGet, t.serveVersion))
	mux.HandleFunc(pathMembers, t.only(http.MethodGet, t.serveMembers))
	mux.HandleFunc(pathPromote, t.only(http.MethodPost, t.servePromote))
	mux.HandleFunc(PathHashKV, t.only(http.MethodGet, t.serveHashKV))
	mux.HandleFunc(pathLeases, t.only(http.MethodPost, t.serveRenew))
	mux.HandleFunc(pathLeasesIn, t.only(http.MethodPost, t.serveTimeToLive))
	mux.HandleFunc(pathDowngrad, t.only(http.MethodGet, t.serveDowngrade))
}

// limit is the context of r, ended by Close and after wait, too.
func (t *Transport) limit(r *http.Request, wait time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	stop := context.AfterFunc(t.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// versions is the answer to /version.
type versions struct {
	Server  string `json:"etcdserver"`
	Cluster string `json:"etcdcluster"`
	Storage string `json:"storage"`
}

func (t *Transport) serveVersion(w http.ResponseWriter, _ *http.Request) {
	v := versions{Server: t.o.ServerVersion}
	v.Cluster, v.Storage = t.h.Versions()
	if v.Cluster == "" {
		v.Cluster = "not_decided"
	}
	if v.Storage == "" {
		v.Storage = "unknown"
	}
	t.answerJSON(w, &v)
}

// answerJSON answers without the newline that json.Encoder adds.
func (t *Transport) answerJSON(w http.ResponseWriter, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	t.answer(w, data)
}

func (t *Transport) answer(w http.ResponseWriter, data []byte) {
	if _, err := w.Write(data); err != nil {
		t.log.Debug("cannot answer a peer", "error", err)
	}
}

func (t *Transport) serveMembers(w http.ResponseWriter, _ *http.Request) {
	t.answerMembers(w, t.h.Members())
}

func (t *Transport) answerMembers(w http.ResponseWriter, ms []membership.Member) {
	if ms == nil {
		ms = []membership.Member{}
	}
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(ms); err != nil {
		t.log.Debug("cannot answer a peer", "error", err)
	}
}

func (t *Transport) servePromote(w http.ResponseWriter, r *http.Request) {
	raw := strings.TrimPrefix(r.URL.Path, pathPromote)
	id, err := strconv.ParseUint(raw, 10, 64)
	if err != nil {
		http.Error(w, fmt.Sprintf("member %s not found in cluster", raw), http.StatusNotFound)
		return
	}
	ctx, cancel := t.limit(r, askWait)
	defer cancel()
	ms, err := t.h.Promote(ctx, membership.ID(id), r.Header.Get("Authorization"))
	switch {
	case err == nil:
		t.answerMembers(w, ms)
	case errors.Is(err, kv.ErrMemberNotFound):
		http.Error(w, textIDNotFound, http.StatusNotFound)
	case errors.Is(err, kv.ErrLearnerNotReady):
		http.Error(w, textNotReady, http.StatusPreconditionFailed)
	case errors.Is(err, kv.ErrMemberNotLearner):
		http.Error(w, textNotLearner, http.StatusPreconditionFailed)
	default:
		setError(w.Header(), err)
		writeMessage(w, http.StatusInternalServerError, "Internal Server Error")
	}
}

func (t *Transport) serveHashKV(w http.ResponseWriter, r *http.Request) {
	if c := r.Header.Get(headerCluster); c != "" && c != t.cluster.String() {
		http.Error(w, errClusterMismatch.Error(), http.StatusPreconditionFailed)
		return
	}
	data, err := io.ReadAll(io.LimitReader(r.Body, askBytesMax))
	if err != nil {
		http.Error(w, "error reading body", http.StatusBadRequest)
		return
	}
	var q struct {
		Revision int64 `json:"revision"`
	}
	if err := json.Unmarshal(data, &q); err != nil {
		http.Error(w, "error unmarshalling request", http.StatusBadRequest)
		return
	}
	ctx, cancel := t.limit(r, hashWait)
	defer cancel()
	resp, err := t.h.HashKV(ctx, q.Revision)
	switch {
	case err == nil:
		t.answerJSON(w, resp)
	case errors.Is(err, kv.ErrCompacted):
		http.Error(w, textCompacted, http.StatusBadRequest)
	case errors.Is(err, kv.ErrFutureRevision):
		http.Error(w, textFutureRevision, http.StatusBadRequest)
	default:
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}

// readAsk reads the request message of a lease into q; false: it has answered.
func readAsk(w http.ResponseWriter, r *http.Request, decode func([]byte) error) bool {
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, askBytesMax))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		http.Error(w, "request body too large", http.StatusRequestEntityTooLarge)
	case err != nil:
		http.Error(w, "error reading body", http.StatusBadRequest)
	case decode(data) != nil:
		http.Error(w, "error unmarshalling request", http.StatusBadRequest)
	default:
		return true
	}
	return false
}

func (t *Transport) serveRenew(w http.ResponseWriter, r *http.Request) {
	var q pb.LeaseKeepAliveRequest
	if !readAsk(w, r, func(b []byte) error { return proto.Unmarshal(b, &q) }) {
		return
	}
	ctx, cancel := t.limit(r, leaseWait)
	defer cancel()
	ttl, err := t.h.RenewLease(ctx, kv.LeaseID(q.ID))
	if err != nil {
		leaseError(w, err, http.StatusBadRequest)
		return
	}
	t.answerProto(w, &pb.LeaseKeepAliveResponse{ID: q.ID, TTL: ttl})
}

func (t *Transport) serveTimeToLive(w http.ResponseWriter, r *http.Request) {
	var q pb.LeaseTimeToLiveRequest
	if !readAsk(w, r, func(b []byte) error { return openInternal(b, &q) }) {
		return
	}
	ctx, cancel := t.limit(r, leaseWait)
	defer cancel()
	resp, err := t.h.LeaseTimeToLive(ctx, kv.LeaseID(q.ID), q.Keys)
	if err != nil {
		leaseError(w, err, http.StatusInternalServerError)
		return
	}
	if resp.Header == nil {
		resp.Header = &pb.ResponseHeader{} // etcd fills it in without a look
	}
	data, err := wrapInternal(resp)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/protobuf")
	t.answer(w, data)
}

func (t *Transport) answerProto(w http.ResponseWriter, m proto.Message) {
	data, err := proto.Marshal(m)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/protobuf")
	t.answer(w, data)
}

// leaseError answers with an error about a lease. notMine is the code for what is not
// this member's.
func leaseError(w http.ResponseWriter, err error, notMine int) {
	setError(w.Header(), err)
	switch {
	case errors.Is(err, kv.ErrLeaseNotFound):
		http.Error(w, textLeaseNotFound, http.StatusNotFound)
	case errors.Is(err, kv.ErrNotLeader):
		http.Error(w, textNotPrimary, notMine)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, kv.ErrTimeout):
		http.Error(w, textLeaseTimeout, http.StatusRequestTimeout)
	default:
		http.Error(w, err.Error(), notMine)
	}
}

// LeaseInternalRequest and LeaseInternalResponse of etcd each hold one message, in field 1.

func wrapInternal(m proto.Message) ([]byte, error) {
	inner, err := proto.Marshal(m)
	return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), inner), err
}

func openInternal(b []byte, m proto.Message) error {
	found := false
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if num != 1 || typ != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
				return protowire.ParseError(n)
			}
			b = b[n:]
			continue
		}
		inner, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := (proto.UnmarshalOptions{Merge: true}).Unmarshal(inner, m); err != nil {
			return err
		}
		found = true
		b = b[n:]
	}
	if !found {
		return errors.New("peer: no lease in the message")
	}
	return nil
}

func (t *Transport) serveDowngrade(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := t.limit(r, askWait)
	defer cancel()
	enabled, err := t.h.DowngradeEnabled(ctx)
	if err != nil {
		http.Error(w, fmt.Sprintf("failed linearized read: %v", err), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	t.answer(w, strconv.AppendBool(nil, enabled))
}

// told are the errors that one quorate tells another by name.
var told = []error{
	kv.ErrNotLeader, kv.ErrNoLeader, kv.ErrLeaderChanged, kv.ErrStopped, kv.ErrTimeout,
	kv.ErrTooManyRequests, kv.ErrUnhealthy, kv.ErrNotEnoughStarted, kv.ErrTooManyLearners,
}

func setError(h http.Header, err error) {
	for _, e := range told {
		if errors.Is(err, e) {
			h.Set(headerError, e.Error())
			return
		}
	}
}

// toldError is the error that setError has named, nil if none.
func toldError(h http.Header) error {
	for _, e := range told {
		if h.Get(headerError) == e.Error() {
			return e
		}
	}
	return nil
}
