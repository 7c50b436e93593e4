package mvcc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"quorate/internal/kv"
	"quorate/internal/mvcc/index"
)

// lockTimeout is how long Open waits for another process to let go of the file.
const lockTimeout = 3 * time.Second

// Open opens or creates the file at path (etcd's member/snap/db) and rebuilds the index.
//
// The error names the file and says what to do: it is in use by another process, it is
// damaged, or a newer version wrote it.
func Open(path string, opts Options) (*Store, error) {
	s, err := open(path, opts)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return s, nil
}

func open(path string, opts Options) (*Store, error) {
	l, err := loadFile(path, opts.OnLeasedKey)
	if err != nil {
		return nil, err
	}
	db, err := openDB(path, opts.NoSync)
	if err != nil {
		return nil, err
	}
	s, err := newStore(path, opts, db, l)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	go s.run()
	return s, nil
}

func newStore(path string, opts Options, db *bbolt.DB, l *loaded) (*Store, error) {
	if err := removeLeftovers(path); err != nil {
		return nil, err
	}
	if err := createBuckets(db); err != nil {
		return nil, err
	}
	s := &Store{
		path: path, opts: opts,
		progress: make(chan struct{}), defrags: make(chan struct{}, 1),
		flusher: flusher{
			kick: make(chan struct{}, 1), calls: make(chan func()), ended: make(chan struct{}),
		},
	}
	s.room = sync.NewCond(&s.mu)
	s.defrags <- struct{}{}
	s.flusher.file = s.newFile(db)
	im, err := newImage(s.flusher.file, l.rev)
	if err != nil {
		return nil, err
	}
	s.image = im
	s.measure(im)
	s.adopt(l)
	s.show()
	return s, nil
}

// mapBytes is how much address space the file is mapped to, and thereby the bound of its
// length. It is reserved at once because bbolt can only map anew when no reader is left.
// Where the system does not give as much, less is tried.
var mapBytes = []int{1 << 40, 1 << 36, 1 << 33}

// openDB opens the file for the store's life.
func openDB(path string, noSync bool) (*bbolt.DB, error) {
	var db *bbolt.DB
	var err error
	for _, size := range mapBytes {
		err = guard(func() (err error) { // it reads the list of free pages
			db, err = bbolt.Open(path, 0o600, &bbolt.Options{
				Timeout:         lockTimeout,
				FreelistType:    bbolt.FreelistMapType,
				InitialMmapSize: size,
				MaxSize:         size,
				NoSync:          noSync,
				NoGrowSync:      noSync,
			})
			return err
		})
		if !errors.Is(err, syscall.ENOMEM) {
			break
		}
	}
	if err != nil {
		return nil, describe(err)
	}
	return db, nil
}

// describe says what an error of bbolt means to an operator.
func describe(err error) error {
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return errors.New("it is in use by another process: stop that first")
	case errors.Is(err, syscall.ENOMEM):
		return fmt.Errorf("%w: this process may not map the file; raise the limit of its address space (ulimit -v)", err)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrVersionMismatch), errors.Is(err, berrors.ErrChecksum),
		strings.HasPrefix(err.Error(), "file size too small"): // an error without a name
		return fmt.Errorf("it is not a B+tree file, or damaged: %w; restore the member from a snapshot or let it join anew", err)
	}
	return err
}

// createBuckets makes sure that all of etcd's buckets are there.
func createBuckets(db *bbolt.DB) error {
	missing := false
	err := db.View(func(tx *bbolt.Tx) error {
		for _, name := range allBuckets {
			missing = missing || tx.Bucket([]byte(name)) == nil
		}
		return nil
	})
	if err != nil || !missing {
		return err
	}
	return db.Update(func(tx *bbolt.Tx) error {
		for _, name := range allBuckets {
			if _, err := tx.CreateBucketIfNotExists([]byte(name)); err != nil {
				return fmt.Errorf("create bucket %s: %w", name, err)
			}
		}
		return nil
	})
}

// tempPattern names files that Defragment writes. etcd, too, removes them at its start.
const tempPattern = "db.tmp.*"

