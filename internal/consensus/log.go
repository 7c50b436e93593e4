package consensus

import (
	"fmt"
	"slices"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// Log is the part of the replicated log that Raft may still ask for, in memory: entries
// that are durable on this member, from first() on. It implements raft.Storage and, like
// the Core that owns it, belongs to one goroutine.
//
// Invariant: entries[i].Index == trimmedIndex + 1 + i.
type Log struct {
	hard    *raftpb.HardState
	conf    *raftpb.ConfState
	entries []*raftpb.Entry
	bytes   int64 // sum of the entries' Data
	dead    int   // trimmed entries that the array of entries still holds, at most

	trimmedIndex uint64 // the entry before entries[0]
	trimmedTerm  uint64

	// busy makes Snapshot answer that it has none now.
	busy func() bool
}

// entryOverheadMax is how much longer than its Data an entry in wire form can be.
const entryOverheadMax = 32

// NewLog returns a log that continues after the state at (index, term), which was
// reached in configuration conf. A new cluster starts at (0, 0).
func NewLog(index, term uint64, hard *raftpb.HardState, conf *raftpb.ConfState) *Log {
	if hard == nil {
		hard = &raftpb.HardState{}
	}
	if conf == nil {
		conf = &raftpb.ConfState{}
	}
	return &Log{trimmedIndex: index, trimmedTerm: term, hard: hard, conf: conf}
}

// InitialState implements raft.Storage.
func (l *Log) InitialState() (*raftpb.HardState, *raftpb.ConfState, error) {
	return l.hard, l.conf, nil
}

func (l *Log) first() uint64 { return l.trimmedIndex + 1 }
func (l *Log) last() uint64  { return l.trimmedIndex + uint64(len(l.entries)) }

// FirstIndex and LastIndex implement raft.Storage.
func (l *Log) FirstIndex() (uint64, error) { return l.first(), nil }
func (l *Log) LastIndex() (uint64, error)  { return l.last(), nil }

// Term implements raft.Storage.
func (l *Log) Term(index uint64) (uint64, error) {
	switch {
	case index == l.trimmedIndex:
		return l.trimmedTerm, nil
	case index < l.trimmedIndex:
		return 0, raft.ErrCompacted
	case index > l.last():
		return 0, raft.ErrUnavailable
	}
	return l.entries[index-l.first()].GetTerm(), nil
}

// Entries implements raft.Storage: entries lo to hi-1, cut to bytesMax but never to none.
func (l *Log) Entries(lo, hi, bytesMax uint64) ([]*raftpb.Entry, error) {
	if lo < l.first() {
		return nil, raft.ErrCompacted
	}
	if hi > l.last()+1 {
		return nil, raft.ErrUnavailable
	}
	ents := l.entries[lo-l.first() : hi-l.first()]
	size := uint64(0)
	for i, e := range ents {
		size += uint64(len(e.Data)) + entryOverheadMax
		if size > bytesMax && i > 0 {
			ents = ents[:i]
			break
		}
	}
	return ents[:len(ents):len(ents)], nil
}

// Snapshot implements raft.Storage. What a follower that is too far behind receives is
// streamed from the store by the node; Raft only needs to know from which entry on.
func (l *Log) Snapshot() (*raftpb.Snapshot, error) {
	if l.busy != nil && l.busy() {
		return nil, raft.ErrSnapshotTemporarilyUnavailable
	}
	return &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{
		Index:     new(l.trimmedIndex),
		Term:      new(l.trimmedTerm),
		ConfState: l.conf,
	}}, nil
}

// restore replaces everything by the state that meta stands for.
func (l *Log) restore(meta *raftpb.SnapshotMetadata) {
	l.entries, l.bytes = nil, 0
	l.trimmedIndex, l.trimmedTerm, l.conf = meta.GetIndex(), meta.GetTerm(), meta.GetConfState()
}

// Append adds entries that are durable now. The first replaces the entry at its index
// and everything after it, as in the log on disk.
func (l *Log) Append(ents []*raftpb.Entry) {
	if len(ents) == 0 {
		return
	}
	at := ents[0].GetIndex()
	if at < l.first() || at > l.last()+1 {
		panic(fmt.Sprintf("consensus: entry %d appended to a log of %d to %d", at, l.first(), l.last()))
	}
	for _, e := range l.entries[at-l.first():] {
		l.bytes -= int64(len(e.Data))
	}
	// A full slice expression: Raft may still hold the replaced entries.
	keep := at - l.first()
	if keep < uint64(len(l.entries)) {
		l.entries = l.entries[:keep:keep]
	}
	for _, e := range ents {
		l.bytes += int64(len(e.Data))
	}
	l.entries = append(l.entries, ents...)
}

// Trim forgets entries from the front, none above index, for as long as tooMany says so of
// how many are left, and how many bytes of Data.
func (l *Log) Trim(index uint64, tooMany func(count int, bytes int64) bool) {
	n := 0
	for n < len(l.entries) && l.first()+uint64(n) <= index && tooMany(len(l.entries)-n, l.bytes) {
		l.bytes -= int64(len(l.entries[n].Data))
		n++
	}
	if n == 0 {
		return
	}
	l.trimmedTerm = l.entries[n-1].GetTerm()
	l.trimmedIndex += uint64(n)
	l.entries = l.entries[n:]
	// Messages on their way may still share the array, so it cannot be cleared; now and
	// then what is left moves to another, and the old one ends with the messages.
	if l.dead += n; l.dead > len(l.entries)+deadMin {
		l.entries, l.dead = slices.Clone(l.entries), 0
	}
}

// deadMin is how many entries may be kept for nothing at least.
const deadMin = 64

// LogFrom returns the durable entries from index on, as far as they are kept in memory.
// They must not be changed.
func (c *Core) LogFrom(index uint64) []*raftpb.Entry {
	l := c.log
	at := min(max(index, l.first())-l.first(), uint64(len(l.entries)))
	return slices.Clone(l.entries[at:])
}
