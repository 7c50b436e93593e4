package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"log/slog"
	"math"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"quorate/internal/kv"
	"quorate/internal/metrics"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
)

// Options configure a Server. Backend, Status, Metrics, Logger and ElectionTimeout must
// be set; what is zero else has the default that is named.
type Options struct {
	Backend Backend
	Status  func() Status
	Metrics *metrics.Set
	Logger  *slog.Logger

	// Version is the server's version in the Status call.
	Version string
	// ElectionTimeout times the end of calls and streams that require a leader.
	ElectionTimeout time.Duration

	MaxRequestBytes      int    // of a request as it is replicated; 1.5 MiB
	MaxTxnOps            int    // 128
	MaxConcurrentStreams uint32 // of one connection; 65,536, which is also the most

	// A client that pings more often than KeepaliveMinTime is sent away; an idle
	// connection is pinged after KeepaliveInterval and closed KeepaliveTimeout later.
	KeepaliveMinTime  time.Duration // 5 s
	KeepaliveInterval time.Duration // 2 h
	KeepaliveTimeout  time.Duration // 20 s

	// RequestMemory bounds the bytes of requests that are not answered yet, ReplyMemory
	// those of large replies that are not written yet, and half of it, beside that, those of
	// the JSON gateway; see memory.go.
	RequestMemory int64 // 512 MiB
	ReplyMemory   int64 // 1 GiB
	// LineMemory bounds what calls hold that wait for a lock or an election: 16 KiB and
	// twice the request for each.
	LineMemory int64 // 256 MiB

	// LearnerReads lets a learner answer linearizable reads, transactions that only read
	// and watches, which etcd does not.
	LearnerReads bool

	// CertificateUsers lets a client that shows no token be the user that its certificate
	// names: clients must show certificates, which were verified.
	CertificateUsers bool

	// SlowRequest is from when on a unary call is logged; 0: never.
	SlowRequest time.Duration
}

// How gRPC is set up beyond what etcd's flags say. Not set because they gave nothing under
// 512 clients on 32 connections: NumStreamWorkers beside growStack, larger read buffers.
// There are no interceptors, stats handlers or compressors.
const (
	// streamsMax bounds the streams of one connection whatever the operator allows. With
	// streamWindow it bounds what a client can send without being read: gRPC's windows
	// grow to 16 MiB a stream if they are not static. A message that is larger than the
	// window still comes at once when it is asked for, and the connection's window, which
	// opens as data arrives, lets one connection fill a line of 1 Gbit/s over 128 ms.
	streamsMax   = 1 << 16
	streamWindow = 64 << 10
	connWindow   = 16 << 20
	// readBuffer is held by every connection, idle ones too. The default of 32 KiB was
	// no faster.
	readBuffer = 8 << 10
	// headersMax bounds the metadata of a call, in bytes as HTTP/2 counts them: 32 for each
	// field beside its name and value. gRPC's own bound is 16 MiB, which a long-lived stream
	// holds as long as it lives and which compressed fields make of few bytes.
	headersMax = 256 << 10
)

// requestOverhead is by how much a message may exceed MaxRequestBytes before gRPC
// refuses it on its own terms.
const requestOverhead = 512 << 10

func (o *Options) defaults() {
	setDefault(&o.MaxRequestBytes, 3<<19)
	setDefault(&o.MaxTxnOps, 128)
	setDefault(&o.MaxConcurrentStreams, streamsMax)
	setDefault(&o.KeepaliveMinTime, 5*time.Second)
	setDefault(&o.KeepaliveInterval, 2*time.Hour)
	setDefault(&o.KeepaliveTimeout, 20*time.Second)
	setDefault(&o.RequestMemory, 512<<20)
	setDefault(&o.ReplyMemory, 1<<30)
	setDefault(&o.LineMemory, 256<<20)
}

