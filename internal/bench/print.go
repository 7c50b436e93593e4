package bench

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// barWidth is the length of the longest bar.
const barWidth = 50

// printResult writes what people want to know of one run.
func printResult(w io.Writer, cfg *Config, r *Result) {
	fmt.Fprintf(w, "%s %s: %d requests in %s, %s/s  (%d clients on %d connections)\n",
		r.Server, r.Workload, r.Requests, short(r.Elapsed), number(r.Rate), cfg.Clients, cfg.Conns)
	printLatency(w, "latency", r.Latency)
	if r.Delivery != nil {
		printLatency(w, "delivery", *r.Delivery)
	}
	printBars(w, r.Latency.Bars)
	fmt.Fprintf(w, "  longest gap  %s at %s", short(r.Gap.Length), short(r.Gap.At))
	if r.ClientGap.Length > 0 {
		fmt.Fprintf(w, ", of one client %s at %s", short(r.ClientGap.Length), short(r.ClientGap.At))
	}
	fmt.Fprintln(w)
	for _, name := range sortedKeys(r.Extra) {
		fmt.Fprintf(w, "  %s  %s\n", strings.ReplaceAll(name, "_", " "), number(r.Extra[name]))
	}
	printErrors(w, r.Failed, r.Errors)
	for _, p := range r.Processes {
		per := time.Duration(0)
		if r.Requests > 0 {
			per = p.CPU() / time.Duration(r.Requests)
		}
		fmt.Fprintf(w, "  pid %d (%s)  cpu %s (user %s, sys %s), %s a request\n",
			p.PID, p.Name, short(p.CPU()), short(p.User), short(p.System), short(per))
		fmt.Fprintf(w, "    memory %s before, %s after, %s peak; anonymous %s before, %s after, %s peak\n",
			size(p.RSSBefore), size(p.RSSAfter), size(p.RSSPeak), size(p.RSSAnonBefore), size(p.RSSAnonAfter), size(p.RSSAnonPeak))
		if p.Error != "" {
			fmt.Fprintf(w, "    figures end early: %s\n", p.Error)
		}
	}
}

func printLatency(w io.Writer, name string, l Latency) {
	fmt.Fprintf(w, "  %s  mean %s  p50 %s  p90 %s  p99 %s  p99.9 %s  max %s\n",
		name, short(l.Mean), short(l.P50), short(l.P90), short(l.P99), short(l.P999), short(l.Max))
}

func printBars(w io.Writer, bars []Bar) {
	var most int64
	for _, b := range bars {
		most = max(most, b.Count)
	}
	for _, b := range bars {
		n := int(b.Count * barWidth / most)
		if n == 0 && b.Count > 0 {
			n = 1 // one in a million is what is looked for here
		}
		fmt.Fprintf(w, "    ≤ %8s  %-*s %d\n", short(b.To), barWidth, strings.Repeat("█", n), b.Count)
	}
}

func printErrors(w io.Writer, failed int64, texts map[string]int64) {
	if failed == 0 {
		return
	}
	fmt.Fprintf(w, "  %d failed\n", failed)
	for _, text := range sortedKeys(texts) {
		fmt.Fprintf(w, "    %d × %s\n", texts[text], text)
	}
}

// printComparison writes the medians of all servers side by side, with the ratios of the first to each.
func printComparison(w io.Writer, rep *Report) error {
	if len(rep.Servers) == 1 && len(rep.Servers[0].Runs) == 1 {
		return nil
	}
	fmt.Fprintf(w, "\nmedians of %d runs", len(rep.Servers[0].Runs))
	if len(rep.Servers) > 1 {
		fmt.Fprintf(w, "; the ratio is that of %s to the server before it", rep.Servers[0].Name)
	}
	fmt.Fprintln(w)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for i, s := range rep.Servers {
		fmt.Fprintf(tw, "\t%s", s.Name)
		if i > 0 {
			fmt.Fprint(tw, "\tratio")
		}
	}
	fmt.Fprintln(tw, "\t")
	for j, m := range rep.Servers[0].Medians {
		fmt.Fprint(tw, strings.ReplaceAll(m.Name, "_", " "))
		for i, s := range rep.Servers {
			if j >= len(s.Medians) {
				fmt.Fprint(tw, "\t")
				continue
			}
			fmt.Fprintf(tw, "\t%s", s.Medians[j])
			if i > 0 {
				if ratio, ok := s.Ratios[m.Name]; ok {
					fmt.Fprintf(tw, "\t%.2f", ratio)
				} else {
					fmt.Fprint(tw, "\t")
				}
			}
		}
		fmt.Fprintln(tw, "\t")
	}
	return tw.Flush()
}

// String writes the value with its unit.
func (m Metric) String() string {
	switch m.Unit {
	case unitDuration:
		return short(time.Duration(m.Value))
	case unitBytes:
		return size(int64(m.Value))
	}
	return number(m.Value) + string(m.Unit)
}

// short writes a duration with three digits.
func short(d time.Duration) string {
	for _, u := range []struct {
		unit time.Duration
		name string
	}{{time.Second, "s"}, {time.Millisecond, "ms"}, {time.Microsecond, "µs"}} {
		if d >= u.unit {
			return significant(float64(d)/float64(u.unit)) + " " + u.name
		}
	}
	return fmt.Sprintf("%d ns", d)
}

// significant writes v with three digits, or as many as it has before the point.
func significant(v float64) string {
	switch {
	case v >= 99.95:
		return fmt.Sprintf("%.0f", v)
	case v >= 9.995:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// number writes a count or rate, with thousands apart.
func number(v float64) string {
	if v < 100 && v != float64(int64(v)) {
		return significant(v)
	}
	s := fmt.Sprintf("%.0f", v)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// size writes a number of bytes.
func size(n int64) string {
	switch {
	case n >= 1<<30:
		return significant(float64(n)/(1<<30)) + " GiB"
	case n >= 1<<20:
		return significant(float64(n)/(1<<20)) + " MiB"
	}
	return significant(float64(n)/(1<<10)) + " KiB"
}
