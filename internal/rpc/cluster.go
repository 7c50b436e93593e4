package rpc

import (
	"context"
	"net/url"

	"quorate/internal/kv"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// cluster is etcdserverpb.Cluster.
//
// A member that has no peers yet cannot change its membership: a second voter would take
// its quorum away. Such requests get the error that etcd has for them where they are
// wrong in themselves, and else kv.ErrNotSupported.
type cluster struct {
	*services
	pb.UnsafeClusterServer
}

// clusterHeader has no revision, as with etcd.
func (c cluster) clusterHeader() *pb.ResponseHeader {
	return &pb.ResponseHeader{ClusterId: c.ClusterID(), MemberId: c.MemberID(), RaftTerm: c.Term()}
}

func (c cluster) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	if r.Linearizable {
		if err := c.ReadIndex(ctx); err != nil {
			return nil, err
		}
	}
	return &pb.MemberListResponse{Header: c.clusterHeader(), Members: c.Members()}, nil
}

func (c cluster) MemberAdd(_ context.Context, r *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	if !validPeerURLs(r.PeerURLs) {
		return nil, rpctypes.ErrGRPCMemberBadURLs
	}
	for _, m := range c.Members() {
		for _, u := range m.PeerURLs {
			for _, added := range r.PeerURLs {
				if u == added {
					return nil, kv.ErrPeerURLExists
				}
			}
		}
	}
	return nil, kv.ErrNotSupported
}

func (c cluster) MemberRemove(_ context.Context, r *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	switch m := c.member(r.ID); {
	case m == nil:
		return nil, kv.ErrMemberNotFound
	case !m.IsLearner && c.voters() == 1:
		// Nobody would be left to agree on anything.
		return nil, errNotEnoughStarted
	}
	return nil, kv.ErrNotSupported
}

func (c cluster) MemberUpdate(_ context.Context, r *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	if c.member(r.ID) == nil {
		return nil, kv.ErrMemberNotFound
	}
	return nil, kv.ErrNotSupported
}

func (c cluster) MemberPromote(_ context.Context, r *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	switch m := c.member(r.ID); {
	case m == nil:
		return nil, kv.ErrMemberNotFound
	case !m.IsLearner:
		return nil, kv.ErrMemberNotLearner
	}
	return nil, kv.ErrNotSupported
}

func (c cluster) member(id uint64) *pb.Member {
	for _, m := range c.Members() {
		if m.ID == id {
			return m
		}
	}
	return nil
}

func (c cluster) voters() (n int) {
	for _, m := range c.Members() {
		if !m.IsLearner {
			n++
		}
	}
	return n
}

// validPeerURLs reports whether etcd takes urls as those of a peer: at least one, each
// with a scheme it knows, an address and nothing behind it.
func validPeerURLs(urls []string) bool {
	for _, s := range urls {
		u, err := url.Parse(s)
		if err != nil || u.Path != "" && u.Scheme != "unix" && u.Scheme != "unixs" {
			return false
		}
		switch u.Scheme {
		case "http", "https":
			if u.Port() == "" {
				return false
			}
		case "unix", "unixs":
		default:
			return false
		}
	}
	return len(urls) > 0
}
