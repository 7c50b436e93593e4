package rpc

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"quorate/internal/kv"
	"quorate/internal/mvcc"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// naiveFront is the whole line at a revision, by creation.
func naiveFront(t testing.TB, v *mvcc.View, line kv.Span, rev int64) (all []standing) {
	t.Helper()
	r := kv.Range{Span: line, Revision: rev, SortTarget: kv.SortByCreate, SortOrder: kv.SortAscend}
	if _, err := v.Range(&r, func(b []byte) {
		k := mustDecode(b)
		all = append(all, standing{string(k.Key), k.Create})
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// check holds f against the whole line at its revision.
func (f *front) check(t testing.TB, v *mvcc.View) {
	t.Helper()
	all := naiveFront(t, v, f.line, f.rev)
	bytes := 0
	for i, s := range f.first {
		bytes += len(s.key)
		// Among those of one transaction any order will do.
		if s.created != all[i].created || !slices.Contains(all, s) {
			t.Fatalf("revision %d: the front is %v, of %v", f.rev, f.first, all)
		}
	}
	if f.whole && len(f.first) != len(all) {
		t.Fatalf("revision %d: taken for whole: %v of %v", f.rev, f.first, all)
	}
	if bytes != f.bytes || len(f.first) > 1 && (bytes > f.limit.bytes || len(f.first) > f.limit.keys) {
		t.Fatalf("holds %d keys of %d bytes, counted %d", len(f.first), bytes, f.bytes)
	}
}

// TestFrontRandomly changes a line at random, with transactions that create and delete
// several keys, and holds a front with little room against the whole line.
func TestFrontRandomly(t *testing.T) {
	m, index := newMember(t), uint64(0)
	line := lineOf([]byte("a"))
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 5))
		f := front{line: line, limit: frontLimit{keys: 1 + rng.IntN(6), bytes: 8 + rng.IntN(40)}}
		v := m.store.View()
		if err := f.load(v); err != nil {
			t.Fatal(err)
		}
		f.check(t, v)
		v.Release()
		refilled := 0
		for range 300 {
			tx := m.store.Begin()
			for range 1 + rng.IntN(3) {
				key := fmt.Appendf(nil, "a/%0*d", 1+rng.IntN(8), rng.IntN(8))
				switch rng.IntN(5) {
				case 0, 1:
					tx.Put(key, nil, 0)
				case 2:
					tx.Put(append([]byte("b"), key...), nil, 0) // outside
				default:
					tx.Delete(kv.Span{Key: key}, func(kv.Record) {}, func(kv.LeaseID, []byte) {})
				}
			}
			_, changes := tx.End()
			index++
			m.store.Publish(index, testTerm)
			v := m.store.View()
			var events []*mvccpb.Event
			for _, c := range changes {
				e := &mvccpb.Event{Type: mvccpb.Event_PUT, Kv: decodeKeyValue(c.KV)}
				if e.Kv.ModRevision = c.Rev.Main; c.Tombstone {
					e.Type = mvccpb.Event_DELETE
				}
				if line.Contains(e.Kv.Key) {
					events = append(events, e)
				}
			}
			for _, e := range events {
				f.change(e)
			}
			f.rev = v.Rev()
			f.check(t, v)
			if f.unknown() {
				refilled++
				if err := f.load(v); err != nil {
					t.Fatal(err)
				}
				f.check(t, v)
			}
			all := naiveFront(t, v, line, 0)
			for _, s := range all {
				want := slices.ContainsFunc(all, func(o standing) bool { return cmp.Less(o.created, s.created) })
				if got, err := someoneAhead(v, line, s.created); err != nil || got != want {
					t.Fatalf("someone ahead of %v: %v (%v), want %v", s, got, err, want)
				}
			}
			v.Release()
		}
		if seed == 0 {
			t.Logf("read again %d times in 300 changes", refilled)
		}
	}
}
