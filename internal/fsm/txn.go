package fsm

import (
	"bytes"
	"cmp"

	"quorate/internal/kv"
	"quorate/internal/mvcc"
	"quorate/internal/wire"
)

// reader is what a Txn's conditions and reads see: the Tx of one that writes, the View
// of one that only reads.
type reader interface {
	Rev() int64
	CompactRev() int64
	Range(r *kv.Range, emit func(keyValue []byte)) (mvcc.Found, error)
}

// txn applies t in etcd's three steps: choose the branches of t and of all nested
// transactions by the state before it, check every operation on the way, do them.
func (m *Machine) txn(t *kv.Txn) Result {
	if m.alarms.Corrupt() {
		return Result{Err: kv.ErrCorrupt}
	}
	if m.alarms.NoSpace() && t.Puts() {
		return Result{Err: kv.ErrNoSpace}
	}
	if m.access.checked() {
		if err := m.access.txn(t, m.leases()); err != nil {
			return Result{Err: err}
		}
	}
	tx := m.store.Begin()
	path := choose(tx, t, m.path[:0])
	m.path = path
	if _, err := m.checkTxn(tx, t, path); err != nil {
		tx.End()
		return Result{Err: err}
	}
	before := m.counts
	body, _ := execute(tx, t, path, m, nil)
	if c := m.counts; c.Puts+c.Deletes+c.Ranges > before.Puts+before.Deletes+before.Ranges+1 {
		m.counts.Txns++
	}
	return m.end(tx, body)
}

// ReadTxn evaluates t, whose operations are all ranges, on view. size is that of the answer as
// far as it is known.
func ReadTxn(view *mvcc.View, t *kv.Txn, size int64) Result {
	v := yielding{view}
	path := choose(v, t, nil)
	for _, op := range branch(t, path[0]) {
		if op.Range != nil {
			if err := checkRange(v, op.Range); err != nil {
				return Result{Err: err}
			}
		}
	}
	body, _ := execute(v, t, path, nil, make([]byte, 0, size))
	return Result{Rev: v.Rev(), Body: body}
}

func branch(t *kv.Txn, succeeded bool) []kv.Op {
	if succeeded {
		return t.Success
	}
	return t.Failure
}

// choose appends to path whether t's comparisons hold, then the same for the nested
// transactions of the branch taken, depth first. All are evaluated before anything is
// done.
func choose(r reader, t *kv.Txn, path []bool) []bool {
	holds := true
	for i := range t.Compares {
		if !compare(r, &t.Compares[i]) {
			holds = false
			break
		}
	}
	path = append(path, holds)
	for _, op := range branch(t, holds) {
		if op.Txn != nil {
			path = choose(r, op.Txn, path)
		}
	}
	return path
}

// compare reports whether c holds for every key of its span. Where there is none, the
// value of nothing equals and differs from nothing, and any number is compared with 0.
func compare(r reader, c *kv.Compare) bool {
	holds, found := true, false
	_, err := r.Range(&kv.Range{Span: c.Span}, func(b []byte) {
		found = true
		if holds {
			holds = compareKey(c, keyValue(b))
		}
	})
	switch {
	case err != nil:
		return false
	case found:
		return holds
	case c.Target == kv.CompareValue:
		return false
	}
	return compareKey(c, wire.KeyValue{})
}

func compareKey(c *kv.Compare, have wire.KeyValue) bool {
	var order int
	switch c.Target {
	case kv.CompareVersion:
		order = cmp.Compare(have.Version, c.Number)
	case kv.CompareCreate:
		order = cmp.Compare(have.Create, c.Number)
	case kv.CompareMod:
		order = cmp.Compare(have.Mod, c.Number)
	case kv.CompareLease:
		order = cmp.Compare(int64(have.Lease), c.Number)
	case kv.CompareValue:
		order = bytes.Compare(have.Value, c.Value)
	}
	switch c.Result {
	case kv.CompareEqual:
		return order == 0
	case kv.CompareGreater:
		return order > 0
	case kv.CompareLess:
		return order < 0
	case kv.CompareNotEqual:
		return order != 0
	}
	return true
}

// checkTxn reports why an operation on path cannot be done. nested is how many elements
// of path after the first it used.
func (m *Machine) checkTxn(tx *mvcc.Tx, t *kv.Txn, path []bool) (nested int, err error) {
	for _, op := range branch(t, path[0]) {
		switch {
		case op.Range != nil:
			err = checkRange(tx, op.Range)
		case op.Put != nil:
			err = m.checkPut(tx, op.Put)
		case op.Txn != nil:
			var n int
			n, err = m.checkTxn(tx, op.Txn, path[1+nested:])
			nested += n + 1
		}
		if err != nil {
			return 0, err
		}
	}
	return nested, nil
}

// checkRange is etcd's check of a range inside a transaction. Unlike a range on its own,
// a negative revision is compared like any other.
func checkRange(r reader, rg *kv.Range) error {
	switch {
	case rg.Revision == 0:
		return nil
	case rg.Revision > r.Rev():
		return kv.ErrFutureRevision
	case rg.Revision < r.CompactRev():
		return kv.ErrCompacted
	}
	return nil
}

// execute does t along path and appends TxnResponse's fields but the header to b. nested
// is as in checkTxn. m is nil where t only reads.
func execute(r reader, t *kv.Txn, path []bool, m *Machine, b []byte) (body []byte, nested int) {
	b = wire.AppendSucceeded(b, path[0])
	for _, op := range branch(t, path[0]) {
		var open wire.Result
		b, open = wire.OpenResult(b, &op)
		switch {
		case op.Range != nil:
			b = appendRange(b, r, op.Range)
			if m != nil {
				m.counts.Ranges++
			}
		case op.Put != nil:
			tx := r.(*mvcc.Tx)
			fields := m.doPut(tx, op.Put, nil)
			b = append(appendRevision(b, tx.Rev()), fields...)
		case op.Delete != nil:
			tx := r.(*mvcc.Tx)
			fields := m.doDelete(tx, op.Delete, nil)
			b = append(appendRevision(b, tx.Rev()), fields...)
		case op.Txn != nil:
			b = wire.AppendHeader(b, &wire.Header{})
			var n int
			b, n = execute(r, op.Txn, path[1+nested:], m, b)
			nested += n + 1
		}
		b = wire.CloseResult(b, open)
	}
	return b, nested
}

// appendRevision appends a response's header that holds a revision and nothing else, as
// those inside a transaction do.
func appendRevision(b []byte, rev int64) []byte {
	return wire.AppendHeader(b, &wire.Header{Revision: rev})
}

// appendRange appends the RangeResponse of a range that was checked.
func appendRange(b []byte, r reader, rg *kv.Range) []byte {
	b = appendRevision(b, r.Rev())
	found, err := r.Range(rg, func(keyValue []byte) { b = wire.AppendRangeKV(b, keyValue) })
	if err != nil {
		panic("fsm: a range that was checked failed: " + err.Error())
	}
	return wire.AppendRangeEnd(b, found.More, found.Count)
}
