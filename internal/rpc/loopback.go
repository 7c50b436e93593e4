package rpc

import (
	"context"
	"net"
	"sync"

	"quorate/internal/kv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// loopback is the JSON gateway's way to the services. A unary call runs its handler as
// gRPC would, on behalf of the HTTP client's connection. Streams, which hold little at a
// time, go through a gRPC connection.
type loopback struct {
	*grpc.ClientConn // to this server
	services         *services

	ctx    context.Context // ends calls when the server does not wait for them any more
	cancel context.CancelFunc
	mu     sync.Mutex
	calls  sync.WaitGroup
	closed bool
}

func newLoopback(s *services, conn *grpc.ClientConn) *loopback {
	l := &loopback{ClientConn: conn, services: s}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l
}

// unaryMethod is a unary method as it was registered, with the gate.
type unaryMethod struct {
	impl   any
	handle grpc.StreamHandler
}

// Invoke implements grpc.ClientConnInterface. Its context is that of a jsonCall.
func (l *loopback) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	m, ok := l.services.unary[method]
	if !ok {
		return status.Errorf(codes.Unimplemented, "unknown method %s", method)
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
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(l.ctx, cancel)()

	call := callOf(ctx)
	call.body.give()
	md, _ := metadata.FromOutgoingContext(ctx)
	stream := &loopStream{
		ctx:   peer.NewContext(metadata.NewIncomingContext(ctx, md), &peer.Peer{Addr: &jsonAddr{call.remote(), call}}),
		codec: codec{&l.services.met.ClientBytesReceived, &l.services.met.ClientBytesSent},
		body:  body,
		reply: reply.(proto.Message),
		call:  call,
	}
	// In a goroutine of its own, where a panic ends the process: net/http would hide it.
	done := make(chan error)
	go func() { done <- m.handle(m.impl, stream) }()
	err = <-done
	if _, known := status.FromError(err); !known {
		err = status.FromContextError(err).Err()
	}
	if err == nil {
		for _, o := range opts {
			if h, ok := o.(grpc.HeaderCallOption); ok {
				*h.HeaderAddr = metadata.Pairs("content-type", "application/grpc") // as from gRPC; the gateway shows it
			}
		}
	}
	return err
}

// NewStream implements grpc.ClientConnInterface. Its context is that of a jsonCall.
func (l *loopback) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := l.ClientConn.NewStream(ctx, desc, method, opts...)
	if err != nil {
		return nil, err
	}
	return &loopClientStream{s, callOf(ctx)}, nil
}

// loopClientStream is a stream as the gateway sees it.
type loopClientStream struct {
	grpc.ClientStream
	call *jsonCall
}

// SendMsg sends what was read of the body.
func (s *loopClientStream) SendMsg(m any) error {
	s.call.body.give()
	return s.ClientStream.SendMsg(m)
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

// close lets no more calls in and returns when those under way are over, to which end it
// breaks them off when ctx is done.
func (l *loopback) close(ctx context.Context) {
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	stop := context.AfterFunc(ctx, l.cancel)
	l.calls.Wait()
	stop()
	l.cancel()
	_ = l.ClientConn.Close() // only reports that it is closed already
}

// jsonAddr is the client's address in a call of the gateway. It is how the call finds
// what it is charged to.
type jsonAddr struct {
	net.Addr
	call *jsonCall
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
	if err := s.call.hold(s.ctx, data, int64(n)); err != nil {
		return err
	}
	whole := data.MaterializeToBuffer(chunks)
	defer whole.Free()
	return proto.Unmarshal(whole.ReadOnlyData(), s.reply)
}

// The services send no metadata.

func (s *loopStream) SetHeader(metadata.MD) error  { return nil }
func (s *loopStream) SendHeader(metadata.MD) error { return nil }
func (s *loopStream) SetTrailer(metadata.MD)       {}
