package differential

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"go.etcd.io/etcd/api/v3/mvccpb"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/test/harness"
)

// What chance does not reach: sizes, times and other protocols than gRPC.

func scenario(t *testing.T, flags ...string) *run {
	t.Helper()
	r, err := newRun(t.TempDir(), flags...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.close)
	return r
}

func (r *run) must(t *testing.T, calls ...*call) {
	t.Helper()
	for _, c := range calls {
		if err := r.do(c); err != nil {
			t.Fatal(err)
		}
	}
}

// watchBoth opens a stream to each side and creates a watcher there.
func (r *run) watchBoth(t *testing.T, req *pb.WatchCreateRequest) [2]*watchStream {
	t.Helper()
	var both [2]*watchStream
	for i, s := range r.sides {
		w, err := openWatch(s)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(w.close)
		if err := w.stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}}); err != nil {
			t.Fatal(err)
		}
		if err := w.await("the response that says created", func() bool { return len(w.created) > 0 }); err != nil {
			t.Fatal(err)
		}
		both[i] = w
	}
	return both
}

// TestFragments watches events that are too large for one response together.
func TestFragments(t *testing.T) {
	r := scenario(t)
	for i := range 9 {
		size := []int{900 << 10, 1 << 20, 300 << 10}[i%3]
		r.must(t, newCall(rpcPut, &pb.PutRequest{Key: fmt.Appendf(nil, "f%d", i%4), Value: bytes.Repeat([]byte{'v'}, size)}))
	}
	// Four keys of one revision, each with its value before.
	txn := &pb.TxnRequest{}
	for i := range 4 {
		txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
			RequestPut: &pb.PutRequest{Key: fmt.Appendf(nil, "f%d", i), Value: bytes.Repeat([]byte{'w'}, 300<<10)}}})
	}
	for _, fragment := range []bool{true, false} {
		for _, from := range []int64{2, 0} {
			both := r.watchBoth(t, &pb.WatchCreateRequest{Key: []byte("f"), RangeEnd: []byte("g"), StartRevision: from, PrevKv: true, Fragment: fragment})
			before := r.rev
			r.must(t, newCall(rpcTxn, txn))
			if from == 0 {
				from = before + 1
			}
			if err := r.learn(); err != nil {
				t.Fatal(err)
			}
			w := &watcher{req: &pb.WatchCreateRequest{Key: []byte("f"), RangeEnd: []byte("g")}, first: from}
			var want []*mvccpb.Event
			for _, ev := range r.history {
				if w.sees(ev) {
					want = append(want, ev)
				}
			}
			for _, ws := range both {
				// take merges fragments, and fails where a revision is split without them.
				if err := ws.await("every event", func() bool { return len(ws.events[0]) >= len(want) }); err != nil {
					t.Fatal(err)
				}
				for i, ev := range want {
					if err := r.sameEvent(ev, ws.events[0][i], true); err != nil {
						t.Fatalf("%v: fragments %v: event %d: %.600v", ws.side.kind, fragment, i, err)
					}
				}
				if fragment && ws.largest >= maxRequestBytes+512<<10 {
					t.Errorf("%v: a fragment has %d bytes", ws.side.kind, ws.largest)
				}
				if (ws.fragments > 0) != fragment {
					t.Errorf("%v: %d fragments, asked for: %v", ws.side.kind, ws.fragments, fragment)
				}
			}
		}
	}
}

