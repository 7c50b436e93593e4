package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"quorate/internal/kv"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

func put(key, value string) *pb.PutRequest {
	return &pb.PutRequest{Key: []byte(key), Value: []byte(value)}
}

func opPut(r *pb.PutRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: r}}
}

func opRange(r *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
}

func opDelete(key, end string) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)}}}
}

func opTxn(r *pb.TxnRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}
}

func TestKV(t *testing.T) {
	_, conn := serveMember(t)
	c, ctx := pb.NewKVClient(conn), t.Context()
	header := func(rev int64) *pb.ResponseHeader {
		return &pb.ResponseHeader{ClusterId: testCluster, MemberId: testMember, RaftTerm: testTerm, Revision: rev}
	}
	check := func(name string, got proto.Message, err error, want proto.Message) {
		t.Helper()
		if err != nil || !proto.Equal(got, want) {
			t.Errorf("%s:\n got %v, %v\nwant %v", name, got, err, want)
		}
	}
	a1 := &mvccpb.KeyValue{Key: []byte("a"), Value: []byte("1"), CreateRevision: 2, ModRevision: 2, Version: 1}
	a2 := &mvccpb.KeyValue{Key: []byte("a"), Value: []byte("2"), CreateRevision: 2, ModRevision: 3, Version: 2}

	r1, err := c.Put(ctx, put("a", "1"))
	check("put", r1, err, &pb.PutResponse{Header: header(2)})
	r2, err := c.Put(ctx, &pb.PutRequest{Key: []byte("a"), Value: []byte("2"), PrevKv: true})
	check("put with prev", r2, err, &pb.PutResponse{Header: header(3), PrevKv: a1})
	r3, err := c.Range(ctx, &pb.RangeRequest{Key: []byte("a")})
	check("range", r3, err, &pb.RangeResponse{Header: header(3), Kvs: []*mvccpb.KeyValue{a2}, Count: 1})
	r4, err := c.Range(ctx, &pb.RangeRequest{Key: []byte("a"), Revision: 2})
	check("range of old", r4, err, &pb.RangeResponse{Header: header(3), Kvs: []*mvccpb.KeyValue{a1}, Count: 1})
	r5, err := c.Range(ctx, &pb.RangeRequest{Key: []byte("none")})
	check("range of nothing", r5, err, &pb.RangeResponse{Header: header(3)})
	r6, err := c.Txn(ctx, &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: []byte("a"), Target: pb.Compare_MOD, TargetUnion: &pb.Compare_ModRevision{ModRevision: 3}}},
		Success: []*pb.RequestOp{opPut(put("b", "1")), opRange(&pb.RangeRequest{Key: []byte("a"), KeysOnly: true})},
	})
	check("txn", r6, err, &pb.TxnResponse{Header: header(4), Succeeded: true, Responses: []*pb.ResponseOp{
		{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{Header: &pb.ResponseHeader{Revision: 4}}}},
		{Response: &pb.ResponseOp_ResponseRange{ResponseRange: &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: 4}, Count: 1,
			Kvs: []*mvccpb.KeyValue{{Key: []byte("a"), CreateRevision: 2, ModRevision: 3, Version: 2}}}}},
	}})
	r7, err := c.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{opRange(&pb.RangeRequest{Key: []byte("a")})}})
	check("txn that reads", r7, err, &pb.TxnResponse{Header: header(4), Succeeded: true, Responses: []*pb.ResponseOp{
		{Response: &pb.ResponseOp_ResponseRange{ResponseRange: &pb.RangeResponse{Header: &pb.ResponseHeader{Revision: 4}, Kvs: []*mvccpb.KeyValue{a2}, Count: 1}}},
	}})
	r8, err := c.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("a"), RangeEnd: []byte("b"), PrevKv: true})
	check("delete", r8, err, &pb.DeleteRangeResponse{Header: header(5), Deleted: 1, PrevKvs: []*mvccpb.KeyValue{a2}})
	r9, err := c.Compact(ctx, &pb.CompactionRequest{Revision: 4, Physical: true})
	check("compact", r9, err, &pb.CompactionResponse{Header: header(5)})
}

