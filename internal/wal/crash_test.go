package wal

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"quorate/internal/vfs"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

var crashRuns = flag.Int("crashruns", 8, "how many random histories the crash test goes through")

// model is what a log should hold.
type model struct {
	entries []*raftpb.Entry // from index 1
	hard    state           // as the log was told last
	synced  uint64          // the commit index that surely is on disk
	mark    uint64
}

func (m model) append(es []*raftpb.Entry) model {
	if len(es) > 0 {
		m.entries = append(slices.Clip(m.entries[:es[0].GetIndex()-1]), es...)
	}
	return m
}

// step is an operation that may or may not be on disk.
type step struct {
	entries []*raftpb.Entry
	hard    *state
	sync    bool
	mark    uint64
	// received are the entries that a leader's snapshot at mark stands for, which take the
	// place of what is not committed; nil if the mark is at what was applied here.
	received []*raftpb.Entry
}

// save is what the log is told of s, a mark.
func (s step) save(m model) (Snapshot, *raftpb.HardState) {
	conf := &raftpb.ConfState{Voters: []uint64{1}}
	if s.received == nil {
		return Snapshot{Index: s.mark, Term: m.entries[s.mark-1].GetTerm(), ConfState: conf}, nil
	}
	return Snapshot{Index: s.mark, Term: s.received[len(s.received)-1].GetTerm(), ConfState: conf}, s.hard.hardState()
}

// check says how rec differs from every state that the log can be in if the power failed
// while s was under way after m had been acknowledged.
func (m model) check(rec *Recovered, s step) error {
	if s.received != nil {
		// It is there with its hard state, or not at all.
		if rec.Snapshot.Index == s.mark {
			m = model{m.append(s.received).entries, *s.hard, s.mark, s.mark}
		}
		s = step{}
	}
	if rec.Snapshot.Index != m.mark && (s.mark == 0 || rec.Snapshot.Index != s.mark) {
		return fmt.Errorf("mark %d, want %d or %d", rec.Snapshot.Index, m.mark, s.mark)
	}
	got := state{}
	if rec.HardState != nil {
		got = stateOf(rec.HardState)
	}
	whole := false
	var err error
	for k := range len(s.entries) + 1 {
		want := m.append(s.entries[:k]).entries
		if err = same(rec.Entries, want[min(rec.Snapshot.Index, uint64(len(want))):]); err == nil {
			whole = k == len(s.entries)
			break
		}
	}
	if err != nil {
		return err
	}
	old := got.term == m.hard.term && got.vote == m.hard.vote && got.commit >= m.synced && got.commit <= m.hard.commit
	now := whole && s.hard != nil && got == *s.hard
	if !old && !now {
		return fmt.Errorf("hard state %v, want %v (commit from %d) or, if it is all there, %v", got, m.hard, m.synced, s.hard)
	}
	return nil
}

func same(got, want []*raftpb.Entry) error {
	if len(got) != len(want) {
		return fmt.Errorf("%d entries, want %d", len(got), len(want))
	}
	for i := range got {
		if !proto.Equal(got[i], want[i]) {
			return fmt.Errorf("entry %d is %v, want %v", i, got[i], want[i])
		}
	}
	return nil
}

// crashTest drives a log through a random history and looks at the disk at many points.
type crashTest struct {
	t    *testing.T
	opts Options

	mu    sync.Mutex // what is below, against the preparer's calls of the hook
	rnd   *rand.Rand
	done  model
	doing step
	tries int
	torn  int
	quiet bool
}

// hook is called before each write and sync, of the log writer and of the preparer.
func (c *crashTest) hook(m **vfs.Mem) func(vfs.Op) error {
	return func(op vfs.Op) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		every := 16
		if op.Kind == "sync" && strings.HasSuffix(op.Name, segmentSuffix) {
			every = 3 // an append is in the air
		}
		if !c.quiet && c.rnd.IntN(every) == 0 {
			c.crash(*m, c.rnd.Uint64(), 2)
		}
		return nil
	}
}

