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
// for. What a sole voter has on disk is committed, whether or not it has noted that: the
// flag may be left in place.
func (n *Node) forceAlone(found *wal.Recovered, applied uint64) error {
	hard := found.HardState
	if hard == nil {
		hard = &raftpb.HardState{}
	}
	commit := max(hard.GetCommit(), applied)

	// Who votes, by member, when every committed entry is applied.
	votes := make(map[uint64]bool)
	conf := fsm.ConfState(n.cluster.State())
	for _, id := range conf.Learners {
		votes[id] = false
	}
	for _, id := range conf.Voters {
		votes[id] = true
	}
	ents := found.Entries
	for i, e := range ents {
		if e.GetIndex() > commit && !soleVoter(votes, n.id) {
			ents = ents[:i]
			break
		}
		if e.GetType() != raftpb.EntryConfChange || e.GetIndex() <= applied {
			continue
		}
		var cc raftpb.ConfChange
		if err := proto.Unmarshal(e.Data, &cc); err != nil {
			return fmt.Errorf("entry %d: %w", e.GetIndex(), err)
		}
		switch cc.GetType() {
		case raftpb.ConfChangeAddNode:
			votes[cc.GetNodeId()] = true
		case raftpb.ConfChangeAddLearnerNode:
			votes[cc.GetNodeId()] = false
		case raftpb.ConfChangeRemoveNode:
			delete(votes, cc.GetNodeId())
		}
	}
	if !votes[n.id] {
		return errors.New("--force-new-cluster: this member has no vote, as a learner or because it was removed, and cannot go on alone: use the data of a voter")
	}
	delete(votes, n.id)
	dropped := len(found.Entries) - len(ents)
	if len(votes) == 0 && dropped == 0 {
		return nil
	}

	index := commit
	if len(ents) > 0 {
		index = max(index, ents[len(ents)-1].GetIndex())
	}
	var removals []*raftpb.Entry
	for _, id := range slices.Sorted(maps.Keys(votes)) {
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
	n.log.Warn("going on without the other members", "removed", len(votes), "dropped-entries", dropped)
	return nil
}

// soleVoter reports whether id alone votes.
func soleVoter(votes map[uint64]bool, id uint64) bool {
	for other, vote := range votes {
		if vote && other != id {
			return false
		}
	}
	return votes[id]
}
