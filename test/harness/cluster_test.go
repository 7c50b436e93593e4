package harness

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"
)

func TestMain(m *testing.M) { MainIsolated(m) }

// TestFaults makes each fault on a real etcd and looks that it is one, and that it ends.
func TestFaults(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	c, err := NewCluster(t.TempDir(), []Kind{Etcd, Etcd, Etcd}, "--heartbeat-interval=50", "--election-timeout=500")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	c.OwnClocks = true
	full := c.Members[2].OwnDisk(256<<20) == nil
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	put := func(m *Member, within time.Duration) error {
		ctx, cancel := context.WithTimeout(ctx, within)
		defer cancel()
		client, err := m.Client()
		if err != nil {
			return err
		}
		defer client.Close()
		for {
			// What an etcd that just died was asked for is answered with an error.
			if _, err = client.Put(ctx, "k", "v"); err == nil || ctx.Err() != nil {
				return err
			}
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range c.Members {
		must(put(m, 5*time.Second))
	}
	leader := c.Members[0]
	must(c.Lead(ctx, leader))

	t.Run("isolate", func(t *testing.T) {
		if c.Network == nil {
			t.Skip("no network of its own")
		}
		must(c.Network.Isolate(0))
		if err := put(leader, 3*time.Second); err == nil {
			t.Fatal("a member that is cut off from all others took a write")
		}
		must(put(c.Members[1], 10*time.Second))
		must(c.Network.Heal())
		must(put(leader, 10*time.Second))
	})
	t.Run("one way", func(t *testing.T) {
		if c.Network == nil {
			t.Skip("no network of its own")
		}
		must(c.Lead(ctx, leader))
		// Its heartbeats do not arrive, the others' votes would.
		must(c.Network.Cut(0, 1))
		must(c.Network.Cut(0, 2))
		if err := put(leader, 3*time.Second); err == nil {
			t.Fatal("a leader whose messages do not arrive took a write")
		}
		must(put(c.Members[1], 10*time.Second))
		must(c.Network.Heal())
		must(put(leader, 10*time.Second))
	})
	t.Run("pause", func(t *testing.T) {
		must(leader.Pause())
		if err := put(leader, time.Second); err == nil {
			t.Fatal("a paused member answered")
		}
		must(put(c.Members[1], 10*time.Second))
		must(leader.Resume())
		must(put(leader, 10*time.Second))
	})
	t.Run("clock", func(t *testing.T) {
		date := func(m *Member) time.Time {
			resp, err := http.Get("http://" + m.Addr + "/version")
			must(err)
			resp.Body.Close()
			at, err := http.ParseTime(resp.Header.Get("Date"))
			must(err)
			return at
		}
		for _, step := range []time.Duration{time.Hour, -30 * 24 * time.Hour, 0} {
			err := leader.SetClock(int32(step / time.Second))
			if errors.Is(err, ErrNoFault) {
				t.Skip(err)
			}
			must(err)
			if off := time.Until(date(leader)) - step; off.Abs() > 10*time.Second {
				t.Errorf("set to differ by %v, it is wrong by %v", step, off)
			}
			if off := time.Until(date(c.Members[1])); off.Abs() > 10*time.Second {
				t.Errorf("another member's clock differs by %v", off)
			}
			must(put(leader, 5*time.Second))
		}
	})
	t.Run("slow disk", func(t *testing.T) {
		must(c.Lead(ctx, leader))
		time.Sleep(time.Second)
		err := leader.SlowDisk(4)
		if errors.Is(err, ErrNoFault) {
			t.Skip(err)
		}
		must(err)
		begin := time.Now()
		for range 4 {
			must(put(c.Members[1], 20*time.Second))
		}
		if took := time.Since(begin); took < 500*time.Millisecond {
			t.Errorf("four writes on a disk of four writes a second took %v", took)
		}
		must(leader.FastDisk())
		begin = time.Now()
		must(put(c.Members[1], 20*time.Second))
		t.Logf("a write on the disk that is fast again took %v", time.Since(begin))
	})
	t.Run("full disk", func(t *testing.T) {
		if !full {
			t.Skip("no disk of its own")
		}
		m := c.Members[2]
		must(m.FillDisk())
		client, err := m.Client()
		must(err)
		defer client.Close()
		big := string(make([]byte, 1<<20))
		for range 100 {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			_, err = client.Put(ctx, "big", big)
			cancel()
			if err != nil || !m.Running() {
				break
			}
		}
		if m.Running() && err == nil {
			t.Error("100 MB were written on a full disk")
		}
		must(m.EmptyDisk())
		if _, ended := m.Server.WaitExit(3 * time.Second); ended {
			must(m.Launch())
		}
		must(m.WaitReady(ctx))
		must(put(m, 10*time.Second))
	})
	t.Run("kill and start", func(t *testing.T) {
		leader.Kill()
		must(put(c.Members[1], 20*time.Second))
		must(leader.Launch())
		must(leader.WaitReady(ctx))
		must(leader.Stop())
		must(leader.Launch())
		must(leader.WaitReady(ctx))
	})
	t.Run("rejoin", func(t *testing.T) {
		must(c.Rejoin(ctx, leader))
		must(put(leader, 10*time.Second))
	})
	t.Run("join", func(t *testing.T) {
		m, err := c.Join(ctx, Etcd, false)
		must(err)
		must(m.Launch())
		must(m.WaitReady(ctx))
	})
	if _, err := c.Settle(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Hash(ctx, 0); err != nil {
		t.Fatal(err)
	}
}
