package node

import (
	"context"
	"io"
	"time"

	"quorate/internal/kv"
	"quorate/internal/membership"
	"quorate/internal/peer"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
)

// Network is the wire to the other members. peer.Transport is one; see there for what
// each method promises. None blocks.
type Network interface {
	Open(self, cluster membership.ID, h peer.Handler)
	Add(id membership.ID, peerURLs []string)
	Update(id membership.ID, peerURLs []string)
	Remove(id membership.ID)
	Send(ms []*raftpb.Message)
	SendSnapshot(m *raftpb.Message, db io.ReadCloser, size int64)
	// ActiveSince is since when there is a connection to the member, zero if there is none.
	ActiveSince(id membership.ID) time.Time
	// IsQuorate reports whether the member takes numbered proposals.
	IsQuorate(id membership.ID) bool
	Close()
}

// Peers asks other members at their peer URLs. peer.Client is one.
type Peers interface {
	Members(ctx context.Context, urls []string) (cluster membership.ID, ms []membership.Member, err error)
	Versions(ctx context.Context, urls []string) (server, cluster string, err error)
	Promote(ctx context.Context, urls []string, id membership.ID, token string) ([]membership.Member, error)
	RenewLease(ctx context.Context, urls []string, id kv.LeaseID) (ttl int64, err error)
	LeaseTimeToLive(ctx context.Context, urls []string, id kv.LeaseID, keys bool) (*pb.LeaseTimeToLiveResponse, error)
}
