package sim

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"quorate/internal/kv"
	"quorate/internal/node"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// kind is what a request is.
type kind uint8

const (
	get kind = iota
	put
	swap // compare and swap
	del
	grant
	renew
	revoke
	leased // put of a key on a lease
	compact
)

// op is one request and what became of it.
type op struct {
	kind   kind
	client int
	key    string
	value  string // that it writes; unique, also where it deletes
	expect string // that swap compares with; "": no key
	lease  int64
	rev    int64 // to compact to
	wait   bool  // until the space is given back

	on       *member
	alive    func() bool   // the run of the member that was asked
	disk     *disk         // its
	deadline time.Duration // the client's patience; 0: without end

	call, ret   int64         // order among all calls and returns
	sent, ended time.Duration // when

	// The answer.
	err   error
	found string // before a put, by a get, or by a swap that failed
	did   bool   // swap
	at    int64  // revision
	ttl   int64
}

func (o *op) String() string {
	if o == nil {
		return "none"
	}
	names := []string{"get", "put", "swap", "del", "grant", "renew", "revoke", "leased", "compact"}
	return fmt.Sprintf("%s %s=%s expect=%q lease=%d rev=%d on %s: found=%q did=%v at=%d ttl=%d err=%v (%s to %s)",
		names[o.kind], o.key, short(o.value), short(o.expect), o.lease, o.rev, o.on.cfg.Name, short(o.found), o.did, o.at, o.ttl, o.err, o.sent, o.ended)
}

// short is what tells a value from all others: behind it there may be filling.
func short(value string) string {
	short, _, _ := strings.Cut(value, " ")
	return short
}

// client sends one request at a time, to one member until that fails it.
type client struct {
	w    *world
	i    int
	on   int
	op   *op // under way
	done chan struct{}
	ctx  context.Context
	end  context.CancelFunc

	count int
	known map[string]string // last values seen
	lease int64             // 0: none
	final bool              // the request that is under way comes after the faults
	last  bool              // it was acknowledged
}

func newClient(w *world, i int) *client {
	c := &client{w: w, i: i, on: w.rnd.IntN(w.plan.members), done: make(chan struct{}, 1), known: map[string]string{}}
	c.ctx, c.end = context.WithCancel(context.Background())
	c.soon()
	return c
}

func (c *client) stop() { c.end() }

func (c *client) soon() { c.w.later(c.w.between(0, c.w.plan.thinkMax), c.act) }

// act sends the next request.
func (c *client) act() {
	w := c.w
	if c.last {
		return
	}
	m := w.members[c.on]
	if m.n == nil || w.rnd.IntN(30) == 0 {
		c.on = w.rnd.IntN(len(w.members))
		c.soon()
		return
	}
	o := c.choose()
	o.client, o.on, o.alive, o.disk = c.i, m, m.alive(), m.disk
	if c.final = w.calm; c.final {
		o.kind, o.deadline = put, 0
		o.key, o.lease = "k0", 0
	}
	if o.kind == revoke {
		w.check.asked[o.lease] = true
	}
	o.call, o.sent = w.check.tick(), w.now()
	w.note("call", uint64(c.i), uint64(m.i), uint64(o.kind))
	w.say("client %d calls %v", c.i, o)
	w.check.stats.requests++
	c.op = o
	ctx, cancel := c.ctx, context.CancelFunc(func() {})
	if o.deadline > 0 {
		ctx, cancel = context.WithTimeout(ctx, o.deadline)
	}
	n := m.n
	send := func() {
		go func() {
			defer cancel()
			o.err = o.run(ctx, n)
			c.done <- struct{}{}
		}()
	}
	if p := m.paused(); p > 0 {
		w.later(p+w.between(0, w.plan.stepMax), send) // it takes nothing in meanwhile
		return
	}
	send()
}

func (c *client) choose() *op {
	w := c.w
	c.count++
	o := &op{key: fmt.Sprint("k", w.rnd.IntN(w.plan.keys)), value: fmt.Sprintf("c%d.%d", c.i, c.count)}
	if n := w.plan.valueMax; n > 0 {
		o.value += " " + strings.Repeat("x", c.count*c.count*977%n)
	}
	if w.rnd.IntN(4) == 0 {
		o.deadline = w.between(time.Millisecond, 2*time.Second)
	}
	x := w.rnd.IntN(100)
	if w.plan.leases {
		x = 82 + x%17
	}
	switch {
	case x < 30:
		o.kind = get
	case x < 60:
		o.kind = put
	case x < 75:
		o.kind, o.expect = swap, c.known[o.key]
	case x < 82:
		o.kind = del
	case x < 84 && w.check.rev > 20:
		o.kind, o.rev, o.wait = compact, w.check.rev-w.rnd.Int64N(20), w.rnd.IntN(2) == 0
	case c.lease == 0:
		o.kind, o.ttl, o.lease = grant, 1+w.rnd.Int64N(2), int64(1000*(c.i+1)+c.count)
	case x < 87:
		o.kind, o.lease = leased, c.lease
		o.key = fmt.Sprint("l", c.i)
	case x < 98:
		o.kind, o.lease = renew, c.lease
	default:
		o.kind, o.lease = revoke, c.lease
	}
	return o
}

