package rpc

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/etcdserverpb/gw"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
)

// gateway serves the JSON form of the services: POST /v3/kv/range and so on, with the
// names of the proto files, 64-bit numbers as strings, bytes in base64 and empty fields
// left out. Streams are lines of {"result":...}. /v3beta/ is an old name of /v3/.
type gateway struct {
	mux  *runtime.ServeMux
	conn *loopback
}

// newGateway returns a gateway to s, whose gRPC server dial connects to.
func newGateway(s *services, dial func(context.Context) (net.Conn, error)) (*gateway, error) {
	client, err := grpc.NewClient("passthrough:///in-process",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.MaxCallSendMsgSize(math.MaxInt32)),
	)
	if err != nil {
		return nil, fmt.Errorf("connect the JSON gateway: %w", err)
	}
	mux := runtime.NewServeMux(runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.HTTPBodyMarshaler{
		Marshaler: &runtime.JSONPb{
			MarshalOptions:   protojson.MarshalOptions{UseProtoNames: true},
			UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: true},
		},
	}))
	conn := &loopback{ClientConn: client, services: s}
	for _, err := range []error{
		gw.RegisterKVHandlerClient(context.Background(), mux, pb.NewKVClient(conn)),
		gw.RegisterWatchHandlerClient(context.Background(), mux, pb.NewWatchClient(conn)),
		gw.RegisterLeaseHandlerClient(context.Background(), mux, pb.NewLeaseClient(conn)),
		gw.RegisterClusterHandlerClient(context.Background(), mux, pb.NewClusterClient(conn)),
		gw.RegisterMaintenanceHandlerClient(context.Background(), mux, pb.NewMaintenanceClient(conn)),
		gw.RegisterAuthHandlerClient(context.Background(), mux, pb.NewAuthClient(conn)),
	} {
		if err != nil {
			conn.close()
			return nil, fmt.Errorf("register the JSON gateway: %w", err)
		}
	}
	for _, j := range jsonMethods {
		if err := mux.HandlePath(http.MethodPost, j.path, j.handle(mux, conn)); err != nil {
			conn.close()
			return nil, fmt.Errorf("register the JSON gateway: %w", err)
		}
	}
	return &gateway{mux, conn}, nil
}

// jsonBytes is more than a byte of a message takes in JSON, base64 and some space included.
const jsonBytes = 4

// jsonCopies is how many bytes a byte of a reply takes beside itself while it is made JSON
// of: a copy in one piece, the message, and base64 in a buffer that has grown.
const jsonCopies = 4

// jsonStreams are the paths whose body is a stream of messages, of which the gateway holds
// one that has not come whole. In all they may be as large as that.
var jsonStreams = map[string]bool{"/v3/watch": true, "/v3/lease/keepalive": true}

func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if rest, old := strings.CutPrefix(r.URL.Path, "/v3beta/"); old {
		r.URL.Path = "/v3/" + rest
	}
	s := g.conn.services
	if jsonStreams[r.URL.Path] {
		r.Body = http.MaxBytesReader(w, r.Body, jsonBytes*s.requestMax)
	} else {
		body := &jsonBody{s: s, ctx: r.Context(), from: r.Body}
		defer body.give()
		all, err := io.ReadAll(body)
		if err != nil {
			if _, known := status.FromError(err); !known {
				err = status.Error(codes.InvalidArgument, err.Error())
			}
			_, outbound := runtime.MarshalerForRequest(g.mux, r)
			runtime.HTTPError(r.Context(), g.mux, outbound, w, r, err)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(all))
	}
	call := &jsonCall{account: accountOf(r.Context(), s.otherAccount)}
	defer func() {
		call.made()
		call.free(0)
	}()
	g.mux.ServeHTTP(&jsonWriter{w, call}, r.WithContext(context.WithValue(r.Context(), jsonCallKey{}, call)))
}

// jsonBody is the body of a unary call, charged as it comes: what is awaited as a message,
// and what has come, until give. JSON is read whole before there is a message, which is
// refused if it is too large.
type jsonBody struct {
	s    *services
	ctx  context.Context
	from io.Reader
	size int64
}

func (b *jsonBody) Read(p []byte) (int, error) {
	limit := jsonBytes * b.s.requestMax
	if b.size > limit {
		return 0, status.Errorf(codes.ResourceExhausted, "the request is larger than %d bytes of JSON", limit)
	}
	a, err := b.s.awaitRequest(b.ctx)
	if err != nil {
		return 0, toWire(err)
	}
	n, err := b.from.Read(p[:min(int64(len(p)), b.s.requestMax)])
	b.s.arrived(a, int64(n))
	b.size += int64(n)
	return n, err
}

// give gives back what was charged for the body.
func (b *jsonBody) give() { b.s.requests.give(b.size) }

// jsonWriter writes JSON, and gives back the memory of what it was made of as it goes.
type jsonWriter struct {
	http.ResponseWriter
	call *jsonCall
}

// Unwrap is for http.ResponseController, which flushes the lines of a stream.
func (w *jsonWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Write is given the reply of a unary call in one piece. That a client has gone before it
// had read that is nobody's error.
func (w *jsonWriter) Write(b []byte) (n int, err error) {
	w.call.made()
	parts := len(w.call.reply)
	if parts == 0 {
		return w.ResponseWriter.Write(b)
	}
	for n < len(b) {
		m, err := w.ResponseWriter.Write(b[n:min(n+jsonPiece, len(b))])
		if err != nil {
			break
		}
		n += m
		w.call.free(parts * (len(b) - n) / len(b))
	}
	return len(b), nil
}

// jsonPiece is what is written between two looks at what to give back, in bytes.
const jsonPiece = 32 << 10

func (g *gateway) close() { g.conn.close() }
