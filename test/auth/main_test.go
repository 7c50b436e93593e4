// Package auth holds users, roles and permissions of quorate to those of etcd.
//
// TestDifferential performs the same random calls on the real etcd and on quorate, in the name of users
// with and without permissions, with good, old and wrong tokens and without any, and compares every answer:
// reply, code and text. A run is a sequence of episodes. An episode starts a fresh server of each kind and
// takes steps; what a step does follows from the seed, its number and what etcd answered before, so an
// episode can be performed again.
//
//	go test ./auth                                         about half a minute
//	go test ./auth -timeout 0 -v -args -duration 8h        a night
//	go test ./auth -run Differential -v -args -seed 17     episode 17, with all that it did if it fails
//	go test ./auth -run Differential -args -gather 20      up to 20 episodes that differ, each with the call
//
// TestMixed takes clusters of both kinds through changes of users, roles and permissions under load, and
// compares what the members have on disk.
//
// With QUORATE_BIN naming the real etcd, etcd is compared with itself, and every difference is a fault of
// the test.
package auth

import (
	"flag"
	"testing"
	"time"

	"quorate/test/harness"
)

var (
	duration = flag.Duration("duration", 30*time.Second, "how long each of the tests goes on")
	seed     = flag.Uint64("seed", 0, "perform only this episode; 0 takes many, the first from the clock")
	steps    = flag.Int("steps", 1000, "steps of an episode")
	gather   = flag.Int("gather", 1, "stop after so many episodes that differ")
)

func TestMain(m *testing.M) { harness.MainIsolated(m) }
