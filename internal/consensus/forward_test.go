package consensus

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

func TestFollowersBatchIsAppliedOnce(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	g.elect(2)
	h := g.propose(1, "a", "b")
	if h.Number != 1 || h.Term != g.cores[2].Term() {
		t.Fatalf("handed %+v, want number 1 in term %d", h, g.cores[2].Term())
	}
	again := g.cores[1].ProposeAgain(h, batch("a", "b"))
	g.inbox = append(g.inbox, again, again)
	g.propose(1, "c")
	g.settle()
	if want := []string{"a", "b", "c"}; !slices.Equal(g.applied[2], want) {
		t.Errorf("applied %q, want %q", g.applied[2], want)
	}
}

func TestBatchAfterALostOneWaitsForIt(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	g.elect(2)
	first := g.propose(1, "a")
	g.inbox = nil // lost
	second := g.propose(1, "b")
	g.settle()
	if len(g.applied[2]) != 0 {
		t.Fatalf("applied %q although the batch before is missing", g.applied[2])
	}
	g.inbox = append(g.inbox, g.cores[1].ProposeAgain(first, batch("a")), g.cores[1].ProposeAgain(second, batch("b")))
	g.settle()
	if want := []string{"a", "b"}; !slices.Equal(g.applied[2], want) {
		t.Errorf("applied %q, want %q", g.applied[2], want)
	}
}

// A batch whose clients have all gone is sent again without entries, so that those after
// it are taken.
func TestEmptyBatchFillsItsPlace(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	g.elect(2)
	first := g.propose(1, "a")
	g.inbox = nil
	g.propose(1, "b")
	g.inbox = append([]*raftpb.Message{g.cores[1].ProposeAgain(first, nil)}, g.inbox...)
	g.settle()
	if want := []string{"b"}; !slices.Equal(g.applied[2], want) {
		t.Errorf("applied %q, want %q", g.applied[2], want)
	}
}

func TestNextTermTakesNoBatchOfTheLast(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	g.elect(2)
	old := g.propose(1, "old")
	late := g.inbox
	g.inbox = nil
	g.elect(3)
	g.elect(2) // the same leader, but another term
	g.inbox = late
	g.settle()
	if len(g.applied[2]) != 0 {
		t.Errorf("applied %q, which was proposed in an earlier term", g.applied[2])
	}
	if m := g.cores[1].ProposeAgain(old, batch("old")); m != nil {
		t.Errorf("a batch of term %d is sent again in term %d", old.Term, g.cores[1].Term())
	}
}

// A member that was started anew counts from 1 again; what it sends is not taken for what
// it had sent before.
func TestRestartedSenderIsAnother(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	g.elect(2)
	g.propose(1, "a")
	g.settle()
	g.cores[1].cfg.Incarnation++
	g.cores[1].number = 0
	g.propose(1, "b")
	g.settle()
	if want := []string{"a", "b"}; !slices.Equal(g.applied[2], want) {
		t.Errorf("applied %q, want %q", g.applied[2], want)
	}
}

// etcd forwards without a term. Such a batch is taken whenever it comes.
func TestUntaggedProposalIsTaken(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	g.elect(2)
	g.inbox = append(g.inbox, &raftpb.Message{Type: raftpb.MsgProp.Enum(), From: new(uint64(1)), To: new(uint64(2)), Entries: batch("a")})
	g.settle()
	if want := []string{"a"}; !slices.Equal(g.applied[2], want) {
		t.Errorf("applied %q, want %q", g.applied[2], want)
	}
}

