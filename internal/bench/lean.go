package bench

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/url"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A leanConn makes unary gRPC calls over one HTTP/2 connection without TLS, and nothing else.
//
// It costs a third of what gRPC's own client costs, which on a machine that is shared with the server
// would be taken from the server. Calls go out together: who finds nobody writing writes what all
// have queued meanwhile. Request headers are encoded once, as references into the table that both
// ends keep, just as gRPC's client would send them; no deadline is sent.
//
// A connection that breaks fails the calls on it, and the next call dials again. call may run
// concurrently. One goroutine reads, from dial until the connection breaks or close.
type leanConn struct {
	endpoint string
	dialing  sync.Mutex // held while dialing; taken before mu

	mu      sync.Mutex
	link    *leanLink // nil: not connected
	closed  bool
	readers sync.WaitGroup
}

// A leanLink is a connection while it lasts. All fields but nc are guarded by mu.
type leanLink struct {
	nc net.Conn

	mu       sync.Mutex
	err      error // why it is broken, nil while it is not
	calls    map[uint32]*leanCall
	nextID   uint32
	pending  []byte // frames to write
	spare    []byte // memory for pending
	writing  bool
	deadline time.Time // of writes

	// Flow control of what we send. roomy is signalled when a window grows, and when err is set.
	roomy         *sync.Cond
	window        int64 // of the connection
	initialWindow int64 // of a new stream

	authority string
	enc       *hpack.Encoder
	encBuf    headerBuffer
	blocks    map[string][]byte // headers of a method, for as long as the table of enc stays as it is
}

// headerBuffer collects what an hpack.Encoder writes.
type headerBuffer struct{ b []byte }

func (h *headerBuffer) Write(p []byte) (int, error) {
	h.b = append(h.b, p...)
	return len(p), nil
}

// A leanCall is one call under way. It belongs to a caller and is used again. While it is in
// leanLink.calls, all of it but done is guarded by leanLink.mu.
type leanCall struct {
	done    chan struct{} // receives once, when the call has ended
	raw     []byte        // body of the response: messages with their prefixes
	recv    int           // bytes of the body not yet given back to the flow control window
	window  int64         // how much may be sent on the stream
	code    codes.Code
	message string
	err     error // the connection broke
}

// Sizes of HTTP/2 that we keep to.
const (
	leanFrameMax      = 16384 // of a frame's payload: what every peer must take
	leanInitialWindow = 65535 // of every flow, until told otherwise
	leanPrefix        = 5     // bytes before a gRPC message: not compressed, length
	leanHeaderTable   = 4096  // bytes of headers that the server may refer to
)

// leanWriteTimeout is what a write may take at least, before the connection counts as broken.
const leanWriteTimeout = 10 * time.Second

// errConnClosed is the error of a call after close.
var errConnClosed = status.Error(codes.Canceled, "the client connection is closing")

// newLeanConn returns a connection that is dialed by the first call.
func newLeanConn(endpoint string) *leanConn { return &leanConn{endpoint: endpoint} }

// get returns the connection, dialed if need be.
func (c *leanConn) get(ctx context.Context) (*leanLink, error) {
	if l, err := c.current(); l != nil || err != nil {
		return l, err
	}
	c.dialing.Lock()
	defer c.dialing.Unlock()
	if l, err := c.current(); l != nil || err != nil {
		return l, err // somebody else has dialed
	}
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", c.endpoint)
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	l := newLeanLink(nc, c.endpoint)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errors.Join(errConnClosed, nc.Close())
	}
	c.link = l
	c.readers.Go(func() {
		l.read()
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.link == l {
			c.link = nil
		}
	})
	return l, nil
}

func (c *leanConn) current() (*leanLink, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errConnClosed
	}
	return c.link, nil
}

// close ends the connection and returns when nothing reads from it any more.
func (c *leanConn) close() error {
	c.mu.Lock()
	c.closed = true
	l := c.link
	c.mu.Unlock()
	if l != nil {
		l.fail(errConnClosed)
	}
	c.readers.Wait()
	return nil
}

// newLeanLink starts HTTP/2 on nc.
func newLeanLink(nc net.Conn, authority string) *leanLink {
	l := &leanLink{
		nc: nc, calls: make(map[uint32]*leanCall), nextID: 1,
		window: leanInitialWindow, initialWindow: leanInitialWindow,
		authority: authority, blocks: make(map[string][]byte),
	}
	l.roomy = sync.NewCond(&l.mu)
	l.enc = hpack.NewEncoder(&l.encBuf)
	l.pending = append(l.pending, http2.ClientPreface...)
	l.pending = appendSettings(l.pending,
		http2.Setting{ID: http2.SettingEnablePush, Val: 0},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: streamWindow})
	l.pending = appendWindowUpdate(l.pending, 0, connWindow-leanInitialWindow)
	return l
}

