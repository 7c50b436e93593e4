// Package vfs is the file interface of the log and of small state files, so that tests
// can run them on a disk in memory that loses unsynced writes, tears them, fills up,
// fails or slows down.
//
// OS is the real file system. Mem is the one in memory; it runs no goroutine and reads
// no clock.
package vfs

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
)

// FS is a file system. Paths are those of the operating system. Errors wrap
// fs.ErrNotExist, fs.ErrExist and ENOSPC where they apply.
type FS interface {
	// Open opens an existing file for reading and writing.
	Open(name string) (File, error)
	// Create opens a file for reading and writing, empty, whether it existed or not.
	Create(name string) (File, error)
	// Mkdir makes a directory and those above it that are missing, readable by its
	// owner alone. One that exists is no error.
	Mkdir(dir string) error
	// Remove removes a file or an empty directory.
	Remove(name string) error
	// Rename moves a file or directory within its directory, in one step; it replaces
	// a file, or an empty directory. It survives a crash once SyncDir has returned.
	Rename(from, to string) error
	// List is the sorted names in dir.
	List(dir string) ([]string, error)
	// SyncDir makes what was created, renamed and removed in dir survive a crash.
	SyncDir(dir string) error
}

// File is an open file. ReadAt, WriteAt and Sync may run side by side.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	// Truncate changes the size; what is added reads as zeros.
	Truncate(size int64) error
	// Sync makes data and size survive a crash. After an error nobody knows what of
	// the data did; a later success does not make up for it. A failure is told once to
	// each who has the file open, whoever of them wrote the data: who must hear of every
	// failure shares a File with nobody else that calls Sync.
	Sync() error
	// Lock takes the file for this open file alone, until it is closed; ErrLocked if
	// another has it, in this process or any other.
	Lock() error
	// Written is where the first part at or after off begins that has no disk blocks
	// of its own or blocks never written to: writing there costs a change of metadata.
	// It is the file's size if there is none, and off if nobody knows.
	Written(off int64) (int64, error)
}

// ErrLocked means that somebody else has the file open and locked.
var ErrLocked = errors.New("file is locked by another process")

// ReadFile is the whole content of a file.
func ReadFile(fs FS, name string) ([]byte, error) {
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() // nothing was written
	size, err := f.Size()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); int64(n) < size {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b, nil
}

// WriteFile replaces a file in one step: after a crash there is the old content or the
// new one, and the new one once WriteFile has returned.
func WriteFile(fs FS, name string, data []byte) error {
	tmp := name + ".tmp"
	f, err := fs.Create(tmp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = fs.Rename(tmp, name)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", name, err), fs.Remove(tmp))
	}
	return fs.SyncDir(filepath.Dir(name))
}
