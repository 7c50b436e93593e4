package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"quorate/internal/membership"
	"quorate/internal/wal"
)

// askTimeout bounds a question to the other members at the start.
const askTimeout = 5 * time.Second

// found is what a log begins with that this member starts without data: as one of those
// that found a new cluster, or to join a running one.
func (n *Node) found() (*wal.Recovered, error) {
	founders, err := n.founders()
	if err != nil {
		return nil, err
	}
	at := slices.IndexFunc(founders, func(m membership.Member) bool { return m.Name == n.cfg.Name })
	self := founders[at] // the flags were checked to name it
	urls := othersURLs(founders, self.ID)
	if !n.cfg.NewCluster {
		return n.join(self, founders, urls)
	}
	if n.peers != nil && len(urls) > 0 {
		if err := n.refuseRebirth(self, urls); err != nil {
			return nil, err
		}
	}
	cluster := membership.ClusterID(founders)
	n.log.Info("founding a new cluster", "member", self.ID.String(), "cluster", cluster.String(), "members", len(founders))
	return beginning(self.ID, cluster), nil
}

func beginning(self, cluster membership.ID) *wal.Recovered {
	return &wal.Recovered{Metadata: wal.Metadata{NodeID: uint64(self), ClusterID: uint64(cluster)}}
}

func othersURLs(ms []membership.Member, self membership.ID) (urls []string) {
	for _, m := range ms {
		if m.ID != self {
			urls = append(urls, m.PeerURLs...)
		}
	}
	return urls
}

// refuseRebirth refuses to found a cluster in which this member has lived before: it has
// voted there, and lost what it promised. Where nobody answers, the others have not
// started yet.
func (n *Node) refuseRebirth(self membership.Member, urls []string) error {
	ctx, cancel := context.WithTimeout(n.ctx, time.Second)
	defer cancel()
	_, running, err := n.peers.Members(ctx, urls)
	if err != nil {
		return nil
	}
	for _, m := range running {
		if m.ID == self.ID && len(m.ClientURLs) > 0 {
			return fmt.Errorf("member %s has already been bootstrapped", self.ID)
		}
	}
	return nil
}

// join is the beginning of a member that was added to a running cluster, whose members it
// asks for its id.
func (n *Node) join(self membership.Member, named []membership.Member, urls []string) (*wal.Recovered, error) {
	if n.peers == nil || len(urls) == 0 {
		return nil, errors.New("cannot fetch cluster info from peer urls: --initial-cluster names no other member")
	}
	ctx, cancel := context.WithTimeout(n.ctx, askTimeout)
	defer cancel()
	cluster, running, err := n.peers.Members(ctx, urls)
	if err != nil {
		return nil, fmt.Errorf("cannot fetch cluster info from peer urls: %w", err)
	}
	id, err := matchMembers(self, named, running)
	if err != nil {
		return nil, fmt.Errorf("error validating peerURLs: %w", err)
	}
	n.remotes = slices.DeleteFunc(slices.Clone(running), func(m membership.Member) bool { return m.ID == id })
	n.log.Info("joining a cluster", "member", id.String(), "cluster", cluster.String(), "members", len(running))
	return beginning(id, cluster), nil
}

// matchMembers is the id that the running cluster knows self under. The members that the
// flags name must be those that run, by their peer URLs.
func matchMembers(self membership.Member, named, running []membership.Member) (id membership.ID, err error) {
	if len(named) != len(running) {
		return 0, errors.New("member count is unequal")
	}
	for _, m := range running {
		at := slices.IndexFunc(named, func(o membership.Member) bool { return sameURLs(o.PeerURLs, m.PeerURLs) })
		if at < 0 {
			return 0, fmt.Errorf("unmatched member while checking PeerURLs: member %s at %q is not in --initial-cluster", m.ID, m.PeerURLs)
		}
		if named[at].ID == self.ID {
			id = m.ID
		}
	}
	if id == 0 {
		return 0, fmt.Errorf("this member, at %q, was not added to the cluster", self.PeerURLs)
	}
	return id, nil
}

func sameURLs(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}
