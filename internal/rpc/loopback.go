package rpc

import (
	"context"
	"sync"

	"quorate/internal/kv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// loopback is the JSON gateway's way to the services. A unary call runs its handler as
// gRPC would, with the connection of the HTTP client as its own: that is charged for the
// request and the reply, and closed if it stalls others. Streams, which hold little at a
// time, go through a gRPC connection.
type loopback struct {
	*grpc.ClientConn // to this server
	services         *services

	mu     sync.Mutex
	calls  sync.WaitGroup
	closed bool
}

// unaryMethod is a unary method as it was registered, with the gate.
type unaryMethod struct {
	impl   any
	handle grpc.StreamHandler
}

// jsonCall is what a call of the gateway holds until its reply is written as JSON.
type jsonCall struct {
	reply   mem.BufferSlice // charged to account until freed
	account *account
	making  int64 // bytes of the reply, until JSON is made of it
}

// hold takes over the parts of a reply of n bytes.
func (c *jsonCall) hold(reply mem.BufferSlice, n int64) {
	c.reply, c.making = reply, n
	c.account.make(n)
}

// free gives parts of the reply back until no more than left are there.
func (c *jsonCall) free(left int) {
	for len(c.reply) > left {
		c.reply[0].Free()
		c.reply = c.reply[1:]
	}
}

// made says that the client can read the reply from now on.
func (c *jsonCall) made() {
	if c.making > 0 {
		c.account.make(-c.making)
		c.making = 0
	}
}

type jsonCallKey struct{}

// Invoke implements grpc.ClientConnInterface.
func (l *loopback) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	m, ok := l.services.unary[method]
	if !ok {
		return l.ClientConn.Invoke(ctx, method, args, reply, opts...)
	}
	body, err := proto.Marshal(args.(proto.Message))
	if err != nil {
		return status.Errorf(codes.Internal, "grpc: error while marshaling: %v", err)
	}
	if int64(len(body)) > l.services.requestMax {
		return status.Errorf(codes.ResourceExhausted, "grpc: received message larger than max (%d vs. %d)", len(body), l.services.requestMax)
	}
	if err := l.begin(); err != nil {
		return toWire(err)
	}
	defer l.calls.Done()
	md, _ := metadata.FromOutgoingContext(ctx)
	stream := &loopStream{
		ctx:   metadata.NewIncomingContext(ctx, md),
		codec: codec{&l.services.met.ClientBytesReceived, &l.services.met.ClientBytesSent},
		body:  body,
		reply: reply.(proto.Message),
		call:  ctx.Value(jsonCallKey{}).(*jsonCall),
	}
	// In a goroutine of its own, where a panic ends the process: net/http would hide it.
	done := make(chan error)
	go func() { done <- m.handle(m.impl, stream) }()
	err = <-done
	if _, known := status.FromError(err); !known {
		err = status.FromContextError(err).Err()
	}
	return err
}

// begin lets a call in, or returns kv.ErrStopped.
func (l *loopback) begin() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return kv.ErrStopped
	}
	l.calls.Add(1)
	return nil
}

// close lets no more calls in and returns when those under way are over.
func (l *loopback) close() {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	l.calls.Wait()
	_ = l.ClientConn.Close() // only reports that it is closed already
}

// loopStream is a unary call as its handler sees it.
type loopStream struct {
	ctx   context.Context
	codec codec
	body  []byte
	reply proto.Message
	call  *jsonCall
}

func (s *loopStream) Context() context.Context { return s.ctx }

func (s *loopStream) RecvMsg(m any) error {
	return s.codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(s.body)}, m)
}

func (s *loopStream) SendMsg(m any) error {
	data, err := s.codec.Marshal(m)
	if err != nil {
		return err
	}
	n := data.Len()
	if n > answerMax {
		data.Free()
		return status.Errorf(codes.ResourceExhausted, "trying to send message larger than max (%d vs. %d)", n, answerMax)
	}
	s.call.hold(data, int64(n))
	whole := data.MaterializeToBuffer(chunks)
	defer whole.Free()
	return proto.Unmarshal(whole.ReadOnlyData(), s.reply)
}

// The services send no metadata.

func (s *loopStream) SetHeader(metadata.MD) error  { return nil }
func (s *loopStream) SendHeader(metadata.MD) error { return nil }
func (s *loopStream) SetTrailer(metadata.MD)       {}
