package bench

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestBucketsCoverAllDurations(t *testing.T) {
	// Every value lies in the bucket that it is given, and the buckets follow each other without gap.
	prev := int64(-1)
	for i := range numBuckets {
		end := bucketEnd(i)
		if bucketOf(prev+1) != i || bucketOf(end) != i {
			t.Fatalf("bucket %d is %d to %d, but those are in %d and %d", i, prev+1, end, bucketOf(prev+1), bucketOf(end))
		}
		if width := end - prev; i > 1<<subBits && float64(width) > float64(end)/(1<<subBits)+1 {
			t.Fatalf("bucket %d, up to %d, is %d wide", i, end, width)
		}
		prev = end
	}
	if prev != maxValue {
		t.Errorf("last bucket ends at %d, want %d", prev, int64(maxValue))
	}
	for _, v := range []int64{-1, maxValue + 1, 1<<63 - 1} {
		if b := bucketOf(v); b < 0 || b >= numBuckets {
			t.Errorf("bucket of %d is %d", v, b)
		}
	}
}

func TestHistogramAgainstSortedSlice(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		var h Histogram
		values := make([]time.Duration, 1+rng.IntN(5000))
		var sum time.Duration
		for i := range values {
			values[i] = time.Duration(rng.Int64N(1 << (1 + rng.IntN(36))))
			sum += values[i]
			h.Record(values[i])
		}
		slices.Sort(values)
		for _, q := range []float64{0, 0.001, 0.5, 0.9, 0.99, 0.999, 1} {
			rank := 1
			for float64(rank) < q*float64(len(values))-1e-6 {
				rank++
			}
			want, got := values[rank-1], h.Quantile(q)
			if got < want || float64(got-want) > float64(want)/(1<<subBits)+1 {
				t.Errorf("quantile %v of %d: got %d, want %d", q, len(values), got, want)
			}
		}
		if h.Max() != values[len(values)-1] || h.Count() != int64(len(values)) || h.Mean() != sum/time.Duration(len(values)) {
			t.Errorf("max %d count %d mean %d", h.Max(), h.Count(), h.Mean())
		}
	}
}

func TestHistogramOfNothing(t *testing.T) {
	var h Histogram
	if h.Quantile(0.99) != 0 || h.Mean() != 0 || h.Max() != 0 || h.Bars(20) != nil {
		t.Error("an empty histogram is not empty")
	}
}

func TestHistogramAdd(t *testing.T) {
	var a, b Histogram
	a.Record(time.Second)
	b.Record(time.Millisecond)
	b.Record(3 * time.Second)
	a.Add(&b)
	if a.Count() != 3 || a.Max() != 3*time.Second || a.Mean() != 4001*time.Millisecond/3 {
		t.Errorf("count %d max %v mean %v", a.Count(), a.Max(), a.Mean())
	}
}

func TestBars(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 200 {
		var h Histogram
		for range 1 + rng.IntN(300) {
			h.Record(time.Duration(rng.Int64N(1 << (1 + rng.IntN(40)))))
		}
		bars := h.Bars(20)
		var sum int64
		for i, b := range bars {
			sum += b.Count
			if i > 0 && b.To <= bars[i-1].To {
				t.Fatalf("bars do not grow: %v", bars)
			}
		}
		if len(bars) > 20 || sum != h.Count() || bars[0].Count == 0 || bars[len(bars)-1].Count == 0 {
			t.Fatalf("%d bars of %d, want at most 20 of %d, full at both ends: %v", len(bars), sum, h.Count(), bars)
		}
	}
}

func BenchmarkRecord(b *testing.B) {
	var h Histogram
	for i := 0; b.Loop(); i++ {
		h.Record(time.Duration(i) * 37)
	}
}
