package wal

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"quorate/internal/vfs"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

var testMetadata = Metadata{NodeID: 0x8e9e05c52164694d, ClusterID: 0xcdf818194e3a8c32}

func entry(index, term uint64, size int) *raftpb.Entry {
	data := []byte(fmt.Sprintf("%d/%d ", term, index))
	for i := len(data); i < size; i++ {
		data = append(data, byte(uint64(i)*index)|1)
	}
	return &raftpb.Entry{Index: &index, Term: &term, Data: data[:size]}
}

func entries(from, to, term uint64, size int) []*raftpb.Entry {
	var es []*raftpb.Entry
	for i := from; i <= to; i++ {
		es = append(es, entry(i, term, size))
	}
	return es
}

func hard(term, vote, commit uint64) *raftpb.HardState { return state{term, vote, commit}.hardState() }

func sameEntries(t *testing.T, got, want []*raftpb.Entry) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("got %d entries, want %d", len(got), len(want))
	}
	for i := range got {
		if !proto.Equal(got[i], want[i]) {
			t.Fatalf("entry %d: got %v, want %v", i, got[i], want[i])
		}
	}
}

func TestAppendAndOpen(t *testing.T) {
	for _, segment := range []int64{0, 4096, 512} {
		t.Run(fmt.Sprint(segment), func(t *testing.T) {
			opts := Options{FS: vfs.OS(), SegmentBytes: segment}
			dir := filepath.Join(t.TempDir(), "wal")
			if found, err := Exists(opts.FS, dir); found || err != nil {
				t.Fatal(found, err)
			}
			l, err := Create(dir, testMetadata, opts)
			if err != nil {
				t.Fatal(err)
			}
			if found, err := Exists(opts.FS, dir); !found || err != nil {
				t.Fatal(found, err)
			}
			var want []*raftpb.Entry
			for i := uint64(1); i < 100; i += 5 {
				es := entries(i, i+4, 2, 100)
				want = append(want, es...)
				if err := l.Append(es, hard(2, 7, i), true); err != nil {
					t.Fatal(err)
				}
				if err := l.Append(nil, hard(2, 7, i+4), false); err != nil {
					t.Fatal(err)
				}
			}
			if _, _, err := Open(dir, 0, opts); err == nil {
				t.Fatal("a log that is open was opened again")
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				l, rec, err := Open(dir, 100, opts)
				if err != nil {
					t.Fatal(err)
				}
				sameEntries(t, rec.Entries, want)
				if !proto.Equal(rec.HardState, hard(2, 7, 100)) || rec.Metadata != testMetadata || rec.Snapshot.Index != 0 || rec.Cut != 0 {
					t.Fatalf("%+v", rec)
				}
				es := entries(uint64(len(want)+1), uint64(len(want)+3), 2, 1000)
				want = append(want, es...)
				if err := l.Append(es, nil, true); err != nil {
					t.Fatal(err)
				}
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// What appendEntry writes is what protobuf-go would.
func TestEntryEncoding(t *testing.T) {
	typ := raftpb.EntryConfChange
	for i, e := range []*raftpb.Entry{
		{}, entry(1, 1, 10), entry(1<<63, 1<<63, 100000), {Type: &typ, Index: proto.Uint64(3)}, {Data: []byte{}},
	} {
		want, err := proto.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		enc := encoder{sum: 5}
		b := enc.entry(nil, e)
		body, _, ok := unframe(uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[7])<<56)
		rec, err := parseBody(b[frameBytes:][:body])
		if err != nil || !ok || !bytes.Equal(rec.data, want) || rec.crc != checksum(5, want) || enc.sum != rec.crc {
			t.Errorf("%d: got %x, want %x, %v", i, rec.data, want, err)
		}
		if len(b)%8 != 0 || int64(len(b)) > EntryBytes(e) {
			t.Errorf("%d: %d bytes, EntryBytes says %d", i, len(b), EntryBytes(e))
		}
	}
}

// A snapshot of the leader's takes the place of what is in the log, once it is committed.
func TestSnapshotFromLeader(t *testing.T) {
	opts := Options{FS: vfs.NewMem(), SegmentBytes: 2000}
	if err := opts.FS.Mkdir("d"); err != nil {
		t.Fatal(err)
	}
	l, err := Create("d/wal", testMetadata, opts)
	if err != nil {
		t.Fatal(err)
	}
	reopen := func() *Recovered {
		t.Helper()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		var rec *Recovered
		if l, rec, err = Open("d/wal", 0, opts); err != nil {
			t.Fatal(err)
		}
		return rec
	}
	old := entries(1, 3, 1, 100)
	if err := l.Append(old, hard(1, 1, 2), true); err != nil {
		t.Fatal(err)
	}
	mark := Snapshot{Index: 500, Term: 2, ConfState: &raftpb.ConfState{Voters: []uint64{1, 2}}}
	if err := l.SaveSnapshot(mark, nil); err != nil {
		t.Fatal(err)
	}
	rec := reopen()
	if rec.Snapshot.Index != 0 {
		t.Fatalf("a mark that is not committed was used: %+v", rec)
	}
	sameEntries(t, rec.Entries, old)

	if err := l.Append(nil, hard(2, 0, 500), true); err != nil {
		t.Fatal(err)
	}
	rec = reopen()
	if rec.Snapshot.Index != 500 || !proto.Equal(rec.Snapshot.ConfState, mark.ConfState) || len(rec.Entries) != 0 {
		t.Fatalf("%+v", rec)
	}
	more := entries(501, 503, 2, 900) // in a segment of their own
	if err := l.Append(more, nil, true); err != nil {
		t.Fatal(err)
	}
	sameEntries(t, reopen().Entries, more)
	if name := l.tail.name; name != segmentName(1, 501) {
		t.Errorf("the segment after the mark is %s", name)
	}
}

// A term or a vote is on disk when Append returns, also if the one changes without the
// other, and whatever the caller says of syncing.
func TestTermAndVoteAreDurable(t *testing.T) {
	m := vfs.NewMem()
	l := memLog(t, m, Options{})
	if err := m.SyncDir("."); err != nil {
		t.Fatal(err)
	}
	for i, hs := range []*raftpb.HardState{hard(2, 0, 0), hard(2, 3, 0), hard(3, 3, 0), hard(4, 0, 0), hard(4, 1, 0)} {
		if err := l.Append(nil, hs, false); err != nil {
			t.Fatal(err)
		}
		for seed := range uint64(5) {
			after, rec, err := Open("d/wal", 0, Options{FS: m.Crash(seed)})
			if err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(rec.HardState, hs) {
				t.Errorf("step %d: %v after a crash, want %v", i, rec.HardState, hs)
			}
			if err := after.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// Released segments take nothing with them that a start needs: not the term and vote, not
// the mark itself, not the entries after it.
func TestReleaseLeavesWhatAStartNeeds(t *testing.T) {
	opts := Options{FS: vfs.NewMem(), SegmentBytes: 2000}
	if err := opts.FS.Mkdir("d"); err != nil {
		t.Fatal(err)
	}
	l, err := Create("d/wal", testMetadata, opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Append(entries(1, 3, 5, 100), hard(5, 2, 3), true); err != nil {
		t.Fatal(err)
	}
	if err := l.SaveSnapshot(Snapshot{Index: 3, Term: 5, ConfState: &raftpb.ConfState{Voters: []uint64{2}}}, nil); err != nil {
		t.Fatal(err)
	}
	// The next segment begins right after the mark, which is in the one before.
	if err := l.Append(entries(4, 5, 5, 900), nil, true); err != nil {
		t.Fatal(err)
	}
	if first := l.tail.first; first != 4 {
		t.Fatalf("the tail begins with entry %d", first)
	}
	reopen := func(mark, from, to uint64) {
		t.Helper()
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		var rec *Recovered
		if l, rec, err = Open("d/wal", to, opts); err != nil {
			t.Fatal(err)
		}
		if rec.Snapshot.Index != mark || rec.HardState.GetTerm() != 5 || rec.HardState.GetVote() != 2 {
			t.Fatalf("%+v", rec)
		}
		var want []*raftpb.Entry
		if from <= to {
			want = entries(from, to, 5, 900)
		}
		sameEntries(t, rec.Entries, want)
	}
	if err := l.Release(3); err != nil {
		t.Fatal(err)
	}
	reopen(3, 4, 5)

	// What is above the newest mark stays, whoever asks for it to go.
	if err := l.Append(entries(6, 9, 5, 900), nil, true); err != nil {
		t.Fatal(err)
	}
	if err := l.Release(9); err != nil {
		t.Fatal(err)
	}
	reopen(3, 4, 9)

	// The term and vote of the first segment outlive it, though neither changes.
	if err := l.Append(nil, hard(5, 2, 9), true); err != nil {
		t.Fatal(err)
	}
	if err := l.SaveSnapshot(Snapshot{Index: 9, Term: 5, ConfState: &raftpb.ConfState{Voters: []uint64{2}}}, nil); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(entries(10, 12, 5, 900), nil, true); err != nil {
		t.Fatal(err)
	}
	if err := l.Release(9); err != nil {
		t.Fatal(err)
	}
	if n := len(l.mu.segments); n > 3 {
		t.Errorf("%d segments are left", n)
	}
	reopen(9, 10, 12)
}

// The entries that a leader's snapshot replaces may be of later terms than what follows
// the snapshot, and more of them than it stands for. None may come back.
func TestSnapshotFromLeaderReplacesWhatWasNeverCommitted(t *testing.T) {
	for _, tc := range []struct {
		name string
		old  []*raftpb.Entry
	}{
		{"shorter log of a later term", entries(1, 3, 9, 100)},
		{"longer log of a later term", entries(1, 60, 9, 100)},
		{"the same entry and more", slices.Concat(entries(1, 50, 2, 100), entries(51, 60, 2, 100))},
	} {
		t.Run(tc.name, func(t *testing.T) {
			opts := Options{FS: vfs.NewMem()}
			if err := opts.FS.Mkdir("d"); err != nil {
				t.Fatal(err)
			}
			l, err := Create("d/wal", testMetadata, opts)
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Append(tc.old, hard(9, 1, 0), true); err != nil {
				t.Fatal(err)
			}
			mark := Snapshot{Index: 50, Term: 2, ConfState: &raftpb.ConfState{Voters: []uint64{1, 2}}}
			if err := l.SaveSnapshot(mark, hard(10, 0, 50)); err != nil {
				t.Fatal(err)
			}
			reopen := func() *Recovered {
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				var rec *Recovered
				if l, rec, err = Open("d/wal", 0, opts); err != nil {
					t.Fatal(err)
				}
				return rec
			}
			rec := reopen()
			if rec.Snapshot.Index != 50 || rec.HardState.GetCommit() != 50 {
				t.Fatalf("recovered %+v", rec)
			}
			keep := tc.old[min(50, len(tc.old)):]
			if len(keep) > 0 && keep[0].GetTerm() != 2 {
				keep = nil
			}
			sameEntries(t, rec.Entries, keep)
			// A mark of before, which was under way meanwhile, must not count any more.
			stale := Snapshot{Index: 2, Term: tc.old[1].GetTerm(), ConfState: mark.ConfState}
			if err := l.SaveSnapshot(stale, nil); err != nil {
				t.Fatal(err)
			}
			more := entries(51, 52, 3, 100)
			if err := l.Append(more, nil, true); err != nil {
				t.Fatal(err)
			}
			sameEntries(t, reopen().Entries, more)
		})
	}
}

// TestTornSnapshotFromLeader tears the group of a received snapshot at every place where a
// sector can end within it. Either the snapshot is there with its commit index, or neither:
// the commit index alone would commit what the leader's entries were to replace.
func TestTornSnapshotFromLeader(t *testing.T) {
	const segment = 64 << 10
	whole, none := 0, 0
	for shift := 0; shift < sectorBytes; shift += 8 { // as far as records are padded
		m := vfs.NewMem()
		l := memLog(t, m, Options{SegmentBytes: segment})
		old := append(entries(1, 7, 2, 10), entry(8, 2, 1+shift))
		if err := l.Append(old, hard(2, 1, 3), true); err != nil {
			t.Fatal(err)
		}
		from := l.off
		if err := l.SaveSnapshot(Snapshot{Index: 5, Term: 4, ConfState: &raftpb.ConfState{Voters: []uint64{1, 2}}}, hard(4, 0, 5)); err != nil {
			t.Fatal(err)
		}
		to := l.off
		name := "d/wal/" + l.tail.name
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		end := (from/sectorBytes + 1) * sectorBytes
		if end < to {
			f, err := m.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(make([]byte, to-end), end); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
		l, rec, err := Open("d/wal", 3, Options{FS: m, SegmentBytes: segment})
		if err != nil {
			t.Fatalf("%d bytes of %d: %v", end-from, to-from, err)
		}
		if rec.Snapshot.Index == 5 {
			whole++
			sameEntries(t, rec.Entries, nil)
			if !proto.Equal(rec.HardState, hard(4, 0, 5)) {
				t.Fatalf("%d bytes of %d: the hard state is %v", end-from, to-from, rec.HardState)
			}
		} else {
			none++
			sameEntries(t, rec.Entries, old)
			if !proto.Equal(rec.HardState, hard(2, 1, 3)) {
				t.Fatalf("%d bytes of %d: the hard state is %v", end-from, to-from, rec.HardState)
			}
			// Nothing of it is left for later: the entries may come one by one instead.
			if err := l.Append(entries(4, 9, 4, 10), hard(4, 0, 9), true); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if l, again, err := Open("d/wal", 3, Options{FS: m, SegmentBytes: segment}); err != nil {
			t.Fatal(err)
		} else if again.Snapshot.Index != rec.Snapshot.Index {
			t.Fatalf("%d bytes of %d: the mark is %d, and then %d", end-from, to-from, rec.Snapshot.Index, again.Snapshot.Index)
		} else if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if whole == 0 || none == 0 {
		t.Errorf("the snapshot was there %d times, and not %d times", whole, none)
	}
}

// What a leader has not committed may be replaced by entries of an earlier term: a later
// leader's, who has them from yet another. What follows an entry is never of an earlier term.
func TestEntriesOfEarlierTermReplaceOthers(t *testing.T) {
	opts := Options{FS: vfs.NewMem()}
	if err := opts.FS.Mkdir("d"); err != nil {
		t.Fatal(err)
	}
	l, err := Create("d/wal", testMetadata, opts)
	if err != nil {
		t.Fatal(err)
	}
	first, other, second := entries(1, 5, 2, 10), entries(6, 9, 6, 10), entries(6, 7, 4, 10)
	for _, step := range []struct {
		ents []*raftpb.Entry
		hs   *raftpb.HardState
	}{{first, hard(2, 1, 3)}, {other, hard(6, 2, 5)}, {second, hard(7, 3, 5)}} {
		if err := l.Append(step.ents, step.hs, true); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l, rec, err := Open("d/wal", 5, opts)
	if err != nil {
		t.Fatal(err)
	}
	sameEntries(t, rec.Entries, slices.Concat(first, second))

	if err := l.Append(entries(8, 8, 3, 10), nil, true); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var damage *DamageError
	if _, _, err := Open("d/wal", 5, opts); !errors.As(err, &damage) {
		t.Errorf("entry 8 of term 3 after entry 7 of term 4: %v", err)
	}
}

// An index that the log says was committed must be there.
func TestCommitBeyondEnd(t *testing.T) {
	opts := Options{FS: vfs.OS()}
	dir := filepath.Join(t.TempDir(), "wal")
	l, err := Create(dir, testMetadata, opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Append(entries(1, 3, 1, 10), hard(1, 1, 4), true); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var damage *DamageError
	if _, _, err := Open(dir, 0, opts); !errors.As(err, &damage) {
		t.Fatal(err)
	}
}