// crash opens the log as it may be after a crash now, checks it, and goes on with it.
// While it opens, the power may fail again, depth times.
func (c *crashTest) crash(m *vfs.Mem, seed uint64, depth int) {
	c.tries++
	after := m.Crash(seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	var again, torn *vfs.Mem
	var opening sync.Mutex // held while n counts, and appending changes
	n, appending := 0, false
	hooks := rand.New(rand.NewPCG(seed, 4))
	after.Hook = func(op vfs.Op) error {
		opening.Lock()
		defer opening.Unlock()
		if n++; depth > 0 && n < 1000 && hooks.IntN(n) == 0 {
			again = after.Crash(seed + uint64(n))
		}
		if depth > 0 && appending && op.Kind == "sync" && strings.HasSuffix(op.Name, segmentSuffix) {
			torn = after.Crash(seed + 5)
		}
		return nil
	}
	// It may be the preparer's goroutine that finds out: it cannot end the test.
	fail := func(format string, args ...any) {
		panic(fmt.Sprintf("crash seed %d: %s\nacknowledged: %v commit from %d, %d entries, mark %d\nunder way: %v",
			seed, fmt.Sprintf(format, args...), c.done.hard, c.done.synced, len(c.done.entries), c.done.mark, c.doing))
	}
	opts := c.opts
	opts.FS = after
	l, rec, err := Open("d/wal", c.done.synced, opts)
	opening.Lock()
	n = 1000
	opening.Unlock()
	if err != nil {
		fail("open: %v", err)
	}
	if err := c.done.check(rec, c.doing); err != nil {
		fail("%v (cut %d)", err, rec.Cut)
	}
	if rec.Cut > 0 {
		c.torn++
	}
	if again != nil {
		c.crash(again, seed+7, depth-1)
	}
	// The log goes on.
	last, term := rec.Snapshot.Index, max(rec.HardState.GetTerm(), 1)
	if k := len(rec.Entries); k > 0 {
		last, term = rec.Entries[k-1].GetIndex(), max(term, rec.Entries[k-1].GetTerm())
	}
	more := entries(last+1, last+1+rnd.Uint64N(4), term+1, 1+rnd.IntN(2000))
	hs := hard(term+1, 1, last)
	// The power may fail again while it does.
	opening.Lock()
	appending = true
	opening.Unlock()
	if err := l.Append(more, hs, true); err != nil {
		fail("append after recovery: %v", err)
	}
	opening.Lock()
	appending = false
	opening.Unlock()
	if torn != nil {
		c.from(rec, step{entries: more, hard: new(stateOf(hs)), sync: true}).crash(torn, seed+6, depth-1)
	}
	if depth > 0 {
		end := after.Crash(seed + 3)
		if err := l.Close(); err != nil {
			fail("close: %v", err)
		}
		opts.FS = end
		if l, again, err := Open("d/wal", last, opts); err != nil {
			fail("open after append: %v", err)
		} else {
			if err := same(again.Entries, append(slices.Clip(rec.Entries), more...)); err != nil || !proto.Equal(again.HardState, hs) {
				fail("after append: %v %v", err, again.HardState)
			}
			l.abandon()
		}
		return
	}
	l.abandon()
}

// from is the test of a log that was recovered as rec and is doing s.
func (c *crashTest) from(rec *Recovered, s step) *crashTest {
	all := c.done.append(c.doing.entries).entries
	if c.doing.received != nil && rec.Snapshot.Index == c.doing.mark {
		all = c.done.append(c.doing.received).entries
	}
	d := model{entries: append(slices.Clip(all[:rec.Snapshot.Index]), rec.Entries...), mark: rec.Snapshot.Index}
	if rec.HardState != nil {
		d.hard = stateOf(rec.HardState)
		d.synced = d.hard.commit
	}
	return &crashTest{t: c.t, opts: c.opts, done: d, doing: s}
}

// abandon stops a log's goroutine and nothing else.
func (l *Log) abandon() {
	close(l.prep.stop)
	<-l.prep.stopped
}

func TestCrash(t *testing.T) {
	tries, torn := 0, 0
	for seed := range uint64(*crashRuns) {
		c := &crashTest{t: t, rnd: rand.New(rand.NewPCG(seed, 2))}
		c.opts = Options{SegmentBytes: []int64{1024, 20000, 60000, 200000}[seed%4]}
		c.run(seed)
		tries, torn = tries+c.tries, torn+c.torn
	}
	t.Logf("%d crashes, %d torn tails", tries, torn)
	if torn < tries/200 {
		t.Errorf("only %d of %d crashes tore a tail", torn, tries)
	}
}

func (c *crashTest) run(seed uint64) {
	t := c.t
	m := vfs.NewMem()
	if err := m.Mkdir("d"); err != nil {
		t.Fatal(err)
	}
	if err := m.SyncDir("."); err != nil {
		t.Fatal(err)
	}
	c.quiet = true
	m.Hook = c.hook(&m)
	c.opts.FS = m
	l, err := Create("d/wal", testMetadata, c.opts)
	if err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	c.quiet = false
	c.mu.Unlock()

	steps := rand.New(rand.NewPCG(seed, 3))
	term := uint64(1)
	for range 60 {
		c.mu.Lock()
		s := c.next(steps, &term)
		c.doing = s
		c.mu.Unlock()
		if s.mark > 0 {
			mark, hs := s.save(c.done)
			err = l.SaveSnapshot(mark, hs)
		} else {
			var hs *raftpb.HardState
			if s.hard != nil {
				hs = s.hard.hardState()
			}
			err = l.Append(s.entries, hs, s.sync)
		}
		if err != nil {
			t.Fatal(err)
		}
		c.mu.Lock()
		c.done = c.done.append(s.entries).append(s.received)
		if s.hard != nil {
			c.done.hard = *s.hard
		}
		if s.sync {
			c.done.synced = c.done.hard.commit
		}
		c.done.mark = max(c.done.mark, s.mark)
		c.doing = step{}
		c.mu.Unlock()
		if s.mark > 0 {
			if err := l.Release(s.mark); err != nil {
				t.Fatal(err)
			}
		}
	}
	c.mu.Lock()
	c.crash(m, seed, 2)
	c.quiet = true
	c.mu.Unlock()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	// All that Close had to write is there after the power fails.
	c.opts.FS = m.Crash(seed)
	l, rec, err := Open("d/wal", 0, c.opts)
	if err != nil {
		t.Fatal(err)
	}
	c.done.synced = c.done.hard.commit
	if err := c.done.check(rec, step{}); err != nil {
		t.Fatal("after close:", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// next is a random operation that Raft could ask for.
func (c *crashTest) next(rnd *rand.Rand, term *uint64) step {
	m := c.done
	last := uint64(len(m.entries))
	h := m.hard
	switch k := rnd.IntN(10); {
	case k == 0 && h.commit > m.mark:
		return step{mark: m.mark + 1 + rnd.Uint64N(h.commit-m.mark), sync: true}
	case k == 1 && h.commit < last:
		h.commit += 1 + rnd.Uint64N(last-h.commit)
		return step{hard: &h}
	case k == 2:
		*term++
		h.term, h.vote = *term, rnd.Uint64N(3)
		return step{hard: &h, sync: true}
	}
	if rnd.IntN(20) == 0 {
		// Too much was missing here: a leader sends its state.
		*term++
		h.term, h.commit = *term, h.commit+1+rnd.Uint64N(last-h.commit+10)
		return step{mark: h.commit, hard: &h, sync: true, received: entries(m.hard.commit+1, h.commit, *term, 1)}
	}
	from := last + 1
	if rnd.IntN(8) == 0 && last > h.commit {
		// A new leader replaces what was not committed.
		from = h.commit + 1 + rnd.Uint64N(last-h.commit)
		*term++
	}
	if h.term == 0 {
		*term = max(*term, 1)
	}
	n := rnd.Uint64N(6)
	s := step{sync: true, entries: entries(from, from+n, *term, 1+rnd.IntN([]int{20, 200, 1500}[rnd.IntN(3)]))}
	h.term = *term
	if rnd.IntN(2) == 0 && from > h.commit {
		h.commit += rnd.Uint64N(from + n - h.commit + 1)
	}
	if h != m.hard {
		s.hard = &h
	}
	return s
}
