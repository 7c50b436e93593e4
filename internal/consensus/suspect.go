package consensus

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// When a leader's process dies, its followers find out at moments that differ a little, and
// their logs may differ by what it sent last. Neither shall cost the election a second
// attempt: a pre-vote that is asked for a moment too early is cast once this member has
// found out, too (Raft alone would let it go unanswered), and a member that refuses one
// because its own log is longer is told so by Outranks, to ask for votes itself.

// earlyTicks is for how many ticks a pre-vote that came too early is kept.
const earlyTicks = 2

// Suspect says that a member's process has ended. It reports whether that member led; then
// it is forgotten, so that an election (Campaign) need not wait for the leader's silence.
func (c *Core) Suspect(id uint64) bool {
	st := c.rn.BasicStatus()
	if st.Lead != id || st.RaftState == raft.StateLeader {
		return false
	}
	// Refused with lease-based reads alone, which are not used.
	if c.rn.ForgetLeader() != nil {
		return false
	}
	c.outranks = false // of an election gone by
	if m := c.early; m != nil {
		c.early = nil
		// A message may come late; Raft's reasons not to take it are as good now.
		_ = c.preVote(m)
	}
	return true
}

// preVote takes a request for a pre-vote.
func (c *Core) preVote(m *raftpb.Message) error {
	switch st := c.rn.BasicStatus(); {
	case st.Lead != raft.None:
		c.early, c.earlyTicks = m, earlyTicks
	case m.GetTerm() > st.GetTerm():
		last := c.log.last()
		term, err := c.log.Term(last)
		c.outranks = err == nil && (term > m.GetLogTerm() || term == m.GetLogTerm() && last > m.GetIndex())
	}
	return c.rn.Step(m)
}

// Outranks reports, once, whether this member has refused a pre-vote because its own log
// is longer: whoever asked cannot win an election without it.
func (c *Core) Outranks() bool {
	yes := c.outranks
	c.outranks = false
	return yes
}

// tickEarly forgets a pre-vote whose time has passed.
func (c *Core) tickEarly() {
	if c.earlyTicks--; c.earlyTicks <= 0 {
		c.early = nil
	}
}
