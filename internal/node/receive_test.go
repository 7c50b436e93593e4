package node

import (
	"testing"

	"quorate/internal/metrics"

	"go.etcd.io/raft/v3/raftpb"
)

// TestReceiveDropsBeyondBound: messages that find no room before the loop are dropped and
// counted by sender, and room that is free again is used.
func TestReceiveDropsBeyondBound(t *testing.T) {
	n := &Node{met: metrics.New(false), inbox: newMailbox[arrival]()}
	m := &raftpb.Message{From: new(uint64(0xab)), Entries: []*raftpb.Entry{{Data: make([]byte, 1000)}}}
	n.received.Store(receivedBytesMax - 2*messageBytes(m))
	for range 5 {
		n.receive(m)
	}
	if got := len(n.inbox.take()); got != 2 {
		t.Errorf("%d messages reached the loop, want 2", got)
	}
	if got := n.met.PeerReceivedDropped.With("ab").Value(); got != 3 {
		t.Errorf("%v were counted as dropped, want 3", got)
	}
	n.received.Add(-messageBytes(m))
	n.receive(m)
	if got := len(n.inbox.take()); got != 1 {
		t.Errorf("%d messages reached the loop, want 1", got)
	}
}
