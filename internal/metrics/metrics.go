// Package metrics is what a member counts about itself, under etcd's names, so that
// dashboards and alerts made for etcd read a member of quorate unchanged.
//
// A Set belongs to one member: several may live in one process. Its fields are plain
// counters, gauges and histograms that the parts increment; an increment is an atomic
// add and costs no lock and no allocation. The name, help text and buckets of a family
// stand in its field's tag, once, and Collect turns them into Prometheus' form when
// somebody asks.
//
// Left out of what etcd 3.7.1 exports is etcd_grpc_proxy_*: the proxy is another program.
// Families labelled by peer show nothing until there is one, as in etcd.
package metrics

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// Counter counts up. The zero Counter is ready. Like a Gauge it may instead be asked for
// when the metrics are collected, by who counts already.
type Counter struct {
	n    atomic.Uint64
	read atomic.Pointer[func() uint64]
}

// Inc adds one.
func (c *Counter) Inc() { c.n.Add(1) }

// Add adds n.
func (c *Counter) Add(n uint64) { c.n.Add(n) }

// Read makes the counter what fn returns, which must never fall, on top of what is added.
func (c *Counter) Read(fn func() uint64) { c.read.Store(&fn) }

// Value is the count now.
func (c *Counter) Value() uint64 {
	n := c.n.Load()
	if fn := c.read.Load(); fn != nil {
		n += (*fn)()
	}
	return n
}

// Gauge is a number that goes up and down. It is either set by its owner or, after
// Read, asked for when the metrics are collected. The zero Gauge reads 0.
type Gauge struct {
	n    atomic.Int64
	read atomic.Pointer[func() float64]
}

// Set makes the gauge n.
func (g *Gauge) Set(n int64) { g.n.Store(n) }

// Add adds n, which may be negative.
func (g *Gauge) Add(n int64) { g.n.Add(n) }

// Read makes the gauge what fn returns at the time of each collection. fn is called
// from any goroutine and must be quick.
func (g *Gauge) Read(fn func() float64) { g.read.Store(&fn) }

// Value is the gauge now.
func (g *Gauge) Value() float64 {
	if fn := g.read.Load(); fn != nil {
		return (*fn)()
	}
	return float64(g.n.Load())
}

// Info is a gauge that is always 1 and says something by its one label. Nothing is
// exported while the label is "", as at first.
type Info struct{ read atomic.Pointer[func() string] }

// Set makes value the label's value.
func (i *Info) Set(value string) { i.Read(func() string { return value }) }

// Read makes the label's value what fn returns at the time of each collection.
func (i *Info) Read(fn func() string) { i.read.Store(&fn) }

// Value is the label's value now.
func (i *Info) Value() string {
	if fn := i.read.Load(); fn != nil {
		return (*fn)()
	}
	return ""
}

// Histogram counts observations by size. Its buckets are set when its Set is made.
type Histogram struct {
	bounds []float64 // upper bounds, ascending; the last bucket is unbounded
	counts []atomic.Uint64
	sum    atomic.Uint64 // bits of a float64
}

func newHistogram(bounds []float64) *Histogram {
	h := &Histogram{}
	h.init(bounds)
	return h
}

func (h *Histogram) init(bounds []float64) {
	h.bounds = bounds
	h.counts = make([]atomic.Uint64, len(bounds)+1)
}

// Observe counts v, in the unit of the family (seconds unless its name says otherwise).
func (h *Histogram) Observe(v float64) {
	i := 0
	for i < len(h.bounds) && v > h.bounds[i] {
		i++ // most observations are small, so walking up beats a binary search
	}
	h.counts[i].Add(1)
	for {
		old := h.sum.Load()
		if h.sum.CompareAndSwap(old, math.Float64bits(math.Float64frombits(old)+v)) {
			return
		}
	}
}

// Since observes the seconds since start.
func (h *Histogram) Since(start time.Time) { h.Observe(time.Since(start).Seconds()) }

// Count is how many observations there were.
func (h *Histogram) Count() uint64 {
	var n uint64
	for i := range h.counts {
		n += h.counts[i].Load()
	}
	return n
}

// childrenMax bounds how many combinations of label values a family may have. Label
// values that come from a client (its API version) must not grow memory without bound:
// what does not fit is counted under overflowLabel.
const (
	childrenMax   = 256
	overflowLabel = "other"
)

// vec is the children of a labelled family, by label values.
type vec[T any] struct {
	mu       sync.RWMutex
	children map[labels]*T
	fresh    func() *T
}

// labels holds up to three label values, the most a family has.
type labels [3]string

func (v *vec[T]) with(values labels) *T {
	v.mu.RLock()
	c := v.children[values]
	v.mu.RUnlock()
	if c != nil {
		return c
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if c := v.children[values]; c != nil {
		return c
	}
	if len(v.children) >= childrenMax {
		for i := range values {
			if values[i] != "" {
				values[i] = overflowLabel
			}
		}
		if c := v.children[values]; c != nil {
			return c
		}
	}
	c = v.fresh()
	v.children[values] = c
	return c
}

func (v *vec[T]) each(fn func(values labels, child *T)) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	for values, child := range v.children {
		fn(values, child)
	}
}

// clear forgets all children.
func (v *vec[T]) clear() {
	v.mu.Lock()
	defer v.mu.Unlock()
	clear(v.children)
}

// CounterVec is a family of counters told apart by labels.
type CounterVec struct{ vec[Counter] }

// With returns the counter of these label values, in the order of the family's labels.
// A hot caller keeps it.
func (v *CounterVec) With(values ...string) *Counter { return v.with(pack(values)) }

// GaugeVec is a family of gauges told apart by labels.
type GaugeVec struct{ vec[Gauge] }

// With returns the gauge of these label values.
func (v *GaugeVec) With(values ...string) *Gauge { return v.with(pack(values)) }

// Clear forgets all label values that were seen.
func (v *GaugeVec) Clear() { v.clear() }

// HistogramVec is a family of histograms told apart by labels.
type HistogramVec struct{ vec[Histogram] }

// With returns the histogram of these label values. A hot caller keeps it.
func (v *HistogramVec) With(values ...string) *Histogram { return v.with(pack(values)) }

func pack(values []string) (l labels) {
	copy(l[:], values)
	return l
}
