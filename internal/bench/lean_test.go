package bench

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// leanCaller returns a caller of a lean connection to addr that ends with the test.
func leanCaller(t testing.TB, addr string, timeout time.Duration) caller {
	t.Helper()
	p := &pool{lean: []*leanConn{newLeanConn(addr)}}
	t.Cleanup(func() {
		if err := p.close(); err != nil {
			t.Error(err)
		}
	})
	return p.caller(0, timeout)
}

func TestLeanManySizes(t *testing.T) {
	f := startFake(t)
	c := leanCaller(t, f.addr, 20*time.Second)
	// Sizes around a frame and beyond the first window, so that requests go in parts, and responses
	// of many frames.
	for _, n := range []int{0, 1, leanFrameMax - 40, leanFrameMax, leanFrameMax + 1, leanInitialWindow, leanInitialWindow + 1, 1 << 20, 3 << 20} {
		value := bytes.Repeat([]byte{byte(n), 'x'}, n/2+1)[:n]
		c.req = appendPut(nil, []byte("k"), value, 0)
		if err := c.call(t.Context(), methodPut); err != nil {
			t.Fatalf("put of %d bytes: %v", n, err)
		}
		c.req = appendRange(nil, []byte("k"), nil, rangeFlags{})
		if err := c.call(t.Context(), methodRange); err != nil {
			t.Fatalf("get of %d bytes: %v", n, err)
		}
		if got := f.kvs["k"].Value; !bytes.Equal(got, value) || !bytes.Contains(c.resp, value) {
			t.Errorf("value of %d bytes: the server has %d bytes, the answer %d", n, len(got), len(c.resp))
		}
	}
}

func TestLeanManyCallers(t *testing.T) {
	f := startFake(t)
	p := &pool{lean: []*leanConn{newLeanConn(f.addr)}}
	defer p.close()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			c := p.caller(i, 20*time.Second)
			for n := range 20 {
				key := fmt.Appendf(nil, "k%d/%d", i, n)
				c.req = appendPut(c.req[:0], key, bytes.Repeat(key, 1+n*100), 0)
				if err := c.call(t.Context(), methodPut); err != nil {
					t.Error(err)
					return
				}
				c.req = appendRange(c.req[:0], key, nil, rangeFlags{})
				if err := c.call(t.Context(), methodRange); err != nil || !bytes.Contains(c.resp, key) {
					t.Errorf("get %s: %v", key, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if f.rev != 1000 {
		t.Errorf("%d puts, want 1000", f.rev)
	}
}

func TestLeanErrors(t *testing.T) {
	f := startFake(t)
	c := leanCaller(t, f.addr, 100*time.Millisecond)
	f.refuse.Store(true)
	if err := c.call(t.Context(), methodPut); status.Code(err) != codes.ResourceExhausted || status.Convert(err).Message() != "etcdserver: mvcc: database space exceeded" {
		t.Errorf("refused: %v", err)
	}
	f.refuse.Store(false)
	if err := c.call(t.Context(), "/etcdserverpb.KV/Nothing"); status.Code(err) != codes.Unimplemented {
		t.Errorf("unknown method: %v", err)
	}
	c.req = []byte{0xff, 0xff}
	if err := c.call(t.Context(), methodPut); status.Code(err) != codes.Internal {
		t.Errorf("bad request: %v", err)
	}
	c.req = nil
	f.delay.Store(int64(300 * time.Millisecond))
	if err := c.call(t.Context(), methodPut); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("slow: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if err := c.call(ctx, methodPut); status.Code(err) != codes.Canceled {
		t.Errorf("cancelled: %v", err)
	}
	f.delay.Store(0)
	if err := c.call(t.Context(), methodPut); err != nil {
		t.Errorf("after all that: %v", err)
	}
}

func TestLeanDialsAgain(t *testing.T) {
	f := startFake(t)
	c := leanCaller(t, f.addr, 5*time.Second)
	if err := c.call(t.Context(), methodPut); err != nil {
		t.Fatal(err)
	}
	l, err := c.lean.current()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.nc.Close(); err != nil {
		t.Fatal(err)
	}
	// The break may be found by the next call or before it; the one after that is on a new connection.
	_ = c.call(t.Context(), methodPut)
	for end := time.Now().Add(5 * time.Second); ; {
		if err := c.call(t.Context(), methodPut); err == nil {
			break
		} else if time.Now().After(end) {
			t.Fatal(err)
		}
	}
	if err := c.lean.close(); err != nil {
		t.Fatal(err)
	}
	if err := c.call(t.Context(), methodPut); status.Code(err) != codes.Canceled {
		t.Errorf("after close: %v", err)
	}
}

// TestLeanBadServer wants an error, and no hang or panic, from servers that are none.
func TestLeanBadServer(t *testing.T) {
	for name, say := range map[string]string{
		"closes":             "",
		"speaks HTTP/1":      "HTTP/1.1 400 Bad Request\r\n\r\n",
		"goes away":          "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\x00\x00\x08\x07\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"bad header block":   "\x00\x00\x02\x01\x05\x00\x00\x00\x01\xff\xff",
		"no gRPC status":     "\x00\x00\x01\x01\x05\x00\x00\x00\x01\x88",
		"ends in the middle": "\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x10\x00",
		"data for nobody":    "\x00\x00\x03\x00\x01\x00\x00\x00\x63abc",
		"ends without trail": "\x00\x00\x03\x00\x01\x00\x00\x00\x01abc",
		"resets":             "\x00\x00\x04\x03\x00\x00\x00\x00\x01\x00\x00\x00\x07",
	} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			nc, err := l.Accept()
			if err != nil {
				return
			}
			defer nc.Close()
			buf := make([]byte, 4096)
			_, _ = nc.Read(buf) // the start of the client, and its request
			_, _ = nc.Write([]byte(say))
			time.Sleep(50 * time.Millisecond)
		}()
		c := leanCaller(t, l.Addr().String(), 2*time.Second)
		start := time.Now()
		err = c.call(t.Context(), methodPut)
		if err == nil || time.Since(start) > 1500*time.Millisecond {
			t.Errorf("%s: %v after %v", name, err, time.Since(start))
		}
		if name == "no gRPC status" && !strings.Contains(fmt.Sprint(err), "HTTP status 200") {
			t.Errorf("%s: %v", name, err)
		}
		_ = l.Close()
		<-done
	}
}

func TestLeanRefused(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c := leanCaller(t, addr, time.Second)
	if err := c.call(t.Context(), methodPut); status.Code(err) != codes.Unavailable {
		t.Errorf("got %v", err)
	}
}

// BenchmarkCall compares the two clients on the same server, in this process: the difference is
// what the clients cost.
func BenchmarkCall(b *testing.B) {
	for _, files := range []struct {
		name    string
		streams bool
	}{{"lean", false}, {"grpc", true}} {
		b.Run(files.name, func(b *testing.B) {
			f := startFake(b)
			p, err := dialPool(b.Context(), []string{f.addr}, 2, TLSFiles{}, files.streams)
			if err != nil {
				b.Fatal(err)
			}
			defer p.close()
			if files.streams {
				for _, c := range p.lean {
					_ = c.close()
				}
				p.lean = nil
			}
			b.ReportAllocs()
			b.SetParallelism(32)
			b.RunParallel(func(pb *testing.PB) {
				c := p.caller(0, 20*time.Second)
				value := make([]byte, 256)
				for pb.Next() {
					c.req = appendPut(c.req[:0], []byte("some key of a usual length, 32 b"), value, 0)
					if err := c.call(context.Background(), methodPut); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
