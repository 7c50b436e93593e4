package differential

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/test/harness"
)

// callWithin bounds one call; no server may need as long.
const callWithin = 20 * time.Second

// call is one request, in the bytes that go to both servers.
type call struct {
	rpc  *rpc
	req  proto.Message // for the report; nil when only body says what is sent
	body []byte
	note string
}

// rpc is a method and how it is called.
type rpc struct {
	method string
	kind   rpcKind
	reply  func() proto.Message
}

type rpcKind int

const (
	unary rpcKind = iota
	// collected is a server stream whose messages are merged into one reply.
	collected
	// exchange is a bidirectional stream that carries one request and one reply.
	exchange
)

var (
	rpcRange       = &rpc{"/etcdserverpb.KV/Range", unary, func() proto.Message { return &pb.RangeResponse{} }}
	rpcRangeStream = &rpc{"/etcdserverpb.KV/RangeStream", collected, func() proto.Message { return &pb.RangeStreamResponse{} }}
	rpcPut         = &rpc{"/etcdserverpb.KV/Put", unary, func() proto.Message { return &pb.PutResponse{} }}
	rpcDelete      = &rpc{"/etcdserverpb.KV/DeleteRange", unary, func() proto.Message { return &pb.DeleteRangeResponse{} }}
	rpcTxn         = &rpc{"/etcdserverpb.KV/Txn", unary, func() proto.Message { return &pb.TxnResponse{} }}
	rpcCompact     = &rpc{"/etcdserverpb.KV/Compact", unary, func() proto.Message { return &pb.CompactionResponse{} }}
	rpcGrant       = &rpc{"/etcdserverpb.Lease/LeaseGrant", unary, func() proto.Message { return &pb.LeaseGrantResponse{} }}
	rpcRevoke      = &rpc{"/etcdserverpb.Lease/LeaseRevoke", unary, func() proto.Message { return &pb.LeaseRevokeResponse{} }}
	rpcKeepAlive   = &rpc{"/etcdserverpb.Lease/LeaseKeepAlive", exchange, func() proto.Message { return &pb.LeaseKeepAliveResponse{} }}
	rpcTimeToLive  = &rpc{"/etcdserverpb.Lease/LeaseTimeToLive", unary, func() proto.Message { return &pb.LeaseTimeToLiveResponse{} }}
	rpcLeases      = &rpc{"/etcdserverpb.Lease/LeaseLeases", unary, func() proto.Message { return &pb.LeaseLeasesResponse{} }}
	rpcHashKV      = &rpc{"/etcdserverpb.Maintenance/HashKV", unary, func() proto.Message { return &pb.HashKVResponse{} }}
	rpcStatus      = &rpc{"/etcdserverpb.Maintenance/Status", unary, func() proto.Message { return &pb.StatusResponse{} }}
	rpcDefragment  = &rpc{"/etcdserverpb.Maintenance/Defragment", unary, func() proto.Message { return &pb.DefragmentResponse{} }}
	rpcAlarm       = &rpc{"/etcdserverpb.Maintenance/Alarm", unary, func() proto.Message { return &pb.AlarmResponse{} }}
	rpcMoveLeader  = &rpc{"/etcdserverpb.Maintenance/MoveLeader", unary, func() proto.Message { return &pb.MoveLeaderResponse{} }}
	rpcMembers     = &rpc{"/etcdserverpb.Cluster/MemberList", unary, func() proto.Message { return &pb.MemberListResponse{} }}
	rpcAuthStatus  = &rpc{"/etcdserverpb.Auth/AuthStatus", unary, func() proto.Message { return &pb.AuthStatusResponse{} }}
)

func newCall(r *rpc, req proto.Message) *call {
	body, err := proto.Marshal(req)
	if err != nil {
		panic(fmt.Sprintf("encode %T: %v", req, err))
	}
	return &call{rpc: r, req: req, body: body}
}

func (c *call) String() string {
	name := c.rpc.method[len("/etcdserverpb."):]
	if c.note != "" {
		name += " (" + c.note + ")"
	}
	if c.req == nil {
		return fmt.Sprintf("%s body %s", name, shortBytes(c.body))
	}
	return name + " " + text(c.req)
}

// outcome is what a server answered: a reply, or the status it refused with.
type outcome struct {
	reply  proto.Message
	status *status.Status
}

func (o outcome) String() string {
	if o.status.Code() != codes.OK {
		return fmt.Sprintf("%v: %q", o.status.Code(), o.status.Message())
	}
	return text(o.reply)
}

// side is one of the two servers.
type side struct {
	kind   harness.Kind
	server *harness.Server
	conn   *grpc.ClientConn

	watches map[int]*watchStream
	history *watchStream
}

// do performs the call. An error is a fault that no comparison can be made after, such as
// a server that is gone.
func (s *side) do(c *call) (outcome, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callWithin)
	defer cancel()
	reply, err := s.invoke(ctx, c)
	if err != nil {
		st, ok := status.FromError(err)
		if !ok || st.Code() == codes.DeadlineExceeded || (st.Code() == codes.Unavailable && s.gone()) {
			return outcome{}, fmt.Errorf("%v: %v: %w", s.kind, c, err)
		}
		return outcome{status: st}, nil
	}
	return outcome{reply: reply}, nil
}

func (s *side) gone() bool {
	select {
	case <-s.server.Exited():
		return true
	case <-time.After(100 * time.Millisecond): // its end follows the broken connection
		select {
		case <-s.server.Exited():
			return true
		default:
			return false
		}
	}
}

func (s *side) invoke(ctx context.Context, c *call) (proto.Message, error) {
	codec := grpc.ForceCodecV2(rawCodec{})
	reply := c.rpc.reply()
	if c.rpc.kind == unary {
		var body []byte
		if err := s.conn.Invoke(ctx, c.rpc.method, c.body, &body, codec); err != nil {
			return nil, err
		}
		return reply, decode(body, reply)
	}
	desc := &grpc.StreamDesc{ServerStreams: true, ClientStreams: c.rpc.kind == exchange}
	stream, err := s.conn.NewStream(ctx, desc, c.rpc.method, codec)
	if err != nil {
		return nil, err
	}
	if err := stream.SendMsg(c.body); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if c.rpc.kind == exchange {
		var body []byte
		if err := stream.RecvMsg(&body); err != nil {
			return nil, err
		}
		return reply, decode(body, reply)
	}
	if err := stream.CloseSend(); err != nil {
		return nil, err
	}
	return collect(stream, reply)
}

// collect merges the messages of a server stream, and holds RangeStream to its promise that
// only the last chunk carries header, more and count.
func collect(stream grpc.ClientStream, reply proto.Message) (proto.Message, error) {
	for last := false; ; {
		var body []byte
		err := stream.RecvMsg(&body)
		if errors.Is(err, io.EOF) {
			return reply, nil
		}
		if err != nil {
			return nil, err
		}
		chunk := proto.Clone(reply)
		proto.Reset(chunk)
		if err := decode(body, chunk); err != nil {
			return nil, err
		}
		if r, ok := chunk.(*pb.RangeStreamResponse); ok {
			if last {
				return nil, errors.New("RangeStream: a chunk follows the one with the header")
			}
			last = r.RangeResponse.GetHeader() != nil
		}
		proto.Merge(reply, chunk)
	}
}

func decode(body []byte, m proto.Message) error {
	if err := proto.Unmarshal(body, m); err != nil {
		return fmt.Errorf("reply is not a %T: %w", m, err)
	}
	return nil
}

// rawCodec passes bytes as they are, so that a request is encoded once for both servers and
// may be damaged.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.([]byte))}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}
