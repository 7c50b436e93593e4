package rpc

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"quorate/internal/kv"

	"google.golang.org/grpc/peer"
)

// The bounds of memory are shared by all clients, and a client that has begun and does not
// go on (it sends no end of its requests, or reads no replies) keeps what it was charged.
// So that it cannot keep the others out:
//
//   - requests of one connection that have not come yet are charged no more than a quarter
//     of the memory for requests, and replies no more than half of theirs;
//   - while others wait for memory, a connection whose requests do not come or whose
//     replies are not read is closed after a second or two (after four, if requests do
//     come, but slowly), if it holds at least half of what would be its share were all alike.
//
// Those who hold less than half their share hold less than half of all together. So
// whoever waits gets memory, unless its holders are at work.

const (
	// lookEvery is how often connections are looked at while somebody waits for memory.
	lookEvery = 500 * time.Millisecond
	// stallLooks is how many looks, beside the first, must find the same standstill.
	stallLooks = 2
	// drainLooks is in how many looks a client would have to send all that is awaited, or
	// read all that it is being sent, at the pace since the last one, to be called at work.
	drainLooks = 120
	// awaitLooks is how many looks a request is awaited at whatever pace: less than what
	// memoryWait gives to others.
	awaitLooks = 8
)

// arrivals are a connection's requests that are awaited, by the epoch in which they began
// to be. An epoch ends with each look.
type arrivals struct {
	slots chan struct{} // a place for each
	begun [epochs]atomic.Int32
	read  int64 // bytes that had come on the connection at the last look
}

// epochs are told apart. The one to come takes the place of the oldest.
const epochs = awaitLooks + 1

func newArrivals(slots int) arrivals { return arrivals{slots: make(chan struct{}, max(1, slots))} }

// arrival is a request that is awaited, and charged the largest that it may be.
type arrival struct {
	of    *arrivals
	epoch uint32
}

// awaitRequest charges a request of a call before it is received. arrived or failed must
// be called once it was.
func (s *services) awaitRequest(ctx context.Context) (arrival, error) {
	of := &s.otherArrivals
	if c := connOf(ctx); c != nil {
		of = &c.arrivals
	}
	select {
	case of.slots <- struct{}{}:
	default:
		// Its own connection keeps it waiting: no harm to anybody else, and no end but its
		// own. Those that came another way may keep each other waiting.
		var timeout <-chan time.Time
		if of == &s.otherArrivals {
			timer := time.NewTimer(memoryWait)
			defer timer.Stop()
			timeout = timer.C
		}
		select {
		case of.slots <- struct{}{}:
		case <-timeout:
			return arrival{}, kv.ErrTooManyRequests
		case <-ctx.Done():
			return arrival{}, ctx.Err()
		}
	}
	if err := s.requests.take(ctx, s.requestMax); err != nil {
		<-of.slots
		return arrival{}, err
	}
	a := arrival{of, s.looks.epoch.Load() % epochs}
	of.begun[a.epoch].Add(1)
	return a, nil
}

// arrived ends the arrival of a request of size bytes, which alone stay charged.
func (s *services) arrived(a arrival, size int64) {
	a.of.begun[a.epoch].Add(-1)
	<-a.of.slots
	s.requests.give(s.requestMax - size)
}

// stalled reports whether requests do not come any more, and how many are awaited. epoch is
// that which ends. It is called once a look, and read is what has come by now.
func (a *arrivals) stalled(epoch uint32, read, requestMax int64) (stalled bool, awaited int64) {
	var old, oldest int64
	for age := range uint32(epochs) {
		n := int64(a.begun[(epoch+epochs-age)%epochs].Load())
		awaited += n
		if age >= stallLooks {
			old += n
		}
		if age == awaitLooks {
			oldest = n
		}
	}
	came := read - a.read
	a.read = read
	return oldest > 0 || old > 0 && came*drainLooks < awaited*requestMax, awaited
}

// connKey is where the context of net/http has the connection.
type connKey struct{}

// connOf is the connection that a call came on; nil if it came another way.
func connOf(ctx context.Context) *conn {
	if p, ok := peer.FromContext(ctx); ok {
		if addr, ok := p.Addr.(*clientAddr); ok {
			return addr.conn
		}
	}
	c, _ := ctx.Value(connKey{}).(*conn)
	return c
}

// looks looks for connections that stall others.
type looks struct {
	conns      *conns
	requestMax int64
	requests   *requestMemory

	epoch atomic.Uint32
	mu    sync.Mutex
	last  time.Time
}

// look is called by those who wait for memory, again and again. It closes the connections
// that keep too much of it and do not move.
func (l *looks) look() {
	if !l.mu.TryLock() {
		return // somebody looks
	}
	defer l.mu.Unlock()
	now := time.Now()
	if now.Sub(l.last) < lookEvery*3/4 { // another one's tick
		return
	}
	l.last = now
	for _, c := range l.stalled(l.epoch.Load()) {
		_ = c.Close() // it is not served any more; nobody waits for the error
	}
	l.epoch.Add(1)
}

// stalled are the connections to close.
func (l *looks) stalled(epoch uint32) (list []*conn) {
	l.conns.mu.Lock()
	defer l.conns.mu.Unlock()
	n := int64(len(l.conns.open))
	for c := range l.conns.open {
		if c.own {
			continue
		}
		silent, awaited := c.arrivals.stalled(epoch, c.read.Load(), l.requestMax)
		unread, unreadJSON := c.account.stalled(n), c.json.stalled(n)
		if silent && 2*n*awaited*l.requestMax >= l.requests.max || unread || unreadJSON {
			list = append(list, c)
		}
	}
	return list
}

// stalled reports whether replies are not read any more that hold much, for one of n
// connections. It is called once a look.
func (a *account) stalled(n int64) bool {
	a.memory.mu.Lock()
	defer a.memory.mu.Unlock()
	unread := max(0, a.held-a.making)
	if a.moved*drainLooks >= unread {
		a.still = 0
	} else {
		a.still++
	}
	a.moved = 0
	return a.still >= stallLooks && 2*n*unread >= a.memory.max
}
