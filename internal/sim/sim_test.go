package sim

import (
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"testing"
	"time"
)

var (
	from   = flag.Uint64("from", 1, "first seed")
	seeds  = flag.Int("seeds", 2000, "how many seeds to run")
	budget = flag.Duration("budget", 40*time.Second, "end after this long, even if not all seeds were run; 0: run all")
	story  = flag.Bool("story", false, "tell all that happens with a seed that fails")
)

// TestMain gives seeds room for their garbage: nearly all of it lives no longer than its
// seed. The room is fixed, because a share of what is alive would grow without bound: a
// sync.Pool keeps what it is part of, here a whole node, alive until the next collection.
func TestMain(m *testing.M) {
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(256 << 20)
	os.Exit(m.Run())
}

// TestSeeds runs one seed after the other. Millions take
//
//	go test ./internal/sim -run TestSeeds -from 1 -seeds 1000000 -budget 0 -timeout 0
//
// in as many processes, each -from a seed of its own, as there are processors.
func TestSeeds(t *testing.T) { runSeeds(t, *seeds, *budget, nil) }

// TestLeases is TestSeeds for leases that end while leaders are away.
func TestLeases(t *testing.T) { runSeeds(t, (*seeds+9)/10, *budget/4, forLeases) }

// forLeases makes a run long enough for leases to end while a leader is away, with clients
// that keep them alive for a while.
func forLeases(p *plan) {
	p.active, p.faultEvery, p.atMost, p.leases = 9*time.Second, time.Second, 2500*time.Millisecond, true
	p.only = []string{"pause", "isolate", "one-way", "kill", "move", "stuck"}
	p.thinkMax, p.clients = 1500*time.Millisecond, 8
	p.tick, p.elections, p.delayMax = 30*time.Millisecond, 5, 5*time.Millisecond
}

// TestFew is TestSeeds for one or two members, which are stopped all the time: a sole voter
// asks nobody, and gets company and loses it again.
func TestFew(t *testing.T) { runSeeds(t, (*seeds+4)/5, *budget/4, fewMembers) }

func fewMembers(p *plan) {
	p.members, p.votersMin, p.etcd = 1+p.members/5, 1, -1
	p.only = []string{"kill", "power", "stop", "pause", "slow", "stuck", "full", "fail", "grow", "shrink", "promote", "blackout"}
	p.faultEvery = min(p.faultEvery, 60*time.Millisecond)
	p.thinkMax = min(p.thinkMax, 20*time.Millisecond)
}

func runSeeds(t *testing.T, seeds int, budget time.Duration, change func(*plan)) {
	if raced {
		budget /= 4
	}
	begin := time.Now()
	ran, sum := 0, stats{}
	for ; ran < seeds && (budget == 0 || time.Since(begin) < budget) && !t.Failed(); ran++ {
		sum.add(runSeed(t, *from+uint64(ran), change))
	}
	t.Logf("%d seeds in %s: %+v", ran, time.Since(begin).Round(time.Millisecond), sum)
}

// runSeed runs one seed under its own name, so that a panic or a hang tells it, too.
func runSeed(t *testing.T, seed uint64, change func(*plan)) (s stats) {
	t.Run(fmt.Sprint(seed), func(t *testing.T) {
		out := simulate(t, seed, false, change)
		s = out.stats
		if len(out.violations) == 0 {
			return
		}
		test, _, _ := strings.Cut(t.Name(), "/")
		t.Errorf("seed %d: %s\nreplay with: go test ./internal/sim -run %s -from %d -seeds 1 -story", seed, strings.Join(out.violations, "\n"), test, seed)
		if *story {
			for _, line := range simulate(t, seed, true, change).told {
				fmt.Println(line)
			}
		}
	})
	return s
}

func (s *stats) add(o stats) {
	s.events += o.events
	s.messages += o.messages
	s.requests += o.requests
	s.acknowledged += o.acknowledged
	s.unknown += o.unknown
	s.crashes += o.crashes
	s.snapshots += o.snapshots
	s.leaders += o.leaders
	s.alarms += o.alarms
	s.elapsed += o.elapsed
}

// TestFoundSeeds runs seeds that have found a fault, with what it was. A seed takes another
// course when a world draws otherwise; the package in which it was mended has a test of its
// own where an example reaches.
func TestFoundSeeds(t *testing.T) {
	tests := []struct {
		seed   uint64
		change func(*plan)
		what   string
	}{
		{62, nil, "entries after a received snapshot were durable before it was installed: the member panicked"},
		{2320, nil, "a sole voter confirmed a read with its commit index before its term had begun"},
		{7, fewMembers, "the same, and a read of a member that was closed never ended"},
		{61005164, fewMembers, "what was written behind a cut, and torn in turn, was refused as damage"},
		{90188462, fewMembers, "a torn snapshot of a leader left its commit index behind: the log was refused"},
		{603429, fewMembers, "a sole voter took what it had applied for all that anybody had seen; a learner was ahead of it"},
		{10508, fewMembers, "the next log segment was synced under a lock that requests need while the disk is full"},
		{7311, nil, "the alarm of a member that was removed stood for ever"},
		{2237, forLeases, "a paused leader that had been replaced renewed a lease from its own clock"},
	}
	for _, tt := range tests {
		if runSeed(t, tt.seed, tt.change); t.Failed() {
			t.Fatalf("seed %d found before: %s", tt.seed, tt.what)
		}
	}
}

// TestReplay runs seeds twice: the same seed must take the same course.
func TestReplay(t *testing.T) {
	if raced {
		t.Skip("the race detector has the scheduler choose at random between goroutines that wake at one moment; make sim runs this test")
	}
	for seed := *from; seed < *from+20; seed++ {
		a, b := simulate(t, seed, false, nil), simulate(t, seed, false, nil)
		if a.trace == b.trace && a.stats == b.stats {
			continue
		}
		t.Errorf("seed %d took two courses: %x %+v and %x %+v", seed, a.trace, a.stats, b.trace, b.stats)
		a, b = simulate(t, seed, true, nil), simulate(t, seed, true, nil)
		for i := range min(len(a.told), len(b.told)) {
			if a.told[i] != b.told[i] {
				t.Logf("they part after\n%s\nwith\n%s\nand\n%s", strings.Join(a.told[max(0, i-20):i], "\n"), a.told[i], b.told[i])
				break
			}
		}
	}
}
