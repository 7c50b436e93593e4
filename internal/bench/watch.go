package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
)

// deliveryWait is how long events may still come after the last put.
const deliveryWait = 10 * time.Second

// A stream is a call in both directions.
type stream struct {
	grpc.ClientStream
	cancel context.CancelFunc
}

// openStream opens a stream that lasts until its cancel is called or ctx ends.
func openStream(ctx context.Context, conn *grpc.ClientConn, method string) (*stream, error) {
	ctx, cancel := context.WithCancel(ctx)
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		cancel()
		return nil, err
	}
	return &stream{ClientStream: s, cancel: cancel}, nil
}

// watchLoad puts keys that watchers watch, and measures how long after the put was sent its event
// arrives. The requests of its clients are the puts.
type watchLoad struct {
	common
	epoch    time.Time
	streams  []*stream
	readers  sync.WaitGroup
	stopping atomic.Bool

	expected, arrived atomic.Int64              // events
	delivery          atomic.Pointer[Histogram] // replaced by begin

	mu  sync.Mutex
	err error // why a stream ended early
}

// prepare opens the watches and waits until the server has confirmed each.
func (w *watchLoad) prepare(ctx context.Context, progress io.Writer) error {
	w.epoch = time.Now()
	w.delivery.Store(new(Histogram))
	fmt.Fprintf(progress, "opening %d watchers on %d streams\n", w.cfg.Watchers, w.cfg.WatchStreams)
	ready := make(chan error, w.cfg.WatchStreams)
	for i := range w.cfg.WatchStreams {
		// The streams outlive ctx's end: finish ends them.
		s, err := w.pool.stream(context.WithoutCancel(ctx), i, methodWatch)
		if err != nil {
			return errors.Join(err, w.stop())
		}
		w.streams = append(w.streams, s)
		// Watchers are dealt to the streams in turn.
		var numbers []int
		for n := i; n < w.cfg.Watchers; n += w.cfg.WatchStreams {
			numbers = append(numbers, n)
		}
		w.readers.Go(func() { w.read(s, len(numbers), ready) })
		for _, n := range numbers {
			if err := s.SendMsg(w.createRequest(n)); err != nil {
				return errors.Join(err, w.stop())
			}
		}
	}
	timeout := time.After(w.cfg.Timeout)
	for range w.streams {
		select {
		case err := <-ready:
			if err != nil {
				return errors.Join(err, w.stop())
			}
		case <-timeout:
			return errors.Join(errors.New("watches were not confirmed in time"), w.stop())
		case <-ctx.Done():
			return errors.Join(ctx.Err(), w.stop())
		}
	}
	return nil
}

// createRequest returns the request for watcher n.
func (w *watchLoad) createRequest(n int) []byte {
	var create []byte
	if w.cfg.WatchKeys {
		create = appendBytes(nil, 1, w.keys.appendKey(nil, int64(n)%w.cfg.KeySpace))
	} else {
		create = appendBytes(appendBytes(nil, 1, w.keys.start()), 2, w.keys.end())
	}
	return appendMessage(nil, 1, create)
}

// read takes the responses of a stream until it ends, and reports on ready once all of its watchers
// are created, or why they are not.
func (w *watchLoad) read(s *stream, watchers int, ready chan<- error) {
	var resp []byte
	waiting := true
	if watchers == 0 {
		ready <- nil
		waiting = false
	}
	for {
		err := s.RecvMsg(&resp)
		now := time.Since(w.epoch)
		created := false
		if err == nil {
			created, err = w.take(resp, now)
		}
		if err != nil {
			if waiting {
				ready <- err
			} else if !w.stopping.Load() {
				w.mu.Lock()
				w.err = err
				w.mu.Unlock()
			}
			return
		}
		if created {
			if watchers--; watchers == 0 {
				ready <- nil
				waiting = false
			}
		}
	}
}

// take counts the events of a response, and tells whether it confirms a new watcher.
func (w *watchLoad) take(resp []byte, now time.Duration) (created bool, err error) {
	var cancelled bool
	var reason []byte
	err = fields(resp, func(field protowire.Number, v uint64, b []byte) error {
		switch field {
		case 3:
			created = v == 1
		case 4:
			cancelled = v == 1
		case 6:
			reason = b
		case 11:
			return w.event(b, now)
		}
		return nil
	})
	if err == nil && cancelled {
		err = fmt.Errorf("watch was cancelled: %s", reason)
	}
	return created, err
}

// event records when the put of an event was sent.
func (w *watchLoad) event(ev []byte, now time.Duration) error {
	return fields(ev, func(field protowire.Number, _ uint64, kv []byte) error {
		if field != 2 {
			return nil
		}
		return fields(kv, func(field protowire.Number, _ uint64, value []byte) error {
			if field != 5 {
				return nil
			}
			if sent, ok := stamp(value); ok {
				w.delivery.Load().Record(now - sent)
			}
			w.arrived.Add(1)
			return nil
		})
	})
}

func (w *watchLoad) client(_ context.Context, i int) (client, error) {
	return &watchPutClient{putClient: *w.putClient(i), load: w, value: make([]byte, w.cfg.ValSize)}, nil
}

// watchPutClient puts values that begin with the time of the put.
type watchPutClient struct {
	putClient
	load  *watchLoad
	value []byte
}

func (c *watchPutClient) do(ctx context.Context) error {
	n := c.keys.pick(c.rng)
	c.key = c.keys.appendKey(c.key[:0], n)
	copy(c.value, c.keys.value(c.rng))
	putStamp(c.value, time.Since(c.load.epoch))
	c.req = appendPut(c.req[:0], c.key, c.value, 0)
	if err := c.call(ctx, methodPut); err != nil {
		return err
	}
	c.load.expected.Add(c.load.watchersOf(n))
	return nil
}

// watchersOf returns how many watchers see key number n.
func (w *watchLoad) watchersOf(n int64) int64 {
	all := int64(w.cfg.Watchers)
	if !w.cfg.WatchKeys {
		return all
	}
	// Watchers n, n+KeySpace, n+2*KeySpace, ...
	return max((all-n+w.cfg.KeySpace-1)/w.cfg.KeySpace, 0)
}

// settle waits for the events of the puts that were made.
func (w *watchLoad) settle() {
	for end := time.Now().Add(deliveryWait); w.arrived.Load() < w.expected.Load() && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

func (w *watchLoad) begin() {
	w.settle()
	w.expected.Store(0)
	w.arrived.Store(0)
	w.delivery.Store(new(Histogram))
}

// finish waits for the last events and ends the streams.
func (w *watchLoad) finish(_ context.Context, r *Result) error {
	w.settle()
	if err := w.stop(); err != nil {
		return err
	}
	r.Extra["events_per_second"] = float64(w.arrived.Load()) / r.Elapsed.Seconds()
	// Puts that failed may have happened all the same; of those that succeeded every event must arrive.
	r.Extra["events_missing"] = float64(max(w.expected.Load()-w.arrived.Load(), 0))
	l := latencyOf(w.delivery.Load())
	r.Delivery = &l
	return nil
}

// stop ends the streams and returns why one had ended before.
func (w *watchLoad) stop() error {
	w.stopping.Store(true)
	for _, s := range w.streams {
		s.cancel()
	}
	w.readers.Wait()
	return w.err
}
