package consensus

import (
	"math"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// The fate rule. A batch of proposals is handed on in one term T: appended by this member
// if it leads, or else sent to T's leader as a MsgProp that carries T. A leader of another
// term does not take it, so the batch can only ever become entries of term T. Once a
// member has applied an entry of a later term, whatever it handed on at T and has not
// applied by then never will be, for terms do not decrease along the log; it may be
// proposed again.
//
// While T lasts, a batch that was sent may be lost with a connection. So the batches that
// one run of a member sends in T are numbered from 1, and the leader takes each number
// once and in order: what may have been lost can be sent again. What the leader remembers
// for that ends with its term, as do the batches.
//
// In a MsgProp, Term is T, Index the number and LogTerm the sender's incarnation. etcd
// sends proposals with none of them, and as a leader minds Term alone; batches that went
// to an etcd are not sent again.

// Handed says where a batch of proposals went.
type Handed struct {
	// Term is the one whose entries the batch can become, and no other's.
	Term uint64
	// Number is above 0 if the batch was sent to another member.
	Number uint64
}

// taken is what the leader has taken of other members in its term.
type taken struct {
	term uint64
	last map[sender]uint64 // number of the last batch
}

type sender struct{ member, incarnation uint64 }

// Propose hands on entries, of which only type and data are set, as one batch: they are
// appended if this member leads, else send is to be sent to the leader. ok is false if
// there is no leader or it is being replaced; then none of the batch is in any log.
func (c *Core) Propose(entries []*raftpb.Entry) (h Handed, send *raftpb.Message, ok bool) {
	st := c.rn.BasicStatus()
	switch {
	case st.RaftState == raft.StateLeader:
		return Handed{Term: st.GetTerm()}, nil, c.append(entries) == nil
	case st.Lead == raft.None:
		return Handed{}, nil, false
	}
	if c.forwarded != st.GetTerm() {
		c.forwarded, c.number = st.GetTerm(), 0
	}
	c.number++
	h = Handed{Term: c.forwarded, Number: c.number}
	return h, c.message(h, st.Lead, entries), true
}

// ProposeAgain is the message that sends a batch once more, nil if its leader has gone.
func (c *Core) ProposeAgain(h Handed, entries []*raftpb.Entry) *raftpb.Message {
	st := c.rn.BasicStatus()
	if st.GetTerm() != h.Term || st.Lead == raft.None || h.Number == 0 {
		return nil
	}
	return c.message(h, st.Lead, entries)
}

func (c *Core) message(h Handed, to uint64, entries []*raftpb.Entry) *raftpb.Message {
	return &raftpb.Message{
		Type: raftpb.MsgProp.Enum(), From: new(c.cfg.ID), To: new(to),
		Term: new(h.Term), Index: new(h.Number), LogTerm: new(c.cfg.Incarnation),
		Entries: entries,
	}
}

// take takes a batch that another member has sent, if it is the next of its sender's.
func (c *Core) take(m *raftpb.Message) error {
	st := c.rn.BasicStatus()
	if m.GetTerm() != st.GetTerm() || st.RaftState != raft.StateLeader {
		return raft.ErrProposalDropped
	}
	if c.taken.term != m.GetTerm() {
		c.taken = taken{term: m.GetTerm(), last: make(map[sender]uint64)}
	}
	from := sender{m.GetFrom(), m.GetLogTerm()}
	if m.GetIndex() != c.taken.last[from]+1 {
		return nil // it was taken already, or one before it is missing and will come again
	}
	// A batch may be empty: all its clients have gone since it was sent first.
	if len(m.Entries) > 0 {
		if err := c.append(m.Entries); err != nil {
			return err
		}
	}
	c.taken.last[from]++
	return nil
}

// held are the proposals of members that are etcd, which wait for a leader: whoever sent
// them neither hears that they were dropped nor sends them again.
type held struct {
	messages []*raftpb.Message
	bytes    int
}

// heldProposalsMax and heldProposalBytesMax bound what is held. What comes beyond is
// dropped, as etcd would have.
const (
	heldProposalsMax     = 4096
	heldProposalBytesMax = 64 << 20
)

func proposalBytes(m *raftpb.Message) (size int) {
	for _, e := range m.Entries {
		size += len(e.Data)
	}
	return size
}

// hold keeps m, a proposal without a term, until release.
func (c *Core) hold(m *raftpb.Message) error {
	size := proposalBytes(m)
	if len(m.Entries) == 0 || len(c.held.messages) >= heldProposalsMax || c.held.bytes+size > heldProposalBytesMax {
		return raft.ErrProposalDropped
	}
	c.held.messages = append(c.held.messages, m)
	c.held.bytes += size
	return nil
}

// release appends what is held, if this member leads, or returns it to be sent to the
// leader. While there is none, or it hands over, it stays.
func (c *Core) release() (send []*raftpb.Message) {
	for len(c.held.messages) > 0 {
		st := c.rn.BasicStatus()
		m := c.held.messages[0]
		switch {
		case st.RaftState == raft.StateLeader:
			// A term begins with the Ready that shows it, without what waited before.
			if c.ledTerm != st.GetTerm() || c.append(m.Entries) != nil {
				return send // or it hands over
			}
		case st.Lead == raft.None:
			return send
		default:
			m.To = new(st.Lead)
			send = append(send, m)
		}
		c.held.messages = c.held.messages[1:]
		c.held.bytes -= proposalBytes(m)
	}
	c.held.messages = nil
	return send
}

// changesMax bounds the changes of the membership that wait for each other: a batch with
// one more is not taken for the time being.
const changesMax = 1000

// append gives entries to Raft, which leads, as one batch. Changes of the membership wait
// until the one before is applied: Raft would replace them by empty entries.
func (c *Core) append(entries []*raftpb.Entry) error {
	if c.Transferring() {
		return raft.ErrProposalDropped
	}
	isNormal := func(e *raftpb.Entry) bool { return e.GetType() == raftpb.EntryNormal }
	isChange := func(e *raftpb.Entry) bool { return !isNormal(e) }
	var changes []*raftpb.Entry
	if slices.ContainsFunc(entries, isChange) {
		if len(c.changes) >= changesMax {
			return raft.ErrProposalDropped
		}
		changes = slices.DeleteFunc(slices.Clone(entries), isNormal)
		entries = slices.DeleteFunc(slices.Clone(entries), isChange)
	}
	// What Raft can refuse comes first: a batch is taken whole or not at all.
	if len(entries) > 0 {
		if err := c.step(entries); err != nil {
			return err
		}
	}
	c.changes = append(c.changes, changes...)
	c.appendChange()
	return nil
}

func (c *Core) step(entries []*raftpb.Entry) error {
	return c.rn.Step(&raftpb.Message{Type: raftpb.MsgProp.Enum(), From: new(c.cfg.ID), Entries: entries})
}

// appendChange gives the next change of the membership to Raft, if none is under way.
func (c *Core) appendChange() {
	if len(c.changes) == 0 || !c.Leads() || c.applied < c.changeIndex || c.Transferring() {
		return
	}
	next := c.changes[:1]
	if c.removesLastVoter(next[0]) {
		next = []*raftpb.Entry{ofNoMember(next[0])}
	}
	if err := c.step(next); err != nil {
		return // it is tried again with the next tick
	}
	c.changeIndex = math.MaxUint64 // until the next Ready shows it
	c.changes = c.changes[1:]
}

// removesLastVoter reports whether e would leave nobody to vote, which ends in a panic of
// Raft. When it was asked for there may have been another voter.
func (c *Core) removesLastVoter(e *raftpb.Entry) bool {
	cc, ok := configChange(e)
	return ok && cc.GetType() == raftpb.ConfChangeRemoveNode && slices.Equal(c.conf.Voters, []uint64{cc.GetNodeId()})
}

// ofNoMember is e, a change of the membership, made one that every member refuses, an etcd
// too: who has asked for it gets an answer.
func ofNoMember(e *raftpb.Entry) *raftpb.Entry {
	cc, ok := configChange(e)
	if !ok {
		return e
	}
	cc.NodeId = new(uint64(raft.None))
	data, err := proto.Marshal(cc)
	if err != nil {
		panic("consensus: encode a change of the membership: " + err.Error()) // it was decoded
	}
	return &raftpb.Entry{Type: e.Type, Data: data}
}

// configChange decodes what an entry carries. The applier stops at one that is malformed.
func configChange(e *raftpb.Entry) (*raftpb.ConfChange, bool) {
	var cc raftpb.ConfChange
	if e.GetType() != raftpb.EntryConfChange || proto.Unmarshal(e.Data, &cc) != nil {
		return nil, false
	}
	return &cc, true
}