// TestExpiry lets leases run out: not before their time, and then all keys of one in one
// revision, in order.
func TestExpiry(t *testing.T) {
	r := scenario(t)
	start := time.Now()
	for id := int64(1); id <= 3; id++ {
		r.must(t, newCall(rpcGrant, &pb.LeaseGrantRequest{ID: id, TTL: 1})) // raised to 2
		for _, k := range []string{"c", "a", "b", "\xff", "d"} {
			r.must(t, newCall(rpcPut, &pb.PutRequest{Key: fmt.Appendf(nil, "%s%d", k, id), Lease: id}))
		}
	}
	// One lives on by renewals, one key of another is detached.
	r.must(t, newCall(rpcPut, &pb.PutRequest{Key: []byte("b3")}))
	before := r.rev
	renewed := time.Now()
	for time.Since(start) < 1500*time.Millisecond {
		time.Sleep(200 * time.Millisecond)
		r.must(t, newCall(rpcKeepAlive, &pb.LeaseKeepAliveRequest{ID: 2}))
		renewed = time.Now()
	}
	for _, s := range r.sides {
		w := s.history
		if err := w.drain(); err != nil {
			t.Fatal(err)
		}
		// On a machine that is too busy to look in time nothing is told either way.
		if evs := w.events[0]; time.Since(start) < 2*time.Second && len(evs) > 0 && evs[len(evs)-1].Type == mvccpb.Event_DELETE {
			t.Fatalf("%v: a lease of 2 s expired after %v: %s", s.kind, time.Since(start), eventsText(evs))
		}
		err := w.await("the deletions of two leases", func() bool { return deletions(w.events[0]) >= 9 })
		if err != nil {
			t.Fatal(err)
		}
		if time.Since(renewed) < 2*time.Second && deletions(w.events[0]) > 9 {
			t.Fatalf("%v: the lease that was renewed expired early: %s", s.kind, eventsText(w.events[0][len(w.events[0])-10:]))
		}
		for _, id := range []int64{1, 3} {
			out, err := s.do(newCall(rpcTimeToLive, &pb.LeaseTimeToLiveRequest{ID: id, Keys: true}))
			if err != nil {
				t.Fatal(err)
			}
			if ttl := out.reply.(*pb.LeaseTimeToLiveResponse); ttl.TTL != -1 || len(ttl.Keys) > 0 {
				t.Fatalf("%v: lease %d has expired, but: %s", s.kind, id, text(ttl))
			}
		}
	}
	for _, s := range r.sides {
		w := s.history
		if err := w.await("the deletions of the third lease", func() bool { return deletions(w.events[0]) >= 14 }); err != nil {
			t.Fatal(err)
		}
		if since := time.Since(renewed); since < 1900*time.Millisecond {
			t.Fatalf("%v: the renewed lease expired after %v", s.kind, since)
		}
		// The order of two leases that expire together is chance; each is one revision.
		byRev := map[int64][]string{}
		for _, ev := range w.events[0] {
			if ev.Kv.ModRevision > before {
				byRev[ev.Kv.ModRevision] = append(byRev[ev.Kv.ModRevision], string(ev.Kv.Key))
			}
		}
		for rev, keys := range byRev {
			id := keys[0][len(keys[0])-1:]
			want := "a" + id + " b" + id + " c" + id + " d" + id + " \xff" + id
			if id == "3" {
				want = "a3 c3 d3 \xff3"
			}
			if got := strings.Join(keys, " "); got != want {
				t.Fatalf("%v: revision %d deletes %q, want %q", s.kind, rev, got, want)
			}
		}
		if len(byRev) != 3 {
			t.Fatalf("%v: %d revisions for three leases", s.kind, len(byRev))
		}
	}
	r.rev = before + 3
	r.must(t, newCall(rpcRange, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}), newCall(rpcLeases, &pb.LeaseLeasesRequest{}))
}

func deletions(evs []*mvccpb.Event) (n int) {
	for _, ev := range evs {
		if ev.Type == mvccpb.Event_DELETE {
			n++
		}
	}
	return n
}

// TestProgressNotify waits for progress that nobody asks for.
func TestProgressNotify(t *testing.T) {
	r := scenario(t) // every 300 ms
	r.must(t, newCall(rpcPut, &pb.PutRequest{Key: []byte("x")}))
	create := func(id, start int64, notify bool) *pb.WatchRequest {
		return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
			Key: []byte("k"), WatchId: id, StartRevision: start, ProgressNotify: notify}}}
	}
	const synced, old, silent, future = 1, 2, 3, 4
	both := r.watchBoth(t, &pb.WatchCreateRequest{Key: []byte("k"), WatchId: synced, ProgressNotify: true})
	for _, w := range both {
		for _, req := range []*pb.WatchRequest{create(old, 1, true), create(silent, 0, false), create(future, r.rev+3, true)} {
			if err := w.stream.Send(req); err != nil {
				t.Fatal(err)
			}
		}
	}
	check := func(want map[int64]bool) {
		t.Helper()
		for _, w := range both {
			clear(w.notified)
			err := w.await("progress", func() bool {
				for id, yes := range want {
					if yes && len(w.notified[id]) < 2 {
						return false
					}
				}
				return true
			})
			if err != nil {
				t.Fatalf("%v; have %v", err, w.notified)
			}
			for id, revs := range w.notified {
				if !want[id] {
					t.Errorf("%v: watch %d was told progress %v", w.side.kind, id, revs)
				}
				// What was on its way when the last write came may say less.
				if last := revs[len(revs)-1]; last != r.rev {
					t.Errorf("%v: watch %d: progress %d, the store is at %d", w.side.kind, id, last, r.rev)
				}
			}
		}
	}
	check(map[int64]bool{synced: true, old: true})
	r.must(t,
		newCall(rpcPut, &pb.PutRequest{Key: []byte("x")}),
		newCall(rpcPut, &pb.PutRequest{Key: []byte("x")}),
		newCall(rpcPut, &pb.PutRequest{Key: []byte("x")}))
	check(map[int64]bool{synced: true, old: true, future: true})
}

