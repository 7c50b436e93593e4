package wire

import (
	"bytes"
	"errors"
	"math"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"pgregory.net/rapid"

	"quorate/internal/kv"
)

// The referee of all tests here is protobuf-go on etcd's own message types: what it
// takes we take, with the same meaning; what it writes we write.

func marshal(t interface{ Fatal(...any) }, m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// ---- kv's types as messages ----

func pbRange(q *kv.Range) *pb.RangeRequest {
	return &pb.RangeRequest{
		Key: q.Key, RangeEnd: q.End, Limit: q.Limit, Revision: q.Revision,
		SortOrder:    pb.RangeRequest_SortOrder(q.SortOrder),
		SortTarget:   pb.RangeRequest_SortTarget(q.SortTarget),
		Serializable: q.Serializable, KeysOnly: q.KeysOnly, CountOnly: q.CountOnly,
		MinModRevision: q.MinMod, MaxModRevision: q.MaxMod,
		MinCreateRevision: q.MinCreate, MaxCreateRevision: q.MaxCreate,
	}
}

func pbPut(q *kv.Put) *pb.PutRequest {
	return &pb.PutRequest{
		Key: q.Key, Value: q.Value, Lease: int64(q.Lease),
		PrevKv: q.PrevKV, IgnoreValue: q.IgnoreValue, IgnoreLease: q.IgnoreLease,
	}
}

func pbDelete(q *kv.Delete) *pb.DeleteRangeRequest {
	return &pb.DeleteRangeRequest{Key: q.Key, RangeEnd: q.End, PrevKv: q.PrevKV}
}

func pbCompact(q *kv.Compact) *pb.CompactionRequest {
	return &pb.CompactionRequest{Revision: q.Revision, Physical: q.Physical}
}

func pbTxn(q *kv.Txn) *pb.TxnRequest {
	m := &pb.TxnRequest{}
	for i := range q.Compares {
		c := &q.Compares[i]
		p := &pb.Compare{
			Key: c.Key, RangeEnd: c.End,
			Result: pb.Compare_CompareResult(c.Result), Target: pb.Compare_CompareTarget(c.Target),
		}
		if len(c.Value) != 0 || c.Number != 0 {
			switch c.Target {
			case kv.CompareVersion:
				p.TargetUnion = &pb.Compare_Version{Version: c.Number}
			case kv.CompareCreate:
				p.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: c.Number}
			case kv.CompareMod:
				p.TargetUnion = &pb.Compare_ModRevision{ModRevision: c.Number}
			case kv.CompareLease:
				p.TargetUnion = &pb.Compare_Lease{Lease: c.Number}
			case kv.CompareValue:
				p.TargetUnion = &pb.Compare_Value{Value: c.Value}
			}
		}
		m.Compare = append(m.Compare, p)
	}
	ops := func(in []kv.Op) (out []*pb.RequestOp) {
		for i := range in {
			op := &pb.RequestOp{}
			switch o := &in[i]; {
			case o.Range != nil:
				op.Request = &pb.RequestOp_RequestRange{RequestRange: pbRange(o.Range)}
			case o.Put != nil:
				op.Request = &pb.RequestOp_RequestPut{RequestPut: pbPut(o.Put)}
			case o.Delete != nil:
				op.Request = &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: pbDelete(o.Delete)}
			case o.Txn != nil:
				op.Request = &pb.RequestOp_RequestTxn{RequestTxn: pbTxn(o.Txn)}
			}
			out = append(out, op)
		}
		return out
	}
	m.Success, m.Failure = ops(q.Success), ops(q.Failure)
	return m
}

