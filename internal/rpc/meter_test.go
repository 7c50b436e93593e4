package rpc

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"quorate/internal/kv"
	"quorate/internal/metrics"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// wantMetrics waits until /metrics has each of lines: a response may be counted just
// after its client has it.
func wantMetrics(t *testing.T, met *metrics.Set, lines ...string) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		r := recorder{header: http.Header{}}
		met.Handler().ServeHTTP(&r, must(http.NewRequest("GET", "/metrics", nil)))
		var missing []string
		for _, line := range lines {
			if !strings.Contains(r.String(), line+"\n") {
				missing = append(missing, line)
			}
		}
		if len(missing) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("/metrics lacks\n%s", strings.Join(missing, "\n"))
		}
	}
}

// TestReadsCounted makes reads of each kind, some of which fail.
func TestReadsCounted(t *testing.T) {
	m := newMember(t)
	s, addr := start(t, m, nil, nil)
	c, ctx := pb.NewKVClient(dial(t, addr)), t.Context()
	good := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	bad := func(_ any, err error) {
		t.Helper()
		if err == nil {
			t.Fatal("no error")
		}
	}
	a := &pb.RangeRequest{Key: []byte("a"), Serializable: true}
	future := &pb.RangeRequest{Key: []byte("a"), Revision: 1000, Serializable: true}
	reads := func(n int) (ops []*pb.RequestOp) {
		for range n {
			ops = append(ops, opRange(a))
		}
		return ops
	}
	never := []*pb.Compare{{Key: []byte("a"), Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{Version: 99}}}

	for range 15 { // more than the first piece of a RangeStream holds
		good(c.Put(ctx, put("a"+strings.Repeat("x", int(m.store.Rev())), "")))
	}
	good(c.Range(ctx, a))                                                                  // 1 range
	good(c.Range(ctx, &pb.RangeRequest{Key: []byte("a")}))                                 // 1
	bad(c.Range(ctx, future))                                                              // 1
	bad(c.Range(ctx, &pb.RangeRequest{}))                                                  // refused before it is one
	good(c.Txn(ctx, &pb.TxnRequest{Success: reads(2), Failure: reads(5)}))                 // 2
	good(c.Txn(ctx, &pb.TxnRequest{Compare: never, Success: reads(5), Failure: reads(1)})) // 1
	bad(c.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{opRange(future)}}))
	good(c.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{opPut(put("b", "")), opRange(a)}}))   // the state machine counts it
	if _, n := collect(t, c, &pb.RangeRequest{Key: []byte("a"), RangeEnd: []byte("b")}); n != 2 { // 2
		t.Fatalf("RangeStream of %d pieces", n)
	}
	m.readErr = errors.New("no leader answers")
	bad(c.Range(ctx, &pb.RangeRequest{Key: []byte("a")})) // no range
	bad(c.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{opRange(&pb.RangeRequest{Key: []byte("a")})}}))
	m.learner.Store(true)
	bad(c.Range(ctx, &pb.RangeRequest{Key: []byte("a")})) // refused before it is one

	wantMetrics(t, s.services.met,
		`etcd_server_range_duration_seconds_count{success="true"} 4`,
		`etcd_server_range_duration_seconds_count{success="false"} 1`,
		`etcd_server_request_duration_seconds_count{success="true",type="Range"} 2`,
		`etcd_server_request_duration_seconds_count{success="false",type="Range"} 2`,
		`etcd_server_request_duration_seconds_count{success="true",type="ReadonlyTxn"} 2`,
		`etcd_server_request_duration_seconds_count{success="false",type="ReadonlyTxn"} 2`,
		`etcd_mvcc_range_total 8`,
		`etcd_mvcc_txn_total 1`,
	)
}

// TestWatchSendsCounted has a watch answer in each of the ways that are told apart.
func TestWatchSendsCounted(t *testing.T) {
	s, addr := start(t, newMember(t), nil, nil)
	conn := dial(t, addr)
	store, ctx := pb.NewKVClient(conn), t.Context()
	w, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	do := func(r *pb.WatchRequest, responses int) {
		t.Helper()
		if err := w.Send(r); err != nil {
			t.Fatal(err)
		}
		for range responses {
			if _, err := w.Recv(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, op := range [][]*pb.RequestOp{{opPut(put("a", "")), opPut(put("b", "")), opPut(put("c", ""))}, {opPut(put("a", ""))}} {
		if _, err := store.Txn(ctx, &pb.TxnRequest{Success: op}); err != nil {
			t.Fatal(err)
		}
	}
	all := &pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("z"), StartRevision: 1}
	do(watchCreateRequest(all), 2) // created, and events
	do(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}, 1)
	do(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{}}}, 1)
	if _, err := store.Compact(ctx, &pb.CompactionRequest{Revision: 3}); err != nil {
		t.Fatal(err)
	}
	do(watchCreateRequest(all), 2) // created, and canceled because of the compaction
	const loop = "etcd_debugging_server_watch_send_loop_"
	wantMetrics(t, s.services.met,
		loop+"watch_stream_duration_seconds_count 1",
		loop+"watch_stream_duration_per_event_seconds_count 1",
		loop+"control_stream_duration_seconds_count 4",
		loop+"progress_duration_seconds_count 1",
	)
}

func TestInspectWatch(t *testing.T) {
	event := &mvccpb.Event{Kv: &mvccpb.KeyValue{Key: []byte("\x5a\x18\x20"), Value: make([]byte, 300)}}
	header := &pb.ResponseHeader{ClusterId: 1 << 63, Revision: 5}
	for name, tc := range map[string]struct {
		response *pb.WatchResponse
		events   int
		control  bool
	}{
		"nothing":   {&pb.WatchResponse{}, 0, false},
		"progress":  {&pb.WatchResponse{Header: header, WatchId: -1}, 0, false},
		"created":   {&pb.WatchResponse{Header: header, WatchId: 7, Created: true}, 0, true},
		"canceled":  {&pb.WatchResponse{Header: header, Canceled: true, CancelReason: "why"}, 0, true},
		"compacted": {&pb.WatchResponse{Canceled: true, CompactRevision: 9}, 0, true},
		"events":    {&pb.WatchResponse{Header: header, WatchId: 7, Fragment: true, Events: []*mvccpb.Event{event, {}, event}}, 3, false},
	} {
		b := must(proto.Marshal(tc.response))
		if events, control := inspectWatch([][]byte{b}); events != tc.events || control != tc.control {
			t.Errorf("%s: %d events, control %v", name, events, control)
		}
		for n := range b { // never seen, but not to be stumbled over
			inspectWatch([][]byte{b[:n], b[n:]})
		}
	}
	one := must(proto.Marshal(&pb.WatchResponse{Events: []*mvccpb.Event{event}}))
	if events, _ := inspectWatch([][]byte{one, nil, one}); events != 2 {
		t.Errorf("%d events in parts", events)
	}
}

// TestMeterAllocates nothing: it runs within every read and every watch response.
func TestMeterAllocates(t *testing.T) {
	m := newMeter(metrics.New(false))
	txn := &kv.Txn{Success: make([]kv.Op, 2)}
	body := wire.AppendSucceeded(nil, true)
	frame := [][]byte{must(proto.Marshal(&pb.WatchResponse{WatchId: 1, Events: []*mvccpb.Event{{}, {}}}))}
	if n := testing.AllocsPerRun(100, func() {
		start := time.Now()
		m.ranged(start, nil)
		m.rangeRequests.observe(start, nil)
		m.readTxn(txn, body, start, nil)
		m.watchSent(frame, time.Since(start))
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
