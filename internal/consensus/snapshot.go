package consensus

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
)

const (
	// snapshotsMax is how many members are sent a snapshot at a time; others wait.
	snapshotsMax = 2
	// heldBytesMax bounds the entries that are kept for members that receive a snapshot,
	// so that they can go on from it. A member that lacks more needs another snapshot.
	heldBytesMax = 256 << 20
	// heldElections is for how many election timeouts after a snapshot was sent they are
	// kept while the member has not answered.
	heldElections = 60
)

// sending is a snapshot on its way to a member.
type sending struct {
	from  uint64 // entries above are kept; the snapshot is at least that new
	sent  bool   // it has arrived
	ticks int    // since then
}

// SnapshotSent says how sending the snapshot that Ready asked for has ended.
func (c *Core) SnapshotSent(to uint64, ok bool) {
	if !ok {
		delete(c.sending, to)
		c.rn.ReportSnapshot(to, raft.SnapshotFailure)
		return
	}
	if s := c.sending[to]; s != nil {
		s.sent = true
	}
	c.rn.ReportSnapshot(to, raft.SnapshotFinish)
}

// tickSnapshots forgets snapshots whose receivers follow again, or will not.
func (c *Core) tickSnapshots() {
	if len(c.sending) == 0 {
		return
	}
	for _, s := range c.sending {
		if s.sent {
			s.ticks++
		}
	}
	following := make(map[uint64]bool)
	c.rn.WithProgress(func(id uint64, _ raft.ProgressType, pr tracker.Progress) {
		if s := c.sending[id]; s != nil {
			following[id] = s.sent && pr.State == tracker.StateReplicate && pr.Match+uint64(c.cfg.KeepEntries) >= c.committed
		}
	})
	for id, s := range c.sending {
		if follows, member := following[id]; follows || !member || s.ticks > heldElections*c.cfg.ElectionTicks {
			delete(c.sending, id)
		}
	}
}
