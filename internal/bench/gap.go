package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// longestKept is how many of the longest pauses of a phase are told one by one.
const longestKept = 5

// A GapConfig describes a measurement of pauses: writers that put one value after the other, and a
// command, if any, whose effect on them is measured.
type GapConfig struct {
	Endpoints []string      `json:"endpoints"` // writer i uses endpoint i modulo their number
	Writers   int           `json:"writers"`
	Duration  time.Duration `json:"duration_ns"` // longest time of all
	Timeout   time.Duration `json:"timeout_ns"`  // of one put
	KeySize   int           `json:"key_size"`
	ValSize   int           `json:"val_size"`
	KeySpace  int64         `json:"key_space"`
	Prefix    string        `json:"prefix"`
	Command   []string      `json:"command,omitempty"`
	After     time.Duration `json:"after_ns"`  // when the command starts
	Settle    time.Duration `json:"settle_ns"` // how long the writers go on after it

	TLS TLSFiles `json:"-"`
}

// Validate reports what cannot be run.
func (c *GapConfig) Validate() error {
	load := c.load()
	switch {
	case c.Writers < 1 || c.Writers > clientsMax:
		return fmt.Errorf("--writers must be 1 to %d", clientsMax)
	case len(c.Command) > 0 && c.After >= c.Duration:
		return errors.New("--after must be less than --duration")
	case c.After < 0 || c.Settle < 0:
		return errors.New("--after and --settle must not be negative")
	}
	return load.Validate()
}

// load returns the load of the writers.
func (c *GapConfig) load() *Config {
	return &Config{
		Workload: "put", Servers: []Server{{Endpoints: c.Endpoints}}, Rounds: 1,
		Conns: c.Writers, Clients: c.Writers, Duration: c.Duration, Timeout: c.Timeout,
		KeySize: c.KeySize, ValSize: c.ValSize, KeySpace: c.KeySpace, Prefix: c.Prefix, Sequential: true,
		TxnOps: 1, Watchers: 1, WatchStreams: 1, LeaseTTL: 1, TLS: c.TLS,
	}
}

// A Pause is the time between two puts of one writer that succeeded.
type Pause struct {
	Gap
	Writer int `json:"writer"`
	Failed int `json:"failed"` // puts that failed meanwhile
}

// A GapPhase is what writers saw before, during or after the command.
type GapPhase struct {
	Name    string        `json:"name"`
	Puts    int64         `json:"puts"`
	P50     time.Duration `json:"p50_ns"` // of all pauses, as are the next two
	P99     time.Duration `json:"p99_ns"`
	Max     time.Duration `json:"max_ns"`
	Longest []Pause       `json:"longest"`

	mu     sync.Mutex
	pauses Histogram
}

// record counts a pause.
func (p *GapPhase) record(x Pause) {
	p.pauses.Record(x.Length)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.Longest) == longestKept && x.Length <= p.Longest[longestKept-1].Length {
		return
	}
	at := len(p.Longest)
	for at > 0 && p.Longest[at-1].Length < x.Length {
		at--
	}
	p.Longest = slices.Insert(p.Longest, at, x)
	p.Longest = p.Longest[:min(len(p.Longest), longestKept)]
}

// sum fills in the figures. No pause is recorded any more.
func (p *GapPhase) sum() {
	p.Puts, p.P50, p.P99, p.Max = p.pauses.Count(), p.pauses.Quantile(0.5), p.pauses.Quantile(0.99), p.pauses.Max()
}

// A GapReport is the result of a measurement of pauses.
type GapReport struct {
	Config       *GapConfig       `json:"config"`
	Elapsed      time.Duration    `json:"elapsed_ns"`
	CommandStart time.Duration    `json:"command_start_ns,omitempty"`
	CommandEnd   time.Duration    `json:"command_end_ns,omitempty"`
	CommandError string           `json:"command_error,omitempty"`
	Phases       []*GapPhase      `json:"phases"`
	Failed       int64            `json:"failed"`
	Errors       map[string]int64 `json:"errors,omitempty"`
}

// A gapRun is a measurement under way.
type gapRun struct {
	start                 time.Time
	cmdStart, cmdEnd      atomic.Int64 // ns since start, 0: not yet
	before, during, after GapPhase
	rec                   *recorder
}

