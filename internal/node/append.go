package node

import (
	"errors"
	"fmt"

	"quorate/internal/consensus"
	"quorate/internal/wal"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// logWork is work for the log writer: one field is set.
type logWork struct {
	write *raftpb.Message // an Append of core
	mark  *wal.Snapshot   // everything up to here is in the file
}

// writeLog is the log writer: it owns the tail of the log. All Appends that wait are
// written and synced as one; "appended" goes back to the loop once they are on disk.
func (n *Node) writeLog() {
	defer close(n.appendDone)
	for stopping := false; !stopping; {
		select {
		case <-n.stopAppend:
			stopping = true
		case <-n.appends.wake:
		}
		err := n.StepLog()
		if errors.Is(err, wal.ErrClosed) {
			return // the member stops while the disk is full
		}
		if err != nil {
			// Nothing that was not synced may be answered, and what the disk holds is
			// unknown from here on: no "appended" is ever sent again.
			n.fail(fmt.Errorf("write log: %w", err))
			<-n.stopAppend
			return
		}
	}
}

// StepLog is one turn of the log writer: it writes what waits.
func (n *Node) StepLog() error {
	work := n.appends.take()
	for len(work) > 0 {
		if m := work[0].mark; m != nil {
			if err := n.mark(*m); err != nil {
				return err
			}
			work = work[1:]
			continue
		}
		group := joinable(work)
		if group == 0 {
			if err := n.writeSnapshot(work[0].write); err != nil {
				return err
			}
			work = work[1:]
			continue
		}
		if err := n.write(work[:group]); err != nil {
			return err
		}
		for _, w := range work[:group] {
			n.inbox.put(arrival{appended: w.write})
		}
		work = work[group:]
	}
	return nil
}

// joinable is how many of the first Appends can be written as one: as long as each goes
// on where the one before ends, and none has a snapshot.
func joinable(work []logWork) int {
	last := uint64(0)
	for i, w := range work {
		if w.mark != nil || !raft.IsEmptySnap(w.write.Snapshot) {
			return i
		}
		if ents := w.write.Entries; len(ents) > 0 {
			if last != 0 && ents[0].GetIndex() != last+1 {
				return i
			}
			last = ents[len(ents)-1].GetIndex()
		}
	}
	return len(work)
}

// write writes joinable Appends and returns once they are on disk.
func (n *Node) write(work []logWork) error {
	ents := work[0].write.Entries
	if len(work) > 1 {
		ents = nil
		for _, w := range work {
			ents = append(ents, w.write.Entries...)
		}
	}
	sync := false
	var hard *raftpb.HardState
	for _, w := range work {
		if consensus.MustSync(w.write, n.hard) {
			sync = true
		}
		if hs := consensus.HardState(w.write); hs != nil {
			hard, n.hard = hs, hs
		}
	}
	if len(ents) == 0 && hard == nil {
		return nil // responses that only had to wait their turn
	}
	return n.wal.Append(ents, hard, sync)
}

// writeSnapshot writes an Append with a snapshot, the state of which is in a received
// file, and hands it to the applier: the mark says that the file is to take the place of
// the store's, and a start after a crash does that, too.
func (n *Node) writeSnapshot(m *raftpb.Message) error {
	meta := m.Snapshot.GetMetadata()
	mark := wal.Snapshot{Index: meta.GetIndex(), Term: meta.GetTerm(), ConfState: meta.GetConfState()}
	hard := consensus.HardState(m)
	if hard == nil {
		hard = n.hard
	}
	n.hard = hard
	if err := n.wal.SaveSnapshot(mark, hard); err != nil {
		return fmt.Errorf("mark the snapshot of entry %d: %w", mark.Index, err)
	}
	if err := n.wal.Append(m.Entries, nil, true); err != nil {
		return err
	}
	n.applies.put(applyWork{install: m})
	return nil
}

// mark writes a mark into the log and deletes the segments before it.
func (n *Node) mark(s wal.Snapshot) error {
	if err := n.wal.SaveSnapshot(s, nil); err != nil {
		return fmt.Errorf("mark entry %d: %w", s.Index, err)
	}
	if err := n.wal.Release(s.Index); err != nil {
		return fmt.Errorf("release segments below entry %d: %w", s.Index, err)
	}
	return nil
}
