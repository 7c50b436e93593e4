package watch

import (
	"context"
	"flag"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"quorate/internal/kv"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

var stressTime = flag.Duration("watch.stress", 2*time.Second, "how long TestStress runs")

// TestStress runs a hub with its goroutines under writers, requests, readers fast and
// slow, and compaction, all at once. What each stream was sent is recorded, and held
// against the twin when all is over.
func TestStress(t *testing.T) {
	for end, seed := time.Now().Add(*stressTime), uint64(1); time.Now().Before(end); seed++ {
		stress(t, seed)
	}
}

func stress(t *testing.T, seed uint64) {
	st := newStore()
	opts := st.options()
	opts.FragmentBytes = 400
	opts.ProgressInterval = 2 * time.Millisecond
	h := newHub(opts, limits{
		watchers:      1 << 30,
		pendingEvents: 64, pendingBytes: 8 << 10, dispatch: 8, ring: 16 << 10, frames: 16, queueBytes: 4 << 10,
		answers: 4, roomFrames: 4, roomBytes: 1 << 10, chunkEvents: 32, chunkBytes: 2 << 10, response: 1 << 10,
	})
	h.run()

	type recorder struct {
		twinStream
		got []*pb.WatchResponse
	}
	var streams []*recorder
	var readers, writers sync.WaitGroup
	for i := range 6 {
		s := &recorder{twinStream: twinStream{s: h.Stream(), watchers: map[int64]*twinWatcher{}}}
		streams = append(streams, s)
		readers.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(10+i)))
			for {
				parts, err := s.s.Next(context.Background())
				if err == kv.ErrStopped {
					return
				}
				if err != nil {
					t.Errorf("Next: %v", err)
					return
				}
				s.got = append(s.got, decode(parts))
				if i%2 == 0 && r.IntN(20) == 0 {
					time.Sleep(time.Duration(r.IntN(2000)) * time.Microsecond)
				}
			}
		})
		writers.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(20+i)))
			tw := twin{rnd: r, st: st, streams: []*twinStream{&s.twinStream}}
			for range 60 {
				switch r.IntN(6) {
				case 0, 1:
					tw.create()
				case 2:
					s.s.Cancel(r.Int64N(20))
				default:
					s.s.Progress()
				}
				time.Sleep(time.Duration(r.IntN(500)) * time.Microsecond)
			}
		})
	}
	writers.Go(func() {
		r := rand.New(rand.NewPCG(seed, 30))
		for range 400 {
			var batch []kv.Event
			for range 1 + r.IntN(3) {
				var ops []op
				for _, i := range r.Perm(len(twinKeys))[:1+r.IntN(3)] {
					ops = append(ops, op{key: twinKeys[i], value: "value"})
				}
				batch = append(batch, st.apply(ops...)...)
			}
			h.Publish(batch, batch[len(batch)-1].Rev.Main)
			if r.IntN(100) == 0 {
				st.mu.Lock()
				st.compact = max(st.compact, st.rev-int64(r.IntN(int(st.rev))))
				st.mu.Unlock()
			}
			if r.IntN(4) == 0 {
				time.Sleep(time.Duration(r.IntN(300)) * time.Microsecond)
			}
		}
	})
	writers.Wait()
	atRest := func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		rest := h.behind == 0 && h.dispatched == st.rev
		for s := range h.streams {
			s.mu.Lock()
			rest = rest && s.queue.len() == 0
			s.mu.Unlock()
		}
		return rest || h.watchers.size == 0
	}
	for deadline := time.Now().Add(30 * time.Second); !atRest(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("seed %d: the hub does not come to rest: %+v", seed, h.Stats())
		}
	}
	h.Close()
	readers.Wait()

	var counts twinCounts
	tw := &twin{st: st, h: h, counts: &counts}
	err := func() (err error) {
		defer catch(&err)
		for _, s := range streams {
			for _, r := range s.got {
				if w := s.watchers[r.WatchId]; r.Canceled && w != nil {
					w.canceled = true
				}
				tw.check(&s.twinStream, r)
			}
			for _, w := range s.watchers {
				if owed := tw.owed(w); !w.over && w.got != len(owed) {
					tw.failf("watcher %+v got %d of %d events", w, w.got, len(owed))
				}
			}
		}
		return nil
	}()
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	t.Logf("seed %d: %+v, fell %d", seed, counts, h.fell.Load())
}
