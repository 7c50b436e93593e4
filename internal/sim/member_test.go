package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing/synctest"
	"time"

	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/node"
	"quorate/internal/vfs"

	"go.etcd.io/raft/v3/raftpb"
)

// member is one member through all its runs.
type member struct {
	w    *world
	i    int
	cfg  node.Config
	id   membership.ID // 0 until it was opened first
	dir  string
	disk *disk

	n    *node.Node // nil while it is down
	end  *end
	runs int     // of the process
	gone bool    // it was removed for good
	host *member // a joining member asks it for the members
	ends bool    // an orderly Close is under way

	rate        float64 // of its clock
	pausedUntil atomic.Int64
	loop        due
	log         turn
	apply       turn

	// The checker's, of this run.
	seen   uint64 // entries up to here were looked at as committed
	handed uint64 // entries up to here were handed to the applier, or came in a snapshot
	at     uint64 // applied, when it was last looked at

	installed time.Duration // when it was last seen to have installed a snapshot
}

// meters are what all members of all runs count in; making them takes longer than a start.
var meters = metrics.New(false)

// due is a turn that is in the queue.
type due struct {
	queued bool
	at     time.Time // of the loop's own wish
}

// turn is one of the turns that may take long, in a goroutine of its own.
type turn struct {
	queued, running, again bool
	done                   chan error
}

func newMember(w *world, i int, initial string) *member {
	m := &member{w: w, i: i, dir: filepath.Join(w.dir, fmt.Sprint("m", i))}
	m.disk = newDisk(w, i, vfs.NewMem())
	m.rate = 0.8 + 0.4*w.rnd.Float64()
	m.cfg = node.Config{
		Name: fmt.Sprint("m", i), DataDir: m.dir, WALDir: "/wal",
		PeerURLs:       []string{fmt.Sprintf("http://10.0.0.%d:2380", i)},
		ClientURLs:     []string{fmt.Sprintf("http://10.0.0.%d:2379", i)},
		InitialCluster: initial, InitialClusterToken: "sim", NewCluster: true, MaxLearners: 10,
		Tick: w.plan.tick, ElectionTicks: w.plan.elections, PreVote: true,
		SnapshotCount: w.plan.snapshotCount, CatchUpEntries: w.plan.catchUpEntries, CatchUpTicks: w.plan.catchUpTicks, SegmentBytes: w.plan.segmentBytes,
		QuotaBytes: w.plan.quota, MaxRequestBytes: 1 << 20, SlowApply: time.Minute,
		ProgressInterval: time.Hour, FragmentBytes: 2 << 20,
		StrictReconfigCheck: false, TickAdvance: true,
		Peers:  asker{w.net, m},
		Logger: slog.New(slog.DiscardHandler),
	}
	m.cfg.OnCommit = func(entries []*raftpb.Entry) {
		for _, e := range entries {
			w.check.commit(m, e)
		}
	}
	if w.plan.plant.tooLarge {
		m.cfg.MaxRequestBytes = 32
	}
	if w.verbose {
		m.cfg.Logger = slog.New(&teller{w: w, who: m.cfg.Name})
	}
	return m
}

// open starts the member's process.
func (m *member) open() {
	w := m.w
	if m.runs == 0 && w.check.removed[m.id] {
		m.gone = true // before it ever ran
		return
	}
	if m.runs == 0 && !m.cfg.NewCluster && !m.findHost() {
		m.restartAfter(w.between(0, 10*w.plan.tick))
		return
	}
	m.runs++
	m.disk.full(false)
	m.end = &end{net: w.net, member: m, peers: map[membership.ID]bool{}}
	m.cfg.Network, m.cfg.FS, m.cfg.Metrics = m.end, m.disk.fs(), meters
	m.disk.opening.Store(true)
	err := m.disk.mkdirs(m.dir)
	var n *node.Node
	if err == nil {
		n, err = node.Open(m.cfg)
	}
	synctest.Wait() // what Open has begun beside itself is not slow either, or sometimes
	m.disk.opening.Store(false)
	w.note("open", uint64(m.i), uint64(m.runs))
	if errors.Is(err, node.ErrRemoved) && w.check.removed[m.id] {
		m.gone = true
		return
	}
	if err != nil {
		w.fail("%s does not start again: %v", m.cfg.Name, err)
		return
	}
	m.n, m.id = n, membership.ID(n.MemberID())
	m.loop, m.log, m.apply = due{}, turn{done: make(chan error, 1)}, turn{done: make(chan error, 1)}
	m.seen, m.at, m.installed = 0, m.applied(), 0
	m.handed = m.at
	m.pausedUntil.Store(0)
	for _, o := range w.members {
		// Who has lost, or never had, what says who the others are is found by them.
		if o.n != nil && o != m && o.end.peers[m.id] && !m.end.peers[o.id] {
			w.net.connect(o.id, m.id)
		}
	}
	m.stepLoopSoon()
	m.tickLater()
}

