package node

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"quorate/internal/fsm"
	"quorate/internal/membership"
	"quorate/internal/wal"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// forceAlone makes this member the only one of its cluster (--force-new-cluster): entries
// that are not known to be committed are dropped, and removals of all others are written
// as committed. What only the others had acknowledged is lost; that is what the flag is
// for.
func (n *Node) forceAlone(found *wal.Recovered, applied uint64) error {
	hard := found.HardState
	if hard == nil {
		hard = &raftpb.HardState{}
	}
	commit := max(hard.GetCommit(), applied)
	ents := found.Entries
	for len(ents) > 0 && ents[len(ents)-1].GetIndex() > commit {
		ents = ents[:len(ents)-1]
	}
	dropped := len(found.Entries) - len(ents)

	// The members as they will be when every committed entry is applied.
	others := make(map[uint64]bool)
	conf := fsm.ConfState(n.cluster.State())
	for _, id := range append(conf.Voters, conf.Learners...) {
		others[id] = true
	}
	votes := slices.Contains(conf.Voters, n.id)
	for _, e := range ents {
		if e.GetType() != raftpb.EntryConfChange || e.GetIndex() <= applied {
			continue
		}
		var cc raftpb.ConfChange
		if err := proto.Unmarshal(e.Data, &cc); err != nil {
			return fmt.Errorf("entry %d: %w", e.GetIndex(), err)
		}
		if cc.GetNodeId() == n.id && cc.GetType() != raftpb.ConfChangeUpdateNode {
			votes = cc.GetType() == raftpb.ConfChangeAddNode
		}
		switch cc.GetType() {
		case raftpb.ConfChangeAddNode, raftpb.ConfChangeAddLearnerNode:
			others[cc.GetNodeId()] = true
		case raftpb.ConfChangeRemoveNode:
			delete(others, cc.GetNodeId())
		}
	}
	delete(others, n.id)
	if !votes {
		return errors.New("--force-new-cluster: this member has no vote, as a learner or because it was removed, and cannot go on alone: use the data of a voter")
	}
	if len(others) == 0 && dropped == 0 {
		return nil
	}

	index := commit
	var removals []*raftpb.Entry
	for _, id := range slices.Sorted(maps.Keys(others)) {
		index++
		data, err := proto.Marshal(&raftpb.ConfChange{Type: raftpb.ConfChangeRemoveNode.Enum(), NodeId: new(id)})
		if err != nil {
			return fmt.Errorf("encode the removal of member %s: %w", membership.ID(id), err)
		}
		removals = append(removals, &raftpb.Entry{
			Type: raftpb.EntryConfChange.Enum(), Term: new(hard.GetTerm()), Index: new(index), Data: data,
		})
	}
	hard.Commit = new(index)
	if err := n.wal.Append(removals, hard, true); err != nil {
		return err
	}
	found.Entries, found.HardState = append(ents, removals...), hard
	n.log.Warn("going on without the other members", "removed", len(others), "dropped-entries", dropped)
	return nil
}
