// Package hostile does to a server what a client should not: it asks for more than it
// reads, begins what it does not end, and sends what makes no sense. Meanwhile another
// client writes, and must not notice; and the server's memory must stay within bounds.
//
//	go test ./hostile                                about three minutes
//	go test ./hostile -v -args -strength 10          ten times as much of everything
//	go test ./hostile -v -args -referee              the same against etcd, for comparison
package hostile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// rawConn is an HTTP/2 connection that is in our hands frame by frame. What the server
// sends is read and dropped, but that pings and settings are acknowledged.
type rawConn struct {
	net.Conn
	mu      sync.Mutex // while frames are written
	framer  *http2.Framer
	headers bytes.Buffer
	enc     *hpack.Encoder
	next    uint32 // stream

	done chan struct{} // closed when the server has ended the connection
}

// dialRaw connects to a server. window is that of each stream, for what the server sends.
func dialRaw(addr string, window uint32) (*rawConn, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	r := &rawConn{Conn: c, framer: http2.NewFramer(c, c), next: 1, done: make(chan struct{})}
	r.enc = hpack.NewEncoder(&r.headers)
	r.framer.AllowIllegalWrites = true
	if _, err := c.Write([]byte(http2.ClientPreface)); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	if err := r.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window}); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	go r.read()
	return r, nil
}

// read ends with the connection.
func (r *rawConn) read() {
	defer close(r.done)
	for {
		f, err := r.framer.ReadFrame()
		if err != nil {
			return
		}
		r.mu.Lock()
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				err = r.framer.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				err = r.framer.WritePing(true, f.Data)
			}
		}
		r.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// open begins a call of a method, and returns its stream.
func (r *rawConn) open(method string, more ...hpack.HeaderField) (uint32, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.headers.Reset()
	for _, f := range append([]hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: method},
		{Name: ":authority", Value: "hostile"}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
	}, more...) {
		if err := r.enc.WriteField(f); err != nil {
			return 0, err
		}
	}
	id := r.next
	r.next += 2
	const frame = 16 << 10
	block := r.headers.Bytes()
	first := block[:min(len(block), frame)]
	rest := block[len(first):]
	if err := r.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: first, EndHeaders: len(rest) == 0}); err != nil {
		return 0, err
	}
	for len(rest) > 0 {
		n := min(len(rest), frame)
		if err := r.framer.WriteContinuation(id, len(rest) == n, rest[:n]); err != nil {
			return 0, err
		}
		rest = rest[n:]
	}
	return id, nil
}

// frame writes frames.
func (r *rawConn) frame(write func(*http2.Framer) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return write(r.framer)
}

// send sends bytes on a stream, whatever the server's windows say.
func (r *rawConn) send(stream uint32, b []byte, end bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		n := min(len(b), 16<<10)
		if err := r.framer.WriteData(stream, end && n == len(b), b[:n]); err != nil {
			return err
		}
		if b = b[n:]; len(b) == 0 {
			return nil
		}
	}
}

// message is b as gRPC frames it.
func message(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(b))), b...)
}

// announce is the beginning of a message of n bytes.
func announce(n int) []byte { return binary.BigEndian.AppendUint32([]byte{0}, uint32(n)) }
