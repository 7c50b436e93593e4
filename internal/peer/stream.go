package peer

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// outbox is what waits to be written to one kind of stream.
type outbox struct {
	r    *remote
	kind kind

	mu     sync.Mutex
	stream *stream           // nil: none stands, nothing is taken
	urgent []*raftpb.Message // carry no entries, and go first
	bulk   []*raftpb.Message
	bytes  int // of both
}

// stream is a connection that the other member has dialed to read from.
type stream struct {
	conn  net.Conn
	begun time.Time
	wake  chan struct{} // something waits, or the stream has ended
	done  chan struct{} // closed when it has ended
	once  sync.Once
	why   error // set before done is closed
}

func newStream(conn net.Conn) *stream {
	s := &stream{conn: conn, begun: time.Now(), wake: make(chan struct{}, 1), done: make(chan struct{})}
	s.wake <- struct{}{} // for what the stream before it has left
	return s
}

// end ends the stream; only the first reason counts.
func (s *stream) end(why error) {
	s.once.Do(func() {
		if err := s.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			why = errors.Join(why, err)
		}
		s.why = why
		close(s.done)
	})
}

func (o *outbox) init(r *remote, k kind) { o.r, o.kind = r, k }

// put queues m. stands is false if there is no stream, taken if it was queued.
func (o *outbox) put(m *raftpb.Message) (taken, stands bool) {
	w := weight(m)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stream == nil {
		return false, false
	}
	if len(o.urgent)+len(o.bulk) >= o.r.t.o.QueueMessages || o.bytes+w > o.r.t.o.QueueBytes && o.bytes > 0 {
		return false, true
	}
	o.bytes += w
	if len(m.Entries) == 0 && m.GetType() != raftpb.MsgApp {
		o.urgent = append(o.urgent, m)
	} else {
		o.bulk = append(o.bulk, m)
	}
	select {
	case o.stream.wake <- struct{}{}:
	default:
	}
	return true, true
}

// batchBytes is about how much goes out in one write, so that urgent messages wait for no
// more than that.
const batchBytes = 256 << 10

// take moves the next batch of messages to ms, nil if s is not the outbox's stream.
// empty is true if nothing is left.
func (o *outbox) take(s *stream, ms []*raftpb.Message) (_ []*raftpb.Message, empty bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stream != s {
		return ms, true
	}
	ms = append(ms, o.urgent...)
	clear(o.urgent)
	o.urgent = o.urgent[:0]
	size := 0
	for _, m := range ms {
		size += weight(m)
	}
	n := 0
	for n < len(o.bulk) && size < batchBytes {
		size += weight(o.bulk[n])
		n++
	}
	ms = append(ms, o.bulk[:n]...)
	left := copy(o.bulk, o.bulk[n:])
	clear(o.bulk[left:])
	o.bulk = o.bulk[:left]
	o.bytes -= size
	return ms, left == 0
}

// attach makes s the outbox's stream in place of the one before.
func (o *outbox) attach(s *stream) {
	o.mu.Lock()
	old := o.stream
	o.stream = s
	o.mu.Unlock()
	if old != nil {
		old.end(errReplaced)
	}
}

// detach takes s away if it is still the outbox's stream, and drops what waits.
func (o *outbox) detach(s *stream) (dropped int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.stream != s {
		return 0
	}
	dropped = len(o.urgent) + len(o.bulk)
	o.stream, o.urgent, o.bulk, o.bytes = nil, nil, nil, 0
	return dropped
}

// breakOff ends the stream, if there is one.
func (o *outbox) breakOff(why error) {
	o.mu.Lock()
	s := o.stream
	o.mu.Unlock()
	if s != nil {
		s.end(why)
	}
}

// serve makes conn the outbox's stream and writes to it until it ends. The goroutine of
// the request that asked for the stream calls it; quorate is who asked.
func (o *outbox) serve(conn net.Conn, quorate bool) {
	r := o.r
	s := newStream(conn)
	o.attach(s)
	if !r.t.run(s.watch) {
		s.end(errClosed)
	}
	r.stood(quorate)
	if o.kind == streamMessage {
		r.t.h.Connected(r.id)
	}
	r.redial() // who dials can be dialed

	unsent, err := o.write(s)
	s.end(err)
	// Even if nothing is dropped here, what the kernel still held may be lost.
	r.lost(o.detach(s) + unsent)
	r.ended(s.why)
	r.redial()
	if r.ctx.Err() == nil {
		r.t.log.Warn("lost a stream to a peer", "remote-peer-id", r.idStr, "stream", o.kind.String(), "error", s.why)
	}
}

// watch ends the stream when the other side closes it. Nothing is ever read from it.
func (s *stream) watch() {
	var b [1]byte
	n, err := s.conn.Read(b[:])
	if n > 0 {
		err = errors.New("peer: data on a stream that is only written")
	}
	s.end(err)
}

// chunkHead is room for a chunk's length in eight digits and its line end.
const chunkHead = 8 + 2

// bufferKeep is the largest buffer that a stream keeps between writes.
const bufferKeep = 1 << 20

// write writes what comes into the outbox until the stream ends, and returns why, and how
// many messages it had taken and not written.
func (o *outbox) write(s *stream) (unsent int, err error) {
	r := o.r
	enc := encoder{kind: o.kind}
	heartbeat := time.NewTicker(r.t.o.beat())
	defer heartbeat.Stop()
	var ms []*raftpb.Message
	var buf []byte
	for {
		tick := false
		select {
		case <-s.wake:
		case <-heartbeat.C:
			tick = true
		case <-s.done:
			return 0, s.why
		case <-r.ctx.Done():
			return 0, errClosed
		}
		for empty := false; !empty; {
			ms, empty = o.take(s, ms[:0])
			buf = append(buf[:0], make([]byte, chunkHead)...)
			for _, m := range ms {
				if buf, err = enc.append(buf, m); err != nil {
					return len(ms), err
				}
			}
			if len(ms) == 0 {
				if !tick {
					continue
				}
				buf = enc.heartbeat(buf)
			}
			tick = false
			if err := writeChunk(s.conn, buf, r.t.o.ReadTimeout); err != nil {
				return len(ms), err
			}
			clear(ms) // free them before the next come
			r.count.sentBytes.Add(uint64(len(buf) - chunkHead))
			if empty {
				r.sent()
			}
		}
		if cap(buf) > bufferKeep {
			buf = nil
		}
	}
}

// writeChunk writes buf, which begins with room for its length, as one chunk of an HTTP
// body. Its length has leading zeros, which HTTP allows. limit is for each half megabyte.
func writeChunk(conn net.Conn, buf []byte, limit time.Duration) error {
	copy(buf, fmt.Appendf(make([]byte, 0, chunkHead), "%08x\r\n", len(buf)-chunkHead))
	for buf = append(buf, '\r', '\n'); len(buf) > 0; {
		if err := conn.SetWriteDeadline(time.Now().Add(limit)); err != nil {
			return err
		}
		n, err := conn.Write(buf[:min(len(buf), 2*batchBytes)])
		if err != nil {
			return err
		}
		buf = buf[n:]
	}
	return nil
}
