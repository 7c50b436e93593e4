// Package wal is the durable log: raft entries, hard states and snapshot marks in
// etcd 3.7's segment files (docs/formats/wal.md).
//
// Append returns once what it wrote is on disk. Segments are filled with zeros before
// they are needed, so that a sync writes data and touches no metadata, and so that a
// full disk is found by the preparer, never in the middle of an append: Room says how
// much can still be appended for certain.
//
// Open tells a torn tail (an append that a crash cut short, never acknowledged) from
// damage (a bad record that later ones follow, or that lies below what is known to have
// been synced). It cuts off the former and refuses the latter.
package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"quorate/internal/vfs"

	"go.etcd.io/raft/v3/raftpb"
)

// Metadata is what the first record of every segment says about its owner.
type Metadata struct {
	NodeID    uint64
	ClusterID uint64
}

// Snapshot marks that the state up to Index is held elsewhere (in the B+tree file).
type Snapshot struct {
	Index     uint64
	Term      uint64
	ConfState *raftpb.ConfState // may be nil only at index 0
}

// Recovered is what Open found.
type Recovered struct {
	Metadata  Metadata
	Snapshot  Snapshot          // the newest mark at or below the commit index
	HardState *raftpb.HardState // nil if there is none; Commit is at least synced
	Entries   []*raftpb.Entry   // those after Snapshot.Index, without gaps
	Cut       int64             // bytes of torn tail that were cut off, 0 if none
}

// Options configure a Log.
type Options struct {
	FS           vfs.FS
	SegmentBytes int64 // 0: etcd's 64,000,000
	NoSync       bool  // --unsafe-no-fsync
	// OnSync is told how long each sync of an append took, in seconds; may be nil.
	OnSync func(seconds float64)
	// OnWrite is told how many bytes each append wrote, and how long that took without its
	// sync, in seconds; may be nil.
	OnWrite func(bytes int, seconds float64)
	// OnFull is told why no more segments can be prepared, most likely ENOSPC, and nil
	// once they can again; may be nil. It must not call the Log's methods but Room.
	OnFull func(error)
}

const (
	segmentBytes = 64 * 1000 * 1000
	// atOnce is how much of the first segment is filled before Create returns.
	atOnce = 1 << 20
	// groupMax is how much one group may take, more or less: what is larger is written
	// and synced in several steps.
	groupMax = 64 << 20
	// bufferMax is the largest buffer that is kept from one append to the next.
	bufferMax = 8 << 20
)

var (
	// ErrClosed is what a Log answers after Close.
	ErrClosed = errors.New("wal: closed")
	// ErrExists means that there is a log already.
	ErrExists = errors.New("wal: there is a log already")
)

// Log is an open log. Append and SaveSnapshot are for one goroutine, the log writer;
// Room, Release and Close may run beside them.
type Log struct {
	fs     vfs.FS
	dir    string
	opts   Options
	header []byte // the payload of the metadata records, as the log's creator wrote it
	prep   *preparer

	// The log writer's.
	tail    *segment
	off     int64 // where the records of the tail end
	enc     encoder
	last    uint64 // index of the last entry or mark
	state   state  // the newest one, written or not
	written state  // the newest one in the file
	buf     []byte
	broken  error

	mu struct {
		sync.Mutex
		segments []*segment // oldest first; the last one is the tail
		mark     uint64     // index of the newest mark
		closed   bool
	}
	writing sync.Mutex // held by the log writer in Append and SaveSnapshot, and by Close
}

