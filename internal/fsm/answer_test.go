package fsm

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"quorate/internal/kv"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// randomTxn is a transaction on the keys that randomOp names.
func randomTxn(r *rand.Rand, depth int) *pb.TxnRequest {
	t := &pb.TxnRequest{}
	if r.IntN(2) == 0 {
		t.Compare = append(t.Compare, version("none", pb.Compare_GREATER, 0))
	}
	for range r.IntN(5) {
		t.Success = append(t.Success, randomOp(r, depth))
	}
	for range r.IntN(5) {
		t.Failure = append(t.Failure, randomOp(r, depth))
	}
	return t
}

func randomOp(r *rand.Rand, depth int) *pb.RequestOp {
	key, end := fmt.Sprintf("%02d", r.IntN(30)), ""
	if r.IntN(2) == 0 {
		end = fmt.Sprintf("%02d", r.IntN(40))
	}
	switch n := r.IntN(5); {
	case n == 0 && depth > 0:
		return txnOp(randomTxn(r, depth-1))
	case n <= 1:
		op := putOp(key, strings.Repeat("v", r.IntN(2000)), 0)
		op.GetRequestPut().PrevKv = r.IntN(2) == 0
		return op
	case n == 2:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{
			Key: []byte(key), RangeEnd: []byte(end), PrevKv: r.IntN(2) == 0,
		}}}
	}
	op := rangeOp(key, end, 0)
	q := op.GetRequestRange()
	q.CountOnly, q.KeysOnly, q.Limit = r.IntN(8) == 0, r.IntN(8) == 0, r.Int64N(4)
	return op
}

// TestAnswerBytes: no answer is larger than was said before, and those of reads alone are
// not much smaller.
func TestAnswerBytes(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	m := newMachine(t)
	small := 0
	for i := range 3000 {
		req := randomTxn(r, 2)
		body, err := proto.Marshal(req)
		if err != nil {
			t.Fatal(err)
		}
		var txn kv.Txn
		if err := wire.DecodeTxn(body, &txn); err != nil {
			t.Fatal(err)
		}
		v := m.store.View()
		said := AnswerBytes(v, &txn, math.MaxInt64)
		v.Release()
		if AnswerIsSmall(&txn) {
			small++
			if most := int64(smallReads * 2100); said > most+64*40*opOverhead && putBytes(&txn) == 0 {
				t.Errorf("%d: small, but %d bytes", i, said)
			}
		}
		if res := m.do(wire.FieldTxn, req); res.Err == nil && int64(len(res.Body)) > said {
			t.Fatalf("%d: the answer has %d bytes, %d were said: %v", i, len(res.Body), said, req)
		}
	}
	if small == 0 {
		t.Error("none was small")
	}
	all := kv.Op{Range: &kv.Range{Span: kv.Span{Key: []byte{0}, End: []byte{0}}}}
	many := &kv.Txn{Success: []kv.Op{all, all, all, all, all, all, all, all}}
	v := m.store.View()
	defer v.Release()
	one := AnswerBytes(v, &kv.Txn{Success: many.Success[:1]}, math.MaxInt64)
	if got := AnswerBytes(v, many, 2*one); got <= 2*one || got > 3*one {
		t.Errorf("beyond its limit of %d: %d", 2*one, got)
	}
}