// normalize drops from m what carries no meaning: unknown fields, and a compare's
// operand that is not its target's or that is zero.
func normalize(m *pb.TxnRequest) {
	m.ProtoReflect().SetUnknown(nil)
	for _, c := range m.Compare {
		c.ProtoReflect().SetUnknown(nil)
		var keep bool
		switch u := c.TargetUnion.(type) {
		case *pb.Compare_Version:
			keep = c.Target == pb.Compare_VERSION && u.Version != 0
		case *pb.Compare_CreateRevision:
			keep = c.Target == pb.Compare_CREATE && u.CreateRevision != 0
		case *pb.Compare_ModRevision:
			keep = c.Target == pb.Compare_MOD && u.ModRevision != 0
		case *pb.Compare_Lease:
			keep = c.Target == pb.Compare_LEASE && u.Lease != 0
		case *pb.Compare_Value:
			keep = c.Target == pb.Compare_VALUE && len(u.Value) != 0
		}
		if !keep {
			c.TargetUnion = nil
		}
	}
	for _, list := range [][]*pb.RequestOp{m.Success, m.Failure} {
		for _, op := range list {
			op.ProtoReflect().SetUnknown(nil)
			switch r := op.Request.(type) {
			case *pb.RequestOp_RequestRange:
				r.RequestRange.ProtoReflect().SetUnknown(nil)
			case *pb.RequestOp_RequestPut:
				r.RequestPut.ProtoReflect().SetUnknown(nil)
			case *pb.RequestOp_RequestDeleteRange:
				r.RequestDeleteRange.ProtoReflect().SetUnknown(nil)
			case *pb.RequestOp_RequestTxn:
				normalize(r.RequestTxn)
			}
		}
	}
}

// checkRequests decodes b as every request there is, beside protobuf-go.
func checkRequests(t interface {
	Fatalf(string, ...any)
	Helper()
}, b []byte) {
	t.Helper()
	check := func(name string, err error, got func() proto.Message, want proto.Message) {
		t.Helper()
		wantErr := proto.Unmarshal(b, want)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%s of %x: got error %v, protobuf-go %v", name, b, err, wantErr)
		}
		if err != nil {
			return
		}
		want.ProtoReflect().SetUnknown(nil)
		if txn, ok := want.(*pb.TxnRequest); ok {
			normalize(txn)
		}
		if g := got(); !proto.Equal(g, want) {
			t.Fatalf("%s of %x:\n got %v\nwant %v", name, b, g, want)
		}
	}
	var r kv.Range
	check("range", DecodeRange(b, &r), func() proto.Message { return pbRange(&r) }, &pb.RangeRequest{})
	var p kv.Put
	check("put", DecodePut(b, &p), func() proto.Message { return pbPut(&p) }, &pb.PutRequest{})
	var d kv.Delete
	check("delete", DecodeDelete(b, &d), func() proto.Message { return pbDelete(&d) }, &pb.DeleteRangeRequest{})
	var c kv.Compact
	check("compact", DecodeCompact(b, &c), func() proto.Message { return pbCompact(&c) }, &pb.CompactionRequest{})
	var x kv.Txn
	check("txn", DecodeTxn(b, &x), func() proto.Message { return pbTxn(&x) }, &pb.TxnRequest{})
	k, err := DecodeKeyValue(b)
	check("key value", err, func() proto.Message { return pbKeyValue(&k) }, &mvccpb.KeyValue{})
	if err == nil {
		checkKeyValue(t, b, &k)
	}
	checkRaftRequest(t, b)
}

func pbKeyValue(k *KeyValue) *mvccpb.KeyValue {
	return &mvccpb.KeyValue{
		Key: k.Key, CreateRevision: k.Create, ModRevision: k.Mod,
		Version: k.Version, Value: k.Value, Lease: int64(k.Lease),
	}
}

func checkKeyValue(t interface{ Fatalf(string, ...any) }, b []byte, k *KeyValue) {
	if got := LeaseOf(b); got != k.Lease {
		t.Fatalf("LeaseOf(%x) = %v, want %v", b, got, k.Lease)
	}
	want := *k
	want.Value = nil
	short := AppendWithoutValue([]byte("x"), b)
	got, err := DecodeKeyValue(short[1:])
	if err != nil || !proto.Equal(pbKeyValue(&got), pbKeyValue(&want)) {
		t.Fatalf("without value %x: got %x, %v", b, short[1:], err)
	}
	enc, err := proto.Marshal(pbKeyValue(k))
	if mine := AppendKeyValue(nil, k); err != nil || !bytes.Equal(mine, enc) || k.Size() != len(enc) {
		t.Fatalf("encode %+v: got %x, size %d, want %x, %v", k, mine, k.Size(), enc, err)
	} else if got := KeyOf(enc); !bytes.Equal(got, k.Key) {
		t.Fatalf("KeyOf(%x) = %q, want %q", enc, got, k.Key)
	}
}

