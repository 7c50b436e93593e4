package wire

import "quorate/internal/kv"

// Each decoder reads the request message of one call. Byte slices point into b.

// DecodeRange decodes etcdserverpb.RangeRequest.
func DecodeRange(b []byte, q *kv.Range) error {
	r := reader{b: b}
	for r.next() {
		switch r.tag {
		case 1<<3 | lenPfx:
			q.Key = r.data
		case 2<<3 | lenPfx:
			q.End = r.data
		case 3<<3 | varint:
			q.Limit = int64(r.v)
		case 4<<3 | varint:
			q.Revision = int64(r.v)
		case 5<<3 | varint:
			q.SortOrder = kv.SortOrder(r.v)
		case 6<<3 | varint:
			q.SortTarget = kv.SortTarget(r.v)
		case 7<<3 | varint:
			q.Serializable = r.v != 0
		case 8<<3 | varint:
			q.KeysOnly = r.v != 0
		case 9<<3 | varint:
			q.CountOnly = r.v != 0
		case 10<<3 | varint:
			q.MinMod = int64(r.v)
		case 11<<3 | varint:
			q.MaxMod = int64(r.v)
		case 12<<3 | varint:
			q.MinCreate = int64(r.v)
		case 13<<3 | varint:
			q.MaxCreate = int64(r.v)
		}
	}
	return r.err()
}

// DecodePut decodes etcdserverpb.PutRequest.
func DecodePut(b []byte, q *kv.Put) error {
	r := reader{b: b}
	for r.next() {
		switch r.tag {
		case 1<<3 | lenPfx:
			q.Key = r.data
		case 2<<3 | lenPfx:
			q.Value = r.data
		case 3<<3 | varint:
			q.Lease = kv.LeaseID(r.v)
		case 4<<3 | varint:
			q.PrevKV = r.v != 0
		case 5<<3 | varint:
			q.IgnoreValue = r.v != 0
		case 6<<3 | varint:
			q.IgnoreLease = r.v != 0
		}
	}
	return r.err()
}

// DecodeDelete decodes etcdserverpb.DeleteRangeRequest.
func DecodeDelete(b []byte, q *kv.Delete) error {
	r := reader{b: b}
	for r.next() {
		switch r.tag {
		case 1<<3 | lenPfx:
			q.Key = r.data
		case 2<<3 | lenPfx:
			q.End = r.data
		case 3<<3 | varint:
			q.PrevKV = r.v != 0
		}
	}
	return r.err()
}

// DecodeCompact decodes etcdserverpb.CompactionRequest.
func DecodeCompact(b []byte, q *kv.Compact) error {
	r := reader{b: b}
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			q.Revision = int64(r.v)
		case 2<<3 | varint:
			q.Physical = r.v != 0
		}
	}
	return r.err()
}

// DecodeTxn decodes etcdserverpb.TxnRequest, however large it is: a request that is
// already in the log must be read as every member reads it.
func DecodeTxn(b []byte, q *kv.Txn) error {
	d := txnDecoder{listMax: maxInt, partsMax: maxInt}
	return d.txn(b, q, 1)
}

// DecodeTxnBounded is DecodeTxn for a request that is not yet trusted. An empty
// operation takes two bytes on the wire and fifty in memory, so a small message could
// cost much: a list of compares or operations is cut off after opsMax+1 elements, which
// is enough for the caller to see that it is too long, and kv.ErrTooManyOps is returned
// when all lists together, nested ones included, exceed 65,536 + 3 opsMax elements.
func DecodeTxnBounded(b []byte, q *kv.Txn, opsMax int) error {
	d := txnDecoder{listMax: opsMax + 1, partsMax: 1<<16 + 3*opsMax}
	return d.txn(b, q, 1)
}

const maxInt = int(^uint(0) >> 1)

const (
	txnCompare = 1<<3 | lenPfx
	txnSuccess = 2<<3 | lenPfx
	txnFailure = 3<<3 | lenPfx

	opRange  = 1<<3 | lenPfx
	opPut    = 2<<3 | lenPfx
	opDelete = 3<<3 | lenPfx
	opTxn    = 4<<3 | lenPfx
)

// txnDecoder decodes one transaction and those nested in it.
type txnDecoder struct {
	listMax  int // elements kept of one list
	partsMax int // elements kept of all lists
	parts    int
}

