package bench

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// A keyspace makes the keys and values of a load. Its methods may run concurrently; what they append
// to is the caller's.
type keyspace struct {
	cfg    *Config
	digits int
	next   atomic.Int64 // sequential keys
	noise  []byte       // values are parts of it: random, so that nothing compresses them
}

// noiseSpare is how many different starts values have in the noise.
const noiseSpare = 1 << 16

func newKeyspace(cfg *Config) *keyspace {
	k := &keyspace{cfg: cfg, digits: cfg.KeySize - len(cfg.Prefix), noise: make([]byte, cfg.ValSize+noiseSpare)}
	rng := rand.New(rand.NewPCG(cfg.Seed, 0))
	for i := range k.noise {
		k.noise[i] = byte(rng.Uint32())
	}
	return k
}

// pick returns the number of the next key.
func (k *keyspace) pick(rng *rand.Rand) int64 {
	if k.cfg.Sequential {
		return (k.next.Add(1) - 1) % k.cfg.KeySpace
	}
	return rng.Int64N(k.cfg.KeySpace)
}

// appendKey appends key number n: the prefix and n in decimal, filled up with zeros to the key size.
func (k *keyspace) appendKey(b []byte, n int64) []byte {
	b = append(b, k.cfg.Prefix...)
	var buf [20]byte
	num := strconv.AppendInt(buf[:0], n, 10)
	for range k.digits - len(num) {
		b = append(b, '0')
	}
	return append(b, num...)
}

// value returns some value, not to be changed.
func (k *keyspace) value(rng *rand.Rand) []byte {
	at := rng.IntN(noiseSpare)
	return k.noise[at : at+k.cfg.ValSize]
}