// raftBody is the encoding of the one request that m holds.
func raftBody(m *pb.InternalRaftRequest) (field Field, body []byte) {
	for f, req := range map[Field]proto.Message{
		FieldRange: m.Range, FieldPut: m.Put, FieldDelete: m.DeleteRange, FieldTxn: m.Txn,
		FieldCompact: m.Compaction, FieldLeaseGrant: m.LeaseGrant, FieldLeaseRevoke: m.LeaseRevoke,
		FieldAlarm: m.Alarm, FieldLeaseCheckpoint: m.LeaseCheckpoint, FieldClusterVersion: m.ClusterVersionSet,
		FieldMemberAttributes: m.ClusterMemberAttrSet, FieldDowngradeInfo: m.DowngradeInfoSet,
	} {
		if !req.ProtoReflect().IsValid() {
			continue
		}
		if field != 0 {
			return 0, nil
		}
		field = f
		body, _ = proto.Marshal(req)
	}
	return field, body
}

func checkRaftRequest(t interface{ Fatalf(string, ...any) }, b []byte) {
	got, err := DecodeRaftRequest(b)
	var want pb.InternalRaftRequest
	if proto.Unmarshal(b, &want) != nil {
		return // the fault may be inside the request, or in a string
	}
	if err != nil {
		t.Fatalf("raft request %x: %v, protobuf-go takes it", b, err)
	}
	id := want.GetHeader().GetID()
	if id == 0 {
		id = want.ID
	}
	if got.ID != id || string(got.Username) != want.GetHeader().GetUsername() || got.AuthRevision != want.GetHeader().GetAuthRevision() {
		t.Fatalf("raft request %x:\n got %+v\nwant %v", b, got, &want)
	}
	field := Field(0) // the lowest that is set
	want.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if n := Field(fd.Number()); n != 1 && n != fieldHeader && (field == 0 || n < field) {
			field = n
		}
		return true
	})
	if field == 0 {
		return
	}
	if got.Field != field {
		t.Fatalf("raft request %x: got field %v, want %v", b, got.Field, field)
	}
	if field == FieldPut {
		var p kv.Put
		if err := DecodePut(got.Body, &p); err != nil {
			t.Fatalf("raft request %x: body %x: %v", b, got.Body, err)
		}
		want.Put.ProtoReflect().SetUnknown(nil)
		if !proto.Equal(pbPut(&p), want.Put) {
			t.Fatalf("raft request %x: got put %+v, want %v", b, p, want.Put)
		}
	}
}

// ---- random messages ----

func genBytes(t *rapid.T) []byte {
	return rapid.OneOf(
		rapid.Just([]byte(nil)), rapid.Just([]byte{0}),
		rapid.SliceOfN(rapid.Byte(), 0, 5),
		rapid.Map(rapid.SampledFrom([]int{127, 128, 16383, 16384}), func(n int) []byte { return make([]byte, n) }),
	).Draw(t, "bytes")
}

func genInt(t *rapid.T) int64 {
	return rapid.OneOf(rapid.Just(int64(0)), rapid.Int64Range(-3, 300), rapid.Int64(),
		rapid.SampledFrom([]int64{math.MaxInt64, math.MinInt64, 1<<7 - 1, 1 << 7, 1<<14 - 1, 1 << 14, 1 << 63 >> 1})).Draw(t, "int")
}

func genEnum(t *rapid.T) int32 {
	return rapid.OneOf(rapid.Int32Range(0, 4), rapid.Int32Range(-2, 9)).Draw(t, "enum")
}

func genBool(t *rapid.T) bool { return rapid.Bool().Draw(t, "bool") }

func genRange(t *rapid.T) *pb.RangeRequest {
	return &pb.RangeRequest{
		Key: genBytes(t), RangeEnd: genBytes(t), Limit: genInt(t), Revision: genInt(t),
		SortOrder:    pb.RangeRequest_SortOrder(genEnum(t)),
		SortTarget:   pb.RangeRequest_SortTarget(genEnum(t)),
		Serializable: genBool(t), KeysOnly: genBool(t), CountOnly: genBool(t),
		MinModRevision: genInt(t), MaxModRevision: genInt(t),
		MinCreateRevision: genInt(t), MaxCreateRevision: genInt(t),
	}
}

