package rpc

import (
	"context"
	"net"
	"net/url"
	"slices"
	"strings"

	"quorate/internal/kv"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// cluster is etcdserverpb.Cluster. What may be changed when is the Backend's to say; here
// only URLs are looked at.
type cluster struct {
	*services
	pb.UnsafeClusterServer // a new method of the API must not go unnoticed
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
	if err := c.permitKnown(ctx); err != nil {
		return nil, err
	}
	return &pb.MemberListResponse{Header: c.clusterHeader(), Members: c.Members()}, nil
}

// MemberAdd adds the URLs in the form and order in which the member's id is made of them.
func (c cluster) MemberAdd(ctx context.Context, r *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	urls, ok := peerURLs(r.PeerURLs)
	if !ok {
		return nil, rpctypes.ErrGRPCMemberBadURLs
	}
	if err := c.permitAdmin(ctx); err != nil {
		return nil, err
	}
	added, all, err := c.AddMember(ctx, urls, r.IsLearner)
	if err != nil {
		return nil, err
	}
	return &pb.MemberAddResponse{Header: c.clusterHeader(), Member: added, Members: all}, nil
}

func (c cluster) MemberRemove(ctx context.Context, r *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	if err := c.permitAdmin(ctx); err != nil {
		return nil, err
	}
	all, err := c.RemoveMember(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	return &pb.MemberRemoveResponse{Header: c.clusterHeader(), Members: all}, nil
}

// MemberUpdate replicates the URLs as they were given, as etcd does. But it refuses those
// that are none: etcd takes them, and every member then ends as it tries to connect.
func (c cluster) MemberUpdate(ctx context.Context, r *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	if err := c.permitAdmin(ctx); err != nil {
		return nil, err
	}
	if _, ok := peerURLs(r.PeerURLs); !ok {
		isID := func(m *pb.Member) bool { return m.ID == r.ID }
		if !slices.ContainsFunc(c.Members(), isID) {
			return nil, kv.ErrMemberNotFound
		}
		return nil, rpctypes.ErrGRPCMemberBadURLs
	}
	all, err := c.UpdateMember(ctx, r.ID, r.PeerURLs)
	if err != nil {
		return nil, err
	}
	return &pb.MemberUpdateResponse{Header: c.clusterHeader(), Members: all}, nil
}

func (c cluster) MemberPromote(ctx context.Context, r *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	if err := c.permitAdmin(ctx); err != nil {
		return nil, err
	}
	token, _ := tokenOf(ctx) // the leader looks at it once more
	all, err := c.PromoteMember(ctx, r.ID, token)
	if err != nil {
		return nil, err
	}
	return &pb.MemberPromoteResponse{Header: c.clusterHeader(), Members: all}, nil
}

// peerURLs returns urls without spaces and in order, if etcd takes them as those of a
// peer: at least one, each with a scheme it knows, an address and nothing behind it.
func peerURLs(urls []string) (list []string, ok bool) {
	for _, s := range urls {
		u, err := url.Parse(strings.TrimSpace(s))
		if err != nil {
			return nil, false
		}
		switch u.Scheme {
		case "http", "https":
			if _, _, err := net.SplitHostPort(u.Host); err != nil || u.Path != "" {
				return nil, false
			}
		case "unix", "unixs":
		default:
			return nil, false
		}
		list = append(list, u.String())
	}
	slices.Sort(list)
	return list, len(list) > 0
}
