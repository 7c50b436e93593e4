package harness

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// What every server tells others, whatever it listens on: equal on both kinds, so that ids
// and member lists are.
const (
	Name                = "default"
	AdvertisedPeerURL   = "http://127.0.0.1:2380"
	AdvertisedClientURL = "http://127.0.0.1:2379"
)

// readyWithin bounds how long a start may take on a busy machine.
const readyWithin = 30 * time.Second

// Server is one process of a server. Its methods are for one goroutine at a time.
type Server struct {
	Kind Kind
	Dir  string // data directory
	Addr string // host:port for clients
	Log  string // the file that standard output and error go to

	cmd   *exec.Cmd
	clock *clock        // nil: the machine's
	done  chan struct{} // closed when the process has ended and exit is set
	exit  error

	mu   sync.Mutex
	conn *grpc.ClientConn
}

// handedOut are the ports that FreePort has returned: each only once in a process, so that two
// servers that are started at once get different ones.
var handedOut sync.Map

// FreePort returns a TCP port of 127.0.0.1 that was free a moment ago. It lies below the ports
// that the kernel gives to outgoing connections, one of which could take it meanwhile.
func FreePort() (int, error) {
	const first, last = 12_000, 32_000
	var err error
	for range 1000 {
		port := first + rand.IntN(last-first)
		if _, again := handedOut.LoadOrStore(port, true); again {
			continue
		}
		var l net.Listener
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("find a free port: %w", err)
}

// Launch starts a process on the data directory dir and does not wait until it serves. Its
// log goes to a file beside the directory, appended over restarts. The caller ends it by
// Kill or Stop.
func Launch(k Kind, dir string, flags ...string) (*Server, error) {
	bin, args, err := command(k)
	if err != nil {
		return nil, err
	}
	client, err := FreePort()
	if err != nil {
		return nil, err
	}
	peer, err := FreePort()
	if err != nil {
		return nil, err
	}
	addr := fmt.Sprintf("127.0.0.1:%d", client)
	return run(k, bin, dir, addr, false, slices.Concat(args, []string{
		"--name=" + Name,
		"--data-dir=" + dir,
		"--listen-client-urls=http://" + addr,
		"--advertise-client-urls=" + AdvertisedClientURL,
		fmt.Sprintf("--listen-peer-urls=http://127.0.0.1:%d", peer),
		"--initial-advertise-peer-urls=" + AdvertisedPeerURL,
		"--initial-cluster=" + Name + "=" + AdvertisedPeerURL,
	}, flags))
}

// run starts a server's process, which listens for clients on addr; with a clock of its own
// if it shall have one and can.
func run(k Kind, bin, dir, addr string, ownClock bool, args []string) (*Server, error) {
	s := &Server{
		Kind: k,
		Dir:  dir,
		Addr: addr,
		Log:  strings.TrimRight(dir, "/") + ".log",
		done: make(chan struct{}),
	}
	out, err := os.OpenFile(s.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	if ownClock {
		s.cmd = newCommand(bin, args, filepath.Dir(dir), out)
		s.clock, err = startWithClock(s.cmd)
	}
	if s.clock == nil {
		s.cmd = newCommand(bin, args, filepath.Dir(dir), out)
		err = s.cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("start %v: %w", k, err)
	}
	go func() {
		s.exit = s.cmd.Wait()
		close(s.done)
	}()
	return s, nil
}

// newCommand is a program to be run in dir.
func newCommand(bin string, args []string, dir string, out *os.File) *exec.Cmd {
	cmd := exec.Command(bin, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Dir = dir
	cmd.Env = environment()
	// A test process that dies (a panic, a timeout) takes its servers along.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// environment is ours without what would configure a server behind the flags' back.
func environment() []string {
	var env []string
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "ETCD_") {
			env = append(env, e)
		}
	}
	return env
}

// Start launches a server, waits until it serves and ends it with the test.
func Start(t testing.TB, k Kind, dir string, flags ...string) *Server {
	t.Helper()
	s, err := Launch(k, dir, flags...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	if err := s.WaitReady(context.Background()); err != nil {
		t.Fatalf("%v on %s: %v\nits log ends:\n%s", k, dir, err, s.LogTail(30))
	}
	return s
}

// WaitReady returns once the server answers that it serves, or with an error when its
// process ends first or too much time passes.
func (s *Server) WaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	conn, err := s.Conn()
	if err != nil {
		return err
	}
	health := healthpb.NewHealthClient(conn)
	for {
		resp, err := health.Check(ctx, &healthpb.HealthCheckRequest{})
		if err == nil && resp.Status == healthpb.HealthCheckResponse_SERVING {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("health is %v", resp.Status)
		}
		select {
		case <-s.done:
			return fmt.Errorf("%w: %v", errExited, s.exit)
		case <-ctx.Done():
			return fmt.Errorf("not ready within %v: %w", readyWithin, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Conn is a connection to the server, made once.
func (s *Server) Conn() (*grpc.ClientConn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn == nil {
		conn, err := Dial(s.Addr)
		if err != nil {
			return nil, err
		}
		s.conn = conn
	}
	return s.conn, nil
}

// Dial makes a connection with limits that never stand in a test's way.
func Dial(addr string) (*grpc.ClientConn, error) {
	const unlimited = 1<<31 - 1
	backoff := grpc.ConnectParams{MinConnectTimeout: time.Second}
	backoff.Backoff.BaseDelay = 2 * time.Millisecond
	backoff.Backoff.Multiplier = 1.5
	backoff.Backoff.MaxDelay = 50 * time.Millisecond
	return grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(backoff),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(unlimited), grpc.MaxCallSendMsgSize(unlimited)))
}

// Kill ends the process at once, as a crash would, and returns when it is gone. Killing a
// server that has ended does nothing.
func (s *Server) Kill() {
	if err := s.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		panic(fmt.Sprintf("kill %v: %v", s.Kind, err))
	}
	<-s.done
	s.close()
}

// Stop asks the process to end in order and returns when it is gone.
func (s *Server) Stop() error {
	s.close()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return fmt.Errorf("stop %v: %w", s.Kind, err)
	}
	select {
	case <-s.done:
	case <-time.After(readyWithin):
		s.Kill()
		return fmt.Errorf("%v did not stop within %v", s.Kind, readyWithin)
	}
	// Both kinds raise the signal again when they are done, as a process does that a
	// signal ended.
	var exit *exec.ExitError
	if errors.As(s.exit, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGTERM {
		return nil
	}
	return s.exit
}

// WaitExit returns the error of a process that ends by itself, nil for exit code 0.
func (s *Server) WaitExit(within time.Duration) (exit error, ended bool) {
	select {
	case <-s.done:
		s.close()
		return s.exit, true
	case <-time.After(within):
		return nil, false
	}
}

// Exited is closed once the process has ended.
func (s *Server) Exited() <-chan struct{} { return s.done }

// PID is the process's id.
func (s *Server) PID() int { return s.cmd.Process.Pid }

func (s *Server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		// The error says only that it was closed before.
		_ = s.conn.Close()
		s.conn = nil
	}
}

// Stacks ends a process that hangs and returns what its goroutines were doing, as Go's
// runtime prints it.
func (s *Server) Stacks() string {
	if err := s.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		return err.Error()
	}
	if _, ended := s.WaitExit(5 * time.Second); !ended {
		s.Kill()
	}
	data, err := os.ReadFile(s.Log)
	if err != nil {
		return err.Error()
	}
	if i := bytes.LastIndex(data, []byte("SIGQUIT: quit")); i >= 0 {
		data = data[i:]
	}
	return string(data)
}

// LogTail returns the last n lines of the log for a failure's message.
func (s *Server) LogTail(n int) string {
	f, err := os.Open(s.Log)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	data, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}
