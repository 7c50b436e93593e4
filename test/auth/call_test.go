package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/test/harness"
)

// callWithin bounds one call; no server may need as long.
const callWithin = 20 * time.Second

// A method is how a call is made.
type method struct {
	name  string
	kind  kind
	reply func() proto.Message
}

type kind int

const (
	unary    kind = iota
	first         // a server stream, of which the first message is looked at
	exchange      // a stream in both directions that carries one request and one reply
)

func unaryOf[T any, M interface {
	*T
	proto.Message
}](name string) *method {
	return &method{name: "/" + name, reply: func() proto.Message { return M(new(T)) }}
}

var (
	rangeKV     = unaryOf[pb.RangeResponse]("etcdserverpb.KV/Range")
	put         = unaryOf[pb.PutResponse]("etcdserverpb.KV/Put")
	deleteRange = unaryOf[pb.DeleteRangeResponse]("etcdserverpb.KV/DeleteRange")
	txn         = unaryOf[pb.TxnResponse]("etcdserverpb.KV/Txn")
	compact     = unaryOf[pb.CompactionResponse]("etcdserverpb.KV/Compact")
	rangeStream = &method{"/etcdserverpb.KV/RangeStream", first, func() proto.Message { return &pb.RangeStreamResponse{} }}

	leaseGrant      = unaryOf[pb.LeaseGrantResponse]("etcdserverpb.Lease/LeaseGrant")
	leaseRevoke     = unaryOf[pb.LeaseRevokeResponse]("etcdserverpb.Lease/LeaseRevoke")
	leaseTimeToLive = unaryOf[pb.LeaseTimeToLiveResponse]("etcdserverpb.Lease/LeaseTimeToLive")
	leaseLeases     = unaryOf[pb.LeaseLeasesResponse]("etcdserverpb.Lease/LeaseLeases")
	leaseKeepAlive  = &method{"/etcdserverpb.Lease/LeaseKeepAlive", exchange, func() proto.Message { return &pb.LeaseKeepAliveResponse{} }}

	alarm      = unaryOf[pb.AlarmResponse]("etcdserverpb.Maintenance/Alarm")
	statusOf   = unaryOf[pb.StatusResponse]("etcdserverpb.Maintenance/Status")
	defragment = unaryOf[pb.DefragmentResponse]("etcdserverpb.Maintenance/Defragment")
	hash       = unaryOf[pb.HashResponse]("etcdserverpb.Maintenance/Hash")
	hashKV     = unaryOf[pb.HashKVResponse]("etcdserverpb.Maintenance/HashKV")
	moveLeader = unaryOf[pb.MoveLeaderResponse]("etcdserverpb.Maintenance/MoveLeader")
	downgrade  = unaryOf[pb.DowngradeResponse]("etcdserverpb.Maintenance/Downgrade")
	snapshot   = &method{"/etcdserverpb.Maintenance/Snapshot", first, func() proto.Message { return &pb.SnapshotResponse{} }}

	memberList    = unaryOf[pb.MemberListResponse]("etcdserverpb.Cluster/MemberList")
	memberAdd     = unaryOf[pb.MemberAddResponse]("etcdserverpb.Cluster/MemberAdd")
	memberRemove  = unaryOf[pb.MemberRemoveResponse]("etcdserverpb.Cluster/MemberRemove")
	memberUpdate  = unaryOf[pb.MemberUpdateResponse]("etcdserverpb.Cluster/MemberUpdate")
	memberPromote = unaryOf[pb.MemberPromoteResponse]("etcdserverpb.Cluster/MemberPromote")

	authEnable           = unaryOf[pb.AuthEnableResponse]("etcdserverpb.Auth/AuthEnable")
	authDisable          = unaryOf[pb.AuthDisableResponse]("etcdserverpb.Auth/AuthDisable")
	authStatus           = unaryOf[pb.AuthStatusResponse]("etcdserverpb.Auth/AuthStatus")
	authenticate         = unaryOf[pb.AuthenticateResponse]("etcdserverpb.Auth/Authenticate")
	userAdd              = unaryOf[pb.AuthUserAddResponse]("etcdserverpb.Auth/UserAdd")
	userGet              = unaryOf[pb.AuthUserGetResponse]("etcdserverpb.Auth/UserGet")
	userList             = unaryOf[pb.AuthUserListResponse]("etcdserverpb.Auth/UserList")
	userDelete           = unaryOf[pb.AuthUserDeleteResponse]("etcdserverpb.Auth/UserDelete")
	userChangePassword   = unaryOf[pb.AuthUserChangePasswordResponse]("etcdserverpb.Auth/UserChangePassword")
	userGrantRole        = unaryOf[pb.AuthUserGrantRoleResponse]("etcdserverpb.Auth/UserGrantRole")
	userRevokeRole       = unaryOf[pb.AuthUserRevokeRoleResponse]("etcdserverpb.Auth/UserRevokeRole")
	roleAdd              = unaryOf[pb.AuthRoleAddResponse]("etcdserverpb.Auth/RoleAdd")
	roleGet              = unaryOf[pb.AuthRoleGetResponse]("etcdserverpb.Auth/RoleGet")
	roleList             = unaryOf[pb.AuthRoleListResponse]("etcdserverpb.Auth/RoleList")
	roleDelete           = unaryOf[pb.AuthRoleDeleteResponse]("etcdserverpb.Auth/RoleDelete")
	roleGrantPermission  = unaryOf[pb.AuthRoleGrantPermissionResponse]("etcdserverpb.Auth/RoleGrantPermission")
	roleRevokePermission = unaryOf[pb.AuthRoleRevokePermissionResponse]("etcdserverpb.Auth/RoleRevokePermission")

	lock     = unaryOf[emptypb.Empty]("v3lockpb.Lock/Lock")
	unlock   = unaryOf[emptypb.Empty]("v3lockpb.Lock/Unlock")
	campaign = unaryOf[emptypb.Empty]("v3electionpb.Election/Campaign")
	leaderOf = unaryOf[emptypb.Empty]("v3electionpb.Election/Leader")
)

