package bench

import (
	"slices"
	"time"
)

// barsMax is the number of bars of a histogram.
const barsMax = 20

// A Latency sums up durations.
type Latency struct {
	Mean time.Duration `json:"mean_ns"`
	P50  time.Duration `json:"p50_ns"`
	P90  time.Duration `json:"p90_ns"`
	P99  time.Duration `json:"p99_ns"`
	P999 time.Duration `json:"p999_ns"`
	Max  time.Duration `json:"max_ns"`
	Bars []Bar         `json:"histogram,omitempty"`
}

func latencyOf(h *Histogram) Latency {
	return Latency{
		Mean: h.Mean(), P50: h.Quantile(0.5), P90: h.Quantile(0.9), P99: h.Quantile(0.99), P999: h.Quantile(0.999), Max: h.Max(),
		Bars: h.Bars(barsMax),
	}
}

// A Result is what one run showed.
type Result struct {
	Server     string             `json:"server"`
	Workload   string             `json:"workload"`
	Requests   int64              `json:"requests"` // that succeeded
	Failed     int64              `json:"failed"`
	Elapsed    time.Duration      `json:"elapsed_ns"`
	Rate       float64            `json:"rate"` // successes a second
	Latency    Latency            `json:"latency"`
	Delivery   *Latency           `json:"delivery,omitempty"` // watch: from the put to its event
	Gap        Gap                `json:"longest_gap"`        // without a success of any client
	ClientGap  Gap                `json:"longest_client_gap"` // without a success of one client; closed loop only
	Errors     map[string]int64   `json:"errors,omitempty"`
	Processes  []ProcessReport    `json:"processes,omitempty"`
	CPURequest time.Duration      `json:"cpu_per_request_ns,omitempty"` // of all processes
	Extra      map[string]float64 `json:"extra,omitempty"`
}

// newResult sums up a run. No request is under way any more.
func newResult(cfg *Config, rec *recorder, elapsed time.Duration, processes []ProcessReport) *Result {
	r := &Result{
		Workload:  cfg.Workload,
		Requests:  rec.done.Load(),
		Failed:    rec.failed.Load(),
		Elapsed:   elapsed,
		Latency:   latencyOf(rec.merged()),
		Gap:       rec.gap.finish(elapsed),
		ClientGap: rec.clientGap,
		Errors:    rec.errors,
		Processes: processes,
		Extra:     make(map[string]float64),
	}
	if elapsed > 0 {
		r.Rate = float64(r.Requests) / elapsed.Seconds()
	}
	var cpu time.Duration
	for _, p := range processes {
		cpu += p.CPU()
	}
	if r.Requests > 0 {
		r.CPURequest = cpu / time.Duration(r.Requests)
	}
	return r
}

// A Metric is one figure of a result that servers are compared by.
type Metric struct {
	Name  string  `json:"name"`
	Unit  unit    `json:"unit"`
	Value float64 `json:"value"`
}

type unit string

const (
	unitRate     unit = "/s"
	unitDuration unit = "ns"
	unitBytes    unit = "bytes"
	unitCount    unit = ""
)

// metrics returns the figures of r, always the same ones in the same order for one load.
func (r *Result) metrics() []Metric {
	duration := func(name string, d time.Duration) Metric { return Metric{name, unitDuration, float64(d)} }
	ms := []Metric{
		{"rate", unitRate, r.Rate},
		duration("latency p50", r.Latency.P50),
		duration("latency p90", r.Latency.P90),
		duration("latency p99", r.Latency.P99),
		duration("latency p99.9", r.Latency.P999),
		duration("latency max", r.Latency.Max),
		duration("longest gap", r.Gap.Length),
		{"failed", unitCount, float64(r.Failed)},
	}
	if r.Delivery != nil {
		ms = append(ms, duration("delivery p50", r.Delivery.P50), duration("delivery p99", r.Delivery.P99), duration("delivery max", r.Delivery.Max))
	}
	for _, name := range sortedKeys(r.Extra) {
		ms = append(ms, Metric{name, unitCount, r.Extra[name]})
	}
	if len(r.Processes) > 0 {
		var rss, anon int64
		for _, p := range r.Processes {
			rss += p.RSSPeak
			anon += p.RSSAnonPeak
		}
		ms = append(ms, duration("cpu per request", r.CPURequest),
			Metric{"rss peak", unitBytes, float64(rss)}, Metric{"anonymous peak", unitBytes, float64(anon)})
	}
	return ms
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// median returns the middle of values, the mean of the two in the middle if their number is even;
// 0 of none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// A Report is all that a bench command found out.
type Report struct {
	Config  *Config         `json:"config"`
	Servers []*ServerReport `json:"servers"`
}

// A ServerReport holds the runs on one server.
type ServerReport struct {
	Server
	Runs    []*Result `json:"runs"`
	Medians []Metric  `json:"medians"` // of each metric over the runs
	// Ratios of the first server's medians to these; absent for the first server, and for a metric
	// that is 0 here.
	Ratios map[string]float64 `json:"ratios,omitempty"`
}

// summarize fills in the medians and ratios of rep.
func (rep *Report) summarize() {
	for i, s := range rep.Servers {
		s.Medians = medians(s.Runs)
		if i == 0 {
			continue
		}
		s.Ratios = make(map[string]float64)
		for j, m := range s.Medians {
			if first := rep.Servers[0].Medians; j < len(first) && first[j].Name == m.Name && m.Value != 0 {
				s.Ratios[m.Name] = first[j].Value / m.Value
			}
		}
	}
}

// medians returns the median of each metric over the runs.
func medians(runs []*Result) []Metric {
	if len(runs) == 0 {
		return nil
	}
	out := runs[0].metrics()
	for i := range out {
		var values []float64
		for _, r := range runs {
			// A run on a server whose process died may have fewer metrics.
			if ms := r.metrics(); i < len(ms) {
				values = append(values, ms[i].Value)
			}
		}
		out[i].Value = median(values)
	}
	return out
}
