package sim

import (
	"cmp"
	"container/heap"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"

	"quorate/internal/membership"
)

// plan is what a run is made of. draw takes it from a seed; tests change it.
type plan struct {
	members    int
	votersMin  int // no voter is removed while there are no more
	clients    int
	watchers   int
	keys       int
	valueMax   int           // bytes; 0: as few as tell values apart
	active     time.Duration // how long there are faults
	faultEvery time.Duration // on average; 0: none
	thinkMax   time.Duration // between two requests of a client
	tick       time.Duration
	elections  int // ticks

	stepMax   time.Duration // until a turn that is due takes place
	applyMax  time.Duration // the same of an applier's
	delayMin  time.Duration // of messages
	delayMax  time.Duration
	loss      float64 // share of messages that are lost, with the connection
	duplicate float64
	reorder   float64
	syncMax   time.Duration // of the disk

	snapshotCount  uint64
	catchUpEntries int
	catchUpTicks   int
	segmentBytes   int64
	quota          int64 // bytes; 0: more than is ever used

	only   []string      // names of the faults that there are; nil: all
	etcd   int           // this member takes proposals as an etcd does; -1: none
	atMost time.Duration // how long a fault lasts; 0: some election timeouts
	leases bool          // clients care for leases above all

	// Planted faults; see planted_test.go.
	plant plant
}

func draw(seed uint64) plan {
	r := rand.New(rand.NewPCG(seed, 1))
	pick := func(max float64) float64 { // often none
		if r.IntN(2) == 0 {
			return 0
		}
		return r.Float64() * max
	}
	p := plan{
		members:        3,
		votersMin:      2, // see noQuorum
		clients:        3 + r.IntN(3),
		watchers:       1 + r.IntN(2),
		keys:           1 + r.IntN(4),
		active:         time.Duration(200+r.IntN(600)) * time.Millisecond,
		faultEvery:     time.Duration(30+r.IntN(220)) * time.Millisecond,
		thinkMax:       time.Duration(5+r.IntN(100)) * time.Millisecond,
		tick:           time.Duration(15+r.IntN(30)) * time.Millisecond,
		elections:      5 + r.IntN(6),
		stepMax:        time.Duration(1+r.IntN(500)) * time.Microsecond,
		delayMin:       50 * time.Microsecond,
		delayMax:       time.Duration(100+r.IntN(20_000)) * time.Microsecond,
		loss:           pick(0.05),
		duplicate:      pick(0.1),
		reorder:        pick(0.3),
		syncMax:        time.Duration(100+r.IntN(20_000)) * time.Microsecond,
		snapshotCount:  uint64(5 + r.IntN(60)),
		catchUpEntries: 1 + r.IntN(60),
		segmentBytes:   16 << 10,
		etcd:           -1,
	}
	if r.IntN(6) == 0 {
		p.members = 5
	}
	if r.IntN(8) == 0 {
		p.active *= 4 // long enough for leases to end
	}
	if r.IntN(3) == 0 {
		p.segmentBytes = 2 << 10 // a full disk is felt soon
	}
	if r.IntN(6) == 0 {
		p.etcd = r.IntN(p.members)
	}
	if r.IntN(3) == 0 {
		p.catchUpTicks = r.IntN(20 * p.elections)
	}
	if r.IntN(4) == 0 {
		p.valueMax = 1 + r.IntN(8<<10) // some sectors, or more than a segment
	}
	if p.applyMax = p.stepMax; r.IntN(4) == 0 {
		p.applyMax = time.Duration(r.IntN(20_000)) * time.Microsecond // others are ahead of it
	}
	if p.valueMax > 0 && r.IntN(2) == 0 {
		// There is room for one value of each key at least, so that a compaction helps.
		p.quota = emptyBytes + int64((p.keys+1+p.clients)*p.valueMax) + r.Int64N(16<<10)
		p.thinkMax = min(p.thinkMax, 20*time.Millisecond)
	}
	return p
}

// emptyBytes is more than a store uses that holds hardly anything.
const emptyBytes = 28 << 10

// world is one run.
type world struct {
	t       *testing.T
	seed    uint64
	plan    plan
	rnd     *rand.Rand
	dir     string
	start   time.Time
	queue   events
	events  int // that have happened
	members []*member
	net     *network
	clients []*client
	looks   []*watcher
	check   *checker
	changes bool // a change of the membership is under way
	compact bool // a compaction is, that is to make room
	grown   int  // members that were to be added
	calm    bool // the faults are over
	over    bool

	trace   uint64 // hash of all that has happened
	told    []string
	verbose bool

	mu    sync.Mutex
	posts []post // of other goroutines
}

// post is what a goroutine wants to happen, in an order that does not depend on which of
// them was faster.
type post struct {
	order int
	do    func()
}

func (w *world) post(order int, do func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.posts = append(w.posts, post{order, do})
}

// now is the virtual time since the start.
func (w *world) now() time.Duration { return time.Since(w.start) }

