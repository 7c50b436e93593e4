package rpc

import (
	"context"
	"errors"
	"slices"

	"quorate/internal/kv"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// lockServiceDesc is v3lockpb.Lock. A lock is a line whose first key holds it. Like any
// lock that ends with a lease, it does not fence: who needs that must compare the create
// revision of its key in its transactions.
func lockServiceDesc() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: "v3lockpb.Lock",
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{
			lineMethod("Lock", lockpb.ByName("LockRequest"), true, lines.lock),
			lineMethod("Unlock", lockpb.ByName("UnlockRequest"), false, lines.unlock),
		},
		Metadata: "v3lock.proto",
	}
}

var errSessionExpired = errors.New("mutex: session is expired")

// lock returns once the client's key is the first in line. Calls with the same name and
// lease share a key, and are one acquisition.
func (s lines) lock(ctx context.Context, r message, stream grpc.ServerStream) error {
	p, _, err := s.enterLine(ctx, r.bytes("name"), kv.LeaseID(r.int("lease")), nil)
	if err != nil {
		return err
	}
	rev, err := p.awaitTurn(ctx)
	if err == nil {
		err = newMessage(lockpb, "LockResponse").setMessage("header", s.pbHeader(rev)).setBytes("key", p.key).send(stream)
		if err == nil || !p.created {
			return err // a key that was there may be held by an earlier call
		}
	}
	// The client is gone, or gets an error: it does not hold the lock.
	p.leave(ctx)
	if errors.Is(err, errPlaceLost) {
		err = errSessionExpired
	}
	return err
}

// unlock deletes a key, whatever it is.
func (s lines) unlock(ctx context.Context, r message, stream grpc.ServerStream) error {
	key := r.bytes("key")
	if len(key) == 0 {
		return kv.ErrEmptyKey
	}
	res, err := s.proposeMessage(ctx, wire.FieldDelete, &pb.DeleteRangeRequest{Key: slices.Clip(key)})
	if err != nil {
		return err
	}
	return newMessage(lockpb, "UnlockResponse").setMessage("header", s.pbHeader(res.Rev)).send(stream)
}
