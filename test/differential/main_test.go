// Package differential performs the same random operations on the real etcd and on quorate
// and compares what they answer, field by field.
//
// A run is a sequence of episodes. An episode starts a fresh server of each kind and takes
// steps; a step is one change or one act on a watch, and then some reads at once. What a
// step does follows from the seed, its number and what etcd answered before (the current
// and the compacted revision), so any subset of the steps of an episode can be performed
// again on fresh servers: that is how a failure is made small.
//
//	go test ./differential                                       about a minute
//	go test ./differential -timeout 0 -args -duration 8h         a night
//	go test ./differential -args -seed 17 -only 3,9-12           one episode, these steps
//
// With QUORATE_BIN naming the real etcd, etcd is compared with itself, and every difference
// is a fault of the test.
package differential

import (
	"flag"
	"testing"
	"time"

	"quorate/test/harness"
)

var (
	duration = flag.Duration("duration", time.Minute, "how long the random run goes on")
	seed     = flag.Uint64("seed", 0, "seed of the first episode, counted up for those that follow; 0 takes one from the clock")
	steps    = flag.Int("steps", 1500, "steps of an episode")
	only     = flag.String("only", "", "perform only these steps of the episode -seed, such as 3,9-12, and stop")
	gather   = flag.Int("gather", 0, "go on after a difference in a call that changes nothing, until there are so many of different kinds")
	minimize = flag.Duration("minimize", time.Minute, "how long to look for a smaller failing run; 0 for not at all")
)

func TestMain(m *testing.M) { harness.Main(m) }