func genPut(t *rapid.T) *pb.PutRequest {
	return &pb.PutRequest{
		Key: genBytes(t), Value: genBytes(t), Lease: genInt(t),
		PrevKv: genBool(t), IgnoreValue: genBool(t), IgnoreLease: genBool(t),
	}
}

func genDelete(t *rapid.T) *pb.DeleteRangeRequest {
	return &pb.DeleteRangeRequest{Key: genBytes(t), RangeEnd: genBytes(t), PrevKv: genBool(t)}
}

func genTxn(t *rapid.T, depth int) *pb.TxnRequest {
	m := &pb.TxnRequest{}
	for range rapid.IntRange(0, 3).Draw(t, "compares") {
		c := &pb.Compare{
			Key: genBytes(t), RangeEnd: genBytes(t),
			Result: pb.Compare_CompareResult(genEnum(t)), Target: pb.Compare_CompareTarget(genEnum(t)),
		}
		union := c.Target
		if rapid.IntRange(0, 9).Draw(t, "mismatch") == 0 {
			union = pb.Compare_CompareTarget(genEnum(t))
		}
		switch union {
		case pb.Compare_VERSION:
			c.TargetUnion = &pb.Compare_Version{Version: genInt(t)}
		case pb.Compare_CREATE:
			c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: genInt(t)}
		case pb.Compare_MOD:
			c.TargetUnion = &pb.Compare_ModRevision{ModRevision: genInt(t)}
		case pb.Compare_LEASE:
			c.TargetUnion = &pb.Compare_Lease{Lease: genInt(t)}
		case pb.Compare_VALUE:
			c.TargetUnion = &pb.Compare_Value{Value: genBytes(t)}
		}
		m.Compare = append(m.Compare, c)
	}
	ops := func() (out []*pb.RequestOp) {
		for range rapid.IntRange(0, 3).Draw(t, "ops") {
			op := &pb.RequestOp{}
			switch k := rapid.IntRange(0, 4).Draw(t, "op"); {
			case k == 1:
				op.Request = &pb.RequestOp_RequestRange{RequestRange: genRange(t)}
			case k == 2:
				op.Request = &pb.RequestOp_RequestPut{RequestPut: genPut(t)}
			case k == 3:
				op.Request = &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: genDelete(t)}
			case k == 4 && depth > 0:
				op.Request = &pb.RequestOp_RequestTxn{RequestTxn: genTxn(t, depth-1)}
			}
			out = append(out, op)
		}
		return out
	}
	m.Success, m.Failure = ops(), ops()
	return m
}

func genKeyValue(t *rapid.T) *mvccpb.KeyValue {
	return &mvccpb.KeyValue{
		Key: genBytes(t), CreateRevision: genInt(t), ModRevision: genInt(t),
		Version: genInt(t), Value: genBytes(t), Lease: genInt(t),
	}
}

// genField is a field as no encoder of ours would write it: unknown, of the wrong wire
// type, with a long varint, a group.
func genField(t *rapid.T, depth int) []byte {
	num := protowire.Number(rapid.OneOf(rapid.Int32Range(1, 16), rapid.SampledFrom([]int32{64, 100, 1000, 1300, 1<<29 - 1})).Draw(t, "num"))
	switch rapid.IntRange(0, 5).Draw(t, "type") {
	case 0:
		b := protowire.AppendTag(nil, num, protowire.VarintType)
		return protowire.AppendVarint(b, rapid.Uint64().Draw(t, "v"))
	case 1:
		b := protowire.AppendTag(nil, num, protowire.Fixed64Type)
		return protowire.AppendFixed64(b, rapid.Uint64().Draw(t, "v"))
	case 2:
		b := protowire.AppendTag(nil, num, protowire.Fixed32Type)
		return protowire.AppendFixed32(b, rapid.Uint32().Draw(t, "v"))
	case 3:
		b := protowire.AppendTag(nil, num, protowire.VarintType)
		n := rapid.IntRange(0, 9).Draw(t, "pad")
		for range n {
			b = append(b, 0x80)
		}
		return append(b, rapid.Byte().Draw(t, "last")&3)
	case 4:
		b := protowire.AppendTag(nil, num, protowire.StartGroupType)
		if depth > 0 {
			b = append(b, genField(t, depth-1)...)
		}
		return protowire.AppendTag(b, num, protowire.EndGroupType)
	default:
		b := protowire.AppendTag(nil, num, protowire.BytesType)
		var in []byte
		if depth > 0 {
			in = genField(t, depth-1)
		}
		return protowire.AppendBytes(b, in)
	}
}