// TestKVErrors holds every refusal of the KV service against etcd's code and text.
func TestKVErrors(t *testing.T) {
	m, conn := serveMember(t)
	c, ctx := pb.NewKVClient(conn), t.Context()
	for _, key := range []string{"a", "b", "c"} {
		if _, err := c.Put(ctx, put(key, "x")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Compact(ctx, &pb.CompactionRequest{Revision: 3}); err != nil {
		t.Fatal(err)
	}
	ops := func(n int) (list []*pb.RequestOp) {
		for i := range n {
			list = append(list, opPut(put(fmt.Sprint(i), "")))
		}
		return list
	}
	success := func(list ...*pb.RequestOp) *pb.TxnRequest { return &pb.TxnRequest{Success: list} }
	nested := func(then, otherwise []*pb.RequestOp) *pb.RequestOp {
		return opTxn(&pb.TxnRequest{Success: then, Failure: otherwise})
	}
	puts := func(keys ...string) (list []*pb.RequestOp) {
		for _, k := range keys {
			list = append(list, opPut(put(k, "")))
		}
		return list
	}
	const (
		emptyKey = "etcdserver: key is not provided"
		dup      = "etcdserver: duplicate key given in txn request"
		many     = "etcdserver: too many operations in txn request"
		sorting  = "etcdserver: invalid sort option"
		bad      = codes.InvalidArgument
	)
	for _, tc := range []struct {
		name string
		req  proto.Message
		code codes.Code
		text string
	}{
		{"range without key", &pb.RangeRequest{}, bad, emptyKey},
		{"range in bad order", &pb.RangeRequest{Key: []byte("a"), SortOrder: 3}, bad, sorting},
		{"range in negative order", &pb.RangeRequest{Key: []byte("a"), SortOrder: -1}, bad, sorting},
		{"range by bad target", &pb.RangeRequest{Key: []byte("a"), SortTarget: 5}, bad, sorting},
		{"range of future", &pb.RangeRequest{Key: []byte("a"), Revision: 5}, codes.OutOfRange, "etcdserver: mvcc: required revision is a future revision"},
		{"range of compacted", &pb.RangeRequest{Key: []byte("a"), Revision: 2}, codes.OutOfRange, "etcdserver: mvcc: required revision has been compacted"},
		{"range of negative revision", &pb.RangeRequest{Key: []byte("a"), Revision: -1}, codes.OK, ""},

		{"put without key", &pb.PutRequest{}, bad, emptyKey},
		{"put with value and without", &pb.PutRequest{Key: []byte("a"), Value: []byte("v"), IgnoreValue: true}, bad, "etcdserver: value is provided"},
		{"put with lease and without", &pb.PutRequest{Key: []byte("a"), Lease: 1, IgnoreLease: true}, bad, "etcdserver: lease is provided"},
		{"put of old value of nothing", &pb.PutRequest{Key: []byte("z"), IgnoreValue: true}, bad, "etcdserver: key not found"},
		{"put of old lease of nothing", &pb.PutRequest{Key: []byte("z"), IgnoreLease: true}, bad, "etcdserver: key not found"},
		{"put with unknown lease", &pb.PutRequest{Key: []byte("a"), Lease: 9}, codes.NotFound, "etcdserver: requested lease not found"},
		{"put that is too large", put("a", strings.Repeat("x", 3<<19)), bad, "etcdserver: request is too large"},
		{"put beyond what is received", put("a", strings.Repeat("x", 2<<20)), codes.ResourceExhausted, "grpc: received message larger than max (2097160 vs. 2097152)"},

		{"delete without key", &pb.DeleteRangeRequest{}, bad, emptyKey},

		{"compact compacted", &pb.CompactionRequest{Revision: 3}, codes.OutOfRange, "etcdserver: mvcc: required revision has been compacted"},
		{"compact future", &pb.CompactionRequest{Revision: 5}, codes.OutOfRange, "etcdserver: mvcc: required revision is a future revision"},

		{"txn of 128", success(ops(128)...), codes.OK, ""},
		{"txn of 129", success(ops(129)...), bad, many},
		{"txn of 129 in failure", &pb.TxnRequest{Failure: ops(129)}, bad, many},
		{"txn of 129 compares", &pb.TxnRequest{Compare: make([]*pb.Compare, 129)}, bad, many},
		{"nested within what is left", success(nested(ops(127), nil)), codes.OK, ""},
		{"nested beyond what is left", success(nested(ops(128), nil)), bad, many},
		{"each branch has what is left", success(nested(ops(127), ops(127))), codes.OK, ""},
		{"compare without key", &pb.TxnRequest{Compare: []*pb.Compare{{}}}, bad, emptyKey},
		{"first of two faults", &pb.TxnRequest{Compare: []*pb.Compare{{}}, Success: ops(128), Failure: []*pb.RequestOp{nested(ops(1), nil)}}, bad, emptyKey},
		{"txn with an empty operation", success(&pb.RequestOp{}), bad, "etcdserver: key not found"},
		{"txn with a bad range", success(opRange(&pb.RangeRequest{Key: []byte("a"), SortOrder: 9})), bad, sorting},
		{"txn with a bad put", success(opPut(&pb.PutRequest{})), bad, emptyKey},
		{"txn with a bad delete", success(opDelete("", "")), bad, emptyKey},
		{"txn with a bad nested put", success(nested(nil, []*pb.RequestOp{opPut(&pb.PutRequest{})})), bad, emptyKey},
		{"txn that reads the future", success(opRange(&pb.RangeRequest{Key: []byte("a"), Revision: 1 << 40})), codes.OutOfRange, "etcdserver: mvcc: required revision is a future revision"},
		{"txn that reads what is compacted", success(opRange(&pb.RangeRequest{Key: []byte("a"), Revision: 2}), opPut(put("a", ""))), codes.OutOfRange, "etcdserver: mvcc: required revision has been compacted"},
		{"txn with unknown lease", success(opPut(&pb.PutRequest{Key: []byte("a"), Lease: 9})), codes.NotFound, "etcdserver: requested lease not found"},

		{"put twice", success(puts("a", "a")...), bad, dup},
		{"put twice in failure", &pb.TxnRequest{Failure: puts("a", "b", "a")}, bad, dup},
		{"put in both branches", &pb.TxnRequest{Success: puts("a"), Failure: puts("a")}, codes.OK, ""},
		{"put and delete", success(opPut(put("a", "")), opDelete("a", "")), bad, dup},
		{"put in deleted range", success(opDelete("a", "c"), opPut(put("b", ""))), bad, dup},
		{"put behind deleted range", success(opDelete("a", "c"), opPut(put("c", ""))), codes.OK, ""},
		{"put in range without end", success(opDelete("a", "\x00"), opPut(put("b", ""))), codes.OK, ""},
		{"put in reversed range", success(opDelete("c", "a"), opPut(put("b", ""))), codes.OK, ""},
		{"delete twice", success(opDelete("a", "c"), opDelete("b", "d")), codes.OK, ""},
		{"put in joined range", success(opDelete("a", "c"), opDelete("c", "e"), opPut(put("d", ""))), bad, dup},
		{"put in nested then and else", success(nested(puts("a"), puts("a"))), codes.OK, ""},
		{"put nested and outside", success(nested(puts("a"), nil), opPut(put("a", ""))), bad, dup},
		{"put in two nested", success(nested(puts("a"), nil), nested(nil, puts("a"))), bad, dup},
		{"delete nested, put outside", success(nested(nil, []*pb.RequestOp{opDelete("a", "c")}), opPut(put("b", ""))), bad, dup},
		{"delete outside, put nested", success(nested(nil, puts("b")), opDelete("a", "c")), bad, dup},
		{"delete in first nested, put in second", success(nested([]*pb.RequestOp{opDelete("a", "c")}, nil), nested(puts("b"), nil)), bad, dup},
		{"put in first nested, delete in second", success(nested(puts("b"), nil), nested([]*pb.RequestOp{opDelete("a", "c")}, nil)), codes.OK, ""},
		{"delete in then, put in else", success(nested([]*pb.RequestOp{opDelete("a", "c")}, puts("b"))), codes.OK, ""},
	} {
		var err error
		switch r := tc.req.(type) {
		case *pb.RangeRequest:
			_, err = c.Range(ctx, r)
		case *pb.PutRequest:
			_, err = c.Put(ctx, r)
		case *pb.DeleteRangeRequest:
			_, err = c.DeleteRange(ctx, r)
		case *pb.TxnRequest:
			for i := range r.Compare {
				if r.Compare[i] == nil {
					r.Compare[i] = &pb.Compare{Key: []byte("a")}
				}
			}
			_, err = c.Txn(ctx, r)
		case *pb.CompactionRequest:
			_, err = c.Compact(ctx, r)
		}
		if st := status.Convert(err); st.Code() != tc.code || st.Message() != tc.text {
			t.Errorf("%s: got %v", tc.name, err)
		}
	}

	m.readErr = kv.ErrTimeout
	if _, err := c.Range(ctx, &pb.RangeRequest{Key: []byte("a")}); status.Code(err) != codes.Unavailable {
		t.Errorf("linearizable range without read index: %v", err)
	}
	if _, err := c.Range(ctx, &pb.RangeRequest{Key: []byte("a"), Serializable: true}); err != nil {
		t.Errorf("serializable range without read index: %v", err)
	}
	for name, tc := range map[string]struct {
		txn  *pb.TxnRequest
		code codes.Code
	}{
		"reads":              {success(opRange(&pb.RangeRequest{Key: []byte("a")})), codes.Unavailable},
		"reads serializable": {success(opRange(&pb.RangeRequest{Key: []byte("a"), Serializable: true})), codes.OK},
		"compares alone":     {&pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("a")}}}, codes.OK},
		"writes":             {success(opPut(put("a", ""))), codes.OK},
	} {
		if _, err := c.Txn(ctx, tc.txn); status.Code(err) != tc.code {
			t.Errorf("txn that %s without read index: %v", name, err)
		}
	}
}