// txn decodes a TxnRequest that is the depth-th message from the outside.
func (d *txnDecoder) txn(b []byte, q *kv.Txn, depth int) error {
	if depth > depthMax {
		return ErrMalformed
	}
	if err := d.reserve(b, q); err != nil {
		return err
	}
	r := reader{b: b}
	for r.next() {
		var err error
		switch r.tag {
		case txnCompare:
			var c kv.Compare
			err = decodeCompare(r.data, &c, depth+1)
			if len(q.Compares) < d.listMax {
				q.Compares = append(q.Compares, c)
			}
		case txnSuccess:
			q.Success, err = d.op(r.data, q.Success, depth+1)
		case txnFailure:
			q.Failure, err = d.op(r.data, q.Failure, depth+1)
		}
		if err != nil {
			return err
		}
	}
	return r.err()
}

// reserve makes room in q for exactly what b holds, and charges for it.
func (d *txnDecoder) reserve(b []byte, q *kv.Txn) error {
	var compares, success, failure int
	r := reader{b: b}
	for r.next() {
		switch r.tag {
		case txnCompare:
			compares++
		case txnSuccess:
			success++
		case txnFailure:
			failure++
		}
	}
	if r.bad {
		return ErrMalformed
	}
	compares, success, failure = min(compares, d.listMax), min(success, d.listMax), min(failure, d.listMax)
	if d.parts += compares + success + failure; d.parts > d.partsMax {
		return kv.ErrTooManyOps
	}
	q.Compares = grow(q.Compares, compares)
	q.Success = grow(q.Success, success)
	q.Failure = grow(q.Failure, failure)
	return nil
}

// grow gives s room for n more elements.
func grow[T any](s []T, n int) []T {
	if n == 0 || cap(s)-len(s) >= n {
		return s
	}
	return append(make([]T, 0, len(s)+n), s...)
}

// op decodes a RequestOp to the end of ops, unless that is full already: then the
// operation is only checked.
func (d *txnDecoder) op(b []byte, ops []kv.Op, depth int) ([]kv.Op, error) {
	if depth > depthMax {
		return ops, ErrMalformed
	}
	var op kv.Op
	r := reader{b: b}
	for r.next() {
		// The operations are one "oneof": the last one wins, and one that comes twice
		// merges with itself.
		if r.tag >= opRange && r.tag <= opTxn && r.tag&7 == lenPfx && depth+1 > depthMax {
			return ops, ErrMalformed
		}
		var err error
		switch r.tag {
		case opRange:
			if op.Range == nil {
				op = kv.Op{Range: new(kv.Range)}
			}
			err = DecodeRange(r.data, op.Range)
		case opPut:
			if op.Put == nil {
				op = kv.Op{Put: new(kv.Put)}
			}
			err = DecodePut(r.data, op.Put)
		case opDelete:
			if op.Delete == nil {
				op = kv.Op{Delete: new(kv.Delete)}
			}
			err = DecodeDelete(r.data, op.Delete)
		case opTxn:
			if op.Txn == nil {
				op = kv.Op{Txn: new(kv.Txn)}
			}
			err = d.txn(r.data, op.Txn, depth+1)
		}
		if err != nil {
			return ops, err
		}
	}
	if len(ops) < d.listMax {
		ops = append(ops, op)
	}
	return ops, r.err()
}

func decodeCompare(b []byte, q *kv.Compare, depth int) error {
	if depth > depthMax {
		return ErrMalformed
	}
	// What to compare with is a "oneof" and the target a field of its own. They should
	// agree; where they do not, the target is compared with zero.
	var union struct {
		num    uint32
		number int64
		value  []byte
	}
	r := reader{b: b}
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			q.Result = kv.CompareResult(r.v)
		case 2<<3 | varint:
			q.Target = kv.CompareTarget(r.v)
		case 3<<3 | lenPfx:
			q.Key = r.data
		case 4<<3 | varint, 5<<3 | varint, 6<<3 | varint, 8<<3 | varint:
			union.num, union.number = r.tag>>3, int64(r.v)
		case 7<<3 | lenPfx:
			union.num, union.value = r.tag>>3, r.data
		case 64<<3 | lenPfx:
			q.End = r.data
		}
	}
	switch {
	case q.Target < 0 || int(q.Target) >= len(unionNum) || unionNum[q.Target] != union.num:
	case q.Target == kv.CompareValue:
		q.Value = union.value
	default:
		q.Number = union.number
	}
	return r.err()
}

// unionNum is the field of Compare's target_union that belongs to each target.
var unionNum = [...]uint32{
	kv.CompareVersion: 4,
	kv.CompareCreate:  5,
	kv.CompareMod:     6,
	kv.CompareValue:   7,
	kv.CompareLease:   8,
}
