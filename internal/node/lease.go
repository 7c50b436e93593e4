package node

import (
	"context"
	"errors"
	"time"

	"quorate/internal/kv"
	"quorate/internal/lease"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// The leader owns the ends of leases: only it knows when each is due. What a client asks
// of another member about that is asked of the leader.

// lessor is the leases as they are loaded by now.
func (n *Node) lessor() *lease.Lessor { return n.leases.Load() }

// Leases returns the leases. It waits while they are being read after the start, also if
// the member stops meanwhile: the applier must never see a part of them.
func (n *Node) Leases() *lease.Lessor {
	<-n.leasesLoaded
	return n.lessor()
}

// errLeases is what the applier ends with if the leases could not be read.
var errLeases = errors.New("the leases could not be read")

// newLessor returns one without leases.
func (n *Node) newLessor() *lease.Lessor {
	// The least time that a lease can be kept for: an election and a half, in whole ticks
	// as in etcd, for every member of a cluster must give the same.
	minTTL := (time.Duration(3*n.cfg.ElectionTicks/2)*n.cfg.Tick + time.Second - 1) / time.Second
	l := lease.New(int64(minTTL))
	l.OnGrant = func(ttl int64) {
		n.met.LeasesGranted.Inc()
		n.met.LeaseTTL.Observe(float64(ttl))
	}
	l.OnRevoke = n.met.LeasesRevoked.Inc
	return l
}

// renewRetry is how often a renewal looks whether an expired lease is revoked by now.
const renewRetry = 50 * time.Millisecond

// RenewLease is LeaseKeepAlive: it returns the lease's TTL in seconds, or
// kv.ErrLeaseNotFound. A lease that is over but not revoked yet is not renewed: the call
// waits for its end.
func (n *Node) RenewLease(ctx context.Context, id kv.LeaseID) (ttl int64, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, n.cfg.requestTimeout(), kv.ErrTimeout)
	defer cancel()
	err = n.askLeader(ctx, func() error {
		ttl, err = n.renewLocal(ctx, id)
		return err
	}, func(urls []string) error {
		ctx, cancel := n.leaderAsk(ctx)
		defer cancel()
		ttl, err = n.peers.RenewLease(ctx, urls, id)
		return err
	})
	if err == nil {
		n.met.LeasesRenewed.Inc()
	}
	return ttl, causeOf(ctx, err)
}

// renewLocal is RenewLease on the leader, and else kv.ErrNotLeader.
//
// A quorum has to confirm that this member still led when the request had come: another
// leader gives every lease its full time from its promotion, and so not less than was
// promised here before. A member that was paused, and replaced meanwhile, would promise
// what that leader knows nothing of. What was granted elsewhere is applied here by then.
func (n *Node) renewLocal(ctx context.Context, id kv.LeaseID) (int64, error) {
	if err := n.ReadIndex(ctx); err != nil {
		return 0, err
	}
	for {
		leases := n.Leases()
		if n.leasesFailed.Load() {
			return 0, kv.ErrStopped
		}
		ttl, err := leases.Renew(id, time.Now())
		if !errors.Is(err, lease.ErrExpired) {
			return ttl, err
		}
		select {
		case <-time.After(renewRetry):
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-n.ctx.Done():
			return 0, kv.ErrStopped
		}
	}
}

// TimeToLive is LeaseTimeToLive without the header: what a lease was granted, what is
// left of it, and its keys if asked for. A lease that does not exist has a TTL of -1.
func (n *Node) TimeToLive(ctx context.Context, id kv.LeaseID, keys bool) (*pb.LeaseTimeToLiveResponse, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, n.cfg.requestTimeout(), kv.ErrTimeout)
	defer cancel()
	var r *pb.LeaseTimeToLiveResponse
	err := n.askLeader(ctx, func() error {
		var err error
		r, err = n.timeToLiveLocal(ctx, id, keys)
		return err
	}, func(urls []string) error {
		var err error
		ctx, cancel := n.leaderAsk(ctx)
		defer cancel()
		r, err = n.peers.LeaseTimeToLive(ctx, urls, id, keys)
		return err
	})
	return r, causeOf(ctx, err)
}

// timeToLiveLocal is TimeToLive on the leader, and else kv.ErrNotLeader.
func (n *Node) timeToLiveLocal(ctx context.Context, id kv.LeaseID, keys bool) (*pb.LeaseTimeToLiveResponse, error) {
	if err := n.ReadIndex(ctx); err != nil {
		return nil, err
	}
	leases := n.Leases()
	if n.leasesFailed.Load() {
		return nil, kv.ErrStopped
	}
	info, err := leases.Lookup(id, keys, time.Now())
	switch {
	case errors.Is(err, kv.ErrLeaseNotFound):
		return &pb.LeaseTimeToLiveResponse{ID: int64(id), TTL: -1}, nil
	case err != nil:
		return nil, err
	}
	return &pb.LeaseTimeToLiveResponse{ID: int64(id), TTL: info.Remaining, GrantedTTL: info.Granted, Keys: info.Keys}, nil
}

// causeOf is err, or why ctx ended if that is what err says.
func causeOf(ctx context.Context, err error) error {
	if err != nil && errors.Is(err, ctx.Err()) {
		return context.Cause(ctx)
	}
	return err
}