func setDefault[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// Server serves the services to clients, on any number of listeners.
type Server struct {
	services *services
	grpc     *grpc.Server
	queue    *queue // of connections to grpc
	conns    *conns
	rejected rejected
	health   *health.Server
	gateway  *gateway

	done chan struct{}  // closed by Shutdown
	wg   sync.WaitGroup // the server's own goroutines

	mu       sync.Mutex
	stopped  bool
	muxers   map[*muxer]struct{}
	https    map[*http.Server]struct{}
	shutdown sync.Once
}

// New makes a server; Serve lets clients in. Shutdown must be called in the end.
func New(opts Options) (*Server, error) {
	opts.defaults()
	s := &Server{
		services: newServices(&opts),
		queue:    newQueue(inProcess{}),
		health:   health.NewServer(),
		done:     make(chan struct{}),
		muxers:   make(map[*muxer]struct{}),
		https:    make(map[*http.Server]struct{}),
	}
	s.conns = s.services.looks.conns
	s.rejected.log = opts.Logger
	s.grpc = grpc.NewServer(
		grpc.ForceServerCodecV2(codec{&opts.Metrics.ClientBytesReceived, &opts.Metrics.ClientBytesSent}),
		grpc.Creds(handshaken{}),
		grpc.MaxRecvMsgSize(opts.MaxRequestBytes+requestOverhead),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.MaxConcurrentStreams(min(opts.MaxConcurrentStreams, streamsMax)),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: opts.KeepaliveMinTime}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: opts.KeepaliveInterval, Timeout: opts.KeepaliveTimeout}),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.WaitForHandlers(true),
		grpc.ReadBufferSize(readBuffer),
		grpc.MaxHeaderListSize(headersMax),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connWindow),
	)
	s.registerAll()
	s.wg.Go(func() {
		// The queue ends only with Shutdown.
		if err := s.grpc.Serve(s.queue); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			opts.Logger.Error("the gRPC server ended", "error", err)
		}
	})
	s.wg.Go(func() { s.services.watchLeader(s.done) })
	s.wg.Go(s.reportHealth)
	var err error
	if s.gateway, err = newGateway(s.services, s.dial); err != nil {
		s.Shutdown(canceled())
		return nil, err
	}
	return s, nil
}

func newServices(opts *Options) *services {
	s := &services{
		Backend: opts.Backend, opts: opts, met: opts.Metrics, log: opts.Logger,
		meter:      newMeter(opts.Metrics),
		unary:      make(map[string]unaryMethod),
		requests:   newRequestMemory(opts.RequestMemory),
		requestMax: int64(opts.MaxRequestBytes + requestOverhead),
		replies:    newReplyMemory(opts.ReplyMemory),
		inLine:     newRequestMemory(opts.LineMemory),

		snapshotPace: snapshotPaceEvery,
	}
	s.otherAccount = &account{memory: s.replies}
	jsonReplies := newReplyMemory(opts.ReplyMemory / 2)
	s.otherJSON = account{memory: jsonReplies, copies: jsonCopies}
	s.jsonMakers = make(chan struct{}, jsonMakers)
	arriving := int(s.requests.max / s.requestMax / 4)
	s.otherArrivals = newArrivals(arriving)
	s.looks = looks{
		conns:      &conns{replies: s.replies, json: jsonReplies, arriving: arriving, open: make(map[*conn]struct{})},
		requestMax: s.requestMax, requests: s.requests,
	}
	s.requests.look, s.replies.look, jsonReplies.look = s.looks.look, s.looks.look, s.looks.look
	s.leaderless = newLeaderless(opts.ElectionTimeout)
	s.streams.open = make(map[*openStream]struct{})
	return s
}

// registerAll registers all services.
func (s *Server) registerAll() {
	c := s.services
	c.register(s.grpc, kvServiceDesc(), kvService{c})
	c.register(s.grpc, &pb.Watch_ServiceDesc, newWatch(c))
	c.register(s.grpc, leaseServiceDesc(), newLease(c))
	c.register(s.grpc, &pb.Maintenance_ServiceDesc, maintenance{services: c})
	c.register(s.grpc, &pb.Cluster_ServiceDesc, cluster{services: c})
	c.register(s.grpc, &pb.Auth_ServiceDesc, authService{services: c})
	c.register(s.grpc, lockServiceDesc(), lines{c})
	c.register(s.grpc, electionServiceDesc(), lines{c})
	c.register(s.grpc, &healthpb.Health_ServiceDesc, s.health)
}

// reportHealth says SERVING once the member serves.
func (s *Server) reportHealth() {
	s.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	select {
	case <-s.services.Ready():
		s.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	case <-s.done:
	}
}

// Listener is where clients come in, and what they may speak there.
type Listener struct {
	net.Listener
	TLS    *tls.Config  // nil: plaintext
	HTTP   http.Handler // what is not gRPC; nil: gRPC alone
	NoGRPC bool         // HTTP alone
}

