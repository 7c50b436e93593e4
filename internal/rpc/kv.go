package rpc

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"quorate/internal/fsm"
	"quorate/internal/kv"
	"quorate/internal/mvcc"
	"quorate/internal/wire"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// kvService is etcdserverpb.KV. Its handlers take the requests' bytes: what is replicated
// is what the client sent, and what it gets is what the store holds.
type kvService struct {
	*services
}

func kvServiceDesc() *grpc.ServiceDesc {
	method := func(name string, h func(kvService, grpc.ServerStream, *call) error) grpc.StreamDesc {
		return grpc.StreamDesc{StreamName: name, Handler: func(srv any, stream grpc.ServerStream) error {
			return srv.(kvService).serve(stream, h)
		}}
	}
	stream := method("RangeStream", kvService.rangeStream)
	stream.ServerStreams = true
	return &grpc.ServiceDesc{
		ServiceName: "etcdserverpb.KV",
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{
			method("Range", kvService.rangeKeys),
			method("Put", kvService.put),
			method("DeleteRange", kvService.deleteRange),
			method("Txn", kvService.txn),
			method("Compact", kvService.compact),
			stream,
		},
		Metadata: "rpc.proto",
	}
}

// call is what one call needs, reused by later ones.
type call struct {
	request
	reply reply

	rng kv.Range
	put kv.Put
	del kv.Delete
}

var callPool = sync.Pool{New: func() any { return new(call) }}

// serve receives the request, runs h and gives back what the call took.
func (k kvService) serve(stream grpc.ServerStream, h func(kvService, grpc.ServerStream, *call) error) error {
	ctx := stream.Context()
	a, err := k.awaitRequest(ctx)
	if err != nil {
		return err
	}
	c := callPool.Get().(*call)
	err = stream.RecvMsg(&c.request)
	size := int64(len(c.body))
	k.arrived(a, size)
	if err == nil {
		c.reply.reset(ctx, accountOf(ctx, k.otherAccount))
		err = h(k, stream, c)
		c.reply.free()
	}
	c.request.free()
	k.requests.give(size)
	c.rng, c.put, c.del = kv.Range{}, kv.Put{}, kv.Delete{}
	callPool.Put(c)
	return err
}

// malformed is the error for a request that cannot be decoded, as gRPC words it.
func malformed(err error) error {
	if !errors.Is(err, wire.ErrMalformed) {
		return err
	}
	return status.Error(codes.Internal, fmt.Sprintf("grpc: error unmarshalling request: proto: %v", err))
}

func (k kvService) rangeKeys(stream grpc.ServerStream, c *call) error {
	r := &c.rng
	if err := wire.DecodeRange(c.body, r); err != nil {
		return malformed(err)
	}
	if err := checkRange(r); err != nil {
		return err
	}
	if err := k.mayRead(r.Serializable); err != nil {
		return err
	}
	start := time.Now()
	err := k.readRange(stream.Context(), c)
	k.meter.rangeRequests.observe(start, err)
	if err != nil {
		return err
	}
	return stream.SendMsg(&c.reply)
}

// readRange appends the answer to c's range.
func (k kvService) readRange(ctx context.Context, c *call) error {
	r := &c.rng
	if err := k.readable(ctx, r.Serializable); err != nil {
		return err
	}
	permit, err := k.permitRead(ctx, r.Span)
	if err != nil {
		return err
	}
	if err := k.appendRange(c, r); err != nil {
		return err
	}
	return permit.unchanged()
}

// mayRead refuses the reads that a learner does not answer.
func (k kvService) mayRead(serializable bool) error {
	if !serializable && !k.opts.LearnerReads && k.IsLearner() {
		return rpctypes.ErrGRPCNotSupportedForLearner
	}
	return nil
}

// readable returns once the member may answer a read.
func (k kvService) readable(ctx context.Context, serializable bool) error {
	if serializable {
		return nil
	}
	return k.ReadIndex(ctx)
}

// appendRange appends a RangeResponse to c's reply.
func (k kvService) appendRange(c *call, r *kv.Range) (err error) {
	start := time.Now()
	defer func() { k.meter.ranged(start, err) }()
	v := k.View()
	defer v.Release()
	if !r.Single() && k.replies.scarce() {
		// While a reply waits for memory it should hold none.
		if _, err := k.reserve(c, v, &kv.Txn{Success: []kv.Op{{Range: r}}}); err != nil {
			return err
		}
	}
	b := &c.reply
	h := k.header(v.Rev())
	b.cur = wire.AppendHeader(b.room(headerMax), &h)
	found, err := v.Range(r, b.keyValue)
	if err != nil {
		return err
	}
	b.cur = wire.AppendRangeEnd(b.room(2*fieldOverhead), found.More, found.Count)
	return b.err
}

// headerMax is more than the header of a response takes.
const headerMax = 64

func (k kvService) put(stream grpc.ServerStream, c *call) error {
	if err := wire.DecodePut(c.body, &c.put); err != nil {
		return malformed(err)
	}
	if err := checkPut(&c.put); err != nil {
		return err
	}
	if c.put.PrevKV {
		if err := k.reserveFor(stream.Context(), c, &kv.Txn{Success: []kv.Op{{Put: &c.put}}}); err != nil {
			return err
		}
	}
	return k.propose(stream, c, wire.FieldPut)
}