func TestRequestsAsProtobuf(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b []byte
		for range rapid.IntRange(1, 3).Draw(t, "pieces") {
			var m proto.Message
			switch rapid.IntRange(0, 6).Draw(t, "message") {
			case 0:
				m = genRange(t)
			case 1:
				m = genPut(t)
			case 2:
				m = genDelete(t)
			case 3:
				m = &pb.CompactionRequest{Revision: genInt(t), Physical: genBool(t)}
			case 4:
				m = genTxn(t, 3)
			case 5:
				m = genKeyValue(t)
			case 6:
				m = &pb.InternalRaftRequest{
					Header: &pb.RequestHeader{ID: uint64(genInt(t)), Username: "u", AuthRevision: uint64(genInt(t))},
					ID:     uint64(genInt(t)), Put: genPut(t),
				}
			}
			b = append(b, marshal(t, m)...)
			if genBool(t) {
				b = append(b, genField(t, 2)...)
			}
		}
		if rapid.IntRange(0, 3).Draw(t, "damage") == 0 && len(b) > 0 {
			at := rapid.IntRange(0, len(b)-1).Draw(t, "at")
			if genBool(t) {
				b = b[:at]
			} else {
				b[at] = rapid.Byte().Draw(t, "byte")
			}
		}
		checkRequests(t, b)
	})
}

func FuzzRequests(f *testing.F) {
	f.Add([]byte{})
	f.Add(marshal(f, &pb.RangeRequest{Key: []byte("k"), RangeEnd: []byte("l"), Limit: 7, SortOrder: 1, MinModRevision: 3}))
	f.Add(marshal(f, &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: []byte("k"), Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: []byte("v")}, RangeEnd: []byte("z")}},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k"), Lease: -1}}}, {}},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestTxn{RequestTxn: &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("d")}}}}}}}},
	}))
	f.Add(marshal(f, &pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: 9}, Put: &pb.PutRequest{Key: []byte("k")}}))
	f.Add(marshal(f, &mvccpb.KeyValue{Key: []byte("k"), CreateRevision: 2, ModRevision: 3, Version: 2, Value: []byte("v"), Lease: 1}))
	f.Add([]byte{0x0b, 0x0a, 1, 'x', 0x0c})
	f.Fuzz(func(t *testing.T, b []byte) { checkRequests(t, b) })
}

func TestRaftRequestBytes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := uint64(genInt(t))
		h := RequestHeader{ID: id, Username: rapid.String().Draw(t, "user"), AuthRevision: uint64(genInt(t))}
		put, del := genPut(t), genDelete(t)
		for _, c := range []struct {
			field Field
			m     *pb.InternalRaftRequest
		}{
			{FieldPut, &pb.InternalRaftRequest{Put: put}},
			{FieldDelete, &pb.InternalRaftRequest{DeleteRange: del}},
			{FieldLeaseCheckpoint, &pb.InternalRaftRequest{LeaseCheckpoint: &pb.LeaseCheckpointRequest{}}},
		} {
			c.m.Header = &pb.RequestHeader{ID: id, Username: h.Username, AuthRevision: h.AuthRevision}
			_, body := raftBody(c.m)
			got := AppendRaftRequest([]byte("x"), &h, c.field, body)[1:]
			if want := marshal(t, c.m); !bytes.Equal(got, want) {
				t.Fatalf("%v: got %x, want %x", c.field, got, want)
			}
			if n := RaftRequestSize(&h, c.field, len(body)); n != len(got) {
				t.Fatalf("%v: size %d, want %d", c.field, n, len(got))
			}
			q, err := DecodeRaftRequest(got)
			if err != nil || q.ID != id || string(q.Username) != h.Username || q.AuthRevision != h.AuthRevision || q.Field != c.field || !bytes.Equal(q.Body, body) {
				t.Fatalf("%v: decoded %+v, %v", c.field, q, err)
			}
		}
	})
	// Numbers above the header's come after it.
	body := []byte{0x0a, 1, '3'}
	got := AppendRaftRequest(nil, &RequestHeader{ID: 5}, FieldClusterVersion, body)
	var m pb.InternalRaftRequest
	if err := proto.Unmarshal(got, &m); err != nil || m.ClusterVersionSet.GetVer() != "3" || !bytes.Equal(marshal(t, &m), got) {
		t.Errorf("cluster version: %v, %v, %x", &m, err, got)
	}
	if q, err := DecodeRaftRequest(got); err != nil || q.Field != FieldClusterVersion || !bytes.Equal(q.Body, body) {
		t.Errorf("cluster version: decoded %+v, %v", q, err)
	}
}

