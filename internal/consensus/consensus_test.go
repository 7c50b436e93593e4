package consensus

import (
	"fmt"
	"slices"
	"testing"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// quiet drops what Raft says below a panic.
type quiet struct{ *raft.DefaultLogger }

func (quiet) Infof(string, ...any)    {}
func (quiet) Info(...any)             {}
func (quiet) Debugf(string, ...any)   {}
func (quiet) Warningf(string, ...any) {}

// group is a cluster of Cores in one goroutine, whose disks and network are queues that
// the test empties.
type group struct {
	t     *testing.T
	cores map[uint64]*Core
	// cut holds the members that neither send nor receive.
	cut map[uint64]bool
	// slow holds the members whose entries and applies wait until the test carries them out.
	slow    map[uint64]bool
	appends map[uint64][]*raftpb.Message
	applies map[uint64][]*raftpb.Message
	inbox   []*raftpb.Message
	applied map[uint64][]string
	answers map[uint64][]ReadIndexAnswer
}

func groupOf(t *testing.T, cores ...*Core) *group {
	g := &group{
		t: t, cores: map[uint64]*Core{}, cut: map[uint64]bool{}, slow: map[uint64]bool{},
		appends: map[uint64][]*raftpb.Message{}, applies: map[uint64][]*raftpb.Message{},
		applied: map[uint64][]string{}, answers: map[uint64][]ReadIndexAnswer{},
	}
	for _, c := range cores {
		g.cores[c.cfg.ID] = c
	}
	return g
}

func newGroup(t *testing.T, ids ...uint64) *group {
	g := groupOf(t)
	var peers []raft.Peer
	for _, id := range ids {
		peers = append(peers, raft.Peer{ID: id})
	}
	for _, id := range ids {
		c, err := New(config(id), NewLog(0, 0, nil, nil))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Bootstrap(peers); err != nil {
			t.Fatal(err)
		}
		g.cores[id] = c
	}
	g.settle()
	return g
}

func config(id uint64) Config {
	return Config{ID: id, ElectionTicks: 10, HeartbeatTicks: 1, PreVote: true, Incarnation: id << 32, Logger: quiet{}, KeepEntries: 4, KeepBytes: 1 << 20, KeepTicks: 20}
}

// settle carries everything out until nothing is left to do.
func (g *group) settle() {
	for again := true; again; {
		again = false
		for _, id := range slices.Sorted(keys(g.cores)) {
			again = g.carryOut(id) || again
		}
		msgs := g.inbox
		g.inbox = nil
		for _, m := range msgs {
			if g.cut[m.GetFrom()] || g.cut[m.GetTo()] {
				continue
			}
			again = true
			// Raft answers messages that make no sense any more with an error.
			_ = g.cores[m.GetTo()].Step(m)
		}
	}
}

func (g *group) carryOut(id uint64) bool {
	c := g.cores[id]
	rd, ok := c.Ready()
	if !ok {
		return false
	}
	g.inbox = append(g.inbox, rd.Send...)
	g.answers[id] = append(g.answers[id], rd.Reads...)
	if m := rd.Append; m != nil {
		if g.slow[id] && len(m.Entries) > 0 {
			g.appends[id] = append(g.appends[id], m)
		} else {
			g.append(id, m)
		}
	}
	if m := rd.Apply; m != nil {
		if g.slow[id] {
			g.applies[id] = append(g.applies[id], m)
		} else {
			g.apply(id, m)
		}
	}
	return true
}

func (g *group) append(id uint64, m *raftpb.Message) {
	send, err := g.cores[id].Appended(m)
	if err != nil {
		g.t.Fatal(err)
	}
	g.inbox = append(g.inbox, send...)
}

func (g *group) apply(id uint64, m *raftpb.Message) {
	c := g.cores[id]
	for _, e := range m.Entries {
		if e.GetType() == raftpb.EntryConfChange {
			var cc raftpb.ConfChange
			if err := proto.Unmarshal(e.Data, &cc); err != nil {
				g.t.Fatal(err)
			}
			c.ApplyConfChange(&cc)
		} else if len(e.Data) > 0 {
			g.applied[id] = append(g.applied[id], string(e.Data))
		}
	}
	if err := c.Applied(m); err != nil {
		g.t.Fatal(err)
	}
}

// appendNext and applyNext carry out what a slow member was told first.
func (g *group) appendNext(id uint64) {
	g.t.Helper()
	if len(g.appends[id]) == 0 {
		g.t.Fatalf("member %d has nothing to write", id)
	}
	m := g.appends[id][0]
	g.appends[id] = g.appends[id][1:]
	g.append(id, m)
	g.settle()
}

func (g *group) applyNext(id uint64) {
	g.t.Helper()
	if len(g.applies[id]) == 0 {
		g.t.Fatalf("member %d has nothing to apply", id)
	}
	m := g.applies[id][0]
	g.applies[id] = g.applies[id][1:]
	g.apply(id, m)
	g.settle()
}

func (g *group) leader() *Core {
	for _, id := range slices.Sorted(keys(g.cores)) {
		if c := g.cores[id]; c.Role() == raft.StateLeader && !g.cut[id] {
			return c
		}
	}
	g.t.Fatal("nobody leads")
	return nil
}

// elect makes id the leader: time passes until those who hear each other have one, which
// then hands over.
func (g *group) elect(id uint64) {
	for range 100 {
		for _, c := range g.cores {
			if !g.cut[c.cfg.ID] {
				c.Tick()
			}
		}
		g.settle()
		if g.cores[id].Role() == raft.StateLeader {
			return
		}
		for _, c := range g.cores {
			if c.Role() == raft.StateLeader && !g.cut[c.cfg.ID] {
				c.TransferLeader(id)
				g.settle()
			}
		}
	}
	g.t.Fatalf("%d did not become leader", id)
}

func batch(data ...string) (ents []*raftpb.Entry) {
	for _, d := range data {
		ents = append(ents, &raftpb.Entry{Data: []byte(d)})
	}
	return ents
}

// propose has a member propose a batch, and returns where it went.
func (g *group) propose(id uint64, data ...string) Handed {
	h, send, ok := g.cores[id].Propose(batch(data...))
	if !ok {
		g.t.Fatalf("member %d took no proposal", id)
	}
	if send != nil {
		g.inbox = append(g.inbox, send)
	}
	return h
}

func keys[K comparable, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func TestSoleVoterIsAloneOnceItsFirstEntryIsApplied(t *testing.T) {
	c, err := New(config(1), NewLog(0, 0, nil, nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Bootstrap([]raft.Peer{{ID: 1}}); err != nil {
		t.Fatal(err)
	}
	g := groupOf(t, c)
	g.settle()
	if !c.Sole() || c.Alone() {
		t.Fatalf("before the election: sole %v, alone %v", c.Sole(), c.Alone())
	}
	if err := c.Campaign(); err != nil {
		t.Fatal(err)
	}
	var pending *raftpb.Message
	for {
		rd, ok := c.Ready()
		if !ok {
			break
		}
		if rd.Apply != nil {
			pending = rd.Apply
		}
		if rd.Append != nil {
			if _, err := c.Appended(rd.Append); err != nil {
				t.Fatal(err)
			}
		}
	}
	if c.Role() != raft.StateLeader || pending == nil {
		t.Fatalf("role %v, pending %v", c.Role(), pending)
	}
	if c.Alone() {
		t.Error("alone although the term's first entry is not applied")
	}
	if err := c.Applied(pending); err != nil {
		t.Fatal(err)
	}
	if !c.Alone() {
		t.Error("not alone although the term's first entry is applied")
	}
}

func TestBatchIsAppliedInOrderEverywhere(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	g.elect(2)
	want := []string{"a", "b", "c"}
	g.propose(2, "a", "b", "c")
	g.settle()
	// Followers hear of the commit with the next heartbeat at the latest.
	g.leader().Tick()
	g.settle()
	for id := range g.cores {
		if !slices.Equal(g.applied[id], want) {
			t.Errorf("member %d applied %q, want %q", id, g.applied[id], want)
		}
		if g.cores[id].Alone() {
			t.Errorf("member %d of three is alone", id)
		}
	}
}

func TestCutOffLeaderConfirmsNoRead(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	g.elect(1)
	first := g.cores[1].ReadIndex()
	g.settle()
	if a := g.answers[1]; len(a) != 1 || a[0].Number != first || a[0].Index != g.cores[1].Committed() {
		t.Fatalf("answers %+v, want number %d at %d", a, first, g.cores[1].Committed())
	}

	g.cut[1] = true
	g.elect(2)
	g.propose(2, "later")
	g.settle()
	g.cores[1].ReadIndex()
	g.settle()
	if a := g.answers[1]; len(a) != 1 {
		t.Errorf("a leader that nobody hears confirmed a read: %+v", a[1:])
	}
}

func TestNewTermStartsAfterLeadershipIsRegained(t *testing.T) {
	g := newGroup(t, 1, 2, 3)
	g.elect(1)
	start := g.cores[1].termStart
	g.elect(2)
	if g.cores[1].Leads() {
		t.Error("a member that lost leadership says it leads")
	}
	g.elect(1)
	if got := g.cores[1].termStart; got <= start {
		t.Errorf("first entry of the second leadership is %d, that of the first was %d", got, start)
	}
	if !g.cores[1].Leads() {
		t.Error("the leader does not say that it leads")
	}
}

// Messages to followers hold entries as the log gave them out, while it goes on.
func TestTrimLeavesWhatWasGivenOut(t *testing.T) {
	l := NewLog(0, 0, nil, nil)
	var ents []*raftpb.Entry
	for i := range uint64(3 * deadMin) {
		ents = append(ents, &raftpb.Entry{Index: new(i + 1), Term: new(uint64(1))})
	}
	l.Append(ents)
	given, err := l.Entries(1, l.last()+1, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for i := range l.last() {
		l.Trim(i+1, func(int, int64) bool { return true })
	}
	for i, e := range given {
		if e.GetIndex() != uint64(i+1) {
			t.Fatalf("entry %d of those given out is %v after Trim", i+1, e)
		}
	}
}

func TestLogKeepsWhatItMust(t *testing.T) {
	l := NewLog(10, 2, nil, nil)
	ent := func(index, term uint64, data string) *raftpb.Entry {
		return &raftpb.Entry{Index: new(index), Term: new(term), Data: []byte(data)}
	}
	l.Append([]*raftpb.Entry{ent(11, 2, "aa"), ent(12, 2, "bb"), ent(13, 2, "cc")})
	old, err := l.Entries(11, 14, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	l.Append([]*raftpb.Entry{ent(12, 3, "dddd")}) // a new leader's entry replaces two
	if got := fmt.Sprint(l.first(), l.last(), l.bytes); got != "11 12 6" {
		t.Errorf("first, last, bytes: %s", got)
	}
	if string(old[1].Data) != "bb" || string(old[2].Data) != "cc" {
		t.Error("entries that were handed out have changed")
	}
	for _, tc := range []struct {
		index, term uint64
		err         error
	}{
		{9, 0, raft.ErrCompacted}, {10, 2, nil}, {11, 2, nil}, {12, 3, nil}, {13, 0, raft.ErrUnavailable},
	} {
		if term, err := l.Term(tc.index); term != tc.term || err != tc.err {
			t.Errorf("Term(%d) = %d, %v; want %d, %v", tc.index, term, err, tc.term, tc.err)
		}
	}
	if _, err := l.Entries(10, 12, 1); err != raft.ErrCompacted {
		t.Errorf("Entries(10): %v", err)
	}
	if ents, err := l.Entries(11, 13, 1); err != nil || len(ents) != 1 {
		t.Errorf("Entries with a small bound: %d entries, %v; want one", len(ents), err)
	}

	l.Trim(11, func(int, int64) bool { return true })
	if got := fmt.Sprint(l.first(), l.last(), l.bytes, l.trimmedTerm); got != "12 12 4 2" {
		t.Errorf("after Trim(11): first, last, bytes, term: %s", got)
	}
	l.Trim(12, func(count int, _ int64) bool { return count > 1 })
	if l.first() != 12 {
		t.Error("Trim went below the count it should keep")
	}
	l.Trim(12, func(_ int, bytes int64) bool { return bytes > 3 })
	if l.first() != 13 || l.bytes != 0 {
		t.Errorf("Trim by bytes: first %d, bytes %d", l.first(), l.bytes)
	}
}

// A member whose state a snapshot has become has applied what the snapshot stands for: a
// read that waits for it needs no further entry.
func TestSnapshotIsApplied(t *testing.T) {
	c := newGroup(t, 1, 2, 3).cores[3]
	conf := &raftpb.ConfState{Voters: []uint64{1, 2, 3}, Learners: []uint64{4}}
	err := c.Step(&raftpb.Message{
		Type: raftpb.MsgSnap.Enum(), From: new(uint64(1)), To: new(uint64(3)), Term: new(uint64(5)),
		Snapshot: &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(50)), Term: new(uint64(4)), ConfState: conf}},
	})
	if err != nil {
		t.Fatal(err)
	}
	rd, _ := c.Ready()
	if rd.Append == nil || rd.Append.Snapshot.GetMetadata().GetIndex() != 50 {
		t.Fatalf("to be written: %v", rd.Append)
	}
	if hs := HardState(rd.Append); hs.GetTerm() != 5 || hs.GetCommit() != 50 || !MustSync(rd.Append, &raftpb.HardState{}) {
		t.Errorf("with hard state %v", hs)
	}
	for _, m := range rd.Send {
		if m.GetType() == raftpb.MsgAppResp {
			t.Errorf("answered before it is installed: %v", m)
		}
	}
	send, err := c.Appended(rd.Append)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(send, func(m *raftpb.Message) bool {
		return m.GetType() == raftpb.MsgAppResp && m.GetIndex() == 50 && !m.GetReject()
	}) {
		t.Errorf("answered with %v", send)
	}
	if c.AppliedIndex() != 50 || c.log.first() != 51 || !proto.Equal(c.conf, conf) {
		t.Errorf("applied %d, log from %d, configuration %v", c.AppliedIndex(), c.log.first(), c.conf)
	}
	if term, err := c.log.Term(50); term != 4 || err != nil {
		t.Errorf("entry 50 is of term %d, %v", term, err)
	}
}

// Raft may not answer before a term, a vote or an entry is on disk; a commit index it finds
// again by itself.
func TestMustSync(t *testing.T) {
	state := func(term, vote, commit uint64) *raftpb.Message {
		return &raftpb.Message{Term: &term, Vote: &vote, Commit: &commit}
	}
	prev := HardState(state(5, 2, 10))
	for _, c := range []struct {
		name string
		m    *raftpb.Message
		want bool
	}{
		{"nothing", &raftpb.Message{}, false},
		{"commit", state(5, 2, 11), false},
		{"term", state(6, 2, 10), true},
		{"vote in the same term", state(5, 3, 10), true},
		{"entry", &raftpb.Message{Entries: batch("x")}, true},
		{"entry and commit", &raftpb.Message{Term: new(uint64(5)), Vote: new(uint64(2)), Commit: new(uint64(11)), Entries: batch("x")}, true},
	} {
		if got := MustSync(c.m, prev); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
