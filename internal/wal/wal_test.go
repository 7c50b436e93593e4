package wal

import (
	"bytes"
	"fmt"
	"path/filepath"
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
