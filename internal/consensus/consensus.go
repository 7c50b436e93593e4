// Package consensus decides the order of a cluster's log: raft.RawNode, stepped by
// messages and ticks, with writes to storage as messages of their own
// (AsyncStorageWrites).
//
// Core does no I/O, reads no clock and starts no goroutine: the same inputs give the same
// outputs. The node's loop owns it, carries out what Ready returns, and brings back what
// became of it with Appended and Applied.
package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
)

// Config configures a Core.
type Config struct {
	ID             uint64 // this member
	ElectionTicks  int    // ticks without a leader before an election
	HeartbeatTicks int
	PreVote        bool
	Applied        uint64 // last entry that the state machine holds
	Logger         raft.Logger

	// Incarnation tells this run of the member from earlier ones and from other members:
	// no two may have the same.
	Incarnation uint64

	// KeepEntries and KeepBytes bound the applied entries that are kept in memory so that
	// a follower can catch up without a snapshot. More than KeepEntries are kept for
	// KeepTicks after they were applied, if they are not too large.
	KeepEntries int
	KeepBytes   int64
	KeepTicks   int
}

const (
	// messageBytesMax bounds the entries of one append message (etcd's value).
	messageBytesMax = 1 << 20
	// inflightMax bounds the append messages that one follower has not answered (etcd's value).
	inflightMax = 512
	// uncommittedBytesMax bounds what a leader appends that nobody acknowledges or that is not
	// applied yet. What comes beyond waits where it came from.
	uncommittedBytesMax = 128 << 20

	// applyingBytesMax bounds committed entries handed to the applier and not yet applied.
	applyingBytesMax = 64 << 20
)

// Core is one member's part in Raft.
type Core struct {
	cfg Config
	rn  *raft.RawNode
	log *Log

	// As of the last Ready.
	role      raft.StateType
	term      uint64
	lead      uint64
	committed uint64

	conf      *raftpb.ConfState
	soleFrom  uint64            // entry that must be applied before this member, the only voter, is alone
	reads     uint64            // last read request's number
	questions []*raftpb.Message // for a read index, that wait for the term's first entry

	forwarded uint64 // term of the batches that were sent to its leader
	number    uint64 // of the last of them
	taken     taken
	held      held

	changes     []*raftpb.Entry // of the membership, to be appended in the term that this member leads
	changeIndex uint64          // of the last that was

	early      *raftpb.Message // a pre-vote that was asked for while a leader was known
	earlyTicks int             // for how long it is kept
	outranks   bool

	contacts contacts
	ages     ages
	sending  map[uint64]*sending // snapshots, by member

	// ledTerm is the term that this member leads, and termStart that term's first entry;
	// 0 while it leads none.
	ledTerm   uint64
	termStart uint64
	applied   uint64
}

