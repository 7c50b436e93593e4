// Package migrate moves a live cluster of three members from etcd to quorate and back, one
// member at a time, while clients write, read, watch and hold leases through every member. It
// is the guide "From etcd to quorate" of the documentation, done by a machine:
//
//	stop the member (SIGTERM); start the other program in its place, with the same flags, on
//	the same data directory; wait until it serves; go on with the next one.
//
// At every step:
//
//   - no request fails but those through the member that is restarted, while it is;
//   - every acknowledged write is there, once;
//   - all members hold the same contents and history (HashKV);
//   - watches through every member go on without gap, repeat or reorder;
//   - leases that are renewed live on.
//
// The leader goes last in each direction. One that is an etcd is moved away first, as its
// operators do: it drops what members ask of it meanwhile. Those that are quorate ask again;
// clients of an etcd may see an error then, which is counted. A leader that is a quorate is just
// stopped.
//
//	go test ./migrate                                    once there and back
//	go test ./migrate -timeout 0 -v -args -duration 1h
package migrate

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"quorate/test/harness"
)

var (
	duration = flag.Duration("duration", 0, "go on there and back for so long; once at least")
	between  = flag.Duration("between", 2*time.Second, "how long to go on between two members")
	keep     = flag.Bool("keep", false, "keep the directories of a failed run")
)

func TestMain(m *testing.M) { harness.MainIsolated(m) }

func TestMigrate(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers")
	}
	dir, err := os.MkdirTemp("", "quorate-migrate-")
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
	c, err := harness.NewCluster(dir, []harness.Kind{harness.Etcd, harness.Etcd, harness.Etcd})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	var sum figures
	for once := true; once || time.Since(begin) < *duration; once = false {
		for _, to := range []harness.Kind{harness.Quorate, harness.Etcd} {
			for range c.Members {
				step, err := next(ctx, c, to)
				if err != nil {
					t.Fatal(err)
				}
				if err := step.take(ctx, &sum); err != nil {
					var logs []string
					for _, m := range c.Members {
						logs = append(logs, fmt.Sprintf("%s (%v): %s", m.Name, m.Kind, m.Server.Log))
					}
					t.Fatalf("%v: %v\n%s", step, err, strings.Join(logs, "\n"))
				}
				t.Logf("%v: %v", step, &step.figures)
			}
		}
	}
	t.Logf("in all: %v", &sum)
}

// step is the replacement of one member.
type step struct {
	cluster *harness.Cluster
	member  *harness.Member
	from    harness.Kind
	figures
}

// figures are what clients saw.
type figures struct {
	steps, puts, gets, events, renewals int
	restarting                          int // requests through the restarted member that failed
	moving                              int // those through an etcd that failed while an etcd's leadership was moved
	longest                             time.Duration
}

func (f *figures) String() string {
	return fmt.Sprintf("%d steps, %d puts, %d gets, %d renewals, %d events through each member, %d failed through the member that was restarted, %d through an etcd while an etcd's leadership was moved, longest answer of the others %v",
		f.steps, f.puts, f.gets, f.renewals, f.events, f.restarting, f.moving, f.longest.Round(time.Millisecond))
}

func (s *step) String() string {
	var now []string
	for _, m := range s.cluster.Members {
		now = append(now, m.Kind.String())
	}
	return fmt.Sprintf("%s from %v, now [%s]", s.member.Name, s.from, strings.Join(now, " "))
}

// next is the member to replace next on the way to all of one kind: followers first.
func next(ctx context.Context, c *harness.Cluster, to harness.Kind) (*step, error) {
	leader, err := c.Leader(ctx)
	if err != nil {
		return nil, err
	}
	var left []*harness.Member
	for _, m := range c.Members {
		if m.Kind != to && m != leader {
			left = append(left, m)
		}
	}
	if len(left) == 0 {
		left = append(left, leader)
	}
	return &step{cluster: c, member: left[0], from: left[0].Kind}, nil
}