// TestSlowWatcher leaves a stream unread while much happens and then reads it all, beside a
// watcher that must not suffer.
func TestSlowWatcher(t *testing.T) {
	r := scenario(t)
	req := &pb.WatchCreateRequest{Key: []byte("s"), RangeEnd: []byte("t")}
	type slow struct {
		stream pb.Watch_WatchClient
		kind   harness.Kind
	}
	var sleepers []slow
	for _, s := range r.sides {
		ctx, cancel := context.WithCancel(context.Background())
		t.Cleanup(cancel)
		stream, err := pb.NewWatchClient(s.conn).Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		sleepers = append(sleepers, slow{stream, s.kind})
	}
	first := r.rev + 1
	const puts = 1500
	for i := range puts {
		r.must(t, newCall(rpcPut, &pb.PutRequest{Key: fmt.Appendf(nil, "s%d", i%7), Value: bytes.Repeat([]byte{byte(i)}, 20<<10)}))
	}
	if err := r.learn(); err != nil { // the watchers of everything have it all
		t.Fatal(err)
	}
	for _, s := range sleepers {
		next := first
		deadline := time.AfterFunc(watchWithin, func() { t.Errorf("%v: a slow watcher waits at revision %d", s.kind, next) })
		for next < first+puts {
			resp, err := s.stream.Recv()
			if err != nil {
				t.Fatalf("%v: %v", s.kind, err)
			}
			for _, ev := range resp.Events {
				want := r.history[next-2]
				if err := r.sameEvent(&mvccpb.Event{Type: want.Type, Kv: want.Kv}, ev, false); err != nil {
					t.Fatalf("%v: %.400v", s.kind, err)
				}
				next++
			}
		}
		deadline.Stop()
	}
}

// TestLists reads a store that is larger than a response likes to be.
func TestLists(t *testing.T) {
	r := scenario(t)
	rnd := rand.New(rand.NewPCG(1, 2))
	const n = 6000
	for i := 0; i < n; i += 120 {
		txn := &pb.TxnRequest{}
		for j := range 120 {
			key := fmt.Appendf(nil, "list/%06d", (i+j)*7919%n)
			txn.Success = append(txn.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
				RequestPut: &pb.PutRequest{Key: key, Value: bytes.Repeat([]byte{byte(i)}, rnd.IntN(600))}}})
		}
		r.must(t, newCall(rpcTxn, txn))
	}
	all := func() *pb.RangeRequest { return &pb.RangeRequest{Key: []byte("list/"), RangeEnd: []byte("list0")} }
	var calls []*call
	for _, limit := range []int64{0, 1, 500, n} {
		for _, rev := range []int64{0, r.rev / 2, r.rev} {
			for _, f := range []func(*pb.RangeRequest){
				func(*pb.RangeRequest) {},
				func(q *pb.RangeRequest) { q.KeysOnly = true },
				func(q *pb.RangeRequest) { q.CountOnly = true },
				func(q *pb.RangeRequest) { q.Key = []byte("list/003") },
			} {
				q := all()
				q.Limit, q.Revision = limit, rev
				f(q)
				calls = append(calls, newCall(rpcRange, q), newCall(rpcRangeStream, q))
			}
			q := all()
			q.Limit, q.Revision = limit, rev
			q.SortTarget, q.SortOrder = pb.RangeRequest_MOD, pb.RangeRequest_DESCEND
			q.MinModRevision, q.MaxModRevision = 5, r.rev-5
			calls = append(calls, newCall(rpcRange, q))
		}
	}
	r.must(t, calls...)
	// Page through, as clients list.
	for key := []byte("list/"); ; {
		q := &pb.RangeRequest{Key: key, RangeEnd: []byte("list0"), Limit: 997, Revision: r.rev}
		c := newCall(rpcRange, q)
		r.must(t, c)
		out, err := r.sides[1].do(c)
		if err != nil {
			t.Fatal(err)
		}
		page := out.reply.(*pb.RangeResponse)
		if !page.More {
			break
		}
		key = append(page.Kvs[len(page.Kvs)-1].Key, 0)
	}
	r.must(t, newCall(rpcDelete, &pb.DeleteRangeRequest{Key: []byte("list/"), RangeEnd: []byte("list/01"), PrevKv: true}),
		newCall(rpcDelete, &pb.DeleteRangeRequest{Key: []byte("list/"), RangeEnd: []byte{0}}),
		newCall(rpcRange, all()), newCall(rpcHashKV, &pb.HashKVRequest{}))
}

