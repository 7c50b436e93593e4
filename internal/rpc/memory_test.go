package rpc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"quorate/internal/kv"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

func TestRequestMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newRequestMemory(10)
		for range 2 {
			if err := m.take(t.Context(), 5); err != nil {
				t.Fatal(err)
			}
		}
		begin := time.Now()
		if err := m.take(t.Context(), 1); !errors.Is(err, kv.ErrTooManyRequests) || time.Since(begin) != memoryWait {
			t.Errorf("full: %v after %v", err, time.Since(begin))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := m.take(ctx, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("canceled: %v", err)
		}
		got := make(chan error)
		go func() { got <- m.take(t.Context(), 7) }()
		synctest.Wait()
		m.give(5)
		synctest.Wait()
		select {
		case err := <-got:
			t.Errorf("7 of 10 while 5 are taken: %v", err)
		default:
		}
		m.give(5)
		if err := <-got; err != nil {
			t.Errorf("after room was made: %v", err)
		}
		m.give(7)
		if err := m.take(t.Context(), 11); err != nil {
			t.Errorf("alone and larger than the bound: %v", err)
		}
		if m.give(11); m.used.Load() != 0 {
			t.Errorf("%d bytes left", m.used.Load())
		}
	})
}

func TestReplyMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newReplyMemory(100)
		a, b := &account{memory: m}, &account{memory: m}
		ra, rb := new(reply), new(reply)
		take := func(a *account, r *reply, n int64) error { return a.take(t.Context(), r, n) }
		ok := func(name string, err error) {
			t.Helper()
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		ok("within the half", take(a, ra, 50))
		ok("beyond: the first goes on", take(a, ra, 500))
		begin := time.Now()
		if err := take(b, rb, 1); !errors.Is(err, kv.ErrTooManyRequests) || time.Since(begin) != memoryWait {
			t.Errorf("a second beyond the bound: %v after %v", err, time.Since(begin))
		}
		got := make(chan error)
		go func() { got <- take(b, rb, 60) }()
		synctest.Wait()
		a.close() // a connection that ends gives all back
		ok("after the other's end", <-got)
		a.give(550) // too late: counted already
		if b.give(60); m.used != 0 || b.held != 0 {
			t.Errorf("%d bytes left", m.used)
		}
	})
}

// TestRepliesNeverRead asks for more than the memory for replies on connections that do
// not read, and sees that small requests and, when those connections end, large ones are
// answered.
func TestRepliesNeverRead(t *testing.T) {
	all := &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), Serializable: true}
	t.Run("Range", func(t *testing.T) { repliesNeverRead(t, "/etcdserverpb.KV/Range", all) })
	t.Run("Txn", func(t *testing.T) {
		repliesNeverRead(t, "/etcdserverpb.KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{opRange(all)}})
	})
	t.Run("Txn that writes", func(t *testing.T) {
		repliesNeverRead(t, "/etcdserverpb.KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{opPut(put("other", "")), opRange(all)}})
	})
}

func repliesNeverRead(t *testing.T, method string, unread proto.Message) {
	const limit = 64 << 20
	m := newMember(t)
	s, addr := start(t, m, func(o *Options) { o.ReplyMemory = limit }, nil)
	good := pb.NewKVClient(dial(t, addr))
	for i := range 20 {
		if _, err := good.Put(t.Context(), put(fmt.Sprintf("k%02d", i), strings.Repeat("v", 1<<20))); err != nil {
			t.Fatal(err)
		}
	}
	all := &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), Serializable: true}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 2 {
		// A small window and nobody who reads.
		bad := dial(t, addr, grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10))
		for range 20 {
			wg.Go(func() {
				stream, err := bad.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
				if err == nil {
					err = stream.SendMsg(unread)
				}
				if err == nil {
					err = stream.CloseSend()
				}
				if err != nil && ctx.Err() == nil {
					t.Error(err)
				}
				<-ctx.Done()
			})
		}
	}
	held := func() int64 {
		s.services.replies.mu.Lock()
		defer s.services.replies.mu.Unlock()
		return s.services.replies.used
	}
	for held() < limit/2 {
		time.Sleep(time.Millisecond)
	}
	var most int64
	for begin := time.Now(); time.Since(begin) < 500*time.Millisecond; time.Sleep(time.Millisecond) {
		most = max(most, held())
	}
	if one := int64(22 << 20); most > limit+one {
		t.Errorf("replies held %d MiB, the bound is %d", most>>20, limit>>20)
	}
	if _, err := good.Range(t.Context(), &pb.RangeRequest{Key: []byte("none")}); err != nil {
		t.Errorf("small range: %v", err)
	}
	cancel()
	wg.Wait()
	var err error
	for range 10 {
		if _, err = good.Range(t.Context(), all); status.Code(err) != codes.Unknown {
			break
		}
	}
	if err != nil {
		t.Errorf("large range after the others' end: %v", err)
	}
	for begin := time.Now(); held() != 0; time.Sleep(10 * time.Millisecond) {
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("%d bytes are still charged", held())
		}
	}
}

// TestReplyParts builds replies of all shapes and compares with their plain concatenation.
func TestReplyParts(t *testing.T) {
	m := newReplyMemory(1 << 30)
	a := &account{memory: m}
	for _, sizes := range [][]int{{0}, {10}, {1024}, {1025}, {600, 600}, {32 << 10}, {10, 40 << 10, 10}, {100 << 10, 100 << 10}, {1000, 1000, 31 << 10, 31 << 10, 5, 2 << 20, 7}} {
		for _, tail := range []int{0, 5, 1024, 1025, 100 << 10} {
			var r reply
			var want []byte
			r.reset(t.Context(), a)
			for i, n := range sizes {
				b := []byte(strings.Repeat(string(rune('a'+i)), n))
				r.cur = append(r.room(n), b...)
				want = append(want, b...)
			}
			b := []byte(strings.Repeat("z", tail))
			r.body(b)
			want = append(want, b...)
			if r.size() != len(want) {
				t.Errorf("%v+%d: size %d, want %d", sizes, tail, r.size(), len(want))
			}
			out := r.take()
			if got := out.Materialize(); string(got) != string(want) {
				t.Errorf("%v+%d: wrong bytes", sizes, tail)
			}
			r.free()
			out.Free()
			if m.used != 0 || a.held != 0 {
				t.Fatalf("%v+%d: %d bytes left", sizes, tail, m.used)
			}
		}
	}
}

// TestHugeChunk: a part of a reply is charged for what it needs, whatever lies in the pool.
func TestHugeChunk(t *testing.T) {
	for range 10 { // a pool may forget
		huge := make([]byte, 64<<20)
		chunks.Put(&huge)
		a := &account{memory: newReplyMemory(1 << 30)}
		var r reply
		r.reset(t.Context(), a)
		r.room(1<<20 + 1)
		if a.held > 3<<20 {
			t.Fatalf("%d bytes are charged", a.held)
		}
		r.free()
	}
}