func TestRawBytes(t *testing.T) {
	_, conn := serveMember(t)
	for _, method := range []string{"Range", "Put", "DeleteRange", "Txn", "Compact"} {
		var reply []byte
		err := conn.Invoke(t.Context(), "/etcdserverpb.KV/"+method, []byte{0x0a, 5, 'x'}, &reply, grpc.ForceCodec(rawCodec{}))
		if st := status.Convert(err); st.Code() != codes.Internal || !strings.HasPrefix(st.Message(), "grpc: error unmarshalling request: proto: cannot parse") {
			t.Errorf("malformed %s: %v", method, err)
		}
	}
	// Unknown fields are no fault, and the last of a repeated field counts.
	var reply []byte
	if err := conn.Invoke(t.Context(), "/etcdserverpb.KV/Put", []byte{0x0a, 1, 'x', 0x0a, 1, 'y', 0xf8, 0x7f, 1}, &reply, grpc.ForceCodec(rawCodec{})); err != nil {
		t.Error(err)
	}
	got, err := pb.NewKVClient(conn).Range(t.Context(), &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	if err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Key) != "y" {
		t.Errorf("after put with unknown field: %v, %v", got, err)
	}
}

// rawCodec passes bytes.
type rawCodec struct{}

func (rawCodec) Name() string                  { return "proto" }
func (rawCodec) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (rawCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = bytes.Clone(data)
	return nil
}