// fields returns a message of a service whose messages are not in etcd's API module: a string as field 1,
// a number as field 2, and a string as field 3, each unless it is empty. Its answers are compared as they are,
// field numbers in place of names.
func fields(one string, two int64, three string) proto.Message {
	var b []byte
	if one != "" {
		b = protowire.AppendString(protowire.AppendTag(b, 1, protowire.BytesType), one)
	}
	if two != 0 {
		b = protowire.AppendVarint(protowire.AppendTag(b, 2, protowire.VarintType), uint64(two))
	}
	if three != "" {
		b = protowire.AppendString(protowire.AppendTag(b, 3, protowire.BytesType), three)
	}
	m := &emptypb.Empty{}
	m.ProtoReflect().SetUnknown(b)
	return m
}

// A session is what a login gave: a token of each server. The servers take it in one of several forms.
type session struct {
	user   string
	tokens [2]string
	header string // the metadata that carries it
	prefix string
}

func (s *session) String() string {
	if s == nil {
		return "nobody"
	}
	return fmt.Sprintf("%s (%s: %s…)", s.user, s.header, s.prefix)
}

// A call is one request in somebody's name.
type call struct {
	method *method
	req    proto.Message
	as     *session // nil: without credentials
}

func (c *call) String() string {
	return fmt.Sprintf("%v: %s %s", c.as, c.method.name[1:], text(c.req))
}

// text is m in one line, with one space where protobuf puts one or two by chance.
func text(m proto.Message) string {
	return strings.Join(strings.Fields(prototext.MarshalOptions{}.Format(m)), " ")
}

// An outcome is what a server answered: a reply, or the status that it refused with.
type outcome struct {
	reply  proto.Message
	status *status.Status
}

