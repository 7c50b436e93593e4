// Package dirs moves data directories and snapshots between the real etcd and quorate, and
// holds what each sees in them against what the other saw: revision, HashKV and contents at
// several revisions, leases and their keys, compaction, members and alarms. Damaged
// directories must be refused with an error that names the file.
package dirs

import (
	"flag"
	"math/rand/v2"
	"testing"
	"time"

	"quorate/test/harness"
)

var (
	seed  = flag.Uint64("seed", 0, "seed of the histories; 0 takes one from the clock")
	turns = flag.Int("turns", 8, "how often a directory changes hands")
	tears = flag.Int("tears", 3, "how many torn tails to try of each kind of directory")
)

func TestMain(m *testing.M) { harness.Main(m) }

// random is the test's own source, repeatable by -seed.
func random(t *testing.T) *rand.Rand {
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano()) % 1_000_000_000
	}
	t.Logf("-seed %d", s)
	return rand.New(rand.NewPCG(s, 3))
}

var kinds = []harness.Kind{harness.Etcd, harness.Quorate}
