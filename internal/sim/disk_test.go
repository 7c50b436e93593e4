package sim

import (
	"errors"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"quorate/internal/vfs"
)

// errDead is what a disk answers whose machine is off.
var errDead = errors.New("the machine is off")

// disk is a member's: the log is in memory, the store's file a real one below dir.
type disk struct {
	w       *world
	member  int
	mem     *vfs.Mem
	dead    chan struct{}
	opening atomic.Bool // nothing is slow then: the world's goroutine waits for it

	failed atomic.Bool // a sync has; what it was to make durable is lost

	mu         sync.Mutex
	syncMax    time.Duration
	stuckUntil time.Time
	failing    bool
	fullFrom   time.Duration // since when it refuses to grow
	fullTo     time.Duration // until when it did; 0: it still does, or never did
}

func newDisk(w *world, member int, mem *vfs.Mem) *disk {
	d := &disk{w: w, member: member, mem: mem, dead: make(chan struct{}), syncMax: w.plan.syncMax}
	mem.Hook = d.hook
	return d
}

// fs is the file system as the member has it.
func (d *disk) fs() vfs.FS {
	if p := &d.w.plan.plant; p.lyingDisk || p.deafToSync {
		return lyingFS{d.mem, p.deafToSync}
	}
	return d.mem
}

// hook makes syncs take their time. How long depends on nothing but the seed and what is
// synced when, so that it does not matter which goroutine comes first.
func (d *disk) hook(op vfs.Op) error {
	select {
	case <-d.dead:
		return errDead
	default:
	}
	if d.opening.Load() || op.Kind != "sync" && op.Kind != "syncdir" {
		return nil
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(filepath.Base(op.Name))) // cannot fail
	d.mu.Lock()
	if d.failing && op.Kind == "sync" {
		d.mu.Unlock()
		d.failed.Store(true)
		return syscall.EIO
	}
	wait := time.Duration(mix(d.w.seed, uint64(d.member), h.Sum64(), uint64(d.w.now())) % uint64(max(1, d.syncMax)))
	wait = max(wait, time.Until(d.stuckUntil))
	d.mu.Unlock()
	select {
	case <-time.After(wait):
		return nil
	case <-d.dead:
		return errDead
	}
}

// stick has all syncs hang for a while.
func (d *disk) stick(until time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stuckUntil = time.Now().Add(until)
}

// slow sets how long syncs take at most.
func (d *disk) slow(max time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.syncMax = max
}

// fail has every sync fail from now on, or no longer.
func (d *disk) fail(yes bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failing = yes
}

// full has the disk refuse to let any file grow, or no longer.
func (d *disk) full(yes bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch is := d.fullFrom > 0 && d.fullTo == 0; {
	case yes && !is:
		d.mem.SetCapacity(1)
		d.fullFrom, d.fullTo = max(1, d.w.now()), 0
	case !yes && is:
		d.mem.SetCapacity(0)
		d.fullTo = max(1, d.w.now())
	}
}

// fullPatience is how long after there is room a member may not know yet: it looks from
// time to time.
const fullPatience = 2 * time.Second

// outOfRoom reports whether a request that was sent then may be refused for want of room,
// as which a disk that fails counts, too.
func (d *disk) outOfRoom(sent time.Duration) bool {
	if d.failed.Load() {
		return true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fullFrom > 0 && (d.fullTo == 0 || sent <= d.fullTo+fullPatience)
}

// lyingFS is a disk that says it has synced and has not: never, or, if it is honest, not
// where the sync failed. A planted fault.
type lyingFS struct {
	vfs.FS
	honest bool
}

type lyingFile struct {
	vfs.File
	honest bool
}

func (f lyingFile) Sync() error {
	if f.honest {
		_ = f.File.Sync() // what it hides
	}
	return nil
}

func (l lyingFS) Open(name string) (vfs.File, error) {
	f, err := l.FS.Open(name)
	return lyingFile{f, l.honest}, err
}

func (l lyingFS) Create(name string) (vfs.File, error) {
	f, err := l.FS.Create(name)
	return lyingFile{f, l.honest}, err
}

// scratch is a directory for the run's files, in memory where the system has such a place:
// nothing in them has to survive the run.
func scratch(t *testing.T) string {
	if dir, err := os.MkdirTemp("/dev/shm", "quorate-sim-"); err == nil {
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
		return dir
	}
	return t.TempDir()
}

// copyDir copies the files of a directory and those below it. Of the store's file only
// used bytes have ever been written.
func copyDir(from, to string, used int64) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if d.IsDir() {
			return os.MkdirAll(target, 0o700)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		size := info.Size()
		if d.Name() == "db" {
			size = min(size, used)
		}
		return copyFile(path, target, size, info.Size())
	})
}

// copyFile copies the first n bytes of a file and makes the copy size bytes long.
func copyFile(from, to string, n, size int64) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close() // nothing was written
	data := make([]byte, n)
	if _, err := io.ReadFull(src, data); err != nil {
		return err
	}
	if err := os.WriteFile(to, data, 0o600); err != nil {
		return err
	}
	return os.Truncate(to, size)
}

// crash is the disk as a crash leaves it: the log may have lost or torn what was not
// synced, the store's file is as its last commit left it.
func (d *disk) crash(dir string, used int64, seed uint64) (*disk, error) {
	after := newDisk(d.w, d.member, d.mem.Crash(seed))
	after.mem.SetCapacity(0)
	old := dir + ".old"
	err := errors.Join(os.RemoveAll(old), os.Rename(dir, old))
	if err == nil {
		err = copyDir(old, dir, used)
	}
	close(d.dead)
	return after, err
}

// mkdirs makes the directories that the member expects to find, beside those that it
// makes in the real file system.
func (d *disk) mkdirs(dir string) error {
	return d.mem.Mkdir(filepath.Join(dir, "member", "snap"))
}
