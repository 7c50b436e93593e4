package bench

import (
	"bytes"
	"context"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A fakeServer is a server in this process, with a map for a store: enough for what the load
// generator sends, and with faults to order.
type fakeServer struct {
	pb.UnimplementedKVServer
	pb.UnimplementedLeaseServer
	pb.UnimplementedWatchServer
	addr string

	delay  atomic.Int64 // ns that a put takes
	refuse atomic.Bool  // puts fail

	puts, ranges, txns, grants, revokes atomic.Int64

	mu       sync.Mutex
	rev      int64
	kvs      map[string]*mvccpb.KeyValue
	watchers map[*fakeWatch]bool
	lease    int64
}

// A fakeWatch is a watch stream and the ranges that are watched on it.
type fakeWatch struct {
	ranges []*pb.WatchCreateRequest
	events chan *pb.WatchResponse
}

// startFake starts a server that ends with the test.
func startFake(t testing.TB) *fakeServer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeServer{addr: l.Addr().String(), kvs: make(map[string]*mvccpb.KeyValue), watchers: make(map[*fakeWatch]bool)}
	s := grpc.NewServer()
	pb.RegisterKVServer(s, f)
	pb.RegisterLeaseServer(s, f)
	pb.RegisterWatchServer(s, f)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return f
}

func (f *fakeServer) header() *pb.ResponseHeader { return &pb.ResponseHeader{Revision: f.rev} }

func (f *fakeServer) putLocked(r *pb.PutRequest) {
	f.rev++
	kv := &mvccpb.KeyValue{Key: r.Key, Value: r.Value, ModRevision: f.rev, Lease: r.Lease}
	f.kvs[string(r.Key)] = kv
	for w := range f.watchers {
		for i, c := range w.ranges {
			if inRange(string(r.Key), c.Key, c.RangeEnd) {
				w.events <- &pb.WatchResponse{Header: f.header(), WatchId: int64(i), Events: []*mvccpb.Event{{Kv: kv}}}
			}
		}
	}
}

func inRange(key string, start, end []byte) bool {
	switch {
	case len(end) == 0:
		return key == string(start)
	case string(end) == "\x00":
		return key >= string(start)
	}
	return key >= string(start) && key < string(end)
}