// What an etcd sends to a leader that is just handing over, or has, reaches the next one.
func TestUntaggedProposalOutlivesAHandOver(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	g.elect(2)
	untagged := func(data string) *raftpb.Message {
		return &raftpb.Message{Type: raftpb.MsgProp.Enum(), From: new(uint64(1)), To: new(uint64(2)), Entries: batch(data)}
	}
	g.cores[2].TransferLeader(3)
	if err := g.cores[2].Step(untagged("during")); err != nil {
		t.Fatal(err)
	}
	g.settle()
	g.inbox = append(g.inbox, untagged("after"))
	g.settle()
	g.cores[3].Tick()
	g.settle()
	if g.cores[3].Role() != raft.StateLeader {
		t.Fatal("leadership was not handed over")
	}
	if want := []string{"during", "after"}; !slices.Equal(g.applied[1], want) {
		t.Errorf("applied %q, want %q", g.applied[1], want)
	}
}

// A change of the membership that an etcd has proposed may wait for this member's own
// election.
func TestUntaggedChangeWaitsForTheTerm(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	g.elect(2)
	g.cut = map[uint64]bool{2: true, 7: true}
	for _, id := range []uint64{1, 3} {
		g.cores[id].Suspect(2)
	}
	data, err := proto.Marshal(&raftpb.ConfChange{Type: raftpb.ConfChangeAddLearnerNode.Enum(), NodeId: new(uint64(7))})
	if err != nil {
		t.Fatal(err)
	}
	change := &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Data: data}
	err = g.cores[3].Step(&raftpb.Message{Type: raftpb.MsgProp.Enum(), From: new(uint64(1)), To: new(uint64(3)), Entries: []*raftpb.Entry{change}})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.cores[3].Campaign(); err != nil {
		t.Fatal(err)
	}
	g.settle()
	if got := g.cores[3].conf.Learners; g.cores[3].Role() != raft.StateLeader || !slices.Equal(got, []uint64{7}) {
		t.Errorf("role %v, learners %v; want the leader with learner 7", g.cores[3].Role(), got)
	}
}

func TestLeaderThatHandsOverTakesNothing(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	g.elect(2)
	g.cut[3] = true
	g.cores[2].TransferLeader(3) // cannot answer
	if !g.cores[2].Transferring() {
		t.Fatal("no transfer under way")
	}
	if _, _, ok := g.cores[2].Propose(batch("local")); ok {
		t.Error("a leader that hands over took a proposal")
	}
	h := g.propose(1, "a")
	g.settle()
	for range config(2).ElectionTicks { // the transfer is given up
		g.cores[2].Tick()
		g.settle()
	}
	if g.cores[2].Role() != raft.StateLeader || g.cores[2].Transferring() {
		t.Fatal("the leader did not give the transfer up")
	}
	if len(g.applied[2]) != 0 {
		t.Fatalf("applied %q", g.applied[2])
	}
	g.inbox = append(g.inbox, g.cores[1].ProposeAgain(h, batch("a")))
	g.settle()
	if want := []string{"a"}; !slices.Equal(g.applied[2], want) {
		t.Errorf("applied %q, want %q", g.applied[2], want)
	}
}

// TestFate has members propose through changes of leader, partitions and loss, and
// propose again whatever the rule says can never be applied. Everything must be applied
// exactly once.
func TestFate(t *testing.T) {
	seeds := 300
	if testing.Short() {
		seeds = 30
	}
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { fate(t, seed) })
	}
}

type handedOn struct {
	Handed
	data []string
}

