package node

import (
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"quorate/internal/auth"
	"quorate/internal/kv"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
	"quorate/internal/peer"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// peerHandler is the member as its peers see it.
type peerHandler struct{ *Node }

var _ peer.Handler = peerHandler{}

func (h peerHandler) Receive(m *raftpb.Message) { h.receive(m) }

func (h peerHandler) ReceiveSnapshot(m *raftpb.Message, db io.Reader, size int64) error {
	return h.receiveSnapshot(m, db, size)
}

func (h peerHandler) Connected(id membership.ID) {
	h.inbox.put(arrival{call: func() { h.peerConnected(id) }})
}

func (h peerHandler) Lost(id membership.ID) {
	h.inbox.put(arrival{call: func() {
		h.core.Unreachable(uint64(id))
		if h.core.Leader() == uint64(id) {
			h.reads.again()
		}
	}})
}

func (h peerHandler) Gone(id membership.ID) {
	h.inbox.put(arrival{call: func() { h.suspect(id) }})
}

func (h peerHandler) SnapshotSent(to membership.ID, err error) { h.snapshotSent(to, err) }
func (h peerHandler) Removed()                                 { h.fail(ErrRemoved) }
func (h peerHandler) IsRemoved(id membership.ID) bool          { return h.cluster.State().IsRemoved(id) }
func (h peerHandler) Members() []membership.Member             { return h.cluster.State().Members }

func (h peerHandler) Versions() (cluster, storage string) {
	s := h.Status()
	return s.ClusterVersion, s.StorageVersion
}

func (h peerHandler) Promote(ctx context.Context, id membership.ID, token string) ([]membership.Member, error) {
	if err := h.permitAdmin(ctx, token); err != nil {
		return nil, err
	}
	if _, err := h.promote(ctx, id); err != nil {
		return nil, err
	}
	return h.cluster.State().Members, nil
}

// permitAdmin says whether a token's user may do what changes the cluster.
func (n *Node) permitAdmin(ctx context.Context, token string) error {
	if !n.Auth().Enabled() {
		return nil
	}
	// It may be newer than what this member has applied.
	if err := n.ReadIndex(ctx); err != nil {
		return err
	}
	state := n.Auth()
	who, ok := n.Tokens().Identify(strings.TrimPrefix(token, "Bearer "), state.Revision(), time.Now())
	if !ok {
		return auth.ErrInvalidToken
	}
	return state.PermitAdmin(who)
}

func (h peerHandler) RenewLease(ctx context.Context, id kv.LeaseID) (int64, error) {
	return h.renewLocal(ctx, id)
}

func (h peerHandler) LeaseTimeToLive(ctx context.Context, id kv.LeaseID, keys bool) (*pb.LeaseTimeToLiveResponse, error) {
	return h.timeToLiveLocal(ctx, id, keys)
}

func (h peerHandler) HashKV(_ context.Context, rev int64) (*pb.HashKVResponse, error) {
	v, err := h.viewUnlessClosing()
	if err != nil {
		return nil, err
	}
	defer v.Release()
	sum, compacted, at, err := v.HashKV(rev)
	if err != nil {
		return nil, err
	}
	return &pb.HashKVResponse{
		Header: &pb.ResponseHeader{ClusterId: h.clusterID, MemberId: h.id, Revision: v.Rev(), RaftTerm: h.Term()},
		Hash:   sum, HashRevision: at, CompactRevision: compacted,
	}, nil
}

// viewUnlessClosing is View for who may still ask while the member is closed, as peers do,
// whose port is closed after it.
func (n *Node) viewUnlessClosing() (*mvcc.View, error) {
	n.closing.RLock()
	defer n.closing.RUnlock()
	if n.ctx.Err() != nil {
		return nil, kv.ErrStopped
	}
	return n.View(), nil
}

func (h peerHandler) DowngradeEnabled(ctx context.Context) (bool, error) {
	if err := h.ReadIndex(ctx); err != nil {
		return false, err
	}
	return h.cluster.State().Downgrade.Enabled, nil
}

// receivedBytesMax bounds the messages of peers that wait for the loop. Beyond it they are
// dropped and counted, which Raft is made for.
const receivedBytesMax = 256 << 20

// messageBytes is about what m takes.
func messageBytes(m *raftpb.Message) int64 {
	size := int64(256)
	for _, e := range m.Entries {
		size += int64(len(e.Data)) + 64
	}
	return size
}

// receive hands a message of another member to the loop.
func (n *Node) receive(m *raftpb.Message) {
	size := messageBytes(m)
	if n.received.Add(size) > receivedBytesMax {
		n.received.Add(-size)
		n.met.PeerReceivedDropped.With(membership.ID(m.GetFrom()).String()).Inc()
		return
	}
	n.inbox.put(arrival{message: m})
}

// peerConnected is called when there is a connection to a member again: what the old one
// lost is asked for and sent once more.
func (n *Node) peerConnected(id membership.ID) {
	if n.core.Leader() == uint64(id) {
		n.reads.again()
		n.sendAgain(time.Now())
	}
	n.bringForward(id)
}

// bringForward shortens the wait for the first election once a quorum is connected: no
// leader needs to be waited for then but for a heartbeat.
func (n *Node) bringForward(id membership.ID) {
	if n.advanced {
		return
	}
	n.connected[id] = true
	if len(n.connected)+1 <= len(n.cluster.State().Voters())/2 {
		return
	}
	n.advanced = true
	if n.core.Leader() != raft.None || !n.cfg.TickAdvance {
		return
	}
	for range n.cfg.ElectionTicks - 2 {
		n.core.Tick()
	}
}

// follow makes the connections follow a change of the membership, and ends this member
// if it was removed.
func (n *Node) follow(ch membership.Change) {
	id := ch.Member.ID
	switch {
	case id == 0: // refused
	case ch.Type == raftpb.ConfChangeRemoveNode && uint64(id) == n.id:
		n.leave()
	case uint64(id) == n.id:
	case ch.Type == raftpb.ConfChangeRemoveNode:
		n.suspect(id) // in case that it led: it does not any more
		// It should hear of its removal, which the leader sends it, before its
		// connections end.
		n.later(func() { n.network.Remove(id) })
	case ch.Type == raftpb.ConfChangeUpdateNode:
		n.network.Update(id, ch.Member.PeerURLs)
	default:
		n.network.Add(id, ch.Member.PeerURLs)
	}
}

// reconnect makes the connections those of the membership that a snapshot has brought.
func (n *Node) reconnect() {
	state := n.cluster.State()
	for _, m := range state.Members {
		if uint64(m.ID) != n.id {
			n.network.Add(m.ID, m.PeerURLs)
			n.network.Update(m.ID, m.PeerURLs)
		}
	}
	for _, id := range state.Removed {
		n.network.Remove(id)
	}
	if state.IsRemoved(membership.ID(n.id)) {
		n.leave()
	}
}

// leave ends a member that was removed, a moment later, so that others and its clients
// still get what it has for them. Where one voter is left, which may not have heard yet that
// it decides alone, it needs this member to be elected, and for its first entry.
func (n *Node) leave() {
	n.log.Warn("this member was removed from the cluster and stops")
	end := func() { n.fail(ErrRemoved) }
	if len(n.cluster.State().Voters()) > 1 {
		n.later(end)
		return
	}
	n.later(func() {
		ctx, cancel := context.WithTimeout(n.ctx, leaveElections*n.cfg.electionTimeout())
		defer cancel()
		n.awaitLeader(ctx, func(lead uint64) bool { return lead != n.id && lead != raft.None })
		n.later(end)
	})
}

// leaveElections is how many election timeouts are enough for a voter to find that there is
// no leader, and to be elected.
const leaveElections = 3

// leaveDelay is how long connections of and to removed members stay.
const leaveDelay = time.Second

// later runs fn after leaveDelay, unless the member stops before.
func (n *Node) later(fn func()) {
	n.background.Go(func() {
		select {
		case <-time.After(leaveDelay):
			fn()
		case <-n.ctx.Done():
		}
	})
}

// HandOver gives leadership, if this member has it, to the voter that is best fit for it,
// and returns once another leads, or after an election timeout, or when ctx ends. Requests
// under way are finished under the new leader. Where members are etcd it takes a little longer.
func (n *Node) HandOver(ctx context.Context) {
	if n.leader.Load() != n.id || n.alone.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.electionTimeout())
	defer cancel()
	n.inbox.put(arrival{call: func() {
		heir := n.core.Heir()
		if heir == raft.None {
			cancel() // nobody to wait for
			return
		}
		n.log.Info("handing leadership over", "to", membership.ID(heir).String())
		n.core.TransferLeader(heir)
	}})
	moved := n.awaitLeader(ctx, func(lead uint64) bool { return lead != n.id && lead != raft.None })
	if !moved || !n.knowsEtcd() {
		return
	}
	// An etcd sends its proposals here until it hears of the new leader, and then not again:
	// they are passed on, for as long as they may come.
	select {
	case <-time.After(etcdLinger * n.cfg.Tick):
	case <-ctx.Done():
	case <-n.ctx.Done():
	}
}

