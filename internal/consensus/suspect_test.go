package consensus

import (
	"testing"

	"go.etcd.io/raft/v3"
)

func TestForgottenLeaderIsReplacedWithoutWaiting(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	g.elect(1)
	g.cut[1] = true
	for _, id := range []uint64{2, 3} {
		if !g.cores[id].Suspect(1) {
			t.Fatalf("member %d did not believe that its leader has died", id)
		}
	}
	if g.cores[2].Suspect(3) {
		t.Error("the death of a follower was taken for the leader's")
	}
	if err := g.cores[2].Campaign(); err != nil {
		t.Fatal(err)
	}
	g.settle()
	if g.cores[2].Role() != raft.StateLeader {
		t.Errorf("member 2 is %v without a tick", g.cores[2].Role())
	}
}

// headless is three members whose leader, 1, has died. Those in knows have found out.
func headless(t *testing.T, knows ...uint64) *group {
	g := newGroup(t, 1, 2, 3)
	g.elect(1)
	g.propose(1, "a")
	g.settle()
	g.cut[1] = true
	for _, id := range knows {
		if !g.cores[id].Suspect(1) {
			t.Fatalf("member %d did not believe that its leader has died", id)
		}
	}
	return g
}

func (g *group) campaign(id uint64) {
	g.t.Helper()
	if err := g.cores[id].Campaign(); err != nil {
		g.t.Fatal(err)
	}
	g.settle()
}

func TestEarlyPreVoteIsCastOnceTheDeathIsKnown(t *testing.T) {
	g := headless(t, 2)
	g.campaign(2)
	if g.cores[2].Role() == raft.StateLeader {
		t.Fatal("member 3 gave its pre-vote while it knew a leader")
	}
	if !g.cores[3].Suspect(1) {
		t.Fatal("member 3 did not believe that its leader has died")
	}
	g.settle()
	if g.cores[2].Role() != raft.StateLeader {
		t.Errorf("member 2 is %v: its pre-vote was not cast", g.cores[2].Role())
	}
}

func TestEarlyPreVoteIsForgotten(t *testing.T) {
	g := headless(t, 2)
	g.campaign(2)
	for range earlyTicks {
		g.cores[3].Tick()
	}
	g.cores[3].Suspect(1)
	g.settle()
	if g.cores[2].Role() == raft.StateLeader {
		t.Error("a pre-vote of long ago was cast")
	}
}

func TestLongerLogOutranks(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	g.elect(1)
	g.cut[2] = true
	g.propose(1, "b") // reaches member 3 alone
	g.settle()
	g.cut[1], g.cut[2] = true, false
	for _, id := range []uint64{2, 3} {
		if !g.cores[id].Suspect(1) {
			t.Fatalf("member %d did not believe that its leader has died", id)
		}
	}
	g.campaign(2)
	if g.cores[2].Role() == raft.StateLeader {
		t.Fatal("member 2 leads without an entry that is committed")
	}
	if !g.cores[3].Outranks() {
		t.Fatal("member 3 does not see that its log is longer")
	}
	if g.cores[3].Outranks() || g.cores[2].Outranks() {
		t.Error("it is said twice, or of the shorter log")
	}
	g.campaign(3)
	if g.cores[3].Role() != raft.StateLeader {
		t.Errorf("member 3 is %v", g.cores[3].Role())
	}
	g = headless(t, 2, 3)
	g.campaign(2)
	if g.cores[3].Outranks() {
		t.Error("an equal log is taken for a longer one")
	}
}
