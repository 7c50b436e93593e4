package vfs

import (
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// Mem is a file system in memory that behaves as a disk does in a power failure: what
// was not synced may be lost, or torn at sector boundaries. It has the root directory.
//
// All methods may run side by side.
type Mem struct {
	// Hook, if not nil, is called before every operation that changes or syncs
	// something, without any lock held. If it returns an error, the operation fails with
	// it and changes nothing; but what a failed sync was to make durable is lost in a
	// crash even if a later sync succeeds, as on Linux: of those who have the file open,
	// each hears of the failure once. A hook may also wait. It is set before the file
	// system is used.
	Hook func(Op) error

	mu       sync.Mutex
	root     *node
	used     int64
	capacity int64 // 0: no limit
}

// Op is an operation that a Hook is asked about.
type Op struct {
	Kind   string // create, mkdir, remove, rename, syncdir, write, truncate, sync
	Name   string
	Offset int64 // of a write
	Bytes  int   // of a write
}

// SectorBytes is what Mem writes whole or not at all.
const SectorBytes = 512

// node is a directory or a file. What is durable is what a crash leaves for certain;
// pending is what was done since, oldest first, and may or may not survive.
type node struct {
	dir map[string]*node // nil for a file

	durableDir map[string]*node
	pendingDir []dirOp

	data        []byte
	durableData []byte
	pendingData []dataOp
	locked      bool

	failures int   // syncs that failed
	failure  error // of the last of them
}

type dirOp struct {
	unlink string // "": nothing
	link   string // "": nothing
	node   *node
}

type dataOp struct {
	off      int64
	data     []byte
	truncate bool
}

// NewMem is an empty file system.
func NewMem() *Mem { return &Mem{root: newDir()} }

func newDir() *node { return &node{dir: map[string]*node{}, durableDir: map[string]*node{}} }

// SetCapacity bounds the sum of all file sizes; a write beyond gets ENOSPC. 0 is no bound.
func (m *Mem) SetCapacity(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.capacity = bytes
}

// Crash is the disk as it may look after the power fails now, as seed decides. m itself
// goes on.
func (m *Mem) Crash(seed uint64) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := crasher{rand.New(rand.NewPCG(seed, 0)), map[*node]*node{}}
	after := &Mem{root: c.crash(m.root), capacity: m.capacity}
	for _, n := range c.done {
		after.used += int64(len(n.data))
	}
	return after
}

type crasher struct {
	rnd  *rand.Rand
	done map[*node]*node // a file may be found under two names
}

func (c *crasher) crash(n *node) *node {
	if after := c.done[n]; after != nil {
		return after
	}
	after := &node{}
	c.done[n] = after
	if n.dir != nil {
		after.dir = c.entries(n)
		after.durableDir = maps.Clone(after.dir)
		return after
	}
	after.data = c.data(n)
	after.durableData = slices.Clone(after.data)
	return after
}

// entries keeps the first of the pending changes of a directory: a journal keeps order.
func (c *crasher) entries(n *node) map[string]*node {
	now := maps.Clone(n.durableDir)
	for _, op := range n.pendingDir[:c.rnd.IntN(len(n.pendingDir)+1)] {
		op.apply(now)
	}
	for _, name := range slices.Sorted(maps.Keys(now)) {
		now[name] = c.crash(now[name])
	}
	return now
}

// data keeps some of the pending writes, whole or in part, in any combination.
func (c *crasher) data(n *node) []byte {
	b := slices.Clone(n.durableData)
	all := c.rnd.IntN(6) // 0: lose everything, 1: keep everything
	for _, op := range n.pendingData {
		if all == 0 {
			break
		}
		if all > 1 && c.rnd.IntN(3) == 0 {
			continue
		}
		if op.truncate || all == 1 || c.rnd.IntN(4) == 0 {
			b = op.apply(b)
			continue
		}
		for from := op.off; from < op.off+int64(len(op.data)); {
			to := min((from/SectorBytes+1)*SectorBytes, op.off+int64(len(op.data)))
			if c.rnd.IntN(2) == 0 {
				b = dataOp{off: from, data: op.data[from-op.off : to-op.off]}.apply(b)
			}
			from = to
		}
	}
	return b
}