// etcdLinger is how many ticks a member that has handed leadership over goes on for etcds'
// sake. A tick is about the time of a message to another member and back, or longer.
const etcdLinger = 2

// knowsEtcd reports whether there is a connection to a member that is an etcd.
func (n *Node) knowsEtcd() bool {
	return slices.ContainsFunc(n.cluster.State().Members, func(m membership.Member) bool {
		return uint64(m.ID) != n.id && !n.network.ActiveSince(m.ID).IsZero() && !n.network.IsQuorate(m.ID)
	})
}

// awaitLeader returns true once ok says yes to the leader, false if ctx or the member
// ends before.
func (n *Node) awaitLeader(ctx context.Context, ok func(lead uint64) bool) bool {
	for !ok(n.leader.Load()) {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return false
		case <-n.ctx.Done():
			return false
		case <-n.failed:
			return false
		}
	}
	return true
}

// clusterVersionEvery is how often the leader asks the members for their versions, as in
// etcd.
const clusterVersionEvery = 4 * time.Second

// decideVersion is the version that the cluster can have: the lowest of its members',
// and, until it has one, etcd's minimum if some cannot be asked. false: leave it as it is.
func (n *Node) decideVersion() (v membership.Version, ok bool) {
	state := n.cluster.State()
	lowest := serverVersion.MinorOnly()
	if !state.Version.Less(lowest) {
		return lowest, false
	}
	for _, m := range state.Members {
		if uint64(m.ID) == n.id {
			continue
		}
		v, err := n.versionOf(m)
		if err != nil {
			return minClusterVersion, state.Version.IsZero()
		}
		if v.Less(lowest) {
			lowest = v
		}
	}
	return lowest, state.Version.Less(lowest)
}

var minClusterVersion = membership.Version{Major: 3}

// versionOf asks a member for its version.
func (n *Node) versionOf(m membership.Member) (membership.Version, error) {
	if n.peers == nil {
		return serverVersion.MinorOnly(), nil
	}
	ctx, cancel := context.WithTimeout(n.ctx, n.cfg.electionTimeout())
	defer cancel()
	server, _, err := n.peers.Versions(ctx, m.PeerURLs)
	if err != nil {
		return membership.Version{}, err
	}
	v, err := membership.ParseVersion(server)
	return v.MinorOnly(), err
}
