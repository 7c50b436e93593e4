package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"quorate/internal/membership"
	"quorate/internal/vfs"

	"go.etcd.io/raft/v3/raftpb"
)

var testState = &membership.State{
	Members: []membership.Member{
		{ID: 1, PeerURLs: []string{"http://a:1"}, Name: "a", ClientURLs: []string{"http://a:2"}},
		{ID: 2, PeerURLs: []string{"http://b:1"}, IsLearner: true},
	},
	Removed: []membership.ID{3},
	Version: membership.Version{Major: 3, Minor: 7},
}

func TestSaveReadListClean(t *testing.T) {
	fsys, dir := vfs.OS(), t.TempDir()
	for i := uint64(1); i <= 8; i++ {
		if err := Save(fsys, dir, i*10, 2, &raftpb.ConfState{Voters: []uint64{1}}, testState); err != nil {
			t.Fatal(err)
		}
	}
	ids, err := List(fsys, dir)
	if err != nil || fmt.Sprint(ids) != "[0000000000000002-0000000000000050.snap 0000000000000002-0000000000000046.snap "+
		"0000000000000002-000000000000003c.snap 0000000000000002-0000000000000032.snap 0000000000000002-0000000000000028.snap]" {
		t.Fatal(ids, err)
	}
	s, err := Read(fsys, dir, ids[0])
	if err != nil || !bytes.Equal(s.Data, V2Store(testState)) || s.Metadata.GetIndex() != 80 || s.Metadata.GetConfState().GetVoters()[0] != 1 {
		t.Fatal(s, err)
	}
	if _, err := Read(fsys, dir, ID{9, 9}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}

	// No byte of a file can be changed unnoticed.
	name := filepath.Join(dir, ids[0].String())
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(good); i += 1 + len(good)/500 {
		b := bytes.Clone(good)
		b[i] ^= 1 << (i % 8)
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(fsys, dir, ids[0]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d: %v", i, err)
		}
		if err := os.WriteFile(name, good[:i], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Read(fsys, dir, ids[0]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	if err := os.Rename(name, filepath.Join(dir, ID{9, 9}.String())); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ID{9, 9}.String()), good, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(fsys, dir, ID{9, 9}); !errors.Is(err, ErrCorrupt) {
		t.Error("a file under another's name was read:", err)
	}

	for _, n := range []string{"db", "db.tmp.1", "tmp123", "0000000000000010.snap.db", "x.snap.tmp", "other"} {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := Clean(fsys, dir); err != nil {
		t.Fatal(err)
	}
	names, err := fsys.List(dir)
	if err != nil || len(names) != 8 || names[5] != "0000000000000010.snap.db" || names[6] != "db" || names[7] != "other" {
		t.Error(names, err)
	}
	if err := Clean(fsys, filepath.Join(dir, "missing")); err != nil {
		t.Error(err)
	}
}

func TestTrailer(t *testing.T) {
	var buf bytes.Buffer
	w := NewTrailerWriter(&buf)
	for range 4 {
		if _, err := w.Write(make([]byte, 1024)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish(); err != nil {
		t.Fatal(err)
	}
	b := buf.Bytes()
	if n, err := CheckTrailer(bytes.NewReader(b), int64(len(b))); n != 4096 || err != nil {
		t.Error(n, err)
	}
	if _, err := CheckTrailer(bytes.NewReader(b[:4096]), 4096); !errors.Is(err, ErrNoTrailer) {
		t.Error(err)
	}
	b[100]++
	if _, err := CheckTrailer(bytes.NewReader(b), int64(len(b))); !errors.Is(err, ErrCorrupt) {
		t.Error(err)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(envelope([]byte("data")))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		data, err := open(b)
		if err == nil && !bytes.Equal(envelope(data), b) {
			// Only a longer spelling of a number may differ.
			if again, err := open(envelope(data)); err != nil || !bytes.Equal(again, data) {
				t.Fatalf("%x", b)
			}
		}
	})
}
