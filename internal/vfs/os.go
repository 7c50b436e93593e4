//go:build unix

package vfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// OS is the operating system's file system. Files and directories that it makes are for
// their owner alone.
func OS() FS { return osFS{} }

type osFS struct{}

func (osFS) Open(name string) (File, error) { return openOS(name, os.O_RDWR) }

func (osFS) Create(name string) (File, error) {
	return openOS(name, os.O_RDWR|os.O_CREATE|os.O_TRUNC)
}

func openOS(name string, flag int) (File, error) {
	f, err := os.OpenFile(name, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osFS) Mkdir(dir string) error       { return os.MkdirAll(dir, 0o700) }
func (osFS) Remove(name string) error     { return os.Remove(name) }
func (osFS) Rename(from, to string) error { return unix.Rename(from, to) }

func (osFS) List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), nil
}

func (f osFile) Sync() error {
	if err := f.control(datasync); err != nil {
		return &fs.PathError{Op: "sync", Path: f.Name(), Err: err}
	}
	return nil
}

func (f osFile) Lock() error {
	err := f.control(tryLock)
	if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%s: %w", f.Name(), ErrLocked)
	}
	if err != nil {
		return &fs.PathError{Op: "lock", Path: f.Name(), Err: err}
	}
	return nil
}

func (f osFile) Written(off int64) (int64, error) {
	size, err := f.Size()
	if err != nil || off >= size {
		return size, err
	}
	hole := off
	err = f.control(func(fd int) error {
		h, err := seekHole(fd, off)
		if err == nil {
			hole = h
		}
		return nil // a file system that cannot say: nobody knows
	})
	return hole, err
}

// control calls fn with the descriptor, again as long as a signal cuts it short.
func (f osFile) control(fn func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if raw.Control(func(fd uintptr) {
		for ferr = unix.EINTR; errors.Is(ferr, unix.EINTR); {
			ferr = fn(int(fd))
		}
	}) != nil {
		return fs.ErrClosed // Control fails for no other reason
	}
	return ferr
}