func TestRaftRequestUnknown(t *testing.T) {
	unknown := protowire.AppendBytes(protowire.AppendTag(nil, 4000, protowire.BytesType), []byte("new"))
	if q, err := DecodeRaftRequest(unknown); err != nil || q.Field != 4000 || string(q.Body) != "new" {
		t.Errorf("only unknown: %+v, %v", q, err)
	}
	put := AppendRaftRequest(nil, &RequestHeader{ID: 1}, FieldPut, []byte{0x0a, 1, 'k'})
	for _, b := range [][]byte{append(append([]byte{}, unknown...), put...), append(append([]byte{}, put...), unknown...)} {
		if q, err := DecodeRaftRequest(b); err != nil || q.Field != FieldPut {
			t.Errorf("beside unknown: %+v, %v", q, err)
		}
	}
	// Twice the same field is one merged request, and the input stays as it was.
	b := append(append([]byte{}, put...), AppendRaftRequest(nil, &RequestHeader{ID: 2}, FieldPut, []byte{0x12, 1, 'v'})...)
	in := bytes.Clone(b)
	q, err := DecodeRaftRequest(b)
	var p kv.Put
	if err != nil || DecodePut(q.Body, &p) != nil || string(p.Key) != "k" || string(p.Value) != "v" || q.ID != 2 {
		t.Errorf("merged: %+v, %+v, %v", q, p, err)
	}
	if !bytes.Equal(b, in) {
		t.Error("decoding changed its input")
	}
}

// nest returns a TxnRequest with n more nested in it.
func nest(n int) []byte {
	var b []byte
	for range n {
		b = protowire.AppendBytes([]byte{byte(opTxn)}, b)
		b = protowire.AppendBytes([]byte{byte(txnSuccess)}, b)
	}
	return b
}

func TestTxnDepth(t *testing.T) {
	for _, n := range []int{0, 1, 100, (depthMax - 1) / 2} {
		var x kv.Txn
		if err := DecodeTxn(nest(n), &x); err != nil {
			t.Errorf("%d nested: %v", n, err)
		}
		var m pb.InternalRaftRequest
		if err := proto.Unmarshal(AppendRaftRequest(nil, &RequestHeader{ID: 1}, FieldTxn, nest(n)), &m); err != nil {
			t.Errorf("%d nested: protobuf-go: %v", n, err)
		}
	}
	for _, n := range []int{depthMax/2 + 1, 12_000} {
		var x kv.Txn
		if err := DecodeTxn(nest(n), &x); !errors.Is(err, ErrMalformed) {
			t.Errorf("%d nested: got %v", n, err)
		}
	}
}

