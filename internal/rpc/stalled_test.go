package rpc

import (
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"quorate/internal/metrics"
)

// newLooks returns services that have nothing but memory (16 requests, 1000 bytes of
// replies), and what connects to them.
func newLooks() (s *services, connect func() *conn) {
	s = newServices(&Options{
		Metrics: metrics.New(false), ElectionTimeout: time.Second,
		MaxRequestBytes: 100, RequestMemory: 16 * (100 + requestOverhead), ReplyMemory: 1000,
	})
	return s, func() *conn {
		_, server := net.Pipe()
		return s.looks.conns.add(server, false)
	}
}

// begin has n requests of a connection awaited, from now on.
func (s *services) begin(c *conn, n int32) arrival {
	a := arrival{&c.arrivals, s.looks.epoch.Load() % epochs}
	a.of.begun[a.epoch].Add(n)
	return a
}

// TestStalledRequests: of those whose requests do not come, the ones that hold much are to
// be closed; those whose requests come slowly are given more time.
func TestStalledRequests(t *testing.T) {
	s, connect := newLooks()
	little, much, slow, busy := connect(), connect(), connect(), connect()
	s.begin(little, 1)
	s.begin(much, 6)
	s.begin(slow, 6)
	for i := range awaitLooks + 1 {
		a := s.begin(busy, 3)
		slow.read.Add(6*s.requestMax/drainLooks + 1)
		got := s.looks.stalled(s.looks.epoch.Load())
		if want := i >= stallLooks; slices.Contains(got, much) != want {
			t.Errorf("look %d: the one whose requests do not come is stalled: %v", i, !want)
		}
		if want := i >= awaitLooks; slices.Contains(got, slow) != want {
			t.Errorf("look %d: the one whose requests come slowly is stalled: %v", i, !want)
		}
		if slices.Contains(got, little) || slices.Contains(got, busy) {
			t.Errorf("look %d: one is stalled that holds little or is at work", i)
		}
		a.of.begun[a.epoch].Add(-3)
		s.looks.epoch.Add(1)
	}
}

// TestStalledReplies: whoever waits for memory that others do not read into has it soon,
// and those are closed, but nobody who reads or holds little.
func TestStalledReplies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, connect := newLooks()
		little, reading, one, two := connect(), connect(), connect(), connect()
		take := func(c *conn, n int64) {
			r := new(reply)
			if err := c.account.take(t.Context(), r, n); err != nil {
				t.Error(err)
			}
			c.account.leave(r, n)
		}
		take(little, 20)
		take(reading, 180)
		take(one, 400)
		take(two, 400)
		take(connect(), 100) // the first one goes on over the bound
		done := make(chan struct{})
		go func() {
			defer close(done)
			for range 10 {
				time.Sleep(lookEvery / 2)
				reading.account.give(10)
			}
		}()
		begin := time.Now()
		take(connect(), 100)
		if took := time.Since(begin); took > memoryWait/2 {
			t.Errorf("it waited %v", took)
		}
		if s.isOpen(one) || s.isOpen(two) {
			t.Error("a connection that reads nothing is open")
		}
		if !s.isOpen(little) || !s.isOpen(reading) {
			t.Error("a connection was closed that holds little, or reads")
		}
		<-done
	})
}

func (s *services) isOpen(c *conn) bool {
	s.looks.conns.mu.Lock()
	defer s.looks.conns.mu.Unlock()
	_, open := s.looks.conns.open[c]
	return open
}

// TestStalledPace: a fresh reply is not stalled, however long its connection was idle.
func TestStalledPace(t *testing.T) {
	s, connect := newLooks()
	c := connect()
	for range 2 * stallLooks {
		if l := s.looks.stalled(s.looks.epoch.Add(1)); len(l) > 0 {
			t.Fatal("an idle connection is stalled")
		}
	}
	r := new(reply)
	if err := c.account.take(t.Context(), r, 500); err != nil {
		t.Fatal(err)
	}
	if l := s.looks.stalled(s.looks.epoch.Add(1)); len(l) > 0 {
		t.Fatal("a reply that is being built is stalled")
	}
	c.account.leave(r, 500)
	for i := range stallLooks {
		if l := s.looks.stalled(s.looks.epoch.Add(1)); len(l) > 0 != (i == stallLooks-1) {
			t.Errorf("look %d: %d stalled", i, len(l))
		}
	}
}

// TestClosedConnection: nothing is charged to a connection that is closed, nor built for it.
func TestClosedConnection(t *testing.T) {
	s, connect := newLooks()
	c := connect()
	if err := c.account.take(t.Context(), new(reply), 2000); err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error)
	go func() { waiting <- c.account.take(t.Context(), new(reply), 10) }()
	time.Sleep(10 * time.Millisecond)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; err != errConnClosed {
		t.Errorf("who waited: %v", err)
	}
	if err := c.account.take(t.Context(), new(reply), 10); err != errConnClosed {
		t.Errorf("who comes then: %v", err)
	}
	if s.replies.used != 0 {
		t.Errorf("%d bytes are charged", s.replies.used)
	}
}
