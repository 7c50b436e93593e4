package wal

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"quorate/internal/vfs"
)

// segment is one file of the log, open and locked.
type segment struct {
	name  string // without directory
	seq   uint64 // 0, 1, 2, ... without gaps
	first uint64 // no entry that lives in an older segment has this index or a higher one
	f     vfs.File
}

const (
	segmentSuffix = ".wal"
	brokenSuffix  = ".broken"
	// preparedName is the segment that is being prepared. etcd ignores it, and unlike
	// its own 0.tmp and 1.tmp never takes it for one of zeros only.
	preparedName = "prepared.tmp"
)

func segmentName(seq, first uint64) string {
	return fmt.Sprintf("%016x-%016x%s", seq, first, segmentSuffix)
}

func parseSegmentName(name string) (seq, first uint64, ok bool) {
	n, err := fmt.Sscanf(name, "%016x-%016x"+segmentSuffix, &seq, &first)
	return seq, first, err == nil && n == 2 && name == segmentName(seq, first)
}

// segmentNames are the names of the segments in dir, oldest first.
func segmentNames(fsys vfs.FS, dir string) ([]string, error) {
	names, err := fsys.List(dir)
	if err != nil {
		return nil, err
	}
	var segments []string
	for _, name := range names {
		if _, _, ok := parseSegmentName(name); ok {
			segments = append(segments, name)
		}
	}
	return segments, nil
}

// openSegments opens and locks all segments in dir, oldest first.
func openSegments(fsys vfs.FS, dir string) (segs []*segment, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, closeSegments(segs))
			segs = nil
		}
	}()
	names, err := segmentNames(fsys, dir)
	if err != nil {
		return nil, fmt.Errorf("list log: %w", err)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("open log in %s: no segments: %w", dir, fs.ErrNotExist)
	}
	for _, name := range names {
		seq, first, _ := parseSegmentName(name)
		if n := len(segs); n > 0 && seq != segs[n-1].seq+1 {
			return segs, &DamageError{File: filepath.Join(dir, name), Reason: fmt.Sprintf(
				"the segments between %s and %s are missing", segs[n-1].name, name)}
		}
		f, err := fsys.Open(filepath.Join(dir, name))
		if err != nil {
			return segs, fmt.Errorf("open log segment: %w", err)
		}
		segs = append(segs, &segment{name: name, seq: seq, first: first, f: f})
		if err := f.Lock(); err != nil {
			return segs, fmt.Errorf("lock log segment, perhaps another server runs on %s: %w", dir, err)
		}
	}
	return segs, nil
}

func closeSegments(segs []*segment) error {
	var errs []error
	for _, s := range segs {
		errs = append(errs, s.f.Close())
	}
	return errors.Join(errs...)
}

// removeLeftovers removes what a crash, or etcd, left half prepared.
func removeLeftovers(fsys vfs.FS, dir string) error {
	names, err := fsys.List(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".tmp") {
			if err := fsys.Remove(filepath.Join(dir, name)); err != nil {
				return fmt.Errorf("remove leftover: %w", err)
			}
		}
	}
	return nil
}

// copyFile copies the first n bytes of f to a new file, and syncs it.
func copyFile(fsys vfs.FS, f vfs.File, n int64, to string) (err error) {
	w, err := fsys.Create(to)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if err := copyBytes(w, f, 0, n, to); err != nil {
		return err
	}
	return w.Sync()
}

// copyBytes copies the bytes from off to end of f, which has a name, to the same place in w.
func copyBytes(w, f vfs.File, off, end int64, name string) error {
	r := reader{f: f, name: name, size: end}
	for ; off < end; off += readBytes {
		b, err := r.at(off, readBytes)
		if err != nil {
			return err
		}
		if _, err := w.WriteAt(b, off); err != nil {
			return err
		}
	}
	return nil
}
