package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// heapRoom is how much the heap may grow beyond what lives, in bytes, before it is
	// collected again. What a busy member allocates is short-lived and does not depend on
	// how much it stores: a small heap that may only double is collected far too often,
	// and a large one that may double takes far too much memory.
	heapRoom = 32 << 20
	// gcPercentMin and gcPercentMax bound the room in percent of what lives.
	gcPercentMin = 40
	gcPercentMax = 800
)

// tuneGC gives the heap heapRoom from now on, whatever lives, unless GOGC says otherwise.
func tuneGC() {
	if os.Getenv("GOGC") != "" {
		return
	}
	afterEachGC(&gcTuner{})
}

// gcTuner sets the collector's target after each collection.
type gcTuner struct{ percent int }

func (t *gcTuner) collected() {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	percent := gcPercent(live[0].Value.Uint64())
	// Setting it stops the world for a moment: not for a trifle.
	if diff := percent - t.percent; diff*diff*100 > t.percent*t.percent {
		t.percent = percent
		debug.SetGCPercent(percent)
	}
}

// gcPercent is heapRoom in percent of live bytes.
func gcPercent(live uint64) int {
	return int(min(max(heapRoom*100/max(live, 1), gcPercentMin), gcPercentMax))
}

// afterEachGC calls t after every collection, for as long as the process runs: an object
// that nobody holds is found dead by each.
func afterEachGC(t *gcTuner) {
	type sentinel struct{ t *gcTuner }
	var arm func(*sentinel)
	arm = func(s *sentinel) {
		s.t.collected()
		runtime.SetFinalizer(s, arm)
	}
	runtime.SetFinalizer(&sentinel{t}, arm)
}
