package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/status"
)

// errorTextsMax bounds how many different error texts are told apart.
const errorTextsMax = 32

// errorPause keeps a client from spinning on a server that refuses at once, and still finds the
// moment when it is back to within this time.
const errorPause = 2 * time.Millisecond

// A client makes the requests of one caller. Its calls do not overlap.
type client interface {
	// do makes one request. It returns when the answer is there.
	do(ctx context.Context) error
}

// A workload is one kind of load on one server.
type workload interface {
	// prepare brings the server into the state that is measured from.
	prepare(ctx context.Context, progress io.Writer) error
	// begin forgets what was counted during a warm-up. No request is under way.
	begin()
	// client returns what caller i, counted from 0, does.
	client(ctx context.Context, i int) (client, error)
	// finish waits for what is under way, tidies up, and adds what only this workload knows.
	finish(ctx context.Context, r *Result) error
}

// A Gap is a time without a success.
type Gap struct {
	Length time.Duration `json:"length_ns"`
	At     time.Duration `json:"at_ns"` // since the start of the run, when it began
}

// A gapMeter finds the longest time between two successes of all clients.
type gapMeter struct {
	last atomic.Int64 // time of the newest success

	mu      sync.Mutex
	longest Gap
}

// success tells of a success at time now, and is cheap unless the gap that it ends is the longest.
func (g *gapMeter) success(now time.Duration) {
	prev := time.Duration(g.last.Swap(int64(now)))
	if now-prev > errorPause/2 {
		g.end(prev, now)
	}
}

func (g *gapMeter) end(from, to time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if to-from > g.longest.Length {
		g.longest = Gap{Length: to - from, At: from}
	}
}

// finish returns the longest gap, the one that lasts until now included.
func (g *gapMeter) finish(now time.Duration) Gap {
	g.end(time.Duration(g.last.Load()), now)
	return g.longest
}

// A recorder collects what the clients of a run see. Its methods may run concurrently.
type recorder struct {
	latency []Histogram // one for some clients each, so that they do not share cache lines
	gap     gapMeter
	done    atomic.Int64 // successes
	failed  atomic.Int64

	mu        sync.Mutex
	errors    map[string]int64
	clientGap Gap
}

func newRecorder() *recorder {
	return &recorder{latency: make([]Histogram, 2*runtime.GOMAXPROCS(0)), errors: make(map[string]int64)}
}

// success counts a request of client i, sent or due at from and answered at to.
func (r *recorder) success(i int, from, to time.Duration) {
	r.done.Add(1)
	r.latency[i%len(r.latency)].Record(to - from)
	r.gap.success(to)
}

// failure counts a failed request by its text.
func (r *recorder) failure(err error) {
	r.failed.Add(1)
	text := errorText(err)
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.errors[text]; !ok && len(r.errors) >= errorTextsMax {
		text = "other errors"
	}
	r.errors[text]++
}

// clientDone takes the longest gap that one client saw.
func (r *recorder) clientDone(g Gap) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if g.Length > r.clientGap.Length {
		r.clientGap = g
	}
}

// errorText returns the text by which an error is counted.
func errorText(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Code().String() + ": " + s.Message()
	}
	return err.Error()
}

// merged returns the latencies of all clients.
func (r *recorder) merged() *Histogram {
	var all Histogram
	for i := range r.latency {
		all.Add(&r.latency[i])
	}
	return &all
}

// A load is what clients share while they run: how much there is to do, and when it began.
type load struct {
	total    int64 // 0: no limit
	duration time.Duration
	rate     float64 // 0: closed loop

	start time.Time
	next  atomic.Int64 // requests taken by clients
	rec   *recorder
}

// now returns the time since the start.
func (l *load) now() time.Duration { return time.Since(l.start) }

// take returns the moment when the next request is to be sent or was due, false when there is none
// left. In an open loop it waits for that moment.
func (l *load) take(ctx context.Context) (time.Duration, bool) {
	n := l.next.Add(1) - 1
	if l.total > 0 && n >= l.total || ctx.Err() != nil {
		return 0, false
	}
	if l.rate == 0 {
		now := l.now()
		return now, now < l.duration
	}
	due := time.Duration(float64(n) / l.rate * float64(time.Second))
	if due >= l.duration {
		return 0, false
	}
	// A request that is late counts from when it was due: a slow server does not hide what waits.
	if wait := due - l.now(); wait > 0 && !sleep(ctx, wait) {
		return 0, false
	}
	return due, true
}

// sleep waits, and returns false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// run lets one client work until there is nothing left.
func (l *load) run(ctx context.Context, i int, c client) {
	var (
		lastOK = l.now()
		gap    Gap
	)
	for {
		from, ok := l.take(ctx)
		if !ok {
			break
		}
		err := c.do(ctx)
		if err != nil {
			if ctx.Err() != nil {
				break // interrupted: says nothing about the server
			}
			l.rec.failure(err)
			sleep(ctx, errorPause)
			continue
		}
		now := l.now()
		l.rec.success(i, from, now)
		if g := now - lastOK; g > gap.Length {
			gap = Gap{Length: g, At: lastOK}
		}
		lastOK = now
	}
	if l.rate == 0 {
		// In an open loop the clients wait for their turn, and that is no gap.
		if g := l.now() - lastOK; g > gap.Length {
			gap = Gap{Length: g, At: lastOK}
		}
		l.rec.clientDone(gap)
	}
}

// runAll lets all clients work, and returns how long that took.
func (l *load) runAll(ctx context.Context, clients []client) time.Duration {
	l.start = time.Now()
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() { l.run(ctx, i, c) })
	}
	wg.Wait()
	return l.now()
}

// runOnce runs the load of cfg once on srv.
func runOnce(ctx context.Context, cfg *Config, srv Server, progress *progressLine) (_ *Result, err error) {
	p, err := dialPool(ctx, srv.Endpoints, cfg.Conns, cfg.TLS, cfg.streams())
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := p.close(); err == nil {
			err = cerr
		}
	}()
	w, err := newWorkload(cfg, p)
	if err != nil {
		return nil, err
	}
	if err := w.prepare(ctx, progress); err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	clients := make([]client, cfg.Clients)
	for i := range clients {
		if clients[i], err = w.client(ctx, i); err != nil {
			return nil, fmt.Errorf("prepare client: %w", err)
		}
	}
	if cfg.Warmup > 0 {
		progress.phase("warm-up", cfg.Warmup, 0, nil)
		(&load{duration: cfg.Warmup, rate: cfg.Rate, rec: newRecorder()}).runAll(ctx, clients)
		w.begin()
	}
	sampler, err := startSampler(srv.PIDs)
	if err != nil {
		return nil, err
	}
	rec := newRecorder()
	progress.phase(srv.Name, cfg.Duration, cfg.Total, rec)
	l := &load{total: cfg.Total, duration: cfg.Duration, rate: cfg.Rate, rec: rec}
	elapsed := l.runAll(ctx, clients)
	progress.phase("", 0, 0, nil)
	processes := sampler.stop()
	if ctx.Err() != nil && rec.done.Load() == 0 {
		return nil, errors.Join(errors.New("interrupted"), w.finish(context.WithoutCancel(ctx), &Result{}))
	}
	r := newResult(cfg, rec, elapsed, processes)
	r.Server = srv.Name
	if err := w.finish(context.WithoutCancel(ctx), r); err != nil {
		return nil, fmt.Errorf("finish: %w", err)
	}
	return r, nil
}
