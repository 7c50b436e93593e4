package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"quorate/test/harness"
)

// fault is something that was done to the cluster for a while.
type fault struct {
	name    string
	members []int // whose own clients it may disturb
	etcd    bool  // the member that it happens to is one
	// majority says that a majority of the others is left and well connected.
	majority   bool
	begin, end moment // end: the members serve again
}

func (x *fault) String() string {
	return fmt.Sprintf("%s of %v from %v to %v", x.name, x.members, x.begin, x.end)
}

// excuses says whether a client of the member may see an error between two moments.
func (x *fault) excuses(member int, from, to moment) bool {
	if to < x.begin || from > x.end {
		return false
	}
	return !x.majority || slices.Contains(x.members, member)
}

// calm is how long clients may take to connect again once a fault is over.
const calm = 500 * time.Millisecond

// chaos makes one fault after the other.
type chaos struct {
	*rand.Rand
	cluster *harness.Cluster
	load    *load
	swaps   bool // members may be replaced by the other kind
	counts  map[string]int
	left    map[string]int // faults that cannot be made here
}

// maker makes a fault of a member, holds it and undoes it.
type maker func(x *chaos, ctx context.Context, f *fault, m *harness.Member) error

var makers = []struct {
	name   string
	weight int
	make   maker
}{
	{"kill", 4, (*chaos).kill},
	{"stop", 4, (*chaos).stop},
	{"pause", 3, (*chaos).pause},
	{"isolate", 3, (*chaos).isolate},
	{"mute", 2, (*chaos).mute},
	{"deafen", 2, (*chaos).deafen},
	{"cut one way", 2, (*chaos).cutOne},
	{"flaky links", 2, (*chaos).flaky},
	{"move", 3, (*chaos).move},
	{"clock", 2, (*chaos).clock},
	{"slow disk", 2, (*chaos).slow},
	{"full disk", 2, (*chaos).full},
	{"kill two", 1, (*chaos).killTwo},
	{"kill all", 1, (*chaos).killAll},
	{"rejoin", 2, (*chaos).rejoin},
	{"replace", 4, (*chaos).replace},
}

// run makes faults until ctx ends; then all is well again.
func (x *chaos) run(ctx context.Context) error {
	var chosen []int // makers, each as often as it weighs
	for i, m := range makers {
		if (*only == "" || m.name == *only) && (m.name != "replace" || x.swaps) {
			chosen = append(chosen, slices.Repeat([]int{i}, m.weight)...)
		}
	}
	if len(chosen) == 0 {
		return fmt.Errorf("there is no fault %q here", *only)
	}
	for x.pause_(ctx, 200*time.Millisecond, time.Second) {
		i := chosen[x.IntN(len(chosen))]
		name := makers[i].name
		m := x.cluster.Members[x.IntN(len(x.cluster.Members))]
		if x.IntN(10) < 6 {
			if leader, err := x.leader(ctx); err == nil {
				m = leader
			}
		}
		f := x.note(name, m)
		// Whatever was begun is ended, also when the time is up.
		whole, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		err := makers[i].make(x, whole, f, m)
		if errors.Is(err, harness.ErrNoFault) {
			x.left[name]++
			err = nil
		} else {
			x.counts[name]++
		}
		if err == nil {
			err = x.cluster.WaitReady(whole)
		}
		cancel()
		if err != nil {
			return fmt.Errorf("%v: %w", f, err)
		}
		f.end = x.load.now() + calm
		if *trace {
			fmt.Println(f)
		}
	}
	return nil
}

// note writes a fault down that begins now, and may disturb the clients of a member.
func (x *chaos) note(name string, m *harness.Member) *fault {
	f := &fault{name: name, members: []int{m.Index()}, etcd: m.Kind == harness.Etcd, majority: true, begin: x.load.now(), end: 1 << 62}
	x.load.mu.Lock()
	x.load.faults = append(x.load.faults, f)
	x.load.mu.Unlock()
	return f
}

func (x *chaos) leader(ctx context.Context) (*harness.Member, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return x.cluster.Leader(ctx)
}

// pause_ waits for a random time and says whether ctx goes on.
func (x *chaos) pause_(ctx context.Context, least, most time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(least + time.Duration(x.Int64N(int64(most-least)))):
		return true
	}
}

// up starts a member after a while, and at times kills it once more while it starts.
func (x *chaos) up(ctx context.Context, m *harness.Member) error {
	x.pause_(ctx, 0, 1500*time.Millisecond)
	for x.IntN(4) == 0 {
		if err := m.Launch(); err != nil {
			return err
		}
		x.pause_(ctx, 0, 200*time.Millisecond)
		if !m.Running() {
			return fmt.Errorf("%s ended by itself while starting:\n%s", m.Name, m.Server.LogTail(15))
		}
		m.Kill()
	}
	return m.Launch()
}

func (x *chaos) kill(ctx context.Context, f *fault, m *harness.Member) error {
	m.Kill()
	return x.up(ctx, m)
}

func (x *chaos) stop(ctx context.Context, f *fault, m *harness.Member) error {
	// Its own clients get all answers, too, and then find nobody to ask.
	f.members = nil
	if err := m.Stop(); err != nil {
		return err
	}
	again := x.note("start", m)
	err := x.up(ctx, m)
	if err == nil {
		err = m.WaitReady(ctx)
	}
	again.end = x.load.now() + calm
	return err
}

func (x *chaos) pause(ctx context.Context, f *fault, m *harness.Member) error {
	if err := m.Pause(); err != nil {
		return err
	}
	x.pause_(ctx, 50*time.Millisecond, 3*time.Second)
	return m.Resume()
}

