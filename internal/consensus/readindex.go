package consensus

import (
	"encoding/binary"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// ReadIndexAnswer says that reads under a request's number, and of any before it, are
// linearizable once entry Index is applied.
type ReadIndexAnswer struct {
	Number uint64
	Index  uint64
}

// questionsMax bounds the questions for a read index that wait for the term's first entry.
// Who asked one that is dropped asks again after a while.
const questionsMax = 1000

// ReadIndex asks which entry must be applied before a read that begins now is
// linearizable. The answer comes with a Ready, under the number returned; it may never
// come (no leader, or the leader changed), so the caller asks again after a while.
func (c *Core) ReadIndex() uint64 {
	c.reads++
	// A question of this member itself is taken in every role.
	_ = c.question(&raftpb.Message{
		Type:    raftpb.MsgReadIndex.Enum(),
		Entries: []*raftpb.Entry{{Data: binary.BigEndian.AppendUint64(nil, c.reads)}},
	})
	return c.reads
}

// question steps m, a MsgReadIndex of this member or of one that follows it. Raft lets a
// leader that is the only voter answer with its commit index at once, even before it has
// committed an entry of its term; but then entries above that index, acknowledged before
// it was last started, are not known to be committed yet. So m waits for that.
func (c *Core) question(m *raftpb.Message) error {
	if !c.mayHideEntries() {
		return c.rn.Step(m)
	}
	if len(c.questions) < questionsMax {
		c.questions = append(c.questions, m)
	}
	return nil
}

// mayHideEntries reports whether this member leads as the only voter and may have
// acknowledged entries above its commit index.
func (c *Core) mayHideEntries() bool {
	if !c.Sole() {
		return false
	}
	st := c.rn.BasicStatus()
	if st.RaftState != raft.StateLeader {
		return false
	}
	return c.termStart == 0 || st.GetCommit() < c.termStart
}

// answerQuestions steps the questions that have waited long enough.
func (c *Core) answerQuestions() {
	if len(c.questions) == 0 || c.mayHideEntries() {
		return
	}
	for _, m := range c.questions {
		// What the role of now cannot answer is asked again.
		_ = c.rn.Step(m)
	}
	c.questions = nil
}
