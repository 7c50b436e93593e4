package harness

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// ErrNoFault says that this machine, or this user, cannot make the fault asked for.
var ErrNoFault = errors.New("this fault cannot be made here")

// throttles is where the kernel's first generation of control groups limits disks. It counts
// a process's own syncs, which is what a slow disk slows.
const throttles = "/sys/fs/cgroup/blkio"

// SlowDisk lets the member's process write only so many times a second, a sync being one or
// two of them, until FastDisk or its end. ErrNoFault: not root, or no such control groups.
func (m *Member) SlowDisk(writes int) error {
	if os.Getuid() != 0 || m.mounted {
		return ErrNoFault
	}
	if _, err := os.Stat(filepath.Join(throttles, "blkio.throttle.write_iops_device")); err != nil {
		return fmt.Errorf("%w: %w", ErrNoFault, err)
	}
	disk, err := diskOf(m.Dir)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoFault, err)
	}
	group := filepath.Join(throttles, fmt.Sprintf("quorate-test-%d-%d-%s", os.Getpid(), os.Getppid(), m.Name))
	if err := os.Mkdir(group, 0o755); err != nil && !os.IsExist(err) {
		return fmt.Errorf("%w: %w", ErrNoFault, err)
	}
	m.slow = group
	if err := write(group, "blkio.throttle.write_iops_device", fmt.Sprintf("%s %d", disk, writes)); err != nil {
		return err
	}
	return write(group, "cgroup.procs", strconv.Itoa(m.Server.PID()))
}

// FastDisk undoes SlowDisk.
func (m *Member) FastDisk() error { return m.fastDisk() }

func (m *Member) fastDisk() error {
	if m.slow == "" {
		return nil
	}
	if m.Running() {
		if err := write(throttles, "cgroup.procs", strconv.Itoa(m.Server.PID())); err != nil && m.Running() {
			return err
		}
	}
	// Writes that wait in the group are let go with its limit.
	if disk, err := diskOf(m.Dir); err == nil {
		if err := write(m.slow, "blkio.throttle.write_iops_device", disk+" 0"); err != nil {
			return err
		}
	}
	if err := os.Remove(m.slow); err != nil && !os.IsNotExist(err) {
		return err
	}
	m.slow = ""
	return nil
}

func write(group, file, value string) error {
	return os.WriteFile(filepath.Join(group, file), []byte(value), 0)
}

// diskOf is the whole disk below a directory, as MAJOR:MINOR.
func diskOf(dir string) (string, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(dir, &st); err != nil {
		return "", err
	}
	dev := uint64(st.Dev)
	id := fmt.Sprintf("%d:%d", dev>>8&0xfff, dev&0xff|dev>>12&0xfff00)
	sys := "/sys/dev/block/" + id
	if _, err := os.Stat(sys); err != nil {
		return "", err
	}
	if _, err := os.Stat(sys + "/partition"); err != nil {
		return id, nil
	}
	whole, err := os.ReadFile(sys + "/../dev")
	return strings.TrimSpace(string(whole)), err
}

// OwnDisk puts the member's data on a file system of its own, of so many bytes, which is in
// memory and syncs in no time. It must come before the first Launch. ErrNoFault: this process
// has no namespaces.
func (m *Member) OwnDisk(bytes int64) error {
	if !inNamespaces {
		return ErrNoFault
	}
	disk := m.Dir + ".disk"
	if err := os.MkdirAll(disk, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount("quorate-test", disk, "tmpfs", 0, fmt.Sprintf("size=%d", bytes)); err != nil {
		return fmt.Errorf("%w: mount: %w", ErrNoFault, err)
	}
	m.mounted = true
	// The log stays outside, where there is room for it.
	if err := os.Symlink(filepath.Join(disk, "data"), m.Dir); err != nil {
		return err
	}
	return os.Mkdir(filepath.Join(disk, "data"), 0o700)
}

// empty removes all that the member has on disk.
func (m *Member) empty() error {
	files, err := os.ReadDir(m.Dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if err := os.RemoveAll(filepath.Join(m.Dir, f.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (m *Member) unmount() error {
	if !m.mounted {
		return nil
	}
	m.mounted = false
	return syscall.Unmount(m.Dir+".disk", syscall.MNT_DETACH)
}

// FillDisk leaves no byte free on the member's own disk until EmptyDisk.
func (m *Member) FillDisk() error {
	if !m.mounted {
		return ErrNoFault
	}
	f, err := os.OpenFile(filepath.Join(m.Dir+".disk", "filler"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	block := make([]byte, 1<<20)
	for size := len(block); size > 0; {
		if _, err := f.Write(block[:size]); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			return err
		}
	}
	return nil
}

// EmptyDisk undoes FillDisk.
func (m *Member) EmptyDisk() error {
	err := os.Remove(filepath.Join(m.Dir+".disk", "filler"))
	if os.IsNotExist(err) {
		return nil
	}
	return err
}