// poll takes the answer, if it has come.
func (c *client) poll() {
	if c.op == nil {
		return
	}
	select {
	case <-c.done:
	default:
		return
	}
	w, o := c.w, c.op
	c.op = nil
	o.ret, o.ended = w.check.tick(), w.now()
	w.note("return", uint64(c.i), uint64(o.at), uint64(len(o.found)))
	w.say("client %d gets %v", c.i, o)
	switch {
	case o.err != nil:
		w.check.refused(o)
		if o.kind == renew && errors.Is(o.err, kv.ErrLeaseNotFound) || o.kind == leased || o.kind == grant {
			c.lease = 0
		}
		if w.rnd.IntN(2) == 0 {
			c.on = w.rnd.IntN(len(w.members))
		}
	default:
		w.check.stats.acknowledged++
		switch o.kind {
		case get:
			c.known[o.key] = o.found
		case put:
			c.known[o.key] = o.value
			c.last = c.final
		case swap:
			if c.known[o.key] = o.found; o.did {
				c.known[o.key] = o.value
			}
		case grant:
			c.lease = o.lease
		case revoke:
			c.lease = 0
		}
	}
	if c.lease != 0 && (w.rnd.IntN(20) == 0 || w.plan.leases && w.rnd.IntN(4) == 0) {
		c.lease = 0 // it is left to expire
	}
	w.check.answered(o)
	c.soon()
}

// run sends the request and returns with its answer.
func (o *op) run(ctx context.Context, n *node.Node) error {
	switch o.kind {
	case get:
		return o.get(ctx, n)
	case put, leased:
		var r pb.PutResponse
		err := o.propose(ctx, n, wire.FieldPut, &pb.PutRequest{Key: []byte(o.key), Value: []byte(o.value), PrevKv: true, Lease: o.lease}, &r)
		o.found = string(r.GetPrevKv().GetValue())
		return err
	case swap:
		cmp := &pb.Compare{Key: []byte(o.key), Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: []byte(o.expect)}}
		if o.expect == "" {
			cmp = &pb.Compare{Key: []byte(o.key), Target: pb.Compare_CREATE, TargetUnion: &pb.Compare_CreateRevision{}}
		}
		var r pb.TxnResponse
		err := o.propose(ctx, n, wire.FieldTxn, &pb.TxnRequest{
			Compare: []*pb.Compare{cmp},
			Success: []*pb.RequestOp{putOp(o.key, o.value)},
			Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(o.key)}}}},
		}, &r)
		if o.did = r.Succeeded; err == nil && !o.did {
			for _, k := range r.Responses[0].GetResponseRange().Kvs {
				o.found = string(k.Value)
			}
		}
		return err
	case del:
		// The put tells from the log alone whether the request was applied.
		var r pb.TxnResponse
		err := o.propose(ctx, n, wire.FieldTxn, &pb.TxnRequest{Success: []*pb.RequestOp{
			{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(o.key), PrevKv: true}}},
			putOp("deleted", o.value),
		}}, &r)
		if err == nil {
			for _, k := range r.Responses[0].GetResponseDeleteRange().PrevKvs {
				o.found = string(k.Value)
			}
		}
		return err
	case grant:
		var r pb.LeaseGrantResponse
		err := o.propose(ctx, n, wire.FieldLeaseGrant, &pb.LeaseGrantRequest{ID: o.lease, TTL: o.ttl}, &r)
		o.ttl = r.TTL
		return err
	case renew:
		var err error
		o.ttl, err = n.RenewLease(ctx, kv.LeaseID(o.lease))
		return err
	case revoke:
		return o.propose(ctx, n, wire.FieldLeaseRevoke, &pb.LeaseRevokeRequest{ID: o.lease}, &pb.LeaseRevokeResponse{})
	case compact:
		return o.propose(ctx, n, wire.FieldCompact, &pb.CompactionRequest{Revision: o.rev, Physical: o.wait}, &pb.CompactionResponse{})
	}
	panic("unknown kind of request")
}

func putOp(key, value string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte(value)}}}
}

func (o *op) propose(ctx context.Context, n *node.Node, field wire.Field, req, resp proto.Message) error {
	body, err := proto.Marshal(req)
	if err != nil {
		return err
	}
	res, err := n.Propose(ctx, field, body)
	if err != nil {
		return err
	}
	if o.at = res.Rev; res.Err != nil {
		return res.Err
	}
	if res.Done != nil {
		select {
		case <-res.Done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return proto.Unmarshal(res.Body, resp)
}

func (o *op) get(ctx context.Context, n *node.Node) error {
	if !o.on.w.plan.plant.staleReads {
		if err := n.ReadIndex(ctx); err != nil {
			return err
		}
	}
	v := n.View()
	defer v.Release()
	o.at = v.Rev()
	_, err := v.Range(&kv.Range{Span: kv.Span{Key: []byte(o.key)}}, func(b []byte) {
		k, err := wire.DecodeKeyValue(b)
		if err == nil {
			o.found = string(k.Value)
		}
	})
	return err
}
