// Package node builds a member from its parts and owns them all: it is the only package
// that knows every other one.
package node

import (
	"context"

	"quorate/internal/fsm"
	"quorate/internal/kv"
	"quorate/internal/lease"
	"quorate/internal/mvcc"
	"quorate/internal/watch"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Node is a running member.
type Node struct{}

// Propose replicates one request and returns once this member has applied it. body is
// the request message in wire form, field its place in InternalRaftRequest. Errors that
// the state machine answers with are in Result.Err; the error is about the fate of the
// proposal itself: kv.ErrTooLarge, kv.ErrTooManyRequests, kv.ErrNoSpace, kv.ErrTimeout,
// kv.ErrStopped or ctx's.
func (n *Node) Propose(ctx context.Context, field wire.Field, body []byte) (fsm.Result, error) {
	panic("unbuilt")
}

// ReadIndex returns once a View taken afterwards holds everything that was acknowledged
// anywhere before the call.
func (n *Node) ReadIndex(ctx context.Context) error { panic("unbuilt") }

func (n *Node) View() *mvcc.View      { panic("unbuilt") }
func (n *Node) Store() *mvcc.Store    { panic("unbuilt") }
func (n *Node) Watch() *watch.Hub     { panic("unbuilt") }
func (n *Node) Leases() *lease.Lessor { panic("unbuilt") }

// Identity of the member, constant.
func (n *Node) ClusterID() uint64 { panic("unbuilt") }
func (n *Node) MemberID() uint64  { panic("unbuilt") }

// Term is the raft term now.
func (n *Node) Term() uint64 { panic("unbuilt") }

// Status is a snapshot of where the member stands.
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
	QuotaBytes     int64
}

func (n *Node) Status() Status { panic("unbuilt") }

// Members is the membership now, by id.
func (n *Node) Members() []*pb.Member { panic("unbuilt") }

// RenewLease is LeaseKeepAlive: the new TTL, or kv.ErrLeaseNotFound.
func (n *Node) RenewLease(ctx context.Context, id kv.LeaseID) (int64, error) { panic("unbuilt") }

// MoveLeader hands leadership to a voter. kv.ErrNotLeader, kv.ErrBadTransferee.
func (n *Node) MoveLeader(ctx context.Context, to uint64) error { panic("unbuilt") }

// Ready is closed once the member can serve clients; Failed once it cannot go on.
func (n *Node) Ready() <-chan struct{}  { panic("unbuilt") }
func (n *Node) Failed() <-chan struct{} { panic("unbuilt") }