// clock steps a member's wall clock to and fro, by a moment or by years. Nobody shall notice.
func (x *chaos) clock(ctx context.Context, f *fault, m *harness.Member) error {
	f.members = nil
	for range 1 + x.IntN(3) {
		most := []int32{3, 3600, 10 * 365 * 86400}[x.IntN(3)]
		if err := m.SetClock(x.Int32N(2*most) - most); err != nil {
			return err
		}
		x.pause_(ctx, 100*time.Millisecond, 2*time.Second)
	}
	if x.IntN(2) == 0 {
		return nil // it stays so until the process ends
	}
	return m.SetClock(0)
}

// cut holds what cut does to the network for a while.
func (x *chaos) cut(ctx context.Context, cut func(*harness.Network) error) error {
	n := x.cluster.Network
	if n == nil {
		return harness.ErrNoFault
	}
	if err := cut(n); err != nil {
		return err
	}
	x.pause_(ctx, 100*time.Millisecond, 4*time.Second)
	return n.Heal()
}

func (x *chaos) isolate(ctx context.Context, f *fault, m *harness.Member) error {
	return x.cut(ctx, func(n *harness.Network) error { return n.Isolate(m.Index()) })
}

// mute lets nothing out of a member.
func (x *chaos) mute(ctx context.Context, f *fault, m *harness.Member) error {
	return x.cut(ctx, func(n *harness.Network) error {
		for _, o := range x.cluster.Members {
			if o != m {
				if err := n.Cut(m.Index(), o.Index()); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// deafen lets nothing into a member.
func (x *chaos) deafen(ctx context.Context, f *fault, m *harness.Member) error {
	return x.cut(ctx, func(n *harness.Network) error {
		for _, o := range x.cluster.Members {
			if o != m {
				if err := n.Cut(o.Index(), m.Index()); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func (x *chaos) other(m *harness.Member) *harness.Member {
	return x.cluster.Members[(m.Index()+1+x.IntN(len(x.cluster.Members)-1))%len(x.cluster.Members)]
}

// cutOne cuts one link in one direction.
func (x *chaos) cutOne(ctx context.Context, f *fault, m *harness.Member) error {
	o := x.other(m)
	f.members = append(f.members, o.Index())
	return x.cut(ctx, func(n *harness.Network) error { return n.Cut(m.Index(), o.Index()) })
}

// flaky lets links come and go.
func (x *chaos) flaky(ctx context.Context, f *fault, m *harness.Member) error {
	f.majority = false
	n := x.cluster.Network
	if n == nil {
		return harness.ErrNoFault
	}
	for range 10 + x.IntN(20) {
		from := x.cluster.Members[x.IntN(len(x.cluster.Members))]
		if err := n.Cut(from.Index(), x.other(from).Index()); err != nil {
			return err
		}
		x.pause_(ctx, 5*time.Millisecond, 150*time.Millisecond)
		if err := n.Heal(); err != nil {
			return err
		}
		x.pause_(ctx, 5*time.Millisecond, 50*time.Millisecond)
	}
	return nil
}

// move hands the leadership to another member, which disturbs nobody's clients.
func (x *chaos) move(ctx context.Context, f *fault, m *harness.Member) error {
	f.members = nil
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return x.cluster.Lead(ctx, x.other(m))
}

func (x *chaos) slow(ctx context.Context, f *fault, m *harness.Member) error {
	if err := m.SlowDisk(1 + x.IntN(20)); err != nil {
		return err
	}
	x.pause_(ctx, 200*time.Millisecond, 4*time.Second)
	return m.FastDisk()
}

// full fills the disk of the member that has one of its own.
func (x *chaos) full(ctx context.Context, f *fault, _ *harness.Member) error {
	m := x.cluster.Members[len(x.cluster.Members)-1]
	f.members = []int{m.Index()}
	if err := m.FillDisk(); err != nil {
		return err
	}
	x.pause_(ctx, 200*time.Millisecond, 3*time.Second)
	if x.IntN(3) == 0 { // a restart on the full disk may fail, but must not lose anything
		m.Kill()
		if err := m.Launch(); err != nil {
			return err
		}
		x.pause_(ctx, 200*time.Millisecond, time.Second)
	}
	if err := m.EmptyDisk(); err != nil {
		return err
	}
	// etcd ends when its disk is full, and may take a moment to.
	if _, ended := m.Server.WaitExit(500 * time.Millisecond); ended {
		return m.Launch()
	}
	return nil
}

func (x *chaos) killTwo(ctx context.Context, f *fault, m *harness.Member) error {
	f.majority = false
	o := x.other(m)
	m.Kill()
	x.pause_(ctx, 0, 300*time.Millisecond)
	o.Kill()
	return errors.Join(x.up(ctx, o), x.up(ctx, m))
}

func (x *chaos) killAll(ctx context.Context, f *fault, m *harness.Member) error {
	f.majority = false
	for _, m := range x.cluster.Members {
		m.Kill()
	}
	var errs []error
	for _, i := range x.Perm(len(x.cluster.Members)) {
		errs = append(errs, x.up(ctx, x.cluster.Members[i]))
	}
	return errors.Join(errs...)
}

// rejoin removes a member for good and lets a new one take its place.
func (x *chaos) rejoin(ctx context.Context, f *fault, m *harness.Member) error {
	return x.cluster.Rejoin(ctx, m)
}

// replace starts the other kind in the member's place.
func (x *chaos) replace(ctx context.Context, f *fault, m *harness.Member) error {
	return m.Replace(ctx)
}