func (op dirOp) apply(dir map[string]*node) {
	if op.unlink != "" {
		delete(dir, op.unlink)
	}
	if op.link != "" {
		dir[op.link] = op.node
	}
}

func (op dataOp) apply(b []byte) []byte {
	if op.truncate {
		if op.off <= int64(len(b)) {
			return b[:op.off]
		}
		return append(b, make([]byte, op.off-int64(len(b)))...)
	}
	if end := op.off + int64(len(op.data)); end > int64(len(b)) {
		b = append(b, make([]byte, end-int64(len(b)))...)
	}
	copy(b[op.off:], op.data)
	return b
}

func (m *Mem) hook(kind, name string, off int64, n int) error {
	if m.Hook == nil {
		return nil
	}
	if err := m.Hook(Op{kind, name, off, n}); err != nil {
		return &fs.PathError{Op: kind, Path: name, Err: err}
	}
	return nil
}

// find is the node at a path. mu is held.
func (m *Mem) find(name string) (*node, error) {
	n := m.root
	for part := range strings.SplitSeq(filepath.Clean(name), string(filepath.Separator)) {
		if part == "" || part == "." {
			continue
		}
		if n = n.dir[part]; n == nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
	}
	return n, nil
}

// parent is the directory that a path lies in. mu is held.
func (m *Mem) parent(name string) (dir *node, base string, err error) {
	dir, err = m.find(filepath.Dir(name))
	if err == nil && dir.dir == nil {
		err = &fs.PathError{Op: "open", Path: name, Err: syscall.ENOTDIR}
	}
	return dir, filepath.Base(name), err
}

func (n *node) change(op dirOp) {
	op.apply(n.dir)
	n.pendingDir = append(n.pendingDir, op)
}

// Open implements FS.
func (m *Mem) Open(name string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.find(name)
	if err != nil {
		return nil, err
	}
	if n.dir != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EISDIR}
	}
	return &memFile{m: m, n: n, name: name, heard: n.failures}, nil
}

// Create implements FS.
func (m *Mem) Create(name string) (File, error) {
	if err := m.hook("create", name, 0, 0); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, err := m.parent(name)
	if err != nil {
		return nil, err
	}
	n := dir.dir[base]
	switch {
	case n == nil:
		n = &node{}
		dir.change(dirOp{link: base, node: n})
	case n.dir != nil:
		return nil, &fs.PathError{Op: "create", Path: name, Err: syscall.EISDIR}
	default:
		m.used -= int64(len(n.data))
		n.write(dataOp{truncate: true})
	}
	return &memFile{m: m, n: n, name: name, heard: n.failures}, nil
}

// Mkdir implements FS.
func (m *Mem) Mkdir(dir string) error {
	if err := m.hook("mkdir", dir, 0, 0); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.root
	for part := range strings.SplitSeq(filepath.Clean(dir), string(filepath.Separator)) {
		if part == "" || part == "." {
			continue
		}
		if n.dir[part] == nil {
			n.change(dirOp{link: part, node: newDir()})
		}
		if n = n.dir[part]; n.dir == nil {
			return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
		}
	}
	return nil
}

// Remove implements FS.
func (m *Mem) Remove(name string) error {
	if err := m.hook("remove", name, 0, 0); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, err := m.parent(name)
	if err != nil {
		return err
	}
	n := dir.dir[base]
	switch {
	case n == nil:
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	case len(n.dir) > 0:
		return &fs.PathError{Op: "remove", Path: name, Err: syscall.ENOTEMPTY}
	}
	m.used -= int64(len(n.data))
	dir.change(dirOp{unlink: base})
	return nil
}

// Rename implements FS.
func (m *Mem) Rename(from, to string) error {
	if err := m.hook("rename", from, 0, 0); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	dir, base, err := m.parent(from)
	if err != nil {
		return err
	}
	n, target := dir.dir[base], dir.dir[filepath.Base(to)]
	switch {
	case filepath.Dir(from) != filepath.Dir(to):
		return &fs.PathError{Op: "rename", Path: to, Err: syscall.EXDEV}
	case n == nil:
		return &fs.PathError{Op: "rename", Path: from, Err: fs.ErrNotExist}
	case target == n:
		return nil
	case target != nil && target.dir != nil && n.dir == nil:
		return &fs.PathError{Op: "rename", Path: to, Err: syscall.EISDIR}
	case target != nil && target.dir == nil && n.dir != nil:
		return &fs.PathError{Op: "rename", Path: to, Err: syscall.ENOTDIR}
	case target != nil && len(target.dir) > 0:
		return &fs.PathError{Op: "rename", Path: to, Err: syscall.ENOTEMPTY}
	case target != nil:
		m.used -= int64(len(target.data))
	}
	dir.change(dirOp{unlink: base, link: filepath.Base(to), node: n})
	return nil
}

