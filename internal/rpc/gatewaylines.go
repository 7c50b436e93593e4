package rpc

import (
	"context"
	"errors"
	"io"
	"net/http"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// jsonMethods are the paths of Lock and Election, whose messages have no generated gateway.
var jsonMethods = []jsonMethod{
	{"/v3/lock/lock", "/v3lockpb.Lock/Lock", lockpb.ByName("LockRequest"), lockpb.ByName("LockResponse"), false},
	{"/v3/lock/unlock", "/v3lockpb.Lock/Unlock", lockpb.ByName("UnlockRequest"), lockpb.ByName("UnlockResponse"), false},
	{"/v3/election/campaign", "/v3electionpb.Election/Campaign", electionpb.ByName("CampaignRequest"), electionpb.ByName("CampaignResponse"), false},
	{"/v3/election/proclaim", "/v3electionpb.Election/Proclaim", electionpb.ByName("ProclaimRequest"), electionpb.ByName("ProclaimResponse"), false},
	{"/v3/election/leader", "/v3electionpb.Election/Leader", electionpb.ByName("LeaderRequest"), electionpb.ByName("LeaderResponse"), false},
	{"/v3/election/observe", "/v3electionpb.Election/Observe", electionpb.ByName("LeaderRequest"), electionpb.ByName("LeaderResponse"), true},
	{"/v3/election/resign", "/v3electionpb.Election/Resign", electionpb.ByName("ResignRequest"), electionpb.ByName("ResignResponse"), false},
}

// jsonMethod is a method that takes one message, as POST of its JSON form to a path.
type jsonMethod struct {
	path, method string
	in, out      protoreflect.MessageDescriptor
	stream       bool
}

// handle carries a request to the gRPC server at conn, as the generated gateways do.
func (j jsonMethod) handle(mux *runtime.ServeMux, conn grpc.ClientConnInterface) runtime.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request, _ map[string]string) {
		ctx, cancel := context.WithCancel(req.Context())
		defer cancel()
		inbound, outbound := runtime.MarshalerForRequest(mux, req)
		ctx, err := runtime.AnnotateContext(ctx, mux, req, j.method, runtime.WithHTTPPathPattern(j.path))
		if err != nil {
			runtime.HTTPError(req.Context(), mux, outbound, w, req, err)
			return
		}
		in := dynamicpb.NewMessage(j.in)
		if err = inbound.NewDecoder(req.Body).Decode(in); err != nil && !errors.Is(err, io.EOF) {
			runtime.HTTPError(ctx, mux, outbound, w, req, status.Errorf(codes.InvalidArgument, "%v", err))
			return
		}
		_, _ = io.Copy(io.Discard, req.Body) // what follows the message is of no interest
		var md runtime.ServerMetadata
		if j.stream {
			stream, err := j.open(ctx, conn, in)
			if err == nil {
				md.HeaderMD, err = stream.Header()
			}
			ctx = runtime.NewServerMetadataContext(ctx, md)
			if err != nil {
				runtime.HTTPError(ctx, mux, outbound, w, req, err)
				return
			}
			runtime.ForwardResponseStream(ctx, mux, outbound, w, req, func() (proto.Message, error) {
				out := dynamicpb.NewMessage(j.out)
				return out, stream.RecvMsg(out)
			}, mux.GetForwardResponseOptions()...)
			return
		}
		out := dynamicpb.NewMessage(j.out)
		err = conn.Invoke(ctx, j.method, in, out, grpc.Header(&md.HeaderMD), grpc.Trailer(&md.TrailerMD))
		ctx = runtime.NewServerMetadataContext(ctx, md)
		if err != nil {
			runtime.HTTPError(ctx, mux, outbound, w, req, err)
			return
		}
		runtime.ForwardResponseMessage(ctx, mux, outbound, w, req, out, mux.GetForwardResponseOptions()...)
	}
}

func (j jsonMethod) open(ctx context.Context, conn grpc.ClientConnInterface, in proto.Message) (grpc.ClientStream, error) {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, j.method)
	if err != nil {
		return nil, err
	}
	if err := stream.SendMsg(in); err != nil && err != io.EOF {
		return nil, err
	}
	return stream, stream.CloseSend()
}
