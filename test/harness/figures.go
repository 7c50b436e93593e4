package harness

import (
	"fmt"
	"io"
	"math"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Sample is the figures of one round, by the name of their row.
type Sample map[string]float64

// Row is one line of a table that compares the two kinds.
type Row struct {
	Name, Unit, Goal string
	// Of says what of all rounds is shown: nil for the median.
	Of func([]float64) float64
}

// Sum and Max are for Row.Of.
func Sum(v []float64) (sum float64) {
	for _, x := range v {
		sum += x
	}
	return sum
}

func Max(v []float64) float64 { return slices.Max(v) }

func median(v []float64) float64 { return slices.Sorted(slices.Values(v))[len(v)/2] }

// Table prints the rows that were measured, as Markdown.
func Table(w io.Writer, rows []Row, samples map[Kind][]Sample) {
	fmt.Fprintln(w, "| what | etcd 3.7.1 | quorate | ratio | goal |\n| --- | --- | --- | --- | --- |")
	for _, r := range rows {
		e, inEtcd := r.of(samples[Etcd])
		q, inQuorate := r.of(samples[Quorate])
		if !inEtcd && !inQuorate {
			continue
		}
		ratio, etcd, quorate := "", "", ""
		if inEtcd {
			etcd = figure(e)
		}
		if inQuorate {
			quorate = figure(q)
		}
		if inEtcd && inQuorate && e != 0 {
			ratio = strconv.FormatFloat(q/e, 'f', 2, 64)
		}
		name := r.Name
		if r.Unit != "" {
			name += " (" + r.Unit + ")"
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", name, etcd, quorate, ratio, r.Goal)
	}
}

func (r Row) of(samples []Sample) (float64, bool) {
	var v []float64
	for _, s := range samples {
		if x, ok := s[r.Name]; ok {
			v = append(v, x)
		}
	}
	if len(v) == 0 {
		return 0, false
	}
	if r.Of != nil {
		return r.Of(v), true
	}
	return median(v), true
}

// figure is three significant digits, and a count as it is.
func figure(v float64) string {
	switch {
	case v >= 100 || v == math.Trunc(v):
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

var (
	rateLine = regexp.MustCompile(`Requests/sec:\s+([\d.]+)`)
	p50Line  = regexp.MustCompile(`50% in ([\d.]+) secs`)
)

// Benchmark runs etcd's benchmark tool against a server and returns its rate, its median in
// seconds, and the CPU seconds that the processes given used meanwhile.
func Benchmark(addr string, pids []int, args ...string) (rate, p50, cpu float64, err error) {
	bin, err := PeerPath("benchmark")
	if err != nil {
		return 0, 0, 0, err
	}
	used := func() (sum float64, err error) {
		for _, pid := range pids {
			s, err := CPUSeconds(pid)
			if err != nil {
				return 0, err
			}
			sum += s
		}
		return sum, nil
	}
	before, err := used()
	if err != nil {
		return 0, 0, 0, err
	}
	cmd := exec.Command(bin, append([]string{"--endpoints", addr, "--precise"}, args...)...)
	cmd.Stderr = io.Discard
	out, err := cmd.Output()
	if err != nil {
		return 0, 0, 0, fmt.Errorf("benchmark %s: %w", strings.Join(args, " "), err)
	}
	after, err := used()
	if err != nil {
		return 0, 0, 0, err
	}
	find := func(re *regexp.Regexp) float64 {
		m := re.FindSubmatch(out)
		if m == nil {
			err = fmt.Errorf("benchmark %v printed no %v:\n%s", args, re, out)
			return 0
		}
		v, perr := strconv.ParseFloat(string(m[1]), 64)
		if perr != nil {
			err = perr
		}
		return v
	}
	rate, p50 = find(rateLine), find(p50Line)
	return rate, p50, after - before, err
}
