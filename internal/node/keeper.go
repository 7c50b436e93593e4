package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"quorate/internal/auth"
	"quorate/internal/kv"
	"quorate/internal/membership"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.etcd.io/raft/v3"
	"google.golang.org/protobuf/proto"
)

const (
	// keeperTick is how often the keeper looks around.
	keeperTick = 500 * time.Millisecond
	// expireMax bounds the leases that one look ends, so that many that fall due at
	// once do not crowd out the clients; revokeBatch how many revocations are in the
	// log's way at a time. Both are etcd's.
	expireMax   = 500
	revokeBatch = 16
)

// keep is the keeper: what time, rather than a client, brings about. It proposes like a
// client.
func (n *Node) keep() {
	defer close(n.keeperDone)
	ticker := time.NewTicker(keeperTick)
	defer ticker.Stop()
	compactor := newCompactor(n.cfg.Compaction, time.Now())
	introduced := false
	var stall stallNotice
	var versionAt time.Time // not before, the versions are looked at again
	for {
		select {
		case <-n.ctx.Done():
			return
		case <-n.failed:
			return
		case <-n.leads:
			versionAt = time.Time{}
		case <-n.overQuota:
			n.raiseNoSpace()
			continue
		case <-ticker.C:
		}
		if n.leader.Load() == raft.None {
			continue
		}
		if !introduced {
			if introduced = n.introduce(); introduced {
				n.readyOnce.Do(func() { close(n.ready) })
			}
		}
		n.noticeStall(&stall, time.Now())
		n.watchSpace()
		if !n.leading.Load() {
			continue
		}
		if now := time.Now(); now.After(versionAt) {
			versionAt = now.Add(clusterVersionEvery)
			n.raiseVersion()
		}
		n.expireLeases()
		n.compactBy(compactor)
	}
}

// expireLeases proposes the revocation of leases that are over.
func (n *Node) expireLeases() {
	// A revocation follows from this leader's clock. Under another leader, which may have
	// heard of a renewal, it must not be proposed.
	term := n.Term()
	ids, _ := n.Leases().Expired(time.Now(), expireMax)
	if len(ids) == 0 {
		return
	}
	for some := range slices.Chunk(ids, revokeBatch) {
		n.revokeExpired(term, some)
	}
}

// revokeExpired proposes the revocation of leases, in one term, and waits for all. Where
// that fails a lease is handed out again a few seconds later. Whoever may write the keys,
// the member may end the lease: it asks as root, as etcd's does.
func (n *Node) revokeExpired(term uint64, ids []kv.LeaseID) {
	var who auth.Identity
	if st := n.Auth(); st.Enabled() {
		who = auth.Identity{User: auth.Root, Revision: st.Revision()}
	}
	started := make([]*proposal, len(ids))
	for i, id := range ids {
		body, err := proto.Marshal(&pb.LeaseRevokeRequest{ID: int64(id)})
		if err != nil {
			panic("node: encode a revocation: " + err.Error()) // a number; cannot fail
		}
		if started[i], err = n.begin(term, who, wire.FieldLeaseRevoke, body); err != nil {
			n.revoked(id, err, nil)
		}
	}
	for i, p := range started {
		if p != nil {
			res, err := n.await(n.ctx, p, wire.FieldLeaseRevoke)
			n.revoked(ids[i], err, res.Err)
		}
	}
}

// revoked takes note of how the revocation of an expired lease has ended: the proposal's
// error and the state machine's.
func (n *Node) revoked(id kv.LeaseID, err, resErr error) {
	switch {
	case err == nil && resErr == nil:
		n.met.LeasesExpired.Inc()
	case errors.Is(err, context.Canceled), errors.Is(err, kv.ErrStopped), errors.Is(resErr, kv.ErrLeaseNotFound):
		// The member stops, or the client was faster.
	case errors.Is(err, kv.ErrLeaderChanged):
		// The new leader sees to it.
	default:
		n.log.Warn("could not revoke an expired lease", "lease", id.String(), "error", errors.Join(err, resErr))
	}
}

// introduce tells the cluster what this member is called and how clients reach it, unless
// that is known already. It reports whether it is.
func (n *Node) introduce() bool {
	self, ok := n.cluster.State().Member(membership.ID(n.id))
	if !ok {
		return false // its addition is not applied yet
	}
	if self.Name == n.cfg.Name && slices.Equal(self.ClientURLs, n.cfg.ClientURLs) {
		return true
	}
	err := n.proposeMessage(wire.FieldMemberAttributes, &membershippb.ClusterMemberAttrSetRequest{
		Member_ID:        n.id,
		MemberAttributes: &membershippb.Attributes{Name: n.cfg.Name, ClientUrls: n.cfg.ClientURLs},
	})
	if err != nil {
		n.log.Warn("could not publish the member's name", "error", err)
	}
	return err == nil
}

// raiseVersion proposes a cluster version once every member can do what it stands for.
func (n *Node) raiseVersion() {
	if n.cluster.State().Downgrade.Enabled {
		return
	}
	v, ok := n.decideVersion()
	if !ok {
		return
	}
	if err := n.proposeMessage(wire.FieldClusterVersion, &membershippb.ClusterVersionSetRequest{Ver: v.String()}); err != nil {
		n.log.Warn("could not set the cluster's version", "version", v.String(), "error", err)
	}
}

// proposeMessage proposes a request of the member's own.
func (n *Node) proposeMessage(field wire.Field, m proto.Message) error {
	body, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s: %w", field, err)
	}
	res, err := n.Propose(n.ctx, field, body)
	return cmp.Or(err, res.Err)
}
