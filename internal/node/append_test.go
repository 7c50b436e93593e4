package node

import (
	"testing"

	"quorate/internal/vfs"
	"quorate/internal/wal"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// TestSnapshotIsWrittenWithWhatFollowsIt: entries that came right behind a snapshot, and so
// in one Append with it, are on disk with their hard state before the applier is told.
func TestSnapshotIsWrittenWithWhatFollowsIt(t *testing.T) {
	opts := wal.Options{FS: vfs.NewMem()}
	if err := opts.FS.Mkdir("d"); err != nil {
		t.Fatal(err)
	}
	log, err := wal.Create("d/wal", wal.Metadata{NodeID: 1, ClusterID: 2}, opts)
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{wal: log, hard: &raftpb.HardState{}, appends: newMailbox[logWork](), applies: newMailbox[applyWork](), inbox: newMailbox[arrival]()}
	conf := &raftpb.ConfState{Voters: []uint64{1, 3}}
	want := []*raftpb.Entry{
		{Term: new(uint64(4)), Index: new(uint64(51)), Data: []byte("a")},
		{Term: new(uint64(4)), Index: new(uint64(52)), Data: []byte("b")},
	}
	m := &raftpb.Message{
		Term: new(uint64(4)), Vote: new(uint64(3)), Commit: new(uint64(50)),
		Snapshot: &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(50)), Term: new(uint64(3)), ConfState: conf}},
		Entries:  want,
	}
	n.appends.put(logWork{write: m})
	if err := n.StepLog(); err != nil {
		t.Fatal(err)
	}
	if w := n.applies.take(); len(w) != 1 || w[0].install != m {
		t.Errorf("the applier was told %v", w)
	}
	if a := n.inbox.take(); len(a) != 0 {
		t.Errorf("the loop was told before the snapshot is installed: %v", a)
	}

	opts.FS = opts.FS.(*vfs.Mem).Crash(1)
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	log, found, err := wal.Open("d/wal", 0, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close() // nothing was written
	if found.Snapshot.Index != 50 || found.Snapshot.Term != 3 || !proto.Equal(found.Snapshot.ConfState, conf) {
		t.Errorf("the log begins after %+v", found.Snapshot)
	}
	if hs := found.HardState; hs.GetTerm() != 4 || hs.GetVote() != 3 || hs.GetCommit() != 50 {
		t.Errorf("hard state %v", hs)
	}
	if len(found.Entries) != len(want) {
		t.Fatalf("%d entries, want %d", len(found.Entries), len(want))
	}
	for i, e := range found.Entries {
		if e.GetIndex() != want[i].GetIndex() || string(e.Data) != string(want[i].Data) {
			t.Errorf("entry %v, want %v", e, want[i])
		}
	}
}
