package node

import (
	"errors"
	"fmt"
	"time"

	"quorate/internal/kv"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Compaction says which history the member drops by itself (--auto-compaction-mode and
// --auto-compaction-retention). The zero Compaction drops none.
type Compaction struct {
	Every time.Duration // mode periodic: keep what is younger than this
	Keep  int64         // mode revision: keep this many revisions
}

const (
	// revisionEvery is how often mode revision compacts.
	revisionEvery = 5 * time.Minute
	// periodicEvery is how often mode periodic compacts at least, and samplesPerRun how
	// often it notes the revision in between.
	periodicEvery = time.Hour
	samplesPerRun = 10
)

// compactor decides when to compact and to which revision. It takes time as an argument.
//
// In mode periodic it notes the revision ten times a run, and drops what was noted one
// retention ago: the first run is one full retention after the start, as in etcd.
type compactor struct {
	Compaction
	next    time.Time // of the next sample or run
	samples []sample  // of mode periodic, oldest first
	lastRun time.Time
	done    int64 // last revision compacted
}

type sample struct {
	at  time.Time
	rev int64
}

func newCompactor(c Compaction, now time.Time) *compactor {
	return &compactor{Compaction: c, next: now, lastRun: now}
}

// due returns the revision to compact now, 0 if there is none. rev is the store's.
func (c *compactor) due(now time.Time, rev int64) int64 {
	if now.Before(c.next) || c.Every == 0 && c.Keep == 0 {
		return 0
	}
	if c.Keep > 0 {
		c.next = now.Add(revisionEvery)
		return c.toward(rev - c.Keep)
	}
	run := min(c.Every, periodicEvery)
	c.next = now.Add(run / samplesPerRun)
	c.samples = append(c.samples, sample{now, rev})
	if now.Sub(c.lastRun) < run {
		return 0
	}
	// The youngest revision that is at least one retention old.
	old := -1
	for i, s := range c.samples {
		if now.Sub(s.at) >= c.Every {
			old = i
		}
	}
	if old < 0 {
		return 0
	}
	target := c.samples[old].rev
	c.samples = c.samples[old:]
	c.lastRun = now
	return c.toward(target)
}

// toward returns rev if it is beyond what was compacted, else 0.
func (c *compactor) toward(rev int64) int64 {
	if rev <= c.done || rev <= 0 {
		return 0
	}
	return rev
}

// compactBy proposes a compaction when c says so.
func (n *Node) compactBy(c *compactor) {
	v := n.store.View()
	rev := v.Rev()
	v.Release()
	target := c.due(time.Now(), rev)
	if target == 0 {
		return
	}
	err := n.proposeMessage(wire.FieldCompact, &pb.CompactionRequest{Revision: target})
	if err != nil && !errors.Is(err, kv.ErrCompacted) {
		if n.ctx.Err() == nil {
			n.log.Warn("automatic compaction failed", "revision", target, "error", err)
		}
		return
	}
	c.done = target
	n.log.Info(fmt.Sprintf("compacted automatically to revision %d", target), "revision", target)
}
