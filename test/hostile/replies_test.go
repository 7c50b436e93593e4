package hostile

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// fill puts n keys of size bytes.
func (v *victim) fill(n, size int) {
	v.t.Helper()
	kv := pb.NewKVClient(v.conn)
	value := []byte(strings.Repeat("x", size))
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := w; i < n; i += 8 {
				if _, err := kv.Put(context.Background(), &pb.PutRequest{Key: fmt.Appendf(nil, "fill/%06d", i), Value: value}); err != nil {
					v.t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
}

// all is the span of all keys.
var all = pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}

// TestRepliesNotRead asks for everything, again and again, and reads nothing, while another
// client reads a value of some size.
func TestRepliesNotRead(t *testing.T) {
	for _, c := range []struct{ name, method string }{
		{"Range", "/etcdserverpb.KV/Range"},
		{"RangeStream", "/etcdserverpb.KV/RangeStream"},
		{"Txn", "/etcdserverpb.KV/Txn"},
		{"Txn that writes", "/etcdserverpb.KV/Txn"},
		{"Txn of many", "/etcdserverpb.KV/Txn"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := newVictim(t)
			v.fill(500, 64<<10)
			body := wire(&all)
			read := &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &all}}
			write := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("other")}}}
			switch c.name {
			case "Txn":
				body = wire(&pb.TxnRequest{Success: []*pb.RequestOp{read}})
			case "Txn that writes":
				body = wire(&pb.TxnRequest{Success: []*pb.RequestOp{write, read}})
			case "Txn of many":
				body = wire(&pb.TxnRequest{Success: slices.Repeat([]*pb.RequestOp{read}, 100)})
			}
			calls := 40
			if c.name == "Txn that writes" {
				calls = 8 // they are applied one after the other, and puts between them
			}
			var conns []*rawConn
			toll := v.during(6*time.Second, func() {
				for range 3 {
					r := v.attacker(0)
					conns = append(conns, r)
					for range calls * *strength {
						id, err := r.open(c.method)
						if err == nil {
							err = r.send(id, message(body), true)
						}
						if err != nil {
							break
						}
					}
				}
				kv := pb.NewKVClient(v.conn)
				for range 5 {
					ctx, cancel := context.WithTimeout(context.Background(), callMax)
					start := time.Now()
					_, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte("fill/000000")})
					cancel()
					if took := time.Since(start); err != nil || took > *notice {
						v.errorf("a read of 64 KiB beside them: %v after %v", err, took)
					}
				}
			})
			// 1 GiB of replies, and as much for the garbage collector.
			v.bounds(toll, *notice, 2200)
			for _, r := range conns {
				_ = r.Close() // perhaps it is
			}
		})
	}
}

// TestGatewayRepliesNotRead is the same by the JSON gateway, which holds a reply several times
// over while it is written.
func TestGatewayRepliesNotRead(t *testing.T) {
	v := newVictim(t)
	v.fill(300, 64<<10)
	toll := v.during(0, func() {
		for range 40 * *strength {
			c, err := net.Dial("tcp", v.Addr)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			body := `{"key":"AA==","range_end":"AA=="}`
			fmt.Fprintf(c, "POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}
		time.Sleep(3 * time.Second)
	})
	v.bounds(toll, *notice, 2200)
}

// TestGatewayRequestsWithoutEnd sends JSON that does not end.
func TestGatewayRequestsWithoutEnd(t *testing.T) {
	v := newVictim(t)
	toll := v.during(2*time.Second, func() {
		var wg sync.WaitGroup
		for range 8 * *strength {
			wg.Go(func() {
				chunk := strings.Repeat("A", 1<<20)
				r, w := io.Pipe()
				go func() {
					_, err := io.WriteString(w, `{"key":"`)
					for i := 0; err == nil && i < 100; i++ {
						_, err = io.WriteString(w, chunk)
					}
					_ = w.Close() // never fails
				}()
				resp, err := http.Post("http://"+v.Addr+"/v3/kv/range", "application/json", r)
				if err == nil {
					t.Log(resp.Status)
					_ = resp.Body.Close() // was not read
				}
			})
		}
		wg.Wait()
	})
	v.bounds(toll, *notice, 700)
}
