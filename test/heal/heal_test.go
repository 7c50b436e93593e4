// Package heal measures how soon a member hears from the others again once a partition that
// cut it off is over, and how soon it is heard.
//
//	go test ./heal                                          quorate alone, one length
//	go test ./heal -v -args -cuts 1s,3s,6s,60s -rounds 5 -kinds quorate,etcd,mixed
//
// It needs network namespaces (see harness.Isolate), and is left out without them.
package heal

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"quorate/test/harness"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

var (
	cuts   = flag.String("cuts", "3300ms", "how long the cuts last")
	rounds = flag.Int("rounds", 1, "how often each is made, one way and both ways")
	kinds  = flag.String("kinds", "quorate", "clusters to measure: quorate, etcd, mixed (one quorate, two etcd; the quorate follows and is cut off)")
)

// limit is for quorate's members, on a machine that may be busy. Without care it is the
// remainder of TCP's back-off, and the rest of a time-out of 5 s.
const limit = 3 * time.Second

func TestMain(m *testing.M) { harness.MainIsolated(m) }

var clusters = map[string][]harness.Kind{
	"quorate": {harness.Quorate, harness.Quorate, harness.Quorate},
	"etcd":    {harness.Etcd, harness.Etcd, harness.Etcd},
	"mixed":   {harness.Quorate, harness.Etcd, harness.Etcd},
}

func TestHeal(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers")
	}
	for kind := range strings.SplitSeq(*kinds, ",") {
		t.Run(kind, func(t *testing.T) { measure(t, kind) })
	}
}

func measure(t *testing.T, kind string) {
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	c, err := harness.NewCluster(t.TempDir(), clusters[kind])
	must(err)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	if c.Network == nil {
		t.Skip("no partitions without network namespaces")
	}
	must(c.Start(ctx))
	victim, leader := c.Members[0], c.Members[2]
	must(c.Lead(ctx, leader))
	var lengths []time.Duration
	for s := range strings.SplitSeq(*cuts, ",") {
		d, err := time.ParseDuration(s)
		must(err)
		lengths = append(lengths, d)
	}
	for _, cut := range []struct {
		name string
		make func() error
	}{
		{"both ways", func() error { return c.Network.Isolate(0) }},
		{"to it", func() error { return errors.Join(c.Network.Cut(1, 0), c.Network.Cut(2, 0)) }},
		{"from it", func() error { return errors.Join(c.Network.Cut(0, 1), c.Network.Cut(0, 2)) }},
	} {
		for _, length := range lengths {
			var hears, asks []time.Duration
			for round := range *rounds {
				must(cut.make())
				time.Sleep(length)
				must(c.Network.Heal())
				heard, asked, err := reachable(ctx, leader, victim, fmt.Sprint(cut.name, length, round))
				must(err)
				hears, asks = append(hears, heard), append(asks, asked)
				time.Sleep(time.Second) // connections stand again, both ways
			}
			slices.Sort(hears)
			slices.Sort(asks)
			t.Logf("%s, cut %s for %v: it hears after %v, is heard after %v", kind, cut.name, length, hears, asks)
			if kind == "quorate" && (slices.Max(hears) > limit || slices.Max(asks) > limit) {
				t.Errorf("not reachable within %v", limit)
			}
		}
	}
}

// reachable returns how long it takes from now until what the leader takes reaches the member
// that was cut off, and until one who asks that member for a linearizable read is answered.
func reachable(ctx context.Context, leader, cutOff *harness.Member, value string) (heard, asked time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	begin := time.Now()
	from, err := leader.Server.Conn()
	if err != nil {
		return 0, 0, err
	}
	at, err := cutOff.Server.Conn()
	if err != nil {
		return 0, 0, err
	}
	linearizable := make(chan error, 1)
	go func() {
		for {
			// One that was asked too early is not to delay the next.
			short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
			_, err := pb.NewKVClient(at).Range(short, &pb.RangeRequest{Key: []byte("k")})
			cancel()
			if err == nil || ctx.Err() != nil {
				asked = time.Since(begin)
				linearizable <- err
				return
			}
		}
	}()
	for written := false; ; time.Sleep(5 * time.Millisecond) {
		if ctx.Err() != nil {
			return 0, 0, fmt.Errorf("%s never hears again: %w", cutOff.Name, ctx.Err())
		}
		if !written {
			_, err := pb.NewKVClient(from).Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: []byte(value)})
			written = err == nil
			continue
		}
		r, err := pb.NewKVClient(at).Range(ctx, &pb.RangeRequest{Key: []byte("k"), Serializable: true})
		if err == nil && len(r.Kvs) == 1 && string(r.Kvs[0].Value) == value {
			break
		}
	}
	heard = time.Since(begin)
	err = <-linearizable
	return heard, asked, err
}
