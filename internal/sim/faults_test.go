package sim

import (
	"context"
	"slices"
	"time"
)

// fault lets something go wrong, and comes again.
func (w *world) fault() {
	if w.calm {
		return
	}
	all := []struct {
		name   string
		weight int
		do     func(m *member)
	}{
		{"kill", 3, w.kill},
		{"power", 2, w.power},
		{"stop", 2, w.stopInOrder},
		{"pause", 2, w.pause},
		{"isolate", 2, w.isolate},
		{"split", 2, w.split},
		{"one-way", 2, w.oneWay},
		{"break", 2, w.breakOff},
		{"slow", 1, w.slow},
		{"stuck", 2, w.stuck},
		{"move", 2, w.move},
		{"full", 1, w.fullDisk},
		{"fail", 1, w.failingSync},
		{"grow", 2, w.grow},
		{"shrink", 2, w.shrink},
		{"promote", 2, w.promote},
		{"blackout", 1, func(*member) { w.blackout() }},
	}
	sum := 0
	for i := range all {
		if w.plan.only != nil && !slices.Contains(w.plan.only, all[i].name) {
			all[i].weight = 0
		}
		sum += all[i].weight
	}
	m := w.victim()
	x := w.rnd.IntN(max(1, sum))
	for _, f := range all {
		if x -= f.weight; x < 0 && f.weight > 0 {
			if m.n != nil || f.name == "blackout" {
				w.note(f.name, uint64(m.i))
				f.do(m)
			}
			break
		}
	}
	w.later(w.between(0, 2*w.plan.faultEvery), w.fault)
}

// victim is a member, preferably the leader.
func (w *world) victim() *member {
	m := w.members[w.rnd.IntN(len(w.members))]
	if w.rnd.IntN(2) == 0 {
		for _, l := range w.members {
			if l.n != nil && l.n.Leader() == l.n.MemberID() {
				return l
			}
		}
	}
	return m
}

// aWhile is how long a fault lasts.
func (w *world) aWhile() time.Duration {
	timeout := w.plan.tick * time.Duration(w.plan.elections)
	if w.plan.atMost > 0 {
		return w.between(0, w.plan.atMost)
	}
	if w.rnd.IntN(3) == 0 {
		return w.between(0, timeout/4)
	}
	return w.between(0, 3*timeout)
}

func (w *world) kill(m *member) {
	m.crash(false)
	m.restartAfter(w.between(2*time.Millisecond, w.aWhile()+3*time.Millisecond))
}

func (w *world) power(m *member) {
	m.crash(true)
	m.restartAfter(w.between(2*time.Millisecond, w.aWhile()+3*time.Millisecond))
}

func (w *world) blackout() {
	for _, m := range w.members {
		if m.n != nil {
			w.power(m)
		}
	}
}

func (w *world) stopInOrder(m *member) { m.shutDown() }

func (w *world) pause(m *member) { m.pausedUntil.Store(int64(w.now() + w.aWhile())) }

// untilHealed ends all cuts after a while.
func (w *world) untilHealed() { w.later(w.aWhile(), w.net.heal) }

func (w *world) isolate(m *member) {
	for _, o := range w.members {
		w.cut(m, o)
		w.cut(o, m)
	}
	w.untilHealed()
}

func (w *world) split(*member) {
	side := make([]bool, len(w.members))
	for i := range side {
		side[i] = w.rnd.IntN(2) == 0
	}
	for i, a := range w.members {
		for j, b := range w.members {
			if side[i] != side[j] {
				w.cut(a, b)
			}
		}
	}
	w.untilHealed()
}

func (w *world) oneWay(m *member) {
	out := w.rnd.IntN(2) == 0
	for _, o := range w.members {
		if w.rnd.IntN(3) == 0 {
			continue
		}
		if out {
			w.cut(m, o)
		} else {
			w.cut(o, m)
		}
	}
	w.untilHealed()
}

func (w *world) cut(from, to *member) {
	if from != to {
		w.net.cut(direction{from.id, to.id})
	}
}

// breakOff ends a member's connections, which come to stand again at once.
func (w *world) breakOff(m *member) {
	for _, o := range w.members {
		if o != m && o.n != nil {
			w.net.breakOff(m.id, o.id)
			w.net.connect(m.id, o.id)
		}
	}
}

func (w *world) slow(m *member) {
	d := m.disk
	d.slow(w.between(0, 100*time.Millisecond))
	w.later(w.aWhile(), func() { d.slow(w.plan.syncMax) })
}

func (w *world) stuck(m *member) { m.disk.stick(w.aWhile()) }

func (w *world) move(m *member) {
	to := w.members[w.rnd.IntN(len(w.members))]
	n := m.n
	go func() {
		// That it is refused or takes too long is as good as that it is done.
		_ = n.MoveLeader(context.Background(), uint64(to.id))
	}()
}

// fullDisk leaves the log no room to grow for a while.
func (w *world) fullDisk(m *member) {
	d := m.disk
	d.full(true)
	w.later(w.aWhile(), func() { d.full(w.plan.plant.fullForEver) })
}

// failingSync has syncs fail, which is to end the member. The power fails soon in any case:
// nothing may have been said to be durable that was not. A member that was stopped in order
// meanwhile, and started again, may have met the fault only where it prepares a segment,
// which it tries again.
func (w *world) failingSync(m *member) {
	d, alive := m.disk, m.alive()
	d.fail(true)
	w.later(w.between(0, 4*w.plan.syncMax+20*time.Millisecond), func() {
		d.fail(false)
		if alive() {
			w.power(m)
		}
	})
}
