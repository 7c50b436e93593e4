package wal

import (
	"fmt"
	"path/filepath"
	"testing"

	"quorate/internal/vfs"

	"go.etcd.io/raft/v3/raftpb"
)

// nullFS takes writes and forgets them, so that a benchmark shows what the log itself
// costs.
type nullFS struct{ vfs.FS }

type nullFile struct{ vfs.File }

func (n nullFS) Create(name string) (vfs.File, error) {
	f, err := n.FS.Create(name)
	return nullFile{f}, err
}
func (n nullFS) Open(name string) (vfs.File, error) {
	f, err := n.FS.Open(name)
	return nullFile{f}, err
}
func (nullFile) WriteAt(b []byte, off int64) (int, error) { return len(b), nil }
func (nullFile) Sync() error                              { return nil }

func BenchmarkAppend(b *testing.B) {
	for _, disk := range []string{"null", "real"} {
		for _, batch := range []uint64{1, 16, 256} {
			b.Run(fmt.Sprintf("%s/batch=%d", disk, batch), func(b *testing.B) {
				fsys := vfs.OS()
				if disk == "null" {
					fsys = nullFS{fsys}
				}
				l, err := Create(filepath.Join(b.TempDir(), "wal"), testMetadata, Options{FS: fsys})
				if err != nil {
					b.Fatal(err)
				}
				es := entries(1, batch, 1, 300)
				hs := hard(1, 1, 0)
				var next uint64 = 1
				b.SetBytes(int64(batch) * 300)
				b.ReportAllocs()
				for b.Loop() {
					for _, e := range es {
						*e.Index = next
						next++
					}
					*hs.Commit = next - 1
					if err := l.Append(es, hs, true); err != nil {
						b.Fatal(err)
					}
				}
				if err := l.Close(); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}

func BenchmarkOpen(b *testing.B) {
	dir := filepath.Join(b.TempDir(), "wal")
	opts := Options{FS: vfs.OS(), NoSync: true}
	l, err := Create(dir, testMetadata, opts)
	if err != nil {
		b.Fatal(err)
	}
	const n = 400_000
	for i := uint64(1); i < n; i += 500 {
		if err := l.Append(entries(i, i+499, 1, 300), hard(1, 1, i), true); err != nil {
			b.Fatal(err)
		}
		if i%10_000 == 1 && i > 100_000 {
			if err := l.SaveSnapshot(Snapshot{Index: i - 1, Term: 1, ConfState: &raftpb.ConfState{Voters: []uint64{1}}}, nil); err != nil {
				b.Fatal(err)
			}
		}
	}
	if err := l.Close(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		l, rec, err := Open(dir, n, opts)
		if err != nil || len(rec.Entries) != 10_000 {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