func (f *fakeServer) Put(_ context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	f.puts.Add(1)
	time.Sleep(time.Duration(f.delay.Load()))
	if f.refuse.Load() {
		return nil, status.Error(codes.ResourceExhausted, "etcdserver: mvcc: database space exceeded")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.putLocked(r)
	return &pb.PutResponse{Header: f.header()}, nil
}

func (f *fakeServer) rangeLocked(r *pb.RangeRequest) *pb.RangeResponse {
	resp := &pb.RangeResponse{Header: f.header()}
	for _, k := range slices.Sorted(maps.Keys(f.kvs)) {
		if !inRange(k, r.Key, r.RangeEnd) {
			continue
		}
		resp.Count++
		if !r.CountOnly && (r.Limit == 0 || int64(len(resp.Kvs)) < r.Limit) {
			resp.Kvs = append(resp.Kvs, f.kvs[k])
		}
	}
	return resp
}

func (f *fakeServer) Range(_ context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	f.ranges.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.rangeLocked(r), nil
}

func (f *fakeServer) Txn(_ context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	f.txns.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	resp := &pb.TxnResponse{Succeeded: true}
	for _, c := range r.Compare {
		mod := int64(0)
		if kv := f.kvs[string(c.Key)]; kv != nil {
			mod = kv.ModRevision
		}
		resp.Succeeded = resp.Succeeded && c.Target == pb.Compare_MOD && mod == c.GetModRevision()
	}
	ops := r.Success
	if !resp.Succeeded {
		ops = r.Failure
	}
	for _, op := range ops {
		if p := op.GetRequestPut(); p != nil {
			f.putLocked(p)
		}
		if g := op.GetRequestRange(); g != nil {
			resp.Responses = append(resp.Responses, &pb.ResponseOp{Response: &pb.ResponseOp_ResponseRange{ResponseRange: f.rangeLocked(g)}})
		}
	}
	resp.Header = f.header()
	return resp, nil
}

func (f *fakeServer) LeaseGrant(_ context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	f.grants.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lease++
	return &pb.LeaseGrantResponse{Header: f.header(), ID: f.lease, TTL: r.TTL}, nil
}

func (f *fakeServer) LeaseRevoke(_ context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	f.revokes.Add(1)
	if r.ID == 0 {
		return nil, status.Error(codes.NotFound, "etcdserver: requested lease not found")
	}
	return &pb.LeaseRevokeResponse{}, nil
}

func (f *fakeServer) LeaseKeepAlive(s pb.Lease_LeaseKeepAliveServer) error {
	for {
		r, err := s.Recv()
		if err != nil {
			return nil
		}
		if err := s.Send(&pb.LeaseKeepAliveResponse{ID: r.ID, TTL: 60}); err != nil {
			return err
		}
	}
}

func (f *fakeServer) Watch(s pb.Watch_WatchServer) error {
	w := &fakeWatch{events: make(chan *pb.WatchResponse, 1<<16)}
	defer func() {
		f.mu.Lock()
		delete(f.watchers, w)
		f.mu.Unlock()
	}()
	requests := make(chan *pb.WatchCreateRequest)
	go func() {
		defer close(requests)
		for {
			r, err := s.Recv()
			if err != nil {
				return
			}
			requests <- r.GetCreateRequest()
		}
	}()
	for {
		var resp *pb.WatchResponse
		select {
		case r, ok := <-requests:
			if !ok {
				return nil
			}
			f.mu.Lock()
			f.watchers[w] = true
			w.ranges = append(w.ranges, r)
			resp = &pb.WatchResponse{Header: f.header(), Created: true, WatchId: int64(len(w.ranges) - 1)}
			f.mu.Unlock()
		case resp = <-w.events:
		}
		if err := s.Send(resp); err != nil {
			return err
		}
	}
}

// bench runs the command with arguments and returns what it prints on both streams.
func bench(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	cmd := Command()
	var out, errw bytes.Buffer
	cmd.SetArgs(args)
	cmd.SetOut(&out)
	cmd.SetErr(&errw)
	err = cmd.ExecuteContext(t.Context())
	return out.String(), errw.String(), err
}

// testLoad returns a small load of a kind on servers.
func testLoad(kind string, servers ...*fakeServer) *Config {
	c := &Config{
		Workload: kind, Rounds: 1, Conns: 2, Clients: 4, Total: 200, Duration: 20 * time.Second, Timeout: 5 * time.Second,
		KeySize: 12, ValSize: 20, KeySpace: 50, Prefix: "b/", Seed: 1,
		ReadRatio: 0.5, TxnOps: 2, Watchers: 6, WatchStreams: 2, LeaseOp: leaseGrant, LeaseTTL: 60,
	}
	for i, s := range servers {
		c.Servers = append(c.Servers, Server{Name: string(rune('A' + i)), Endpoints: []string{s.addr}})
	}
	return c
}

// runLoad runs a load on one server and returns its only result.
func runLoad(t *testing.T, c *Config) *Result {
	t.Helper()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	var results []*Result
	if _, err := Run(t.Context(), c, &bytes.Buffer{}, func(r *Result) { results = append(results, r) }); err != nil {
		t.Fatal(err)
	}
	return results[len(results)-1]
}

func TestPut(t *testing.T) {
	f := startFake(t)
	c := testLoad("put", f)
	c.Sequential = true
	r := runLoad(t, c)
	if r.Requests != 200 || r.Failed != 0 || r.Latency.Max == 0 || r.Latency.P50 > r.Latency.Max || r.Rate <= 0 {
		t.Errorf("got %+v", r)
	}
	if f.puts.Load() != 200 || len(f.kvs) != 50 {
		t.Errorf("server saw %d puts of %d keys", f.puts.Load(), len(f.kvs))
	}
	for k, kv := range f.kvs {
		if len(k) != 12 || !strings.HasPrefix(k, "b/0") || len(kv.Value) != 20 {
			t.Errorf("key %q, value of %d bytes", k, len(kv.Value))
		}
	}
}

func TestSeedRepeats(t *testing.T) {
	var stores []map[string]*mvccpb.KeyValue
	for range 2 {
		f := startFake(t)
		c := testLoad("put", f)
		c.Clients = 1
		c.Total = 20
		runLoad(t, c)
		stores = append(stores, f.kvs)
	}
	same := func(a, b *mvccpb.KeyValue) bool { return bytes.Equal(a.Value, b.Value) }
	if len(stores[0]) == 50 || !maps.EqualFunc(stores[0], stores[1], same) {
		t.Error("the same seed made other keys or values")
	}
}

func TestReads(t *testing.T) {
	f := startFake(t)
	if r := runLoad(t, testLoad("get", f)); r.Requests != 200 || f.ranges.Load() != 201 || len(f.kvs) != 50 {
		t.Errorf("%d requests, %d ranges, %d keys", r.Requests, f.ranges.Load(), len(f.kvs))
	}
	c := testLoad("mixed", f)
	r := runLoad(t, c)
	if gets := r.Extra["gets"]; gets < 60 || gets > 140 || int64(gets)+f.puts.Load() != 200 {
		t.Errorf("%v gets and %d puts of 200", gets, f.puts.Load())
	}
	c = testLoad("list", f)
	c.Limit = 7
	r = runLoad(t, c)
	if kvs := r.Extra["keys_per_second"] * r.Elapsed.Seconds(); kvs < 1399.9 || kvs > 1400.1 {
		t.Errorf("got %v keys, want 200 lists of 7", kvs)
	}
}

func TestTxn(t *testing.T) {
	f := startFake(t)
	r := runLoad(t, testLoad("txn", f))
	// Clients of neighbouring keys disturb each other, and each finds its way back.
	if r.Requests != 200 || f.txns.Load() != 200 || r.Extra["conflicts"] >= 200 {
		t.Errorf("%d requests, %d transactions, %v conflicts", r.Requests, f.txns.Load(), r.Extra["conflicts"])
	}
	alone := testLoad("txn", f)
	alone.Clients, alone.TxnOps = 1, 1
	if r := runLoad(t, alone); r.Extra["conflicts"] != 1 {
		t.Errorf("%v conflicts of one client, want 1: the first time it does not know the key", r.Extra["conflicts"])
	}
}

func TestWatch(t *testing.T) {
	for _, keys := range []bool{false, true} {
		f := startFake(t)
		c := testLoad("watch", f)
		c.WatchKeys, c.KeySpace, c.Warmup = keys, 4, 20*time.Millisecond
		r := runLoad(t, c)
		// All 6 watchers see each put, or of 4 keys two have two watchers and two have one.
		events := r.Extra["events_per_second"] * r.Elapsed.Seconds()
		if r.Extra["events_missing"] != 0 || !keys && (events < 1199.9 || events > 1200.1) || keys && (events < 200 || events > 400) {
			t.Errorf("keys %v: %v events, %v missing", keys, events, r.Extra["events_missing"])
		}
		if r.Delivery == nil || r.Delivery.Max <= 0 || r.Delivery.Max > time.Minute {
			t.Errorf("delivery %+v", r.Delivery)
		}
	}
}

func TestLease(t *testing.T) {
	for op, want := range map[string][2]int64{leaseGrant: {200, 0}, leaseCycle: {200, 200}, leaseKeepAlive: {4, 0}} {
		f := startFake(t)
		c := testLoad("lease", f)
		c.LeaseOp = op
		r := runLoad(t, c)
		if got := [2]int64{f.grants.Load(), f.revokes.Load()}; r.Requests != 200 || r.Failed != 0 || got != want {
			t.Errorf("%s: %d requests, grants and revokes %v, want %v", op, r.Requests, got, want)
		}
	}
}

func TestErrorsAreCountedByText(t *testing.T) {
	f := startFake(t)
	f.refuse.Store(true)
	r := runLoad(t, testLoad("put", f))
	want := map[string]int64{"ResourceExhausted: etcdserver: mvcc: database space exceeded": 200}
	if r.Requests != 0 || r.Failed != 200 || !maps.Equal(r.Errors, want) || r.Gap.Length != r.Elapsed {
		t.Errorf("%d requests, %d failed, %v, longest gap %v of %v", r.Requests, r.Failed, r.Errors, r.Gap, r.Elapsed)
	}
}

func TestTimeBoundsARun(t *testing.T) {
	f := startFake(t)
	c := testLoad("put", f)
	c.Total, c.Duration = 0, 100*time.Millisecond
	if r := runLoad(t, c); r.Elapsed < 100*time.Millisecond || r.Elapsed > 5*time.Second || r.Requests == 0 {
		t.Errorf("%d requests in %v", r.Requests, r.Elapsed)
	}
	c.Timeout = 50 * time.Millisecond
	f.delay.Store(int64(10 * time.Second))
	r := runLoad(t, c)
	if r.Requests != 0 || r.Failed == 0 {
		t.Errorf("%d requests, %d failed", r.Requests, r.Failed)
	}
	for text := range r.Errors {
		// Which of the two ends notices first decides what follows the code.
		if !strings.HasPrefix(text, "DeadlineExceeded: ") {
			t.Errorf("failed with %q", text)
		}
	}
}

func TestOpenLoopCountsWaiting(t *testing.T) {
	f := startFake(t)
	c := testLoad("put", f)
	// One client that takes 10 ms a put is asked for 1000 a second: the last of 30 waits 270 ms.
	c.Clients, c.Conns, c.Rate, c.Total = 1, 1, 1000, 30
	f.delay.Store(int64(10 * time.Millisecond))
	if r := runLoad(t, c); r.Latency.Max < 250*time.Millisecond || r.Latency.P50 < 120*time.Millisecond {
		t.Errorf("latency %+v hides what waited", r.Latency)
	}
	// A rate that can be kept is kept.
	f.delay.Store(0)
	c.Clients, c.Rate, c.Total = 4, 200, 40
	if r := runLoad(t, c); r.Elapsed < 190*time.Millisecond {
		t.Errorf("40 requests at 200/s took %v", r.Elapsed)
	}
}

func TestAgainst(t *testing.T) {
	a, b := startFake(t), startFake(t)
	b.delay.Store(int64(2 * time.Millisecond))
	out, stderr, err := bench(t, "put", "--endpoints", a.addr, "--name", "fast", "--against", "slow=http://"+b.addr,
		"--rounds", "3", "--total", "50", "--clients", "2", "--conns", "1", "--json", "-")
	if err != nil {
		t.Fatal(err)
	}
	if a.puts.Load() != 150 || b.puts.Load() != 150 {
		t.Errorf("%d and %d puts, want 150 each", a.puts.Load(), b.puts.Load())
	}
	for _, want := range []string{`"name": "slow"`, `"ratios"`, `"p999_ns"`, `"latency p50"`} {
		if !strings.Contains(out, want) {
			t.Errorf("JSON has no %s:\n%s", want, out)
		}
	}
	if !strings.Contains(stderr, "medians of 3 runs; the ratio is that of fast to") {
		t.Errorf("no comparison:\n%s", stderr)
	}
}

func TestGap(t *testing.T) {
	f := startFake(t)
	c := &GapConfig{
		Endpoints: []string{f.addr}, Writers: 2, Duration: 20 * time.Second, Timeout: time.Second, KeySize: 32, ValSize: 10, KeySpace: 100,
		Prefix: "g/", Command: []string{"sleep", "0.3"}, After: 100 * time.Millisecond, Settle: 100 * time.Millisecond,
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	go func() {
		time.Sleep(200 * time.Millisecond)
		f.refuse.Store(true)
		time.Sleep(100 * time.Millisecond)
		f.refuse.Store(false)
	}()
	r, err := measureGaps(t.Context(), c, &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Phases) != 3 || r.CommandError != "" || r.CommandEnd-r.CommandStart < 300*time.Millisecond {
		t.Fatalf("%d phases, command %v to %v %s", len(r.Phases), r.CommandStart, r.CommandEnd, r.CommandError)
	}
	during := r.Phases[1]
	if during.Max < 95*time.Millisecond || during.Longest[0].Failed == 0 || during.Longest[0].Length != during.Max || r.Failed == 0 {
		t.Errorf("longest pause %+v of %v, %d failed", during.Longest, during.Max, r.Failed)
	}
	if r.Phases[0].Max >= during.Max {
		t.Errorf("pause of %v before", r.Phases[0].Max)
	}
}

func TestBadArguments(t *testing.T) {
	for _, c := range []struct{ args, want string }{
		{"put --clients 0", "--clients must be"},
		{"put --duration 0s", "--duration must be"},
		{"put --key-size 8 --key-space 1000", "--key-size is too small"},
		{"put --against x", "want NAME=ENDPOINTS"},
		{"put --against x=pid=3", "no endpoint"},
		{"put --against quorate=127.0.0.1:1", "two servers are named"},
		{"put --val-size 100000000", "--val-size must be"},
		{"mixed --read-ratio 2", "--read-ratio must be"},
		{"watch --val-size 4", "watch needs a --val-size"},
		{"put --rate NaN", "--rate must not"},
		{"put extra", "unknown command"},
		{"nosuch", "unknown command"},
		{"gap --writers 0", "--writers must be"},
		{"gap --after 1m -- true", "--after must be less"},
		{"put --json /nonexistent/file --total 1", "--json: open"},
	} {
		if _, _, err := bench(t, strings.Fields(c.args)...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("bench %s: %v, want %s", c.args, err, c.want)
		}
	}
}
