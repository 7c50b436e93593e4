package hostile

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/encoding/protowire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// TestSnapshotsNotRead begins many Snapshots, reads none, and writes over what is there.
func TestSnapshotsNotRead(t *testing.T) {
	v := newVictim(t)
	v.fill(500, 64<<10)
	toll := v.during(2*time.Second, func() {
		r := v.attacker(0)
		for range 1000 * *strength {
			id, err := r.open("/etcdserverpb.Maintenance/Snapshot")
			if err == nil {
				err = r.send(id, message(nil), true)
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
		v.fill(500, 64<<10)
		kv := pb.NewKVClient(v.conn)
		resp, err := kv.Range(context.Background(), &pb.RangeRequest{Key: []byte("fill/000000")})
		if err != nil {
			t.Error(err)
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), callMax)
		defer cancel()
		if _, err := kv.Compact(ctx, &pb.CompactionRequest{Revision: resp.Header.Revision, Physical: true}); err != nil {
			v.errorf("compact beside snapshots: %v", err)
		}
		if _, err := pb.NewMaintenanceClient(v.conn).Defragment(ctx, &pb.DefragmentRequest{}); err != nil {
			v.errorf("defragment beside snapshots: %v", err)
		}
	})
	if info, err := os.Stat(filepath.Join(v.Dir, "member", "snap", "db")); err == nil {
		t.Logf("the file has %d MiB", info.Size()>>20)
	}
	v.bounds(toll, *notice, 700)
}

// TestLargePuts keeps many puts of the largest size under way.
func TestLargePuts(t *testing.T) {
	v := newVictim(t)
	value := []byte(strings.Repeat("x", 1<<20))
	var ok, many, other atomic.Int64
	toll := v.during(time.Second, func() {
		var wg sync.WaitGroup
		stop := time.Now().Add(4 * time.Second)
		for c := range 8 {
			kv := pb.NewKVClient(v.grpcConn())
			for i := range 100 * *strength {
				wg.Go(func() {
					for time.Now().Before(stop) {
						_, err := kv.Put(t.Context(), &pb.PutRequest{Key: fmt.Appendf(nil, "%d/%d", c, i), Value: value})
						switch {
						case err == nil:
							ok.Add(1)
						case strings.Contains(err.Error(), "too many requests"):
							many.Add(1)
							time.Sleep(10 * time.Millisecond)
						default:
							other.Add(1)
							if other.Load() < 5 {
								t.Logf("put: %v", err)
							}
							return
						}
					}
				})
			}
		}
		wg.Wait()
	})
	t.Logf("%d were put, %d refused, %d failed", ok.Load(), many.Load(), other.Load())
	if c := toll; c.peak > 2500 {
		v.errorf("the server held %.0f MiB", c.peak)
	}
}

// TestCanceledPuts proposes large puts and gives each up at once.
func TestCanceledPuts(t *testing.T) {
	v := newVictim(t)
	toll := v.during(time.Second, func() {
		value := []byte(strings.Repeat("x", 1<<20))
		var wg sync.WaitGroup
		stop := time.Now().Add(4 * time.Second)
		for range 4 {
			kv := pb.NewKVClient(v.grpcConn())
			for range 16 * *strength {
				wg.Go(func() {
					for time.Now().Before(stop) {
						ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(20))*time.Millisecond)
						_, _ = kv.Put(ctx, &pb.PutRequest{Key: []byte("given up"), Value: value}) // whatever comes of it
						cancel()
					}
				})
			}
		}
		wg.Wait()
	})
	v.bounds(toll, *notice, 1500)
}

