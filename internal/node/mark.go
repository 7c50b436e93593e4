package node

import (
	"fmt"
	"time"

	"quorate/internal/fsm"
	"quorate/internal/snapshot"
	"quorate/internal/wal"
)

// onFlush is called by the flusher when everything up to entry index is in the file. Once
// enough entries are, it marks that in the log, so that a start replays only what comes
// after and older segments can go.
//
// The .snap file is for etcd up to 3.6, which reads the membership from it; it is written
// before the mark that stands for it.
func (n *Node) onFlush(index, term uint64) {
	if index < n.lastMark.Load()+n.cfg.SnapshotCount {
		return
	}
	// The applier may be ahead, but not with a change of the membership: it says so before
	// it makes one, so that a state without a later change is what it was at index.
	state := n.cluster.State()
	if index < n.memberAt.Load() {
		return
	}
	conf := fsm.ConfState(state)
	begin := time.Now()
	if err := snapshot.Save(n.cfg.FS, n.cfg.snapDir(), index, term, conf, state); err != nil {
		// The log keeps more than it needs; the next flush tries again.
		n.log.Warn("could not write the snapshot file", "index", index, "error", err)
		return
	}
	if err := n.removeReceived(index); err != nil {
		n.log.Warn("could not remove an old snapshot", "error", err)
	}
	n.met.SnapSaveSeconds.Observe(time.Since(begin).Seconds())
	n.lastMark.Store(index)
	n.appends.put(logWork{mark: &wal.Snapshot{Index: index, Term: term, ConfState: conf}})
	n.log.Debug(fmt.Sprintf("marked entry %d", index), "index", index, "term", term)
}