// end returns the end of the range of all keys with the prefix.
func (k *keyspace) end() []byte {
	end := []byte(k.cfg.Prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return []byte{0} // an empty prefix: all keys
}

// start returns the first key of the range of all keys with the prefix.
func (k *keyspace) start() []byte {
	if k.cfg.Prefix == "" {
		return []byte{0}
	}
	return []byte(k.cfg.Prefix)
}

// common is what the workloads share. It is itself the workload of puts.
type common struct {
	cfg  *Config
	keys *keyspace
	pool *pool
}

// streams tells whether the load of cfg needs streams.
func (c *Config) streams() bool {
	return c.Workload == "watch" || c.Workload == "lease" && c.LeaseOp == leaseKeepAlive
}

// newWorkload returns the workload that cfg names.
func newWorkload(cfg *Config, p *pool) (workload, error) {
	c := common{cfg: cfg, keys: newKeyspace(cfg), pool: p}
	switch cfg.Workload {
	case "put":
		return &putLoad{c}, nil
	case "get", "mixed":
		ratio := cfg.ReadRatio
		if cfg.Workload == "get" {
			ratio = 1
		}
		return &readLoad{common: c, ratio: ratio}, nil
	case "list":
		return &listLoad{common: c}, nil
	case "txn":
		return &txnLoad{common: c}, nil
	case "watch":
		return &watchLoad{common: c}, nil
	case "lease":
		return newLeaseLoad(c)
	}
	return nil, fmt.Errorf("unknown workload %q", cfg.Workload)
}

// caller returns the means of client i, and its source of chance.
func (c *common) caller(i int) (caller, *rand.Rand) {
	return c.pool.caller(i, c.cfg.Timeout), rand.New(rand.NewPCG(c.cfg.Seed, uint64(i)+1))
}

func (c *common) prepare(context.Context, io.Writer) error { return nil }
func (c *common) begin()                                   {}
func (c *common) finish(context.Context, *Result) error    { return nil }

const (
	fillWorkers = 16
	fillBatch   = 64 // puts in a transaction; etcd's default limit is 128
)

// fill puts every key of the key space, unless as many are there already.
func (c *common) fill(ctx context.Context, progress io.Writer) error {
	first, _ := c.caller(0)
	first.req = appendRange(nil, c.keys.start(), c.keys.end(), rangeFlags{countOnly: true})
	if err := first.call(ctx, methodRange); err != nil {
		return fmt.Errorf("count keys: %w", err)
	}
	if _, count, err := rangeCounts(first.resp); err != nil || count >= c.cfg.KeySpace {
		return err
	}
	fmt.Fprintf(progress, "putting %d keys of %d bytes first\n", c.cfg.KeySpace, c.cfg.ValSize)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var (
		next atomic.Int64
		wg   sync.WaitGroup
	)
	for i := range fillWorkers {
		wg.Go(func() {
			call, rng := c.caller(i)
			var key, put, op []byte
			for ctx.Err() == nil {
				from := next.Add(fillBatch) - fillBatch
				if from >= c.cfg.KeySpace {
					return
				}
				call.req = call.req[:0]
				for n := from; n < min(from+fillBatch, c.cfg.KeySpace); n++ {
					key = c.keys.appendKey(key[:0], n)
					put = appendPut(put[:0], key, c.keys.value(rng), 0)
					op = appendMessage(op[:0], 2, put)
					call.req = appendMessage(call.req, 2, op)
				}
				if err := call.call(ctx, methodTxn); err != nil {
					cancel(fmt.Errorf("put keys: %w", err))
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// putLoad puts values at keys of the key space.
type putLoad struct{ common }

type putClient struct {
	caller
	keys *keyspace
	rng  *rand.Rand
	key  []byte
}

func (w *putLoad) client(_ context.Context, i int) (client, error) { return w.putClient(i), nil }

func (c *common) putClient(i int) *putClient {
	call, rng := c.caller(i)
	return &putClient{caller: call, keys: c.keys, rng: rng}
}

func (c *putClient) do(ctx context.Context) error {
	c.key = c.keys.appendKey(c.key[:0], c.keys.pick(c.rng))
	c.req = appendPut(c.req[:0], c.key, c.keys.value(c.rng), 0)
	return c.call(ctx, methodPut)
}

// readLoad reads single keys, and puts the rest of the time.
type readLoad struct {
	common
	ratio float64
	reads atomic.Int64
}

func (w *readLoad) prepare(ctx context.Context, progress io.Writer) error {
	return w.fill(ctx, progress)
}

func (w *readLoad) begin() { w.reads.Store(0) }

func (w *readLoad) client(_ context.Context, i int) (client, error) {
	return &readClient{putClient: *w.putClient(i), load: w}, nil
}

func (w *readLoad) finish(_ context.Context, r *Result) error {
	if w.ratio < 1 {
		r.Extra["gets"] = float64(w.reads.Load())
	}
	return nil
}

type readClient struct {
	putClient
	load *readLoad
}

func (c *readClient) do(ctx context.Context) error {
	if c.load.ratio < 1 && c.rng.Float64() >= c.load.ratio {
		return c.putClient.do(ctx)
	}
	c.load.reads.Add(1)
	c.key = c.keys.appendKey(c.key[:0], c.keys.pick(c.rng))
	c.req = appendRange(c.req[:0], c.key, nil, rangeFlags{serializable: c.load.cfg.Serializable})
	return c.call(ctx, methodRange)
}

// listLoad reads the whole key space, or as much of it as the limit says, with every request.
type listLoad struct {
	common
	kvs, bytes atomic.Int64
}

func (w *listLoad) prepare(ctx context.Context, progress io.Writer) error {
	return w.fill(ctx, progress)
}

func (w *listLoad) begin() {
	w.kvs.Store(0)
	w.bytes.Store(0)
}

func (w *listLoad) client(_ context.Context, i int) (client, error) {
	call, rng := w.caller(i)
	return &listClient{caller: call, rng: rng, load: w}, nil
}

func (w *listLoad) finish(_ context.Context, r *Result) error {
	seconds := r.Elapsed.Seconds()
	r.Extra["keys_per_second"] = float64(w.kvs.Load()) / seconds
	r.Extra["bytes_per_second"] = float64(w.bytes.Load()) / seconds
	return nil
}

type listClient struct {
	caller
	rng  *rand.Rand
	load *listLoad
}

func (c *listClient) do(ctx context.Context) error {
	cfg := c.load.cfg
	c.req = appendRange(c.req[:0], c.load.keys.start(), c.load.keys.end(),
		rangeFlags{cfg.Limit, cfg.Serializable, cfg.KeysOnly, cfg.CountOnly})
	if err := c.call(ctx, methodRange); err != nil {
		return err
	}
	kvs, _, err := rangeCounts(c.resp)
	c.load.kvs.Add(kvs)
	c.load.bytes.Add(int64(len(c.resp)))
	return err
}

// txnLoad updates keys as Kubernetes does: put if the key is unchanged since it was seen, else read it.
type txnLoad struct {
	common
	conflicts atomic.Int64
}

func (w *txnLoad) begin() { w.conflicts.Store(0) }

func (w *txnLoad) client(_ context.Context, i int) (client, error) {
	call, rng := w.caller(i)
	return &txnClient{caller: call, rng: rng, load: w, number: int64(i) % w.cfg.KeySpace}, nil
}

func (w *txnLoad) finish(_ context.Context, r *Result) error {
	r.Extra["conflicts"] = float64(w.conflicts.Load())
	return nil
}

type txnClient struct {
	caller
	rng    *rand.Rand
	load   *txnLoad
	number int64 // of the client's key; the further keys of a transaction follow it
	seen   int64 // mod revision of the key, as last seen; 0: it did not exist
	key    []byte
	part   []byte
	op     []byte
}

func (c *txnClient) do(ctx context.Context) error {
	keys, cfg := c.load.keys, c.load.cfg
	c.key = keys.appendKey(c.key[:0], c.number)
	// compare: mod(key) = seen. The revision is a member of a oneof and is sent even if it is 0.
	const targetMod = 2
	c.part = appendInt(c.part[:0], 2, targetMod)
	c.part = appendBytes(c.part, 3, c.key)
	c.part = append(c.part, 6<<3)
	c.part = appendVarint(c.part, c.seen)
	c.req = appendMessage(c.req[:0], 1, c.part)
	for i := range min(int64(cfg.TxnOps), cfg.KeySpace) {
		c.key = keys.appendKey(c.key[:0], (c.number+i)%cfg.KeySpace)
		c.part = appendPut(c.part[:0], c.key, keys.value(c.rng), 0)
		c.op = appendMessage(c.op[:0], 2, c.part)
		c.req = appendMessage(c.req, 2, c.op)
	}
	c.key = keys.appendKey(c.key[:0], c.number)
	c.part = appendRange(c.part[:0], c.key, nil, rangeFlags{})
	c.op = appendMessage(c.op[:0], 1, c.part)
	c.req = appendMessage(c.req, 3, c.op)
	if err := c.call(ctx, methodTxn); err != nil {
		return err
	}
	succeeded, err := intField(c.resp, 2)
	if err != nil {
		return err
	}
	if succeeded == 1 {
		c.seen, err = headerRevision(c.resp)
		return err
	}
	c.load.conflicts.Add(1)
	c.seen, err = seenRevision(c.resp)
	return err
}

const (
	leaseGrant     = "grant"
	leaseCycle     = "cycle"
	leaseKeepAlive = "keepalive"
)

// leaseLoad grants leases, grants and revokes them, or renews one a client.
type leaseLoad struct{ common }

func newLeaseLoad(c common) (workload, error) {
	switch c.cfg.LeaseOp {
	case leaseGrant, leaseCycle, leaseKeepAlive:
		return &leaseLoad{c}, nil
	}
	return nil, fmt.Errorf("unknown --op %q: want %s, %s or %s", c.cfg.LeaseOp, leaseGrant, leaseCycle, leaseKeepAlive)
}

func (w *leaseLoad) client(ctx context.Context, i int) (client, error) {
	call, _ := w.caller(i)
	c := &leaseClient{caller: call, cfg: w.cfg}
	if w.cfg.LeaseOp != leaseKeepAlive {
		return c, nil
	}
	// The lease that is renewed is left to expire.
	id, err := c.grant(ctx)
	if err != nil {
		return nil, err
	}
	stream, err := w.pool.stream(ctx, i, methodKeepAlive)
	if err != nil {
		return nil, err
	}
	return &keepAliveClient{stream: stream, req: appendInt(nil, 1, id), timeout: w.cfg.Timeout}, nil
}

type leaseClient struct {
	caller
	cfg *Config
}

func (c *leaseClient) do(ctx context.Context) error {
	id, err := c.grant(ctx)
	if err != nil || c.cfg.LeaseOp == leaseGrant {
		return err
	}
	c.req = appendInt(c.req[:0], 1, id)
	return c.call(ctx, methodLeaseRevoke)
}

func (c *leaseClient) grant(ctx context.Context) (int64, error) {
	c.req = appendInt(c.req[:0], 1, c.cfg.LeaseTTL)
	if err := c.call(ctx, methodLeaseGrant); err != nil {
		return 0, err
	}
	return intField(c.resp, 2)
}

// keepAliveClient renews one lease over a stream, and waits for each answer.
type keepAliveClient struct {
	stream  *stream
	req     []byte
	resp    []byte
	timeout time.Duration
}

func (c *keepAliveClient) do(context.Context) error {
	// A stream that hangs is cancelled as a whole; the calls after that fail at once.
	t := time.AfterFunc(c.timeout, c.stream.cancel)
	defer t.Stop()
	if err := c.stream.SendMsg(c.req); err != nil {
		return err
	}
	if err := c.stream.RecvMsg(&c.resp); err != nil {
		return err
	}
	ttl, err := intField(c.resp, 3)
	if err == nil && ttl <= 0 {
		return fmt.Errorf("lease has expired")
	}
	return err
}
