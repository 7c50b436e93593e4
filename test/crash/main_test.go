// Package crash kills quorate under load, at random moments, and checks after each restart
// that it kept what it promised:
//
//   - every write that was acknowledged is there, at the revision that it was told;
//   - nothing is there that was refused, or that nobody asked for;
//   - a write whose answer the crash swallowed happened whole or not at all;
//   - the revision never goes back, and old revisions read as before;
//   - contents, leases and HashKV are those of a model that the history is replayed on.
//
// Writers run at the same time, each on keys of its own and all on some shared ones. What
// they asked for and were answered is the record that history, read back by a watch, is held
// against; history in turn is what the model learns from.
//
//	go test ./crash                                        some dozens of kills
//	go test ./crash -timeout 0 -v -args -kills 5000 -seed 7    a night
//
// Killing the process loses nothing that was written but not synced, since the kernel keeps
// it; that is the business of the log's own tests, whose file system forgets.
package crash

import (
	"flag"
	"testing"

	"quorate/test/harness"
)

var (
	kills = flag.Int("kills", 80, "how many times to end the process")
	seed  = flag.Uint64("seed", 0, "seed of the load and of the moments; 0 takes one from the clock")
	keep  = flag.Bool("keep", false, "keep the data directory of a failed run")
)

func TestMain(m *testing.M) { harness.Main(m) }
