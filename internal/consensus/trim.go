package consensus

import "math"

// youngElections is for how many election timeouts after it was applied an entry is kept,
// however many there are: what a member lacks that is heard of is not older than that,
// whoever leads next. Beyond that, KeepEntries are; KeepBytes bounds both.
const youngElections = 2

// ages knows which entries were applied how many ticks ago.
type ages struct {
	applied []uint64 // at each of the last ticks
	next    int      // the oldest of them
}

func newAges(ticks int) ages { return ages{applied: make([]uint64, ticks)} }

func (a *ages) tick(applied uint64) {
	a.applied[a.next] = applied
	a.next = (a.next + 1) % len(a.applied)
}

// old is the last entry that is not young any more.
func (a *ages) old() uint64 { return a.applied[a.next] }

// trim forgets applied entries that no member is likely to need.
func (c *Core) trim() {
	upTo := c.applied
	for _, s := range c.sending {
		upTo = min(upTo, s.from)
	}
	old := c.ages.old()
	if len(c.conf.Voters)+len(c.conf.Learners) == 1 {
		old = upTo // there is nobody to keep them for
	}
	c.log.Trim(min(upTo, old), c.cfg.KeepEntries, c.cfg.KeepBytes)
	c.log.Trim(upTo, math.MaxInt, c.cfg.KeepBytes)
	if upTo < c.applied {
		c.log.Trim(c.applied, math.MaxInt, heldBytesMax)
	}
}
