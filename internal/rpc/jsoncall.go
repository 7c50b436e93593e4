package rpc

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"sync/atomic"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
)

// What a client can make the JSON gateway hold is bounded like what gRPC clients can:
//
//   - The body of a unary call is a request that is awaited until it has come whole; then
//     it is charged, with what the message may take that is read from it, until there is
//     that message. The handler charges the message as if it had come then.
//   - The body of a stream is read message by message, and may be as long as a body may be
//     for each of them.
//   - Replies have a memory of their own, so that those of gRPC do not wait for JSON. A
//     reply is charged with copies while it is built, since it is then decoded and encoded
//     anew; the JSON of it is charged until all is written. Of large replies JSON is made
//     of a few at a time: what that takes depends on what is in them.

const (
	// jsonBytes is more than a byte of a message takes in JSON, base64 and some space included.
	jsonBytes = 2
	// jsonObjectBytes is more than an object or a list's element takes in a message.
	jsonObjectBytes = 128
	// jsonCopies is how many bytes a byte of a reply takes beside itself until JSON is made.
	jsonCopies = 4
	// jsonLarge is from how many bytes on a reply is large, jsonMakers of how many of those
	// JSON is made at a time.
	jsonLarge  = 1 << 20
	jsonMakers = 2
	// jsonPiece is how many bytes of JSON are written between two looks at the pace.
	jsonPiece = 32 << 10
)

// jsonStreams are the paths whose body is a stream of messages.
var jsonStreams = map[string]bool{"/v3/watch": true, "/v3/lease/keepalive": true}

// jsonCall is what a call of the gateway holds.
type jsonCall struct {
	s    *services
	conn *conn // nil: it came another way
	body jsonBody

	account *account
	reply   mem.BufferSlice // charged to account until JSON is made of it
	making  int64           // bytes of reply
	maker   bool            // whether it is one of the jsonMakers
}

type jsonCallKey struct{}

func newJSONCall(s *services, r *http.Request) (*jsonCall, *http.Request) {
	c := &jsonCall{s: s, conn: connOf(r.Context()), account: &s.otherJSON}
	if c.conn != nil {
		c.account = &c.conn.json
	}
	c.body.s, c.body.from = s, r.Body
	return c, r.WithContext(context.WithValue(r.Context(), jsonCallKey{}, c))
}

// callOf is the call with that context.
func callOf(ctx context.Context) *jsonCall { return ctx.Value(jsonCallKey{}).(*jsonCall) }

// remote is the client's address.
func (c *jsonCall) remote() net.Addr {
	if c.conn == nil {
		return inProcess{}
	}
	return &c.conn.addr
}

// hold takes over a reply of n bytes, and returns when JSON may be made of it.
func (c *jsonCall) hold(ctx context.Context, reply mem.BufferSlice, n int64) error {
	c.reply, c.making = reply, n
	c.account.make(n)
	if n < jsonLarge {
		return nil
	}
	select {
	case c.s.jsonMakers <- struct{}{}:
		c.maker = true
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// made gives back what the reply took of which JSON was made.
func (c *jsonCall) made() {
	if c.making > 0 {
		c.account.make(-c.making)
	}
	c.reply.Free()
	c.reply, c.making = nil, 0
	if c.maker {
		<-c.s.jsonMakers
		c.maker = false
	}
}

// end gives back what is still held.
func (c *jsonCall) end() {
	c.made()
	c.body.give()
}

// jsonBody is the body of a request.
type jsonBody struct {
	s    *services
	from io.ReadCloser

	received bool   // as the body of a unary call
	data     []byte // of that, what was not read
	charged  int64

	read atomic.Int64 // of a stream, bytes since the last message
}

func (b *jsonBody) limit() int64 { return jsonBytes * b.s.requestMax }

func (b *jsonBody) tooLarge() error {
	return status.Errorf(codes.ResourceExhausted, "the request is larger than %d bytes of JSON", b.limit())
}

// receive reads all of a unary call's body.
func (b *jsonBody) receive(ctx context.Context) error {
	b.received = true
	a, err := b.s.awaitRequest(ctx)
	if err != nil {
		return toWire(err)
	}
	data, err := io.ReadAll(io.LimitReader(b.from, b.limit()+1))
	size := int64(len(data))
	if err != nil || size > b.limit() {
		size = 0
	}
	b.s.arrived(a, size)
	b.charged = size
	switch {
	case err != nil:
		return status.Error(codes.InvalidArgument, err.Error())
	case size < int64(len(data)):
		return b.tooLarge()
	}
	objects := jsonObjectBytes * int64(bytes.Count(data, []byte{'{'})+bytes.Count(data, []byte{','}))
	if err := b.s.requests.take(ctx, objects); err != nil {
		return toWire(err)
	}
	b.charged += objects
	b.data = data
	return nil
}

// Read reads what was received, or of a stream.
func (b *jsonBody) Read(p []byte) (int, error) {
	if b.received {
		if len(b.data) == 0 {
			return 0, io.EOF
		}
		n := copy(p, b.data)
		b.data = b.data[n:]
		return n, nil
	}
	left := b.limit() - b.read.Load()
	if left <= 0 {
		return 0, b.tooLarge()
	}
	n, err := b.from.Read(p[:min(int64(len(p)), left)])
	b.read.Add(int64(n))
	return n, err
}

func (b *jsonBody) Close() error { return b.from.Close() }

// give gives back what the body took of which there is a message now.
func (b *jsonBody) give() {
	b.read.Store(0)
	if b.charged > 0 {
		b.s.requests.give(b.charged)
		b.data, b.charged = nil, 0
	}
}

// jsonWriter writes the reply to a call.
type jsonWriter struct {
	http.ResponseWriter
	call *jsonCall
}

// Unwrap is for http.ResponseController, which flushes the lines of a stream.
func (w *jsonWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Write is given the reply of a unary call in one piece. That a client has gone before it
// had read that is nobody's error.
func (w *jsonWriter) Write(b []byte) (n int, err error) {
	c := w.call
	if len(c.reply) == 0 {
		return w.ResponseWriter.Write(b)
	}
	c.account.hold(int64(len(b)))
	defer c.account.back(int64(len(b)))
	c.made()
	for n < len(b) {
		m, err := w.ResponseWriter.Write(b[n:min(n+jsonPiece, len(b))])
		if err != nil {
			break
		}
		n += m
		c.account.progress(int64(m))
	}
	return len(b), nil
}
