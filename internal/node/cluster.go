package node

import (
	"context"
	"errors"
	"time"

	"quorate/internal/kv"
	"quorate/internal/membership"
	"quorate/internal/peer"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// healthyFor is for how long a quorum must have been connected before a change of the
// membership is taken, as in etcd.
const healthyFor = 5 * time.Second

// AddMember adds a member to the cluster, as a voter or as a learner, and returns it and
// all members. Errors: kv.ErrPeerURLExists, kv.ErrMemberExists, kv.ErrTooManyLearners,
// and, unless the checks are switched off, kv.ErrNotEnoughStarted or kv.ErrUnhealthy
// where the larger cluster might not have a quorum.
func (n *Node) AddMember(ctx context.Context, peerURLs []string, learner bool) (added *pb.Member, all []*pb.Member, err error) {
	m := membership.Member{
		ID:       membership.AddedMemberID(peerURLs, n.cfg.InitialClusterToken, time.Now()),
		PeerURLs: peerURLs, IsLearner: learner,
	}
	state := n.cluster.State()
	if n.cfg.StrictReconfigCheck {
		if !learner && !state.MayAddVoter() {
			return nil, nil, kv.ErrNotEnoughStarted
		}
		// The new member counts as one that is down.
		if voters := state.Voters(); len(voters) > 1 && n.active(voters) < (len(voters)+1)/2+1 {
			return nil, nil, kv.ErrUnhealthy
		}
	}
	kind := raftpb.ConfChangeAddNode
	if learner {
		kind = raftpb.ConfChangeAddLearnerNode
	}
	all, err = n.change(ctx, kind, m.ID, membership.Context{Member: m}.JSON())
	return pbMember(m), all, err
}

// RemoveMember takes a member out of the cluster for ever and returns those that stay:
// kv.ErrMemberNotFound, kv.ErrNotEnoughStarted for the last voter, and unless the checks are
// switched off that or kv.ErrUnhealthy where those that stay might not have a quorum.
func (n *Node) RemoveMember(ctx context.Context, id uint64) ([]*pb.Member, error) {
	state := n.cluster.State()
	if err := n.mayRemove(state, membership.ID(id)); err != nil {
		return nil, err
	}
	all, err := n.change(ctx, raftpb.ConfChangeRemoveNode, membership.ID(id), nil)
	if errors.Is(err, kv.ErrMemberNotFound) {
		if _, known := n.cluster.State().Member(membership.ID(id)); known {
			return nil, kv.ErrNotEnoughStarted // it has become the last voter; see consensus
		}
	}
	return all, err
}

func (n *Node) mayRemove(state *membership.State, id membership.ID) error {
	if !n.cfg.StrictReconfigCheck {
		return nil
	}
	m, known := state.Member(id)
	if known && m.IsLearner {
		return nil
	}
	if !state.MayRemoveVoter(id) {
		return kv.ErrNotEnoughStarted
	}
	if n.network.ActiveSince(id).IsZero() && uint64(id) != n.id {
		return nil // it is down: without it, things can only become better
	}
	if voters := state.Voters(); n.active(voters)-1 < 1+(len(voters)-1)/2 {
		return kv.ErrUnhealthy
	}
	return nil
}

// UpdateMember changes the peer URLs of a member: kv.ErrMemberNotFound, kv.ErrPeerURLExists.
func (n *Node) UpdateMember(ctx context.Context, id uint64, peerURLs []string) ([]*pb.Member, error) {
	m := membership.Member{ID: membership.ID(id), PeerURLs: peerURLs}
	return n.change(ctx, raftpb.ConfChangeUpdateNode, m.ID, m.JSON())
}

// PromoteMember makes a learner that has caught up a voter: kv.ErrMemberNotFound,
// kv.ErrMemberNotLearner, kv.ErrLearnerNotReady, kv.ErrNotEnoughStarted. Only the leader
// knows who has caught up, so other members ask it, on behalf of the client with a token.
func (n *Node) PromoteMember(ctx context.Context, id uint64, token string) ([]*pb.Member, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, n.cfg.requestTimeout(), kv.ErrTimeout)
	defer cancel()
	m, known := n.cluster.State().Member(membership.ID(id))
	var all []*pb.Member
	asked := false // a leader that did not answer, and may have done it
	err := n.askLeader(ctx, func() error {
		var err error
		all, err = n.promote(ctx, membership.ID(id))
		return err
	}, func(urls []string) error {
		ctx, cancel := n.leaderAsk(ctx)
		defer cancel()
		ms, err := n.peers.Promote(ctx, urls, membership.ID(id), token)
		all = pbMembers(ms)
		asked = asked || errors.Is(err, peer.ErrUnreachable)
		return err
	})
	if asked && known && m.IsLearner && errors.Is(err, kv.ErrMemberNotLearner) {
		if err = n.ReadIndex(ctx); err == nil {
			all = n.Members()
		}
	}
	return all, causeOf(ctx, err)
}

