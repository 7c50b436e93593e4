package main

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"quorate/test/harness"
)

// writer puts in sequence through one member.
type writer struct {
	member *harness.Member
	client *clientv3.Client
	began  time.Time

	// lastCall is when the latest acknowledged put was asked for.
	lastCall atomic.Int64

	calls []call // owned by the writer until it has ended
}

// call is one put.
type call struct {
	from, to time.Duration
	err      error
}

// run writes until ctx ends. A put outlives it: what was asked for is waited for.
func (w *writer) run(ctx context.Context, key string) {
	for ctx.Err() == nil {
		put, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
		from := time.Since(w.began)
		_, err := w.client.Put(put, key, value)
		cancel()
		w.calls = append(w.calls, call{from, time.Since(w.began), err})
		if err != nil {
			time.Sleep(time.Millisecond)
			continue
		}
		w.lastCall.Store(int64(from))
	}
}

var value = string(make([]byte, 256))

// longest is the longest time between two acknowledged puts that ends after since.
func (w *writer) longest(since time.Duration) (gap time.Duration) {
	last := time.Duration(0)
	for _, c := range w.calls {
		if c.err != nil {
			continue
		}
		if c.to > since {
			gap = max(gap, c.to-last)
		}
		last = c.to
	}
	return gap
}

// writers are some that write at once.
type writers struct {
	list   []*writer
	began  time.Time
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// write starts n writers on each member.
func write(ctx context.Context, members []*harness.Member, n int) (*writers, error) {
	ctx, cancel := context.WithCancel(ctx)
	ws := &writers{began: time.Now(), cancel: cancel}
	for _, m := range members {
		for i := range n {
			client, err := m.Client()
			if err != nil {
				ws.stop()
				return nil, err
			}
			w := &writer{member: m, client: client, began: ws.began}
			ws.list = append(ws.list, w)
			ws.wg.Go(func() { w.run(ctx, fmt.Sprintf("writer/%s/%d", m.Name, i)) })
		}
	}
	return ws, nil
}

// stop ends the writers and returns when they have their last answers.
func (ws *writers) stop() {
	ws.cancel()
	ws.wg.Wait()
	for _, w := range ws.list {
		w.client.Close()
	}
}

func (ws *writers) now() time.Duration { return time.Since(ws.began) }

// writing waits until every writer has an answer to what it asked for after since.
func (ws *writers) writing(ctx context.Context, list []*writer, since time.Duration) error {
	for _, w := range list {
		for time.Duration(w.lastCall.Load()) <= since {
			select {
			case <-ctx.Done():
				return fmt.Errorf("the writer on %s gets no answers: %w", w.member.Name, ctx.Err())
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	return nil
}

// change measures what one writer on each member sees when the leader goes away in one of
// four ways, and comes back.
func (b *bench) change(ctx context.Context, how string) error {
	leader, err := b.cluster.Leader(ctx)
	if err != nil {
		return err
	}
	ws, err := write(ctx, b.cluster.Members, 1)
	if err != nil {
		return err
	}
	defer ws.stop()
	if err := ws.writing(ctx, ws.list, 2*time.Second); err != nil {
		return err
	}
	var others []*writer
	for _, w := range ws.list {
		if w.member != leader {
			others = append(others, w)
		}
	}

	name := map[string]string{"kill": "killed", "stop": "stopped", "pause": "paused", "partition": "cut off"}[how]
	at := ws.now()
	n := b.cluster.Network
	switch how {
	case "kill":
		leader.Kill()
	case "stop":
		err = leader.Stop()
	case "pause":
		err = leader.Pause()
	case "partition":
		err = n.Isolate(leader.Index())
	}
	if err != nil {
		return err
	}
	// It stays away until the others have long gone on, and then comes back.
	if err := ws.writing(ctx, others, ws.now()+3*time.Second); err != nil {
		return err
	}
	switch how {
	case "kill", "stop":
		err = leader.Launch()
	case "pause":
		err = leader.Resume()
	case "partition":
		err = n.Heal()
	}
	if err != nil {
		return err
	}
	if err := ws.writing(ctx, ws.list, ws.now()+2*time.Second); err != nil {
		return err
	}
	ws.stop()

	gap, failed := time.Duration(0), 0
	for _, w := range others {
		gap = max(gap, w.longest(at))
		for _, c := range w.calls {
			if c.err != nil {
				failed++
			}
		}
	}
	b.out["leader "+name+": longest gap on the others"] = gap.Seconds() * 1e3
	b.out["leader "+name+": the same, worst round"] = gap.Seconds() * 1e3
	b.out["leader "+name+": errors on the others, all rounds"] = float64(failed)
	if how != "stop" {
		return nil
	}
	inFlight := 0
	for _, w := range ws.list {
		for _, c := range w.calls {
			if w.member == leader && c.err != nil && c.from <= at && at <= c.to {
				inFlight++
			}
		}
	}
	b.out["leader stopped: its own requests in flight that failed, all rounds"] = float64(inFlight)
	return nil
}
