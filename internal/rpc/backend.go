package rpc

import (
	"context"

	"quorate/internal/auth"
	"quorate/internal/fsm"
	"quorate/internal/kv"
	"quorate/internal/lease"
	"quorate/internal/mvcc"
	"quorate/internal/watch"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Backend is the member behind the services; *node.Node is one.
type Backend interface {
	// ProposeAs replicates the request message body of a client and returns what applying
	// it gave. It does not keep body. See node.Node for the errors. The services call
	// services.Propose, which finds out who the client is.
	ProposeAs(ctx context.Context, who auth.Identity, field wire.Field, body []byte) (fsm.Result, error)
	// Auth is who may do what now: no more than a load. Tokens and Passwords are how
	// clients prove who they are, constant.
	Auth() *auth.State
	Tokens() *auth.Tokens
	Passwords() *auth.Passwords
	// Applied is the last entry that is applied.
	Applied() uint64
	// ReadIndex returns once a View taken afterwards is linearizable.
	ReadIndex(ctx context.Context) error
	// View is the newest published state; the caller releases it.
	View() *mvcc.View
	Store() *mvcc.Store
	Watch() *watch.Hub
	Leases() *lease.Lessor

	// RenewLease and TimeToLive ask the leader where this member does not lead, wait
	// through a change of leader, and know of all leases that were granted before the call.
	// RenewLease returns kv.ErrLeaseNotFound if there is no such lease; TimeToLive then
	// returns a TTL of -1. Its response has no header yet.
	RenewLease(ctx context.Context, id kv.LeaseID) (ttl int64, err error)
	TimeToLive(ctx context.Context, id kv.LeaseID, keys bool) (*pb.LeaseTimeToLiveResponse, error)

	// Who the member is (constant), the raft term and leader (0: none) now, and whether
	// the member is a learner. Asked on every call: they must cost no more than a load.
	ClusterID() uint64
	MemberID() uint64
	Term() uint64
	Leader() uint64
	IsLearner() bool

	// Members are all members by id. The next four change them and return them as they
	// are then; see node.Node for the errors. AddMember also returns the new one.
	Members() []*pb.Member
	AddMember(ctx context.Context, peerURLs []string, learner bool) (added *pb.Member, all []*pb.Member, err error)
	RemoveMember(ctx context.Context, id uint64) ([]*pb.Member, error)
	UpdateMember(ctx context.Context, id uint64, peerURLs []string) ([]*pb.Member, error)
	PromoteMember(ctx context.Context, id uint64, token string) ([]*pb.Member, error)
	MoveLeader(ctx context.Context, to uint64) error

	// Ready is closed once the member can serve clients.
	Ready() <-chan struct{}
}

// Status is where a member stands. It has node.Status' fields, so that one converts to
// the other.
type Status struct {
	Leader    uint64 // 0: none
	Term      uint64
	Index     uint64 // last committed
	Applied   uint64
	IsLearner bool
	Alarms    []*pb.AlarmMember
	// ClusterVersion is "" until it is decided; StorageVersion is the data directory's.
	ClusterVersion string
	StorageVersion string
	QuotaBytes     int64 // 0: none
}
