package wal

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"quorate/internal/vfs"

	"go.etcd.io/raft/v3/raftpb"
)

var everyByte = flag.Bool("everybyte", false, "flip a bit of every byte of a log, not of some")

// written is a log that was closed in order, and what is in it.
type written struct {
	files   map[string][]byte
	names   []string
	entries []*raftpb.Entry
	// lastGroup is where the last group begins in the last segment, before it how many
	// entries there are.
	lastGroup int
	before    int
	end       int // of the records in the last segment
}

// writeLog writes n appends of several entries each into segments of that size.
func writeLog(t testing.TB, n int, segment int64, noSync bool) written {
	t.Helper()
	m := vfs.NewMem()
	if err := m.Mkdir("d"); err != nil {
		t.Fatal(err)
	}
	l, err := Create("d/wal", testMetadata, Options{FS: m, SegmentBytes: segment, NoSync: noSync})
	if err != nil {
		t.Fatal(err)
	}
	var w written
	for i := range uint64(n) {
		first := uint64(len(w.entries) + 1)
		size := 20 + i*97%700
		if i == uint64(n-1) {
			size = 1500 // the last group lies in several sectors
		}
		es := entries(first, first+i%4, 1+i/3, int(size))
		w.lastGroup, w.before = int(l.off), len(w.entries)
		seg := l.tail
		if err := l.Append(es, hard(1+i/3, 1, first-1), true); err != nil {
			t.Fatal(err)
		}
		if l.tail != seg {
			w.lastGroup = 0
		}
		w.entries = append(w.entries, es...)
	}
	w.end = int(l.off)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if w.names, err = segmentNames(m, "d/wal"); err != nil {
		t.Fatal(err)
	}
	w.files = map[string][]byte{}
	for _, name := range w.names {
		if w.files[name], err = vfs.ReadFile(m, "d/wal/"+name); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// open opens the log with one of its segments changed.
func (w written) open(t testing.TB, name string, content []byte, synced uint64) (*Recovered, error) {
	t.Helper()
	m := vfs.NewMem()
	if err := m.Mkdir("d/wal"); err != nil {
		t.Fatal(err)
	}
	for n, b := range w.files {
		if n == name {
			b = content
		}
		f, err := m.Create("d/wal/" + n)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	m.Hook = func(op vfs.Op) error {
		if op.Kind == "write" && op.Offset >= int64(max(len(content), len(w.files[filepath.Base(op.Name)]))) {
			return errors.New("this test needs no more space")
		}
		return nil
	}
	l, rec, err := Open("d/wal", synced, Options{FS: m, SegmentBytes: 1 << 20})
	if err == nil {
		l.abandon()
	}
	var damage *DamageError
	if err != nil && !errors.As(err, &damage) {
		t.Fatalf("the error is no DamageError: %v", err)
	}
	return rec, err
}

// No changed bit goes unnoticed, wherever it is.
func TestEveryFlippedBitIsRefused(t *testing.T) {
	for _, noSync := range []bool{false, true} { // without marks it is a log like etcd's
		w := writeLog(t, 14, 8192, noSync)
		if len(w.names) < 2 {
			t.Fatal("one segment only")
		}
		if rec, err := w.open(t, "", nil, 0); err != nil || same(rec.Entries, w.entries) != nil {
			t.Fatal(err)
		}
		rnd := rand.New(rand.NewPCG(1, 1))
		undetected := 0
		for _, name := range w.names {
			good := w.files[name]
			end := len(good)
			if name == w.names[len(w.names)-1] {
				end = min(end, w.end+600)
			}
			for i := 0; i < end; i++ {
				if !*everyByte && rnd.IntN(8) != 0 {
					continue
				}
				b := append([]byte(nil), good...)
				b[i] ^= 1 << rnd.IntN(8)
				rec, err := w.open(t, name, b, 0)
				if err != nil {
					continue
				}
				if (noSync || rec.Cut > 0) && same(rec.Entries, w.entries) == nil {
					// Without marks, no checksum covers all: not a record's type, say. And
					// behind the end it may be a torn write of which the beginning is lost.
					undetected++
					continue
				}
				t.Fatalf("nosync %v: %s byte %d: the change was not seen; %d of %d entries, cut %d", noSync, name, i, len(rec.Entries), len(w.entries), rec.Cut)
			}
		}
		t.Logf("nosync %v: %d harmless changes were not seen", noSync, undetected)
	}
}

// A sector that reads as zeros is damage, unless it lies in the last group: there it may
// be one that was never written.
func TestZeroedSectors(t *testing.T) {
	for _, noSync := range []bool{false, true} {
		w := writeLog(t, 30, 20000, noSync)
		lost := 0
		for s, name := range w.names {
			good := w.files[name]
			for from := 0; from < len(good); from += vfs.SectorBytes {
				b := append([]byte(nil), good...)
				clear(b[from:min(from+vfs.SectorBytes, len(b))])
				if string(b) == string(good) {
					continue
				}
				rec, err := w.open(t, name, b, 0)
				if err != nil {
					continue
				}
				inLast := s == len(w.names)-1 && from+vfs.SectorBytes > w.lastGroup
				if !inLast || len(rec.Entries) < w.before {
					t.Fatalf("nosync %v: %s from %d: %d of %d entries, cut %d, and no error", noSync, name, from, len(rec.Entries), len(w.entries), rec.Cut)
				}
				lost++
				// It is known that they were on disk.
				if rec, err := w.open(t, name, b, uint64(len(w.entries))); err == nil {
					t.Fatalf("%s from %d: %d entries of %d synced ones", name, from, len(rec.Entries), len(w.entries))
				}
			}
		}
		if lost == 0 {
			t.Error("no sector of the last group was taken for torn")
		}
	}
}

// What Open returns is on disk then, even if a process that was killed left it in memory
// only.
func TestOpenMakesDurable(t *testing.T) {
	w := writeLog(t, 14, 8192, false)
	for seed := range uint64(50) {
		m := vfs.NewMem()
		if err := errors.Join(m.Mkdir("d/wal"), m.SyncDir("."), m.SyncDir("d")); err != nil {
			t.Fatal(err)
		}
		for i, name := range w.names {
			f, err := m.Create("d/wal/" + name)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(w.files[name], 0); err != nil {
				t.Fatal(err)
			}
			if i < len(w.names)-1 { // a segment is on disk before the next one begins
				if err := errors.Join(f.Sync(), m.SyncDir("d/wal")); err != nil {
					t.Fatal(err)
				}
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
		l, rec, err := Open("d/wal", 0, Options{FS: m, SegmentBytes: 8192})
		if err != nil || same(rec.Entries, w.entries) != nil {
			t.Fatal(err)
		}
		after := m.Crash(seed)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l, rec, err = Open("d/wal", 0, Options{FS: after, SegmentBytes: 8192})
		if err != nil || same(rec.Entries, w.entries) != nil {
			t.Fatalf("seed %d: what Open returned was not on disk: %v", seed, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A log that is cut short anywhere loses its end only where that may be a crash's work.
func TestCutShort(t *testing.T) {
	w := writeLog(t, 14, 8192, false)
	for s, name := range w.names {
		good := w.files[name]
		for n := 0; n < len(good); n += 13 {
			rec, err := w.open(t, name, good[:n:n], uint64(w.before))
			if s < len(w.names)-1 && err == nil && same(rec.Entries, w.entries) != nil {
				t.Fatalf("%s cut to %d: %d entries", name, n, len(rec.Entries))
			}
			if err == nil && len(rec.Entries) < w.before {
				t.Fatalf("%s cut to %d: %d entries of at least %d", name, n, len(rec.Entries), w.before)
			}
		}
	}
}

func FuzzOpen(f *testing.F) {
	logs := []written{writeLog(f, 12, 8192, false), writeLog(f, 12, 8192, true), writeLog(f, 12, 1<<20, false)}
	f.Add(uint8(0), uint16(100), []byte{1, 2, 3})
	f.Add(uint8(1), uint16(0), []byte{})
	f.Add(uint8(2), uint16(600), make([]byte, 512))
	f.Add(uint8(5), uint16(500), []byte("\x04\x00\x00\x00\x00\x00\x00\x84\x08\x04\x10\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, which uint8, at uint16, patch []byte) {
		w := logs[int(which)%len(logs)]
		name := w.names[int(which)/len(logs)%len(w.names)]
		good := w.files[name]
		b := append([]byte(nil), good...)
		off := int(at) % (len(b) + 1)
		n := copy(b[off:], patch)
		rec, err := w.open(t, name, b, 0)
		if err != nil || string(b) == string(good) {
			return
		}
		if len(rec.Entries) > len(w.entries) || same(rec.Entries, w.entries[:len(rec.Entries)]) != nil {
			if which%3 == 1 {
				return // a forged record with a right checksum in a log without marks
			}
			t.Fatal("the log holds what was never written")
		}
		if last := name == w.names[len(w.names)-1]; (!last || off+n <= w.lastGroup) && which%3 != 1 {
			t.Fatalf("a change from %d to %d was not seen", off, off+n)
		}
	})
}

func ExampleDamageError() {
	fmt.Println(&DamageError{File: "d/wal/0000000000000000-0000000000000000.wal", Offset: 512, Reason: "the checksum of a record is 00000001, it should be 00000002"})
	// Output: log segment d/wal/0000000000000000-0000000000000000.wal is damaged at byte 512: the checksum of a record is 00000001, it should be 00000002; it is not the torn end of a last write, so cutting it off could lose acknowledged writes: restore the file, or the member from a snapshot, or remove the member and add it again with an empty data directory
}