// TestUnknown calls what no server knows and sends metadata that servers look at.
func TestUnknown(t *testing.T) {
	r := scenario(t)
	for _, method := range []string{"/etcdserverpb.KV/Nothing", "/nothing.KV/Range", "/etcdserverpb.KV/", "/v3.Range", "nothing"} {
		c := newCall(&rpc{method, unary, func() proto.Message { return &pb.RangeResponse{} }}, &pb.RangeRequest{Key: []byte("k")})
		var outs [2]outcome
		for i, s := range r.sides {
			ctx, cancel := context.WithTimeout(context.Background(), callWithin)
			_, err := s.invoke(ctx, c)
			cancel()
			outs[i].status = status.Convert(err)
		}
		if !same(outs[0], outs[1]) {
			t.Errorf("%s: etcd %v, quorate %v", method, outs[0], outs[1])
		}
	}
	for _, md := range []metadata.MD{
		metadata.Pairs("hasleader", "true"),
		metadata.Pairs("hasleader", "no"),
		metadata.Pairs("client-api-version", "3.7.1"),
		metadata.Pairs("client-api-version", "\xff\xfe"),
		metadata.Pairs("token", "none.1"),
		metadata.Pairs("authorization", "Bearer none"),
	} {
		for _, c := range []*call{newCall(rpcPut, &pb.PutRequest{Key: []byte("k")}), newCall(rpcRange, &pb.RangeRequest{Key: []byte("k")}), newCall(rpcLeases, &pb.LeaseLeasesRequest{})} {
			var outs [2]outcome
			for i, s := range r.sides {
				ctx, cancel := context.WithTimeout(metadata.NewOutgoingContext(context.Background(), md), callWithin)
				reply, err := s.invoke(ctx, c)
				cancel()
				if err != nil {
					outs[i].status = status.Convert(err)
				} else {
					outs[i].reply = reply
				}
			}
			if d := r.compare(c, outs[0], outs[1]); d != "" {
				t.Errorf("with metadata %v: %s", md, d)
			}
		}
	}
}

// TestSurvives sends quorate what ends the real etcd 3.7.1, in the midst of serving or in
// the midst of applying, and sees that it answers and lives on.
func TestSurvives(t *testing.T) {
	if harness.SelfTest() {
		t.Skip("etcd does not")
	}
	s := harness.Start(t, harness.Quorate, t.TempDir()+"/data", serverFlags...)
	conn, err := s.Conn()
	if err != nil {
		t.Fatal(err)
	}
	q := &side{kind: harness.Quorate, server: s, conn: conn}
	put := func(key string) *call { return newCall(rpcPut, &pb.PutRequest{Key: []byte(key), Value: []byte("v")}) }
	from := func(p *pb.PutRequest) *call {
		return newCall(rpcTxn, &pb.TxnRequest{Success: []*pb.RequestOp{
			{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}}},
			{Request: &pb.RequestOp_RequestPut{RequestPut: p}},
		}})
	}
	for _, c := range []*call{
		put("k"),
		newCall(rpcAlarm, &pb.AlarmRequest{Action: 3}),
		newCall(rpcAlarm, &pb.AlarmRequest{Action: -1, Alarm: 77}),
		from(&pb.PutRequest{Key: []byte("k"), IgnoreValue: true}),
		put("k"),
		from(&pb.PutRequest{Key: []byte("k"), IgnoreLease: true, Value: []byte("w")}),
		put("k"),
	} {
		out, err := q.do(c)
		if err != nil {
			t.Fatalf("%v\n%s", err, s.LogTail(30))
		}
		t.Logf("%v\n    %v", c, out)
		// The log is sound too.
		if c.rpc == rpcTxn {
			s.Kill()
			s = harness.Start(t, harness.Quorate, s.Dir, serverFlags...)
			if q.conn, err = s.Conn(); err != nil {
				t.Fatal(err)
			}
			q.server = s
		}
	}
}

