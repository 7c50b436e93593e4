package fsm

import (
	"runtime"

	"quorate/internal/kv"
	"quorate/internal/mvcc"
)

// The answer to a transaction has no bound that follows from the request's size: each of
// many operations may read all keys. So that it can be charged to somebody before it is
// built, its size is found out from the state as it is then.

const (
	// keyOverhead is more than a KeyValue takes in an answer beside key and value.
	keyOverhead = 80
	// opOverhead is more than the answer, or an operation's part of it, takes beside its keys.
	opOverhead = 64
	// smallReads is up to how many keys a transaction may name one by one and be small.
	smallReads = 4
)

// AnswerIsSmall reports whether the answer to t holds a few keys' values at most, whatever
// the state.
func AnswerIsSmall(t *kv.Txn) bool {
	keys, small := namedKeys(t)
	return small && keys <= smallReads
}

// namedKeys counts the keys whose values t's answer may hold; not ok if they are a span's.
func namedKeys(t *kv.Txn) (n int, ok bool) {
	for _, ops := range [][]kv.Op{t.Success, t.Failure} {
		for i := range ops {
			switch o := &ops[i]; {
			case o.Range != nil && !o.Range.Single(), o.Delete != nil && o.Delete.PrevKV && !o.Delete.Single():
				return n, false
			case o.Range != nil, o.Put != nil && o.Put.PrevKV, o.Delete != nil && o.Delete.PrevKV:
				n++
			case o.Txn != nil:
				m, ok := namedKeys(o.Txn)
				if !ok {
					return n, false
				}
				n += m
			}
		}
	}
	return n, true
}

// AnswerBytes is no less than the size of the answer to t, were it applied to the state of
// v: that of the larger branch. It gives up beyond limit.
func AnswerBytes(v *mvcc.View, t *kv.Txn, limit int64) int64 {
	return sizer{yielding{v}, limit, putBytes(t)}.txn(t, opOverhead)
}

// putBytes is what the puts of t, of either branch, may add to what its ranges read.
func putBytes(t *kv.Txn) (n int64) {
	for _, ops := range [][]kv.Op{t.Success, t.Failure} {
		for i := range ops {
			switch o := &ops[i]; {
			case o.Put != nil:
				n += int64(len(o.Put.Key)+len(o.Put.Value)) + keyOverhead
			case o.Txn != nil:
				n += putBytes(o.Txn)
			}
		}
	}
	return n
}

// yieldBytes is how much of an answer is built, or measured, in one go by who only reads.
const yieldBytes = 256 << 10

// yielding is a View whose long ranges let other goroutines go first now and then: Go would
// let each run for 10 ms, and a write passes several on its way.
type yielding struct{ *mvcc.View }

// Range is View's.
func (y yielding) Range(r *kv.Range, emit func(keyValue []byte)) (mvcc.Found, error) {
	n := 0
	return y.View.Range(r, func(keyValue []byte) {
		emit(keyValue)
		if n += len(keyValue); n >= yieldBytes {
			n = 0
			runtime.Gosched()
		}
	})
}

// sizer finds out how large answers are.
type sizer struct {
	v     yielding
	limit int64
	puts  int64 // putBytes
}

// txn is n and the size of the answer to t.
func (s sizer) txn(t *kv.Txn, n int64) int64 {
	return max(s.ops(t.Success, n), s.ops(t.Failure, n))
}

func (s sizer) ops(ops []kv.Op, n int64) int64 {
	for i := range ops {
		n += opOverhead
		switch o := &ops[i]; {
		case o.Range != nil:
			n += s.keys(o.Range)
		case o.Put != nil && o.Put.PrevKV:
			n += s.keys(&kv.Range{Span: kv.Span{Key: o.Put.Key}})
		case o.Delete != nil && o.Delete.PrevKV:
			n += s.keys(&kv.Range{Span: o.Delete.Span})
		case o.Txn != nil:
			n = s.txn(o.Txn, n)
		}
		if n > s.limit {
			break
		}
	}
	return n
}

// keys is what r's keys take. A range that cannot be done takes nothing.
func (s sizer) keys(r *kv.Range) (n int64) {
	if r.CountOnly || checkRange(s.v, r) != nil {
		return 0
	}
	add := func(keyValue []byte) { n += int64(len(keyValue)) + keyOverhead }
	if _, err := s.v.Range(r, add); err != nil {
		return 0
	}
	return n + s.puts
}