// take replaces the member under load, then compares the members.
func (s *step) take(ctx context.Context, sum *figures) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	base, err := s.cluster.Settle(ctx)
	if err != nil {
		return err
	}
	l := &load{step: s, base: base, began: time.Now(), moved: [2]time.Duration{1 << 62, 1 << 62}, down: [2]time.Duration{1 << 62, 1 << 62}}
	for _, m := range s.cluster.Members {
		l.kinds = append(l.kinds, m.Kind)
	}
	working, stop := context.WithCancel(ctx)
	defer stop()
	if err := l.start(ctx, working); err != nil {
		return err
	}
	time.Sleep(*between / 2)

	leader, err := s.cluster.Leader(ctx)
	if err != nil {
		return err
	}
	if leader == s.member && isEtcd(leader.Kind) {
		other := s.cluster.Members[(leader.Index()+1)%len(s.cluster.Members)]
		l.moved[0] = l.now()
		if err := s.cluster.Lead(ctx, other); err != nil {
			return err
		}
		l.moved[1] = l.now()
		time.Sleep(*between / 2)
	}
	l.mark(0)
	if err := s.member.Replace(ctx); err != nil {
		return err
	}
	time.Sleep(300 * time.Millisecond) // its clients connect again
	l.mark(1)
	time.Sleep(*between)
	stop()
	errs := []error{l.end(ctx)}
	rev, err := s.cluster.Settle(ctx)
	if err == nil {
		_, err = s.cluster.Hash(ctx, rev)
	}
	s.steps = 1
	sum.add(&s.figures)
	return errors.Join(append(errs, err)...)
}

// isEtcd says that a member of the kind is an etcd, also where etcd stands in for quorate.
func isEtcd(k harness.Kind) bool { return k == harness.Etcd || harness.SelfTest() }

func (f *figures) add(g *figures) {
	f.steps += g.steps
	f.puts += g.puts
	f.gets += g.gets
	f.events += g.events
	f.renewals += g.renewals
	f.restarting += g.restarting
	f.moving += g.moving
	f.longest = max(f.longest, g.longest)
}

// load is the clients of a step.
type load struct {
	*step
	base  int64
	began time.Time

	wg      sync.WaitGroup // writers, readers, holders
	watches sync.WaitGroup
	clients []*clientv3.Client
	leases  []clientv3.LeaseID

	kinds []harness.Kind   // of the members, when the step began
	moved [2]time.Duration // from when to when an etcd's leadership was moved

	mu   sync.Mutex
	down [2]time.Duration // from when to when the member was away
	seen []request
	told [][]string // by member: the events of its watch, as text
}

// request is one that was made.
type request struct {
	member   int
	what     string
	from, to time.Duration
	err      error
	put      string // the value, of a put
}

func (l *load) now() time.Duration { return time.Since(l.began) }

func (l *load) mark(i int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down[i] = l.now()
}

func (l *load) key(member, client int) string {
	return fmt.Sprintf("migrate/%d/%d/%d", l.base, member, client)
}

// start lets three clients, a holder of a lease and a watch loose on each member.
func (l *load) start(ctx, working context.Context) error {
	l.told = make([][]string, len(l.cluster.Members))
	for i, m := range l.cluster.Members {
		client, err := m.Client()
		if err != nil {
			return err
		}
		l.clients = append(l.clients, client)
		grant, err := client.Grant(ctx, 15)
		if err != nil {
			return err
		}
		l.leases = append(l.leases, grant.ID)
		if _, err := client.Put(ctx, l.key(i, 99), "leased", clientv3.WithLease(grant.ID)); err != nil {
			return err
		}
		l.watches.Go(func() { l.watch(ctx, i) })
		for n := range 3 {
			l.wg.Go(func() { l.client(working, i, n) })
		}
		l.wg.Go(func() { l.hold(working, i) })
	}
	return nil
}

// ask makes a request and notes it.
func (l *load) ask(member int, what, put string, do func(ctx context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r := request{member: member, what: what, put: put, from: l.now()}
	r.err = do(ctx)
	r.to = l.now()
	l.mu.Lock()
	l.seen = append(l.seen, r)
	l.mu.Unlock()
	if r.err != nil {
		time.Sleep(20 * time.Millisecond)
	}
}

func (l *load) client(ctx context.Context, member, client int) {
	c := l.clients[member]
	key := l.key(member, client)
	for n := 0; ctx.Err() == nil; n++ {
		value := fmt.Sprintf("%s.%d", key, n)
		l.ask(member, "put", value, func(ctx context.Context) error {
			_, err := c.Put(ctx, key, value)
			return err
		})
		l.ask(member, "get", "", func(ctx context.Context) error {
			resp, err := c.Get(ctx, key)
			if err == nil && (len(resp.Kvs) == 0 || string(resp.Kvs[0].Value) != value) && !l.doubtful(value) {
				err = fmt.Errorf("wrong: %s is %v, not %s", key, resp.Kvs, value)
			}
			return err
		})
		time.Sleep(2 * time.Millisecond)
	}
}

// doubtful says that a put got no answer.
func (l *load) doubtful(value string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.seen, func(r request) bool { return r.put == value && r.err != nil })
}