func fate(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 1))
	ids := []uint64{1, 2, 3}
	g := newGroup(t, ids...)
	for _, c := range g.cores {
		c.cfg.KeepEntries = 1 << 20 // no member shall need a snapshot
	}
	open := map[uint64][]handedOn{} // by proposer
	waiting := map[uint64][]string{}
	var proposed []string

	// give hands on what waits at a member, if there is a leader.
	give := func(id uint64) {
		if len(waiting[id]) == 0 {
			return
		}
		h, send, ok := g.cores[id].Propose(batch(waiting[id]...))
		if !ok {
			return
		}
		if send != nil {
			g.inbox = append(g.inbox, send)
		}
		open[id] = append(open[id], handedOn{h, waiting[id]})
		waiting[id] = nil
	}
	// judge takes back what was handed on in a term below that of the last entry applied.
	judge := func(id, appliedTerm uint64) {
		var left []handedOn
		for _, o := range open[id] {
			missing := slices.DeleteFunc(slices.Clone(o.data), func(d string) bool { return slices.Contains(g.applied[id], d) })
			switch {
			case len(missing) == 0:
			case o.Term < appliedTerm:
				waiting[id] = append(waiting[id], missing...)
			default:
				left = append(left, o)
			}
		}
		open[id] = left
	}
	step := func(id uint64) {
		c := g.cores[id]
		rd, ok := c.Ready()
		if !ok {
			return
		}
		g.inbox = append(g.inbox, rd.Send...)
		if rd.Append != nil {
			send, err := c.Appended(rd.Append)
			if err != nil {
				t.Fatal(err)
			}
			g.inbox = append(g.inbox, send...)
		}
		if rd.Apply != nil {
			for _, e := range rd.Apply.Entries {
				if e.GetType() == raftpb.EntryConfChange {
					var cc raftpb.ConfChange
					if err := proto.Unmarshal(e.Data, &cc); err != nil {
						t.Fatal(err)
					}
					c.ApplyConfChange(&cc)
				} else if len(e.Data) > 0 {
					g.applied[id] = append(g.applied[id], string(e.Data))
				}
			}
			if err := c.Applied(rd.Apply); err != nil {
				t.Fatal(err)
			}
			judge(id, rd.Apply.Entries[len(rd.Apply.Entries)-1].GetTerm())
		}
	}
	deliver := func(keep float64) {
		msgs := g.inbox
		g.inbox = nil
		for _, m := range msgs {
			if rnd.Float64() > keep || g.cut[m.GetFrom()] || g.cut[m.GetTo()] {
				continue
			}
			_ = g.cores[m.GetTo()].Step(m) // Raft says no to what is out of date
			if m.GetType() == raftpb.MsgProp && rnd.IntN(5) == 0 {
				_ = g.cores[m.GetTo()].Step(m)
			}
		}
	}
	for i := range 600 {
		id := ids[rnd.IntN(3)]
		switch n := rnd.IntN(100); {
		case n < 12:
			data := fmt.Sprint(seed, "/", i)
			proposed = append(proposed, data)
			waiting[id] = append(waiting[id], data)
		case n < 24:
			give(id)
		case n < 50:
			step(id)
		case n < 75:
			deliver(0.9)
		case n < 95:
			g.cores[id].Tick()
		case n < 96:
			g.cut = map[uint64]bool{id: true}
		case n < 98:
			g.cut = map[uint64]bool{}
		case n < 99:
			g.cores[id].TransferLeader(ids[rnd.IntN(3)])
		default:
			for _, o := range open[id] {
				if m := g.cores[id].ProposeAgain(o.Handed, batch(o.data...)); m != nil {
					g.inbox = append(g.inbox, m)
				}
			}
		}
	}
	// The network heals; everything is applied in the end.
	g.cut = map[uint64]bool{}
	done := func() bool {
		for _, id := range ids {
			if len(g.applied[id]) < len(proposed) {
				return false
			}
		}
		return true
	}
	for range 2000 {
		if done() {
			break
		}
		for _, id := range ids {
			g.cores[id].Tick()
			give(id)
			for _, o := range open[id] {
				if m := g.cores[id].ProposeAgain(o.Handed, batch(o.data...)); m != nil {
					g.inbox = append(g.inbox, m)
				}
			}
			for range 4 {
				step(id)
			}
		}
		deliver(1)
	}
	for _, id := range ids {
		got := slices.Sorted(slices.Values(g.applied[id]))
		if !slices.Equal(got, slices.Sorted(slices.Values(proposed))) {
			t.Fatalf("member %d applied %d of %d:\n%q\nproposed\n%q", id, len(got), len(proposed), got, proposed)
		}
		if !slices.Equal(g.applied[id], g.applied[1]) {
			t.Fatalf("members 1 and %d applied in different orders", id)
		}
	}
}

