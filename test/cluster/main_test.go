// Package cluster lets faults loose on a cluster of real processes under load and checks what
// its clients saw:
//
//   - every key is a linearizable register (checked by porcupine, which believes no revision);
//   - every answer, its revision and all its fields are those of the history that watches
//     tell: what was acknowledged is there once, at its revision, in the order of real time;
//     what was refused, or asked by nobody, is not; what was in doubt is there once or never;
//   - every watch, through every member, saw that same history without gap, repeat or reorder;
//   - no lease ended before its time, and each ended;
//   - all members hold the same contents and history at the end (HashKV);
//   - where all members are quorate: no client of a member that the fault left alone saw an
//     error, as long as a majority was left.
//
// The faults are those of real life: kill -9, SIGTERM, SIGSTOP, partitions, also one-way,
// links that come and go, a slow disk, a full disk, clocks that step, a leader that is moved, a
// member that is replaced by the other kind. Where the machine cannot make one (see
// harness.Isolate), it is left out, and the test says so.
//
//	go test ./cluster                                       some rounds of each
//	go test ./cluster -timeout 0 -v -args -duration 1h -seed 7
//
// A seed repeats the load and the faults, but not the moment at which processes meet them.
package cluster

import (
	"flag"
	"testing"
	"time"

	"quorate/test/harness"
)

var (
	duration = flag.Duration("duration", 20*time.Second, "how long each test goes on")
	seed     = flag.Uint64("seed", 0, "seed of the load and of the faults; 0 takes one from the clock")
	referee  = flag.Bool("referee", false, "hold etcd's own clusters to it, too")
	only     = flag.String("fault", "", "make this fault alone")
	keep     = flag.Bool("keep", false, "keep the directories of a failed run")
	trace    = flag.Bool("trace", false, "print each fault")
)

func TestMain(m *testing.M) { harness.MainIsolated(m) }
