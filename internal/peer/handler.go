package peer

import (
	"context"
	"io"

	"quorate/internal/kv"
	"quorate/internal/membership"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
)

// Handler is the member behind a Transport. Goroutines of connections call it; no method
// may block for long, except ReceiveSnapshot.
type Handler interface {
	// Receive takes a message of another member of this cluster. m is the handler's.
	Receive(m *raftpb.Message)
	// ReceiveSnapshot takes a MsgSnap and the database file behind it: size bytes, or up
	// to io.EOF if size is -1. It returns once the file is on disk and m was taken.
	ReceiveSnapshot(m *raftpb.Message, db io.Reader, size int64) error

	// Connected says that a stream to the member stands (again).
	Connected(id membership.ID)
	// Lost says that messages to the member were dropped: its queue was full, or the
	// connection broke. It is called at most once a burst.
	Lost(id membership.ID)
	// Gone says that the member's process has died: its streams ended, and a new
	// connection is refused.
	Gone(id membership.ID)
	// SnapshotSent says how a SendSnapshot has ended: well if err is nil.
	SnapshotSent(to membership.ID, err error)
	// Removed says that another member knows this one as removed from the cluster.
	Removed()

	// IsRemoved reports whether id was a member once and was removed.
	IsRemoved(id membership.ID) bool
	Members() []membership.Member
	// Versions are the cluster's, "" until it is decided, and the data directory's.
	Versions() (cluster, storage string)
	// Promote makes a learner a voter; only the leader does. token is that of the client that
	// asks for it, "" if it has none.
	Promote(ctx context.Context, id membership.ID, token string) ([]membership.Member, error)
	// RenewLease and LeaseTimeToLive answer for leases of this member's leadership alone,
	// and else with kv.ErrNotLeader. The response has no header.
	RenewLease(ctx context.Context, id kv.LeaseID) (ttl int64, err error)
	LeaseTimeToLive(ctx context.Context, id kv.LeaseID, keys bool) (*pb.LeaseTimeToLiveResponse, error)
	HashKV(ctx context.Context, rev int64) (*pb.HashKVResponse, error)
	DowngradeEnabled(ctx context.Context) (bool, error)
}
