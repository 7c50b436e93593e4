// Command performance holds quorate against the real etcd on this machine, the two in
// turn, and prints docs/performance.md's table. The machine should have nothing else to
// do. See -h for the parts that can be measured alone.
//
//	test/peers/build.sh && cd test && go run ./performance
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"

	"quorate/test/harness"
)

var (
	rounds = flag.Int("rounds", 5, "how often each server is measured")
	total  = flag.Int("total", 100_000, "requests of one run of the rates")
	keys   = flag.Int("keys", 1_000_000, "keys of the large store")
	only   = flag.String("only", "rates,large", "which parts: rates, large")
)

var rows = []harness.Row{
	{Name: "put: server CPU", Unit: "µs", Goal: "≤ 0.60"},
	{Name: "put: rate", Unit: "1/s", Goal: "≥ 1"},
	{Name: "put, one client: p50", Unit: "ms", Goal: "< 1"},
	{Name: "linearizable get: server CPU", Unit: "µs", Goal: "≤ 0.60"},
	{Name: "linearizable get: rate", Unit: "1/s", Goal: "≥ 1"},
	{Name: "list of 10,000 keys: rate", Unit: "keys/s", Goal: "≥ 2"},
	{Name: "list of 10,000 keys: server CPU", Unit: "µs/key"},
	{Name: "large store: list of 500 and the count", Unit: "ms", Goal: "≤ 0.10"},
	{Name: "large store: anonymous memory", Unit: "MB", Goal: "≤ 0.40"},
	{Name: "large store: resident memory", Unit: "MB"},
	{Name: "large store: start to first read", Unit: "s", Goal: "≤ 0.25"},
	{Name: "large store: writer's longest gap, nothing else going on", Unit: "ms"},
	{Name: "large store: writer's longest gap, compaction", Unit: "ms", Goal: "≤ usual + 20"},
	{Name: "large store: writer's longest gap, defragmentation", Unit: "ms", Goal: "≤ usual + 20"},
}

func main() {
	flag.Parse()
	log.SetFlags(log.Ltime)
	samples := map[harness.Kind][]harness.Sample{}
	for r := range *rounds {
		for _, k := range []harness.Kind{harness.Etcd, harness.Quorate} {
			s, err := measure(k)
			if err != nil {
				log.Fatalf("%v: %v", k, err)
			}
			log.Printf("round %d: %v: %v", r+1, k, s)
			samples[k] = append(samples[k], s)
		}
	}
	harness.Table(os.Stdout, rows, samples)
}

var parts = map[string]func(*bench) error{"rates": (*bench).rates, "large": (*bench).large}