// New returns a Core that continues log.
func New(cfg Config, log *Log) (*Core, error) {
	rn, err := raft.NewRawNode(&raft.Config{
		ID:                        cfg.ID,
		ElectionTick:              cfg.ElectionTicks,
		HeartbeatTick:             cfg.HeartbeatTicks,
		Storage:                   log,
		Applied:                   cfg.Applied,
		AsyncStorageWrites:        true,
		MaxSizePerMsg:             messageBytesMax,
		MaxCommittedSizePerReady:  applyingBytesMax,
		MaxInflightMsgs:           inflightMax,
		MaxUncommittedEntriesSize: uncommittedBytesMax,
		CheckQuorum:               true,
		PreVote:                   cfg.PreVote,
		DisableProposalForwarding: true,
		StepDownOnRemoval:         true,
		Logger:                    cfg.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("start raft: %w", err)
	}
	c := &Core{
		cfg: cfg, rn: rn, log: log, conf: log.conf, applied: cfg.Applied,
		reads: cfg.Incarnation, sending: make(map[uint64]*sending),
		contacts: contacts{of: make(map[uint64]contact)},
		ages:     ages{applied: make([]uint64, cfg.KeepTicks)},
	}
	c.term, c.committed = log.hard.GetTerm(), log.hard.GetCommit()
	log.busy = func() bool { return len(c.sending) >= snapshotsMax }
	return c, nil
}

// Bootstrap writes the first entries of a new cluster: one addition for each member.
func (c *Core) Bootstrap(peers []raft.Peer) error {
	if err := c.rn.Bootstrap(peers); err != nil {
		return fmt.Errorf("bootstrap raft: %w", err)
	}
	for _, p := range peers {
		c.conf.Voters = append(c.conf.Voters, p.ID)
	}
	return nil
}

// observe notes what a Ready says about role, leader, term and commit index.
func (c *Core) observe(rd *raft.Ready) {
	if hs := rd.HardState; !raft.IsEmptyHardState(hs) {
		c.term, c.committed = hs.GetTerm(), hs.GetCommit()
	}
	if rd.SoftState != nil {
		c.role, c.lead = rd.SoftState.RaftState, rd.SoftState.Lead
	}
	switch {
	case c.role != raft.StateLeader:
		c.ledTerm, c.termStart, c.changes, c.changeIndex = 0, 0, nil, 0
	case c.ledTerm != c.term:
		c.ledTerm, c.termStart, c.changes, c.changeIndex = c.term, 0, nil, 0
		// A new leader's first entry in its term is an empty one of its own.
		for _, e := range rd.Entries {
			if e.GetTerm() == c.term {
				c.termStart = e.GetIndex()
				break
			}
		}
	}
}

// findChange notes the index of the change of the membership that was appended last.
func (c *Core) findChange(ents []*raftpb.Entry) {
	if c.changeIndex != math.MaxUint64 {
		return
	}
	for _, e := range ents {
		if e.GetType() != raftpb.EntryNormal {
			c.changeIndex = e.GetIndex()
		}
	}
}

// Role, Term and Leader say where this member stood at the last Ready; Leader is 0 while
// none is known.
func (c *Core) Role() raft.StateType { return c.role }
func (c *Core) Term() uint64         { return c.term }
func (c *Core) Leader() uint64       { return c.lead }

// Leaderless reports whether no leader is known now, after what was stepped since the
// last Ready.
func (c *Core) Leaderless() bool { return c.rn.BasicStatus().Lead == raft.None }

// Committed is the highest entry known to be committed.
func (c *Core) Committed() uint64 { return c.committed }

// AppliedIndex is the last entry that the state machine holds.
func (c *Core) AppliedIndex() uint64 { return c.applied }

// Leads reports whether this member leads and has applied everything of earlier terms.
func (c *Core) Leads() bool { return c.termStart != 0 && c.applied >= c.termStart }

// Sole reports whether this member is the only voter.
func (c *Core) Sole() bool {
	return len(c.conf.Voters) == 1 && c.conf.Voters[0] == c.cfg.ID && len(c.conf.VotersOutgoing) == 0
}

// IsLearner reports whether this member has no vote.
func (c *Core) IsLearner() bool { return slices.Contains(c.conf.Learners, c.cfg.ID) }

// Alone reports whether this member leads, is the only member, and has applied whatever a
// voter before it may have acknowledged: then what it has applied is all that anyone has
// acknowledged or shown, and a read needs to ask nobody. A learner may apply, and show, what
// is committed before the leader does.
func (c *Core) Alone() bool {
	return c.Leads() && c.Sole() && len(c.conf.Learners) == 0 && c.applied >= c.soleFrom
}

// Tick passes one tick of time.
func (c *Core) Tick() {
	c.rn.Tick()
	c.tickEarly()
	c.contacts.now++
	c.ages.tick(c.applied)
	c.tickSnapshots()
	c.trim()
	c.appendChange()
}

// Campaign starts an election now.
func (c *Core) Campaign() error { return c.rn.Campaign() }

// Step takes a message of a peer. Its errors say why Raft did not; none is a fault of
// this member.
func (c *Core) Step(m *raftpb.Message) error {
	switch {
	case m.GetType() == raftpb.MsgPreVote:
		return c.preVote(m)
	case m.GetType() == raftpb.MsgHeartbeatResp:
		c.contacts.answered(m.GetFrom(), 3*c.cfg.HeartbeatTicks)
		return c.rn.Step(m)
	case m.GetType() == raftpb.MsgReadIndex:
		return c.question(m)
	case m.GetType() != raftpb.MsgProp:
		return c.rn.Step(m)
	case m.GetTerm() != 0:
		return c.take(m)
	}
	return c.hold(m)
}

// Unreachable says that messages to a member were lost.
func (c *Core) Unreachable(id uint64) { c.rn.ReportUnreachable(id) }

// ApplyConfChange makes a committed change of the membership effective, and returns the
// configuration after it. It must be called before Applied for the entry that carries it.
func (c *Core) ApplyConfChange(cc *raftpb.ConfChange) *raftpb.ConfState {
	c.conf = c.rn.ApplyConfChange(cc)
	c.log.conf = c.conf
	if c.Sole() {
		c.soleFrom = max(c.soleFrom, c.rn.BasicStatus().GetCommit())
	}
	return c.conf
}

// TransferLeader hands leadership to a voter, if this member has it.
func (c *Core) TransferLeader(to uint64) { c.rn.TransferLeader(to) }

// Transferring reports whether leadership is being handed over.
func (c *Core) Transferring() bool { return c.rn.BasicStatus().LeadTransferee != raft.None }

// Heir is the voter that can best take over from this member, which leads: one that has
// answered without a break for an election timeout if there is any, for one that was cut
// off until just now may not reach the others yet; and then the one that lacks the fewest
// entries. Only those are asked that were heard of lately. 0: there is none.
func (c *Core) Heir() (heir uint64) {
	var match uint64
	steady := false
	c.rn.WithProgress(func(id uint64, kind raft.ProgressType, pr tracker.Progress) {
		if id == c.cfg.ID || kind != raft.ProgressTypePeer || !pr.RecentActive || pr.State != tracker.StateReplicate {
			return
		}
		s := c.contacts.steady(id, c.cfg.ElectionTicks)
		if heir == 0 || s && !steady || s == steady && pr.Match > match {
			heir, match, steady = id, pr.Match, s
		}
	})
	return heir
}

// CaughtUp reports whether a member has nearly everything (nine tenths, as in etcd) that
// this one, the leader, has.
func (c *Core) CaughtUp(id uint64) bool {
	var own, match uint64
	c.rn.WithProgress(func(of uint64, _ raft.ProgressType, pr tracker.Progress) {
		switch of {
		case c.cfg.ID:
			own = pr.Match
		case id:
			match = pr.Match
		}
	})
	return float64(match) > float64(own)*0.9
}

// Ready is what a Core wants done.
type Ready struct {
	// Append is a write to the durable log; its responses go to Appended. Where it has a
	// snapshot, that one's state must take the place of the state machine's, too.
	Append *raftpb.Message
	// Apply holds committed entries for the state machine; its responses go to Applied.
	Apply *raftpb.Message
	// Send are messages to peers, to be sent at once. A MsgSnap asks for the newest state
	// there is, whatever its metadata says; SnapshotSent must follow.
	Send []*raftpb.Message
	// Reads are answers to ReadIndex.
	Reads []ReadIndexAnswer
}

// Ready returns what has to be done, and whether there is anything. Appends must be
// carried out in the order they are returned, and so must applies; the two may overlap.
func (c *Core) Ready() (Ready, bool) {
	out := Ready{Send: c.release()}
	c.answerQuestions()
	if !c.rn.HasReady() {
		return out, len(out.Send) > 0
	}
	rd := c.rn.Ready()
	for _, m := range rd.Messages {
		switch m.GetTo() {
		case raft.LocalAppendThread:
			out.Append = m
		case raft.LocalApplyThread:
			out.Apply = m
		default:
			if m.GetType() == raftpb.MsgSnap {
				c.sending[m.GetTo()] = &sending{from: m.Snapshot.GetMetadata().GetIndex()}
			}
			out.Send = append(out.Send, m)
		}
	}
	for _, rs := range rd.ReadStates {
		if len(rs.RequestCtx) != 8 {
			continue // nothing that was asked here
		}
		out.Reads = append(out.Reads, ReadIndexAnswer{Number: binary.BigEndian.Uint64(rs.RequestCtx), Index: rs.Index})
	}
	c.observe(&rd)
	c.findChange(rd.Entries)
	return out, true
}

// Appended takes back an Append that is durable now, and whose snapshot, if it has one,
// is the state machine's state. It returns the messages to peers that had to wait for that.
func (c *Core) Appended(m *raftpb.Message) (send []*raftpb.Message, err error) {
	if !raft.IsEmptySnap(m.Snapshot) {
		meta := m.Snapshot.GetMetadata()
		c.log.restore(meta)
		c.conf, c.applied = meta.GetConfState(), meta.GetIndex()
	}
	c.log.Append(m.Entries)
	return c.respond(m)
}

// Applied takes back an Apply that the state machine holds now.
func (c *Core) Applied(m *raftpb.Message) error {
	if n := len(m.Entries); n > 0 {
		c.applied = m.Entries[n-1].GetIndex()
	}
	if _, err := c.respond(m); err != nil {
		return err
	}
	c.trim()
	c.appendChange()
	return nil
}

func (c *Core) respond(m *raftpb.Message) (send []*raftpb.Message, err error) {
	for _, r := range m.Responses {
		if r.GetTo() != c.cfg.ID {
			send = append(send, r)
			continue
		}
		// A member that was removed does not know itself any more.
		if err := c.rn.Step(r); err != nil && !errors.Is(err, raft.ErrStepPeerNotFound) {
			return nil, fmt.Errorf("step %s: %w", r.GetType(), err)
		}
	}
	return send, nil
}

// HardState is the term, vote and commit index that m, an Append, asks to be written, or
// nil if they did not change.
func HardState(m *raftpb.Message) *raftpb.HardState {
	if m.Term == nil && m.Vote == nil && m.Commit == nil {
		return nil
	}
	return &raftpb.HardState{Term: m.Term, Vote: m.Vote, Commit: m.Commit}
}

// MustSync reports whether m, an Append, must be on disk before its responses are sent:
// all but a commit index alone, which Raft finds again by itself. prev is the hard state
// written before.
func MustSync(m *raftpb.Message, prev *raftpb.HardState) bool {
	hs := HardState(m)
	return len(m.Entries) > 0 || hs != nil && (hs.GetTerm() != prev.GetTerm() || hs.GetVote() != prev.GetVote())
}
