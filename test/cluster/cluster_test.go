package cluster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	clientv3 "go.etcd.io/etcd/client/v3"

	"quorate/test/harness"
)

// roundLength is how long faults go on before everything is checked. It bounds what a run
// remembers, and what porcupine has to search.
const roundLength = 15 * time.Second

// TestEtcd holds etcd's own clusters to what etcd promises: whatever it finds is a fault of
// the test, or etcd's.
func TestEtcd(t *testing.T) {
	if !*referee {
		t.Skip("not without -referee")
	}
	run(t, []harness.Kind{harness.Etcd, harness.Etcd, harness.Etcd}, false)
}

// TestQuorate is the promise: faults cost time, and errors only where the client's own member
// is the one that fails.
func TestQuorate(t *testing.T) {
	run(t, []harness.Kind{harness.Quorate, harness.Quorate, harness.Quorate}, false)
}

// TestMixed starts with members of both kinds and lets them be replaced by each other.
func TestMixed(t *testing.T) {
	run(t, []harness.Kind{harness.Quorate, harness.Etcd, harness.Quorate}, true)
}

func run(t *testing.T, kinds []harness.Kind, swaps bool) {
	if testing.Short() {
		t.Skip("starts servers")
	}
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano()) % 1_000_000_000
	}
	dir, err := os.MkdirTemp("", "quorate-cluster-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() && *keep {
			t.Logf("the directories are below %s", dir)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	r := rand.New(rand.NewPCG(s, 0))
	// A log that keeps little makes followers that were away catch up by snapshots, a long one
	// by entries.
	var flags []string
	if r.IntN(2) == 0 {
		flags = append(flags, "--snapshot-count=200", "--snapshot-catchup-entries=20")
	}
	c, err := harness.NewCluster(dir, kinds, flags...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	c.OwnClocks = true
	if err := c.Members[len(kinds)-1].OwnDisk(512 << 20); err != nil {
		t.Log(err)
	}
	ctx := context.Background()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	// A client of a surviving quorate sees no error; etcd does not promise that.
	strict := !swaps && !slices.Contains(kinds, harness.Etcd) && !harness.SelfTest()
	sum := totals{faults: map[string]int{}, left: map[string]int{}, errors: map[string]int{}}
	begin := time.Now()
	for n := 1; n == 1 || time.Since(begin)+roundLength/2 < *duration; n++ {
		length := min(roundLength, max(*duration-time.Since(begin), time.Second))
		if err := round(ctx, c, s, n, length, swaps, strict, &sum); err != nil {
			var logs []string
			for _, m := range c.Members {
				logs = append(logs, fmt.Sprintf("%s (%v): %s", m.Name, m.Kind, m.Server.Log))
			}
			t.Fatalf("-seed %d, round %d, flags %v: %v\n%s", s, n, flags, err, strings.Join(logs, "\n"))
		}
		if testing.Verbose() && n%20 == 0 {
			t.Logf("%d rounds: %v", n, &sum)
		}
	}
	t.Logf("seed %d, flags %v: %v", s, flags, &sum)
}

type totals struct {
	rounds, ops, doubts, events, leases, pieces int
	longest, longestLeft                        time.Duration
	faults, left, errors                        map[string]int
}

func (s *totals) String() string {
	return fmt.Sprintf("%d rounds, %d operations, %d of them in doubt (%v), %d events seen by every watch, %d short watches, %d leases, longest answer %v, through members that a fault left alone %v; faults %v, not possible here: %v",
		s.rounds, s.ops, s.doubts, s.errors, s.events, s.pieces, s.leases, s.longest.Round(time.Millisecond), s.longestLeft.Round(time.Millisecond), s.faults, s.left)
}

// round puts load and faults on the cluster for a while, lets it settle and checks everything.
func round(ctx context.Context, c *harness.Cluster, seed uint64, n int, length time.Duration, swaps, strict bool, sum *totals) error {
	r := rand.New(rand.NewPCG(seed, uint64(n)))
	ctx, cancel := context.WithTimeout(ctx, length+3*time.Minute)
	defer cancel()
	var f findings
	var mu sync.Mutex
	fatal := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		f.add("answer", format, args...)
	}
	base, err := c.Settle(ctx)
	if err != nil {
		return err
	}
	l := &load{record: &record{}, began: time.Now(), prefix: fmt.Sprintf("r%d/", n), base: base, kept: &atomic.Int64{}, fatal: fatal}
	l.kept.Store(base)
	if l.clients, err = connect(c); err != nil {
		return err
	}
	defer func() {
		for _, client := range l.clients {
			client.Close()
		}
	}()

	last := l.prefix + "zz" // the last key that is written
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	for i := range c.Members {
		l.tapes = append(l.tapes, l.follow(watching, i, func(e event) bool { return string(e.kv.Key) == last }))
	}
	watches := &l.wg
	work := &load{record: l.record, began: l.began, prefix: l.prefix, base: base, kept: l.kept, clients: l.clients, fatal: fatal}
	working, stopWork := context.WithTimeout(ctx, length)
	defer stopWork()
	work.start(working, r)
	rr := rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))
	work.wg.Go(func() { work.forget(working, rr) })

	x := &chaos{Rand: rand.New(rand.NewPCG(r.Uint64(), r.Uint64())), cluster: c, load: l, swaps: swaps, counts: map[string]int{}, left: map[string]int{}}
	err = x.run(working)
	work.wg.Wait()
	if err != nil {
		return err
	}
	for _, m := range c.Members {
		if !m.Running() {
			return fmt.Errorf("%s has ended by itself:\n%s", m.Name, m.Server.LogTail(20))
		}
	}
	if err := l.settled(ctx, last); err != nil {
		return err
	}
	finished := make(chan struct{})
	go func() { watches.Wait(); close(finished) }()
	select {
	case <-finished:
	case <-time.After(30 * time.Second):
		stopWatching()
		<-finished
		for i, t := range l.tapes {
			f.add("watch", "%s (of %d) was at revision %d half a minute after the last write (%v)", t.who, i, t.upTo, t.err)
		}
	}
	rev, err := c.Settle(ctx)
	if err != nil {
		return err
	}
	if _, err := c.Hash(ctx, rev); err != nil {
		f.add("hash", "%v", err)
	}
	if err := l.contents(ctx, rev); err != nil {
		f.add("contents", "%v", err)
	}
	if err := check(l.record, strict); err != nil {
		f.add("check", "%v", err)
	}
	sum.add(l.record, x)
	return f.err()
}

