package rpc

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"quorate/internal/kv"
	"quorate/internal/metrics"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// services is what all services stand on, and the gate that every call passes: it
// counts the call, looks at the client's metadata and turns errors into etcd's.
//
// A service is registered with register, which puts the gate around each of its
// handlers once. A handler therefore returns errors of package kv as they are. A stream
// handler must return when its stream's Context is done, which happens also when the
// member stops or when the leader that the client requires is lost; the gate then
// answers with the right error, whatever the handler returned.
type services struct {
	Backend
	opts *Options
	met  *metrics.Set
	log  *slog.Logger

	meter   meter
	clients clientVersions
	unary   map[string]unaryMethod // by full name; complete before anything is served

	requests   *requestMemory
	requestMax int64 // the largest message that is received, in bytes
	replies    *replyMemory
	inLine     *requestMemory // of calls that wait for a lock or an election
	looks      looks
	// Of calls that come on no connection of ours.
	otherAccount  *account
	otherJSON     account
	jsonMakers    chan struct{} // a place for each
	otherArrivals arrivals

	snapshotPace time.Duration // see snapshotPaceEvery

	lineWatches lineWatches
	leaderless  leaderless
	streams     struct {
		sync.Mutex
		open    map[*openStream]struct{}
		stopped bool
	}
}

// openStream is a stream whose handler runs.
type openStream struct {
	cancel        context.CancelCauseFunc
	requireLeader bool
}

// header is a response header at revision rev.
func (s *services) header(rev int64) wire.Header {
	return wire.Header{ClusterID: s.ClusterID(), MemberID: s.MemberID(), Revision: rev, Term: s.Term()}
}

// pbHeader is header for the services that speak protobuf-go; rev 0 means that of now.
func (s *services) pbHeader(rev int64) *pb.ResponseHeader {
	if rev == 0 {
		v := s.View()
		rev = v.Rev()
		v.Release()
	}
	return &pb.ResponseHeader{ClusterId: s.ClusterID(), MemberId: s.MemberID(), Revision: rev, RaftTerm: s.Term()}
}

// learnerMethods are the calls that a learner answers; of Range only a serializable one,
// which the KV service checks itself.
var learnerMethods = map[string]bool{
	"/etcdserverpb.Maintenance/Status":   true,
	"/etcdserverpb.Maintenance/Snapshot": true,
	"/etcdserverpb.KV/Range":             true,
	"/grpc.health.v1.Health/Check":       true,
	"/grpc.health.v1.Health/List":        true,
}

// learnerReads are the calls that a learner answers as well with Options.LearnerReads; of
// Txn only what does not write, which the KV service checks itself.
var learnerReads = map[string]bool{
	"/etcdserverpb.KV/RangeStream":     true,
	"/etcdserverpb.KV/Txn":             true,
	"/etcdserverpb.Watch/Watch":        true,
	"/etcdserverpb.Cluster/MemberList": true,
}

// ofLearner reports whether a learner answers a call of the method.
func (s *services) ofLearner(method string) bool {
	return learnerMethods[method] || s.opts.LearnerReads && learnerReads[method]
}

// admit checks what etcd checks before any call's handler: whether the member answers
// such calls, and the client's metadata. Tokens are looked at later, see identity.go.
func (s *services) admit(ctx context.Context, kind string, learner bool) (requireLeader bool, err error) {
	if !learner && s.IsLearner() {
		return false, rpctypes.ErrGRPCNotSupportedForLearner
	}
	version := unknownVersion
	if v := metadata.ValueFromIncomingContext(ctx, rpctypes.MetadataClientAPIVersionKey); len(v) > 0 {
		version = v[0]
		if !utf8.ValidString(version) {
			return false, rpctypes.ErrGRPCInvalidClientAPIVersion
		}
	}
	s.clients.counter(s.met, kind, version).Inc()
	if v := metadata.ValueFromIncomingContext(ctx, rpctypes.MetadataRequireLeaderKey); len(v) > 0 && v[0] == rpctypes.MetadataHasLeader {
		return true, s.leaderless.await(ctx, s.Backend)
	}
	return false, nil
}

const unknownVersion = "unknown"