// TestLeases floods keep-alives, and grants, revokes and lists what makes no sense.
func TestLeases(t *testing.T) {
	v := newVictim(t)
	lease := pb.NewLeaseClient(v.grpcConn())
	toll := v.during(time.Second, func() {
		var wg sync.WaitGroup
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		for range 200 * *strength {
			wg.Go(func() {
				s, err := lease.LeaseKeepAlive(ctx)
				for i := int64(-5); err == nil; i++ {
					err = s.Send(&pb.LeaseKeepAliveRequest{ID: i})
				}
			})
		}
		for _, r := range []*pb.LeaseGrantRequest{
			{ID: -1, TTL: 10}, {ID: math.MinInt64, TTL: 1}, {ID: math.MaxInt64, TTL: math.MinInt64}, {ID: 7, TTL: 9_000_000_000},
			{ID: 7, TTL: math.MaxInt64}, {TTL: 0}, {ID: 8, TTL: -1},
		} {
			_, err := lease.LeaseGrant(ctx, r)
			t.Logf("grant %v: %v", r, err)
		}
		for range 4 {
			wg.Go(func() {
				for ctx.Err() == nil {
					if _, err := lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 3600}); err == nil {
						_, _ = lease.LeaseLeases(ctx, &pb.LeaseLeasesRequest{}) // whatever it says
					}
				}
			})
		}
		wg.Wait()
	})
	v.bounds(toll, *notice, 600)
}

// TestLocksOfTheGone has thousands wait for locks of odd names and vanish.
func TestLocksOfTheGone(t *testing.T) {
	v := newVictim(t)
	toll := v.during(2*time.Second, func() {
		names := []string{"", "\x00", "\xff", "a/../b", strings.Repeat("n", 100_000), "\xff\xff\xff\xff"}
		for range 5 {
			r := v.attacker(1 << 20)
			for i := range 500 * *strength {
				id, err := r.open("/v3lockpb.Lock/Lock")
				if err == nil {
					m := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), names[i%len(names)])
					err = r.send(id, message(m), true)
				}
				if err != nil {
					break
				}
			}
			time.Sleep(200 * time.Millisecond)
			_ = r.Close() // this is the vanishing
		}
	})
	v.bounds(toll, *notice, 700)
}

// TestFrames floods with frames that cost the sender little.
func TestFrames(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(r *rawConn, i int) error
	}{
		{"rapid reset", func(r *rawConn, i int) error {
			id, err := r.open("/etcdserverpb.KV/Range")
			if err == nil {
				err = r.frame(func(f *http2.Framer) error { return f.WriteRSTStream(id, http2.ErrCodeCancel) })
			}
			return err
		}},
		{"settings", func(r *rawConn, i int) error {
			return r.frame(func(f *http2.Framer) error {
				return f.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(i)})
			})
		}},
		{"pings", func(r *rawConn, i int) error {
			return r.frame(func(f *http2.Framer) error { return f.WritePing(false, [8]byte{byte(i)}) })
		}},
		{"continuation", func(r *rawConn, i int) error {
			return r.frame(func(f *http2.Framer) error {
				if i == 0 {
					return f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}})
				}
				return f.WriteContinuation(1, false, nil)
			})
		}},
		{"window updates", func(r *rawConn, i int) error {
			return r.frame(func(f *http2.Framer) error { return f.WriteWindowUpdate(0, 1<<20) })
		}},
		{"unknown methods", func(r *rawConn, i int) error {
			id, err := r.open(fmt.Sprintf("/etcdserverpb.KV/%d", i), hpack.HeaderField{Name: "hasleader", Value: "true"})
			if err == nil {
				err = r.send(id, message(nil), true)
			}
			return err
		}},
		{"empty data", func(r *rawConn, i int) error {
			if i == 0 {
				_, err := r.open("/etcdserverpb.Watch/Watch")
				return err
			}
			return r.frame(func(f *http2.Framer) error { return f.WriteData(1, false, nil) })
		}},
		{"odd metadata", func(r *rawConn, i int) error {
			id, err := r.open("/etcdserverpb.Maintenance/Status", hpack.HeaderField{Name: "client-api-version", Value: fmt.Sprintf("%d%s", i, strings.Repeat("v", 10_000))})
			if err == nil {
				err = r.send(id, message(nil), true)
			}
			return err
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := newVictim(t)
			toll := v.during(500*time.Millisecond, func() {
				n := 0
				for stop := time.Now().Add(2 * time.Second); time.Now().Before(stop); {
					r := v.attacker(1 << 20)
					_ = r.SetDeadline(stop) // never fails on a socket that is open
					for i := 0; time.Now().Before(stop) && c.do(r, i) == nil; i++ {
						n++
					}
					_ = r.Close() // perhaps it is
				}
				t.Logf("%d frames or calls", n)
			})
			v.bounds(toll, *notice, 400)
		})
	}
}

