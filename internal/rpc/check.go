package rpc

import (
	"bytes"
	"slices"

	"quorate/internal/kv"
)

// What a request must fulfil before it is proposed. The order of the checks is etcd's,
// since a request that breaks two rules must get the same error.

func checkRange(r *kv.Range) error {
	if len(r.Key) == 0 {
		return kv.ErrEmptyKey
	}
	if r.SortOrder < kv.SortNone || r.SortOrder > kv.SortDescend || r.SortTarget < kv.SortByKey || r.SortTarget > kv.SortByValue {
		return kv.ErrInvalidSort
	}
	return nil
}

func checkPut(p *kv.Put) error {
	switch {
	case len(p.Key) == 0:
		return kv.ErrEmptyKey
	case p.IgnoreValue && len(p.Value) != 0:
		return kv.ErrValueProvided
	case p.IgnoreLease && p.Lease != kv.NoLease:
		return kv.ErrLeaseProvided
	}
	return nil
}

func checkDelete(d *kv.Delete) error {
	if len(d.Key) == 0 {
		return kv.ErrEmptyKey
	}
	return nil
}

// checkTxn checks t and all that is nested in it. opsMax bounds each of t's lists; a
// nested transaction gets what t's longest list leaves.
func checkTxn(t *kv.Txn, opsMax int) error {
	if err := checkOps(t, opsMax); err != nil {
		return err
	}
	// The two branches exclude each other. Overlaps are looked for only now, when the
	// size of t is known to be reasonable.
	if err := checkOverlap(t.Success); err != nil {
		return err
	}
	return checkOverlap(t.Failure)
}

func checkOps(t *kv.Txn, opsMax int) error {
	longest := max(len(t.Compares), len(t.Success), len(t.Failure))
	if longest > opsMax {
		return kv.ErrTooManyOps
	}
	for i := range t.Compares {
		if len(t.Compares[i].Key) == 0 {
			return kv.ErrEmptyKey
		}
	}
	for _, ops := range [][]kv.Op{t.Success, t.Failure} {
		for i := range ops {
			if err := checkOp(&ops[i], opsMax-longest); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkOp(o *kv.Op, opsMax int) error {
	switch {
	case o.Range != nil:
		return checkRange(o.Range)
	case o.Put != nil:
		return checkPut(o.Put)
	case o.Delete != nil:
		return checkDelete(o.Delete)
	case o.Txn != nil:
		return checkOps(o.Txn, opsMax)
	}
	return kv.ErrKeyNotFound
}

// checkOverlap returns kv.ErrDuplicateKey if ops put a key twice, or put one that they
// delete.
func checkOverlap(ops []kv.Op) error {
	puts, others := 0, 0
	for i := range ops {
		switch {
		case ops[i].Put != nil:
			puts++
		case ops[i].Delete != nil, ops[i].Txn != nil:
			others++
		}
	}
	if others == 0 && puts <= 1 {
		return nil // most transactions
	}
	_, err := footprintOf(ops)
	return err
}

// footprint is what a list of operations may change.
type footprint struct {
	puts map[string]struct{}
	// dels are the deleted ranges [Key, End), sorted and apart from each other. Deletes
	// without an upper end are not among them: etcd takes those for empty ranges here,
	// and lets them overlap with anything.
	dels []kv.Span
}

// footprintOf joins the footprints of ops, unless they overlap where they must not.
//
// The rules are etcd's to the letter, also where they depend on the order: a put in one
// nested transaction collides with deletes of this level and of nested transactions
// before it, but not of those after it. Puts of this level collide with all. The two
// branches of one nested transaction may put the same key, and deletes may overlap.
func footprintOf(ops []kv.Op) (footprint, error) {
	f := footprint{puts: make(map[string]struct{})}
	for i := range ops {
		if d := ops[i].Delete; d != nil {
			f.dels = appendDeleted(f.dels, d.Span)
		}
	}
	f.dels = join(f.dels)
	for i := range ops {
		if t := ops[i].Txn; t != nil {
			if err := f.addNested(t); err != nil {
				return f, err
			}
		}
	}
	for i := range ops {
		if p := ops[i].Put; p != nil {
			if err := f.addPut(string(p.Key), nil); err != nil {
				return f, err
			}
		}
	}
	return f, nil
}

func (f *footprint) addNested(t *kv.Txn) error {
	success, err := footprintOf(t.Success)
	if err != nil {
		return err
	}
	failure, err := footprintOf(t.Failure)
	if err != nil {
		return err
	}
	for k := range success.puts {
		if err := f.addPut(k, nil); err != nil {
			return err
		}
	}
	for k := range failure.puts {
		if err := f.addPut(k, success.puts); err != nil {
			return err
		}
	}
	if len(success.dels)+len(failure.dels) > 0 {
		f.dels = join(append(append(f.dels, success.dels...), failure.dels...))
	}
	return nil
}

// addPut adds a put of key, which may also be one of excluded: puts of the other branch.
func (f *footprint) addPut(key string, excluded map[string]struct{}) error {
	if _, twice := f.puts[key]; twice {
		if _, ok := excluded[key]; !ok {
			return kv.ErrDuplicateKey
		}
	}
	if f.deletes([]byte(key)) {
		return kv.ErrDuplicateKey
	}
	f.puts[key] = struct{}{}
	return nil
}

func (f *footprint) deletes(key []byte) bool {
	// The first range that ends behind key is the only one that may hold it.
	i, _ := slices.BinarySearchFunc(f.dels, key, func(s kv.Span, key []byte) int {
		if bytes.Compare(s.End, key) <= 0 {
			return -1
		}
		return 1
	})
	return i < len(f.dels) && bytes.Compare(f.dels[i].Key, key) <= 0
}

// appendDeleted appends s as a range, unless it is empty or has no upper end.
func appendDeleted(dels []kv.Span, s kv.Span) []kv.Span {
	switch {
	case s.Single():
		s.End = append(append(make([]byte, 0, len(s.Key)+1), s.Key...), 0)
	case bytes.Compare(s.Key, s.End) >= 0: // also with the end "\x00": nothing is below it
		return dels
	}
	return append(dels, s)
}

// join sorts ranges and joins those that touch.
func join(dels []kv.Span) []kv.Span {
	slices.SortFunc(dels, func(a, b kv.Span) int { return bytes.Compare(a.Key, b.Key) })
	out := dels[:0]
	for _, s := range dels {
		if n := len(out); n > 0 && bytes.Compare(s.Key, out[n-1].End) <= 0 {
			if bytes.Compare(s.End, out[n-1].End) > 0 {
				out[n-1].End = s.End
			}
			continue
		}
		out = append(out, s)
	}
	return out
}

// readOnly reports whether t holds nothing but ranges; a nested transaction counts as a
// write. serializable reports whether all its ranges are. etcd takes a transaction of
// compares alone for both.
func readOnly(t *kv.Txn) (readOnly, serializable bool) {
	serializable = true
	for _, ops := range [][]kv.Op{t.Success, t.Failure} {
		for i := range ops {
			if ops[i].Range == nil {
				return false, false
			}
			serializable = serializable && ops[i].Range.Serializable
		}
	}
	return true, serializable
}
