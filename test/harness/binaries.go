// Package harness starts the servers that the tests of this module hold against each other:
// the real etcd and quorate, each as a process of its own, as an operator would run it.
//
// Both kinds are given the same name, token and advertised addresses, so that their member
// and cluster ids are equal and one can be started on a directory of the other. What they
// listen on differs, is on 127.0.0.1 only and is picked free at start.
package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// Kind says whose server a process is.
type Kind int

const (
	Etcd Kind = iota
	Quorate
)

func (k Kind) String() string {
	if k == Etcd {
		return "etcd"
	}
	return "quorate"
}

// Other is the kind that k is compared with.
func (k Kind) Other() Kind { return 1 - k }

// root is the repository's top directory.
func root() string {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		panic("harness: no caller information")
	}
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// Peer returns the path of a real etcd, etcdctl or etcdutl: from the directory that
// $QUORATE_PEERS names, else from .cache/peers at the root of the repository, where
// test/peers/build.sh puts them. The test fails when it is not there.
func Peer(t testing.TB, name string) string {
	t.Helper()
	path, err := PeerPath(name)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// PeerPath is Peer for those who are not a test.
func PeerPath(name string) (string, error) {
	dir := os.Getenv("QUORATE_PEERS")
	if dir == "" {
		dir = filepath.Join(root(), ".cache", "peers")
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("the real %s is not built: run test/peers/build.sh, or set QUORATE_PEERS to the directory that has it: %w", name, err)
	}
	return path, nil
}

// quorateBinary is $QUORATE_BIN, else a build of this repository that is made once a
// process. A QUORATE_BIN whose base name is etcd is started as etcd is, without a verb:
// with the real etcd there, a test compares etcd with itself, and whatever it finds is a
// fault of the test.
var quorateBinary = sync.OnceValues(func() (string, error) {
	if bin := os.Getenv("QUORATE_BIN"); bin != "" {
		return bin, nil
	}
	dir, err := os.MkdirTemp("", "quorate-bin-")
	if err != nil {
		return "", err
	}
	buildDir = dir
	bin := filepath.Join(dir, "quorate")
	cmd := exec.Command("go", "build", "-o", bin, "./cmd/quorate")
	cmd.Dir = root()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build quorate: %w\n%s", err, out)
	}
	return bin, nil
})

var buildDir string

// QuorateBinary returns the path of the quorate under test and fails the test when it
// cannot be built.
func QuorateBinary(t testing.TB) string {
	t.Helper()
	bin, err := quorateBinary()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

// Main runs a package's tests and removes what Quorate built. Every package that starts
// servers calls it from TestMain.
func Main(m *testing.M) {
	code := m.Run()
	if buildDir != "" {
		os.RemoveAll(buildDir)
	}
	os.Exit(code)
}

// command is the program and the first arguments that start a server of the kind.
func command(k Kind) (string, []string, error) {
	if k == Etcd {
		bin, err := PeerPath("etcd")
		return bin, nil, err
	}
	bin, err := quorateBinary()
	if err != nil {
		return "", nil, err
	}
	if filepath.Base(bin) == "etcd" {
		return bin, nil, nil
	}
	return bin, []string{"serve"}, nil
}

// SelfTest says that etcd stands in for quorate, so that a test can leave out what only
// quorate promises.
func SelfTest() bool {
	return filepath.Base(os.Getenv("QUORATE_BIN")) == "etcd"
}

var errExited = errors.New("the server's process has ended")