func TestTxnBounds(t *testing.T) {
	const opsMax = 128
	flat := func(tag byte, n int) []byte { return bytes.Repeat([]byte{tag, 0}, n) }
	count := func(x *kv.Txn) [3]int { return [3]int{len(x.Compares), len(x.Success), len(x.Failure)} }
	for _, c := range []struct {
		name string
		b    []byte
		want [3]int
		err  error
	}{
		{"at the bound", append(flat(byte(txnCompare), opsMax), flat(byte(txnFailure), opsMax)...), [3]int{opsMax, 0, opsMax}, nil},
		{"cut", append(flat(byte(txnSuccess), 700_000), flat(byte(txnCompare), 3)...), [3]int{3, opsMax + 1, 0}, nil},
		{"bad element behind the cut", append(flat(byte(txnSuccess), 700), byte(txnSuccess), 1, 0x80), [3]int{0, opsMax + 1, 0}, ErrMalformed},
		{"many nested", bytes.Repeat(protowire.AppendBytes([]byte{byte(txnSuccess)}, protowire.AppendBytes([]byte{byte(opTxn)}, flat(byte(txnFailure), 100))), 128*6), [3]int{0, opsMax + 1, 0}, kv.ErrTooManyOps},
	} {
		var x kv.Txn
		if err := DecodeTxnBounded(c.b, &x, opsMax); !errors.Is(err, c.err) || err == nil && count(&x) != c.want {
			t.Errorf("%s: got %v, %v", c.name, count(&x), err)
		}
	}
}

func TestResponses(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		h := Header{ClusterID: uint64(genInt(t)), MemberID: uint64(genInt(t)), Revision: genInt(t), Term: uint64(genInt(t))}
		ph := &pb.ResponseHeader{ClusterId: h.ClusterID, MemberId: h.MemberID, Revision: h.Revision, RaftTerm: h.Term}
		same := func(got []byte, want proto.Message) {
			t.Helper()
			if w := marshal(t, want); !bytes.Equal(got, w) {
				t.Fatalf("%T %v:\n got %x\nwant %x", want, want, got, w)
			}
		}
		kvs := make([]*mvccpb.KeyValue, rapid.IntRange(0, 3).Draw(t, "kvs"))
		raw := make([][]byte, len(kvs))
		for i := range kvs {
			kvs[i] = genKeyValue(t)
			raw[i] = marshal(t, kvs[i])
		}
		rangeBody := func(b []byte, more bool, count int64) []byte {
			for _, r := range raw {
				b = AppendRangeKV(b, r)
			}
			return AppendRangeEnd(b, more, count)
		}
		more, n := genBool(t), genInt(t)
		same(rangeBody(AppendHeader(nil, &h), more, n), &pb.RangeResponse{Header: ph, Kvs: kvs, More: more, Count: n})

		del := AppendDeleted(AppendHeader(nil, &h), n)
		for _, r := range raw {
			del = AppendDeletedPrev(del, r)
		}
		same(del, &pb.DeleteRangeResponse{Header: ph, Deleted: n, PrevKvs: kvs})

		put := &pb.PutResponse{Header: ph}
		b := AppendHeader(nil, &h)
		if len(kvs) > 0 {
			put.PrevKv = kvs[0]
			b = AppendPutPrev(b, raw[0])
		}
		same(b, put)

		// A transaction with one of each, an empty one, and the same again nested.
		txn := func(b []byte, inner func([]byte) []byte) []byte {
			b = AppendSucceeded(b, more)
			b, r := OpenResult(b, &kv.Op{Range: &kv.Range{}})
			b = CloseResult(rangeBody(AppendHeader(b, &h), more, n), r)
			b, r = OpenResult(b, &kv.Op{Put: &kv.Put{}})
			b = CloseResult(b, r)
			b, r = OpenResult(b, &kv.Op{})
			b = CloseResult(b, r)
			b, r = OpenResult(b, &kv.Op{Txn: &kv.Txn{}})
			b = CloseResult(inner(b), r)
			b, r = OpenResult(b, &kv.Op{Delete: &kv.Delete{}})
			return CloseResult(AppendDeleted(b, n), r)
		}
		want := &pb.TxnResponse{}
		for range 3 {
			want = &pb.TxnResponse{Succeeded: more, Responses: []*pb.ResponseOp{
				{Response: &pb.ResponseOp_ResponseRange{ResponseRange: &pb.RangeResponse{Header: ph, Kvs: kvs, More: more, Count: n}}},
				{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{}}},
				{},
				{Response: &pb.ResponseOp_ResponseTxn{ResponseTxn: want}},
				{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: &pb.DeleteRangeResponse{Deleted: n}}},
			}}
		}
		got := txn(nil, func(b []byte) []byte {
			return txn(b, func(b []byte) []byte {
				return txn(b, func(b []byte) []byte { return b })
			})
		})
		same(got, want)

		// Events are encoded apart and shared by responses.
		head := WatchHead{WatchID: genInt(t), Created: genBool(t), Canceled: genBool(t), CompactRev: genInt(t),
			CancelReason: rapid.StringN(0, 200, 1000).Draw(t, "reason"), Fragment: genBool(t)}
		resp := &pb.WatchResponse{Header: ph, WatchId: head.WatchID, Created: head.Created, Canceled: head.Canceled,
			CompactRevision: head.CompactRev, CancelReason: head.CancelReason, Fragment: head.Fragment}
		b = AppendWatchHead(AppendHeader(nil, &h), &head)
		for i := range kvs {
			ev := &mvccpb.Event{Kv: kvs[i]}
			if genBool(t) {
				ev.Type = mvccpb.Event_DELETE
			}
			var prev []byte
			if genBool(t) {
				ev.PrevKv = kvs[0]
				prev = raw[0]
				if prev == nil {
					prev = []byte{}
				}
			}
			resp.Events = append(resp.Events, ev)
			part := AppendWatchEvent(nil, ev.Type == mvccpb.Event_DELETE, raw[i], prev)
			if n := WatchEventSize(ev.Type == mvccpb.Event_DELETE, raw[i], prev); n != len(part) {
				t.Fatalf("event size %d, want %d", n, len(part))
			}
			b = append(b, part...)
		}
		same(b, resp)
	})
}