// phase returns the phase that a pause belongs to: one that touches the command is of the command.
func (g *gapRun) phase(from, to time.Duration) *GapPhase {
	start, end := time.Duration(g.cmdStart.Load()), time.Duration(g.cmdEnd.Load())
	switch {
	case start == 0 || to < start:
		return &g.before
	case end == 0 || from < end:
		return &g.during
	}
	return &g.after
}

// write puts until ctx ends.
func (g *gapRun) write(ctx context.Context, i int, c client) {
	last := time.Since(g.start)
	failed := 0
	for ctx.Err() == nil {
		// A put that was sent is waited for: only --timeout ends it.
		if err := c.do(context.WithoutCancel(ctx)); err != nil {
			failed++
			g.rec.failure(err)
			sleep(ctx, errorPause)
			continue
		}
		now := time.Since(g.start)
		g.phase(last, now).record(Pause{Gap: Gap{Length: now - last, At: last}, Writer: i, Failed: failed})
		last, failed = now, 0
	}
	if failed > 0 {
		// The server was not back when the time was over: a pause of at least this length.
		now := time.Since(g.start)
		g.phase(last, now).record(Pause{Gap: Gap{Length: now - last, At: last}, Writer: i, Failed: failed})
	}
}

// measureGaps runs the measurement of cfg; the command writes to output.
func measureGaps(ctx context.Context, cfg *GapConfig, output io.Writer) (_ *GapReport, err error) {
	load := cfg.load()
	p, err := dialPool(ctx, cfg.Endpoints, cfg.Writers, cfg.TLS, false)
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := p.close(); err == nil {
			err = cerr
		}
	}()
	w := &putLoad{common{cfg: load, keys: newKeyspace(load), pool: p}}
	ctx, cancel := context.WithTimeout(ctx, cfg.Duration)
	defer cancel()
	g := &gapRun{start: time.Now(), rec: newRecorder()}
	g.before.Name, g.during.Name, g.after.Name = "before", "during", "after"
	var wg sync.WaitGroup
	for i := range cfg.Writers {
		wg.Go(func() { g.write(ctx, i, w.putClient(i)) })
	}
	rep := &GapReport{Config: cfg}
	if len(cfg.Command) > 0 && sleep(ctx, cfg.After) {
		g.cmdStart.Store(int64(time.Since(g.start)))
		cmd := exec.CommandContext(ctx, cfg.Command[0], cfg.Command[1:]...)
		cmd.Stdout, cmd.Stderr = output, output
		if err := cmd.Run(); err != nil {
			rep.CommandError = err.Error()
		}
		g.cmdEnd.Store(int64(time.Since(g.start)))
		sleep(ctx, cfg.Settle)
		cancel()
	}
	wg.Wait()
	rep.Elapsed = time.Since(g.start)
	rep.CommandStart, rep.CommandEnd = time.Duration(g.cmdStart.Load()), time.Duration(g.cmdEnd.Load())
	rep.Failed, rep.Errors = g.rec.failed.Load(), g.rec.errors
	for _, phase := range []*GapPhase{&g.before, &g.during, &g.after} {
		if phase.sum(); phase.Puts > 0 {
			rep.Phases = append(rep.Phases, phase)
		}
	}
	if len(cfg.Command) == 0 && len(rep.Phases) == 1 {
		rep.Phases[0].Name = "all"
	}
	return rep, nil
}

// printGaps writes what people want to know of a measurement.
func printGaps(w io.Writer, r *GapReport) {
	if len(r.Config.Command) > 0 {
		fmt.Fprintf(w, "%q ran from %s to %s", r.Config.Command, short(r.CommandStart), short(r.CommandEnd))
		if r.CommandError != "" {
			fmt.Fprintf(w, " and failed: %s", r.CommandError)
		}
		fmt.Fprintln(w)
	}
	for _, p := range r.Phases {
		fmt.Fprintf(w, "%-7s %d puts in sequence, pauses p50 %s  p99 %s  max %s\n", p.Name, p.Puts, short(p.P50), short(p.P99), short(p.Max))
		for _, x := range p.Longest {
			fmt.Fprintf(w, "          %8s at %s, writer %d", short(x.Length), short(x.At), x.Writer)
			if x.Failed > 0 {
				fmt.Fprintf(w, ", %d failed", x.Failed)
			}
			fmt.Fprintln(w)
		}
	}
	printErrors(w, r.Failed, r.Errors)
}