// Exists reports whether dir holds a log.
func Exists(fsys vfs.FS, dir string) (bool, error) {
	names, err := segmentNames(fsys, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return len(names) > 0, err
}

// Create makes a new log in dir, which must not exist or be empty, in one atomic step.
// Its first mark is at index 0.
func Create(dir string, md Metadata, opts Options) (*Log, error) {
	l := newLog(dir, opts)
	fail := func(err error) (*Log, error) { return nil, fmt.Errorf("create log in %s: %w", dir, err) }
	if found, err := Exists(l.fs, dir); err != nil {
		return fail(err)
	} else if found {
		return fail(ErrExists)
	}
	tmp := dir + ".tmp"
	if err := removeDir(l.fs, tmp); err != nil {
		return fail(err)
	}
	if err := l.fs.Mkdir(tmp); err != nil {
		return fail(err)
	}
	l.header = appendMetadata(nil, md)
	seg := &segment{name: segmentName(0, 0)}
	f, err := createLocked(l.fs, filepath.Join(tmp, seg.name))
	if err != nil {
		return fail(err)
	}
	seg.f = f
	filled := min(l.opts.SegmentBytes, atOnce)
	if err := l.createIn(tmp, f, filled); err != nil {
		return fail(errors.Join(err, f.Close()))
	}
	zeros, err := l.fs.Open(filepath.Join(l.dir, seg.name))
	if err != nil {
		return fail(errors.Join(err, f.Close()))
	}
	l.start([]*segment{seg}, space{f: f, zeros: zeros, filled: filled, target: l.opts.SegmentBytes})
	return l, nil
}

// createIn writes the first segment of the log in directory tmp, and makes it the log.
func (l *Log) createIn(tmp string, f vfs.File, filled int64) error {
	if err := writeZeros(f, 0, filled); err != nil {
		return err
	}
	mark, err := appendSnapshot(nil, Snapshot{})
	if err != nil {
		return err
	}
	b := appendMark(nil, 0)
	b = l.enc.record(b, typeMetadata, l.header)
	b = l.enc.record(b, typeSnapshot, mark)
	sealMark(b, 0, 0)
	if _, err := f.WriteAt(b, 0); err != nil {
		return err
	}
	l.off = int64(len(b))
	if err := f.Sync(); err != nil {
		return err
	}
	if err := l.fs.SyncDir(tmp); err != nil {
		return err
	}
	if err := l.fs.Rename(tmp, l.dir); err != nil {
		return err
	}
	return l.fs.SyncDir(filepath.Dir(l.dir))
}

func removeDir(fsys vfs.FS, dir string) error {
	names, err := fsys.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := fsys.Remove(filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return fsys.Remove(dir)
}

func newLog(dir string, opts Options) *Log {
	if opts.SegmentBytes == 0 {
		opts.SegmentBytes = segmentBytes
	}
	return &Log{fs: opts.FS, dir: filepath.Clean(dir), opts: opts}
}

func (l *Log) start(segs []*segment, tail space) {
	l.mu.segments = segs
	l.tail = segs[len(segs)-1]
	l.prep = newPreparer(l.fs, l.dir, l.opts.SegmentBytes, tail, l.off, l.opts.OnFull)
}

// Open opens the log in dir for appending. synced is the highest entry index known to
// have been on disk (the store's applied index): damage at or below it is never taken
// for a torn tail.
//
// What it returns is on disk, even if it was not when a crash stopped its writer. The
// error is a *DamageError if the log cannot be trusted; then nothing was changed. It
// wraps vfs.ErrLocked if another process has the log open.
func Open(dir string, synced uint64, opts Options) (*Log, *Recovered, error) {
	l := newLog(dir, opts)
	segs, err := openSegments(l.fs, l.dir)
	if err != nil {
		return nil, nil, err
	}
	rec, tail, err := l.recover(segs, synced)
	if err != nil {
		return nil, nil, errors.Join(err, closeSegments(segs))
	}
	l.start(segs, tail)
	return l, rec, nil
}

// recover reads the segments, and cuts off and makes durable what needs it.
func (l *Log) recover(segs []*segment, synced uint64) (*Recovered, space, error) {
	var (
		p   replay
		c   chain
		buf []byte
	)
	end := int64(0)
	for i, s := range segs {
		size, err := s.f.Size()
		if err != nil {
			return nil, space{}, fmt.Errorf("open log segment: %w", err)
		}
		p.r = &reader{f: s.f, name: filepath.Join(l.dir, s.name), size: size, buf: buf[:0]}
		if l.off, end, err = p.r.scan(&c, i == len(segs)-1, p.see); err != nil {
			return nil, space{}, err
		}
		buf = p.r.buf
	}
	if c.cut && p.unsettled {
		// A received snapshot whose hard state is torn is none, and would become one when
		// the commit index gets there otherwise.
		p.undoMark()
		l.off, c.sum = c.last, c.before
	}
	rec, err := p.finish(synced, l.off)
	if err != nil {
		return nil, space{}, err
	}
	l.header, l.enc.sum, l.last = p.metadata, c.sum, p.last
	l.written = p.state
	l.state = p.state
	l.mu.mark = rec.Snapshot.Index
	rec.Cut = end - l.off
	tail, err := l.cut(segs[len(segs)-1], c, end)
	return rec, tail, err
}

// cut removes what lies between l.off and end from the tail, if there is anything; the
// file as it was is kept beside it. And it makes durable what is between synced and l.off:
// a process that crashed may have left it in memory only. It is written once more, for the
// process may have crashed because the disk failed; then the system takes what is in memory
// for written, and a sync alone would do nothing.
//
// If the log ends inside a group, an empty group ends that one: else what is written next,
// if it is torn in turn, would be taken for a later write behind a group that is damaged.
func (l *Log) cut(s *segment, c chain, end int64) (space, error) {
	fail := func(err error) (space, error) { return space{}, fmt.Errorf("repair log: %w", err) }
	if end > l.off {
		if err := copyFile(l.fs, s.f, end, filepath.Join(l.dir, s.name+brokenSuffix)); err != nil {
			return fail(err)
		}
		if err := s.f.Truncate(l.off); err != nil {
			return fail(err)
		}
	}
	if err := copyBytes(s.f, s.f, c.synced, l.off, s.name); err != nil {
		return fail(err)
	}
	if err := s.f.Sync(); err != nil {
		return fail(err)
	}
	if c.cut {
		b := appendMark(nil, c.sum)
		sealMark(b, l.off, c.sum)
		if _, err := s.f.WriteAt(b, l.off); err != nil {
			return fail(err)
		}
		if err := s.f.Sync(); err != nil {
			return fail(err)
		}
		l.off += int64(len(b))
	}
	if err := removeLeftovers(l.fs, l.dir); err != nil {
		return fail(err)
	}
	if err := l.fs.SyncDir(l.dir); err != nil {
		return fail(err)
	}
	filled, err := s.f.Written(l.off)
	if err != nil {
		return fail(err)
	}
	zeros, err := l.fs.Open(filepath.Join(l.dir, s.name))
	if err != nil {
		return fail(err)
	}
	// A segment of another size than ours stays at least as long as it is.
	return space{f: s.f, zeros: zeros, filled: max(filled, l.off), target: max(l.opts.SegmentBytes, l.off)}, nil
}

// Append writes entries and, if not nil, the hard state, in this order, and returns once
// they are on disk. An entry at or below the last index replaces that index and
// everything after it. Nothing passed is retained.
//
// If sync is false, entries is empty and the hard state has the term and vote of the one
// before, it is only remembered, and written with what comes next: a commit index need
// not survive a crash.
//
// Append waits while there is no room (see Room). After an error the Log is broken: every
// later call returns that error and the process must stop.
func (l *Log) Append(entries []*raftpb.Entry, hs *raftpb.HardState, sync bool) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	for n := fits(entries); n < len(entries); n = fits(entries) {
		if err := l.write(entries[:n], nil); err != nil {
			return err
		}
		entries = entries[n:]
	}
	if hs != nil {
		l.state = stateOf(hs)
	}
	urgent := l.state.term != l.written.term || l.state.vote != l.written.vote
	if len(entries) == 0 && !urgent && (!sync || hs == nil) {
		return l.broken
	}
	return l.write(entries, nil)
}

// fits is how many of the entries go into one group.
func fits(entries []*raftpb.Entry) int {
	size := int64(0)
	for i, e := range entries {
		if size += EntryBytes(e); size > groupMax && i > 0 {
			return i
		}
	}
	return len(entries)
}

// SaveSnapshot marks that entries up to s.Index are no longer needed for recovery, and
// returns once the mark is on disk. If s comes from another member, the mark must be
// saved before the store that holds the state takes the place of the old one; hs then says
// that s is committed, and is written in one step with the mark. Else hs is nil. A mark
// older than the last is of no use any more and not written.
func (l *Log) SaveSnapshot(s Snapshot, hs *raftpb.HardState) error {
	l.writing.Lock()
	defer l.writing.Unlock()
	if s.ConfState == nil && s.Index > 0 {
		return fmt.Errorf("save snapshot mark %d: conf state is missing", s.Index)
	}
	l.mu.Lock()
	stale := s.Index < l.mu.mark
	l.mu.Unlock()
	if stale {
		return l.broken
	}
	mark, err := appendSnapshot(nil, s)
	if err != nil {
		return err
	}
	if hs != nil {
		l.state = stateOf(hs)
	}
	if err := l.write(nil, mark); err != nil {
		return err
	}
	l.last = max(l.last, s.Index)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.mark = max(l.mu.mark, s.Index)
	return nil
}

// write writes one group: entries, the payload of a snapshot mark if not nil, and the hard
// state if it is news. It goes to the next segment if it does not fit in the tail.
func (l *Log) write(entries []*raftpb.Entry, mark []byte) error {
	if l.broken != nil {
		return l.broken
	}
	size := int64(AppendExtraBytes + len(mark))
	for _, e := range entries {
		size += EntryBytes(e)
	}
	var err error
	if l.off+size > l.opts.SegmentBytes && l.off > 0 {
		err = l.writeNext(entries, mark, size)
	} else {
		err = l.writeTail(entries, mark, size)
	}
	if err != nil {
		l.broken = err
		return err
	}
	if n := len(entries); n > 0 {
		l.last = entries[n-1].GetIndex()
	}
	if cap(l.buf) > bufferMax {
		l.buf = nil
	}
	return nil
}

// AppendExtraBytes is the most that an Append takes beside its entries.
const AppendExtraBytes = markBytes + 2*(recordExtra+stateBytesMax)

const stateBytesMax = 33

// records appends the records of a group to b. The hard state comes last: its commit index
// is of the entries or the snapshot before it, and if the group is torn, must not be read
// as one of what was there before.
func (l *Log) records(b []byte, entries []*raftpb.Entry, mark []byte) []byte {
	for _, e := range entries {
		b = l.enc.entry(b, e)
	}
	if mark != nil {
		b = l.enc.record(b, typeSnapshot, mark)
	}
	if l.state != l.written {
		b = l.enc.state(b, l.state)
		l.written = l.state
	}
	return b
}

func (l *Log) writeTail(entries []*raftpb.Entry, mark []byte, size int64) error {
	if err := l.prep.waitTail(l.off + size); err != nil {
		return err
	}
	sum, b := l.enc.sum, l.buf[:0]
	if l.opts.NoSync {
		// A mark would say that what comes before it is on disk.
		b = l.records(b, entries, mark)
	} else {
		b = l.records(appendMark(b, sum), entries, mark)
		sealMark(b, l.off, sum)
	}
	l.buf = b
	if err := l.writeAt(l.tail.f, b, l.off); err != nil {
		return err
	}
	if err := l.sync(l.tail.f); err != nil {
		return err
	}
	l.off += int64(len(b))
	l.prep.advance(l.off, false)
	return nil
}

func (l *Log) writeAt(f vfs.File, b []byte, off int64) error {
	start := time.Now()
	if _, err := f.WriteAt(b, off); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	if l.opts.OnWrite != nil {
		l.opts.OnWrite(len(b), time.Since(start).Seconds())
	}
	return nil
}

// writeNext seals the tail and writes the group as the first one of the next segment:
//
//  1. The beginning of the next segment and the group are written to the prepared file
//     and synced. A crash leaves the log as it was.
//  2. The file gets its name, and the directory is synced: the group is on disk.
//  3. What the tail has left is given back. If a crash undoes that, there are zeros.
//
// All of the tail is on disk before, for each group was synced when it was written.
func (l *Log) writeNext(entries []*raftpb.Entry, mark []byte, size int64) error {
	f, err := l.prep.waitNext(size + l.headerBytes())
	if err != nil {
		return err
	}
	if l.opts.NoSync {
		// Groups are not synced one by one then, but the order of segments is kept.
		if err := l.tail.f.Sync(); err != nil {
			return fmt.Errorf("sync log: %w", err)
		}
	}
	next := &segment{seq: l.tail.seq + 1, first: l.last + 1, f: f}
	next.name = segmentName(next.seq, next.first)
	sum, b := l.enc.sum, l.buf[:0]
	if l.opts.NoSync {
		b = l.enc.record(b, typeCRC, nil)
	} else {
		b = appendMark(b, sum)
	}
	b = l.enc.record(b, typeMetadata, l.header)
	if l.written != (state{}) {
		// The state as it was before the group: what comes after it may still be torn.
		b = l.enc.state(b, l.written)
	}
	b = l.records(b, entries, mark)
	if !l.opts.NoSync {
		sealMark(b, 0, sum)
	}
	l.buf = b
	if err := l.writeAt(f, b, 0); err != nil {
		return err
	}
	if err := l.sync(f); err != nil {
		return err
	}
	if err := l.fs.Rename(filepath.Join(l.dir, preparedName), filepath.Join(l.dir, next.name)); err != nil {
		return fmt.Errorf("begin log segment: %w", err)
	}
	if err := l.fs.SyncDir(l.dir); err != nil {
		return fmt.Errorf("begin log segment: %w", err)
	}
	if err := l.tail.f.Truncate(l.off); err != nil {
		return fmt.Errorf("seal log segment: %w", err)
	}
	l.tail, l.off = next, int64(len(b))
	l.mu.Lock()
	l.mu.segments = append(l.mu.segments, next)
	l.mu.Unlock()
	l.prep.advance(l.off, true)
	return nil
}

// headerBytes is the most that the beginning of a segment takes beside its first group.
func (l *Log) headerBytes() int64 {
	return int64(2*recordExtra + len(l.header) + stateBytesMax)
}

func (l *Log) sync(f vfs.File) error {
	if l.opts.NoSync {
		return nil
	}
	start := time.Now()
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync log: %w", err)
	}
	if l.opts.OnSync != nil {
		l.opts.OnSync(time.Since(start).Seconds())
	}
	return nil
}

