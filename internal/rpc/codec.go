package rpc

import (
	"fmt"

	"quorate/internal/metrics"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
)

// codec is the server's only codec, whatever content subtype a client names: it passes
// what is in wire form already, in both directions, and leaves the rest to protobuf-go.
// It counts the bytes of all messages.
type codec struct {
	received, sent *metrics.Counter
}

// Name implements encoding.CodecV2.
func (codec) Name() string { return "proto" }

// Marshal takes a *reply (whose parts it takes over), a Frame (whose parts must not
// change any more) or a proto.Message.
func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	var out mem.BufferSlice
	switch m := v.(type) {
	case *reply:
		out = m.take()
	case framed:
		prefix := mem.SliceBuffer(m.prefix())
		out = append(mem.BufferSlice{prefix}, m.take()...)
	case Frame:
		out = make(mem.BufferSlice, len(m))
		for i, part := range m {
			out[i] = mem.SliceBuffer(part)
		}
	case proto.Message:
		b, err := proto.Marshal(m)
		if err != nil {
			return nil, err
		}
		out = mem.BufferSlice{mem.SliceBuffer(b)}
	default:
		return nil, fmt.Errorf("cannot send a %T", v)
	}
	c.sent.Add(uint64(out.Len()))
	return out, nil
}

// Unmarshal fills a *request with the message's bytes as they are, or a proto.Message.
func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	c.received.Add(uint64(data.Len()))
	switch m := v.(type) {
	case *request:
		m.set(data)
		return nil
	case proto.Message:
		buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
		defer buf.Free()
		return proto.Unmarshal(buf.ReadOnlyData(), m)
	}
	return fmt.Errorf("cannot receive a %T", v)
}

// request is a request message in wire form, held until free.
type request struct {
	body []byte
	buf  mem.Buffer
}

func (r *request) set(data mem.BufferSlice) {
	r.free()
	r.buf = data.MaterializeToBuffer(mem.DefaultBufferPool())
	r.body = r.buf.ReadOnlyData()
}

func (r *request) free() {
	if r.buf != nil {
		r.buf.Free()
		r.buf, r.body = nil, nil
	}
}
