package node

import (
	"crypto/rand"
	"encoding/binary"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// Work says which turns of a member that is stepped (Open) are due.
type Work struct {
	Loop, Log, Apply bool
	// LoopAt, unless zero, is when the loop wants a turn whether or not something arrives.
	LoopAt time.Time
}

// Work returns what is due. Each turn is told once. Only who steps the loop may call it.
func (n *Node) Work() Work {
	due := func(wake <-chan struct{}) bool {
		select {
		case <-wake:
			return true
		default:
			return false
		}
	}
	return Work{Loop: due(n.inbox.wake), Log: due(n.appends.wake), Apply: due(n.applies.wake), LoopAt: n.campaignAt}
}

// LogFrom returns the durable entries from index on, as far as they are kept in memory.
// They must not be changed. Only who steps the loop may call it.
func (n *Node) LogFrom(index uint64) []*raftpb.Entry { return n.core.LogFrom(index) }

// randomBelow returns a time in [0, d), from the source that Raft has its own random times
// from, so that tests can seed both.
func randomBelow(d time.Duration) time.Duration {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return time.Duration(binary.BigEndian.Uint64(b[:]) % uint64(d))
}

// Committed is the highest entry known to be committed, as of the loop's last turn.
func (n *Node) Committed() uint64 { return n.committed.Load() }