// clientVersions remembers the counter of the version seen last, one for each kind of
// call: nearly all clients of a member are of one version.
type clientVersions struct{ unary, stream atomic.Pointer[clientVersion] }

type clientVersion struct {
	version string
	counter *metrics.Counter
}

func (c *clientVersions) counter(met *metrics.Set, kind, version string) *metrics.Counter {
	last := &c.stream
	if kind == kindUnary {
		last = &c.unary
	}
	if v := last.Load(); v != nil && v.version == version {
		return v.counter
	}
	// The metric's labels keep etcd's two kinds.
	label := "stream"
	if kind == kindUnary {
		label = "unary"
	}
	v := &clientVersion{version, met.ClientRequests.With(label, version)}
	last.Store(v)
	return v.counter
}

// Kinds of calls, as the metrics name them.
const (
	kindUnary  = "unary"
	kindServer = "server_stream"
	kindBidi   = "bidi_stream"
	kindClient = "client_stream"
)

func streamKind(d *grpc.StreamDesc) string {
	switch {
	case d.ClientStreams && d.ServerStreams:
		return kindBidi
	case d.ClientStreams:
		return kindClient
	case d.ServerStreams:
		return kindServer
	}
	return kindUnary
}

// register adds a service to gs with the gate around its handlers.
func (s *services) register(gs *grpc.Server, desc *grpc.ServiceDesc, impl any) {
	gated := *desc
	gated.Methods, gated.Streams = nil, nil
	for _, m := range desc.Methods {
		gated.Streams = append(gated.Streams, s.gateUnary(desc.ServiceName, m))
	}
	for _, d := range desc.Streams {
		if streamKind(&d) == kindUnary {
			d = s.gateRaw(desc.ServiceName, d)
		} else {
			d.Handler = s.gateStream(desc.ServiceName, d)
		}
		gated.Streams = append(gated.Streams, d)
	}
	for _, d := range gated.Streams {
		if streamKind(&d) == kindUnary {
			s.unary["/"+desc.ServiceName+"/"+d.StreamName] = unaryMethod{impl, d.Handler}
		}
	}
	gs.RegisterService(&gated, impl)
}

// gateUnary puts the gate around a generated handler. It makes a stream's handler of it:
// gRPC receives the request of a unary method by itself, before it has been charged.
func (s *services) gateUnary(service string, m grpc.MethodDesc) grpc.StreamDesc {
	return s.gateRaw(service, grpc.StreamDesc{StreamName: m.MethodName, Handler: func(srv any, stream grpc.ServerStream) error {
		size := int64(0)
		defer func() { s.requests.give(size) }()
		receive := func(m any) error {
			a, err := s.awaitRequest(stream.Context())
			if err != nil {
				return err
			}
			var req request
			defer req.free()
			err = stream.RecvMsg(&req)
			size = int64(len(req.body))
			s.arrived(a, size)
			if err != nil {
				return err
			}
			if err := proto.Unmarshal(req.body, m.(proto.Message)); err != nil {
				return status.Errorf(codes.Internal, "grpc: error unmarshalling request: %v", err)
			}
			return nil
		}
		reply, err := m.Handler(srv, stream.Context(), receive, nil)
		if err != nil {
			return err
		}
		return stream.SendMsg(reply)
	}})
}

// gateRaw puts the gate around a unary call whose handler takes the request's bytes
// itself. gRPC runs such a handler as that of a stream which is neither the client's nor
// the server's.
func (s *services) gateRaw(service string, d grpc.StreamDesc) grpc.StreamDesc {
	handle := d.Handler
	count := s.met.GRPC.Method(service, d.StreamName, kindUnary)
	name := "/" + service + "/" + d.StreamName
	learner := s.ofLearner(name)
	d.Handler = func(srv any, stream grpc.ServerStream) error {
		growStack(false)
		start := time.Now()
		count.Started.Inc()
		_, err := s.admit(stream.Context(), kindUnary, learner)
		if err == nil {
			err = handle(srv, stream)
		}
		count.MessagesReceived.Inc()
		if err == nil {
			count.MessagesSent.Inc()
		}
		err = toWire(err)
		s.handled(stream.Context(), count, name, start, err)
		return err
	}
	return d
}