func (k kvService) deleteRange(stream grpc.ServerStream, c *call) error {
	if err := wire.DecodeDelete(c.body, &c.del); err != nil {
		return malformed(err)
	}
	if err := checkDelete(&c.del); err != nil {
		return err
	}
	if c.del.PrevKV {
		if err := k.reserveFor(stream.Context(), c, &kv.Txn{Success: []kv.Op{{Delete: &c.del}}}); err != nil {
			return err
		}
	}
	return k.propose(stream, c, wire.FieldDelete)
}

func (k kvService) txn(stream grpc.ServerStream, c *call) error {
	var t kv.Txn
	if err := wire.DecodeTxnBounded(c.body, &t, k.opts.MaxTxnOps); err != nil {
		return malformed(err)
	}
	if err := checkTxn(&t, k.opts.MaxTxnOps); err != nil {
		return err
	}
	ro, serializable := readOnly(&t)
	if !ro {
		if k.IsLearner() {
			return rpctypes.ErrGRPCNotSupportedForLearner
		}
		if err := k.reserveFor(stream.Context(), c, &t); err != nil {
			return err
		}
		return k.propose(stream, c, wire.FieldTxn)
	}
	if err := k.mayRead(serializable); err != nil {
		return err
	}
	res, err := k.readTxn(stream.Context(), c, &t, serializable)
	if err != nil {
		return err
	}
	return k.answer(stream, c, res)
}

// readTxn evaluates t, whose operations are all ranges.
func (k kvService) readTxn(ctx context.Context, c *call, t *kv.Txn, serializable bool) (res fsm.Result, err error) {
	start := time.Now()
	defer func() { k.meter.readTxn(t, res.Body, start, err) }()
	if err = k.readable(ctx, serializable); err != nil {
		return res, err
	}
	permit, err := k.permitReadTxn(ctx, t)
	if err != nil {
		return res, err
	}
	v := k.View()
	defer v.Release()
	size, err := k.reserve(c, v, t)
	if err != nil {
		return res, err
	}
	res = fsm.ReadTxn(v, t, size)
	if err = permit.unchanged(); err == nil {
		err = res.Err
	}
	return res, err
}

// answerMax is the largest message that gRPC sends.
const answerMax = math.MaxInt32

// reserve charges the answer to t on v before it is built, and returns how large it will be
// if that is known. A small one is charged when it is there, unless memory is scarce.
func (k kvService) reserve(c *call, v *mvcc.View, t *kv.Txn) (size int64, err error) {
	if fsm.AnswerIsSmall(t) && !k.replies.scarce() {
		return 0, nil
	}
	if size = fsm.AnswerBytes(v, t, answerMax); size > answerMax {
		return 0, status.Errorf(codes.ResourceExhausted, "trying to send message larger than max (%d vs. %d)", size, answerMax)
	}
	return size, c.reply.reserve(size)
}

// reserveFor is reserve for what writes, the answer to which is built where it is applied,
// when nobody can wait any more. It goes by the state of now: what is under way may change
// how large the answer becomes.
func (k kvService) reserveFor(ctx context.Context, c *call, t *kv.Txn) error {
	if fsm.AnswerIsSmall(t) && !k.replies.scarce() {
		return nil
	}
	if _, err := k.permitReadTxn(ctx, t); err != nil {
		return nil // whether it is refused is decided where it is applied; nothing is read for it then
	}
	v := k.View()
	defer v.Release()
	_, err := k.reserve(c, v, t)
	return err
}

func (k kvService) compact(stream grpc.ServerStream, c *call) error {
	var q kv.Compact
	if err := wire.DecodeCompact(c.body, &q); err != nil {
		return malformed(err)
	}
	ctx := stream.Context()
	if err := k.permitAdmin(ctx); err != nil {
		return err
	}
	res, err := k.Propose(ctx, wire.FieldCompact, c.body)
	if err == nil && res.Err == nil && q.Physical && res.Done != nil {
		select {
		case <-res.Done:
			// What a crash would lose of it now, a restart would have to do again.
			err = k.Store().Flush(ctx)
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		return err
	}
	return k.answer(stream, c, res)
}

// propose has the client's own bytes replicated and answers with what came of it.
func (k kvService) propose(stream grpc.ServerStream, c *call, field wire.Field) error {
	res, err := k.Propose(stream.Context(), field, c.body)
	if err != nil {
		return err
	}
	return k.answer(stream, c, res)
}

func (k kvService) answer(stream grpc.ServerStream, c *call, res fsm.Result) error {
	if res.Err != nil {
		return res.Err
	}
	h := k.header(res.Rev)
	c.reply.cur = wire.AppendHeader(c.reply.room(headerMax), &h)
	c.reply.body(res.Body)
	if c.reply.err != nil {
		return c.reply.err
	}
	return stream.SendMsg(&c.reply)
}
