package crash

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"go.etcd.io/etcd/api/v3/mvccpb"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// fate is what a client knows of its request.
type fate int

const (
	doubt   fate = iota // no answer, or none that settles it
	acked               // done
	refused             // not done and never will be
)

func (f fate) String() string { return [...]string{"in doubt", "acknowledged", "refused"}[f] }

// op is one request that may change something.
type op struct {
	what   string
	writer int
	fate   fate
	rev    int64 // acked: the revision of the change, 0 when it changed nothing
	err    error

	// wishes are the changes it asks for, given what is there.
	wishes func(*model) []wish
	// A condition, when guarded is set: the key was last changed at guardMod.
	guarded  string
	guardMod int64

	grant, revoke int64 // lease ids
	compact       int64

	found bool // history has it
}

func (o *op) String() string {
	s := fmt.Sprintf("writer %d: %s: %v", o.writer, o.what, o.fate)
	if o.rev > 0 {
		s += fmt.Sprintf(" at revision %d", o.rev)
	}
	if o.err != nil {
		s += fmt.Sprintf(" (%v)", o.err)
	}
	return s
}

// settle notes an answer's error. Only an error that the server decided on by itself, before
// it did anything, settles that nothing was done.
func (o *op) settle(err error) bool {
	o.err = err
	switch status.Code(err) {
	case codes.OK:
		o.fate = acked
	case codes.NotFound, codes.FailedPrecondition, codes.InvalidArgument, codes.OutOfRange, codes.ResourceExhausted:
		o.fate = refused
	default:
		o.fate = doubt
	}
	return o.fate == acked
}

// load is one stretch of concurrent work between a start and a kill.
type load struct {
	conn    *grpc.ClientConn
	ops     [][]*op // by writer, in the order in which each asked
	watched []*mvccpb.Event
}

const (
	writers    = 8
	ownKeys    = 12
	sharedKeys = 3
	callWithin = 5 * time.Second
)

// writer is one client that does one thing after the other.
type writer struct {
	*rand.Rand
	id      int
	kv      pb.KVClient
	lease   pb.LeaseClient
	ops     []*op
	serial  int
	leases  []int64 // its own that were there at the start or that it got since
	nextID  int64
	guards  map[string]int64 // mod revisions of shared keys as last seen
	compact func() int64     // a revision to compact to; nil for a writer that does not
}

// run works until the server is gone or the context ends.
func (w *writer) run(ctx context.Context) {
	for ctx.Err() == nil {
		o := &op{writer: w.id}
		ctx, cancel := context.WithTimeout(ctx, callWithin)
		w.step(ctx, o)
		cancel()
		w.ops = append(w.ops, o)
		if o.fate == doubt {
			return // the server is gone, or as good as
		}
	}
}

func (w *writer) key() string { return fmt.Sprintf("w%d/%02d", w.id, w.IntN(ownKeys)) }

func (w *writer) value() string {
	w.serial++
	pad := w.IntN(100)
	if w.IntN(50) == 0 {
		pad = w.IntN(100_000)
	}
	return fmt.Sprintf("%d.%d.%s", w.id, w.serial, strings.Repeat("x", pad))
}

func (w *writer) step(ctx context.Context, o *op) {
	switch n := w.IntN(100); {
	case n < 50:
		w.put(ctx, o)
	case n < 58:
		w.delete(ctx, o)
	case n < 70:
		w.txn(ctx, o)
	case n < 84:
		w.swap(ctx, o)
	case n < 92:
		w.grant(ctx, o)
	case n < 98 || w.compact == nil:
		w.revoke(ctx, o)
	default:
		w.compaction(ctx, o)
	}
}

func (w *writer) put(ctx context.Context, o *op) {
	x := wish{key: w.key(), value: w.value()}
	if len(w.leases) > 0 && w.IntN(3) == 0 {
		x.lease = w.leases[w.IntN(len(w.leases))]
	}
	o.what = fmt.Sprintf("put %s = %.16s (%d bytes), lease %d", x.key, x.value, len(x.value), x.lease)
	o.wishes = func(*model) []wish { return []wish{x} }
	resp, err := w.kv.Put(ctx, &pb.PutRequest{Key: []byte(x.key), Value: []byte(x.value), Lease: x.lease})
	if o.settle(err) {
		o.rev = resp.Header.Revision
	}
}

func (w *writer) delete(ctx context.Context, o *op) {
	req := &pb.DeleteRangeRequest{Key: []byte(w.key())}
	if w.IntN(4) == 0 {
		req.RangeEnd = fmt.Appendf(nil, "w%d0", w.id) // to the end of its own: '0' follows '/'
	}
	o.what = fmt.Sprintf("delete [%s, %s)", req.Key, req.RangeEnd)
	o.wishes = func(m *model) []wish {
		var wishes []wish
		for key := range m.live {
			if key == string(req.Key) || key > string(req.Key) && key < string(req.RangeEnd) {
				wishes = append(wishes, wish{key: key, delete: true})
			}
		}
		slices.SortFunc(wishes, func(a, b wish) int { return cmp.Compare(a.key, b.key) })
		return wishes
	}
	resp, err := w.kv.DeleteRange(ctx, req)
	if o.settle(err) && resp.Deleted > 0 {
		o.rev = resp.Header.Revision
	}
}

