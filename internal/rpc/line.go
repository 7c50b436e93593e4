package rpc

import (
	"context"
	"errors"
	"slices"
	"strconv"

	"quorate/internal/fsm"
	"quorate/internal/kv"
	"quorate/internal/mvcc"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// Locks and elections are lines. Who stands in the line of a name has a key name/lease, and
// the key that was created first has the turn. So the line is fair in order of arrival,
// members and clients that go by etcd's recipe stand in the same line, and it ends with the
// lease when a client dies.
//
// One end wakes one: a lineWatch looks at each change of a line once for all who wait
// on this member. It watches from the revision after the state that it read, so that no end
// is missed. That the own key is gone ends the waiting at once.

// sessionTTL is that of a lease that is granted for a client who named none, in seconds.
const sessionTTL = 60

// errPlaceLost says that the own key is gone: its lease is over, or somebody deleted it.
var errPlaceLost = errors.New("the place in line is lost")

// place is a client's place in a line.
type place struct {
	*services
	line  kv.Span // all keys of the line
	key   []byte
	lease kv.LeaseID
	rev   int64  // that created the key
	value []byte // of the key when it was entered

	granted bool // the lease was granted for this place alone
	created bool // the key was not there before
}

// enterLine puts a key for lease into the line of name, unless it is there, and returns it
// with the revision of the answer. A lease of zero is a new one. What was put is taken back
// if enterLine fails.
func (s *services) enterLine(ctx context.Context, name []byte, lease kv.LeaseID, value []byte) (p *place, rev int64, err error) {
	p = &place{services: s, line: lineOf(name), lease: lease}
	if p.granted = lease == kv.NoLease; p.granted {
		if p.lease, err = s.grantSession(ctx); err != nil {
			return nil, 0, err
		}
	}
	// Who stands in line looks at the others, and must be allowed to.
	if _, err := s.permitRead(ctx, p.line); err != nil {
		return nil, 0, err
	}
	p.key = strconv.AppendInt(slices.Clip(p.line.Key), int64(p.lease), 16)
	if rev, err = p.enter(ctx, value); err != nil {
		return nil, 0, err
	}
	return p, rev, nil
}

// lineOf is the keys of the line of name: those that begin with name and a slash.
func lineOf(name []byte) kv.Span {
	return kv.Span{Key: append(slices.Clip(name), '/'), End: append(slices.Clip(name), '/'+1)}
}

func (s *services) grantSession(ctx context.Context) (kv.LeaseID, error) {
	id := s.newLeaseID()
	_, err := s.proposeMessage(ctx, wire.FieldLeaseGrant, &pb.LeaseGrantRequest{ID: int64(id), TTL: sessionTTL})
	return id, err
}

// proposeMessage has m replicated. Its error is also that of what came of it.
func (s *services) proposeMessage(ctx context.Context, field wire.Field, m proto.Message) (fsm.Result, error) {
	body, err := proto.Marshal(m)
	if err != nil {
		return fsm.Result{}, err
	}
	res, err := s.Propose(ctx, field, body)
	if err == nil {
		err = res.Err
	}
	return res, err
}

// enter puts the key, or finds it there.
//
// The proposal is not given up when the client goes: then one would not know whether the
// key is there. If that is not known in the end, because the proposal took too long, what
// was created since enter began is deleted.
func (p *place) enter(ctx context.Context, value []byte) (rev int64, err error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	v := p.View()
	before := v.Rev()
	v.Release()
	res, err := p.proposeMessage(context.WithoutCancel(ctx), wire.FieldTxn, &pb.TxnRequest{
		Compare: []*pb.Compare{createdAt(p.key, pb.Compare_EQUAL, 0)},
		Success: []*pb.RequestOp{putOp(p.key, value, p.lease)},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: p.key}}}},
	})
	if err != nil {
		if refused := res.Err != nil || errors.Is(err, kv.ErrTooLarge) || errors.Is(err, kv.ErrTooManyRequests); p.granted || !refused {
			p.leaveIf(ctx, createdAt(p.key, pb.Compare_GREATER, before))
		}
		return 0, err
	}
	var r pb.TxnResponse
	if err := proto.Unmarshal(res.Body, &r); err != nil {
		return 0, err
	}
	p.rev, p.value, p.created = res.Rev, value, r.Succeeded
	if !r.Succeeded {
		own := r.Responses[0].GetResponseRange().Kvs[0]
		p.rev, p.value = own.CreateRevision, own.Value
	}
	return res.Rev, nil
}