func (o outcome) String() string {
	if o.status.Code() != codes.OK {
		return fmt.Sprintf("%v: %q", o.status.Code(), o.status.Message())
	}
	return fmt.Sprintf("%.2000s", text(o.reply))
}

// A side is one of the two servers.
type side struct {
	index  int
	server *harness.Server
	conn   *grpc.ClientConn
	watch  []*watchStream
}

// with returns ctx with the side's token of the session.
func (s *side) with(ctx context.Context, as *session) context.Context {
	if as == nil {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, as.header, as.prefix+as.tokens[s.index])
}

// do performs the call. An error is a fault that no comparison can be made after, such as a server that
// is gone.
func (s *side) do(c *call) (outcome, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callWithin)
	defer cancel()
	reply, err := s.invoke(s.with(ctx, c.as), c)
	if err == nil {
		return outcome{reply: reply}, nil
	}
	st, ok := status.FromError(err)
	if !ok || st.Code() == codes.DeadlineExceeded || st.Code() == codes.Unavailable && s.ended() {
		return outcome{}, fmt.Errorf("%v: %v: %w\nits log ends: %.3000s", s.server.Kind, c, err, s.server.LogTail(8))
	}
	return outcome{status: st}, nil
}

// ended says that the server's process has ended, which follows a broken connection in a moment.
func (s *side) ended() bool {
	select {
	case <-s.server.Exited():
		return true
	case <-time.After(200 * time.Millisecond):
		return false
	}
}

func (s *side) invoke(ctx context.Context, c *call) (proto.Message, error) {
	reply := c.method.reply()
	if c.method.kind == unary {
		return reply, s.conn.Invoke(ctx, c.method.name, c.req, reply)
	}
	stream, err := s.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: c.method.kind == exchange}, c.method.name)
	if err != nil {
		return nil, err
	}
	if err := stream.SendMsg(c.req); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if c.method.kind == first {
		if err := stream.CloseSend(); err != nil {
			return nil, err
		}
	}
	return reply, stream.RecvMsg(reply)
}

// normalize takes out of an answer what may differ between two servers that agree.
func normalize(c *call, o outcome) outcome {
	if o.reply == nil {
		return o
	}
	switch r := o.reply.(type) {
	case *pb.AuthenticateResponse:
		r.Token = fmt.Sprintf("a token: %v", r.Token != "")
	case *pb.StatusResponse:
		// Sizes and indexes are each server's own.
		r.DbSize, r.DbSizeInUse, r.RaftIndex, r.RaftAppliedIndex = 0, 0, 0, 0
		// The storage version is settled in the first seconds of a member.
		r.StorageVersion = ""
	case *pb.HashResponse:
		r.Hash = 0 // of the file, with its free pages
	case *pb.SnapshotResponse:
		r.Blob, r.RemainingBytes, r.Version = nil, 0, ""
	case *pb.LeaseTimeToLiveResponse:
		// It counts down in each server by itself.
		if r.TTL > 0 && r.TTL < r.GrantedTTL {
			r.TTL = r.GrantedTTL - 1
		}
		slices.SortFunc(r.Keys, bytes.Compare)
		// Leases of these tests last for days.
		if r.TTL > 0 {
			r.TTL = 1
		}
	case *pb.LeaseLeasesResponse:
		slices.SortFunc(r.Leases, func(a, b *pb.LeaseStatus) int { return int(a.ID - b.ID) })
	}
	return o
}

// compare returns how two answers to a call differ, empty if they do not.
func compare(c *call, a, b outcome) string {
	a, b = normalize(c, a), normalize(c, b)
	same := a.status.Code() == b.status.Code() && a.status.Message() == b.status.Message()
	if same && a.reply != nil && b.reply != nil {
		same = proto.Equal(a.reply, b.reply)
	}
	if same {
		return ""
	}
	return fmt.Sprintf("%v\n  want %v\n  got  %v", c, a, b)
}
