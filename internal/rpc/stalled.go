package rpc

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/peer"
)

// The bounds of memory are shared by all clients, and a client that has begun and does not
// go on (it sends no end of its requests, or reads no replies) keeps what it was charged.
// So that it cannot keep the others out:
//
//   - requests of one connection that have not come yet are charged no more than a quarter
//     of the memory for requests, and replies no more than half of theirs;
//   - while others wait for memory, a connection whose requests do not come or whose
//     replies are not read is closed after a second or two, if it holds at least half of
//     what would be its share were all alike.
//
// Those who hold less than half their share hold less than half of all together. So
// whoever waits gets memory, unless its holders are at work.

const (
	// lookEvery is how often connections are looked at while somebody waits for memory.
	lookEvery = 500 * time.Millisecond
	// stallLooks is how many looks, beside the first, must find the same standstill.
	stallLooks = 2
	// drainLooks is in how many looks a client would have to read all that it is being sent,
	// at the pace since the last one, to be called at work.
	drainLooks = 120
)

// arrivals are a connection's requests that are awaited, in the epochs in which they began
// to be: of now, of the one before, and before that. An epoch ends with each look.
type arrivals struct {
	slots chan struct{} // a place for each
	begun [stallLooks + 1]atomic.Int32
}

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
		// Its own connection keeps it waiting: no harm to anybody else, and no end but its own.
		select {
		case of.slots <- struct{}{}:
		case <-ctx.Done():
			return arrival{}, ctx.Err()
		}
	}
	if err := s.requests.take(ctx, s.requestMax); err != nil {
		<-of.slots
		return arrival{}, err
	}
	a := arrival{of, s.looks.epoch.Load() % (stallLooks + 1)}
	of.begun[a.epoch].Add(1)
	return a, nil
}

// arrived ends the arrival of a request of size bytes, which alone stay charged.
func (s *services) arrived(a arrival, size int64) {
	a.of.begun[a.epoch].Add(-1)
	<-a.of.slots
	s.requests.give(s.requestMax - size)
}

// awaited is how many requests are awaited, and how many of them since before the last
// stallLooks looks, if the newest began epoch.
func (a *arrivals) awaited(epoch uint32) (all, old int64) {
	for i := range a.begun {
		all += int64(a.begun[i].Load())
	}
	// The epoch to come takes the place of the oldest.
	return all, int64(a.begun[(epoch+1)%(stallLooks+1)].Load())
}

// connOf is the connection that a call came on; nil if it came another way.
func connOf(ctx context.Context) *conn {
	if p, ok := peer.FromContext(ctx); ok {
		if addr, ok := p.Addr.(*clientAddr); ok {
			return addr.conn
		}
	}
	return nil
}

// looks looks for connections that stall others.
type looks struct {
	conns      *conns
	requestMax int64
	requests   *requestMemory
	replies    *replyMemory

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
	l.replies.mu.Lock()
	defer l.replies.mu.Unlock()
	n := int64(len(l.conns.open))
	for c := range l.conns.open {
		if c.own {
			continue
		}
		all, old := c.arrivals.awaited(epoch)
		a := &c.account
		if a.moved*drainLooks >= a.held {
			a.still = 0
		} else {
			a.still++
		}
		a.moved = 0
		if old > 0 && 2*n*all*l.requestMax >= l.requests.max ||
			a.still >= stallLooks && 2*n*a.held >= l.replies.max {
			list = append(list, c)
		}
	}
	return list
}