// call sends req to method, waits for the answer at most timeout, and leaves it in resp, whose memory
// it reuses. req may be changed when call has returned. Errors are those of package status.
func (c *leanConn) call(ctx context.Context, call *leanCall, method string, req []byte, resp *[]byte, timer *time.Timer, timeout time.Duration) error {
	l, err := c.get(ctx)
	if err != nil {
		return err
	}
	*call = leanCall{done: call.done, raw: call.raw[:0]}
	id, err := l.send(call, method, req, timeout)
	if err != nil {
		return err
	}
	timer.Reset(timeout)
	defer timer.Stop()
	select {
	case <-call.done:
	case <-timer.C:
		err = status.Error(codes.DeadlineExceeded, context.DeadlineExceeded.Error())
	case <-ctx.Done():
		err = status.FromContextError(ctx.Err()).Err()
	}
	if err != nil {
		if l.abandon(id) {
			return err
		}
		<-call.done // it has ended after all
	}
	return call.result(resp)
}

// result takes the message out of an ended call.
func (c *leanCall) result(resp *[]byte) error {
	switch {
	case c.err != nil:
		return c.err
	case c.code != codes.OK:
		return status.Error(c.code, c.message)
	case len(c.raw) < leanPrefix || c.raw[0] != 0 || int(binary.BigEndian.Uint32(c.raw[1:])) != len(c.raw)-leanPrefix:
		return status.Error(codes.Internal, "malformed response")
	}
	*resp = append((*resp)[:0], c.raw[leanPrefix:]...)
	return nil
}

// send queues a request and returns its stream. When an error is returned nothing is under way.
func (l *leanLink) send(call *leanCall, method string, req []byte, timeout time.Duration) (uint32, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return 0, l.err
	}
	id := l.nextID
	if id > math.MaxInt32-2 {
		// HTTP/2 has no more streams for this connection: start another.
		l.failLocked(status.Error(codes.Unavailable, "out of stream ids"))
		return 0, l.err
	}
	l.nextID += 2
	l.calls[id] = call
	call.window = l.initialWindow

	block := l.headers(method)
	l.pending = appendFrame(l.pending, http2.FrameHeaders, http2.FlagHeadersEndHeaders, id, len(block))
	l.pending = append(l.pending, block...)
	if n := leanPrefix + len(req); n <= leanFrameMax && int64(n) <= min(l.window, call.window) {
		l.window -= int64(n)
		l.pending = appendFrame(l.pending, http2.FrameData, http2.FlagDataEndStream, id, n)
		l.pending = appendPrefix(l.pending, len(req))
		l.pending = append(l.pending, req...)
		l.flushLocked()
		return id, nil
	}
	return id, l.sendParts(id, call, append(appendPrefix(nil, len(req)), req...), timeout)
}

// sendParts sends a body that is larger than a frame, or than flow control allows now.
func (l *leanLink) sendParts(id uint32, call *leanCall, body []byte, timeout time.Duration) error {
	late := false
	t := time.AfterFunc(timeout, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		late = true
		l.roomy.Broadcast()
	})
	defer t.Stop()
	for len(body) > 0 {
		n := min(int64(len(body)), leanFrameMax, l.window, call.window)
		if n <= 0 {
			if len(l.pending) > 0 && !l.writing {
				// The lock is given up to write, and the window may have grown meanwhile.
				l.flushLocked()
				continue
			}
			l.roomy.Wait()
			if _, under := l.calls[id]; !under {
				return nil // it has ended, with an error; call will find it
			}
			if late {
				l.abandonLocked(id)
				return status.Error(codes.DeadlineExceeded, context.DeadlineExceeded.Error())
			}
			continue
		}
		l.window -= n
		call.window -= n
		var flags http2.Flags
		if int(n) == len(body) {
			flags = http2.FlagDataEndStream
		}
		l.pending = appendFrame(l.pending, http2.FrameData, flags, id, int(n))
		l.pending = append(l.pending, body[:n]...)
		body = body[n:]
	}
	l.flushLocked()
	return nil
}

// headers returns the encoded headers of a request to method.
func (l *leanLink) headers(method string) []byte {
	if b := l.blocks[method]; b != nil {
		return b
	}
	encode := func() []byte {
		l.encBuf.b = nil
		for _, f := range [...]hpack.HeaderField{
			{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "http"}, {Name: ":path", Value: method},
			{Name: ":authority", Value: l.authority}, {Name: "content-type", Value: "application/grpc"}, {Name: "te", Value: "trailers"},
		} {
			// The buffer takes whatever is written to it.
			_ = l.enc.WriteField(f)
		}
		return l.encBuf.b
	}
	// The first time puts the fields into the table, which moves those of other methods; from the
	// second time on the headers are references that stay the same until that happens again.
	first := encode()
	clear(l.blocks)
	l.blocks[method] = encode()
	return first
}

