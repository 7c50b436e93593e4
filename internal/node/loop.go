package node

import (
	"time"

	"quorate/internal/consensus"
	"quorate/internal/kv"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// arrival is something that happened for the loop to take note of: one field is set.
type arrival struct {
	appended *raftpb.Message // an Append that is durable now
	applied  *applied
	read     *read
	call     func(*consensus.Core)
}

// applied is an Apply that the state machine holds now, and the changes of the
// membership that were in it.
type applied struct {
	message *raftpb.Message
	changes []*raftpb.ConfChange
}

// appendingMax is how many Appends the log writer has at a time before new proposals
// wait: one that is being synced and one behind it. What arrives meanwhile forms the
// next batch, so that batches grow with the load and no timer is needed.
const appendingMax = 2

// loop is the consensus loop: it owns core and carries out what core wants.
func (n *Node) loop() {
	defer close(n.loopDone)
	ticker := time.NewTicker(n.cfg.Tick)
	defer ticker.Stop()
	n.turn()
	for {
		select {
		case <-n.stopLoop:
			return
		case <-n.failed:
			n.proposals.close(kv.ErrStopped)
			<-n.stopLoop
			return
		case <-n.inbox.wake:
		case now := <-ticker.C:
			n.core.Tick()
			n.proposals.expire(now.Add(-n.cfg.requestTimeout()), kv.ErrTimeout)
			if n.reads.giveUp(now) {
				n.met.SlowReadIndexes.Inc()
			}
		}
		n.turn()
	}
}

// turn takes in what has arrived, lets core decide, and hands its decisions on.
func (n *Node) turn() {
	for _, a := range n.inbox.take() {
		var err error
		switch {
		case a.appended != nil:
			n.appending--
			_, err = n.core.Appended(a.appended)
		case a.applied != nil:
			for _, cc := range a.applied.changes {
				n.core.ApplyConfChange(cc)
			}
			err = n.core.Applied(a.applied.message)
		case a.read != nil:
			n.reads.fresh = append(n.reads.fresh, a.read)
		case a.call != nil:
			a.call(n.core)
		}
		if err != nil {
			n.fail(err)
			return
		}
	}
	n.elect()
	n.reads.ask(n.core)
	n.publish()
	for n.carryOut() || n.proposeBatch() {
	}
	n.reads.finish(n.core.AppliedIndex())
	n.publish()
}

// elect starts an election at once where no other member could be leading.
func (n *Node) elect() {
	if n.core.Sole() && n.core.Leader() == raft.None && n.core.Role() == raft.StateFollower {
		// Refused while a change of the membership waits to be applied; the next turn
		// asks again.
		if err := n.core.Campaign(); err != nil {
			n.log.Warn("could not start an election", "error", err)
		}
	}
}

// proposeBatch gives waiting proposals to core. It reports whether there were any.
func (n *Node) proposeBatch() bool {
	if n.core.Role() != raft.StateLeader || n.appending >= appendingMax {
		return false
	}
	batch := n.proposals.batch()
	if len(batch) == 0 {
		return false
	}
	requests := make([][]byte, len(batch))
	for i, q := range batch {
		requests[i] = q.data
	}
	if err := n.core.Propose(requests); err != nil {
		// Leadership is being handed over; they are in no log, so they can wait.
		n.proposals.requeue(batch)
		return false
	}
	return true
}

// carryOut hands on what core wants done. It reports whether there was anything.
func (n *Node) carryOut() bool {
	rd, ok := n.core.Ready()
	if !ok {
		return false
	}
	if rd.Append != nil {
		n.appending++
		n.appends.put(logWork{write: rd.Append})
	}
	if rd.Apply != nil {
		n.applies.put(rd.Apply)
	}
	for _, r := range rd.Reads {
		n.reads.answered(r)
	}
	return true
}

// publish shows the outside where core stands, and tells the leases when leadership
// begins or ends.
func (n *Node) publish() {
	lead := n.core.Leader()
	if old := n.leader.Swap(lead); old != lead && lead != raft.None {
		n.met.LeaderChanges.Inc()
	}
	n.term.Store(n.core.Term())
	n.committed.Store(n.core.Committed())
	n.alone.Store(n.core.Alone())

	leads := n.core.Leads()
	if leads == n.leading.Load() {
		return
	}
	if leads {
		n.leases.Promote(time.Now(), n.cfg.electionTimeout())
	} else {
		n.leases.Demote()
	}
	n.leading.Store(leads)
	if leads {
		select {
		case n.leads <- struct{}{}:
		default: // the keeper has not seen the last one yet
		}
	}
}
