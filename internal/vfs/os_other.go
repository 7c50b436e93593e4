//go:build unix && !linux

package vfs

import (
	"errors"

	"golang.org/x/sys/unix"
)

func datasync(fd int) error { return unix.Fsync(fd) }

func tryLock(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) }

func seekHole(int, int64) (int64, error) { return 0, errors.ErrUnsupported }
