package sim

import (
	"flag"
	"fmt"
	"strings"
	"testing"
	"time"
)

var (
	from    = flag.Uint64("from", 1, "first seed")
	seeds   = flag.Int("seeds", 2000, "how many seeds to run")
	budget  = flag.Duration("budget", 45*time.Second, "end after this long, even if not all seeds were run; 0: run all")
	verbose = flag.Bool("story", false, "tell the whole story of a seed that fails")
)

func TestSeeds(t *testing.T) {
	begin := time.Now()
	var sum stats
	ran := 0
	for ; ran < *seeds && (*budget == 0 || time.Since(begin) < *budget); ran++ {
		seed := *from + uint64(ran)
		out := simulate(t, seed, false, nil)
		sum.add(out.stats)
		if len(out.violations) > 0 {
			report(t, seed, out)
		}
	}
	t.Logf("%d seeds in %s: %+v", ran, time.Since(begin).Round(time.Millisecond), sum)
}

func report(t *testing.T, seed uint64, out outcome) {
	t.Errorf("seed %d: %s\nreplay with: go test ./internal/sim -run TestSeeds -from %d -seeds 1 -story", seed, strings.Join(out.violations, "\n"), seed)
	if *verbose {
		again := simulate(t, seed, true, nil)
		for _, line := range again.told {
			fmt.Println(line)
		}
	}
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
	s.elapsed += o.elapsed
}

// forLeases makes a run long enough for leases to end while a leader is away, with clients
// that keep them alive.
func forLeases(p *plan) {
	p.active, p.faultEvery, p.atMost, p.leases = 9*time.Second, time.Second, 2500*time.Millisecond, true
	p.only = []string{"pause", "isolate", "one-way", "kill", "move", "stuck"}
	p.thinkMax, p.clients = 1500*time.Millisecond, 8
	p.tick, p.elections, p.delayMax = 30*time.Millisecond, 5, 5*time.Millisecond
}

func TestLeases(t *testing.T) {
	for i := range min(*seeds, 300) {
		seed := *from + uint64(i)
		if out := simulate(t, seed, false, forLeases); len(out.violations) > 0 {
			t.Errorf("seed %d: %s", seed, strings.Join(out.violations, "\n"))
		}
	}
}

// TestReplay runs seeds twice: the same seed must take the same course.
func TestReplay(t *testing.T) {
	for seed := *from; seed < *from+10; seed++ {
		a, b := simulate(t, seed, false, nil), simulate(t, seed, false, nil)
		if a.trace != b.trace || a.stats != b.stats {
			t.Errorf("seed %d took two courses: %x %+v and %x %+v", seed, a.trace, a.stats, b.trace, b.stats)
		}
	}
}

func TestDiff(t *testing.T) {
	a, b := simulate(t, *from, true, nil), simulate(t, *from, true, nil)
	for i := range min(len(a.told), len(b.told)) {
		if a.told[i] != b.told[i] {
			for j := max(0, i-25); j < min(i+5, len(a.told), len(b.told)); j++ {
				t.Logf("%d\n  %s\n  %s", j, a.told[j], b.told[j])
			}
			t.FailNow()
		}
	}
}
