package sim

import (
	"go.etcd.io/raft/v3/raftpb"
)

// plant is a fault in what the members rely on. The checkers have to find each.
type plant struct {
	lyingDisk  bool // syncs that do nothing
	staleReads bool // reads that ask nobody
	tamper     func(m *raftpb.Message) []*raftpb.Message
}

func (p *plant) tampered(m *raftpb.Message) []*raftpb.Message {
	if p.tamper == nil {
		return []*raftpb.Message{m}
	}
	return p.tamper(m)
}
