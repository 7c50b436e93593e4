package node

import (
	"slices"
	"time"

	"quorate/internal/kv"
	"quorate/internal/membership"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// arrival is something that happened for the loop to take note of: one field is set.
type arrival struct {
	message  *raftpb.Message // of another member
	appended *raftpb.Message // an Append that is durable now
	applied  *applied
	read     *read
	call     func()
}

// applied is an Apply that the state machine holds now, and the changes of the
// membership that were in it.
type applied struct {
	message *raftpb.Message
	changes []change
}

// change is a committed change of the membership.
type change struct {
	conf   *raftpb.ConfChange // of no member, if it was refused
	member membership.Change  // what it came to; zero if it was refused
}

// appendingMax is how many Appends the log writer has at a time before new proposals
// wait, this member's and those forwarded to it alike: one that is being synced and one
// behind it. What arrives meanwhile forms the next batch, so that batches grow with the
// load and no timer is needed.
const appendingMax = 2

// appending is an Append on its way to the disk.
type appending struct {
	message *raftpb.Message
	durable bool
}

// loopState is what the loop owns beside core.
type loopState struct {
	appending   []appending // with the log writer, oldest first
	appendingAt time.Time   // when the oldest of them was handed over, or came to be the oldest
	reads       reads
	batches     []*batch          // sent to the leader of this term, oldest first
	forwarded   []*raftpb.Message // proposals of other members that wait for their turn
	appliedTerm uint64            // of the last entry applied
	ticked      time.Time

	suspectUntil time.Time // a dead leader is to be replaced at once until then
	campaignAt   time.Time // when to start an election for that
	campaigns    int       // attempts after the first
	campaignTerm uint64    // in which campaignAt was set
	handOverAt   time.Time // not before, a sick leader hands over again
	connected    map[membership.ID]bool
	advanced     bool // the first election was brought forward
}

// loop is the consensus loop: it owns core and carries out what core wants.
func (n *Node) loop() {
	defer close(n.loopDone)
	ticker := time.NewTicker(n.cfg.Tick)
	defer ticker.Stop()
	n.StepLoop()
	for {
		var campaign <-chan time.Time
		if !n.campaignAt.IsZero() {
			campaign = time.After(time.Until(n.campaignAt))
		}
		select {
		case <-n.stopLoop:
			return
		case <-n.failed:
			n.proposals.close(kv.ErrStopped)
			<-n.stopLoop
			return
		case <-n.inbox.wake:
		case <-campaign:
		case <-ticker.C:
			n.Tick()
		}
		n.StepLoop()
	}
}

// Tick passes one tick of time. The loop calls it before a step.
func (n *Node) Tick() {
	now := time.Now()
	paused := !n.ticked.IsZero() && now.Sub(n.ticked) > n.cfg.electionTimeout()/2
	n.ticked = now
	n.core.Tick()
	n.proposals.expire(now.Add(-n.cfg.requestTimeout()), kv.ErrTimeout)
	n.reads.tidy()
	if n.reads.giveUp(now) {
		n.met.SlowReadIndexes.Inc()
	}
	n.batches = n.proposals.open(n.batches)
	if len(n.batches) > 0 && now.Sub(n.batches[0].at) > n.cfg.electionTimeout() {
		n.sendAgain(now)
	}
	n.stepDownIfSick(now, paused)
}

// StepLoop is one turn of the consensus loop: it takes in what has arrived, lets core
// decide, and hands its decisions on.
func (n *Node) StepLoop() {
	for _, a := range n.inbox.take() {
		if err := n.takeIn(a); err != nil {
			n.fail(err)
			return
		}
	}
	n.elect()
	n.publish()
	for asked := true; asked; asked = n.reads.ask(n.core) {
		for n.carryOut() || n.proposeBatch() {
		}
		n.reads.finish(n.core.AppliedIndex())
		n.publish()
	}
}

func (n *Node) takeIn(a arrival) error {
	switch {
	case a.message != nil && a.message.GetType() == raftpb.MsgProp:
		n.forwarded = append(n.forwarded, a.message)
	case a.message != nil:
		n.step(a.message)
	case a.appended != nil:
		return n.appended(a.appended)
	case a.applied != nil:
		for _, ch := range a.applied.changes {
			n.core.ApplyConfChange(ch.conf)
			n.follow(ch.member)
		}
		if ents := a.applied.message.Entries; len(ents) > 0 {
			n.newTerm(ents[len(ents)-1].GetTerm())
		}
		return n.core.Applied(a.applied.message)
	case a.read != nil:
		n.reads.fresh = append(n.reads.fresh, a.read)
	case a.call != nil:
		a.call()
	}
	return nil
}

// step gives a message of another member to core.
func (n *Node) step(m *raftpb.Message) {
	n.received.Add(-messageBytes(m))
	if err := n.core.Step(m); err != nil {
		n.log.Debug("message not taken", "type", m.GetType().String(), "from", membership.ID(m.GetFrom()).String(), "error", err)
	}
}

// appended takes note that m is durable. The log writer may be done with what comes after
// a snapshot before the applier has installed that, but Raft hears of all in order.
func (n *Node) appended(m *raftpb.Message) error {
	for i := range n.appending {
		if n.appending[i].message == m {
			n.appending[i].durable = true
			break
		}
	}
	for len(n.appending) > 0 && n.appending[0].durable {
		m := n.appending[0].message
		n.appending = slices.Delete(n.appending, 0, 1)
		n.appendingAt = time.Now()
		send, err := n.core.Appended(m)
		if err != nil {
			return err
		}
		n.network.Send(send)
		if snap := m.Snapshot; !raft.IsEmptySnap(snap) {
			n.newTerm(snap.GetMetadata().GetTerm())
			n.reconnect()
		}
	}
	return nil
}

// newTerm notes that an entry of term is applied, and everything before it.
func (n *Node) newTerm(term uint64) {
	if term > n.appliedTerm {
		n.appliedTerm = term
		n.proposals.reclaim(term)
	}
}

// elect starts an election at once where no other member could be leading, or where the
// leader's process has died.
func (n *Node) elect() {
	if !n.core.Leaderless() {
		n.suspectUntil, n.campaignAt = time.Time{}, time.Time{}
		return
	}
	now := time.Now()
	if n.core.Outranks() && now.Before(n.suspectUntil) {
		n.campaignAt = now // whoever was to be first cannot win
	}
	switch {
	case n.core.Sole() && n.core.Role() == raft.StateFollower:
	case !n.campaignAt.IsZero() && !now.Before(n.campaignAt):
		n.campaignAt = time.Time{}
		if now.Before(n.suspectUntil) {
			n.campaignAgain(now)
		}
		if term := n.core.Term(); term != n.campaignTerm {
			n.campaignTerm = term
			return // an election is under way since; it takes as long as the disks do
		}
	default:
		return
	}
	// Refused while a change of the membership waits to be applied; it is tried again.
	if err := n.core.Campaign(); err != nil {
		n.log.Warn("could not start an election", "error", err)
	}
}

const (
	// campaignStep is by how much each voter lets those before it go first when a leader
	// has died: long enough for them to win, so that rarely two ask for votes at once.
	campaignStep = 20 * time.Millisecond
	// campaignPause is how long the second attempt waits at least; it doubles with each.
	campaignPause = 60 * time.Millisecond
)

// campaignFirst sets the time of the first election for the place of lead, in the order of
// the voters' ids.
func (n *Node) campaignFirst(now time.Time, lead membership.ID) {
	rank := time.Duration(0)
	for _, m := range n.cluster.State().Voters() {
		if uint64(m.ID) < n.id && m.ID != lead {
			rank++
		}
	}
	n.campaigns, n.campaignTerm = 0, n.core.Term()
	n.campaignAt = now.Add(rank*campaignStep + randomBelow(time.Millisecond))
}

// campaignAgain sets the time of the next election: others may need a moment to find out,
// too, and refuse their vote until then, or two have asked for votes at once.
func (n *Node) campaignAgain(now time.Time) {
	pause := campaignPause << min(n.campaigns, 4)
	n.campaigns++
	n.campaignAt = now.Add(pause + randomBelow(pause))
}

// suspect is called when a member's process has died or the member was removed.
func (n *Node) suspect(id membership.ID) {
	if !n.core.Suspect(uint64(id)) {
		return
	}
	n.log.Warn("the leader has gone; electing another", "leader", id.String())
	now := time.Now()
	n.suspectUntil = now.Add(n.cfg.electionTimeout())
	n.campaignFirst(now, id)
}

// proposeBatch gives waiting proposals to core: those that other members have forwarded,
// then this member's own. It reports whether there were any.
func (n *Node) proposeBatch() bool {
	leads := n.core.Role() == raft.StateLeader
	if n.core.Transferring() || leads && len(n.appending) >= appendingMax {
		return false
	}
	forwarded := n.forwarded
	n.forwarded = nil
	for _, m := range forwarded {
		n.step(m)
	}
	return n.proposeOwn(leads) || len(forwarded) > 0
}

// proposeOwn hands on this member's own proposals. It reports whether there were any.
func (n *Node) proposeOwn(leads bool) bool {
	if n.core.Leader() == raft.None {
		return false
	}
	term := uint64(0)
	if leads {
		term = n.core.Term()
	}
	taken := n.proposals.batch(term)
	if len(taken) == 0 {
		return false
	}
	h, send, ok := n.core.Propose(entries(taken))
	if !ok {
		// Leadership is being handed over; they are in no log, so they can wait.
		n.proposals.requeue(taken)
		return false
	}
	now := time.Now()
	b := n.proposals.handed(taken, h, now)
	if send != nil {
		n.batches = append(n.batches, b)
		n.network.Send([]*raftpb.Message{send})
	}
	return true
}

func entries(taken []queued) []*raftpb.Entry {
	list := make([]raftpb.Entry, len(taken))
	ptrs := make([]*raftpb.Entry, len(taken))
	for i, q := range taken {
		list[i].Data = q.data
		if q.kind != raftpb.EntryNormal {
			list[i].Type = q.kind.Enum()
		}
		ptrs[i] = &list[i]
	}
	return ptrs
}

// sendAgain sends the leader of this term whatever may not have reached it.
func (n *Node) sendAgain(now time.Time) {
	lead := n.core.Leader()
	if lead == raft.None || !n.network.IsQuorate(membership.ID(lead)) {
		return
	}
	n.batches = n.proposals.open(n.batches)
	for _, b := range n.batches {
		b.at = now
		if m := n.core.ProposeAgain(b.handed, entries(n.proposals.again(b))); m != nil {
			n.network.Send([]*raftpb.Message{m})
		}
	}
}

// carryOut hands on what core wants done. It reports whether there was anything.
func (n *Node) carryOut() bool {
	rd, ok := n.core.Ready()
	if !ok {
		return false
	}
	n.send(rd.Send)
	if rd.Append != nil {
		if n.appending = append(n.appending, appending{message: rd.Append}); len(n.appending) == 1 {
			n.appendingAt = time.Now()
		}
		n.appends.put(logWork{write: rd.Append})
	}
	if rd.Apply != nil {
		if n.cfg.OnCommit != nil {
			n.cfg.OnCommit(rd.Apply.Entries)
		}
		n.applies.put(applyWork{entries: rd.Apply})
	}
	for _, r := range rd.Reads {
		n.reads.answered(r)
	}
	return true
}

// send sends messages to peers. Snapshots are made and sent in the background.
func (n *Node) send(ms []*raftpb.Message) {
	rest := ms[:0]
	for _, m := range ms {
		if m.GetType() == raftpb.MsgSnap {
			n.background.Go(func() { n.sendSnapshot(m) })
			continue
		}
		rest = append(rest, m)
	}
	if len(rest) > 0 {
		n.network.Send(rest)
	}
}

// publish shows the outside where core stands, and tells the leases when leadership
// begins or ends. What waits for an answer of another leader or term is asked for again.
func (n *Node) publish() {
	lead, term := n.core.Leader(), n.core.Term()
	oldLead, oldTerm := n.leader.Swap(lead), n.term.Swap(term)
	if oldLead != lead && lead != raft.None {
		n.met.LeaderChanges.Inc()
	}
	if oldLead != lead || oldTerm != term {
		n.reads.again()
		n.batches = slices.DeleteFunc(n.batches, func(b *batch) bool { return b.handed.Term != term })
	}
	n.committed.Store(n.core.Committed())
	n.alone.Store(n.core.Alone())
	n.learner.Store(n.core.IsLearner())

	leads := n.core.Leads()
	if leads == n.leading.Load() {
		return
	}
	if leads {
		n.lessor().Promote(time.Now(), n.cfg.electionTimeout())
	} else {
		n.lessor().Demote()
	}
	n.leading.Store(leads)
	if leads {
		select {
		case n.leads <- struct{}{}:
		default: // the keeper has not seen the last one yet
		}
	}
}

// stepDownIfSick hands leadership over where this member cannot serve it: its log's disk
// has not answered for half an election timeout, or the whole process was paused. It
// takes a healthy member to take over; where all are as slow, things stay as they are.
func (n *Node) stepDownIfSick(now time.Time, paused bool) {
	stuck := len(n.appending) > 0 && now.Sub(n.appendingAt) > n.cfg.electionTimeout()/2
	if !paused && !stuck || n.core.Role() != raft.StateLeader || n.core.Transferring() || now.Before(n.handOverAt) {
		return
	}
	heir := n.core.Heir()
	if heir == raft.None {
		return
	}
	n.handOverAt = now.Add(handOverPause * n.cfg.electionTimeout())
	n.log.Warn("this leader is slow and hands over", "to", membership.ID(heir).String(), "log-stuck", stuck, "paused", paused)
	n.core.TransferLeader(heir)
}

// handOverPause is for how many election timeouts a leader that found itself sick does
// not look again.
const handOverPause = 10