// promote is PromoteMember on the leader, and else kv.ErrNotLeader.
func (n *Node) promote(ctx context.Context, id membership.ID) ([]*pb.Member, error) {
	if !n.leading.Load() {
		return nil, kv.ErrNotLeader
	}
	state := n.cluster.State()
	switch m, ok := state.Member(id); {
	case !ok:
		return nil, kv.ErrMemberNotFound
	case !m.IsLearner:
		return nil, kv.ErrMemberNotLearner
	}
	ready := make(chan bool, 1)
	n.inbox.put(arrival{call: func() { ready <- n.core.CaughtUp(uint64(id)) }})
	select {
	case ok := <-ready:
		if !ok {
			return nil, kv.ErrLearnerNotReady
		}
	case <-n.ctx.Done():
		return nil, kv.ErrStopped
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if n.cfg.StrictReconfigCheck && !state.MayPromote() {
		return nil, kv.ErrNotEnoughStarted
	}
	context := membership.Context{Member: membership.Member{ID: id}, IsPromote: true}
	return n.change(ctx, raftpb.ConfChangeAddNode, id, context.JSON())
}

// change proposes a change of the membership and returns the members after it.
func (n *Node) change(ctx context.Context, kind raftpb.ConfChangeType, id membership.ID, context []byte) ([]*pb.Member, error) {
	err := n.proposeChange(ctx, &raftpb.ConfChange{Type: kind.Enum(), NodeId: new(uint64(id)), Context: context})
	if err != nil {
		return nil, err
	}
	return n.Members(), nil
}

// askLeader runs local if this member leads and else remote with the leader's peer URLs,
// again and again while the leader changes, until it has an answer or ctx ends.
func (n *Node) askLeader(ctx context.Context, local func() error, remote func(urls []string) error) error {
	for {
		var err error
		switch lead := n.leader.Load(); {
		case n.leading.Load():
			err = local()
		case lead == raft.None || lead == n.id:
			err = kv.ErrNotLeader // yet
		default:
			m, ok := n.cluster.State().Member(membership.ID(lead))
			if !ok || n.peers == nil {
				err = kv.ErrNotLeader
				break
			}
			err = remote(m.PeerURLs)
		}
		if !errors.Is(err, kv.ErrNotLeader) && !errors.Is(err, kv.ErrLeaderChanged) && !errors.Is(err, peer.ErrUnreachable) {
			return err
		}
		select {
		case <-time.After(askPause):
		case <-ctx.Done():
			return ctx.Err()
		case <-n.ctx.Done():
			return kv.ErrStopped
		}
	}
}

// leaderAsk bounds one question to the leader: a leader answers within a second, if only that
// it cannot. One that is paused, and so does not, is given up, because another may lead.
func (n *Node) leaderAsk(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, time.Second+n.cfg.electionTimeout())
}

// askPause is how long askLeader waits before it tries again.
const askPause = 20 * time.Millisecond

// active is how many of ms have been connected for long enough; this one always is.
func (n *Node) active(ms []membership.Member) (count int) {
	since := time.Now().Add(-healthyFor)
	for _, m := range ms {
		if at := n.network.ActiveSince(m.ID); uint64(m.ID) == n.id || !at.IsZero() && at.Before(since) {
			count++
		}
	}
	return count
}

// Members is the membership now, by id.
func (n *Node) Members() []*pb.Member { return pbMembers(n.cluster.State().Members) }

func pbMembers(ms []membership.Member) []*pb.Member {
	list := make([]*pb.Member, len(ms))
	for i, m := range ms {
		list[i] = pbMember(m)
	}
	return list
}

func pbMember(m membership.Member) *pb.Member {
	return &pb.Member{ID: uint64(m.ID), Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, IsLearner: m.IsLearner}
}
