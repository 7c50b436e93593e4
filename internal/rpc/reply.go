package rpc

import (
	"context"
	"runtime"

	"quorate/internal/wire"

	"google.golang.org/grpc/mem"
)

// smallReply is up to how many bytes a reply is copied into memory of its own size
// instead of holding a chunk.
const smallReply = 1 << 10

// reply is a message that is built in wire form, part by part. Begin with reset; the
// codec takes the parts over when it is sent; free gives back those that never were.
type reply struct {
	ctx     context.Context
	account *account
	err     error // why the reply is cut short: no memory, or ctx's

	charged  bool  // whether memory was asked for
	mine     int64 // bytes that were charged
	reserved int64 // bytes that are charged for what is to come

	sinceYield int64 // bytes of parts since others were let go first

	parts []part
	cur   []byte // the part that is being filled: of small, later a chunk
	chunk bool   // whether cur is a chunk
	small [smallReply]byte
}

// part is a finished piece of a reply.
type part struct {
	data    []byte
	foreign bool // not from the pool of chunks
}

func (r *reply) reset(ctx context.Context, a *account) {
	r.ctx, r.account, r.err = ctx, a, nil
	r.cur, r.chunk = r.small[:0], false
}

// room returns the part to append at least n more bytes to; what comes of it goes into
// r.cur. Without memory, r.err is set and n must not be larger than smallReply.
func (r *reply) room(n int) []byte {
	if r.err != nil {
		return r.small[:0]
	}
	if cap(r.cur)-len(r.cur) >= n {
		return r.cur
	}
	first := !r.chunk
	if first {
		n += len(r.cur)
	}
	next := getChunk(max(n, chunkBytes))
	if err := r.chargePart(int64(cap(*next))); err != nil {
		chunks.Put(next)
		r.free()
		r.err = err
		return r.small[:0]
	}
	if first {
		r.cur = append((*next)[:0], r.cur...)
		r.chunk = true
		return r.cur
	}
	if cap(r.cur) > 0 {
		r.parts = append(r.parts, part{data: r.cur})
	}
	r.cur = (*next)[:0]
	return r.cur
}

// getChunk returns a buffer of at least n bytes, and not much more: the pool, which others
// share, may hand out a huge one for a large one.
func getChunk(n int) *[]byte {
	b := chunks.Get(n)
	if n <= chunkBytes || cap(*b) <= 2*n {
		return b
	}
	chunks.Put(b)
	own := make([]byte, n)
	return &own
}

// charge takes n bytes of the memory for replies.
func (r *reply) charge(n int64) error {
	r.charged = true
	err := r.account.take(r.ctx, r, n)
	if err == nil {
		r.mine += n
	}
	return err
}

// yieldBytes is how much of a reply is built in one go. Go lets a goroutine run for 10 ms,
// and a write passes several on its way: a hundred large reads at once would cost it a
// second.
const yieldBytes = 256 << 10

// chargePart takes n bytes for a part, of what is reserved if there is enough.
func (r *reply) chargePart(n int64) error {
	if r.sinceYield += n; r.sinceYield >= yieldBytes {
		r.sinceYield = 0
		runtime.Gosched()
	}
	if n > r.reserved {
		if err := r.charge(n - r.reserved); err != nil {
			return err
		}
		n = r.reserved
	}
	r.reserved -= n
	return nil
}

// reserve charges n bytes for what is to come.
func (r *reply) reserve(n int64) error {
	if n <= smallReply {
		return nil
	}
	if err := r.charge(n); err != nil {
		return err
	}
	r.reserved += n
	return nil
}

// giveReserved gives back what was reserved and is not needed.
func (r *reply) giveReserved() {
	if r.reserved > 0 {
		r.account.give(r.reserved)
		r.reserved = 0
	}
}

// keyValue appends a KeyValue of a RangeResponse.
func (r *reply) keyValue(kv []byte) {
	b := r.room(len(kv) + fieldOverhead)
	if r.err == nil {
		r.cur = wire.AppendRangeKV(b, kv)
	}
}

// fieldOverhead is more than a field takes beside its content, or a number does in all.
const fieldOverhead = 16

// body appends b, which the reply may keep: without a copy if it is large.
func (r *reply) body(b []byte) {
	if len(b) <= smallReply {
		r.giveReserved()
		if dst := r.room(len(b)); r.err == nil {
			r.cur = append(dst, b...)
		}
		return
	}
	if r.err != nil {
		return
	}
	if err := r.chargePart(int64(cap(b))); err != nil {
		r.free()
		r.err = err
		return
	}
	r.giveReserved()
	if len(r.cur) > 0 {
		r.parts = append(r.parts, part{data: r.cur, foreign: !r.chunk})
	}
	r.parts = append(r.parts, part{data: b, foreign: true})
	r.cur, r.chunk = nil, true
}

// size is how long the reply is so far.
func (r *reply) size() int {
	n := len(r.cur)
	for _, p := range r.parts {
		n += len(p.data)
	}
	return n
}

// take hands the parts over as gRPC's buffers.
func (r *reply) take() mem.BufferSlice {
	r.giveReserved()
	if len(r.parts) == 0 && len(r.cur) <= smallReply {
		out := mem.BufferSlice{mem.SliceBuffer(append([]byte(nil), r.cur...))}
		if r.chunk {
			r.account.putSlice(r.cur)
		}
		r.clear()
		return out
	}
	out := make(mem.BufferSlice, 0, len(r.parts)+1)
	for _, p := range r.parts {
		out = append(out, r.buffer(p))
	}
	if len(r.cur) > 0 {
		out = append(out, r.buffer(part{data: r.cur, foreign: !r.chunk}))
	}
	r.clear()
	return out
}

// buffer makes p one of gRPC's buffers. Small pieces, which were not charged, are
// copied: they may lie in r.small.
func (r *reply) buffer(p part) mem.Buffer {
	switch {
	case p.foreign && len(p.data) <= smallReply:
		return mem.SliceBuffer(append([]byte(nil), p.data...))
	case p.foreign:
		return mem.NewBuffer(&p.data, (*foreign)(r.account))
	}
	return mem.NewBuffer(&p.data, r.account)
}

func (a *account) putSlice(b []byte) {
	b = b[:cap(b)]
	a.Put(&b)
}

// free gives back the parts of a reply that will not be sent.
func (r *reply) free() {
	for _, p := range r.parts {
		switch {
		case !p.foreign:
			r.account.putSlice(p.data)
		case len(p.data) > smallReply:
			r.account.give(int64(cap(p.data)))
		}
	}
	if r.chunk && cap(r.cur) > 0 {
		r.account.putSlice(r.cur)
	}
	r.giveReserved()
	r.clear()
}

// clear forgets the parts, and keeps a short list of them for the next reply.
func (r *reply) clear() {
	if r.charged {
		r.charged = false
		r.account.leave(r, r.mine)
		r.mine = 0
	}
	clear(r.parts)
	r.parts, r.cur, r.chunk = r.parts[:0], nil, false
	if cap(r.parts) > 64 {
		r.parts = nil
	}
}