// Serve lets in the clients of l, and returns when l fails or after Shutdown (nil).
// It owns l.
func (s *Server) Serve(l Listener) error {
	m := &muxer{listener: l.Listener, conns: s.conns, rejected: &s.rejected}
	protocols := []string{"h2"}
	if !l.NoGRPC {
		m.grpc = s.queue
	}
	if l.HTTP != nil {
		m.http = newQueue(l.Addr())
		protocols = []string{"h2", "http/1.1"}
	}
	if l.TLS != nil {
		m.tls = portTLS(l.TLS, protocols)
	}
	web := s.httpServer(l)
	if !s.track(m, web) {
		_ = l.Close()
		return kv.ErrStopped
	}
	var wg sync.WaitGroup
	if m.http != nil {
		wg.Go(func() {
			// Its error is the queue's end; m.run has the listener's.
			_ = web.Serve(m.http)
		})
	}
	err := m.run()
	if m.http != nil {
		_ = m.http.Close() // never fails
	}
	wg.Wait()
	s.untrack(m, web)
	return err
}

// httpServer serves what is not native gRPC on l.
func (s *Server) httpServer(l Listener) *http.Server {
	if l.HTTP == nil {
		return nil
	}
	h := l.HTTP
	if !l.NoGRPC {
		h = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
				s.grpc.ServeHTTP(w, r)
				return
			}
			l.HTTP.ServeHTTP(w, r)
		})
	}
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Minute,
		MaxHeaderBytes:    headersMax,
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: int(min(s.services.opts.MaxConcurrentStreams, streamsMax))},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if addr, ok := c.RemoteAddr().(*clientAddr); ok {
				ctx = context.WithValue(ctx, connKey{}, addr.conn)
			}
			return ctx
		},
		ErrorLog: log.New(io.Discard, "", 0), // clients' faults are not the operator's
	}
}

func (s *Server) track(m *muxer, web *http.Server) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return false
	}
	s.muxers[m] = struct{}{}
	if web != nil {
		s.https[web] = struct{}{}
	}
	return true
}

func (s *Server) untrack(m *muxer, web *http.Server) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.muxers, m)
	// web stays: Shutdown still has to end its connections.
}

// Gateway is the JSON form of the services, for the paths below /v3/.
func (s *Server) Gateway() http.Handler { return s.gateway }

// Shutdown lets no more clients in, ends streams with kv.ErrStopped and returns when the
// calls under way are answered, or else, when ctx is done, breaks them off. No goroutine
// of the server or of a call is left then. The member must run until it returns.
func (s *Server) Shutdown(ctx context.Context) {
	s.shutdown.Do(func() { s.stop(ctx) })
}

func (s *Server) stop(ctx context.Context) {
	s.mu.Lock()
	s.stopped = true
	for m := range s.muxers {
		m.close()
	}
	var webs []*http.Server
	for web := range s.https {
		webs = append(webs, web)
	}
	s.mu.Unlock()
	s.health.Shutdown()

	graceful := make(chan struct{})
	go func() {
		defer close(graceful)
		// First the farewell that tells clients to go elsewhere, so that they do not
		// open their streams anew here.
		s.grpc.GracefulStop()
	}()
	s.services.endStreams()
	// Who has connected and said nothing would be waited for.
	s.conns.close(helloBytes - 1)
	for _, web := range webs {
		if web.Shutdown(ctx) != nil { // ctx is done
			_ = web.Close()
		}
	}
	if s.gateway != nil {
		s.gateway.close(ctx)
	}
	select {
	case <-graceful:
	case <-ctx.Done():
		s.conns.close(math.MaxInt64) // Stop alone would wait for those at their handshake
		s.grpc.Stop()
		<-graceful
	}
	close(s.done)
	_ = s.queue.Close() // never fails
	s.wg.Wait()
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// inProcess is the address of connections that the server makes to itself.
type inProcess struct{}

func (inProcess) Network() string { return "pipe" }
func (inProcess) String() string  { return "in-process" }

// dial connects to the server from within.
func (s *Server) dial(ctx context.Context) (net.Conn, error) {
	client, server := net.Pipe()
	wrapped := s.conns.add(server, true)
	select {
	case s.queue.conns <- wrapped:
		return client, nil
	case <-s.queue.done:
	case <-ctx.Done():
	}
	_ = client.Close()
	_ = wrapped.Close()
	return nil, kv.ErrStopped
}
