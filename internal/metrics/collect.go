package metrics

import (
	"fmt"
	"math"
	"reflect"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// family is one tagged field of a Set.
type family struct {
	desc   *prometheus.Desc
	labels int // how many
	field  any // pointer to the field
}

// describe reads the tags of s and gives its histograms their buckets.
func describe(s *Set) []family {
	var families []family
	v := reflect.ValueOf(s).Elem()
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		name, ok := tag.Lookup("metric")
		if !ok {
			continue
		}
		var names []string
		if l := tag.Get("labels"); l != "" {
			names = strings.Split(l, ",")
		}
		field := v.Field(i).Addr().Interface()
		switch f := field.(type) {
		case *Histogram:
			f.init(buckets(tag.Get("buckets")))
		case *CounterVec:
			f.children, f.fresh = make(map[labels]*Counter), func() *Counter { return new(Counter) }
		case *GaugeVec:
			f.children, f.fresh = make(map[labels]*Gauge), func() *Gauge { return new(Gauge) }
		case *HistogramVec:
			bounds := buckets(tag.Get("buckets"))
			f.children, f.fresh = make(map[labels]*Histogram), func() *Histogram { return newHistogram(bounds) }
		}
		families = append(families, family{
			desc:   prometheus.NewDesc(name, tag.Get("help"), names, nil),
			labels: len(names),
			field:  field,
		})
	}
	return families
}

// buckets turns a tag "first count" into upper bounds that double.
func buckets(tag string) []float64 {
	var first float64
	var count int
	if _, err := fmt.Sscan(tag, &first, &count); err != nil {
		panic(fmt.Sprintf("metrics: buckets %q: %v", tag, err))
	}
	return prometheus.ExponentialBuckets(first, 2, count)
}

// Describe implements prometheus.Collector.
func (s *Set) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range s.families {
		ch <- f.desc
	}
}

// Collect implements prometheus.Collector.
func (s *Set) Collect(ch chan<- prometheus.Metric) {
	for _, f := range s.families {
		switch m := f.field.(type) {
		case *Counter:
			ch <- number(f.desc, prometheus.CounterValue, float64(m.Value()))
		case *Gauge:
			ch <- number(f.desc, prometheus.GaugeValue, m.Value())
		case *Info:
			if v := m.Value(); v != "" {
				ch <- number(f.desc, prometheus.GaugeValue, 1, v)
			}
		case *Histogram:
			ch <- m.metric(f.desc)
		case *CounterVec:
			m.each(func(l labels, c *Counter) {
				ch <- number(f.desc, prometheus.CounterValue, float64(c.Value()), l[:f.labels]...)
			})
		case *GaugeVec:
			m.each(func(l labels, g *Gauge) {
				ch <- number(f.desc, prometheus.GaugeValue, g.Value(), l[:f.labels]...)
			})
		case *HistogramVec:
			m.each(func(l labels, h *Histogram) { ch <- h.metric(f.desc, l[:f.labels]...) })
		}
	}
}

func number(d *prometheus.Desc, t prometheus.ValueType, v float64, labels ...string) prometheus.Metric {
	return prometheus.MustNewConstMetric(d, t, v, labels...)
}

// metric is the histogram now. Observations that run beside it may be in the sum and
// not yet in the counts; the next collection has them.
func (h *Histogram) metric(d *prometheus.Desc, labels ...string) prometheus.Metric {
	cumulative := make(map[float64]uint64, len(h.bounds))
	var n uint64
	for i, bound := range h.bounds {
		n += h.counts[i].Load()
		cumulative[bound] = n
	}
	n += h.counts[len(h.bounds)].Load()
	return prometheus.MustNewConstHistogram(d, n, math.Float64frombits(h.sum.Load()), cumulative, labels...)
}