func TestSizeVarint(t *testing.T) {
	for shift := range 64 {
		for _, v := range []uint64{0, 1<<shift - 1, 1 << shift, 1<<shift + 1} {
			if got, want := sizeVarint(v), protowire.SizeVarint(v); got != want {
				t.Errorf("sizeVarint(%d) = %d, want %d", v, got, want)
			}
		}
	}
}

func TestNoAllocations(t *testing.T) {
	put := marshal(t, &pb.PutRequest{Key: []byte("key"), Value: make([]byte, 256), Lease: 7})
	rng := marshal(t, &pb.RangeRequest{Key: []byte("key"), Limit: 7})
	raft := AppendRaftRequest(nil, &RequestHeader{ID: 1 << 60}, FieldPut, put)
	buf := make([]byte, 0, 4096)
	k := KeyValue{Key: []byte("key"), Create: 5, Mod: 6, Version: 2, Value: make([]byte, 256)}
	if n := testing.AllocsPerRun(100, func() {
		var p kv.Put
		var r kv.Range
		if DecodePut(put, &p) != nil || DecodeRange(rng, &r) != nil {
			t.Fatal("decode")
		}
		if q, err := DecodeRaftRequest(raft); err != nil || KeyOf(q.Body) == nil {
			t.Fatal("decode")
		}
		h := Header{ClusterID: 1 << 63, MemberID: 1 << 62, Revision: 1 << 40, Term: 3}
		b := AppendHeader(buf, &h)
		b, m := Open(b, 2)
		b = AppendKeyValue(b, &k)
		b = Close(b, m)
		AppendWithoutValue(b, b[40:])
	}); n != 0 {
		t.Errorf("%v allocations, want none", n)
	}
}

func BenchmarkDecodePut(b *testing.B) {
	put := marshal(b, &pb.PutRequest{Key: make([]byte, 32), Value: make([]byte, 256)})
	raft := AppendRaftRequest(nil, &RequestHeader{ID: 1 << 60}, FieldPut, put)
	b.ReportAllocs()
	for b.Loop() {
		q, err := DecodeRaftRequest(raft)
		var p kv.Put
		if err != nil || DecodePut(q.Body, &p) != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeTxn(b *testing.B) {
	txn := marshal(b, &pb.TxnRequest{
		Compare: []*pb.Compare{{Key: make([]byte, 32), Target: pb.Compare_MOD, TargetUnion: &pb.Compare_ModRevision{ModRevision: 7}}},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: make([]byte, 32), Value: make([]byte, 256)}}}},
		Failure: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: make([]byte, 32)}}}},
	})
	b.ReportAllocs()
	for b.Loop() {
		var x kv.Txn
		if err := DecodeTxn(txn, &x); err != nil {
			b.Fatal(err)
		}
	}
}