// flushLocked writes what is pending, unless somebody is at it already, who then writes this too.
func (l *leanLink) flushLocked() {
	if l.writing {
		return
	}
	l.writing = true
	if len(l.calls) > 1 {
		// Let others that are about to send join in: one write for many is what saves time.
		l.mu.Unlock()
		runtime.Gosched()
		l.mu.Lock()
	}
	for len(l.pending) > 0 && l.err == nil {
		buf := l.pending
		l.pending = l.spare[:0]
		err := l.extendDeadline()
		l.mu.Unlock()
		if err == nil {
			_, err = l.nc.Write(buf)
		}
		l.mu.Lock()
		l.spare = buf
		if err != nil {
			l.failLocked(status.Error(codes.Unavailable, err.Error()))
		}
	}
	l.writing = false
}

// extendDeadline gives a write leanWriteTimeout or more. It keeps a server that reads nothing from
// holding up a caller for good.
func (l *leanLink) extendDeadline() error {
	now := time.Now()
	if l.deadline.Sub(now) > leanWriteTimeout {
		return nil
	}
	l.deadline = now.Add(2 * leanWriteTimeout)
	return l.nc.SetWriteDeadline(l.deadline)
}

// abandon gives a call up, and returns false if it has ended already.
func (l *leanLink) abandon(id uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.abandonLocked(id)
}

func (l *leanLink) abandonLocked(id uint32) bool {
	if _, under := l.calls[id]; !under {
		return false
	}
	delete(l.calls, id)
	l.pending = appendFrame(l.pending, http2.FrameRSTStream, 0, id, 4)
	l.pending = binary.BigEndian.AppendUint32(l.pending, uint32(http2.ErrCodeCancel))
	l.flushLocked()
	return true
}

// fail ends the connection and all calls on it. The first error stays.
func (l *leanLink) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failLocked(err)
}

func (l *leanLink) failLocked(err error) {
	if l.err != nil {
		return
	}
	l.err = err
	// That is how the reader learns of it. The connection is of no more use, however it closes.
	_ = l.nc.Close()
	for id, c := range l.calls {
		delete(l.calls, id)
		c.err = err
		c.done <- struct{}{}
	}
	l.roomy.Broadcast()
}

// read takes frames until the connection breaks.
func (l *leanLink) read() {
	fr := http2.NewFramer(io.Discard, bufio.NewReaderSize(l.nc, 64<<10))
	fr.SetReuseFrames()
	r := &leanReader{l: l}
	r.dec = hpack.NewDecoder(leanHeaderTable, r.field)
	for {
		f, err := fr.ReadFrame()
		if err == nil {
			err = r.frame(f)
		}
		if err != nil {
			l.fail(status.Error(codes.Unavailable, "connection: "+err.Error()))
			return
		}
	}
}

// A leanReader is the state of a reader between frames. Only the reader uses it.
type leanReader struct {
	l   *leanLink
	dec *hpack.Decoder

	// What the headers that are being decoded say, of their stream.
	code    codes.Code
	message string
	coded   bool // there was a status
	http    string
	ending  bool // the headers end the stream
	recv    int  // body bytes of all streams not yet given back
}

// field takes one decoded header.
func (r *leanReader) field(f hpack.HeaderField) {
	switch f.Name {
	case ":status":
		r.http = f.Value
	case "grpc-status":
		n, err := strconv.ParseUint(f.Value, 10, 32)
		if err != nil {
			n = uint64(codes.Unknown)
		}
		r.code, r.coded = codes.Code(n), true
	case "grpc-message":
		// Percent-encoded; what is not is taken as it stands.
		if r.message = f.Value; len(f.Value) > 0 {
			if s, err := url.PathUnescape(f.Value); err == nil {
				r.message = s
			}
		}
	}
}

