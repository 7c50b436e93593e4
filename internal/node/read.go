package node

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"quorate/internal/consensus"
	"quorate/internal/kv"

	"go.etcd.io/raft/v3"
)

// read is a client that waits until its read is linearizable.
type read struct {
	done chan struct{}
	gone atomic.Bool // it waits no more
}

// reads are the clients that wait for a read index, in the three states they pass. The
// loop owns them. One request is under way at a time: a read that comes after it began
// needs a later one, which all that have come by then share.
type reads struct {
	fresh []*read // nobody was asked for them yet

	asked  []*read // the request under way is theirs
	number uint64  // of that request; 0: none
	at     time.Time

	confirmed []confirmed // wait for an entry to be applied, by index
}

type confirmed struct {
	index uint64
	reads []*read
}

// readRetry is after how long a request that nobody answers is given up.
const readRetry = 500 * time.Millisecond

// ask starts a request for the fresh reads, unless one is under way or nobody leads. It
// reports whether it did.
func (rs *reads) ask(c *consensus.Core) bool {
	if rs.number != 0 || len(rs.fresh) == 0 || c.Leader() == raft.None {
		return false
	}
	rs.asked, rs.fresh = rs.fresh, nil
	rs.number, rs.at = c.ReadIndex(), time.Now()
	return true
}

// answered notes the index for the reads of the request under way.
func (rs *reads) answered(a consensus.ReadIndexAnswer) {
	if rs.number == 0 || a.Number != rs.number {
		return // of a request that was given up
	}
	rs.confirmed = append(rs.confirmed, confirmed{a.Index, rs.asked})
	rs.number, rs.asked = 0, nil
}

// giveUp ends a request that was not answered in time, and reports whether there was one.
func (rs *reads) giveUp(now time.Time) bool {
	if rs.number == 0 || now.Sub(rs.at) <= readRetry {
		return false
	}
	rs.again()
	return true
}

// again ends the request under way, whose leader may not answer it any more, so that its
// reads are asked for once more.
func (rs *reads) again() {
	if rs.number == 0 {
		return
	}
	rs.fresh = append(rs.asked, rs.fresh...)
	rs.number, rs.asked = 0, nil
}

// tidy drops the reads that nobody waits for any more.
func (rs *reads) tidy() {
	gone := func(r *read) bool { return r.gone.Load() }
	rs.fresh = slices.DeleteFunc(rs.fresh, gone)
	rs.asked = slices.DeleteFunc(rs.asked, gone)
	for i := range rs.confirmed {
		rs.confirmed[i].reads = slices.DeleteFunc(rs.confirmed[i].reads, gone)
	}
}

// finish lets the reads go whose index is applied.
func (rs *reads) finish(applied uint64) {
	for len(rs.confirmed) > 0 && rs.confirmed[0].index <= applied {
		for _, r := range rs.confirmed[0].reads {
			close(r.done)
		}
		rs.confirmed = rs.confirmed[1:]
	}
}

// ReadIndex returns once a View taken afterwards holds everything that was acknowledged
// anywhere before the call; or ctx's error, kv.ErrTimeout or kv.ErrStopped.
func (n *Node) ReadIndex(ctx context.Context) error {
	if n.alone.Load() {
		// Whatever was acknowledged was applied here first, and published.
		return nil
	}
	timeout := time.NewTimer(n.cfg.requestTimeout())
	defer timeout.Stop()
	r := &read{done: make(chan struct{})}
	n.inbox.put(arrival{read: r})
	defer r.gone.Store(true)
	select {
	case <-r.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-n.ctx.Done():
		return kv.ErrStopped
	case <-timeout.C:
		n.met.ReadIndexesFailed.Inc()
		return kv.ErrTimeout
	}
}
