package crash

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/test/harness"
)

func TestCrash(t *testing.T) {
	harness.QuorateBinary(t)
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano()) % 1_000_000_000
	}
	r := rand.New(rand.NewPCG(s, 1))
	parent, err := os.MkdirTemp("", "quorate-crash-")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(parent, "data")
	failed := func(format string, args ...any) {
		t.Helper()
		where := "\n-keep keeps the data directory"
		if *keep {
			where = "\nthe data directory is " + dir
		}
		t.Fatalf("-seed %d: "+format+where, append([]any{s}, args...)...)
	}
	t.Cleanup(func() {
		if t.Failed() && *keep {
			return
		}
		if err := os.RemoveAll(parent); err != nil {
			t.Error(err)
		}
	})

	c := &checker{model: newModel(), leases: map[int64]bool{}}
	server := harness.Start(t, harness.Quorate, dir)
	conn, err := server.Conn()
	if err != nil {
		failed("%v", err)
	}
	resp, err := pb.NewKVClient(conn).Put(context.Background(), &pb.PutRequest{Key: []byte("canary")})
	if err != nil {
		failed("%v", err)
	}
	c.model.apply(resp.Header.Revision, c.model.events(resp.Header.Revision, []wish{{key: "canary"}}))

	ended := map[string]int{}
	start := time.Now()
	for c.rounds = 1; c.rounds <= *kills; c.rounds++ {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan *load, 1)
		go func() { done <- work(ctx, conn, c, r) }()
		time.Sleep(time.Duration(r.Int64N(int64(400 * time.Millisecond))))
		how := "killed"
		if r.IntN(8) == 0 {
			how = "stopped"
			if err := server.Stop(); err != nil {
				cancel()
				failed("stop: %v\n%s", err, server.LogTail(20))
			}
		} else {
			server.Kill()
		}
		ended[how]++
		cancel()
		l := <-done

		// At times it dies while it starts, before anybody can ask it anything.
		for r.IntN(4) == 0 {
			early, err := harness.Launch(harness.Quorate, dir)
			if err != nil {
				failed("%v", err)
			}
			if err, itself := early.WaitExit(time.Duration(r.Int64N(int64(120 * time.Millisecond)))); itself {
				failed("it ended by itself while starting: %v\n%s", err, early.LogTail(20))
			}
			early.Kill()
			ended["killed while starting"]++
		}
		server, err = harness.Launch(harness.Quorate, dir)
		if err != nil {
			failed("%v", err)
		}
		t.Cleanup(server.Kill)
		if err := server.WaitReady(context.Background()); err != nil {
			failed("round %d, %s: it does not start again: %v\n%s", c.rounds, how, err, server.LogTail(30))
		}
		if conn, err = server.Conn(); err != nil {
			failed("%v", err)
		}
		if err := c.check(conn, l, r); err != nil {
			if code := status.Code(err); code == codes.Unavailable || code == codes.DeadlineExceeded {
				failed("round %d, %s: %v\n%s\n%s", c.rounds, how, err, server.LogTail(30), server.Stacks())
			}
			failed("round %d, %s: %v", c.rounds, how, err)
		}
		if c.rounds%100 == 0 {
			t.Logf("%d rounds, revision %d", c.rounds, c.model.rev)
		}
	}
	server.Kill()
	t.Logf("seed %d: %v in %v; %d operations acknowledged, all there; %d in doubt, of which %d took place; revision %d",
		s, fmt.Sprint(ended), time.Since(start).Round(time.Second), c.acked, c.doubtful, c.happened, c.model.rev)
	if c.acked == 0 {
		t.Fatal("nothing was acknowledged")
	}
}