// growStack makes the goroutine's stack large enough for a whole unary call, and should be
// called where little lies on it yet. gRPC starts a goroutine for each call, on a small
// stack that would otherwise be outgrown, copied and doubled twice deep within the call:
// a fifth of a small call's CPU time. Reused goroutines (grpc.NumStreamWorkers) gave
// nothing on top of it.
//
//go:noinline
func growStack(never bool) byte {
	if !never {
		return 0 // entering the function was enough
	}
	var room [stackRoom]byte
	for i := range room {
		room[i] = byte(i)
	}
	return room[len(room)/2]
}

// stackRoom is what makes a new goroutine's stack 8 KiB.
const stackRoom = 5 << 10

// waitingMethods are the unary calls that wait for other clients: to take long is no fault
// of the member.
var waitingMethods = map[string]bool{
	"/v3lockpb.Lock/Lock":             true,
	"/v3electionpb.Election/Campaign": true,
}

// handled counts a unary call that is over, and logs it if it was slow.
func (s *services) handled(ctx context.Context, count *metrics.Method, name string, start time.Time, err error) {
	took := time.Since(start)
	code := status.Code(err)
	count.Handled(code, took.Seconds())
	if s.opts.SlowRequest <= 0 || took <= s.opts.SlowRequest || waitingMethods[name] {
		return
	}
	remote := "unknown"
	if p, ok := peer.FromContext(ctx); ok {
		remote = p.Addr.String()
	}
	s.log.Warn("slow request", "method", name, "remote", remote, "start time", start, "time spent", took.String(), "code", code.String())
}

// gateStream puts the gate around a stream's handler.
func (s *services) gateStream(service string, d grpc.StreamDesc) grpc.StreamHandler {
	kind := streamKind(&d)
	count := s.met.GRPC.Method(service, d.StreamName, kind)
	learner := s.ofLearner("/" + service + "/" + d.StreamName)
	return func(srv any, stream grpc.ServerStream) error {
		start := time.Now()
		count.Started.Inc()
		err := s.runStream(srv, stream, kind, learner, count, d.Handler)
		err = toWire(err)
		count.Handled(status.Code(err), time.Since(start).Seconds())
		return err
	}
}

func (s *services) runStream(srv any, stream grpc.ServerStream, kind string, learner bool, count *metrics.Method, handle grpc.StreamHandler) error {
	requireLeader, err := s.admit(stream.Context(), kind, learner)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	open := &openStream{cancel: cancel, requireLeader: requireLeader}
	if err := s.open(open); err != nil {
		return err
	}
	defer s.closed(open)
	err = handle(srv, &gatedStream{stream, ctx, count})
	if ctx.Err() != nil && stream.Context().Err() == nil {
		return context.Cause(ctx)
	}
	return err
}

// gatedStream is a stream whose context ends with the member too.
type gatedStream struct {
	grpc.ServerStream
	ctx   context.Context
	count *metrics.Method
}

func (g *gatedStream) Context() context.Context { return g.ctx }

func (g *gatedStream) SendMsg(m any) error {
	err := g.ServerStream.SendMsg(m)
	if err == nil {
		g.count.MessagesSent.Inc()
	}
	return err
}

func (g *gatedStream) RecvMsg(m any) error {
	err := g.ServerStream.RecvMsg(m)
	if err == nil {
		g.count.MessagesReceived.Inc()
	}
	return err
}

// openMax bounds the streams that are open, of all connections. One holds some 25 KiB.
const openMax = 1 << 17

// open takes in a stream, or says why not: kv.ErrStopped, kv.ErrTooManyRequests.
func (s *services) open(o *openStream) error {
	s.streams.Lock()
	defer s.streams.Unlock()
	switch {
	case s.streams.stopped:
		return kv.ErrStopped
	case len(s.streams.open) >= openMax:
		return kv.ErrTooManyRequests
	}
	s.streams.open[o] = struct{}{}
	return nil
}

func (s *services) closed(o *openStream) {
	s.streams.Lock()
	defer s.streams.Unlock()
	delete(s.streams.open, o)
}

// endStreams ends all streams with kv.ErrStopped, and lets no more begin.
func (s *services) endStreams() {
	s.streams.Lock()
	defer s.streams.Unlock()
	s.streams.stopped = true
	for o := range s.streams.open {
		o.cancel(kv.ErrStopped)
	}
}