// removeLeftovers removes what an interrupted Defragment left. The caller holds the
// file's lock, so nobody is at it.
func removeLeftovers(path string) error {
	names, err := filepath.Glob(filepath.Join(filepath.Dir(path), tempPattern))
	if err != nil {
		return fmt.Errorf("look for unfinished copies: %w", err)
	}
	for _, name := range names {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove unfinished copy: %w", err)
		}
	}
	return nil
}

// loaded is what a file tells about the store.
type loaded struct {
	tree        index.Tree
	index, term uint64
	rev         int64
	// compactRev is the revision below which nothing can be read, -1 if none.
	compactRev             int64
	scheduled, finished    int64 // -1: never
	superseded, tombstones queue
	leased                 int64
}

// loadFile reads the file at path, which need not exist.
func loadFile(path string, onLeased func(kv.LeaseID, []byte)) (l *loaded, err error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return &loaded{rev: 1, compactRev: -1, scheduled: -1, finished: -1}, nil
	}
	if err != nil {
		return nil, err
	}
	err = readFile(path, info.Size(), func(tx *bbolt.Tx) error {
		l, err = load(tx, onLeased)
		return err
	})
	return l, err
}

// readFile runs fn on the file at path, of the given size.
//
// It opens the file for reading alone, and closes it again: bbolt trusts a file that it
// opens for writing, and ends the process where it should not have.
func readFile(path string, size int64, fn func(tx *bbolt.Tx) error) (err error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: lockTimeout, NoStatistics: true})
	if err != nil {
		return describe(err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	tx, err := db.Begin(false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tx.Rollback()) }()
	if tx.Size() > size {
		return fmt.Errorf("it is cut off: %d bytes long, but uses %d; restore the member from a snapshot or let it join anew", size, tx.Size())
	}
	return guard(func() error { return fn(tx) })
}

// guard runs fn, which reads pages of a file that may be damaged in any way, and returns
// an error where bbolt or the memory map gives up.
func guard(fn func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("it is damaged: %v; restore the member from a snapshot or let it join anew", r)
		}
	}()
	return fn()
}

// load reads the state that tx holds.
func load(tx *bbolt.Tx, onLeased func(kv.LeaseID, []byte)) (*loaded, error) {
	l := &loaded{rev: 1, compactRev: -1, scheduled: -1, finished: -1}
	if meta := tx.Bucket(bucketMeta); meta != nil {
		if err := l.readMeta(meta); err != nil {
			return nil, err
		}
	}
	if records := tx.Bucket(bucketKey); records != nil {
		if err := l.readRecords(records, onLeased); err != nil {
			return nil, err
		}
	}
	if err := readOthers(tx); err != nil {
		return nil, err
	}
	// The newest records may be gone: they were tombstones, and compacted.
	l.compactRev = max(l.scheduled, l.finished)
	l.rev = max(l.rev, l.compactRev)
	return l, nil
}

// readOthers goes through the small buckets, so that a damaged page is found before anybody
// relies on them.
func readOthers(tx *bbolt.Tx) error {
	return tx.ForEach(func(name []byte, b *bbolt.Bucket) error {
		if bytes.Equal(name, bucketKey) {
			return nil
		}
		if b == nil {
			return fmt.Errorf("it is damaged: %q is not a bucket", name)
		}
		return b.ForEach(func(_, _ []byte) error { return nil })
	})
}

func (l *loaded) readMeta(meta *bbolt.Bucket) error {
	if err := checkVersion(string(meta.Get(metaVersion))); err != nil {
		return err
	}
	for _, m := range []struct {
		key  []byte
		into *uint64
	}{{metaIndex, &l.index}, {metaTerm, &l.term}} {
		switch v := meta.Get(m.key); len(v) {
		case 8:
			*m.into = binary.BigEndian.Uint64(v)
		case 0:
		default:
			return fmt.Errorf("it is damaged: %s in bucket meta has %d bytes", m.key, len(v))
		}
	}
	for _, m := range []struct {
		key  []byte
		into *int64
	}{{metaScheduled, &l.scheduled}, {metaFinished, &l.finished}} {
		v := meta.Get(m.key)
		if len(v) == 0 {
			continue
		}
		rev, _, ok := parseRev(v)
		if !ok {
			return fmt.Errorf("it is damaged: %s in bucket meta is %x", m.key, v)
		}
		*m.into = rev.Main
	}
	return nil
}
