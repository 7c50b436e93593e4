package rpc

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

func watchCreateRequest(r *pb.WatchCreateRequest) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}}
}

// TestWatch carries each kind of request to the hub, over a real connection and the real
// store, and looks at what comes back.
func TestWatch(t *testing.T) {
	_, conn := serveMember(t)
	store, ctx := pb.NewKVClient(conn), t.Context()
	w, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	send := func(r *pb.WatchRequest) {
		t.Helper()
		if err := w.Send(r); err != nil {
			t.Fatal(err)
		}
	}
	want := func(want *pb.WatchResponse) {
		t.Helper()
		got, err := w.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(got, want) {
			t.Fatalf("got  %v\nwant %v", got, want)
		}
	}
	header := func(rev int64) *pb.ResponseHeader { return &pb.ResponseHeader{Revision: rev} }
	do := func(_ any, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}

	send(&pb.WatchRequest{}) // of no kind: passed over
	send(watchCreateRequest(&pb.WatchCreateRequest{Key: []byte("a"), RangeEnd: []byte("c"), PrevKv: true, WatchId: 5}))
	want(&pb.WatchResponse{Header: header(1), WatchId: 5, Created: true})
	do(store.Put(ctx, put("a", "1")))
	one := &mvccpb.KeyValue{Key: []byte("a"), Value: []byte("1"), CreateRevision: 2, ModRevision: 2, Version: 1}
	want(&pb.WatchResponse{Header: header(2), WatchId: 5, Events: []*mvccpb.Event{{Kv: one}}})
	do(store.Put(ctx, put("a", "2")))
	two := &mvccpb.KeyValue{Key: []byte("a"), Value: []byte("2"), CreateRevision: 2, ModRevision: 3, Version: 2}
	want(&pb.WatchResponse{Header: header(3), WatchId: 5, Events: []*mvccpb.Event{{Kv: two, PrevKv: one}}})
	do(store.Put(ctx, put("c", "not seen")))
	do(store.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("a")}))
	gone := &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte("a"), ModRevision: 5}, PrevKv: two}
	want(&pb.WatchResponse{Header: header(5), WatchId: 5, Events: []*mvccpb.Event{gone}})

	// From history, with filters; one of them is unknown.
	filters := []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT, 9}
	send(watchCreateRequest(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 1, PrevKv: true, Filters: filters}))
	want(&pb.WatchResponse{Header: header(5), Created: true})
	want(&pb.WatchResponse{Header: header(5), Events: []*mvccpb.Event{gone}})
	send(watchCreateRequest(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 3, Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE}}))
	want(&pb.WatchResponse{Header: header(5), WatchId: 1, Created: true})
	want(&pb.WatchResponse{Header: header(5), WatchId: 1, Events: []*mvccpb.Event{{Kv: two}}})

	send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}})
	want(&pb.WatchResponse{Header: header(5), WatchId: -1})
	send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 5}}})
	want(&pb.WatchResponse{Header: header(5), WatchId: 5, Canceled: true})

	do(store.Compact(ctx, &pb.CompactionRequest{Revision: 4}))
	send(watchCreateRequest(&pb.WatchCreateRequest{Key: []byte("a"), StartRevision: 3}))
	want(&pb.WatchResponse{Header: header(5), WatchId: 2, Created: true})
	want(&pb.WatchResponse{Header: header(0), WatchId: 2, Canceled: true, CompactRevision: 4})

	// A client that has no more to say still gets its events.
	if err := w.CloseSend(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond)
	do(store.Put(ctx, put("a", "3")))
	three := &mvccpb.KeyValue{Key: []byte("a"), Value: []byte("3"), CreateRevision: 6, ModRevision: 6, Version: 1}
	want(&pb.WatchResponse{Header: header(6), WatchId: 1, Events: []*mvccpb.Event{{Kv: three}}})
}

// TestWatchEnds: a client that goes leaves nothing behind, whatever it was doing.
func TestWatchEnds(t *testing.T) {
	m, conn := serveMember(t)
	store := pb.NewKVClient(conn)
	reading := func(w pb.Watch_WatchClient) error {
		for {
			if _, err := w.Recv(); err != nil {
				return err
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	late, stop := context.WithTimeout(t.Context(), 2*time.Second)
	defer stop()
	var ends []chan error
	for i, c := range []context.Context{ctx, ctx, late} {
		w, err := pb.NewWatchClient(conn).Watch(c)
		if err != nil {
			t.Fatal(err)
		}
		for range 1000 { // far more than answers may wait
			// Fails once the deadline has passed; Recv then says so.
			err := w.Send(watchCreateRequest(&pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}}))
			if i == 0 || err != nil {
				break
			}
		}
		end := make(chan error, 1)
		ends = append(ends, end)
		if i != 1 { // the second never reads
			go func() { end <- reading(w) }()
		}
	}
	for i := range 100 {
		if _, err := store.Put(t.Context(), put("a", fmt.Sprint(i, strings.Repeat("v", 1000)))); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-ends[0]; status.Code(err) != codes.Canceled {
		t.Errorf("canceled: %v", err)
	}
	if err := <-ends[2]; status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("deadline: %v", err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		s := m.hub.Stats()
		if s.Streams == 0 && s.Watchers == 0 && s.Behind == 0 && s.Pending == 0 && s.Bytes == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind: %+v", s)
		}
	}
}
