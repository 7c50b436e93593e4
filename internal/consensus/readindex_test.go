package consensus

import (
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// restarted is a member that was stopped after it had written, and acknowledged, an entry
// that its commit index does not reach yet. It is the only voter; member 2 learns.
func restarted(t *testing.T) *Core {
	t.Helper()
	hard := &raftpb.HardState{Term: new(uint64(3)), Vote: new(uint64(1)), Commit: new(uint64(7))}
	log := NewLog(5, 3, hard, &raftpb.ConfState{Voters: []uint64{1}, Learners: []uint64{2}})
	for i := uint64(6); i <= 8; i++ {
		log.Append([]*raftpb.Entry{{Term: new(uint64(3)), Index: new(i), Data: []byte("x")}})
	}
	cfg := config(1)
	cfg.Applied = 5
	c, err := New(cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A member that was the only voter before it was started again may have acknowledged more
// than its commit index says: it confirms a read, its own or a learner's, once it has
// committed an entry of its new term.
func TestSoleVoterConfirmsNoReadBeforeItsTermHasBegun(t *testing.T) {
	c := restarted(t)
	g := groupOf(t, c)
	g.cut[2] = true
	g.slow[1] = true
	if err := c.Campaign(); err != nil {
		t.Fatal(err)
	}
	// Asked at every point of the election, before Ready shows it and after.
	var numbers []uint64
	ask := func() {
		numbers = append(numbers, c.ReadIndex())
		err := c.Step(&raftpb.Message{
			Type: raftpb.MsgReadIndex.Enum(), From: new(uint64(2)), To: new(uint64(1)),
			Entries: []*raftpb.Entry{{Data: []byte("learner")}},
		})
		if err != nil && c.Leader() != raft.None {
			t.Fatal(err)
		}
	}
	toLearner := func() (answers []uint64) {
		for _, m := range g.inbox {
			if m.GetType() == raftpb.MsgReadIndexResp && m.GetTo() == 2 {
				answers = append(answers, m.GetIndex())
			}
		}
		return answers
	}
	for range 10 {
		g.carryOut(1)
		ask()
	}
	if c.Role() != raft.StateLeader || len(g.appends[1]) != 1 {
		t.Fatalf("role %v with %d writes under way, want a leader with its first entry", c.Role(), len(g.appends[1]))
	}
	if a := g.answers[1]; len(a) != 0 {
		t.Fatalf("reads confirmed at %+v while entry 8 is not known to be committed", a)
	}
	if a := toLearner(); len(a) != 0 {
		t.Fatalf("a learner's reads confirmed at %v while entry 8 is not known to be committed", a)
	}

	g.append(1, g.appends[1][0])
	for g.carryOut(1) {
	}
	answers := g.answers[1]
	if len(answers) == 0 || answers[len(answers)-1].Number != numbers[len(numbers)-1] {
		t.Fatalf("answers %+v, want the last to be for %d", answers, numbers[len(numbers)-1])
	}
	for _, a := range answers {
		if a.Index < 9 {
			t.Errorf("a read is confirmed at %d, before the term's first entry", a.Index)
		}
	}
	learners := toLearner()
	if len(learners) == 0 {
		t.Error("no read of the learner is confirmed")
	}
	for _, index := range learners {
		if index < 9 {
			t.Errorf("a learner's read is confirmed at %d, before the term's first entry", index)
		}
	}
	if len(c.questions) != 0 {
		t.Errorf("%d questions are left", len(c.questions))
	}
}

func TestQuestionsAreBounded(t *testing.T) {
	c := restarted(t)
	g := groupOf(t, c)
	g.cut[2] = true
	g.slow[1] = true
	if err := c.Campaign(); err != nil {
		t.Fatal(err)
	}
	for g.carryOut(1) {
	}
	for range 2 * questionsMax {
		c.ReadIndex()
	}
	if len(c.questions) != questionsMax {
		t.Errorf("%d questions wait, want %d", len(c.questions), questionsMax)
	}
}

// A voter that is removed may acknowledge entries that the leader has committed and not yet
// applied: the leader is not alone before it has applied them, too.
func TestLastVoterIsAloneOnceItHasAppliedWhatOthersMay(t *testing.T) {
	g := newGroup(t, 1, 2)
	g.elect(1)
	data, err := proto.Marshal(&raftpb.ConfChange{Type: raftpb.ConfChangeRemoveNode.Enum(), NodeId: new(uint64(2))})
	if err != nil {
		t.Fatal(err)
	}
	commit := func(ents ...*raftpb.Entry) {
		t.Helper()
		if _, _, ok := g.cores[1].Propose(ents); !ok {
			t.Fatal("not taken")
		}
		g.settle()
		g.appendNext(1)
	}
	g.slow[1] = true
	commit(&raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Data: data})
	commit(batch("a")...)
	g.cores[1].Tick()
	g.settle()
	if len(g.applied[2]) != 1 || len(g.applied[1]) != 0 {
		t.Fatalf("applied %v, want member 2 to be ahead of the leader", g.applied)
	}
	g.applyNext(1)
	if !g.cores[1].Sole() || len(g.applied[1]) != 0 {
		t.Fatalf("sole %v with %q applied, want only the removal to be", g.cores[1].Sole(), g.applied[1])
	}
	if g.cores[1].Alone() {
		t.Error("alone although the removed voter has applied more")
	}
	g.applyNext(1)
	if !g.cores[1].Alone() {
		t.Error("not alone although all is applied")
	}
}

// A learner that serves reads may apply, and show, what is committed before the leader
// does: beside one, nobody is alone.
func TestNobodyIsAloneBesideALearner(t *testing.T) {
	c := restarted(t)
	g := groupOf(t, c)
	g.cut[2] = true
	if err := c.Campaign(); err != nil {
		t.Fatal(err)
	}
	g.settle()
	if !c.Leads() || !c.Sole() || c.Alone() {
		t.Fatalf("with a learner: leads %v, sole %v, alone %v", c.Leads(), c.Sole(), c.Alone())
	}
	data, err := proto.Marshal(&raftpb.ConfChange{Type: raftpb.ConfChangeRemoveNode.Enum(), NodeId: new(uint64(2))})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, ok := c.Propose([]*raftpb.Entry{{Type: raftpb.EntryConfChange.Enum(), Data: data}}); !ok {
		t.Fatal("not taken")
	}
	g.settle()
	if !c.Alone() {
		t.Error("not alone although the learner is removed")
	}
}

// An answer that no question of this member's can have is passed over.
func TestAnswerWithoutANumberIsPassedOver(t *testing.T) {
	g := newGroup(t, 1, 2)
	g.elect(1)
	g.settle()
	c := g.cores[2]
	err := c.Step(&raftpb.Message{
		Type: raftpb.MsgReadIndexResp.Enum(), From: new(uint64(1)), To: new(uint64(2)), Term: new(c.Term()),
		Index: new(uint64(1)), Entries: []*raftpb.Entry{{Data: []byte("short")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	g.settle()
	if len(g.answers[2]) > 0 {
		t.Errorf("answers %v", g.answers[2])
	}
}
