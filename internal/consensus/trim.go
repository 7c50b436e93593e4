package consensus

// youngBytesMax bounds the young entries (Config.KeepTicks) beyond KeepEntries.
const youngBytesMax = 16 << 20

// ages knows which entries were applied how many ticks ago.
type ages struct {
	applied []uint64 // at each of the last ticks
	next    int      // the oldest of them
}

func (a *ages) tick(applied uint64) {
	if len(a.applied) == 0 {
		return
	}
	a.applied[a.next] = applied
	a.next = (a.next + 1) % len(a.applied)
}

// old is the last of the entries, applied so far, that is not young any more.
func (a *ages) old(applied uint64) uint64 {
	if len(a.applied) == 0 {
		return applied
	}
	return a.applied[a.next]
}

// trim forgets applied entries that no member is likely to need. Young ones are likely to
// be needed, whoever leads next: a member that was cut off until just now lacks them.
func (c *Core) trim() {
	upTo := c.applied
	for _, s := range c.sending {
		upTo = min(upTo, s.from)
	}
	old := c.ages.old(c.applied)
	if len(c.conf.Voters)+len(c.conf.Learners) == 1 {
		old = upTo // there is nobody to keep them for
	}
	c.log.Trim(min(upTo, old), func(count int, bytes int64) bool {
		return count > c.cfg.KeepEntries || bytes > c.cfg.KeepBytes
	})
	c.log.Trim(upTo, func(count int, bytes int64) bool {
		return count > c.cfg.KeepEntries && bytes > youngBytesMax || bytes > c.cfg.KeepBytes
	})
	if upTo < c.applied {
		c.log.Trim(c.applied, func(_ int, bytes int64) bool { return bytes > heldBytesMax })
	}
}
