package consensus

// contacts knows for how long members have answered the leader's heartbeats.
type contacts struct {
	now uint64 // ticks
	of  map[uint64]contact
}

type contact struct{ since, last uint64 }

// answered notes an answer of a member. One that comes more than gap ticks after the last
// begins a new series.
func (cs *contacts) answered(id uint64, gap int) {
	c, ok := cs.of[id]
	if !ok || cs.now-c.last > uint64(gap) {
		c.since = cs.now
	}
	c.last = cs.now
	cs.of[id] = c
}

// steady reports whether a member has answered for so many ticks without a break.
func (cs *contacts) steady(id uint64, ticks int) bool {
	c, ok := cs.of[id]
	return ok && c.last-c.since >= uint64(ticks)
}
