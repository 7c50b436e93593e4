package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"quorate/test/harness"
)

const (
	clientsPerMember = 2
	keysPerRound     = 6
	// opWithin is a client's patience: longer than any fault lasts.
	opWithin = 8 * time.Second
	// opPause is between two requests of a client, at most; it bounds a round's record.
	opPause = 30 * time.Millisecond
	// errorPause keeps a client whose member is away from filling the record with refusals.
	errorPause = 100 * time.Millisecond
	// leaseTTL is the shortest that the servers take.
	leaseTTL = 2
)

// load is the clients of one round.
type load struct {
	*record
	began  time.Time
	prefix string // of the round's keys
	base   int64  // the revision before it
	kept   *atomic.Int64

	clients []*clientv3.Client // by member
	wg      sync.WaitGroup
	serial  atomic.Int64
	fatal   func(format string, args ...any) // a wrong answer that needs no history
}

func (l *load) now() moment { return time.Since(l.began) }

// start lets clients, lease holders and short watches loose until ctx ends.
func (l *load) start(ctx context.Context, r *rand.Rand) {
	for member := range l.clients {
		for range clientsPerMember {
			c := &client{load: l, Rand: rand.New(rand.NewPCG(r.Uint64(), r.Uint64())), member: member, id: l.serial.Add(1), kv: l.clients[member], seen: map[string]string{}}
			l.wg.Go(func() { c.run(ctx) })
		}
		rnd := [2]*rand.Rand{rand.New(rand.NewPCG(r.Uint64(), r.Uint64())), rand.New(rand.NewPCG(r.Uint64(), r.Uint64()))}
		l.wg.Go(func() { l.hold(ctx, member, rnd[0]) })
		l.wg.Go(func() { l.peek(ctx, member, rnd[1]) })
	}
}

// client asks for one thing after the other, on one member.
type client struct {
	*load
	*rand.Rand
	member int
	id     int64
	kv     *clientv3.Client
	n      int
	seen   map[string]string // what it saw last at each key, for swaps
}

func (c *client) key() string { return fmt.Sprintf("%sk%d", c.prefix, c.IntN(keysPerRound)) }

func (c *client) value() string {
	c.n++
	return fmt.Sprintf("%s%d.%d", c.prefix, c.id, c.n)
}

func (c *client) run(ctx context.Context) {
	for ctx.Err() == nil {
		o := c.next()
		opCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opWithin)
		o.call = c.now()
		err := c.do(opCtx, o)
		o.ret = c.now()
		cancel()
		c.settle(o, err)
		c.add(o)
		pause := time.Duration(c.Int64N(int64(opPause)))
		if err != nil {
			pause = errorPause
		}
		time.Sleep(pause)
	}
}

func (c *client) next() *op {
	o := &op{client: int(c.id), member: c.member}
	one := func(a action) {
		o.action, o.keys = a, []string{c.key()}
	}
	switch n := c.IntN(100); {
	case n < 35:
		one(put)
		o.values = []string{c.value()}
	case n < 41:
		o.action, o.keys = putTwo, []string{c.prefix + "k0", c.prefix + "k1"}
		if c.IntN(2) == 0 {
			o.keys[c.IntN(2)] = fmt.Sprintf("%sk%d", c.prefix, 2+c.IntN(keysPerRound-2))
		}
		o.values = []string{c.value(), c.value()}
	case n < 65:
		one(get)
	case n < 70:
		one(get)
		o.serializable = true
	case n < 74:
		o.action, o.keys = list, []string{c.prefix + "k"}
	case n < 81:
		one(remove)
	default:
		one(swap)
		o.old = c.seen[o.keys[0]]
		o.values = []string{c.value()}
	}
	return o
}

