package bench

import (
	"math/bits"
	"sync/atomic"
	"time"
)

const (
	// subBits is the number of bits of a duration that a bucket keeps: buckets are at most 1/128
	// (0.8 %) of their value wide.
	subBits = 7
	// maxExp bounds durations: 2^40 ns are 18 minutes, longer ones count as that.
	maxExp     = 40
	maxValue   = 1<<maxExp - 1
	numBuckets = (maxExp - subBits + 1) << subBits
)

// A Histogram counts durations in buckets whose width grows with the duration, so that it has a fixed
// size (35 kB) and a bounded relative error, however many durations it is given.
//
// Record may run concurrently with itself and with reads, which see some of the durations that are
// being recorded. The zero value is empty.
type Histogram struct {
	count   atomic.Int64
	sum     atomic.Int64 // ns
	max     atomic.Int64 // ns, exact
	buckets [numBuckets]atomic.Int64
}

// bucketOf returns the bucket of a duration in ns. Below 2^subBits each value has its own bucket;
// above, an octave has 2^subBits of them.
func bucketOf(ns int64) int {
	v := uint64(min(max(ns, 0), maxValue))
	shift := max(bits.Len64(v)-1-subBits, 0)
	return shift<<subBits + int(v>>shift)
}

// bucketEnd returns the greatest value of bucket i, in ns.
func bucketEnd(i int) int64 {
	if i < 2<<subBits {
		return int64(i)
	}
	shift := i>>subBits - 1
	mantissa := int64(i - shift<<subBits)
	return (mantissa+1)<<shift - 1
}

// Record counts one duration. A negative one counts as 0.
func (h *Histogram) Record(d time.Duration) {
	ns := max(int64(d), 0)
	h.count.Add(1)
	h.sum.Add(ns)
	h.buckets[bucketOf(ns)].Add(1)
	for {
		old := h.max.Load()
		if ns <= old || h.max.CompareAndSwap(old, ns) {
			return
		}
	}
}

// Add counts what other has counted. It must not overlap with Record on other.
func (h *Histogram) Add(other *Histogram) {
	h.count.Add(other.count.Load())
	h.sum.Add(other.sum.Load())
	h.max.Store(max(h.max.Load(), other.max.Load()))
	for i := range other.buckets {
		if n := other.buckets[i].Load(); n > 0 {
			h.buckets[i].Add(n)
		}
	}
}

// Count returns how many durations were recorded.
func (h *Histogram) Count() int64 { return h.count.Load() }

// Max returns the longest duration, exactly.
func (h *Histogram) Max() time.Duration { return time.Duration(h.max.Load()) }

// Mean returns the average, exactly; 0 of none.
func (h *Histogram) Mean() time.Duration {
	n := h.count.Load()
	if n == 0 {
		return 0
	}
	return time.Duration(h.sum.Load() / n)
}

// Quantile returns a duration that the share q (0 to 1) of all is not longer than, at most 0.8 % too
// long; 0 of none.
func (h *Histogram) Quantile(q float64) time.Duration {
	n := h.count.Load()
	if n == 0 {
		return 0
	}
	// The rank of the duration wanted, from 1. The small step back keeps 0.99*100 at 99.
	rank := min(max(int64(q*float64(n)-1e-9)+1, 1), n)
	for i := range h.buckets {
		if rank -= h.buckets[i].Load(); rank <= 0 {
			return time.Duration(min(bucketEnd(i), h.max.Load()))
		}
	}
	return h.Max()
}

// A Bar is a part of a histogram: Count durations up to To, and longer than the To of the bar before.
type Bar struct {
	To    time.Duration `json:"to_ns"`
	Count int64         `json:"count"`
}

// barSteps are the ways to divide a decade into bars with round ends, the finest first.
var barSteps = [][]float64{
	{1, 1.25, 1.6, 2, 2.5, 3.2, 4, 5, 6.3, 8},
	{1, 1.6, 2.5, 4, 6.3},
	{1, 2, 5},
	{1, 3},
	{1},
}

// Bars returns the histogram in bars with round ends, at most n of them if n is 15 or more, none
// empty at either end.
func (h *Histogram) Bars(n int) []Bar {
	if h.Count() == 0 {
		return nil
	}
	for i, steps := range barSteps {
		if bars := h.bars(steps); len(bars) <= n || i == len(barSteps)-1 {
			return bars
		}
	}
	return nil
}

// bars divides each decade at steps.
func (h *Histogram) bars(steps []float64) []Bar {
	var bars []Bar
	step, decade := 0, 1.0 // the end of the bar is their product
	count := int64(0)
	for i := range h.buckets {
		c := h.buckets[i].Load()
		for bucketEnd(i) > int64(steps[step]*decade) {
			if count > 0 || len(bars) > 0 {
				bars = append(bars, Bar{To: time.Duration(steps[step] * decade), Count: count})
				count = 0
			}
			if step++; step == len(steps) {
				step, decade = 0, decade*10
			}
		}
		count += c
	}
	if count > 0 {
		bars = append(bars, Bar{To: time.Duration(steps[step] * decade), Count: count})
	}
	for len(bars) > 0 && bars[len(bars)-1].Count == 0 {
		bars = bars[:len(bars)-1]
	}
	return bars
}