// alive returns a check of whether the run that is under way now still is.
func (m *member) alive() func() bool {
	run, n := m.runs, m.n
	return func() bool { return m.n == n && n != nil && m.runs == run }
}

// running returns how much longer the member is paused, 0 if it is not.
func (m *member) paused() time.Duration {
	return max(0, time.Duration(m.pausedUntil.Load())-m.w.now())
}

// when has do happen after d in this run, and not while the member is paused.
func (m *member) when(d time.Duration, do func()) {
	alive := m.alive()
	var try func()
	try = func() {
		if !alive() {
			return
		}
		if p := m.paused(); p > 0 {
			m.w.later(p+m.w.between(0, m.w.plan.stepMax), try)
			return
		}
		do()
	}
	m.w.later(d, try)
}

func (m *member) tickLater() {
	m.when(time.Duration(float64(m.w.plan.tick)*m.rate), func() {
		m.w.note("tick", uint64(m.i))
		m.n.Tick()
		m.stepLoop()
		m.tickLater()
	})
}

func (m *member) stepLoopSoon() {
	if m.loop.queued {
		return
	}
	m.loop.queued = true
	m.when(m.w.between(0, m.w.plan.stepMax), func() {
		m.loop.queued = false
		m.stepLoop()
	})
}

func (m *member) stepLoop() {
	defer func() {
		if p := &m.w.plan.plant; p.tamper == nil && !p.lyingDisk && !p.deafToSync {
			return
		}
		// Raft panics at some of what no honest member does, maybe before a checker looks.
		if r := recover(); r != nil {
			m.w.fail("%s panicked: %v", m.cfg.Name, r)
		}
	}()
	m.n.StepLoop()
	m.w.note("loop", uint64(m.i), m.n.Term(), m.n.Leader(), m.n.Committed())
	m.w.check.stepped(m)
}

// poll takes note of what is due and of what has ended.
func (m *member) poll() {
	if m.n == nil {
		return
	}
	m.ended(&m.log, "write log")
	m.ended(&m.apply, "apply")
	if m.n == nil {
		return
	}
	select {
	case <-m.n.Failed():
		m.failed(m.n.Err())
		return
	default:
	}
	work := m.n.Work()
	if work.Loop {
		m.stepLoopSoon()
	}
	if at := work.LoopAt; !at.IsZero() && at != m.loop.at {
		m.loop.at = at
		m.when(max(0, time.Until(at)), m.stepLoop)
	}
	m.start(&m.log, work.Log)
	m.start(&m.apply, work.Apply)
}

// start queues a turn if it is wanted, to run beside the world.
func (m *member) start(t *turn, wanted bool) {
	t.again = t.again || wanted
	if !t.again || t.queued || t.running {
		return
	}
	t.queued = true
	soon := m.w.plan.stepMax
	if t == &m.apply {
		soon = m.w.plan.applyMax
	}
	m.when(m.w.between(0, soon), func() {
		t.queued, t.running, t.again = false, true, false
		step, done := m.n.StepLog, t.done
		if t == &m.apply {
			step = m.n.StepApply
		}
		go func() { done <- step() }()
	})
}

func (m *member) ended(t *turn, what string) {
	select {
	case err := <-t.done:
		t.running = false
		m.w.note(what, uint64(m.i))
		if m.n == nil {
			return // the member has failed in this very moment
		}
		if err != nil {
			m.failed(fmt.Errorf("%s: %w", what, err))
		} else if t == &m.apply {
			m.w.check.applied(m)
		}
	default:
	}
}

// failed is called when the member says that it cannot go on.
func (m *member) failed(err error) {
	switch {
	case errors.Is(err, node.ErrRemoved):
		if !m.w.check.removed[m.id] {
			m.w.fail("%s has stopped as if it had been removed", m.cfg.Name)
		}
		m.gone = true
		m.crash(false)
		return
	case m.disk.failed.Load():
		// It may not say again that something is durable, and so it ends.
		m.crash(true)
		m.restartAfter(m.w.between(2*time.Millisecond, m.w.aWhile()+3*time.Millisecond))
		return
	}
	m.w.fail("%s cannot go on: %v", m.cfg.Name, err)
	m.crash(false)
}