// settled waits until every lease that was left alone has ended, and writes the last key.
func (l *load) settled(ctx context.Context, last string) error {
	ctx, cancel := context.WithTimeout(ctx, 45*time.Second)
	defer cancel()
	client := l.clients[0]
	for {
		resp, err := client.Get(ctx, l.prefix+"lease/", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err == nil && resp.Count == 0 {
			break
		}
		if ctx.Err() != nil {
			left := int64(-1)
			if err == nil {
				left = resp.Count
			}
			return fmt.Errorf("%d keys of leases are left, err %v", left, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	for {
		_, err := client.Put(ctx, last, untracked+"last")
		if err == nil || ctx.Err() != nil {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// contents looks that every member holds what the history ends with.
func (l *load) contents(ctx context.Context, rev int64) error {
	h := newHistory(l.tapes[0].events)
	for i, client := range l.clients {
		resp, err := client.Get(ctx, l.prefix, clientv3.WithPrefix(), clientv3.WithSerializable(), clientv3.WithRev(rev))
		if err != nil {
			return err
		}
		there := map[string]string{}
		for _, kv := range resp.Kvs {
			there[string(kv.Key)] = kv.String()
		}
		for _, key := range h.keys("") {
			want := ""
			if kv := h.at(key, rev); kv != nil {
				want = kv.String()
			}
			if there[key] != want {
				return fmt.Errorf("m%d has %s as %q, history ends with %q", i, key, there[key], want)
			}
			delete(there, key)
		}
		if len(there) > 0 {
			return fmt.Errorf("m%d has what history has not: %v", i, there)
		}
	}
	return nil
}

func (s *totals) add(r *record, x *chaos) {
	s.rounds++
	s.ops += len(r.ops)
	s.events += len(r.tapes[0].events)
	s.leases += len(r.leases)
	s.pieces += len(r.pieces)
	for _, o := range r.ops {
		if o.acked() {
			s.longest = max(s.longest, o.ret-o.call)
			if !r.excused(o) {
				s.longestLeft = max(s.longestLeft, o.ret-o.call)
			}
		} else {
			s.doubts++
			text := o.err.Error()
			if i := strings.LastIndex(text, "desc = "); i >= 0 {
				text = text[i+len("desc = "):]
			}
			if i := strings.Index(text, "connection error"); i >= 0 {
				text = "connection error"
			}
			s.errors[text]++
		}
	}
	for name, n := range x.counts {
		s.faults[name] += n
	}
	for name, n := range x.left {
		s.left[name] += n
	}
}

// pictures is where visualize leaves them.
var pictures = os.TempDir()

// visualize leaves porcupine's picture of a history that is no register's.
func visualize(info porcupine.LinearizationInfo) (string, error) {
	file, err := os.CreateTemp(pictures, "quorate-linearizability-*.html")
	if err != nil {
		return "", err
	}
	defer file.Close()
	return filepath.Clean(file.Name()), porcupine.Visualize(register, info, file)
}
