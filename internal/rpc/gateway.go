package rpc

import (
	"context"
	"fmt"
	"math"
	"net"
	"net/http"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"go.etcd.io/etcd/api/v3/etcdserverpb/gw"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"
)

// gateway serves the JSON form of the services: POST /v3/kv/range and so on, with the
// names of the proto files, 64-bit numbers as strings, bytes in base64 and empty fields
// left out. Streams are lines of {"result":...}. /v3beta/ is an old name of /v3/.
type gateway struct {
	mux     *runtime.ServeMux
	conn    *grpc.ClientConn
	bodyMax int64
}

// newGateway returns a gateway to the gRPC server that dial connects to, which takes
// messages of at most requestMax bytes.
func newGateway(dial func(context.Context) (net.Conn, error), requestMax int) (*gateway, error) {
	conn, err := grpc.NewClient("passthrough:///in-process",
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
	for _, register := range []func(context.Context, *runtime.ServeMux, *grpc.ClientConn) error{
		gw.RegisterKVHandler, gw.RegisterWatchHandler, gw.RegisterLeaseHandler,
		gw.RegisterClusterHandler, gw.RegisterMaintenanceHandler, gw.RegisterAuthHandler,
	} {
		if err := register(context.Background(), mux, conn); err != nil {
			_ = conn.Close()
			return nil, fmt.Errorf("register the JSON gateway: %w", err)
		}
	}
	for _, j := range jsonMethods {
		if err := mux.HandlePath(http.MethodPost, j.path, j.handle(mux, conn)); err != nil {
			_ = conn.Close()
			return nil, fmt.Errorf("register the JSON gateway: %w", err)
		}
	}
	return &gateway{mux, conn, jsonBytes * int64(requestMax)}, nil
}

// jsonBytes is more than a byte of a message takes in JSON, base64 and some space included.
const jsonBytes = 4

func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if rest, old := strings.CutPrefix(r.URL.Path, "/v3beta/"); old {
		r.URL.Path = "/v3/" + rest
	}
	// A message that is too large is refused by the gRPC server, but JSON is read whole
	// before there is one.
	r.Body = http.MaxBytesReader(w, r.Body, g.bodyMax)
	g.mux.ServeHTTP(w, r)
}

func (g *gateway) close() {
	_ = g.conn.Close() // only reports that it is closed already
}
