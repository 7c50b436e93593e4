package rpc

import (
	"context"
	"errors"

	"quorate/internal/kv"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// electionServiceDesc is v3electionpb.Election. An election is a line whose first key is
// the leader's; the key's value is what the leader proclaims.
func electionServiceDesc() *grpc.ServiceDesc {
	observe := lineMethod("Observe", electionpb.ByName("LeaderRequest"), true, lines.observe)
	observe.ServerStreams = true
	return &grpc.ServiceDesc{
		ServiceName: "v3electionpb.Election",
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{
			lineMethod("Campaign", electionpb.ByName("CampaignRequest"), true, lines.campaign),
			lineMethod("Proclaim", electionpb.ByName("ProclaimRequest"), false, lines.proclaim),
			lineMethod("Leader", electionpb.ByName("LeaderRequest"), false, lines.leader),
			lineMethod("Resign", electionpb.ByName("ResignRequest"), false, lines.resign),
			observe,
		},
		Metadata: "v3election.proto",
	}
}

// etcd's words.
var (
	errMissingLeaderKey = errors.New(`"leader" field must be provided`)
	errNotElected       = errors.New("election: not leader")
	errNobodyElected    = errors.New("election: no leader")
)

// campaign returns once the client's key is the first in line. The header is of when the
// key was put there.
func (s lines) campaign(ctx context.Context, r message, stream grpc.ServerStream) error {
	name, value := r.bytes("name"), r.bytes("value")
	p, entered, err := s.enterLine(ctx, name, kv.LeaseID(r.int("lease")), value)
	if err != nil {
		return err
	}
	if string(p.value) != string(value) {
		_, err = s.proclaimKey(ctx, p.key, p.rev, p.lease, value)
	}
	if err == nil {
		_, err = p.awaitTurn(ctx)
	}
	if err == nil {
		leader := newMessage(electionpb, "LeaderKey").setBytes("name", name).setBytes("key", p.key).
			setInt("rev", p.rev).setInt("lease", int64(p.lease))
		err = newMessage(electionpb, "CampaignResponse").setMessage("header", s.pbHeader(entered)).setMessage("leader", leader).send(stream)
		if err == nil || !p.created {
			return err // a key that was there may be of one who leads already
		}
	}
	p.leave(ctx)
	if errors.Is(err, errPlaceLost) {
		err = errNotElected
	}
	return err
}

// proclaim sets the leader's value, unless its key is another one by now.
func (s lines) proclaim(ctx context.Context, r message, stream grpc.ServerStream) error {
	leader, ok := r.leader()
	if !ok {
		return errMissingLeaderKey
	}
	lease := kv.LeaseID(leader.int("lease"))
	if lease == kv.NoLease {
		var err error
		if lease, err = s.grantSession(ctx); err != nil {
			return err
		}
	}
	rev, err := s.proclaimKey(ctx, leader.bytes("key"), leader.int("rev"), lease, r.bytes("value"))
	if err != nil {
		return err
	}
	return newMessage(electionpb, "ProclaimResponse").setMessage("header", s.pbHeader(rev)).send(stream)
}

func (s lines) proclaimKey(ctx context.Context, key []byte, created int64, lease kv.LeaseID, value []byte) (rev int64, err error) {
	succeeded, rev, err := s.ifCreatedAt(ctx, key, created, putOp(key, value, lease))
	if err == nil && !succeeded {
		err = errNotElected
	}
	return rev, err
}

// resign deletes the leader's key, unless it is another one by now.
func (s lines) resign(ctx context.Context, r message, stream grpc.ServerStream) error {
	leader, ok := r.leader()
	if !ok {
		return errMissingLeaderKey
	}
	key := leader.bytes("key")
	_, rev, err := s.ifCreatedAt(ctx, key, leader.int("rev"), deleteOp(key))
	if err != nil {
		return err
	}
	return newMessage(electionpb, "ResignResponse").setMessage("header", s.pbHeader(rev)).send(stream)
}

// ifCreatedAt does op if key was created at revision created (0: if it is not there).
func (s lines) ifCreatedAt(ctx context.Context, key []byte, created int64, op *pb.RequestOp) (succeeded bool, rev int64, err error) {
	if len(key) == 0 {
		return false, 0, kv.ErrEmptyKey
	}
	res, err := s.proposeMessage(ctx, wire.FieldTxn, &pb.TxnRequest{
		Compare: []*pb.Compare{createdAt(key, pb.Compare_EQUAL, created)},
		Success: []*pb.RequestOp{op},
	})
	if err != nil {
		return false, 0, err
	}
	var r pb.TxnResponse
	if err := proto.Unmarshal(res.Body, &r); err != nil {
		return false, 0, err
	}
	return r.Succeeded, res.Rev, nil
}

// leader returns the leader's key as it is now.
func (s lines) leader(ctx context.Context, r message, stream grpc.ServerStream) error {
	if err := s.ReadIndex(ctx); err != nil {
		return err
	}
	line := lineOf(r.bytes("name"))
	permit, err := s.permitRead(ctx, line)
	if err != nil {
		return err
	}
	f := s.lineFront(line)
	v := s.View()
	leader, err := f.leader(v, 0)
	rev := v.Rev()
	v.Release()
	if err == nil {
		err = permit.unchanged()
	}
	switch {
	case err != nil:
		return err
	case leader == nil:
		return errNobodyElected
	}
	return s.sendLeader(stream, rev, leader)
}

func (s lines) sendLeader(stream grpc.ServerStream, rev int64, leader *mvccpb.KeyValue) error {
	return newMessage(electionpb, "LeaderResponse").setMessage("header", s.pbHeader(rev)).setMessage("kv", leader).send(stream)
}

// observe streams the leader of now, and from then on each new leader and each value that a
// leader proclaims, in order and without a gap; the header's revision is that of the
// change. Only if the client reads so slowly that what it has not got is compacted, it
// gets the leader of then instead.
func (s lines) observe(ctx context.Context, r message, stream grpc.ServerStream) error {
	if err := s.ReadIndex(ctx); err != nil {
		return err
	}
	line := lineOf(r.bytes("name"))
	if _, err := s.permitRead(ctx, line); err != nil {
		return err
	}
	o := observer{lines: s, front: s.lineFront(line), stream: stream}
	for ctx.Err() == nil {
		if err := o.step(ctx); err != nil && !errors.Is(err, kv.ErrCompacted) {
			return err
		} else if err != nil {
			o.rev = 0
		}
	}
	return context.Cause(ctx)
}

// observer is one Observe call.
type observer struct {
	lines
	front  front // as it was once; its leader is asked for
	stream grpc.ServerStream
	rev    int64 // up to which the client knows all; 0: it is to get the leader of now
}

// step finds who leads at o.rev, tells the client, and returns when that may have changed,
// with o.rev at the change. kv.ErrCompacted: what comes next is not known any more.
func (o *observer) step(ctx context.Context) error {
	v := o.View()
	leader, err := o.front.leader(v, o.rev)
	if o.rev == 0 {
		o.rev = v.Rev()
	}
	v.Release()
	if err != nil {
		return err
	}
	if leader == nil {
		return o.awaitAny(ctx)
	}
	if err := o.sendLeader(o.stream, o.rev, leader); err != nil {
		return err
	}
	return o.follow(ctx, leader.Key)
}

// awaitAny returns once a key is put into the empty line, at o.rev.
func (o *observer) awaitAny(ctx context.Context) error {
	return o.each(ctx, o.front.line, func(e *mvccpb.Event) (bool, error) {
		return e.Type == mvccpb.Event_PUT, nil
	})
}

// follow tells the client what the leader proclaims, until its key is deleted, at o.rev.
func (o *observer) follow(ctx context.Context, key []byte) error {
	return o.each(ctx, kv.Span{Key: key}, func(e *mvccpb.Event) (bool, error) {
		if e.Type == mvccpb.Event_DELETE {
			return true, nil
		}
		return false, o.sendLeader(o.stream, e.Kv.ModRevision, e.Kv)
	})
}

// each calls fn with the changes of span after o.rev, which goes along with them, until fn
// is done.
func (o *observer) each(ctx context.Context, span kv.Span, fn func(*mvccpb.Event) (done bool, err error)) error {
	w := o.watchKeys(span, o.rev+1)
	defer w.Close()
	for {
		r, err := w.next(ctx)
		if err != nil {
			return err
		}
		if r.Canceled {
			return kv.ErrCompacted
		}
		for _, e := range r.Events {
			o.rev = e.Kv.ModRevision
			if done, err := fn(e); done || err != nil {
				return err
			}
		}
	}
}
