package rpc

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"quorate/internal/kv"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// What clients can make the member hold is bounded in two places: requests from the
// moment their bytes may arrive until they are answered, and replies until the transport
// has written them. Who finds a bound reached waits its turn for a while and is then
// refused with kv.ErrTooManyRequests. stalled.go says what keeps a client from holding
// all of it.

// memoryWait is how long a request or reply waits for memory before it is refused.
const memoryWait = 5 * time.Second

// requestMemory bounds the bytes of requests. A request is charged the largest that it
// may be until it has arrived, then its own length.
type requestMemory struct {
	max  int64
	used atomic.Int64

	// look is called every lookEvery by who waits; nil: not.
	look func()

	waiting atomic.Int32
	mu      sync.Mutex
	freed   chan struct{} // closed when something is given back while someone waits
}

func newRequestMemory(limit int64) *requestMemory {
	return &requestMemory{max: limit, freed: make(chan struct{})}
}

// take charges n bytes. One request that is alone may be larger than the bound.
func (m *requestMemory) take(ctx context.Context, n int64) error {
	if m.try(n) {
		return nil
	}
	m.waiting.Add(1)
	defer m.waiting.Add(-1)
	timer := time.NewTimer(memoryWait)
	defer timer.Stop()
	ticks, stop := lookTicks(m.look)
	defer stop()
	for {
		m.mu.Lock()
		freed := m.freed
		m.mu.Unlock()
		// After freed was read, so that what is given back from here on wakes us.
		if m.try(n) {
			return nil
		}
		select {
		case <-freed:
		case <-ticks:
			m.look()
		case <-timer.C:
			return kv.ErrTooManyRequests
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// lookTicks is when who waits should look, and what ends that.
func lookTicks(look func()) (ticks <-chan time.Time, stop func()) {
	if look == nil {
		return nil, func() {}
	}
	t := time.NewTicker(lookEvery)
	return t.C, t.Stop
}

func (m *requestMemory) try(n int64) bool {
	for {
		used := m.used.Load()
		if used+n > m.max && used != 0 {
			return false
		}
		if m.used.CompareAndSwap(used, used+n) {
			return true
		}
	}
}

// give gives n bytes back.
func (m *requestMemory) give(n int64) {
	m.used.Add(-n)
	if m.waiting.Load() > 0 {
		m.mu.Lock()
		close(m.freed)
		m.freed = make(chan struct{})
		m.mu.Unlock()
	}
}

// replyMemory bounds the bytes of replies that are not written yet. Replies of up to
// smallReply bytes are not charged: their number is bounded by that of the streams.
//
// A reply grows while it is built, so that many large ones could each hold a part of the
// memory and wait for the others without end. Therefore one reply at a time may go on
// over the bound; the next one may when the bound is kept again. What is held is thus
// never more than max and one reply, and a reply that is larger than max is still sent.
type replyMemory struct {
	max  int64  // of all connections; one of them gets no more than half
	look func() // as of requestMemory

	mu    sync.Mutex
	used  int64
	over  *reply        // goes on over the bound
	freed chan struct{} // closed and replaced when something is given back
}

func newReplyMemory(limit int64) *replyMemory {
	return &replyMemory{max: limit, freed: make(chan struct{})}
}

// account is what one connection holds. It is the mem.BufferPool that gRPC gives the
// parts of a reply back to when they are written, or dropped because the stream ended.
// A connection that ends drops parts without giving them back: then close does.
type account struct {
	memory *replyMemory
	copies int64 // how many bytes each byte of a reply will take beside itself

	// Guarded by memory.mu.
	held   int64
	making int64 // of held, what is not for the client to read yet
	closed bool
	moved  int64 // given back since the last look
	still  int   // looks in a row that found next to nothing moved
}

// chunkBytes is the usual size of a reply's parts.
const chunkBytes = 32 << 10

// chunks keeps parts of replies for reuse.
var chunks = mem.DefaultBufferPool()

// Get implements mem.BufferPool, whose Put alone is used.
func (a *account) Get(n int) *[]byte { return chunks.Get(n) }

// Put gives a part of a reply back.
func (a *account) Put(b *[]byte) {
	a.give(int64(cap(*b)))
	chunks.Put(b)
}

// foreign is an account for parts that come from elsewhere and do not go to the pool.
type foreign account

func (f *foreign) Get(n int) *[]byte { return chunks.Get(n) }
func (f *foreign) Put(b *[]byte)     { (*account)(f).give(int64(cap(*b))) }

// give gives n bytes of replies back, with what was charged for their copies.
func (a *account) give(n int64) { a.back(n * (1 + a.copies)) }

// back gives n charged bytes back.
func (a *account) back(n int64) {
	m := a.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.closed {
		return
	}
	a.held -= n
	a.moved += n
	m.giveLocked(n)
}

// hold charges n bytes that are there already, bound or not.
func (a *account) hold(n int64) {
	a.memory.mu.Lock()
	defer a.memory.mu.Unlock()
	if !a.closed {
		a.held += n
		a.memory.used += n
	}
}

// make says that n more bytes of replies, or fewer, are not for the client to read yet.
func (a *account) make(n int64) {
	a.memory.mu.Lock()
	defer a.memory.mu.Unlock()
	a.making += n * (1 + a.copies)
}

// progress says that the client has read n bytes of what stays charged.
func (a *account) progress(n int64) {
	a.memory.mu.Lock()
	defer a.memory.mu.Unlock()
	a.moved += n
}

// departed stands for a reply that is built while what it holds is still over the bound.
var departed reply

// leave says that r is made, of which n bytes were charged, and ends its turn to go on over
// the bound. What it holds keeps others from theirs until the bound is kept again.
func (a *account) leave(r *reply, n int64) {
	m := a.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	a.making -= n * (1 + a.copies)
	if m.over == r {
		m.over = &departed
	}
}

// scarce reports whether much of the memory is taken.
func (m *replyMemory) scarce() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used > m.max/4
}

// giveLocked is called with mu held.
func (m *replyMemory) giveLocked(n int64) {
	m.used -= n
	if m.used <= m.max {
		m.over = nil
	}
	close(m.freed)
	m.freed = make(chan struct{})
}

// close gives back all that the connection holds.
func (a *account) close() {
	m := a.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if !a.closed {
		a.closed = true
		m.giveLocked(a.held)
	}
}

// take charges n bytes for r, waiting until they are free.
func (a *account) take(ctx context.Context, r *reply, n int64) error {
	freed, ok := a.try(r, n)
	if ok {
		return nil
	}
	if freed == nil {
		return errConnClosed
	}
	timer := time.NewTimer(memoryWait)
	defer timer.Stop()
	ticks, stop := lookTicks(a.memory.look)
	defer stop()
	for {
		select {
		case <-freed:
		case <-ticks:
			a.memory.look()
		case <-timer.C:
			return kv.ErrTooManyRequests
		case <-ctx.Done():
			return ctx.Err()
		}
		if freed, ok = a.try(r, n); ok {
			return nil
		}
		if freed == nil {
			return errConnClosed
		}
	}
}

// errConnClosed is for a reply that has nowhere to go, and could not be charged.
var errConnClosed = status.Error(codes.Canceled, "the connection is closed")

// try charges n bytes for r, or returns what to wait for before trying again: nil if the
// connection is closed.
func (a *account) try(r *reply, n int64) (freed <-chan struct{}, ok bool) {
	n *= 1 + a.copies
	m := a.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if a.closed {
		return nil, false
	}
	fits := m.used+n <= m.max && a.held+n <= m.max/2
	if !fits && m.over != nil && m.over != r {
		return m.freed, false
	}
	if !fits {
		m.over = r
	}
	a.held += n
	a.making += n
	m.used += n
	return nil, true
}

// accountOf is the account for the replies to a call: its connection's, that of the JSON
// gateway's call which it is, or other for calls that came another way.
func accountOf(ctx context.Context, other *account) *account {
	if p, ok := peer.FromContext(ctx); ok {
		if addr, ok := p.Addr.(*jsonAddr); ok {
			return addr.call.account
		}
	}
	if c := connOf(ctx); c != nil {
		return &c.account
	}
	return other
}