// chance is true with probability p.
func (w *world) chance(p float64) bool { return p > 0 && w.rnd.Float64() < p }

// between is a random time from lo up to hi.
func (w *world) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(w.rnd.Int64N(int64(max(1, hi-lo))))
}

// later has do happen after d.
func (w *world) later(d time.Duration, do func()) {
	heap.Push(&w.queue, &event{at: w.now() + d, order: w.queue.next(), do: do})
}

// note adds to the trace.
func (w *world) note(what string, args ...uint64) {
	h := w.trace
	mix := func(x uint64) { h = (h ^ x) * 0x100000001b3; h ^= h >> 29 }
	mix(uint64(w.now()))
	for i := range len(what) {
		mix(uint64(what[i]))
	}
	for _, a := range args {
		mix(a)
	}
	w.trace = h
	if w.verbose {
		w.told = append(w.told, fmt.Sprintf("%12s %s %x", w.now(), what, args))
	}
}

// say adds to the trace what only matters for reading it.
func (w *world) say(format string, args ...any) {
	if w.verbose {
		w.told = append(w.told, fmt.Sprintf("%12s "+format, append([]any{w.now()}, args...)...))
	}
}

// fail notes a violation. The run ends.
func (w *world) fail(format string, args ...any) {
	w.check.violation(fmt.Sprintf(format, args...))
}

// outcome is what is left of a run.
type outcome struct {
	trace      uint64
	violations []string
	told       []string
	stats      stats
}

// stats say what a run saw, so that tests can tell that it was worth something.
type stats struct {
	events, messages, requests, acknowledged, unknown int
	crashes, snapshots, leaders, alarms               int
	elapsed                                           time.Duration // virtual
}

// simulate runs one seed. change, unless nil, changes the plan.
func simulate(t *testing.T, seed uint64, verbose bool, change func(*plan)) outcome {
	cryptotest.SetGlobalRandom(t, seed)
	p := draw(seed)
	if change != nil {
		change(&p)
	}
	var out outcome
	dir := scratch(t)
	synctest.Test(t, func(t *testing.T) {
		w := &world{
			t: t, seed: seed, plan: p, rnd: rand.New(rand.NewPCG(seed, 2)), dir: dir, start: time.Now(), verbose: verbose,
		}
		w.check = newChecker(w)
		w.net = newNetwork(w)
		w.run()
		w.check.finish()
		w.check.stats.events = w.events
		out = outcome{w.trace, w.check.violations, w.told, w.check.stats}
	})
	return out
}

func (w *world) run() {
	initial := ""
	for i := range w.plan.members {
		initial += fmt.Sprintf(",m%d=http://10.0.0.%d:2380", i, i)
	}
	for i := range w.plan.members {
		w.members = append(w.members, newMember(w, i, initial[1:]))
	}
	for _, m := range w.members {
		m.open()
	}
	for i := range w.plan.clients {
		w.clients = append(w.clients, newClient(w, i))
	}
	for i := range w.plan.watchers {
		w.looks = append(w.looks, newWatcher(w, i))
	}
	if w.plan.faultEvery > 0 {
		w.later(w.between(0, 2*w.plan.faultEvery), w.fault)
	}
	w.plan.plant.changeState(w)
	w.later(w.plan.active, w.quiet)
	w.turn(func() {})
	for w.queue.Len() > 0 && !w.over && len(w.check.violations) == 0 {
		e := heap.Pop(&w.queue).(*event)
		if d := e.at - w.now(); d > 0 {
			time.Sleep(d)
			w.turn(func() {})
		}
		w.turn(e.do)
		w.events++
	}
	w.check.stats.elapsed = w.now().Round(time.Millisecond)
	for _, c := range w.clients {
		c.stop()
	}
	for _, l := range w.looks {
		l.stop()
	}
	for _, m := range w.members {
		m.stop()
	}
	time.Sleep(time.Minute) // a store gives the blocks of a replaced file back in its time
}

// turn lets do happen and whatever follows from it.
func (w *world) turn(do func()) {
	do()
	synctest.Wait()
	w.mu.Lock()
	posts := w.posts
	w.posts = nil
	w.mu.Unlock()
	slices.SortStableFunc(posts, func(a, b post) int { return cmp.Compare(a.order, b.order) })
	for _, p := range posts {
		p.do()
	}
	for _, m := range w.members {
		m.poll()
	}
	for _, c := range w.clients {
		c.poll()
	}
	for _, l := range w.looks {
		l.poll()
	}
}

// quiet ends the faults, and the run once the cluster has settled.
func (w *world) quiet() {
	w.note("quiet")
	w.calm = true
	w.plan.loss, w.plan.duplicate, w.plan.reorder = 0, 0, 0
	w.plan.delayMax = min(w.plan.delayMax, time.Millisecond)
	w.plan.syncMax = min(w.plan.syncMax, time.Millisecond)
	w.net.heal()
	for _, m := range w.members {
		m.recover()
	}
	w.later(settleMax, func() { w.fail("the cluster has not settled: %s", w.describe()) })
	w.awaitSettled()
}