// List implements FS.
func (m *Mem) List(dir string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n, err := m.find(dir)
	if err != nil {
		return nil, err
	}
	if n.dir == nil {
		return nil, &fs.PathError{Op: "list", Path: dir, Err: syscall.ENOTDIR}
	}
	return slices.Sorted(maps.Keys(n.dir)), nil
}

// SyncDir implements FS.
func (m *Mem) SyncDir(dir string) error {
	err := m.hook("syncdir", dir, 0, 0)
	m.mu.Lock()
	defer m.mu.Unlock()
	n, ferr := m.find(dir)
	if ferr != nil {
		return ferr
	}
	if err == nil {
		n.durableDir = maps.Clone(n.dir)
		n.pendingDir = nil
	}
	return err
}

// write does op. mu is held.
func (n *node) write(op dataOp) {
	n.data = op.apply(n.data)
	n.pendingData = append(n.pendingData, op)
}

type memFile struct {
	m      *Mem
	n      *node
	name   string
	closed bool
	holds  bool // the lock
	heard  int  // of so many failures
}

func (f *memFile) check(op string) error {
	if f.closed {
		return &fs.PathError{Op: op, Path: f.name, Err: fs.ErrClosed}
	}
	return nil
}

func (f *memFile) ReadAt(b []byte, off int64) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.check("read"); err != nil {
		return 0, err
	}
	if off >= int64(len(f.n.data)) {
		if len(b) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	n := copy(b, f.n.data[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(b []byte, off int64) (int, error) {
	if err := f.m.hook("write", f.name, off, len(b)); err != nil {
		return 0, err
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.check("write"); err != nil {
		return 0, err
	}
	grow := max(0, off+int64(len(b))-int64(len(f.n.data)))
	if f.m.capacity > 0 && f.m.used+grow > f.m.capacity && grow > 0 {
		return 0, &fs.PathError{Op: "write", Path: f.name, Err: syscall.ENOSPC}
	}
	f.m.used += grow
	f.n.write(dataOp{off: off, data: slices.Clone(b)})
	return len(b), nil
}

func (f *memFile) Truncate(size int64) error {
	if err := f.m.hook("truncate", f.name, size, 0); err != nil {
		return err
	}
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.check("truncate"); err != nil {
		return err
	}
	f.m.used += size - int64(len(f.n.data))
	f.n.write(dataOp{off: size, truncate: true})
	return nil
}

func (f *memFile) Size() (int64, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return int64(len(f.n.data)), f.check("stat")
}

func (f *memFile) Sync() error {
	err := f.m.hook("sync", f.name, 0, 0)
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if cerr := f.check("sync"); cerr != nil {
		return cerr
	}
	if err == nil {
		for _, op := range f.n.pendingData {
			f.n.durableData = op.apply(f.n.durableData)
		}
	}
	// After an error the data is no longer dirty: nobody will write it again.
	f.n.pendingData = nil
	if err != nil {
		f.n.failures, f.n.failure = f.n.failures+1, err
	} else if f.heard < f.n.failures {
		err = f.n.failure
	}
	f.heard = f.n.failures
	return err
}

func (f *memFile) Lock() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.check("lock"); err != nil {
		return err
	}
	if f.n.locked && !f.holds {
		return fmt.Errorf("%s: %w", f.name, ErrLocked)
	}
	f.n.locked, f.holds = true, true
	return nil
}

func (f *memFile) Written(off int64) (int64, error) { return f.Size() }

func (f *memFile) Close() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if err := f.check("close"); err != nil {
		return err
	}
	f.closed = true
	if f.holds {
		f.n.locked = false
	}
	return nil
}
