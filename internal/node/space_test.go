package node

import (
	"syscall"
	"testing"
	"time"
)

// A disk that stays full is told of at once, every minute in the end, and when it is over.
func TestStallIsToldEverMoreSeldom(t *testing.T) {
	var s stallNotice
	start := time.Unix(1000, 0)
	var told []time.Duration
	const minutes = 10
	for at := time.Duration(0); at < minutes*time.Minute; at += keeperTick {
		stalled, over := s.due(syscall.ENOSPC, start.Add(at))
		if stalled {
			told = append(told, at)
		}
		if over {
			t.Fatalf("over after %s", at)
		}
	}
	if len(told) < minutes || len(told) > minutes+6 || told[0] != 0 || told[1] != time.Second {
		t.Errorf("told at %s", told)
	}
	end := start.Add(minutes * time.Minute)
	if stalled, over := s.due(nil, end); stalled || !over {
		t.Errorf("stalled %v, over %v; want to be told once that it is over", stalled, over)
	}
	if stalled, over := s.due(nil, end); stalled || over {
		t.Errorf("told of nothing: stalled %v, over %v", stalled, over)
	}
	if stalled, _ := s.due(syscall.ENOSPC, end); !stalled {
		t.Error("another stall is not told at once")
	}
}
