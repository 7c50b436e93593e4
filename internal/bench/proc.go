package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
)

// clockTick is the unit of CPU times in /proc: Linux counts them in hundredths of a second for all
// programs, whatever its own clock.
const clockTick = 10 * time.Millisecond

// sampleEvery is how often the memory of a process is looked at for its peak.
const sampleEvery = 50 * time.Millisecond

// A Usage is what a process has used so far.
type Usage struct {
	User, System time.Duration
	RSS, RSSAnon int64 // bytes, now
}

// readUsage reads the usage of a local process. It works where /proc does, that is on Linux.
func readUsage(pid int) (Usage, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return Usage{}, fmt.Errorf("process %d: %w", pid, err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return Usage{}, fmt.Errorf("process %d: %w", pid, err)
	}
	u, err := parseUsage(stat, status)
	if err != nil {
		return Usage{}, fmt.Errorf("process %d: %w", pid, err)
	}
	return u, nil
}

// parseUsage reads the contents of /proc/PID/stat and /proc/PID/status.
func parseUsage(stat, status []byte) (Usage, error) {
	// The second field, the name in brackets, may hold spaces and brackets itself.
	end := bytes.LastIndexByte(stat, ')')
	fields := strings.Fields(string(stat[end+1:]))
	if end < 0 || len(fields) < 13 {
		return Usage{}, fmt.Errorf("cannot read its stat")
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	if err1 != nil || err2 != nil {
		return Usage{}, fmt.Errorf("cannot read its CPU times")
	}
	u := Usage{User: time.Duration(user) * clockTick, System: time.Duration(system) * clockTick}
	for line := range strings.Lines(string(status)) {
		name, rest, _ := strings.Cut(line, ":")
		var to *int64
		switch name {
		case "VmRSS":
			to = &u.RSS
		case "RssAnon":
			to = &u.RSSAnon
		default:
			continue
		}
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
		if err != nil {
			return Usage{}, fmt.Errorf("cannot read its memory: %q", line)
		}
		*to = kb << 10
	}
	return u, nil
}

// A ProcessReport is what a process used during a run.
type ProcessReport struct {
	PID           int           `json:"pid"`
	Name          string        `json:"name"`
	User          time.Duration `json:"user_ns"`
	System        time.Duration `json:"system_ns"`
	RSSBefore     int64         `json:"rss_before"`
	RSSAfter      int64         `json:"rss_after"`
	RSSPeak       int64         `json:"rss_peak"`
	RSSAnonBefore int64         `json:"rss_anon_before"`
	RSSAnonAfter  int64         `json:"rss_anon_after"`
	RSSAnonPeak   int64         `json:"rss_anon_peak"`
	Error         string        `json:"error,omitempty"` // why the figures end early: the process died
}

// CPU returns all processor time.
func (r ProcessReport) CPU() time.Duration { return r.User + r.System }

// A sampler watches processes from start to stop.
type sampler struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
	first  []Usage
	report []ProcessReport
}

// startSampler looks at pids once, and then at their memory until stop.
func startSampler(pids []int) (*sampler, error) {
	s := &sampler{}
	for _, pid := range pids {
		u, err := readUsage(pid)
		if err != nil {
			return nil, err
		}
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil {
			return nil, fmt.Errorf("process %d: %w", pid, err)
		}
		s.first = append(s.first, u)
		s.report = append(s.report, ProcessReport{PID: pid, Name: strings.TrimSpace(string(name)), RSSBefore: u.RSS, RSSAnonBefore: u.RSSAnon})
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.done.Go(func() {
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				s.sample()
			case <-ctx.Done():
				return
			}
		}
	})
	return s, nil
}

// sample brings the reports up to date. A process that is gone keeps its last figures.
func (s *sampler) sample() {
	for i := range s.report {
		r := &s.report[i]
		u, err := readUsage(r.PID)
		if err != nil {
			r.Error = err.Error()
			continue
		}
		r.User, r.System = u.User-s.first[i].User, u.System-s.first[i].System
		r.RSSAfter, r.RSSAnonAfter = u.RSS, u.RSSAnon
		r.RSSPeak, r.RSSAnonPeak = max(r.RSSPeak, u.RSS), max(r.RSSAnonPeak, u.RSSAnon)
	}
}

// stop ends the sampling and returns one report a process.
func (s *sampler) stop() []ProcessReport {
	s.cancel()
	s.done.Wait()
	s.sample()
	return s.report
}
