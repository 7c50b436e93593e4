package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"syscall"
	"testing"
)

// The file system in memory does what the real one does.
func TestMemIsLikeOS(t *testing.T) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		root := t.TempDir()
		disks := []FS{OS(), NewMem()}
		if err := disks[1].Mkdir(root); err != nil {
			t.Fatal(err)
		}
		names := []string{"a", "b", "d", "d/x", "d/y", "e", "e/x"}
		name := func() string { return filepath.Join(root, names[rnd.IntN(len(names))]) }
		for i := range 300 {
			op, n1, n2 := rnd.IntN(9), name(), name()
			off, size := rnd.Int64N(5000), rnd.IntN(3000)
			if filepath.Dir(n1) != filepath.Dir(n2) {
				n2 = n1
			}
			var said [2]string
			for k, d := range disks {
				said[k] = do(d, op, n1, n2, off, size)
			}
			if said[0] != said[1] {
				t.Fatalf("seed %d step %d: op %d %s %s: real says %q, memory %q", seed, i, op, n1, n2, said[0], said[1])
			}
		}
	}
}

// do carries out an operation and says what came of it.
func do(d FS, op int, n1, n2 string, off int64, size int) string {
	result := func(err error, v ...any) string {
		var errno syscall.Errno
		if errors.As(err, &errno) {
			return errno.Error()
		}
		for _, known := range []error{fs.ErrNotExist, fs.ErrExist, ErrLocked} {
			if errors.Is(err, known) {
				return known.Error()
			}
		}
		return fmt.Sprint(err, v)
	}
	switch op {
	case 0:
		return result(d.Mkdir(n1))
	case 1:
		err := d.Remove(n1)
		return fmt.Sprint(err == nil)
	case 2:
		err := d.Rename(n1, n2)
		return fmt.Sprint(err == nil)
	case 3:
		names, err := d.List(n1)
		return fmt.Sprint(err == nil, names)
	case 4:
		f, err := d.Create(n1)
		if err != nil {
			return fmt.Sprint(false)
		}
		return result(f.Close())
	}
	f, err := d.Open(n1)
	if err != nil {
		return fmt.Sprint(false)
	}
	defer f.Close() //nolint:errcheck // closed for the second time in one case
	switch op {
	case 5:
		n, err := f.WriteAt(bytes.Repeat([]byte{byte(off)}, size), off)
		return result(err, n)
	case 6:
		return result(f.Truncate(off))
	case 7:
		b := make([]byte, size)
		n, err := f.ReadAt(b, off)
		return result(err, n, b)
	default:
		size, err := f.Size()
		return result(errors.Join(err, f.Sync(), f.Lock(), f.Close()), size)
	}
}

func TestLocks(t *testing.T) {
	for _, d := range []FS{OS(), NewMem()} {
		dir := t.TempDir()
		name := filepath.Join(dir, "f")
		if err := d.Mkdir(dir); err != nil {
			t.Fatal(err)
		}
		a, err := d.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := d.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(a.Lock(), a.Lock()); err != nil {
			t.Errorf("%T: %v", d, err)
		}
		if err := b.Lock(); !errors.Is(err, ErrLocked) {
			t.Errorf("%T: locked twice: %v", d, err)
		}
		if err := errors.Join(a.Close(), b.Lock(), b.Close()); err != nil {
			t.Errorf("%T: %v", d, err)
		}
		if err := b.Sync(); !errors.Is(err, fs.ErrClosed) {
			t.Errorf("%T: sync of a closed file: %v", d, err)
		}
	}
}

// WriteFile leaves the old content or the new one, whenever the power fails.
func TestWriteFileIsAtomic(t *testing.T) {
	saw := map[string]int{}
	for seed := range uint64(300) {
		m := NewMem()
		if err := errors.Join(m.Mkdir("d"), WriteFile(m, "d/f", bytes.Repeat([]byte("old "), 500))); err != nil {
			t.Fatal(err)
		}
		if err := m.SyncDir("."); err != nil {
			t.Fatal(err)
		}
		var crashes []*Mem
		m.Hook = func(Op) error {
			crashes = append(crashes, m.Crash(seed))
			return nil
		}
		if err := WriteFile(m, "d/f", bytes.Repeat([]byte("new "), 700)); err != nil {
			t.Fatal(err)
		}
		for _, c := range crashes {
			b, err := ReadFile(c, "d/f")
			if err != nil || !bytes.Equal(b, bytes.Repeat([]byte("old "), 500)) && !bytes.Equal(b, bytes.Repeat([]byte("new "), 700)) {
				t.Fatalf("%d bytes %v", len(b), err)
			}
			saw[string(b[:3])]++
		}
		if b, err := ReadFile(m.Crash(seed), "d/f"); err != nil || len(b) != 2800 {
			t.Fatal("what WriteFile acknowledged is not there:", len(b), err)
		}
	}
	if saw["old"] == 0 || saw["new"] == 0 {
		t.Error(saw)
	}
}

// What was not synced can be lost, kept or torn at sectors; what was synced cannot.
func TestCrashLosesAndTears(t *testing.T) {
	m := NewMem()
	f, err := m.Create("f")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 2048), 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), m.SyncDir(".")); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{2}, 1024), 512); err != nil {
		t.Fatal(err)
	}
	var lost, kept, torn int
	for seed := range uint64(200) {
		b, err := ReadFile(m.Crash(seed), "f")
		if err != nil || len(b) != 2048 || b[0] != 1 || b[511] != 1 || b[1536] != 1 {
			t.Fatal(len(b), err)
		}
		for _, at := range []int{512, 1024} {
			if !bytes.Equal(b[at:at+512], bytes.Repeat(b[at:at+1], 512)) {
				t.Fatal("a sector is torn")
			}
		}
		switch [2]byte{b[512], b[1024]} {
		case [2]byte{1, 1}:
			lost++
		case [2]byte{2, 2}:
			kept++
		default:
			torn++
		}
	}
	if lost == 0 || kept == 0 || torn == 0 {
		t.Error(lost, kept, torn)
	}
	// What a failed sync should have made durable is lost, also if the next one succeeds.
	m.Hook = func(op Op) error {
		if op.Kind == "sync" {
			return syscall.EIO
		}
		return nil
	}
	if err := f.Sync(); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	m.Hook = nil
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if b, err := ReadFile(m.Crash(1), "f"); err != nil || !bytes.Equal(b, bytes.Repeat([]byte{1}, 2048)) {
		t.Error("a sync after a failed one made data durable", err)
	}
}

func TestCapacity(t *testing.T) {
	m := NewMem()
	m.SetCapacity(1000)
	f, err := m.Create("f")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 1000), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 1), 1000); !errors.Is(err, syscall.ENOSPC) {
		t.Error(err)
	}
	if _, err := f.WriteAt(make([]byte, 1000), 0); err != nil {
		t.Error("overwriting needs no space:", err)
	}
	if err := m.Remove("f"); err != nil {
		t.Fatal(err)
	}
	if f, err = m.Create("g"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 1000), 0); err != nil {
		t.Error("the space of a removed file is not free:", err)
	}
}

func TestWritten(t *testing.T) {
	f, err := OS().Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 1<<16), 0); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(1<<20), f.Sync()); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Written(10); err != nil || n != 1<<16 && n != 10 {
		t.Error(n, err)
	}
	if n, err := f.Written(1 << 20); err != nil || n != 1<<20 {
		t.Error(n, err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}
