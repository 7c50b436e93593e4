package rpc

import (
	"context"
	"sync"
	"time"

	"quorate/internal/kv"
)

// A client can ask with its metadata (hasleader) for a member that has a leader. One rule
// holds for its calls and its streams: they are ended, or refused, once there has been no
// leader for leaderlessMax election timeouts, as etcd ends streams. A mere change of leader
// is shorter, so that nothing ends for it; a call that comes meanwhile waits. (etcd refuses
// calls at once. Who is cut off from the others still hears of it soon.)

const (
	leaderlessMax = 3 // election timeouts
	// leaderLooks is how often in an election timeout somebody looks for the leader, and
	// leaderPoll how long one who waits for it sleeps between two looks.
	leaderLooks = 10
	leaderPoll  = time.Millisecond
)

// leaderless is since when there has been no leader.
type leaderless struct {
	limit time.Duration // that calls and streams bear

	mu    sync.Mutex
	since time.Time     // zero: there was a leader at the last look
	back  chan struct{} // closed when there is one again; nil if nobody waits
	look  chan struct{} // wakes the one who looks
}

func newLeaderless(electionTimeout time.Duration) leaderless {
	return leaderless{limit: leaderlessMax * electionTimeout, look: make(chan struct{}, 1)}
}

// await returns nil once there is a leader; kv.ErrNoLeader if there has been none for too
// long; or ctx's error.
func (l *leaderless) await(ctx context.Context, b Backend) error {
	if b.Leader() != 0 {
		return nil
	}
	l.mu.Lock()
	now := time.Now()
	if l.since.IsZero() {
		l.since = now
	}
	left := l.limit - now.Sub(l.since)
	if left <= 0 {
		l.mu.Unlock()
		return kv.ErrNoLeader
	}
	if l.back == nil {
		l.back = make(chan struct{})
	}
	back := l.back
	l.mu.Unlock()
	select {
	case l.look <- struct{}{}:
	default:
	}
	limit := time.NewTimer(left)
	defer limit.Stop()
	select {
	case <-back:
		return nil
	case <-limit.C:
		return kv.ErrNoLeader
	case <-ctx.Done():
		return ctx.Err()
	}
}

// seen notes whether there is a leader now. It returns how long to sleep until the next
// look, and whether streams have to end.
func (l *leaderless) seen(leader bool, now time.Time) (sleep time.Duration, end bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	sleep = l.limit / leaderlessMax / leaderLooks
	if leader {
		l.since = time.Time{}
		if l.back != nil {
			close(l.back)
			l.back = nil
		}
		return sleep, false
	}
	if l.since.IsZero() {
		l.since = now
	}
	if now.Sub(l.since) >= l.limit {
		l.back = nil // whoever waited has given up
		return sleep, true
	}
	if l.back != nil {
		sleep = min(sleep, leaderPoll)
	}
	return sleep, false
}

// watchLeader ends the streams that require a leader once there has been none for too
// long, and lets those go on who wait for one, until done.
func (s *services) watchLeader(done <-chan struct{}) {
	l := &s.leaderless
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		select {
		case <-done:
			return
		case <-l.look:
		case <-next.C:
		}
		sleep, end := l.seen(s.Leader() != 0, time.Now())
		if end {
			s.endLeaderless()
		}
		next.Reset(sleep)
	}
}

func (s *services) endLeaderless() {
	s.streams.Lock()
	defer s.streams.Unlock()
	for o := range s.streams.open {
		if o.requireLeader {
			o.cancel(kv.ErrNoLeader)
		}
	}
}