// settleMax is within what time the cluster must serve and be equal after the faults:
// longer than any request waits.
const settleMax = 20 * time.Second

// awaitSettled asks the clients for one last request each, and ends the run once they are
// answered, and members and watchers are equal.
func (w *world) awaitSettled() {
	w.later(w.plan.tick, func() {
		w.endForgotten()
		w.makeRoom()
		if w.settled() || w.noQuorum() {
			w.over = true
			return
		}
		w.awaitSettled()
	})
}

// endForgotten ends members that were removed before they had heard of anybody who could
// tell them: after a start they wait for ever, as with etcd, until somebody does this.
func (w *world) endForgotten() {
	for _, m := range w.members {
		if m.n != nil && m.runs > 1 && w.check.removed[m.id] && len(m.n.Cluster().State().Members) == 0 {
			m.gone = true
			m.crash(false)
		}
	}
}

// makeRoom compacts while the quota keeps clients from their last requests.
func (w *world) makeRoom() {
	if len(w.check.alarmed) == 0 || w.compact {
		return
	}
	m := w.members[w.rnd.IntN(len(w.members))]
	if m.n == nil {
		return
	}
	w.compact = true
	o := &op{kind: compact, rev: w.check.rev, wait: true}
	n := m.n
	go func() {
		// That somebody else has compacted, or that it takes too long, is as good.
		_ = o.run(context.Background(), n)
		w.post(m.i, func() { w.compact = false })
	}()
}

// noQuorum reports whether a member waits for the vote of one that is gone. That is how it
// ends if one of two voters is removed, and the one that stays is stopped before it knows
// that the removal is committed, and the other does.
func (w *world) noQuorum() bool {
	gone := func(id membership.ID) bool {
		return slices.ContainsFunc(w.members, func(m *member) bool { return m.id == id && m.gone })
	}
	for _, m := range w.members {
		if m.n == nil {
			continue
		}
		voters := m.n.Cluster().State().Voters()
		if len(voters) == 2 && (gone(voters[0].ID) || gone(voters[1].ID)) && m.n.Leader() == 0 {
			return true
		}
	}
	return false
}

func (w *world) settled() bool {
	for _, c := range w.clients {
		if !c.last {
			return false
		}
	}
	for _, m := range w.members {
		if m.gone {
			continue
		}
		if m.n == nil || w.check.removed[m.id] || m.applied() != w.check.committedTo() {
			return false
		}
	}
	for _, l := range w.looks {
		if !l.caughtUp() {
			return false
		}
		if l.unaware() {
			l.askProgress() // and it is to be answered
			return false
		}
	}
	return true
}

func (w *world) describe() string {
	var b strings.Builder
	for _, m := range w.members {
		if m.n == nil {
			fmt.Fprintf(&b, "%s down, gone %v, ends %v; ", m.cfg.Name, m.gone, m.ends)
			continue
		}
		s := m.n.Status()
		fmt.Fprintf(&b, "%s term %d leader %x committed %d applied %d; ", m.cfg.Name, s.Term, s.Leader, s.Index, s.Applied)
	}
	for _, c := range w.clients {
		if !c.last {
			fmt.Fprintf(&b, "client %d waits: %v; ", c.i, c.op)
		}
	}
	for _, l := range w.looks {
		if !l.caughtUp() {
			fmt.Fprintf(&b, "watcher %d is at %d of %d; ", l.i, l.next, w.check.rev)
		} else if l.unaware() {
			fmt.Fprintf(&b, "watcher %d was told of progress to %d of %d; ", l.i, l.told, w.check.rev)
		}
	}
	return b.String()
}

// event is something that happens at a time.
type event struct {
	at    time.Duration
	order uint64 // between events of one time
	do    func()
}

type events struct {
	heap []*event
	last uint64
}

func (q *events) next() uint64 { q.last++; return q.last }
func (q *events) Len() int     { return len(q.heap) }
func (q *events) Less(i, j int) bool {
	a, b := q.heap[i], q.heap[j]
	return a.at < b.at || a.at == b.at && a.order < b.order
}
func (q *events) Swap(i, j int) { q.heap[i], q.heap[j] = q.heap[j], q.heap[i] }
func (q *events) Push(x any)    { q.heap = append(q.heap, x.(*event)) }
func (q *events) Pop() any {
	last := len(q.heap) - 1
	e := q.heap[last]
	q.heap[last] = nil
	q.heap = q.heap[:last]
	return e
}

// mix is a hash of its arguments: chance for those that have no turn of their own.
func mix(args ...uint64) uint64 {
	h := uint64(0x9e3779b97f4a7c15)
	for _, a := range args {
		h ^= a
		h *= 0xff51afd7ed558ccd
		h ^= h >> 32
	}
	return h
}
