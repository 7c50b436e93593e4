package bench

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// drawEvery is how often progress is drawn.
const drawEvery = 200 * time.Millisecond

// A progressLine draws how far a run is, on one line that it overwrites. On anything but a terminal it
// draws nothing, and passes on only what is written to it.
type progressLine struct {
	w    io.Writer
	live bool // w is a terminal

	mu       sync.Mutex
	name     string // what is running, "" for nothing
	start    time.Time
	duration time.Duration
	total    int64
	rec      *recorder

	stop chan struct{}
	done sync.WaitGroup
}

// newProgress draws to w until close.
func newProgress(w io.Writer) *progressLine {
	p := &progressLine{w: w, stop: make(chan struct{})}
	f, ok := w.(*os.File)
	if p.live = ok && term.IsTerminal(int(f.Fd())); !p.live {
		return p
	}
	p.done.Go(func() {
		tick := time.NewTicker(drawEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.draw()
			case <-p.stop:
				return
			}
		}
	})
	return p
}

// close ends the drawing.
func (p *progressLine) close() {
	close(p.stop)
	p.done.Wait()
}

// phase tells what runs from now on, how long at most, and where it counts; no name: nothing.
func (p *progressLine) phase(name string, duration time.Duration, total int64, rec *recorder) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	p.name, p.start, p.duration, p.total, p.rec = name, time.Now(), duration, total, rec
}

// Write passes lines of text on, above the progress.
func (p *progressLine) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
	return p.w.Write(b)
}

func (p *progressLine) clear() {
	if p.live {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

func (p *progressLine) draw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.name == "" {
		return
	}
	elapsed := time.Since(p.start)
	share := float64(elapsed) / float64(p.duration)
	p.clear()
	if p.rec == nil {
		fmt.Fprintf(p.w, "%s  %3.0f %%", p.name, min(100*share, 100))
		return
	}
	done := p.rec.done.Load()
	if p.total > 0 {
		share = max(share, float64(done)/float64(p.total))
	}
	h := p.rec.merged()
	fmt.Fprintf(p.w, "%s  %3.0f %%  %s requests  %s/s  p50 %s  p99 %s  max %s  %d failed", p.name, min(100*share, 100),
		number(float64(done)), number(float64(done)/elapsed.Seconds()), short(h.Quantile(0.5)), short(h.Quantile(0.99)), short(h.Max()), p.rec.failed.Load())
}