// TestKeysOnlyLease sees to what the comparison leaves out: quorate tells the lease of a key
// also when only keys are wanted.
func TestKeysOnlyLease(t *testing.T) {
	if harness.SelfTest() {
		t.Skip("etcd 3.7 does not")
	}
	r := scenario(t)
	r.must(t, newCall(rpcGrant, &pb.LeaseGrantRequest{ID: 7, TTL: 1000}), newCall(rpcPut, &pb.PutRequest{Key: []byte("k"), Value: []byte("v"), Lease: 7}))
	for _, q := range []*pb.RangeRequest{
		{Key: []byte("k"), KeysOnly: true},
		{Key: []byte("k"), RangeEnd: []byte{0}, KeysOnly: true, Limit: 1},
		{Key: []byte("k"), KeysOnly: true, SortTarget: pb.RangeRequest_VALUE},
		{Key: []byte("k"), KeysOnly: true, Revision: 2},
	} {
		out, err := r.sides[1].do(newCall(rpcRange, q))
		if err != nil {
			t.Fatal(err)
		}
		kvs := out.reply.(*pb.RangeResponse).GetKvs()
		if len(kvs) != 1 || kvs[0].Lease != 7 || len(kvs[0].Value) != 0 {
			t.Errorf("%s: %v", text(q), out)
		}
	}
}

