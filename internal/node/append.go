package node

import (
	"errors"
	"fmt"

	"quorate/internal/consensus"
	"quorate/internal/wal"

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
		err := n.writeAll(n.appends.take())
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

func (n *Node) writeAll(work []logWork) error {
	for len(work) > 0 {
		if m := work[0].mark; m != nil {
			if err := n.mark(*m); err != nil {
				return err
			}
			work = work[1:]
			continue
		}
		group := joinable(work)
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
// on where the one before ends.
func joinable(work []logWork) int {
	last := uint64(0)
	for i, w := range work {
		if w.mark != nil {
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

// mark writes a mark into the log and deletes the segments before it.
func (n *Node) mark(s wal.Snapshot) error {
	if err := n.wal.SaveSnapshot(s); err != nil {
		return fmt.Errorf("mark entry %d: %w", s.Index, err)
	}
	if err := n.wal.Release(s.Index); err != nil {
		return fmt.Errorf("release segments below entry %d: %w", s.Index, err)
	}
	return nil
}