// Raft replaces a change of the membership by nothing while another is under way; here it
// waits.
func TestChangesOfTheMembershipWaitForEachOther(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	g.cut = map[uint64]bool{7: true, 8: true, 9: true} // never started
	g.elect(2)
	change := func(id uint64) *raftpb.Entry {
		data, err := proto.Marshal(&raftpb.ConfChange{Type: raftpb.ConfChangeAddLearnerNode.Enum(), NodeId: new(id)})
		if err != nil {
			t.Fatal(err)
		}
		return &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Data: data}
	}
	if _, _, ok := g.cores[2].Propose([]*raftpb.Entry{change(7), {Data: []byte("a")}, change(8)}); !ok {
		t.Fatal("not taken")
	}
	_, send, _ := g.cores[1].Propose([]*raftpb.Entry{change(9)})
	g.inbox = append(g.inbox, send)
	g.settle()
	if got := g.cores[2].conf.Learners; !slices.Equal(got, []uint64{7, 8, 9}) {
		t.Errorf("learners %v, want 7, 8 and 9", got)
	}
	if want := []string{"a"}; !slices.Equal(g.applied[2], want) {
		t.Errorf("applied %q, want %q", g.applied[2], want)
	}
}

// Both of two voters are asked to leave at once: the second removal, which would leave
// nobody, is one that every member refuses.
func TestLastVoterStays(t *testing.T) {
	g := newGroup(t, 1, 2)
	g.elect(2)
	var removals []*raftpb.Entry
	for _, id := range []uint64{1, 2} {
		data, err := proto.Marshal(&raftpb.ConfChange{Type: raftpb.ConfChangeRemoveNode.Enum(), NodeId: new(id), Id: new(70 + id)})
		if err != nil {
			t.Fatal(err)
		}
		removals = append(removals, &raftpb.Entry{Type: raftpb.EntryConfChange.Enum(), Data: data})
	}
	if _, _, ok := g.cores[2].Propose(removals); !ok {
		t.Fatal("not taken")
	}
	g.settle()
	if got := g.cores[2].conf.Voters; !slices.Equal(got, []uint64{2}) {
		t.Fatalf("voters %v, want 2 alone", got)
	}
	last := g.cores[2].log.entries[len(g.cores[2].log.entries)-1]
	cc, ok := configChange(last)
	if !ok || cc.GetNodeId() != raft.None || cc.GetId() != 72 {
		t.Errorf("the last entry is %v, want the second removal, of no member", last)
	}
	g.propose(2, "a")
	g.settle()
	if want := []string{"a"}; !slices.Equal(g.applied[2], want) {
		t.Errorf("applied %q, want %q", g.applied[2], want)
	}
}

func TestWaitingChangesAreBounded(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	g.elect(2)
	update := func(id uint64) bool {
		t.Helper()
		data, err := proto.Marshal(&raftpb.ConfChange{Type: raftpb.ConfChangeUpdateNode.Enum(), NodeId: new(uint64(1))})
		if err != nil {
			t.Fatal(err)
		}
		_, send, ok := g.cores[id].Propose([]*raftpb.Entry{{Type: raftpb.EntryConfChange.Enum(), Data: data}, {Data: []byte("a")}})
		if send != nil {
			g.inbox = append(g.inbox, send)
		}
		return ok
	}
	taken := 0
	for update(2) {
		if taken++; taken > 2*changesMax {
			t.Fatal("there is no bound")
		}
	}
	if got := len(g.cores[2].changes); got > changesMax {
		t.Errorf("%d changes wait", got)
	}
	g.settle()
	if !update(2) || !update(1) {
		t.Error("no change is taken although none waits")
	}
	g.settle()
	if got := len(g.applied[3]); got != taken+2 {
		t.Errorf("%d batches applied, want %d", got, taken+2)
	}
}
