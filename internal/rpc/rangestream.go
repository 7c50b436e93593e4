package rpc

import (
	"bytes"
	"encoding/binary"
	"sync"
	"time"

	"quorate/internal/kv"
	"quorate/internal/mvcc"
	"quorate/internal/wire"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// viewHold is how long a RangeStream reads from one view.
const viewHold = 5 * time.Second

// chunkKeys is how many keys the first message of a RangeStream holds.
const chunkKeys = 10

// rangeStream is KV.RangeStream: a Range whose response comes in pieces that, merged,
// are the response of a Range. All pieces are read at the revision that the store had at
// the first; only the last has the header, the count and more.
//
// The pieces are read from one view, in which what comes after a piece is counted without
// a walk. A client that takes longer than viewHold to read its pieces gets the rest from
// later views, so that it keeps nothing alive; if the revision has been compacted by
// then, the stream ends with that error.
func (k kvService) rangeStream(stream grpc.ServerStream, c *call) error {
	r := &c.rng
	if err := wire.DecodeRange(c.body, r); err != nil {
		return malformed(err)
	}
	if err := checkRangeStream(r); err != nil {
		return err
	}
	if err := k.mayRead(r.Serializable); err != nil {
		return err
	}
	if err := k.readable(stream.Context(), r.Serializable); err != nil {
		return err
	}
	permit, err := k.permitRead(stream.Context(), r.Span)
	if err != nil {
		return err
	}
	p := pieces{kvService: k, permit: permit, stream: stream, c: c, left: r.Limit, size: chunkKeys}
	expiry := time.AfterFunc(viewHold, p.release)
	defer p.release()
	defer expiry.Stop()
	for {
		done, err := p.send(r)
		if done || err != nil {
			return err
		}
	}
}

func checkRangeStream(r *kv.Range) error {
	if err := checkRange(r); err != nil {
		return err
	}
	// etcd also lets pass a target other than the key in no order, and then goes on from
	// the wrong key. Whoever asks for an order gets none here.
	if r.Sorted() {
		return status.Error(codes.Unimplemented, "RangeStream does not support custom sort orders")
	}
	if r.Filtered() {
		return status.Error(codes.Unimplemented, "RangeStream does not support revision filters")
	}
	return nil
}

// pieces sends a RangeStream piece by piece.
type pieces struct {
	kvService
	stream grpc.ServerStream
	c      *call
	permit check

	left  int64  // keys that the client's limit leaves; 0: no limit
	size  int64  // keys of the next piece
	count int64  // keys sent
	rev   int64  // of the store at the first piece
	last  []byte // key sent

	mu      sync.Mutex // while the view is read
	view    *mvcc.View // nil: not taken yet, or released
	expired bool       // the view is not to be kept any more
}

// send sends the next piece and moves r behind it.
func (p *pieces) send(r *kv.Range) (done bool, err error) {
	b := &p.c.reply
	b.reset(p.stream.Context(), accountOf(p.stream.Context(), p.otherAccount))
	r.Limit = p.size
	if p.left > 0 {
		r.Limit = min(r.Limit, p.left)
	}
	n, found, err := p.read(r)
	if err != nil {
		return false, err
	}
	p.count += n
	if p.left > 0 {
		p.left -= n
		done = p.left == 0
	}
	if !found.More || r.CountOnly {
		done = true
	}
	if done {
		h := p.header(p.rev)
		b.cur = wire.AppendHeader(b.room(headerMax), &h)
		// What this piece's range counts is all that was not sent before it.
		b.cur = wire.AppendRangeEnd(b.room(2*fieldOverhead), found.More, p.count-n+found.Count)
	}
	if b.err != nil {
		return false, b.err
	}
	if err := p.permit.unchanged(); err != nil {
		return false, err
	}
	size := b.size()
	if err := p.stream.SendMsg(framed{b}); err != nil || done {
		return done, err
	}
	r.Key = append(bytes.Clone(p.last), 0)
	p.size = nextSize(p.size, size, p.opts.MaxRequestBytes)
	return false, nil
}

// read appends the keys of r to the reply.
func (p *pieces) read(r *kv.Range) (n int64, found mvcc.Found, err error) {
	start := time.Now()
	defer func() { p.meter.ranged(start, err) }()
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.view
	if v == nil {
		v = p.View()
		if p.expired {
			defer v.Release()
		} else {
			p.view = v
		}
	}
	if p.rev == 0 {
		p.rev = v.Rev()
		if r.Revision <= 0 {
			r.Revision = p.rev
		}
	}
	b := &p.c.reply
	found, err = v.Range(r, func(keyValue []byte) {
		n++
		if n == r.Limit {
			p.last = append(p.last[:0], wire.KeyOf(keyValue)...)
		}
		b.keyValue(keyValue)
	})
	return n, found, err
}

// release gives the view back and keeps no other.
func (p *pieces) release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.expired = true
	if p.view != nil {
		p.view.Release()
		p.view = nil
	}
}

// nextSize moves the number of keys of a piece towards pieces of target bytes. Only a
// piece of less than half or more than twice of that changes it, so that it settles.
func nextSize(keys int64, size, target int) int64 {
	switch {
	case size < target/2:
		return keys * 2
	case size > target*2:
		return max(keys/2, 1)
	}
	return keys
}

// framed is a reply to be sent as the RangeResponse of a RangeStreamResponse.
type framed struct{ *reply }

// prefix is what comes before the response.
func (f framed) prefix() []byte {
	return binary.AppendUvarint([]byte{1<<3 | 2}, uint64(f.size()))
}