// TestHTTP speaks JSON and plain HTTP to both.
func TestHTTP(t *testing.T) {
	r := scenario(t)
	ask := func(s *side, method, path, body string) string {
		req, err := http.NewRequest(method, "http://"+s.server.Addr+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatalf("%v: %s %s: %v", s.kind, method, path, err)
		}
		defer resp.Body.Close()
		data, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatalf("%v: %s %s: %v", s.kind, method, path, err)
		}
		var compact bytes.Buffer
		if json.Compact(&compact, data) == nil {
			data = compact.Bytes()
		}
		// The spacing of protobuf's JSON and errors changes with each build on purpose.
		body = strings.ReplaceAll(string(data), "\u00a0", " ")
		if strings.Contains(path, "verbose") {
			lines := strings.Split(body, "\n") // etcd walks a map
			slices.Sort(lines)
			body = strings.Join(lines, "\n")
		}
		return fmt.Sprintf("%s\nContent-Type: %s\n%s", resp.Status, resp.Header.Get("Content-Type"), body)
	}
	for _, c := range []struct{ method, path, body string }{
		{"GET", "/version", ""},
		{"GET", "/health", ""},
		{"GET", "/health?serializable=true", ""},
		{"GET", "/health?exclude=NOSPACE", ""},
		{"GET", "/livez", ""},
		{"GET", "/livez?verbose", ""},
		{"GET", "/readyz", ""},
		{"GET", "/readyz?verbose", ""},
		{"GET", "/readyz/linearizable_read", ""},
		{"GET", "/readyz/nothing", ""},
		{"GET", "/readyz?exclude=nothing", ""},
		{"GET", "/readyz?verbose&exclude=data_corruption", ""},
		{"POST", "/version", ""},
		{"POST", "/health", ""},
		{"PUT", "/readyz", ""},
		{"GET", "/nothing", ""},
		{"GET", "/v2/keys", ""},
		{"GET", "/", ""},
		{"GET", "/debug/pprof/", ""},
		{"GET", "/members", ""},
		{"POST", "/v3/kv/put", `{"key":"Zm9v","value":"YmFy"}`},
		{"POST", "/v3/kv/put", `{"key":"Zm9v","value":"YmFy","prev_kv":true}`},
		{"POST", "/v3/kv/put", `{"key":"Zm9v","value":"YmFy","prevKv":true}`},
		{"POST", "/v3/kv/put", `{"value":"YmFy"}`},
		{"POST", "/v3/kv/put", `{"key":"not base64!"}`},
		{"POST", "/v3/kv/put", `{"key":"Zm9v","lease":"12"}`},
		{"POST", "/v3/kv/put", `{"key":"Zm9v","nothing":1}`},
		{"POST", "/v3/kv/put", `{`},
		{"POST", "/v3/kv/put", ``},
		{"GET", "/v3/kv/put", ``},
		{"POST", "/v3/kv/range", `{"key":"Zm9v"}`},
		{"POST", "/v3/kv/range", `{"key":"Zm9v","range_end":"AA==","sort_order":"DESCEND","sort_target":"MOD","limit":"1"}`},
		{"POST", "/v3/kv/range", `{"key":"Zm9v","sort_order":2}`},
		{"POST", "/v3/kv/range", `{"key":"Zm9v","sort_order":"SIDEWAYS"}`},
		{"POST", "/v3/kv/range", `{"key":"Zm9v","revision":"100"}`},
		{"POST", "/v3/kv/txn", `{"compare":[{"key":"Zm9v","target":"VERSION","version":"3","result":"EQUAL"}],"success":[{"requestPut":{"key":"Zm9v","value":"YmF6"}}],"failure":[{"request_range":{"key":"Zm9v"}}]}`},
		{"POST", "/v3/kv/txn", `{}`},
		{"POST", "/v3/kv/deleterange", `{"key":"Zm9v","prev_kv":true}`},
		{"POST", "/v3/kv/compaction", `{"revision":"2"}`},
		{"POST", "/v3/kv/compaction", `{"revision":"2"}`},
		{"POST", "/v3/kv/range", `{"key":"Zm9v","revision":"1"}`},
		{"POST", "/v3beta/kv/range", `{"key":"Zm9v"}`},
		{"POST", "/v3/lease/grant", `{"TTL":"1000","ID":"5"}`},
		{"POST", "/v3/lease/grant", `{"TTL":1000,"ID":5}`},
		{"POST", "/v3/lease/keepalive", `{"ID":"5"}`},
		{"POST", "/v3/lease/leases", `{}`},
		{"POST", "/v3/kv/lease/leases", `{}`},
		{"POST", "/v3/kv/lease/revoke", `{"ID":"5"}`},
		{"POST", "/v3/lease/revoke", `{"ID":"5"}`},
		{"POST", "/v3/lease/timetolive", `{"ID":"5","keys":true}`},
		{"POST", "/v3/cluster/member/list", `{}`},
		{"POST", "/v3/maintenance/alarm", `{"action":"GET"}`},
		{"POST", "/v3/maintenance/hashkv", `{"revision":"0"}`},
		{"POST", "/v3/auth/status", `{}`},
		{"POST", "/v3/nothing", `{}`},
		{"OPTIONS", "/v3/kv/range", ``},
	} {
		a, b := ask(r.sides[0], c.method, c.path, c.body), ask(r.sides[1], c.method, c.path, c.body)
		if a != b {
			t.Errorf("%s %s %s\n--- etcd\n%s\n--- quorate\n%s", c.method, c.path, c.body, a, b)
		}
	}
}

// A transaction may delete everything and put one key again, in one revision. etcd then
// knows of no live key when it hashes, and leaves out nothing. Seed 865567260.
func TestHashWhenAllIsDeletedAndOnePutAgain(t *testing.T) {
	r := scenario(t)
	put := func(key string) *call {
		return newCall(rpcPut, &pb.PutRequest{Key: []byte(key), Value: []byte("v")})
	}
	hash := newCall(rpcHashKV, &pb.HashKVRequest{})
	r.must(t, put("a"), put("b"), put("c"), newCall(rpcCompact, &pb.CompactionRequest{Revision: 4, Physical: true}), hash)
	// A deletion and a put of one key may meet in a transaction if one is nested.
	wipe := &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{
		RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte{0}, RangeEnd: []byte{0}},
	}}}}
	again := &pb.PutRequest{Key: []byte("b"), Value: []byte("w")}
	r.must(t,
		newCall(rpcTxn, &pb.TxnRequest{Success: []*pb.RequestOp{
			{Request: &pb.RequestOp_RequestTxn{RequestTxn: wipe}},
			{Request: &pb.RequestOp_RequestPut{RequestPut: again}},
		}}),
		hash, put("a"), hash,
		newCall(rpcHashKV, &pb.HashKVRequest{Revision: -1}),
		newCall(rpcHashKV, &pb.HashKVRequest{Revision: math.MinInt64}))
}
