package node

import (
	"testing"
	"time"
)

// revisionAt is the store's revision a time after the start: ten a minute.
func revisionAt(t time.Duration) int64 { return 10 + int64(t/time.Minute)*10 }

// compactFor steps c for a while and returns what it compacted to.
func compactFor(c *compactor, start time.Time, d time.Duration) (at []time.Duration, revs []int64) {
	for t := time.Duration(0); t <= d; t += 30 * time.Second {
		if rev := c.due(start.Add(t), revisionAt(t)); rev != 0 {
			c.done = rev
			at, revs = append(at, t), append(revs, rev)
		}
	}
	return at, revs
}

func TestPeriodicCompactionKeepsOneRetention(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	for _, retention := range []time.Duration{10 * time.Minute, time.Hour, 5 * time.Hour} {
		c := newCompactor(Compaction{Every: retention}, start)
		at, revs := compactFor(c, start, 3*retention)
		if len(at) == 0 {
			t.Fatalf("retention %v: nothing was compacted", retention)
		}
		every := min(retention, time.Hour)
		for i := range at {
			kept := at[i] - time.Duration(revs[i]/10-1)*time.Minute
			if kept < retention || kept > retention+every/5 {
				t.Errorf("retention %v: at %v history of %v was kept", retention, at[i], kept)
			}
			if i > 0 && (at[i]-at[i-1] < every || at[i]-at[i-1] > every+every/5) {
				t.Errorf("retention %v: %v between two runs", retention, at[i]-at[i-1])
			}
		}
		if at[0] > retention+every/5 {
			t.Errorf("retention %v: first run after %v", retention, at[0])
		}
		if len(c.samples) > 60 {
			t.Errorf("retention %v: %d samples are kept", retention, len(c.samples))
		}
	}
}

func TestRevisionCompactionKeepsThatMany(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	at, revs := compactFor(newCompactor(Compaction{Keep: 100}, start), start, time.Hour)
	if len(at) == 0 {
		t.Fatal("nothing was compacted")
	}
	for i := range at {
		if now := revisionAt(at[i]); revs[i] != now-100 {
			t.Errorf("at revision %d compacted to %d", now, revs[i])
		}
		if i > 0 && at[i]-at[i-1] < revisionEvery {
			t.Errorf("%v between two runs", at[i]-at[i-1])
		}
	}
}

func TestNoCompactionUnlessAsked(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	if at, _ := compactFor(newCompactor(Compaction{}, start), start, 10*time.Hour); len(at) > 0 {
		t.Errorf("compacted at %v", at)
	}
}

func TestNoCompactionTwiceToTheSameRevision(t *testing.T) {
	start := time.Unix(1_000_000, 0)
	c := newCompactor(Compaction{Keep: 10}, start)
	if rev := c.due(start, 50); rev != 40 {
		t.Fatalf("due: %d, want 40", rev)
	}
	c.done = 40
	if rev := c.due(start.Add(time.Hour), 50); rev != 0 {
		t.Errorf("due again: %d", rev)
	}
}