// applied is the last entry that the member holds.
func (m *member) applied() uint64 {
	v := m.n.View()
	defer v.Release()
	return v.Applied()
}

// crash ends the process, or the whole machine: the others do not notice then.
func (m *member) crash(machine bool) {
	w := m.w
	n := m.n
	if n == nil {
		return
	}
	w.note("crash", uint64(m.i))
	w.check.stats.crashes++
	m.n = nil
	w.net.down(m.end, machine)
	used, _ := n.Store().Size()
	after, err := m.disk.crash(m.dir, used, mix(w.seed, uint64(m.i), uint64(m.runs)))
	if err != nil {
		w.fail("crash %s: %v", m.cfg.Name, err)
		return
	}
	m.disk = after
	m.close(n)
}

// close ends what is left of a run whose disk and network are gone.
func (m *member) close(n *node.Node) {
	w := m.w
	done := make(chan error, 1)
	go func() { done <- n.Close() }()
	synctest.Wait()
	select {
	case <-done: // its errors are those of a dead disk
	default:
		w.later(10*time.Second, func() {
			select {
			case <-done:
			default:
				w.fail("%s does not end", m.cfg.Name)
			}
		})
	}
}

// shutDown stops the member in order: it hands leadership over, and then ends.
func (m *member) shutDown() {
	alive, n, w := m.alive(), m.n, m.w
	w.note("stop", uint64(m.i))
	go func() {
		n.HandOver(context.Background())
		w.post(m.i, func() {
			if !alive() {
				return
			}
			m.n, m.ends = nil, true
			w.net.down(m.end, false)
			m.disk.opening.Store(true) // Close must not be slow: others wait for its locks
			m.disk.stick(0)
			m.disk.full(false)
			log, apply := m.log, m.apply
			closed := make(chan error, 1)
			go func() {
				for _, t := range []turn{log, apply} {
					if t.running {
						<-t.done
					}
				}
				closed <- n.Close()
			}()
			m.await(closed)
		})
	}()
}

// await goes on once an orderly Close has ended.
func (m *member) await(closed chan error) {
	m.w.later(m.w.plan.tick, func() {
		select {
		case err := <-closed:
			m.w.note("stopped", uint64(m.i))
			m.ends = false
			if err != nil {
				m.w.fail("close %s: %v", m.cfg.Name, err)
			}
			m.restartAfter(m.w.between(0, 500*time.Millisecond))
		default:
			m.await(closed)
		}
	})
}

func (m *member) restartAfter(d time.Duration) {
	m.w.later(d, func() {
		if m.n == nil && !m.gone && !m.ends {
			m.open()
		}
	})
}

// recover ends what faults did to the member.
func (m *member) recover() {
	m.pausedUntil.Store(0)
	m.disk.slow(m.w.plan.syncMax)
	m.disk.stick(0)
	m.disk.full(m.w.plan.plant.fullForEver)
	m.restartAfter(0)
}

// stop ends the member with the run.
func (m *member) stop() {
	if m.n == nil {
		return
	}
	n := m.n
	m.n = nil
	m.disk.opening.Store(true)
	m.disk.stick(0)
	m.disk.full(false)
	for _, t := range []*turn{&m.log, &m.apply} {
		if t.running {
			<-t.done
		}
	}
	if err := n.Close(); err != nil {
		m.w.fail("close %s: %v", m.cfg.Name, err)
	}
}

// teller writes a member's log lines into the run's story.
type teller struct {
	slog.Handler
	w   *world
	who string
}

func (t *teller) Enabled(context.Context, slog.Level) bool { return true }
func (t *teller) WithAttrs([]slog.Attr) slog.Handler       { return t }
func (t *teller) WithGroup(string) slog.Handler            { return t }

func (t *teller) Handle(_ context.Context, r slog.Record) error {
	s := t.who + ": " + r.Message
	r.Attrs(func(a slog.Attr) bool {
		s += " " + a.String()
		return true
	})
	s = strings.ReplaceAll(s, t.w.dir, "")
	t.w.mu.Lock()
	defer t.w.mu.Unlock()
	t.w.told = append(t.w.told, fmt.Sprintf("%12s %s", t.w.now(), s))
	return nil
}
