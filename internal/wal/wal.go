// Package wal is the durable log: raft entries, hard states and snapshot marks in
// etcd 3.7's segment files (docs/formats/wal.md).
//
// Append returns once what it wrote is on disk. Segments are filled with zeros before
// they are needed, so that a sync writes data and touches no metadata, and so that a
// full disk is found by the preparer, never in the middle of an append: Room says how
// much can still be appended for certain.
//
// Open tells a torn tail (an append that a crash cut short, never acknowledged) from
// damage (a bad record that valid ones follow, or that lies below what is known to have
// been synced). It cuts off the former and refuses the latter.
package wal

import (
	"quorate/internal/vfs"

	"go.etcd.io/raft/v3/raftpb"
)

// Metadata is what the first record of every segment says about its owner.
type Metadata struct {
	NodeID    uint64
	ClusterID uint64
}

// Snapshot marks that the state up to Index is held elsewhere (in the B+tree file).
type Snapshot struct {
	Index     uint64
	Term      uint64
	ConfState *raftpb.ConfState
}

// Recovered is what Open found.
type Recovered struct {
	Metadata  Metadata
	Snapshot  Snapshot // the newest valid mark
	HardState *raftpb.HardState
	Entries   []*raftpb.Entry // those after Snapshot.Index
	Cut       int64           // bytes of torn tail that were cut off, 0 if none
}

// Options configure a Log.
type Options struct {
	FS           vfs.FS
	SegmentBytes int64 // 0: etcd's 64,000,000
	NoSync       bool  // --unsafe-no-fsync
	// OnSync is told how long each sync of an append took, in seconds; may be nil.
	OnSync func(seconds float64)
}

// Log is an open log. Append and SaveSnapshot are for one goroutine, the log writer;
// Room and Release may run beside them.
type Log struct{}

// Exists reports whether dir holds a log.
func Exists(fs vfs.FS, dir string) (bool, error) { panic("unbuilt") }

// Create makes a new log in dir, which must not exist, in one atomic step.
func Create(dir string, md Metadata, opts Options) (*Log, error) { panic("unbuilt") }

// Open opens the log in dir for appending. synced is the highest entry index known to
// have been on disk (the store's applied index): damage at or below it is never taken
// for a torn tail.
func Open(dir string, synced uint64, opts Options) (*Log, *Recovered, error) { panic("unbuilt") }

// Append writes entries and, if not nil, the hard state, and syncs unless sync is false
// (a hard state whose commit index alone changed needs none). An entry at or below the
// last index replaces that index and everything after it. After an error the Log is
// broken: every later call returns that error and the process must stop.
func (l *Log) Append(entries []*raftpb.Entry, hs *raftpb.HardState, sync bool) error {
	panic("unbuilt")
}

// SaveSnapshot marks that entries up to s.Index are no longer needed for recovery, and syncs.
func (l *Log) SaveSnapshot(s Snapshot) error { panic("unbuilt") }

// Release deletes segments that hold only entries below index; they must lie below a
// saved snapshot mark.
func (l *Log) Release(index uint64) error { panic("unbuilt") }

// Room is how many bytes of records can be appended for certain, into segments that are
// already filled with zeros. It shrinks to nothing when the disk is full and grows again
// by itself when there is room.
func (l *Log) Room() int64 { panic("unbuilt") }

// Close syncs and closes the log, and waits for the preparer to end.
func (l *Log) Close() error { panic("unbuilt") }
