package wal

import (
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"quorate/internal/vfs"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

func memLog(t *testing.T, m *vfs.Mem, opts Options) *Log {
	t.Helper()
	if err := m.Mkdir("d"); err != nil {
		t.Fatal(err)
	}
	opts.FS = m
	l, err := Create("d/wal", testMetadata, opts)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// What Room promises can be appended on a full disk; what it does not waits until there
// is room.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const segment = 1 << 20
		m := vfs.NewMem()
		var full atomic.Value
		type told struct{ err error }
		full.Store(told{})
		l := memLog(t, m, Options{SegmentBytes: segment, OnFull: func(err error) { full.Store(told{err}) }})
		time.Sleep(time.Minute) // the preparer is done
		if got, want := l.Room(), int64(segment*9/10); got < want {
			t.Fatalf("room for %d bytes, want at least %d", got, want)
		}
		m.SetCapacity(2 * segment) // no byte more than there is

		next := uint64(1)
		appendRoom := func() {
			for {
				e := entry(next, 1, 5000)
				if l.Room() < EntryBytes(e)+AppendExtraBytes {
					return
				}
				if err := l.Append([]*raftpb.Entry{e}, hard(1, 1, next-1), true); err != nil {
					t.Fatalf("entry %d: %v", next, err)
				}
				next++
				synctest.Wait()
			}
		}
		appendRoom()
		if next < 2*segment*9/10/5200 {
			t.Errorf("only %d entries went into two segments", next)
		}
		if err := full.Load().(told).err; !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("OnFull was told %v", err)
		}

		// The disk gets room again, and the log by itself.
		m.SetCapacity(4 * segment)
		time.Sleep(2 * time.Second)
		if err := full.Load().(told).err; err != nil || l.Room() == 0 {
			t.Errorf("room %d, OnFull was told %v", l.Room(), err)
		}
		appendRoom()
		m.SetCapacity(1)
		appendRoom()

		// An append for which there is no room waits.
		e := entry(next, 1, segment*3/2)
		var done atomic.Bool
		go func() {
			if err := l.Append([]*raftpb.Entry{e}, nil, true); err != nil {
				t.Error(err)
			}
			done.Store(true)
		}()
		time.Sleep(time.Hour)
		if done.Load() {
			t.Fatal("an append without room came back")
		}
		m.SetCapacity(0)
		time.Sleep(time.Minute)
		if !done.Load() {
			t.Fatal("an append still waits though there is room")
		}

		// Or until the log is closed.
		m.SetCapacity(1)
		next++
		appendRoom()
		go func() {
			big := entry(next, 1, segment*3/2)
			if err := l.Append([]*raftpb.Entry{big}, nil, true); !errors.Is(err, ErrClosed) {
				t.Error("append that waited when the log was closed:", err)
			}
		}()
		time.Sleep(time.Minute)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		m.SetCapacity(0)
		l, rec, err := Open("d/wal", next-1, Options{FS: m, SegmentBytes: segment})
		if err != nil || rec.Entries[len(rec.Entries)-1].GetIndex() != next-1 {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// After an append failed, nothing is ever said to be on disk.
func TestFailuresAreFinal(t *testing.T) {
	for _, kind := range []string{"sync", "write", "rename", "syncdir", "truncate"} {
		t.Run(kind, func(t *testing.T) {
			m := vfs.NewMem()
			var fail atomic.Bool
			m.Hook = func(op vfs.Op) error {
				// What the preparer does may fail and be tried again.
				if fail.Load() && op.Kind == kind && !strings.HasPrefix(filepath.Base(op.Name), preparedName) || fail.Load() && op.Kind == kind && kind == "rename" {
					return syscall.EIO
				}
				return nil
			}
			l := memLog(t, m, Options{SegmentBytes: 20000})
			if err := l.Append(entries(1, 3, 1, 100), hard(1, 1, 0), true); err != nil {
				t.Fatal(err)
			}
			for l.Room() < 10000 {
				time.Sleep(time.Millisecond)
			}
			fail.Store(true)
			var err error
			next := uint64(4)
			for ; err == nil && next < 200; next++ {
				err = l.Append(entries(next, next, 1, 1000), nil, true)
			}
			if !errors.Is(err, syscall.EIO) {
				t.Fatal("no error:", err)
			}
			fail.Store(false)
			for range 3 {
				if again := l.Append(entries(next, next, 1, 10), nil, true); again != err {
					t.Errorf("after %v: %v", err, again)
				}
			}
			if again := l.SaveSnapshot(Snapshot{Index: 1, Term: 1, ConfState: &raftpb.ConfState{}}, nil); again != err {
				t.Errorf("after %v: %v", err, again)
			}
			if err := l.Close(); err != nil {
				t.Error("close:", err)
			}
			// What was acknowledged before is there.
			after := m.Crash(1)
			l, rec, err := Open("d/wal", next-2, Options{FS: after, SegmentBytes: 20000})
			if err != nil {
				t.Fatal(err)
			}
			if last := rec.Entries[len(rec.Entries)-1].GetIndex(); last < next-2 {
				t.Errorf("entries up to %d, want %d", last, next-2)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// What a log holds after a sync has failed may be in memory alone, and the system takes it
// for written. A start that goes on from there puts it on the disk first.
func TestOpenAfterAFailedSyncMakesDurable(t *testing.T) {
	for _, size := range []int{100, 3 << 20} {
		m := vfs.NewMem()
		var fail atomic.Bool
		m.Hook = func(op vfs.Op) error {
			if fail.Load() && op.Kind == "sync" {
				return syscall.EIO
			}
			return nil
		}
		l := memLog(t, m, Options{})
		if err := errors.Join(m.SyncDir("."), l.Append(entries(1, 3, 1, 100), hard(1, 1, 0), true)); err != nil {
			t.Fatal(err)
		}
		for l.Room() < 10<<20 {
			time.Sleep(time.Millisecond)
		}
		fail.Store(true)
		want := entries(1, 3, 1, 100)
		want = append(want, entries(4, 6, 2, size)...)
		if err := l.Append(want[3:], hard(2, 1, 0), true); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		fail.Store(false)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l, rec, err := Open("d/wal", 3, Options{FS: m})
		if err != nil {
			t.Fatal(err)
		}
		sameEntries(t, rec.Entries, want)
		for seed := range uint64(5) {
			after, rec, err := Open("d/wal", 6, Options{FS: m.Crash(seed)})
			if err != nil {
				t.Fatal(err)
			}
			sameEntries(t, rec.Entries, want)
			if !proto.Equal(rec.HardState, hard(2, 1, 6)) {
				t.Errorf("hard state %v", rec.HardState)
			}
			if err := after.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A failure to write back a record may come to light in the preparer's sync of the same
// file. The append hears of it all the same.
func TestPreparersSyncHidesNoFailure(t *testing.T) {
	m := vfs.NewMem()
	var armed atomic.Bool
	var once sync.Once
	filling, written, told := make(chan struct{}), make(chan struct{}), make(chan struct{})
	m.Hook = func(op vfs.Op) (err error) {
		if !armed.Load() || op.Kind != "sync" || !strings.HasSuffix(op.Name, segmentSuffix) {
			return nil
		}
		preparing := false
		once.Do(func() { preparing = true })
		if !preparing { // the append, whose record is written by now
			close(written)
			<-told
			armed.Store(false)
			return nil
		}
		close(filling)
		<-written
		return syscall.EIO
	}
	l := memLog(t, m, Options{SegmentBytes: 2 * atOnce, OnFull: func(err error) {
		if err != nil {
			close(told)
		}
	}})
	armed.Store(true)
	<-filling
	if err := l.Append(entries(1, 3, 1, 100), hard(1, 1, 0), true); !errors.Is(err, syscall.EIO) {
		after := m.Crash(1)
		_, rec, oerr := Open("d/wal", 0, Options{FS: after})
		t.Errorf("append: %v; after a crash: %+v, %v", err, rec, oerr)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// A fill whose sync failed and that was done again is forgotten by the time the segment is
// used: the file that records are written to hears nothing of it then.
func TestFailedFillIsForgotten(t *testing.T) {
	m := vfs.NewMem()
	var failures atomic.Int32
	m.Hook = func(op vfs.Op) error {
		if op.Kind == "sync" && filepath.Base(op.Name) == preparedName && failures.Add(1) == 1 {
			return syscall.ENOSPC
		}
		return nil
	}
	synctest.Test(t, func(t *testing.T) {
		l := memLog(t, m, Options{SegmentBytes: 20000})
		time.Sleep(2 * retryPause) // the fill fails, and is done again
		for i := range uint64(100) {
			if err := l.Append(entries(1+i, 1+i, 1, 1000), hard(1, 1, i), true); err != nil {
				t.Fatalf("append %d after %d syncs of the next segment: %v", i, failures.Load(), err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
	if failures.Load() < 2 {
		t.Error("no fill failed")
	}
}

// The log writer, the preparer, Room and Release run side by side. Segments are small,
// so that they follow each other fast.
func TestConcurrentUse(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "wal")
	opts := Options{FS: vfs.OS(), SegmentBytes: 40000}
	l, err := Create(dir, testMetadata, opts)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var mark atomic.Uint64
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if room := l.Room(); room < 0 {
				t.Error("room", room)
			}
			if err := l.Release(mark.Load()); err != nil {
				t.Error(err)
			}
			time.Sleep(100 * time.Microsecond)
		}
	})
	const n = 1500
	for i := uint64(1); i <= n; i++ {
		if err := l.Append(entries(i, i, 1, 500), hard(1, 1, i-1), true); err != nil {
			t.Fatal(err)
		}
		if i%100 == 0 {
			if err := l.SaveSnapshot(Snapshot{Index: i - 1, Term: 1, ConfState: &raftpb.ConfState{Voters: []uint64{1}}}, nil); err != nil {
				t.Fatal(err)
			}
			mark.Store(i - 1)
		}
	}
	close(stop)
	wg.Wait()
	if err := errors.Join(l.Release(n), l.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
	names, err := segmentNames(opts.FS, dir)
	if err != nil || len(names) > 5 {
		t.Errorf("%d segments left: %v %v", len(names), names, err)
	}
	l, rec, err := Open(dir, n, opts)
	if err != nil {
		t.Fatal(err)
	}
	if rec.Snapshot.Index != n-1 || len(rec.Entries) != 1 || rec.HardState.GetCommit() != n {
		t.Errorf("%+v", rec)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}
