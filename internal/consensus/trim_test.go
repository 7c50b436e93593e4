package consensus

import (
	"fmt"
	"testing"
)

// tick lets a tick pass for everybody, and settles.
func (g *group) tick() {
	for _, c := range g.cores {
		if !g.cut[c.cfg.ID] {
			c.Tick()
		}
	}
	g.settle()
}

func TestYoungEntriesAreKept(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	g.elect(1)
	const many = 100 // far more than KeepEntries
	g.cut[3] = true
	for i := range many {
		g.propose(1, fmt.Sprint(i))
		g.settle()
	}
	// Whoever leads can bring a member up to date that has missed them all.
	for _, id := range []uint64{1, 2} {
		if first, lacks := g.cores[id].log.first(), g.cores[3].log.last()+1; first > lacks {
			t.Errorf("member %d keeps entries from %d on, and member 3 needs %d", id, first, lacks)
		}
	}
	for range g.cores[1].cfg.KeepTicks {
		g.tick()
	}
	for _, id := range []uint64{1, 2} {
		if got, most := len(g.cores[id].log.entries), g.cores[id].cfg.KeepEntries; got != most {
			t.Errorf("member %d keeps %d old entries, want %d", id, got, most)
		}
	}

	g = newGroup(t, 1, 2, 3)
	g.elect(1)
	for _, c := range g.cores {
		c.cfg.KeepBytes = 50
	}
	for range many {
		g.propose(1, "0123456789")
		g.settle()
	}
	if l := g.cores[1].log; l.bytes > 50 {
		t.Errorf("%d bytes of young entries are kept", l.bytes)
	}

	g = newGroup(t, 1, 2, 3)
	g.elect(1)
	large := string(make([]byte, 2<<20))
	for _, c := range g.cores {
		c.cfg.KeepBytes = 1 << 30
	}
	for range youngBytesMax >> 20 {
		g.propose(1, large)
		g.settle()
	}
	if l := g.cores[1].log; l.bytes > youngBytesMax || l.bytes < youngBytesMax-2<<20 {
		t.Errorf("%d bytes of young entries are kept, want about %d", l.bytes, youngBytesMax)
	}

	g = newGroup(t, 1)
	g.elect(1)
	for range many {
		g.propose(1, "x")
		g.settle()
	}
	if got, most := len(g.cores[1].log.entries), g.cores[1].cfg.KeepEntries; got > most {
		t.Errorf("a member alone keeps %d entries, want %d at most", got, most)
	}
}

func TestHeirHasAnsweredWithoutABreak(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	g.elect(1)
	for range 20 {
		g.tick()
	}
	for _, cutOff := range []uint64{2, 3} {
		g.cut[cutOff] = true
		for range 15 {
			g.tick()
		}
		g.cut[cutOff] = false
		g.tick()
		g.propose(1, "a") // both have it at once
		g.settle()
		if got, want := g.cores[1].Heir(), 5-cutOff; got != want {
			t.Errorf("the heir is %d, which was cut off until just now; want %d", got, want)
		}
		for range 20 {
			g.tick()
		}
	}
	g.cut[2] = true
	for range 15 {
		g.tick()
	}
	g.cut[2], g.cut[3] = false, true
	g.tick()
	for range 11 { // member 3 is not heard of any more
		g.tick()
	}
	if got := g.cores[1].Heir(); got != 2 {
		t.Errorf("the heir is %d; want 2, the only one that answers", got)
	}
}
