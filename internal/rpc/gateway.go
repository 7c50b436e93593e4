package rpc

import (
	"context"
	"fmt"
	"math"
	"net"
	"net/http"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/etcdserverpb/gw"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
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
	conn := newLoopback(s, client)
	for _, err := range []error{
		gw.RegisterKVHandlerClient(context.Background(), mux, pb.NewKVClient(conn)),
		gw.RegisterWatchHandlerClient(context.Background(), mux, pb.NewWatchClient(conn)),
		gw.RegisterLeaseHandlerClient(context.Background(), mux, pb.NewLeaseClient(conn)),
		gw.RegisterClusterHandlerClient(context.Background(), mux, pb.NewClusterClient(conn)),
		gw.RegisterMaintenanceHandlerClient(context.Background(), mux, pb.NewMaintenanceClient(conn)),
		gw.RegisterAuthHandlerClient(context.Background(), mux, pb.NewAuthClient(conn)),
	} {
		if err != nil {
			conn.close(canceled())
			return nil, fmt.Errorf("register the JSON gateway: %w", err)
		}
	}
	for _, j := range jsonMethods {
		if err := mux.HandlePath(http.MethodPost, j.path, j.handle(mux, conn)); err != nil {
			conn.close(canceled())
			return nil, fmt.Errorf("register the JSON gateway: %w", err)
		}
	}
	return &gateway{mux, conn}, nil
}

func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if rest, old := strings.CutPrefix(r.URL.Path, "/v3beta/"); old {
		r.URL.Path = "/v3/" + rest
	}
	call, r := newJSONCall(g.conn.services, r)
	defer call.end()
	if !jsonStreams[r.URL.Path] {
		if err := call.body.receive(r.Context()); err != nil {
			_, outbound := runtime.MarshalerForRequest(g.mux, r)
			runtime.HTTPError(r.Context(), g.mux, outbound, w, r, err)
			return
		}
	}
	r.Body = &call.body
	g.mux.ServeHTTP(&jsonWriter{w, call}, r)
}

func (g *gateway) close(ctx context.Context) { g.conn.close(ctx) }