// frame acts on one frame.
func (r *leanReader) frame(f http2.Frame) error {
	l := r.l
	l.mu.Lock()
	defer l.mu.Unlock()
	id := f.Header().StreamID
	switch f := f.(type) {
	case *http2.DataFrame:
		return r.data(f)
	case *http2.HeadersFrame:
		r.code, r.message, r.coded, r.http, r.ending = 0, "", false, "", f.StreamEnded()
		return r.block(id, f.HeaderBlockFragment(), f.HeadersEnded())
	case *http2.ContinuationFrame:
		return r.block(id, f.HeaderBlockFragment(), f.HeadersEnded())
	case *http2.RSTStreamFrame:
		l.endLocked(id, codes.Unavailable, "stream terminated by RST_STREAM with error code: "+f.ErrCode.String())
	case *http2.SettingsFrame:
		return r.settings(f)
	case *http2.PingFrame:
		if !f.IsAck() {
			l.pending = appendFrame(l.pending, http2.FramePing, http2.FlagPingAck, 0, len(f.Data))
			l.pending = append(l.pending, f.Data[:]...)
			l.flushLocked()
		}
	case *http2.WindowUpdateFrame:
		if id == 0 {
			l.window += int64(f.Increment)
		} else if c := l.calls[id]; c != nil {
			c.window += int64(f.Increment)
		}
		l.roomy.Broadcast()
	case *http2.GoAwayFrame:
		return fmt.Errorf("server goes away: %v %s", f.ErrCode, f.DebugData())
	}
	return nil
}

// data takes a part of a body, and gives back window to the server in large steps.
func (r *leanReader) data(f *http2.DataFrame) error {
	l, id := r.l, f.StreamID
	n := int(f.Length)
	if r.recv += n; r.recv >= connWindow/2 {
		l.pending = appendWindowUpdate(l.pending, 0, uint32(r.recv))
		r.recv = 0
		l.flushLocked()
	}
	c := l.calls[id]
	if c == nil {
		return nil // given up
	}
	c.raw = append(c.raw, f.Data()...)
	if f.StreamEnded() {
		l.endLocked(id, codes.Internal, "server closed the stream without sending trailers")
		return nil
	}
	if c.recv += n; c.recv >= streamWindow/2 {
		l.pending = appendWindowUpdate(l.pending, id, uint32(c.recv))
		c.recv = 0
		l.flushLocked()
	}
	return nil
}

// block decodes a part of headers, which must be done even for a call that was given up.
func (r *leanReader) block(id uint32, fragment []byte, last bool) error {
	if _, err := r.dec.Write(fragment); err != nil {
		return fmt.Errorf("decode headers: %w", err)
	}
	if !last {
		return nil
	}
	if err := r.dec.Close(); err != nil {
		return fmt.Errorf("decode headers: %w", err)
	}
	switch {
	case !r.ending:
	case r.coded:
		r.l.endLocked(id, r.code, r.message)
	default:
		r.l.endLocked(id, codes.Unknown, "no gRPC status; HTTP status "+r.http)
	}
	return nil
}

// settings follows what the server asks for.
func (r *leanReader) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		return nil
	}
	l := r.l
	err := f.ForeachSetting(func(s http2.Setting) error {
		switch s.ID {
		case http2.SettingInitialWindowSize:
			grow := int64(s.Val) - l.initialWindow
			l.initialWindow = int64(s.Val)
			for _, c := range l.calls {
				c.window += grow
			}
			l.roomy.Broadcast()
		case http2.SettingHeaderTableSize:
			l.enc.SetMaxDynamicTableSizeLimit(s.Val)
			clear(l.blocks)
		}
		return nil
	})
	if err != nil {
		return err
	}
	l.pending = appendFrame(l.pending, http2.FrameSettings, http2.FlagSettingsAck, 0, 0)
	l.flushLocked()
	return nil
}

// endLocked ends a call, if it is still under way.
func (l *leanLink) endLocked(id uint32, code codes.Code, message string) {
	c := l.calls[id]
	if c == nil {
		return
	}
	delete(l.calls, id)
	c.code, c.message = code, message
	c.done <- struct{}{}
}

// appendFrame appends the header of a frame with n bytes of payload.
func appendFrame(b []byte, kind http2.FrameType, flags http2.Flags, id uint32, n int) []byte {
	b = append(b, byte(n>>16), byte(n>>8), byte(n), byte(kind), byte(flags))
	return binary.BigEndian.AppendUint32(b, id)
}

func appendSettings(b []byte, settings ...http2.Setting) []byte {
	b = appendFrame(b, http2.FrameSettings, 0, 0, 6*len(settings))
	for _, s := range settings {
		b = binary.BigEndian.AppendUint16(b, uint16(s.ID))
		b = binary.BigEndian.AppendUint32(b, s.Val)
	}
	return b
}

func appendWindowUpdate(b []byte, id, n uint32) []byte {
	b = appendFrame(b, http2.FrameWindowUpdate, 0, id, 4)
	return binary.BigEndian.AppendUint32(b, n)
}

// appendPrefix appends what goes before a gRPC message of n bytes.
func appendPrefix(b []byte, n int) []byte {
	b = append(b, 0)
	return binary.BigEndian.AppendUint32(b, uint32(n))
}
