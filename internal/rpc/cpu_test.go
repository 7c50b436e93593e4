package rpc

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// The benchmarks below load a server in a process of its own and report its CPU time per
// call, user and system, so that the client's share does not count.

// serverEnv makes the test binary a server that tells its address on stdout and its CPU
// time in microseconds for each line that it reads.
const serverEnv = "QUORATE_TEST_RPC_SERVER"

func TestServerProcess(t *testing.T) {
	if os.Getenv(serverEnv) == "" {
		t.Skip("runs only as a child of the benchmarks")
	}
	m := newMember(t)
	_, addr := start(t, m, nil, nil)
	if _, err := m.Propose(t.Context(), 4, must(proto.Marshal(put("abc", strings.Repeat("v", 256))))); err != nil {
		t.Fatal(err)
	}
	fmt.Println("addr", addr)
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Println("cpu", cpuMicros())
	}
}

func cpuMicros() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return u.Utime.Nano()/1e3 + u.Stime.Nano()/1e3
}

// serverProcess is a server in a process of its own.
type serverProcess struct {
	addr string
	in   io.Writer
	out  *bufio.Scanner
}

func startProcess(b *testing.B) *serverProcess {
	b.Helper()
	cmd := exec.Command(os.Args[0], "-test.run", "^TestServerProcess$", "-test.timeout", "1h")
	cmd.Env = append(os.Environ(), serverEnv+"=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	p := &serverProcess{in: in, out: bufio.NewScanner(out)}
	b.Cleanup(func() {
		_ = in.Close()
		_, _ = io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil {
			b.Error(err)
		}
	})
	p.addr = p.word(b, "addr")
	return p
}

func (p *serverProcess) word(b *testing.B, name string) string {
	for p.out.Scan() {
		if v, ok := strings.CutPrefix(p.out.Text(), name+" "); ok {
			return v
		}
	}
	b.Fatal("the server ended")
	return ""
}

func (p *serverProcess) cpu(b *testing.B) float64 {
	if _, err := io.WriteString(p.in, "\n"); err != nil {
		b.Fatal(err)
	}
	n, err := strconv.ParseInt(p.word(b, "cpu"), 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return float64(n)
}

// load makes b.N calls from 512 clients on 32 connections.
func load(b *testing.B, call func(c pb.KVClient, n int64) error) {
	p := startProcess(b)
	clients := make([]pb.KVClient, 32)
	for i := range clients {
		clients[i] = pb.NewKVClient(dial(b, p.addr))
		if err := call(clients[i], int64(i)); err != nil {
			b.Fatal(err)
		}
	}
	before := p.cpu(b)
	b.ResetTimer()
	start := time.Now()
	var next atomic.Int64
	var wg sync.WaitGroup
	for i := range 512 {
		c := clients[i%len(clients)]
		wg.Go(func() {
			for n := next.Add(1); n <= int64(b.N); n = next.Add(1) {
				if err := call(c, n); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric((p.cpu(b)-before)/float64(b.N), "server-µs/op")
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "op/s")
}

func BenchmarkServerRange(b *testing.B) {
	load(b, func(c pb.KVClient, _ int64) error {
		_, err := c.Range(b.Context(), &pb.RangeRequest{Key: []byte("abc")})
		return err
	})
}

func BenchmarkServerPut(b *testing.B) {
	value := make([]byte, 256)
	load(b, func(c pb.KVClient, n int64) error {
		_, err := c.Put(b.Context(), &pb.PutRequest{Key: fmt.Appendf(nil, "%032d", n), Value: value})
		return err
	})
}

// BenchmarkServerEmpty is the floor: a call that touches nothing of the member.
func BenchmarkServerEmpty(b *testing.B) {
	load(b, func(c pb.KVClient, _ int64) error {
		_, err := c.Range(b.Context(), &pb.RangeRequest{})
		if err == nil {
			return fmt.Errorf("an empty key was taken")
		}
		return nil
	})
}
