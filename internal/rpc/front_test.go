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
	line := lineOf([]byte("a"))
	for seed := range *lineSeeds / 3 {
		m, index := newMember(t), uint64(0)
		rng := rand.New(rand.NewPCG(seed, 5))
		f := front{line: line, limit: frontLimit{keys: 1 + rng.IntN(6), bytes: 8 + rng.IntN(40)}}
		v := m.store.View()
		if err := f.load(v, 0); err != nil {
			t.Fatal(err)
		}
		f.check(t, v)
		v.Release()
		still, asked := front{line: line, limit: f.limit}, int64(0)
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
				if err := f.load(v, 0); err != nil {
					t.Fatal(err)
				}
				f.check(t, v)
			}
			// One that goes along with nothing, asked now and then, about a revision of the past or of now.
			if rng.IntN(3) == 0 {
				asked = max(asked, v.Rev()-rng.Int64N(20), 1)
				of := asked
				if rng.IntN(4) == 0 {
					asked, of = v.Rev(), 0
				}
				leader, err := still.leader(v, of)
				all := naiveFront(t, v, line, asked)
				switch {
				case err != nil:
					t.Fatal(err)
				case leader == nil != (len(all) == 0),
					leader != nil && (leader.CreateRevision != all[0].created || !slices.Contains(all, standing{string(leader.Key), leader.CreateRevision})):
					t.Fatalf("revision %d: the leader is %v of %v", asked, leader, all)
				}
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

// BenchmarkLeader has the turn go from each of a line to the next, with an observer that wants
// to know who has it. What that costs hardly depends on how many there are.
func BenchmarkLeader(b *testing.B) {
	for _, n := range []int{100, 1000, 10_000} {
		line := lineOf([]byte("a"))
		run := func(b *testing.B, leader func(v *mvcc.View, rev int64) (*mvccpb.KeyValue, error)) {
			m, index := newMember(b), uint64(0)
			key := func(i int) []byte { return fmt.Appendf(nil, "a/%x", i) }
			change := func(f func(tx *mvcc.Tx)) {
				tx := m.store.Begin()
				f(tx)
				tx.End()
				index++
				m.store.Publish(index, testTerm)
			}
			for i := range n {
				change(func(tx *mvcc.Tx) { tx.Put(key(i), nil, 0) })
			}
			for i := 0; b.Loop(); i++ { // who has had the turn joins again
				v := m.store.View()
				if k, err := leader(v, v.Rev()); err != nil || string(k.Key) != string(key(i%n)) {
					b.Fatal(k, err)
				}
				v.Release()
				change(func(tx *mvcc.Tx) {
					tx.Delete(kv.Span{Key: key(i % n)}, func(kv.Record) {}, func(kv.LeaseID, []byte) {})
				})
				change(func(tx *mvcc.Tx) { tx.Put(key(i%n), nil, 0) })
			}
		}
		b.Run(fmt.Sprint("front/n=", n), func(b *testing.B) {
			f := front{line: line, limit: defaultFrontLimit}
			run(b, f.leader)
		})
		b.Run(fmt.Sprint("line/n=", n), func(b *testing.B) {
			run(b, func(v *mvcc.View, rev int64) (*mvccpb.KeyValue, error) { return firstInLine(v, line, rev) })
		})
	}
}