func (c *client) do(ctx context.Context, o *op) error {
	switch o.action {
	case put:
		resp, err := c.kv.Put(ctx, o.keys[0], o.values[0])
		if err != nil {
			return err
		}
		o.rev = resp.Header.Revision
		c.seen[o.keys[0]] = o.values[0]
	case putTwo:
		resp, err := c.kv.Txn(ctx).Then(clientv3.OpPut(o.keys[0], o.values[0]), clientv3.OpPut(o.keys[1], o.values[1])).Commit()
		if err != nil {
			return err
		}
		o.rev = resp.Header.Revision
	case get, list:
		var opts []clientv3.OpOption
		if o.action == list {
			opts = append(opts, clientv3.WithPrefix())
		}
		if o.serializable {
			opts = append(opts, clientv3.WithSerializable())
		}
		resp, err := c.kv.Get(ctx, o.keys[0], opts...)
		if err != nil {
			return err
		}
		o.rev, o.kvs = resp.Header.Revision, resp.Kvs
		if o.action == get {
			c.saw(o)
		}
	case remove:
		resp, err := c.kv.Delete(ctx, o.keys[0])
		if err != nil {
			return err
		}
		o.rev, o.hit = resp.Header.Revision, resp.Deleted > 0
		c.seen[o.keys[0]] = ""
	case swap:
		guard := clientv3.Compare(clientv3.Value(o.keys[0]), "=", o.old)
		if o.old == "" {
			guard = clientv3.Compare(clientv3.Version(o.keys[0]), "=", 0)
		}
		resp, err := c.kv.Txn(ctx).If(guard).Then(clientv3.OpPut(o.keys[0], o.values[0])).Else(clientv3.OpGet(o.keys[0])).Commit()
		if err != nil {
			return err
		}
		o.rev, o.hit = resp.Header.Revision, resp.Succeeded
		if o.hit {
			c.seen[o.keys[0]] = o.values[0]
		} else {
			o.kvs = resp.Responses[0].GetResponseRange().Kvs
			c.saw(o)
		}
	}
	return nil
}

func (c *client) saw(o *op) {
	c.seen[o.keys[0]] = ""
	if len(o.kvs) > 0 {
		c.seen[o.keys[0]] = string(o.kvs[0].Value)
	}
}

// settle notes an error. All but those below leave in doubt whether the request took place;
// one of these cannot be the answer to any request that is made here.
func (c *client) settle(o *op, err error) {
	o.err = err
	if isLearner(err) {
		return
	}
	switch codeOf(err) {
	case codes.OK, codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Unknown, codes.ResourceExhausted:
	default:
		c.fatal("%v", o)
	}
}

// isLearner says that a member is none that clients may ask, yet.
func isLearner(err error) bool {
	return err != nil && strings.Contains(err.Error(), rpctypes.ErrorDesc(rpctypes.ErrGRPCNotSupportedForLearner))
}

func codeOf(err error) codes.Code {
	var known rpctypes.EtcdError
	if errors.As(err, &known) {
		return known.Code()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return codes.DeadlineExceeded
	}
	return status.Code(err)
}

// hold takes leases one after the other, renews each for a while through any member, and
// leaves it to end by itself or revokes it.
func (l *load) hold(ctx context.Context, member int, r *rand.Rand) {
	for n := 0; ctx.Err() == nil; n++ {
		t := &tenancy{key: fmt.Sprintf("%slease/%d.%d", l.prefix, member, n)}
		if l.tenant(ctx, t, member, r) {
			l.mu.Lock()
			l.leases = append(l.leases, t)
			l.mu.Unlock()
		}
		time.Sleep(time.Duration(r.Int64N(int64(200 * time.Millisecond))))
	}
}

func (l *load) tenant(ctx context.Context, t *tenancy, member int, r *rand.Rand) bool {
	// Every answered renewal moves the end: to a TTL after the renewal was asked for.
	within := func(what string, through int, do func(ctx context.Context, c *clientv3.Client) (ttl int64, err error)) error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opWithin)
		defer cancel()
		asked := l.now()
		ttl, err := do(ctx, l.clients[through])
		if err == nil {
			t.until = max(t.until, asked+time.Duration(ttl)*time.Second)
		} else if errors.Is(err, rpctypes.ErrLeaseNotFound) && l.now() < t.until && !t.revoked {
			// Of a revocation it may be the second answer: etcd's client asks again by itself.
			t.missed = fmt.Sprintf("%s of lease %x through m%d at %v: not found at %v, %v before its end", what, t.id, through, asked, l.now(), t.until-l.now())
		}
		return err
	}
	any := func() int { return r.IntN(len(l.clients)) }
	err := within("grant", member, func(ctx context.Context, c *clientv3.Client) (int64, error) {
		resp, err := c.Grant(ctx, leaseTTL)
		if err != nil {
			return 0, err
		}
		t.id = int64(resp.ID)
		return resp.TTL, nil
	})
	if err != nil {
		return false
	}
	err = within("put", member, func(ctx context.Context, c *clientv3.Client) (int64, error) {
		_, err := c.Put(ctx, t.key, untracked+t.key, clientv3.WithLease(clientv3.LeaseID(t.id)))
		return 0, err
	})
	if err != nil {
		return t.missed != "" // or else whether the key is there is not known
	}
	for range r.IntN(5) {
		time.Sleep(time.Duration(r.Int64N(int64(1200 * time.Millisecond))))
		err := within("renewal", any(), func(ctx context.Context, c *clientv3.Client) (int64, error) {
			resp, err := c.KeepAliveOnce(ctx, clientv3.LeaseID(t.id))
			if err != nil {
				return 0, err
			}
			return resp.TTL, nil
		})
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return true
		}
	}
	if r.IntN(3) == 0 {
		t.revoked, t.revoke = true, l.now()
		// An error changes nothing: it was revoked, or will end.
		_ = within("revocation", any(), func(ctx context.Context, c *clientv3.Client) (int64, error) {
			_, err := c.Revoke(ctx, clientv3.LeaseID(t.id))
			return 0, err
		})
		return true
	}
	time.Sleep(time.Duration(r.Int64N(int64(3 * time.Second))))
	return true
}

