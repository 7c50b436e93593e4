package hostile

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// TestWatchers makes many watchers, of a stream and of a connection, from the beginning of a
// history, and reads nothing of what they say.
func TestWatchers(t *testing.T) {
	create := func(r *pb.WatchCreateRequest) *pb.WatchRequest {
		return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}}
	}
	for _, c := range []struct {
		name    string
		streams int
		each    int // watchers of a stream
		read    bool
		req     func(i int) *pb.WatchRequest
		peak    float64
	}{
		{"many on a stream", 1, 100_000, true, func(i int) *pb.WatchRequest {
			return create(&pb.WatchCreateRequest{Key: fmt.Appendf(nil, "w%d", i)})
		}, 500},
		{"many streams", 10_000, 1, false, func(i int) *pb.WatchRequest {
			return create(&pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}})
		}, 900},
		{"from the beginning", 1, 20_000, true, func(i int) *pb.WatchRequest {
			return create(&pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: 1, PrevKv: i%2 == 0, Fragment: i%3 == 0})
		}, 900},
		{"never read", 100, 1000, false, func(i int) *pb.WatchRequest {
			return create(&pb.WatchCreateRequest{Key: []byte("probe"), StartRevision: 1, ProgressNotify: true})
		}, 500},
		{"progress in a flood", 10, 50_000, true, func(i int) *pb.WatchRequest {
			return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
		}, 400},
		{"create and cancel", 4, 50_000, true, func(i int) *pb.WatchRequest {
			if i%2 == 1 {
				return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: int64(i)}}}
			}
			return create(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: fmt.Appendf(nil, "w%d", i), WatchId: int64(i + 1)})
		}, 400},
		{"odd ids", 4, 20_000, true, func(i int) *pb.WatchRequest {
			return create(&pb.WatchCreateRequest{Key: []byte("a"), WatchId: []int64{-1, 7, -1 << 63, 1<<63 - 1}[i%4], StartRevision: int64(i%3) - 1})
		}, 400},
		{"huge keys", 1, 2000, true, func(i int) *pb.WatchRequest {
			return create(&pb.WatchCreateRequest{Key: fmt.Appendf(nil, "%s%d", strings.Repeat("k", 1<<20), i)})
		}, 1900},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := newVictim(t)
			v.fill(2000, 10<<10)
			conn := v.grpcConn()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			toll := v.during(time.Second, func() {
				deadline := time.Now().Add(20 * time.Second)
				made := 0
				for range c.streams * *strength {
					w, err := pb.NewWatchClient(conn).Watch(ctx)
					if err != nil {
						t.Log(err)
						return
					}
					if c.read {
						go func() {
							for err := error(nil); err == nil; {
								_, err = w.Recv()
							}
						}()
					}
					sent := make(chan int)
					go func() {
						n := 0
						for ; n < c.each && w.Send(c.req(n)) == nil; n++ {
						}
						sent <- n
					}()
					if c.read {
						select {
						case n := <-sent:
							made += n
						case <-time.After(time.Until(deadline)):
						}
					} else {
						go func() { <-sent }()
					}
				}
				t.Logf("%d requests were taken", made)
			})
			v.bounds(toll, *notice, c.peak)
			cancel()
			if took := v.during(time.Second, func() { _ = conn.Close() }); took.slowest > *notice {
				v.errorf("when they ended, a put took %v", took.slowest)
			}
		})
	}
}
