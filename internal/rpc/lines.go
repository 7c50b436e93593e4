package rpc

import (
	"context"

	"quorate/internal/wire"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// lines are the services that let clients stand in line: v3lockpb.Lock and
// v3electionpb.Election.
type lines struct{ *services }

// lineHandler answers a call by sending on the stream.
type lineHandler = func(s lines, ctx context.Context, r message, stream grpc.ServerStream) error

// lineMethod is a method that takes one message. If it waits for other clients, it may last
// for days: then it ends when the member stops, and its memory has a bound of its own, so
// that others find room, such as those it waits for.
func lineMethod(name string, in protoreflect.MessageDescriptor, waits bool, h lineHandler) grpc.StreamDesc {
	return grpc.StreamDesc{StreamName: name, Handler: func(srv any, stream grpc.ServerStream) error {
		s := srv.(lines)
		r, size, err := s.receive(stream, in)
		if err != nil {
			return err
		}
		if !waits {
			err = h(s, stream.Context(), r, stream)
			s.requests.give(size)
			return lineError(err)
		}
		s.requests.give(size)
		return lineError(s.wait(stream, size, func(ctx context.Context) error { return h(s, ctx, r, stream) }))
	}}
}

// receive returns the request, the size of which stays charged to s.requests.
func (s lines) receive(stream grpc.ServerStream, in protoreflect.MessageDescriptor) (r message, size int64, err error) {
	a, err := s.awaitRequest(stream.Context())
	if err != nil {
		return r, 0, err
	}
	var req request
	defer req.free()
	if err = stream.RecvMsg(&req); err == nil {
		size = int64(len(req.body))
		r = message{dynamicpb.NewMessage(in)}
		if proto.Unmarshal(req.body, r) != nil {
			err = malformed(wire.ErrMalformed)
		}
	}
	if err != nil {
		s.arrived(a, 0)
		return r, 0, err
	}
	s.arrived(a, size)
	return r, size, nil
}

// waiterBytes is about what a waiting call holds beside its request.
const waiterBytes = 16 << 10

// wait runs h, which may wait, with a context that ends with the member as well.
func (s lines) wait(stream grpc.ServerStream, size int64, h func(context.Context) error) error {
	size = waiterBytes + 2*size
	if err := s.inLine.take(stream.Context(), size); err != nil {
		return err
	}
	defer s.inLine.give(size)
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	open := &openStream{cancel: cancel}
	if err := s.open(open); err != nil {
		return err
	}
	defer s.closed(open)
	err := h(ctx)
	if err != nil && ctx.Err() != nil && stream.Context().Err() == nil {
		return context.Cause(ctx)
	}
	return err
}

// lineError makes err what clients get. etcd runs these services on its client library,
// whose errors have lost their code: they come as Unknown with the right text. Here it is
// the same, but that errors which another member may not give keep the code that says so.
func lineError(err error) error {
	err = toWire(err)
	switch status.Code(err) {
	case codes.OK, codes.Canceled, codes.DeadlineExceeded, codes.Unavailable, codes.Internal:
		return err
	}
	return status.Error(codes.Unknown, status.Convert(err).Message())
}