// measure runs the parts against a fresh server of one kind.
func measure(k harness.Kind) (harness.Sample, error) {
	s := harness.Sample{}
	for _, part := range strings.Split(*only, ",") {
		run, ok := parts[part]
		if !ok {
			return nil, fmt.Errorf("-only: there is no part %q", part)
		}
		dir, err := os.MkdirTemp("", "performance-")
		if err != nil {
			return nil, err
		}
		b := &bench{kind: k, dir: filepath.Join(dir, "data"), out: s}
		err = b.start()
		if err == nil {
			err = run(b)
		}
		if b.server != nil {
			b.server.Kill()
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", part, err)
		}
		if err := os.RemoveAll(dir); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// bench measures one server.
type bench struct {
	kind   harness.Kind
	dir    string
	server *harness.Server
	conn   *grpc.ClientConn
	kv     pb.KVClient
	out    harness.Sample
}

func (b *bench) start() error {
	s, err := harness.Launch(b.kind, b.dir, "--log-level=error", "--quota-backend-bytes=8589934592")
	if err != nil {
		return err
	}
	b.server = s
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.WaitReady(ctx); err != nil {
		return fmt.Errorf("%w\n%s", err, s.LogTail(10))
	}
	if b.conn, err = harness.Dial(s.Addr); err != nil {
		return err
	}
	b.kv = pb.NewKVClient(b.conn)
	return nil
}

// ---- rates, with etcd's own benchmark tool ----

// tool runs etcd's benchmark against the server.
func (b *bench) tool(args ...string) (rate, p50, cpu float64, err error) {
	return harness.Benchmark(b.server.Addr, []int{b.server.PID()}, args...)
}

func (b *bench) rates() error {
	many := []string{"--conns", "32", "--clients", "512"}
	sizes := []string{"--key-size", "32", "--val-size", "256"}
	n := strconv.Itoa(*total)
	put := func(clients []string, n string) (float64, float64, float64, error) {
		return b.tool(slices.Concat(clients, []string{"put", "--total", n, "--key-space-size", "100000"}, sizes)...)
	}
	if _, _, _, err := put(many, strconv.Itoa(*total/4)); err != nil { // warm up
		return err
	}
	rate, _, cpu, err := put(many, n)
	if err != nil {
		return err
	}
	b.out["put: rate"], b.out["put: server CPU"] = rate, cpu/float64(*total)*1e6

	_, p50, _, err := put([]string{"--conns", "1", "--clients", "1"}, "4000")
	if err != nil {
		return err
	}
	b.out["put, one client: p50"] = p50 * 1e3

	key := "get/" + strings.Repeat("k", 28)
	if _, err := b.kv.Put(context.Background(), &pb.PutRequest{Key: []byte(key), Value: make([]byte, 256)}); err != nil {
		return err
	}
	rate, _, cpu, err = b.tool(slices.Concat(many, []string{"range", key, "--total", n})...)
	if err != nil {
		return err
	}
	b.out["linearizable get: rate"], b.out["linearizable get: server CPU"] = rate, cpu/float64(*total)*1e6

	const listed, lists = 10_000, 400
	if err := b.load("list/", listed); err != nil {
		return err
	}
	rate, _, cpu, err = b.tool("--conns", "4", "--clients", "4", "range", "list/", "--prefix", "--total", strconv.Itoa(lists))
	if err != nil {
		return err
	}
	b.out["list of 10,000 keys: rate"] = rate * listed
	b.out["list of 10,000 keys: server CPU"] = cpu / (lists * listed) * 1e6
	return nil
}

// ---- the large store ----

// load puts n keys of 32 bytes with values of 256 bytes, in no order.
func (b *bench) load(prefix string, n int) error {
	const workers = 128
	var wg sync.WaitGroup
	errs := make(chan error, workers)
	value := []byte(strings.Repeat("v", 256))
	for w := range workers {
		wg.Go(func() {
			for i := w; i < n; i += workers {
				// A multiplication by an odd number visits every key once, scattered.
				k := uint64(i) * 0x9E3779B97F4A7C15 % (1 << 63)
				key := fmt.Appendf(nil, "%s%0*d", prefix, 32-len(prefix), k)
				if _, err := b.kv.Put(context.Background(), &pb.PutRequest{Key: key, Value: value}); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

func (b *bench) large() error {
	ctx := context.Background()
	if err := b.load("large/", *keys); err != nil {
		return err
	}
	time.Sleep(5 * time.Second)
	var err error
	if b.out["large store: anonymous memory"], err = harness.Memory(b.server.PID(), "RssAnon"); err != nil {
		return err
	}
	if b.out["large store: resident memory"], err = harness.Memory(b.server.PID(), "VmRSS"); err != nil {
		return err
	}

	var took []float64
	for range 9 {
		begin := time.Now()
		r, err := b.kv.Range(ctx, &pb.RangeRequest{Key: []byte("large/"), RangeEnd: []byte("large0"), Limit: 500})
		if err != nil {
			return err
		}
		took = append(took, time.Since(begin).Seconds()*1e3)
		if r.Count != int64(*keys) || len(r.Kvs) != 500 {
			return fmt.Errorf("listed %d of %d", len(r.Kvs), r.Count)
		}
	}
	slices.Sort(took)
	b.out["large store: list of 500 and the count"] = took[len(took)/2]

	if err := b.gaps(); err != nil {
		return err
	}

	if err := b.server.Stop(); err != nil {
		return err
	}
	begin := time.Now()
	if err := b.startUntilRead(); err != nil {
		return err
	}
	b.out["large store: start to first read"] = time.Since(begin).Seconds()
	return nil
}

// startUntilRead starts the server again and returns once it has answered a linearizable
// read.
func (b *bench) startUntilRead() error {
	s, err := harness.Launch(b.kind, b.dir, "--log-level=error", "--quota-backend-bytes=8589934592")
	if err != nil {
		return err
	}
	b.server = s
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		// Only a look whether anyone listens, so that the waiting takes no CPU from the
		// start. Then a new connection for each try: one that was refused backs off.
		if probe, err := net.Dial("tcp", s.Addr); err != nil {
			continue
		} else if err := probe.Close(); err != nil {
			return err
		}
		conn, err := harness.Dial(s.Addr)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		_, err = pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte("large/"), RangeEnd: []byte("large0"), Limit: 1})
		cancel()
		conn.Close()
		if err == nil {
			return nil
		}
	}
	return fmt.Errorf("no read within a minute\n%s", s.LogTail(10))
}

// gaps measures how long one writer in sequence waits at most for an answer: with nothing
// else going on, while half of the store's history is compacted, and while the file is
// defragmented.
func (b *bench) gaps() error {
	ctx := context.Background()
	// History to be dropped: half of the keys are written again.
	if err := b.load("large/", *keys/2); err != nil {
		return err
	}
	time.Sleep(3 * time.Second)
	head, err := b.kv.Range(ctx, &pb.RangeRequest{Key: []byte("large/")})
	if err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"nothing else going on", func() error { time.Sleep(10 * time.Second); return nil }},
		{"compaction", func() error {
			_, err := b.kv.Compact(ctx, &pb.CompactionRequest{Revision: head.Header.Revision, Physical: true})
			return err
		}},
		{"defragmentation", func() error {
			_, err := pb.NewMaintenanceClient(b.conn).Defragment(ctx, &pb.DefragmentRequest{})
			return err
		}},
	} {
		gap, err := b.longestGap(step.do)
		if err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
		b.out["large store: writer's longest gap, "+step.name] = gap.Seconds() * 1e3
	}
	return nil
}

// longestGap writes in sequence while do runs and a second longer.
func (b *bench) longestGap(do func() error) (time.Duration, error) {
	conn, err := harness.Dial(b.server.Addr)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	client := pb.NewKVClient(conn)
	put := func() error {
		_, err := client.Put(context.Background(), &pb.PutRequest{Key: []byte("gap"), Value: make([]byte, 256)})
		return err
	}
	if err := put(); err != nil { // connects
		return 0, err
	}
	done := make(chan error, 1)
	go func() { err := do(); time.Sleep(time.Second); done <- err }()
	longest := time.Duration(0)
	for {
		select {
		case err := <-done:
			return longest, err
		default:
		}
		begin := time.Now()
		if err := put(); err != nil {
			return 0, err
		}
		longest = max(longest, time.Since(begin))
	}
}