// awaitTurn returns the revision of a state in which it is the place's turn, once there is
// one. errPlaceLost: the turn never comes.
func (p *place) awaitTurn(ctx context.Context) (rev int64, err error) {
	ahead, rev, err := p.look()
	if err != nil || !ahead {
		return rev, err
	}
	if err := p.await(ctx); err != nil {
		return 0, err
	}
	return p.confirm(ctx)
}

// look reports whether somebody stands before the place, and the revision at which this was
// so.
func (p *place) look() (ahead bool, rev int64, err error) {
	v := p.View()
	defer v.Release()
	if createdAs(v, p.key) != p.rev {
		return false, 0, errPlaceLost
	}
	ahead, err = someoneAhead(v, p.line, p.rev)
	return ahead, v.Rev(), err
}

// createdAs is the revision at which key was created, 0 if it is not there.
func createdAs(v *mvcc.View, key []byte) (rev int64) {
	if _, err := v.Range(&kv.Range{Span: kv.Span{Key: key}}, func(keyValue []byte) { rev = mustDecode(keyValue).Create }); err != nil {
		panic("read a key as it is now: " + err.Error()) // only reading the past can fail
	}
	return rev
}

// decodeKeyValue decodes what the store holds, which is well-formed.
func decodeKeyValue(b []byte) *mvccpb.KeyValue {
	var m mvccpb.KeyValue
	if err := proto.Unmarshal(b, &m); err != nil {
		panic("the store holds a malformed KeyValue: " + err.Error())
	}
	return &m
}

// confirm returns the revision at which the place is there still, in a state that is not
// older than the call. The turn came before: who stood ahead is gone for good. But this
// member may have been late to hear of it, and the lease may be over by now.
func (p *place) confirm(ctx context.Context) (int64, error) {
	if err := p.ReadIndex(ctx); err != nil {
		return 0, err
	}
	v := p.View()
	defer v.Release()
	if createdAs(v, p.key) != p.rev {
		return 0, errPlaceLost
	}
	return v.Rev(), nil
}

// leave gives the place up, also when ctx has ended.
func (p *place) leave(ctx context.Context) { p.leaveIf(ctx, createdAt(p.key, pb.Compare_EQUAL, p.rev)) }

// leaveIf deletes the own key if the condition holds, and all that was granted for the
// place.
func (p *place) leaveIf(ctx context.Context, condition *pb.Compare) {
	ctx = context.WithoutCancel(ctx) // a proposal is bounded in time by itself
	var err error
	if p.granted {
		_, err = p.proposeMessage(ctx, wire.FieldLeaseRevoke, &pb.LeaseRevokeRequest{ID: int64(p.lease)})
		if errors.Is(err, kv.ErrLeaseNotFound) {
			err = nil
		}
	} else {
		_, err = p.proposeMessage(ctx, wire.FieldTxn, &pb.TxnRequest{
			Compare: []*pb.Compare{condition},
			Success: []*pb.RequestOp{deleteOp(p.key)},
		})
	}
	if err != nil {
		p.log.Warn("failed to give up a place in line; it ends with its lease", "key", cut(string(p.key)), "lease-id", p.lease.String(), "error", err)
	}
}

func createdAt(key []byte, result pb.Compare_CompareResult, rev int64) *pb.Compare {
	return &pb.Compare{Key: key, Target: pb.Compare_CREATE, Result: result, TargetUnion: &pb.Compare_CreateRevision{CreateRevision: rev}}
}

func putOp(key, value []byte, lease kv.LeaseID) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: value, Lease: int64(lease)}}}
}

func deleteOp(key []byte) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: key}}}
}
