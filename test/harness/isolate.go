package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
)

// isolated marks the process that Isolate has started.
const isolated = "QUORATE_TEST_ISOLATED"

// inNamespaces says that this process has network and mount namespaces of its own.
var inNamespaces bool

// MainIsolated is Main in namespaces of its own: see Isolate.
func MainIsolated(m *testing.M) {
	Isolate()
	Main(m)
}

// Isolate starts this program once more in network and mount namespaces of its own, waits for
// it and exits as it does; in that second process it returns. There, each member of a Cluster
// is a host of a network that nobody else sees, and whatever is cut, filled or mounted is gone
// with the process, however it ends. It needs root or the right to make user namespaces, and
// the program ip of iproute2. Where these are missing it returns, too: members then share the
// loopback interface, and a Cluster has no Network.
//
// main or TestMain calls it first.
func Isolate() {
	if os.Getenv(isolated) != "" {
		if err := enter(); err != nil {
			fmt.Fprintln(os.Stderr, "harness: isolated, but:", err)
			os.Exit(1)
		}
		return
	}
	if _, err := exec.LookPath("ip"); err != nil {
		fmt.Fprintln(os.Stderr, "harness: no partitions:", err)
		return
	}
	// The build may need the network for its modules. Its error, if any, comes back to the
	// tests that ask for the binary.
	bin, err := quorateBinary()
	if err == nil {
		os.Setenv("QUORATE_BIN", bin)
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), isolated+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS,
		Pdeathsig:  syscall.SIGKILL,
	}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	runtime.LockOSThread() // Pdeathsig means the thread that starts the process
	if err := cmd.Start(); err != nil {
		runtime.UnlockOSThread()
		fmt.Fprintln(os.Stderr, "harness: no partitions, since namespaces cannot be made:", err)
		return
	}
	err = cmd.Wait()
	if buildDir != "" {
		os.RemoveAll(buildDir)
	}
	var exit *exec.ExitError
	switch {
	case err == nil:
		os.Exit(0)
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		os.Exit(exit.ExitCode())
	}
	fmt.Fprintln(os.Stderr, "harness: the isolated process:", err)
	os.Exit(1)
}

// enter makes the new namespaces usable.
func enter() error {
	if err := os.Unsetenv(isolated); err != nil {
		return err
	}
	// What is mounted here stays here.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := ip("link", "set", "lo", "up"); err != nil {
		return err
	}
	inNamespaces = true
	return nil
}

// ip runs iproute2's program.
func ip(args ...string) error {
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %v: %w: %s", args, err, out)
	}
	return nil
}
