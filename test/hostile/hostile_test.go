package hostile

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	"quorate/test/harness"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

var (
	strength = flag.Int("strength", 1, "how much of everything, in multiples of the default")
	referee  = flag.Bool("referee", false, "be hostile to etcd instead, and only print what happens")
	// On an idle machine 3s holds. The attacks run on the same one.
	notice = flag.Duration("notice", 30*time.Second, "how long a call of another client may take")
)

func TestMain(m *testing.M) { harness.Main(m) }

// callMax is how long another client's call may take before it fails.
const callMax = time.Minute

// victim is a server under attack, and a client that goes on writing meanwhile.
type victim struct {
	*harness.Server
	t    *testing.T
	conn *grpc.ClientConn
}

func newVictim(t *testing.T, flags ...string) *victim {
	t.Helper()
	kind := harness.Quorate
	if *referee {
		kind = harness.Etcd
	}
	s := harness.Start(t, kind, t.TempDir()+"/member", flags...)
	conn, err := s.Conn()
	if err != nil {
		t.Fatal(err)
	}
	v := &victim{s, t, conn}
	v.put("warm", nil) // and the first is slower
	return v
}

// errorf is t.Errorf, unless it is the referee that is looked at.
func (v *victim) errorf(format string, args ...any) {
	v.t.Helper()
	if *referee {
		v.t.Logf(format, args...)
		return
	}
	v.t.Errorf(format, args...)
}

// attacker is a connection that is closed with the test.
func (v *victim) attacker(window uint32) *rawConn {
	v.t.Helper()
	r, err := dialRaw(v.Addr, window)
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { _ = r.Close() }) // the server may have closed it before
	return r
}

// grpcConn is a client of its own.
func (v *victim) grpcConn() *grpc.ClientConn {
	v.t.Helper()
	c, err := harness.Dial(v.Addr)
	if err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { _ = c.Close() }) // says only that it was closed
	return c
}

func (v *victim) put(key string, value []byte) {
	v.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), callMax)
	defer cancel()
	if _, err := pb.NewKVClient(v.conn).Put(ctx, &pb.PutRequest{Key: []byte(key), Value: value}); err != nil {
		v.t.Fatalf("put: %v; the log ends:\n%s", err, v.LogTail(20))
	}
}

// rss is the process's resident memory in MiB.
func (v *victim) rss() float64 {
	v.t.Helper()
	kib, err := harness.Memory(v.PID(), "VmRSS")
	if err != nil {
		v.t.Fatal(err)
	}
	return kib
}

// toll is what an attack cost others.
type toll struct {
	puts    int
	failed  int
	err     error // the first
	slowest time.Duration
	median  time.Duration
	peak    float64 // MiB
}

func (c toll) String() string {
	return fmt.Sprintf("%d puts, %d failed (%v), median %v, slowest %v, memory %.0f MiB", c.puts, c.failed, c.err, c.median, c.slowest, c.peak)
}

// during writes with a client of its own while attack runs and for some time after, and says how
// it went.
func (v *victim) during(after time.Duration, attack func()) toll {
	v.t.Helper()
	over := make(chan struct{})
	go func() {
		defer close(over)
		attack()
		time.Sleep(after)
	}()
	var c toll
	var took []time.Duration
	kv := pb.NewKVClient(v.conn)
	for running := true; running; {
		select {
		case <-over:
			running = false
		case <-v.Exited():
			v.t.Fatalf("the server ended; its log:\n%s", v.LogTail(40))
		case <-time.After(10 * time.Millisecond):
		}
		ctx, cancel := context.WithTimeout(context.Background(), callMax)
		start := time.Now()
		_, err := kv.Put(ctx, &pb.PutRequest{Key: []byte("probe"), Value: []byte("v")})
		cancel()
		c.puts++
		if err != nil {
			c.failed++
			c.err = errors.Join(c.err, err)
			if c.failed > 3 {
				c.err = err
			}
		}
		took = append(took, time.Since(start))
		c.peak = max(c.peak, v.rss())
	}
	c.slowest, c.median = slices.Max(took), slices.Sorted(slices.Values(took))[len(took)/2]
	v.t.Log(c)
	return c
}

// bounds fails the test if an attack cost more than this.
func (v *victim) bounds(c toll, slowest time.Duration, peak float64) {
	v.t.Helper()
	if c.failed > 0 {
		v.errorf("%d of %d puts of another client failed: %v", c.failed, c.puts, c.err)
	}
	if c.slowest > slowest {
		v.errorf("a put of another client took %v, more than %v", c.slowest, slowest)
	}
	if c.peak > peak {
		v.errorf("the server held %.0f MiB, more than %.0f", c.peak, peak)
	}
}

// wire is m in wire form.
func wire(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err) // nothing here can be wrong with one
	}
	return b
}
