package bench

import (
	"os"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 2, 3}, 2.5}} {
		if got := median(c.values); got != c.want {
			t.Errorf("median of %v is %v, want %v", c.values, got, c.want)
		}
	}
}

func TestSummarize(t *testing.T) {
	run := func(rate float64, p50 time.Duration) *Result { return &Result{Rate: rate, Latency: Latency{P50: p50}} }
	rep := &Report{Servers: []*ServerReport{
		{Runs: []*Result{run(100, 10), run(300, 30), run(200, 20)}},
		{Runs: []*Result{run(50, 40), run(60, 40), run(40, 40)}},
	}}
	rep.summarize()
	a, b := rep.Servers[0], rep.Servers[1]
	if a.Medians[0].Value != 200 || b.Medians[0].Value != 50 || a.Ratios != nil {
		t.Errorf("medians %v and %v", a.Medians, b.Medians)
	}
	if b.Ratios["rate"] != 4 || b.Ratios["latency p50"] != 0.5 {
		t.Errorf("ratios %v", b.Ratios)
	}
	if _, ok := b.Ratios["failed"]; ok {
		t.Error("a ratio to 0 is none")
	}
}

func TestGapMeter(t *testing.T) {
	ms := time.Millisecond
	g := &gapMeter{}
	for _, at := range []time.Duration{5 * ms, 6 * ms, 40 * ms, 39 * ms, 50 * ms} {
		g.success(at)
	}
	if got := g.finish(60 * ms); got != (Gap{Length: 34 * ms, At: 6 * ms}) {
		t.Errorf("got %v", got)
	}
	g = &gapMeter{}
	g.success(ms)
	if got := g.finish(90 * ms); got != (Gap{Length: 89 * ms, At: ms}) {
		t.Errorf("the gap until the end: got %v", got)
	}
}

func TestLongestPausesAreKept(t *testing.T) {
	var p GapPhase
	for _, d := range []time.Duration{3, 9, 1, 7, 5, 8, 2, 6, 4, 9} {
		p.record(Pause{Gap: Gap{Length: d}})
	}
	p.sum()
	var got []time.Duration
	for _, x := range p.Longest {
		got = append(got, x.Length)
	}
	if want := []time.Duration{9, 9, 8, 7, 6}; len(got) != 5 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] || got[4] != want[4] {
		t.Errorf("kept %v, want %v", got, want)
	}
	if p.Puts != 10 || p.Max != 9 {
		t.Errorf("%d puts, longest %d", p.Puts, p.Max)
	}
}

func TestErrorTextsAreBounded(t *testing.T) {
	r := newRecorder()
	for i := range 100 {
		r.failure(errorString(strings.Repeat("x", i)))
	}
	if len(r.errors) != errorTextsMax+1 || r.errors["other errors"] != 100-errorTextsMax {
		t.Errorf("%d texts, %d others", len(r.errors), r.errors["other errors"])
	}
}

type errorString string

func (e errorString) Error() string { return string(e) }

func TestParseServer(t *testing.T) {
	s, err := ParseServer("etcd=127.0.0.1:1,http://127.0.0.1:2,pid=7,pid=8")
	if err != nil || s.Name != "etcd" || len(s.Endpoints) != 2 || s.Endpoints[1] != "http://127.0.0.1:2" || len(s.PIDs) != 2 || s.PIDs[1] != 8 {
		t.Errorf("got %+v, %v", s, err)
	}
	for _, bad := range []string{"", "x", "=127.0.0.1:1", "x=", "x=pid=y"} {
		if s, err := ParseServer(bad); err == nil {
			t.Errorf("%q is %+v", bad, s)
		}
	}
}

func TestParseUsage(t *testing.T) {
	stat := "42 (a) b c) S 1 42 42 0 -1 4194560 100 0 0 0 123 45 0 0 20 0 9 0 100 1000 200"
	status := "Name:\ta) b c\nVmRSS:\t    2048 kB\nRssAnon:\t    1024 kB\nRssFile:\t 1024 kB\n"
	got, err := parseUsage([]byte(stat), []byte(status))
	want := Usage{User: 1230 * time.Millisecond, System: 450 * time.Millisecond, RSS: 2 << 20, RSSAnon: 1 << 20}
	if got != want || err != nil {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for _, bad := range [][2]string{{"", status}, {"1 (x) S 1", status}, {stat, "VmRSS: x kB\n"}} {
		if u, err := parseUsage([]byte(bad[0]), []byte(bad[1])); err == nil {
			t.Errorf("%q is %+v", bad, u)
		}
	}
}

func TestSamplerSeesThisProcess(t *testing.T) {
	if _, err := os.Stat("/proc/self/stat"); err != nil {
		t.Skip("no /proc here")
	}
	s, err := startSampler([]int{os.Getpid()})
	if err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); time.Since(start) < 60*time.Millisecond; {
		_ = strings.Repeat("x", 1000)
	}
	r := s.stop()[0]
	if r.CPU() <= 0 || r.RSSPeak < r.RSSAnonPeak || r.RSSAnonPeak == 0 || r.Name == "" || r.Error != "" {
		t.Errorf("got %+v", r)
	}
	if _, err := startSampler([]int{1 << 30}); err == nil {
		t.Error("a process that is not there can be watched")
	}
}

func TestFormats(t *testing.T) {
	for _, c := range []struct{ got, want string }{
		{short(0), "0 ns"}, {short(999), "999 ns"}, {short(1234), "1.23 µs"}, {short(56789), "56.8 µs"}, {short(999_999), "1000 µs"},
		{short(2 * time.Second), "2.00 s"}, {number(1234567.8), "1,234,568"}, {number(27.84), "27.8"}, {number(0), "0"}, {number(999), "999"},
		{size(0), "0.00 KiB"}, {size(5 << 20), "5.00 MiB"}, {size(3 << 30), "3.00 GiB"},
	} {
		if c.got != c.want {
			t.Errorf("got %q, want %q", c.got, c.want)
		}
	}
}
