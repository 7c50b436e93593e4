package rpc

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"quorate/internal/kv"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// hello answers HTTP requests with the protocol that they came by.
var hello = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	fmt.Fprintf(w, "hello %s tls=%v", r.Proto, r.TLS != nil)
})

// selfSigned returns a server's and a client's TLS configuration for 127.0.0.1.
func selfSigned(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	pair := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	return &tls.Config{Certificates: []tls.Certificate{pair}}, &tls.Config{RootCAs: roots}
}

func get(t *testing.T, c *http.Client, url string) string {
	t.Helper()
	r, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestOnePort(t *testing.T) {
	serverTLS, clientTLS := selfSigned(t)
	reloading := &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return serverTLS, nil }}
	for _, tc := range []struct {
		name string
		tls  *tls.Config
	}{{"plaintext", nil}, {"tls", serverTLS}, {"tls, configured by connection", reloading}} {
		t.Run(tc.name, func(t *testing.T) {
			_, addr := start(t, newMember(t), nil, func(l *Listener) { l.TLS, l.HTTP = tc.tls, hello })
			var opts []grpc.DialOption
			url, own := "http://"+addr, " tls=false"
			if tc.tls != nil {
				opts = append(opts, grpc.WithTransportCredentials(credentials.NewTLS(clientTLS.Clone())))
				url, own = "https://"+addr, " tls=true"
			}
			var p peer.Peer
			if _, err := pb.NewKVClient(dial(t, addr, opts...)).Put(t.Context(), put("a", "b"), grpc.Peer(&p)); err != nil {
				t.Error(err)
			}
			if info, ok := p.AuthInfo.(credentials.TLSInfo); ok != (tc.tls != nil) || ok && info.State.NegotiatedProtocol != "h2" {
				t.Errorf("gRPC spoke %+v", p.AuthInfo)
			}
			http1 := &http.Client{Transport: &http.Transport{TLSClientConfig: clientTLS.Clone()}}
			defer http1.CloseIdleConnections()
			if got := get(t, http1, url); got != "hello HTTP/1.1"+own {
				t.Errorf("HTTP/1.1: %q", got)
			}
			if tc.tls == nil {
				return
			}
			// curl and browsers offer both, and are given HTTP/2.
			http2 := &http.Client{Transport: &http.Transport{TLSClientConfig: clientTLS.Clone(), ForceAttemptHTTP2: true}}
			defer http2.CloseIdleConnections()
			if got := get(t, http2, url); got != "hello HTTP/2.0 tls=true" {
				t.Errorf("HTTP/2: %q", got)
			}
			// A gRPC client that offers both works too.
			both := clientTLS.Clone()
			both.NextProtos = []string{"h2", "http/1.1"}
			if _, err := pb.NewKVClient(dial(t, addr, grpc.WithTransportCredentials(credentials.NewTLS(both)))).Put(t.Context(), put("a", "b")); err != nil {
				t.Errorf("gRPC that offers HTTP/1.1 as well: %v", err)
			}
		})
	}
}

func TestSplitPorts(t *testing.T) {
	_, addr := start(t, newMember(t), nil, func(l *Listener) { l.HTTP, l.NoGRPC = hello, true })
	if got := get(t, http.DefaultClient, "http://"+addr); got != "hello HTTP/1.1 tls=false" {
		t.Errorf("HTTP alone: %q", got)
	}
	_, addr = start(t, newMember(t), nil, nil)
	if _, err := pb.NewKVClient(dial(t, addr)).Put(t.Context(), put("a", "b")); err != nil {
		t.Errorf("gRPC alone: %v", err)
	}
}

// TestStrangers connects and says nothing, half a word, or nonsense.
func TestStrangers(t *testing.T) {
	s, addr := start(t, newMember(t), nil, func(l *Listener) { l.HTTP = hello })
	var conns []net.Conn
	for _, word := range []string{"", "P", "PRI", "PRI x", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense", "\x16\x03\x01\x02\x00", "GET /"} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte(word)); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	if _, err := pb.NewKVClient(dial(t, addr)).Put(t.Context(), put("a", "b")); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	s.Shutdown(ctx)
	for i, c := range conns {
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.Copy(io.Discard, c); errors.Is(err, context.DeadlineExceeded) || isTimeout(err) {
			t.Errorf("connection %d is still open after the shutdown", i)
		}
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

func TestShutdown(t *testing.T) {
	m := newMember(t)
	m.block = make(chan struct{})
	s, addr := start(t, m, nil, nil)
	conn := dial(t, addr)
	w, err := pb.NewWatchClient(conn).Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("a")}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Recv(); err != nil {
		t.Fatal(err)
	}
	inFlight := make(chan error, 1)
	go func() {
		_, err := pb.NewKVClient(conn).Put(t.Context(), put("a", "b"))
		inFlight <- err
	}()
	for s.services.requests.used.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	down := make(chan struct{})
	go func() {
		defer close(down)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		s.Shutdown(ctx)
	}()
	if _, err := w.Recv(); status.Convert(err).Message() != "etcdserver: server stopped" {
		t.Errorf("watch: %v", err)
	}
	select {
	case <-down:
		t.Error("shut down before the call under way was answered")
	case <-time.After(50 * time.Millisecond):
	}
	close(m.block)
	if err := <-inFlight; err != nil {
		t.Errorf("call under way: %v", err)
	}
	<-down
	if n := s.services.requests.used.Load(); n != 0 {
		t.Errorf("%d bytes of requests are still charged", n)
	}
}

// TestShutdownBreaksOff ends calls that do not end by themselves.
func TestShutdownBreaksOff(t *testing.T) {
	m := newMember(t)
	m.block = make(chan struct{})
	s, addr := start(t, m, nil, nil)
	inFlight := make(chan error, 1)
	go func() {
		_, err := pb.NewKVClient(dial(t, addr)).Put(t.Context(), put("a", "b"))
		inFlight <- err
	}()
	for s.services.requests.used.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	s.Shutdown(ctx)
	if err := <-inFlight; status.Code(err) != codes.Unavailable {
		t.Errorf("call under way: %v", err)
	}
}

func TestHealth(t *testing.T) {
	m := newMember(t)
	m.ready = make(chan struct{})
	_, addr := start(t, m, nil, nil)
	c := healthpb.NewHealthClient(dial(t, addr))
	w, err := c.Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := w.Recv(); err != nil || r.Status != healthpb.HealthCheckResponse_NOT_SERVING {
		t.Errorf("before ready: %v, %v", r, err)
	}
	close(m.ready)
	if r, err := w.Recv(); err != nil || r.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("ready: %v, %v", r, err)
	}
	if _, err := c.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "other"}); status.Code(err) != codes.NotFound {
		t.Errorf("unknown service: %v", err)
	}
}