// txn puts some keys and deletes one, without a condition.
func (w *writer) txn(ctx context.Context, o *op) {
	var wishes []wish
	req := &pb.TxnRequest{}
	for i, n := range w.Perm(ownKeys)[:2+w.IntN(4)] {
		x := wish{key: fmt.Sprintf("w%d/%02d", w.id, n), value: w.value(), delete: i == 1}
		wishes = append(wishes, x)
		if x.delete {
			req.Success = append(req.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{
				RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(x.key)}}})
		} else {
			req.Success = append(req.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
				RequestPut: &pb.PutRequest{Key: []byte(x.key), Value: []byte(x.value)}}})
		}
	}
	o.what = fmt.Sprintf("txn of %d changes, first %s", len(wishes), wishes[0].key)
	o.wishes = func(*model) []wish { return wishes }
	resp, err := w.kv.Txn(ctx, req)
	if o.settle(err) {
		o.rev = resp.Header.Revision
	}
}

// swap puts a key that all writers share if nobody has changed it since this one looked.
func (w *writer) swap(ctx context.Context, o *op) {
	x := wish{key: fmt.Sprintf("shared/%d", w.IntN(sharedKeys)), value: w.value()}
	o.guarded, o.guardMod = x.key, w.guards[x.key]
	o.what = fmt.Sprintf("put %s = %.16s if last changed at %d", x.key, x.value, o.guardMod)
	o.wishes = func(*model) []wish { return []wish{x} }
	resp, err := w.kv.Txn(ctx, &pb.TxnRequest{
		Compare: []*pb.Compare{{Target: pb.Compare_MOD, Key: []byte(x.key), TargetUnion: &pb.Compare_ModRevision{ModRevision: o.guardMod}}},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(x.key), Value: []byte(x.value)}}}},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(x.key)}}}},
	})
	if !o.settle(err) {
		return
	}
	if resp.Succeeded {
		o.rev = resp.Header.Revision
		w.guards[x.key] = o.rev
		return
	}
	w.guards[x.key] = 0
	if kvs := resp.Responses[0].GetResponseRange().Kvs; len(kvs) > 0 {
		w.guards[x.key] = kvs[0].ModRevision
	}
}

func (w *writer) grant(ctx context.Context, o *op) {
	w.nextID++
	o.grant = w.nextID
	o.what = fmt.Sprintf("grant lease %d", o.grant)
	_, err := w.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: o.grant, TTL: 1_000_000})
	if o.settle(err) {
		w.leases = append(w.leases, o.grant)
	}
}

func (w *writer) revoke(ctx context.Context, o *op) {
	o.revoke = int64(w.id+1) << 32 // one that never was
	if len(w.leases) > 0 {
		i := w.IntN(len(w.leases))
		o.revoke = w.leases[i]
		w.leases = slices.Delete(w.leases, i, i+1)
	}
	o.what = fmt.Sprintf("revoke lease %d", o.revoke)
	o.wishes = func(m *model) []wish { return m.revoked(o.revoke) }
	resp, err := w.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: o.revoke})
	if o.settle(err) {
		// Whether it changed anything is not said; history will tell by the revision.
		o.rev = -resp.Header.Revision
	}
}

func (w *writer) compaction(ctx context.Context, o *op) {
	o.compact = w.compact()
	o.what = fmt.Sprintf("compact to %d", o.compact)
	if o.compact <= 0 {
		o.fate = refused
		return
	}
	_, err := w.kv.Compact(ctx, &pb.CompactionRequest{Revision: o.compact, Physical: w.IntN(4) == 0})
	o.settle(err)
}

// work lets the writers loose on a server, and a watcher beside them, until ctx ends or the
// server does.
func work(ctx context.Context, conn *grpc.ClientConn, c *checker, r *rand.Rand) *load {
	l := &load{conn: conn, ops: make([][]*op, writers)}
	kv, lease := pb.NewKVClient(conn), pb.NewLeaseClient(conn)
	compacted, top := c.model.compacted, c.model.rev
	var wg sync.WaitGroup
	for i := range writers {
		w := &writer{
			Rand: rand.New(rand.NewPCG(r.Uint64(), r.Uint64())), id: i, kv: kv, lease: lease,
			serial: c.rounds * 1_000_000, leases: c.leasesOf(i),
			nextID: int64(i+1)<<32 + int64(c.rounds)*1_000_000,
			guards: map[string]int64{},
		}
		if i == 0 {
			w.compact = func() int64 {
				// Only what has been checked already may be forgotten.
				low := max(compacted, 1)
				if top-low < 200 {
					return 0
				}
				compacted = low + 2 + w.Int64N(top-low-100)
				return compacted
			}
		}
		wg.Go(func() {
			w.run(ctx)
			l.ops[i] = w.ops
		})
	}
	wg.Go(func() { l.watched = watch(ctx, conn, top+1) })
	wg.Wait()
	return l
}

// watch returns the events from a revision on that arrive before the stream ends.
func watch(ctx context.Context, conn *grpc.ClientConn, from int64) []*mvccpb.Event {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var evs []*mvccpb.Event
	stream, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		return nil
	}
	if err := stream.Send(watchFrom(from)); err != nil {
		return nil
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return evs
		}
		evs = append(evs, resp.Events...)
	}
}

func watchFrom(rev int64) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
		CreateRequest: &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: rev},
	}}
}
