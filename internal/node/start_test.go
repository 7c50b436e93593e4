package node

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"quorate/internal/fsm"
	"quorate/internal/mvcc"
	"quorate/internal/vfs"
	"quorate/internal/wal"

	"go.etcd.io/raft/v3/raftpb"
)

// TestStartInEachStepOfAnInstallation starts a member as each step of receiving and
// installing a snapshot would leave it if the power failed there.
func TestStartInEachStepOfAnInstallation(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.SnapshotCount = 1 << 40 // no marks but the snapshot's
	n := run(t, cfg)
	put(t, n, "k", "old")
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	before := t.TempDir()
	if err := os.CopyFS(before, os.DirFS(cfg.DataDir)); err != nil {
		t.Fatal(err)
	}
	cfg.Network = newWires().to()
	n = run(t, cfg)
	put(t, n, "k", "new")
	if err := n.Store().Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	conf := fsm.ConfState(n.cluster.State())
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	received, err := os.ReadFile(cfg.dbPath())
	if err != nil {
		t.Fatal(err)
	}
	index, term, err := mvcc.Check(cfg.dbPath())
	if err != nil {
		t.Fatal(err)
	}

	for _, step := range []struct {
		name             string
		received         uint64 // for which entry there is a received file, 0: there is none
		half             bool   // it has not got its name yet, and not all of its content
		marked, replaced bool
		want             string
		refused          bool
	}{
		{name: "while it is received", received: index, half: true, want: "old"},
		{name: "received", received: index, want: "old"},
		{name: "marked", received: index, marked: true, want: "new"},
		{name: "installed", marked: true, replaced: true, want: "new"},
		{name: "installed and received once more", received: index, marked: true, replaced: true, want: "new"},
		{name: "no step: marked, and never received", marked: true, refused: true},
		{name: "no step: marked, and another received", received: index - 1, marked: true, refused: true},
	} {
		t.Run(step.name, func(t *testing.T) {
			cfg := cfg
			cfg.DataDir, cfg.Network = t.TempDir(), newWires().to()
			if err := os.CopyFS(cfg.DataDir, os.DirFS(before)); err != nil {
				t.Fatal(err)
			}
			path := cfg.receivedPath(step.received)
			if step.received != 0 {
				content := received
				if step.half {
					path, content = filepath.Join(cfg.snapDir(), "tmp123"+receivedSuffix), received[:len(received)/2]
				}
				if err := os.WriteFile(path, content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if step.replaced {
				if err := os.WriteFile(cfg.dbPath(), received, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if step.marked {
				markLog(t, cfg.walDir(), wal.Snapshot{Index: index, Term: term, ConfState: conf})
			}
			if step.refused {
				if _, err := Start(cfg); !errors.Is(err, ErrMismatch) {
					t.Errorf("not refused: %v", err)
				}
				return
			}
			for i := range 2 {
				n := run(t, cfg)
				if got, _ := get(t, n, "k"); got != step.want {
					t.Errorf("start %d: %q is there, want %q", i, got, step.want)
				}
				if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("start %d: the received file is still there: %v", i, err)
				}
				put(t, n, "another", fmt.Sprint(i))
				if err := n.Close(); err != nil {
					t.Fatal(err)
				}
				cfg.Network = newWires().to()
			}
		})
	}
}

// markLog puts the mark of a received snapshot into a log.
func markLog(t *testing.T, dir string, s wal.Snapshot) {
	t.Helper()
	log, found, err := wal.Open(dir, 0, wal.Options{FS: vfs.OS()})
	if err != nil {
		t.Fatal(err)
	}
	hs := &raftpb.HardState{Term: new(s.Term), Vote: found.HardState.Vote, Commit: new(s.Index)}
	if err := errors.Join(log.SaveSnapshot(s, hs), log.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestReceivedFileMustBeWhatItsMessageSays: a mark in the log would bind the member to a
// file of another entry.
func TestReceivedFileMustBeWhatItsMessageSays(t *testing.T) {
	n := run(t, testConfig(t.TempDir()))
	put(t, n, "k", "v")
	if err := n.Store().Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	db, err := os.ReadFile(n.cfg.dbPath())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(file, db, 0o600); err != nil {
		t.Fatal(err)
	}
	index, _, err := mvcc.Check(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what  string
		index uint64
		db    []byte
		size  int
	}{
		{"of a later entry", index - 1, db, len(db)},
		{"of an earlier entry", index + 1, db, len(db)},
		{"cut short", index, db[:len(db)/2], len(db)},
		{"longer than was said", index, db, len(db) / 2},
		{"empty", index, nil, 0},
		{"no database", index, make([]byte, len(db)), len(db)},
	} {
		m := &raftpb.Message{
			Type: raftpb.MsgSnap.Enum(), From: new(uint64(9)), To: new(n.id), Term: new(n.Term()),
			Snapshot: &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: new(c.index), Term: new(uint64(1))}},
		}
		if err := n.receiveSnapshot(m, bytes.NewReader(c.db), int64(c.size)); err == nil {
			t.Errorf("a file that is %s was taken", c.what)
		}
		left, err := filepath.Glob(filepath.Join(n.cfg.snapDir(), "*"+receivedSuffix))
		if err != nil || len(left) != 0 {
			t.Errorf("a file that is %s is left behind: %v, %v", c.what, left, err)
		}
	}
}

// TestMarkWaitsForTheMembership: a mark says which members there were at its entry, so there
// is none while the membership may already be that of a later one.
func TestMarkWaitsForTheMembership(t *testing.T) {
	n := run(t, testConfig(t.TempDir()))
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n.appends.take()
	n.cfg.SnapshotCount = 1
	n.memberAt.Store(100)
	for index, want := range map[uint64]int{99: 0, 100: 1} {
		n.lastMark.Store(0)
		n.onFlush(index, 1)
		if got := len(n.appends.take()); got != want {
			t.Errorf("%d marks at entry %d, want %d", got, index, want)
		}
	}
}

// syncedFS remembers which directories were synced.
type syncedFS struct {
	vfs.FS
	mu   sync.Mutex
	dirs map[string]bool
}

func (s *syncedFS) SyncDir(dir string) error {
	s.mu.Lock()
	s.dirs[filepath.Clean(dir)] = true
	s.mu.Unlock()
	return s.FS.SyncDir(dir)
}

// TestNewDirectoryIsDurable: what a new member acknowledges is not lost with a directory
// above it.
func TestNewDirectoryIsDurable(t *testing.T) {
	cfg := testConfig(filepath.Join(t.TempDir(), "data"))
	disk := &syncedFS{FS: vfs.OS(), dirs: make(map[string]bool)}
	cfg.FS = disk
	run(t, cfg)
	disk.mu.Lock()
	defer disk.mu.Unlock()
	for _, dir := range []string{cfg.memberDir(), cfg.DataDir, filepath.Dir(cfg.DataDir)} {
		if !disk.dirs[dir] {
			t.Errorf("%s was not synced", dir)
		}
	}
}
