// Command cluster holds three members of quorate against three of the real etcd on this
// machine, the two in turn, and prints docs/performance.md's table: what clients of the
// others see when the leader dies, is stopped, paused or cut off; what a put costs all three;
// and what a member that joins a large store costs the writers. The machine should have
// nothing else to do. See -h for the parts that can be measured alone.
//
//	test/peers/build.sh && cd test && go run ./performance/cluster
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"os"
	"slices"
	"strings"
	"time"

	"quorate/test/harness"
)

var (
	rounds = flag.Int("rounds", 10, "how often each leader change is measured")
	rates  = flag.Int("rate-rounds", 5, "how often the rates are measured")
	joins  = flag.Int("join-rounds", 1, "how often a member joins the large store")
	total  = flag.Int("total", 100_000, "requests of one run of the rates")
	keys   = flag.Int("keys", 1_000_000, "keys of the large store, of 1 KiB each")
	only   = flag.String("only", strings.Join(parts, ","), "which parts, in this order")
	kinds  = flag.String("kinds", "etcd,quorate", "which servers")
)

// parts in the order of the table.
var parts = []string{"kill", "stop", "pause", "partition", "rates", "join"}

var rows = []harness.Row{
	{Name: "leader killed: longest gap on the others", Unit: "ms", Goal: "≤ 50 ms"},
	{Name: "leader killed: the same, worst round", Unit: "ms", Of: harness.Max},
	{Name: "leader killed: errors on the others, all rounds", Goal: "0", Of: harness.Sum},
	{Name: "leader stopped: longest gap on the others", Unit: "ms", Goal: "≤ 20 ms"},
	{Name: "leader stopped: the same, worst round", Unit: "ms", Of: harness.Max},
	{Name: "leader stopped: errors on the others, all rounds", Goal: "0", Of: harness.Sum},
	{Name: "leader stopped: its own requests in flight that failed, all rounds", Goal: "0", Of: harness.Sum},
	{Name: "leader paused: longest gap on the others", Unit: "ms", Goal: "≤ 2000 ms"},
	{Name: "leader paused: the same, worst round", Unit: "ms", Of: harness.Max},
	{Name: "leader paused: errors on the others, all rounds", Goal: "0", Of: harness.Sum},
	{Name: "leader cut off: longest gap on the others", Unit: "ms", Goal: "≤ 2000 ms"},
	{Name: "leader cut off: the same, worst round", Unit: "ms", Of: harness.Max},
	{Name: "leader cut off: errors on the others, all rounds", Goal: "0", Of: harness.Sum},
	{Name: "put: CPU of all members", Unit: "µs", Goal: "≤ 0.50"},
	{Name: "put: rate", Unit: "1/s", Goal: "≥ 1.5"},
	{Name: "put, one client: p50", Unit: "ms", Goal: "< 1"},
	{Name: "join: writer's longest gap before", Unit: "ms"},
	{Name: "join: writer's longest gap", Unit: "ms", Goal: "< 50 ms"},
	{Name: "join: until it has caught up", Unit: "s"},
	{Name: "join: leader's anonymous memory before", Unit: "MB"},
	{Name: "join: leader's anonymous memory, most", Unit: "MB", Goal: "does not grow with the store"},
	{Name: "join: new member's anonymous memory, most", Unit: "MB"},
}

func main() {
	flag.Parse()
	harness.Isolate()
	log.SetFlags(log.Ltime)
	samples := map[harness.Kind][]harness.Sample{}
	// What was measured before an error is printed, too.
	err := run(samples)
	harness.Table(os.Stdout, rows, samples)
	if err != nil {
		log.Fatal(err)
	}
}

func run(samples map[harness.Kind][]harness.Sample) error {
	var compared []harness.Kind
	for _, k := range []harness.Kind{harness.Etcd, harness.Quorate} {
		if slices.Contains(strings.Split(*kinds, ","), k.String()) {
			compared = append(compared, k)
		}
	}
	for _, part := range strings.Split(*only, ",") {
		if !slices.Contains(parts, part) {
			return fmt.Errorf("-only: there is no part %q", part)
		}
		n := *rounds
		switch part {
		case "rates":
			n = *rates
		case "join":
			n = *joins
		}
		for i := range n {
			for _, k := range compared {
				s := harness.Sample{}
				if err := measure(k, part, s); err != nil {
					return fmt.Errorf("%v: %s: %w", k, part, err)
				}
				log.Printf("%s, round %d: %v: %v", part, i+1, k, s)
				samples[k] = append(samples[k], s)
			}
		}
	}
	return nil
}

// measure runs a part on a new cluster.
func measure(k harness.Kind, part string, out harness.Sample) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	dir, err := os.MkdirTemp("", "performance-cluster-")
	if err != nil {
		return err
	}
	c, err := harness.NewCluster(dir, []harness.Kind{k, k, k}, "--log-level=error", "--quota-backend-bytes=8589934592")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close(), os.RemoveAll(dir)) }()
	if err := c.Start(ctx); err != nil {
		return err
	}
	b := &bench{cluster: c, out: out}
	switch part {
	case "rates":
		return b.rates(ctx)
	case "join":
		return b.join(ctx)
	case "partition":
		if c.Network == nil {
			log.Print("partition: left out: it needs root, or user namespaces")
			return nil
		}
	}
	return b.change(ctx, part)
}

// bench measures one cluster.
type bench struct {
	cluster *harness.Cluster
	out     harness.Sample
}

func (b *bench) rates(ctx context.Context) error {
	leader, err := b.cluster.Leader(ctx)
	if err != nil {
		return err
	}
	var pids []int
	for _, m := range b.cluster.Members {
		pids = append(pids, m.Server.PID())
	}
	put := func(n int, clients ...string) (float64, float64, float64, error) {
		return harness.Benchmark(leader.Addr, pids, slices.Concat(clients, []string{
			"put", "--total", fmt.Sprint(n), "--key-space-size", "100000", "--key-size", "32", "--val-size", "256"})...)
	}
	many := []string{"--conns", "32", "--clients", "512"}
	if _, _, _, err := put(*total/4, many...); err != nil { // warm up
		return err
	}
	rate, _, cpu, err := put(*total, many...)
	if err != nil {
		return err
	}
	b.out["put: rate"], b.out["put: CPU of all members"] = rate, cpu/float64(*total)*1e6
	_, p50, _, err := put(4000, "--conns", "1", "--clients", "1")
	b.out["put, one client: p50"] = p50 * 1e3
	return err
}