func TestMetadata(t *testing.T) {
	m, conn := serveMember(t)
	c := pb.NewKVClient(conn)
	call := func(pairs ...string) error {
		_, err := c.Range(metadata.AppendToOutgoingContext(t.Context(), pairs...), &pb.RangeRequest{Key: []byte("a"), Serializable: true})
		return err
	}
	if err := call("client-api-version", "3.7", "hasleader", "true", "token", "ignored"); err != nil {
		t.Error(err)
	}
	if err := call("client-api-version", "\xff"); status.Code(err) != codes.InvalidArgument && status.Code(err) != codes.Internal {
		t.Errorf("bad version: %v", err)
	}
	m.leader.Store(0)
	if err := call(); err != nil {
		t.Errorf("no leader, none required: %v", err)
	}
	if err := call("hasleader", "true"); status.Convert(err).Message() != "etcdserver: no leader" {
		t.Errorf("no leader: %v", err)
	}
	m.leader.Store(testMember)
	m.learner.Store(true)
	if err := call(); err != nil {
		t.Errorf("serializable range of a learner: %v", err)
	}
	for name, err := range map[string]error{
		"range":  second(c.Range(t.Context(), &pb.RangeRequest{Key: []byte("a")})),
		"put":    second(c.Put(t.Context(), put("a", ""))),
		"member": second(pb.NewClusterClient(conn).MemberList(t.Context(), &pb.MemberListRequest{})),
	} {
		if st := status.Convert(err); st.Code() != codes.FailedPrecondition || st.Message() != "etcdserver: rpc not supported for learner" {
			t.Errorf("%s of a learner: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// TestRangeStream merges the pieces of random ranges and compares with the same Range.
func TestRangeStream(t *testing.T) {
	_, conn := serveMember(t)
	c, ctx := pb.NewKVClient(conn), t.Context()
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 2000 {
		size := rng.IntN(300)
		if i%100 == 0 {
			size = 1 << 20
		}
		if _, err := c.Put(ctx, put(fmt.Sprintf("key%04d", rng.IntN(1500)), strings.Repeat("v", size))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Compact(ctx, &pb.CompactionRequest{Revision: 1000}); err != nil {
		t.Fatal(err)
	}
	for i := range 60 {
		r := &pb.RangeRequest{
			Key:      fmt.Appendf(nil, "key%04d", rng.IntN(1500)),
			RangeEnd: [][]byte{nil, {0}, []byte("key1"), []byte("key0900")}[rng.IntN(4)],
			Limit:    []int64{0, 1, 9, 10, 11, 500, 5000}[rng.IntN(7)],
			Revision: []int64{0, 1500, -1, 1000}[rng.IntN(4)],
			KeysOnly: rng.IntN(3) == 0, CountOnly: rng.IntN(6) == 0, Serializable: rng.IntN(2) == 0,
		}
		if i == 0 {
			r = &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}
		}
		want, err := c.Range(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		got, n := collect(t, c, r)
		if !proto.Equal(got, want) {
			t.Errorf("%v: %d pieces differ from the Range: %d keys of %d, more %v, header %v; want %d of %d, %v, %v", r, n,
				len(got.Kvs), got.Count, got.More, got.Header, len(want.Kvs), want.Count, want.More, want.Header)
		}
		if i == 0 && n < 5 {
			t.Errorf("everything in %d pieces", n)
		}
	}
	for text, r := range map[string]*pb.RangeRequest{
		"RangeStream does not support custom sort orders":          {Key: []byte("k"), SortOrder: pb.RangeRequest_DESCEND},
		"RangeStream does not support revision filters":            {Key: []byte("k"), MinModRevision: 1},
		"etcdserver: key is not provided":                          {},
		"etcdserver: mvcc: required revision has been compacted":   {Key: []byte("k"), Revision: 999},
		"etcdserver: mvcc: required revision is a future revision": {Key: []byte("k"), Revision: 99999},
	} {
		s, err := c.RangeStream(ctx, r)
		if err == nil {
			_, err = s.Recv()
		}
		if status.Convert(err).Message() != text {
			t.Errorf("%v: got %v, want %s", r, err, text)
		}
	}
}

// collect merges the pieces of a RangeStream, checking that only the last has a header.
func collect(t *testing.T, c pb.KVClient, r *pb.RangeRequest) (*pb.RangeResponse, int) {
	t.Helper()
	s, err := c.RangeStream(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	all := &pb.RangeResponse{}
	for n := 0; ; n++ {
		piece, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return all, n
		}
		if err != nil {
			t.Fatal(err)
		}
		if all.Header != nil {
			t.Fatalf("%v: a piece after the one with the header", r)
		}
		proto.Merge(all, piece.RangeResponse)
	}
}

// TestRangeStreamPinned compacts and changes keys in the middle of a stream.
func TestRangeStreamPinned(t *testing.T) {
	_, conn := serveMember(t)
	c := pb.NewKVClient(conn)
	for i := range 100 {
		if _, err := c.Put(t.Context(), put(fmt.Sprintf("k%02d", i), strings.Repeat("v", 1<<20))); err != nil {
			t.Fatal(err)
		}
	}
	want, err := c.Range(t.Context(), &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s, err := c.RangeStream(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	if err != nil {
		t.Fatal(err)
	}
	got := &pb.RangeResponse{}
	for n := 0; ; n++ {
		piece, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		proto.Merge(got, piece.RangeResponse)
		if _, err := c.Put(t.Context(), put(fmt.Sprintf("k%02d", 99-n), "changed")); err != nil {
			t.Fatal(err)
		}
	}
	if !proto.Equal(got, want) {
		t.Error("pieces read while keys changed differ from the state at the start")
	}
}

// TestCheckOverlap compares the overlap rules with a naive form of etcd's on random
// transactions.
func TestCheckOverlap(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	refused := 0
	const rounds = 20000
	for range rounds {
		ops := randomOps(rng, 3)
		_, _, ok := naiveOverlap(ops)
		err := checkOverlap(ops)
		if ok != (err == nil) {
			t.Fatalf("got %v, want ok %v for %s", err, ok, show(ops))
		}
		if !ok {
			refused++
		}
	}
	if refused < rounds/10 || refused > rounds*9/10 {
		t.Errorf("%d of %d refused: the test is no good", refused, rounds)
	}
}

func randomOps(rng *rand.Rand, depth int) (ops []kv.Op) {
	key := func() []byte { return []byte{'a' + byte(rng.IntN(12))} }
	for range rng.IntN(4) {
		switch rng.IntN(4) {
		case 0:
			ops = append(ops, kv.Op{Range: &kv.Range{}})
		case 1:
			ops = append(ops, kv.Op{Put: &kv.Put{Key: key()}})
		case 2:
			d := &kv.Delete{Span: kv.Span{Key: key()}}
			switch rng.IntN(4) {
			case 0:
				d.End = key()
			case 1:
				d.End = []byte{0}
			}
			ops = append(ops, kv.Op{Delete: d})
		case 3:
			if depth > 0 {
				ops = append(ops, kv.Op{Txn: &kv.Txn{Success: randomOps(rng, depth-1), Failure: randomOps(rng, depth-1)}})
			}
		}
	}
	return ops
}

// naiveOverlap is etcd's rule in its own order, on lists.
func naiveOverlap(ops []kv.Op) (puts []string, dels []kv.Span, ok bool) {
	add := func(key string, but []string) bool {
		for _, p := range puts {
			if p == key && !contains(but, key) {
				return false
			}
		}
		for _, d := range dels {
			if d.Contains([]byte(key)) && !d.Unbounded() {
				return false
			}
		}
		puts = append(puts, key)
		return true
	}
	for _, o := range ops {
		if o.Delete != nil {
			dels = append(dels, o.Delete.Span)
		}
	}
	for _, o := range ops {
		if o.Txn == nil {
			continue
		}
		then, thenDels, ok1 := naiveOverlap(o.Txn.Success)
		els, elseDels, ok2 := naiveOverlap(o.Txn.Failure)
		if !ok1 || !ok2 {
			return nil, nil, false
		}
		for _, k := range dedup(then) {
			if !add(k, nil) {
				return nil, nil, false
			}
		}
		for _, k := range dedup(els) {
			if !add(k, then) {
				return nil, nil, false
			}
		}
		dels = append(append(dels, thenDels...), elseDels...)
	}
	for _, o := range ops {
		if o.Put != nil && !add(string(o.Put.Key), nil) {
			return nil, nil, false
		}
	}
	return puts, dels, true
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func dedup(list []string) (out []string) {
	for _, s := range list {
		if !contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

func show(ops []kv.Op) string {
	var b strings.Builder
	for _, o := range ops {
		switch {
		case o.Put != nil:
			fmt.Fprintf(&b, "put %s; ", o.Put.Key)
		case o.Delete != nil:
			fmt.Fprintf(&b, "del %q %q; ", o.Delete.Key, o.Delete.End)
		case o.Txn != nil:
			fmt.Fprintf(&b, "txn{%s}{%s}; ", show(o.Txn.Success), show(o.Txn.Failure))
		}
	}
	return b.String()
}