func TestUnknownMethods(t *testing.T) {
	_, conn := serveMember(t)
	for _, method := range []string{"/v3lockpb.Lock/Nothing", "/v4lockpb.Lock/Lock", "/etcdserverpb.KV/Nothing", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"} {
		var reply []byte
		if err := conn.Invoke(t.Context(), method, []byte{}, &reply, grpc.ForceCodec(rawCodec{})); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v", method, err)
		}
	}
}

func TestCounters(t *testing.T) {
	m := newMember(t)
	s, addr := start(t, m, nil, nil)
	c := pb.NewKVClient(dial(t, addr))
	if _, err := c.Put(metadata.AppendToOutgoingContext(t.Context(), "client-api-version", "3.7"), put("a", "b")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(t.Context(), put("", "b")); err == nil {
		t.Fatal("an empty key was taken")
	}
	r := recorder{header: http.Header{}}
	s.services.met.Handler().ServeHTTP(&r, must(http.NewRequest("GET", "/metrics", nil)))
	text := r.String()
	for _, line := range []string{
		`grpc_server_started_total{grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 2`,
		`grpc_server_handled_total{grpc_code="OK",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1`,
		`grpc_server_handled_total{grpc_code="InvalidArgument",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1`,
		`grpc_server_started_total{grpc_method="Watch",grpc_service="etcdserverpb.Watch",grpc_type="bidi_stream"} 0`,
		`etcd_server_client_requests_total{client_api_version="3.7",type="unary"} 1`,
		`etcd_server_client_requests_total{client_api_version="unknown",type="unary"} 1`,
		`etcd_network_client_grpc_received_bytes_total 9`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("/metrics lacks %s", line)
		}
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// recorder is an http.ResponseWriter.
type recorder struct {
	bytes.Buffer
	header http.Header
	code   int
}

func (r *recorder) Header() http.Header  { return r.header }
func (r *recorder) WriteHeader(code int) { r.code = code }

func TestErrorTable(t *testing.T) {
	for _, e := range errorTable {
		err := toWire(fmt.Errorf("while testing: %w", e.err))
		st, ok := status.FromError(err)
		if strings.HasPrefix(e.err.Error(), "auth: ") {
			if st.Code() == codes.OK || st.Code() == codes.Unknown || !strings.HasPrefix(st.Message(), "etcdserver: ") {
				t.Errorf("%v: got %v", e.err, err)
			}
			continue // etcd words these in its own way
		}
		if want := "etcdserver: " + strings.TrimPrefix(e.err.Error(), "mvcc: "); !ok || strings.ReplaceAll(st.Message(), "mvcc: ", "") != want {
			t.Errorf("%v: got %v, want %s", e.err, err, want)
		}
		unknown := e.err == kv.ErrTooManyRequests || e.err == kv.ErrNotEnoughStarted || e.err == kv.ErrTransferSlow
		if st.Code() == codes.OK || (st.Code() == codes.Unknown) != unknown {
			t.Errorf("%v: code %v", e.err, st.Code())
		}
	}
	for _, tc := range []struct {
		err  error
		code codes.Code
		text string
	}{
		{context.Canceled, codes.Canceled, "context canceled"},
		{fmt.Errorf("propose: %w", context.DeadlineExceeded), codes.DeadlineExceeded, "context deadline exceeded"},
		{kv.ErrTooManyRequests, codes.Unknown, "etcdserver: too many requests"},
		{status.Error(codes.Aborted, "x"), codes.Aborted, "x"},
	} {
		if st := status.Convert(toWire(tc.err)); st.Code() != tc.code || st.Message() != tc.text {
			t.Errorf("%v: got %v", tc.err, st)
		}
	}
	if toWire(nil) != nil {
		t.Error("no error became one")
	}
}