// Release deletes segments that hold only entries below index; they must lie below a
// saved snapshot mark. What is needed for that mark stays in any case, and so does the
// tail.
func (l *Log) Release(index uint64) error {
	l.mu.Lock()
	index = min(index, l.mu.mark)
	n := 0
	for n+1 < len(l.mu.segments) && l.mu.segments[n+1].first <= index {
		n++
	}
	old := slices.Clone(l.mu.segments[:n])
	l.mu.segments = slices.Delete(l.mu.segments, 0, n)
	l.mu.Unlock()

	// Oldest first, so that a crash leaves no gap.
	for _, s := range old {
		if err := errors.Join(s.f.Close(), l.fs.Remove(filepath.Join(l.dir, s.name))); err != nil {
			return fmt.Errorf("release log segment: %w", err)
		}
	}
	return nil
}

// Room is how many bytes of records can be appended for certain, into segments that are
// already filled with zeros: an Append takes AppendExtraBytes and EntryBytes of each
// entry. It shrinks to nothing when the disk is full and grows again by itself when there
// is room. A little is kept back for what is not asked for, as a new term's first entry.
func (l *Log) Room() int64 {
	// A group is not split: what does not fit in the tail goes to the next segment, as
	// everything after it does. So the larger of the two is certain, not their sum.
	tail, next := l.prep.room()
	keep := min(roomKept, l.opts.SegmentBytes/16)
	return max(0, max(tail, next-l.headerBytes())-keep)
}

// roomKept is what Room keeps back.
const roomKept = 64 << 10

// Close writes what is only remembered, syncs and closes the log, and waits for the
// preparer to end. An Append that waits for room returns ErrClosed.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.mu.closed {
		l.mu.Unlock()
		return nil
	}
	l.mu.closed = true
	l.mu.Unlock()

	var errs []error
	l.prep.interrupt()
	l.writing.Lock()
	defer l.writing.Unlock()
	if l.broken == nil && l.state != l.written {
		// Only a commit index is not written yet. If there is no room, it can be lost.
		if err := l.write(nil, nil); !errors.Is(err, ErrClosed) {
			errs = append(errs, err)
		}
	}
	if l.broken == nil {
		errs = append(errs, l.tail.f.Sync())
		l.broken = ErrClosed
	}
	errs = append(errs, l.prep.close())
	l.mu.Lock()
	defer l.mu.Unlock()
	errs = append(errs, closeSegments(l.mu.segments))
	return errors.Join(errs...)
}