// TestIdleConnections opens thousands of connections that say nothing, or half a word.
func TestIdleConnections(t *testing.T) {
	v := newVictim(t)
	toll := v.during(time.Second, func() {
		for i := range 3000 * *strength {
			c, err := net.Dial("tcp", v.Addr)
			if err != nil {
				t.Log(err)
				return
			}
			defer c.Close()
			if _, err := c.Write([]byte([]string{"", "PRI * HT", http2.ClientPreface, "GET / HTTP/1.1\r\nA:"}[i%4])); err != nil {
				t.Log(err)
			}
		}
	})
	v.bounds(toll, *notice, 400)
}

// TestAuthFloods asks for hashes and guesses passwords and tokens in parallel.
func TestAuthFloods(t *testing.T) {
	v := newVictim(t)
	a := pb.NewAuthClient(v.grpcConn())
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second)
	defer cancel()
	_, err := a.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "u", Password: strings.Repeat("p", 60)})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*pb.AuthUserAddRequest{
		{Name: strings.Repeat("n", 1<<20), Password: "p"}, {Name: "long", Password: strings.Repeat("p", 1<<20)}, {Password: "p"},
		{Name: "\x00\xc3", Password: "\x00"},
	} {
		_, err := a.UserAdd(ctx, r)
		t.Logf("add user %.10q: %v", r.Name, err)
	}
	toll := v.during(time.Second, func() {
		var wg sync.WaitGroup
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		for i := range 200 * *strength {
			wg.Go(func() {
				for n := 0; ctx.Err() == nil; n++ {
					// Whatever comes of it.
					_, _ = a.UserChangePassword(ctx, &pb.AuthUserChangePasswordRequest{Name: "u", Password: fmt.Sprint(i, n)})
					_, _ = a.Authenticate(ctx, &pb.AuthenticateRequest{Name: "u", Password: fmt.Sprint(n)})
				}
			})
		}
		wg.Wait()
	})
	v.bounds(toll, *notice, 400)
}

// TestMaintenanceInLoops has many clients compact, defragment and hash without end.
func TestMaintenanceInLoops(t *testing.T) {
	v := newVictim(t)
	v.fill(20_000, 1<<10)
	m := pb.NewMaintenanceClient(v.grpcConn())
	kv := pb.NewKVClient(v.grpcConn())
	toll := v.during(time.Second, func() {
		var wg sync.WaitGroup
		ctx, cancel := context.WithTimeout(t.Context(), 4*time.Second)
		defer cancel()
		for i := range 100 * *strength {
			wg.Go(func() {
				for n := int64(0); ctx.Err() == nil; n++ {
					switch i % 5 { // whatever comes of it
					case 0:
						_, _ = m.Defragment(ctx, &pb.DefragmentRequest{})
					case 1:
						_, _ = m.HashKV(ctx, &pb.HashKVRequest{Revision: n})
					case 2:
						_, _ = m.Hash(ctx, &pb.HashRequest{})
					case 3:
						_, _ = kv.Compact(ctx, &pb.CompactionRequest{Revision: []int64{n, -n, 1 << 60}[n%3], Physical: n%2 == 0})
					case 4:
						_, _ = m.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_AlarmAction(n % 5), MemberID: uint64(n) << 40, Alarm: pb.AlarmType(n%2 + 7)})
						_, _ = m.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: uint64(n)})
					}
				}
			})
		}
		wg.Wait()
	})
	v.bounds(toll, *notice, 700)
}
