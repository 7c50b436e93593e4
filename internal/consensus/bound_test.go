package consensus

import (
	"strings"
	"testing"
)

// What a leader appends while nobody acknowledges is bounded, its own proposals and those of
// others, and goes on once somebody does.
func TestUncommittedIsBounded(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	g.elect(1)
	g.settle()
	c := g.cores[1]
	g.cut[2], g.cut[3] = true, true
	large := strings.Repeat("x", 1<<20)
	taken := 0
	for ; taken < 2*uncommittedBytesMax>>20; taken++ {
		if _, _, ok := c.Propose(batch(large)); !ok {
			break
		}
		g.settle()
	}
	if taken != uncommittedBytesMax>>20 {
		t.Errorf("%d MiB are taken that nobody acknowledges, want %d", taken, uncommittedBytesMax>>20)
	}
	h, m, ok := g.cores[2].Propose(batch("of a follower"))
	if !ok || m == nil {
		t.Fatal("a follower has nowhere to send its batch")
	}
	if err := c.take(m); err == nil {
		t.Error("the leader has taken the batch of a follower")
	}
	clear(g.cut)
	for range 20 {
		g.tick()
		g.settle()
	}
	if _, _, ok := c.Propose(batch("again")); !ok {
		t.Error("the leader takes nothing after all is acknowledged")
	}
	if err := c.take(g.cores[2].ProposeAgain(h, batch("of a follower"))); err != nil {
		t.Error(err)
	}
	g.settle()
	if got := g.applied[3]; len(got) != taken+2 || got[taken] != "again" || got[taken+1] != "of a follower" {
		t.Errorf("%d entries are applied, want %d", len(got), taken+2)
	}
}
