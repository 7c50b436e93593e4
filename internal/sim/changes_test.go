package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"quorate/internal/kv"
	"quorate/internal/membership"
	"quorate/internal/node"
)

// membersMax bounds the members of a run, with those that were removed; each costs time.
const membersMax = 8

// grow asks a member to add one, as a learner or as a voter. It starts once that is
// committed, whether or not the answer arrives.
func (w *world) grow(m *member) {
	if len(w.members) >= membersMax || len(w.check.added) > w.plan.members {
		return
	}
	w.grown++
	urls := []string{fmt.Sprintf("http://10.0.1.%d:2380", w.grown)}
	learner := w.rnd.IntN(3) > 0
	w.change(m, func(ctx context.Context, n *node.Node) (membership.ID, error) {
		added, _, err := n.AddMember(ctx, urls, learner)
		return membership.ID(added.GetID()), err
	}, w.check.added)
}

// shrink asks a member to remove one, which may be itself.
func (w *world) shrink(m *member) {
	from := w.check.added
	if len(w.check.added)-len(w.check.learners) <= w.plan.votersMin {
		from = w.check.learners
	}
	if len(from) == 0 {
		return
	}
	id := w.oneOf(from)
	w.change(m, func(ctx context.Context, n *node.Node) (membership.ID, error) {
		_, err := n.RemoveMember(ctx, uint64(id))
		return id, err
	}, w.check.removed)
}

// promote asks a member to make a learner a voter.
func (w *world) promote(m *member) {
	if len(w.check.learners) == 0 {
		return
	}
	id := w.oneOf(w.check.learners)
	w.change(m, func(ctx context.Context, n *node.Node) (membership.ID, error) {
		_, err := n.PromoteMember(ctx, uint64(id), "")
		return id, err
	}, nil)
}

func (w *world) oneOf(ids map[membership.ID]bool) membership.ID {
	all := slices.Sorted(maps.Keys(ids))
	return all[w.rnd.IntN(len(all))]
}

// change asks m for a change of the membership, one at a time. What was acknowledged must
// be among the members that done holds, or have been.
func (w *world) change(m *member, ask func(context.Context, *node.Node) (membership.ID, error), done map[membership.ID]bool) {
	if w.changes || m.paused() > 0 {
		return
	}
	w.changes = true
	n, alive, sent, disk := m.n, m.alive(), w.now(), m.disk
	go func() {
		id, err := ask(context.Background(), n)
		w.post(m.i, func() {
			w.changes = false
			// The leader that is asked for a promotion may be the one that received a snapshot,
			// or whose disk is full.
			jumped, full := false, disk.outOfRoom(sent)
			for _, o := range w.members {
				if o.n != nil {
					w.check.applied(o) // as it is by now
				}
				jumped = jumped || o.installed >= sent && o.installed > 0
				full = full || o.disk.outOfRoom(sent)
			}
			w.note("changed", uint64(m.i), uint64(id))
			w.say("a change of member %s by %s: %v", id, m.cfg.Name, err)
			took := w.now() - sent
			switch {
			case err == nil && done != nil && !done[id] && !w.check.removed[id]:
				w.fail("a change of member %s was acknowledged, and is not committed", id)
			case err == nil, errors.Is(err, kv.ErrLearnerNotReady), errors.Is(err, kv.ErrMemberNotLearner), errors.Is(err, kv.ErrMemberNotFound):
			case errors.Is(err, kv.ErrNotEnoughStarted) && w.check.lastVoter(id):
			case errors.Is(err, kv.ErrStopped) && !alive():
			case errors.Is(err, kv.ErrNoSpace) && full:
			case (errors.Is(err, kv.ErrTimeout) || errors.Is(err, context.DeadlineExceeded)) && (took >= w.plan.requestTimeout() || jumped):
			default:
				w.fail("a change of member %s failed for no good reason on %s after %s: %v", id, m.cfg.Name, took, err)
			}
		})
	}()
}

// join starts a member that was added.
func (w *world) join(id membership.ID, urls []string) {
	i := len(w.members)
	for _, m := range w.members {
		if m.id == id {
			return
		}
	}
	m := newMember(w, i, "")
	m.cfg.NewCluster, m.cfg.PeerURLs, m.id = false, urls, id
	w.members = append(w.members, m)
	m.restartAfter(w.between(0, 5*w.plan.tick))
}

// findHost looks for a member that can say who is in the cluster, for one that joins.
func (m *member) findHost() bool {
	m.host = nil
	for _, h := range m.w.members {
		if h.n == nil || h == m || m.w.check.removed[h.id] {
			continue
		}
		state := h.n.Cluster().State()
		if _, ok := state.Member(m.id); !ok {
			continue
		}
		var list []string
		for _, o := range state.Members {
			name := "x" + o.ID.String()
			if o.ID == m.id {
				name = m.cfg.Name
			}
			list = append(list, name+"="+o.PeerURLs[0])
		}
		m.host, m.cfg.InitialCluster = h, strings.Join(list, ",")
		return true
	}
	return false
}