// hold renews a lease, each time through another member.
func (l *load) hold(ctx context.Context, member int) {
	for n := member; ctx.Err() == nil; n++ {
		through := n % len(l.clients)
		l.ask(through, "renew", "", func(ctx context.Context) error {
			_, err := l.clients[through].KeepAliveOnce(ctx, l.leases[member])
			return err
		})
		time.Sleep(100 * time.Millisecond)
	}
}

const lastKey = "migrate/last"

func (l *load) watch(ctx context.Context, member int) {
	var told []string
	for resp := range l.clients[member].Watch(ctx, "migrate/", clientv3.WithPrefix(), clientv3.WithRev(l.base+1)) {
		if err := resp.Err(); err != nil {
			told = append(told, "ended: "+err.Error())
			break
		}
		done := false
		for _, e := range resp.Events {
			verb := "put"
			if e.Type == mvccpb.Event_DELETE {
				verb = "delete"
			}
			told = append(told, fmt.Sprintf("%d %s %s %s", e.Kv.ModRevision, verb, e.Kv.Key, e.Kv.Value))
			done = done || string(e.Kv.Key) == lastKey
		}
		if done {
			break
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.told[member] = told
}

// end waits for the clients, and returns what they saw that they should not have.
func (l *load) end(ctx context.Context) error {
	l.wg.Wait()
	defer func() {
		for _, c := range l.clients {
			c.Close()
		}
	}()
	var errs []error
	fail := func(format string, args ...any) {
		if len(errs) < 10 {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	for i, id := range l.leases {
		ttl, err := l.clients[i].TimeToLive(ctx, id)
		if err != nil || ttl.TTL <= 0 {
			fail("lease %x is gone: %v, %v", id, ttl, err)
		}
		if _, err := l.clients[i].Revoke(ctx, id); err != nil {
			fail("revoke %x: %v", id, err)
		}
	}
	if _, err := l.clients[0].Put(ctx, lastKey, ""); err != nil {
		return errors.Join(append(errs, err)...)
	}
	l.watches.Wait()

	times := map[string]int{}
	for _, e := range l.told[0] {
		if f := strings.Fields(e); len(f) == 4 {
			times[f[3]]++
		}
	}
	l.events = len(l.told[0])
	for i, told := range l.told {
		if !slices.Equal(told, l.told[0]) {
			fail("the watches through %s and %s told of %d and %d events, not the same", l.cluster.Members[0].Name, l.cluster.Members[i].Name, len(l.told[0]), len(told))
		}
	}
	for _, r := range l.seen {
		away := r.member == l.member.Index() && r.to >= l.down[0] && r.from <= l.down[1]
		moved := isEtcd(l.kinds[r.member]) && r.to >= l.moved[0] && r.from <= l.moved[1]
		switch {
		case r.err == nil && r.put != "" && times[r.put] != 1, r.err != nil && times[r.put] > 1:
			fail("%s of %q through %s took place %d times (%v)", r.what, r.put, l.cluster.Members[r.member].Name, times[r.put], r.err)
		case r.err == nil:
			if !away && !moved {
				l.longest = max(l.longest, r.to-r.from)
			}
		case away:
			l.restarting++
		case moved:
			l.moving++
		default:
			fail("%s through %s, from %v to %v, with %s away from %v to %v: %v", r.what, l.cluster.Members[r.member].Name, r.from, r.to, l.member.Name, l.down[0], l.down[1], r.err)
		}
		switch r.what {
		case "put":
			l.puts++
		case "get":
			l.gets++
		default:
			l.renewals++
		}
	}
	return errors.Join(errs...)
}