// follow writes down what a watch through a member tells, from the round's first revision on,
// until it has told of stop, or ctx ends. etcd's client connects again by itself and goes on
// after the last event it gave.
func (l *load) follow(ctx context.Context, member int, stop func(event) bool) *tape {
	t := &tape{who: fmt.Sprintf("the watch through m%d", member), from: l.base + 1}
	l.wg.Go(func() { l.watch(ctx, t, member, stop) })
	return t
}

func (l *load) watch(ctx context.Context, t *tape, member int, stop func(event) bool) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	channel := l.clients[member].Watch(ctx, l.prefix, clientv3.WithPrefix(), clientv3.WithRev(t.from))
	for ctx.Err() == nil {
		resp, open := <-channel
		if err := resp.Err(); isLearner(err) {
			// It goes on once the member is promoted.
			time.Sleep(errorPause)
			channel = l.clients[member].Watch(ctx, l.prefix, clientv3.WithPrefix(), clientv3.WithRev(max(t.from, t.seen()+1)))
			continue
		} else if err != nil && ctx.Err() == nil {
			t.err = err
			return
		}
		if !open {
			break
		}
		at := l.now()
		done := false
		t.mu.Lock()
		for _, e := range resp.Events {
			x := event{kv: e.Kv, delete: e.Type == mvccpb.Event_DELETE, at: at}
			t.events = append(t.events, x)
			t.upTo = e.Kv.ModRevision
			done = done || stop(x)
		}
		t.mu.Unlock()
		if done {
			return
		}
	}
	if ctx.Err() == nil {
		t.err = errors.New("the channel was closed")
	}
}

// peek opens watches at revisions gone by and closes them again.
func (l *load) peek(ctx context.Context, member int, r *rand.Rand) {
	for ctx.Err() == nil {
		from := l.base + 1
		if now := l.tapes[r.IntN(len(l.tapes))].seen(); now > from {
			from += r.Int64N(now - l.base)
		}
		// Not what may have been compacted when the watch begins.
		from = max(from, l.kept.Load()+1)
		t := &tape{who: fmt.Sprintf("a short watch through m%d", member), from: from}
		ctx, cancel := context.WithTimeout(ctx, time.Duration(r.Int64N(int64(2*time.Second))))
		l.watch(ctx, t, member, func(event) bool { return false })
		cancel()
		if errors.Is(t.err, rpctypes.ErrCompacted) && from <= l.kept.Load() {
			continue
		}
		l.mu.Lock()
		if t.err != nil {
			l.fatal("%s from %d: %v", t.who, from, t.err)
		}
		l.pieces = append(l.pieces, t)
		l.mu.Unlock()
	}
}

// forget compacts, now and then, what every watch has told already.
func (l *load) forget(ctx context.Context, r *rand.Rand) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(r.Int64N(int64(4 * time.Second)))):
		}
		told := l.tapes[0].seen()
		for _, t := range l.tapes {
			told = min(told, t.seen())
		}
		to := told - 50 - r.Int64N(200)
		if to <= l.kept.Load() {
			continue
		}
		l.kept.Store(to)
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opWithin)
		var opts []clientv3.CompactOption
		if r.IntN(3) == 0 {
			opts = append(opts, clientv3.WithCompactPhysical())
		}
		_, err := l.clients[r.IntN(len(l.clients))].Compact(ctx, to, opts...)
		cancel()
		if code := codeOf(err); err != nil && !errors.Is(err, rpctypes.ErrCompacted) && !isLearner(err) && code != codes.Unavailable && code != codes.DeadlineExceeded && code != codes.Unknown {
			l.fatal("compact to %d: %v", to, err)
		}
	}
}

// connect makes a client for each member.
func connect(c *harness.Cluster) ([]*clientv3.Client, error) {
	var clients []*clientv3.Client
	for _, m := range c.Members {
		client, err := m.Client()
		if err != nil {
			return nil, err
		}
		clients = append(clients, client)
	}
	return clients, nil
}
