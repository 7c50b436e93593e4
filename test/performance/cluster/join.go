package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/test/harness"
)

// join measures what the writers on a large store see when a new member is brought up to
// date, as a learner, from a snapshot.
func (b *bench) join(ctx context.Context) error {
	leader, err := b.cluster.Leader(ctx)
	if err != nil {
		return err
	}
	if err := load(ctx, leader, *keys); err != nil {
		return err
	}
	if _, err := b.cluster.Settle(ctx); err != nil {
		return err
	}
	time.Sleep(5 * time.Second)

	ws, err := write(ctx, b.cluster.Members, 1)
	if err != nil {
		return err
	}
	defer ws.stop()
	time.Sleep(10 * time.Second)
	before, err := harness.Memory(leader.Server.PID(), "RssAnon")
	if err != nil {
		return err
	}
	at := ws.now()

	m, err := b.cluster.Join(ctx, leader.Kind, true)
	if err != nil {
		return err
	}
	goal, err := leader.Status(ctx)
	if err != nil {
		return err
	}
	began := ws.now()
	if err := m.Launch(); err != nil {
		return err
	}
	var most, mostNew float64
	for {
		mem, err := harness.Memory(leader.Server.PID(), "RssAnon")
		if err != nil {
			return err
		}
		memNew, err := harness.Memory(m.Server.PID(), "RssAnon")
		if err != nil {
			return fmt.Errorf("the new member: %w\n%s", err, m.Server.LogTail(20))
		}
		most, mostNew = max(most, mem), max(mostNew, memNew)
		short, cancel := context.WithTimeout(ctx, time.Second)
		s, err := m.Status(short)
		cancel()
		if err == nil && s.RaftAppliedIndex >= goal.RaftIndex {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the new member does not catch up: %w\n%s", errors.Join(ctx.Err(), err), m.Server.LogTail(20))
		case <-time.After(20 * time.Millisecond):
		}
	}
	took := ws.now() - began
	time.Sleep(2 * time.Second)
	ws.stop()

	var usual, gap time.Duration
	for _, w := range ws.list {
		usual, gap = max(usual, w.usual(at)), max(gap, w.longest(at))
		for _, c := range w.calls {
			if c.err != nil {
				return fmt.Errorf("a put through %s: %w", w.member.Name, c.err)
			}
		}
	}
	b.out["join: writer's longest gap before"] = usual.Seconds() * 1e3
	b.out["join: writer's longest gap"] = gap.Seconds() * 1e3
	b.out["join: until it has caught up"] = took.Seconds()
	b.out["join: leader's anonymous memory before"] = before
	b.out["join: leader's anonymous memory, most"] = most
	b.out["join: new member's anonymous memory, most"] = mostNew
	return nil
}

// usual is the longest time between two puts before a moment, without the first, which
// connects.
func (w *writer) usual(before time.Duration) (gap time.Duration) {
	for i, c := range w.calls[1:] {
		if c.to <= before {
			gap = max(gap, c.to-w.calls[i].to)
		}
	}
	return gap
}

// load puts n keys of 1 KiB through a member, in no order.
func load(ctx context.Context, m *harness.Member, n int) error {
	const workers = 128
	conn, err := harness.Dial(m.Addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	kv := pb.NewKVClient(conn)
	value := make([]byte, 1024)
	errs := make(chan error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < n; i += workers {
				// A multiplication by an odd number visits every key once, scattered.
				key := fmt.Appendf(nil, "large/%026d", uint64(i)*0x9E3779B97F4A7C15%(1<<63))
				if _, err := kv.Put(ctx, &pb.PutRequest{Key: key, Value: value}); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}
