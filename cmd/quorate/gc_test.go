package main

import (
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestHeapRoomDoesNotDependOnWhatLives(t *testing.T) {
	for _, tc := range []struct {
		live uint64
		want int
	}{
		{0, gcPercentMax}, {1 << 20, gcPercentMax}, {heapRoom, 100}, {2 * heapRoom, 50}, {1 << 40, gcPercentMin},
	} {
		if got := gcPercent(tc.live); got != tc.want {
			t.Errorf("gcPercent(%d) = %d, want %d", tc.live, got, tc.want)
		}
	}
}

func TestTargetFollowsEveryCollection(t *testing.T) {
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	tuner := &gcTuner{percent: 100}
	afterEachGC(tuner)
	for range 100 {
		runtime.GC()
		time.Sleep(time.Millisecond) // finalizers run on their own goroutine
		if got := debug.SetGCPercent(100); got > 100 {
			return
		}
	}
	t.Error("the target of a small heap stayed at 100 %")
}
