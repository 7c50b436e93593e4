package bench

import (
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// decode decodes what an encoder made.
func decode[M proto.Message](t *testing.T, b []byte, m M) M {
	t.Helper()
	if err := proto.Unmarshal(b, m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestEncoders(t *testing.T) {
	for _, want := range []*pb.PutRequest{
		{Key: []byte("k"), Value: []byte("v"), Lease: 7},
		{Key: []byte("k")},
	} {
		if got := decode(t, appendPut(nil, want.Key, want.Value, want.Lease), &pb.PutRequest{}); !proto.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	for _, want := range []*pb.RangeRequest{
		{Key: []byte("k"), RangeEnd: []byte("l"), Limit: 500, Serializable: true, KeysOnly: true, CountOnly: true},
		{Key: []byte("k")},
	} {
		b := appendRange(nil, want.Key, want.RangeEnd, rangeFlags{want.Limit, want.Serializable, want.KeysOnly, want.CountOnly})
		if got := decode(t, b, &pb.RangeRequest{}); !proto.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
}

func encode(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDecoders(t *testing.T) {
	header := &pb.ResponseHeader{ClusterId: 1, MemberId: 2, Revision: 300, RaftTerm: 4}
	kv := &mvccpb.KeyValue{Key: []byte("k"), CreateRevision: 5, ModRevision: 6, Value: []byte("v")}
	list := &pb.RangeResponse{Header: header, Kvs: []*mvccpb.KeyValue{kv, kv, kv}, More: true, Count: 9}
	if kvs, count, err := rangeCounts(encode(t, list)); kvs != 3 || count != 9 || err != nil {
		t.Errorf("got %d kvs, count %d, %v", kvs, count, err)
	}
	if rev, err := headerRevision(encode(t, list)); rev != 300 || err != nil {
		t.Errorf("got revision %d, %v", rev, err)
	}
	txn := &pb.TxnResponse{Header: header, Responses: []*pb.ResponseOp{{Response: &pb.ResponseOp_ResponseRange{ResponseRange: list}}}}
	if rev, err := seenRevision(encode(t, txn)); rev != 6 || err != nil {
		t.Errorf("got mod revision %d, %v", rev, err)
	}
	if id, err := intField(encode(t, &pb.LeaseGrantResponse{Header: header, ID: -5, TTL: 60}), 2); id != -5 || err != nil {
		t.Errorf("got id %d, %v", id, err)
	}
}

func FuzzDecoders(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0x0a, 0x02, 0x18, 0x07, 0x12, 0x00, 0x20, 0x03})
	f.Fuzz(func(t *testing.T, b []byte) {
		kvs, count, err := rangeCounts(b)
		_, err2 := headerRevision(b)
		_, err3 := seenRevision(b)
		m := &pb.RangeResponse{}
		if proto.Unmarshal(b, m) != nil {
			return
		}
		// What protobuf takes for a RangeResponse, we do, and see the same in it.
		if err != nil || err2 != nil || kvs != int64(len(m.Kvs)) || count != m.Count {
			t.Errorf("got %d kvs, count %d, %v, %v, %v; want %d, %d", kvs, count, err, err2, err3, len(m.Kvs), m.Count)
		}
	})
}

func TestStamp(t *testing.T) {
	b := make([]byte, stampSize+3)
	for _, want := range []time.Duration{0, 1, time.Hour, 1<<62 + 12345} {
		putStamp(b, want)
		if got, ok := stamp(b); got != want || !ok {
			t.Errorf("got %v %v, want %v", got, ok, want)
		}
	}
	if _, ok := stamp(b[:stampSize-1]); ok {
		t.Error("a short value has a stamp")
	}
}
