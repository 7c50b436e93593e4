package index

import (
	"math/rand/v2"
	"slices"
	"testing"

	"quorate/internal/kv"
)

// TestHistory compares a long history, through compactions, with a slice.
func TestHistory(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	type old struct {
		h    *history
		want []change // as it was when h was the newest
	}
	for round := range 6 {
		var h *history
		var want []change
		var olds []old
		main := int64(rng.IntN(3)) << 31
		for step := range 40000 {
			main += 1 + rng.Int64N(3)
			c := newChange(kv.Revision{Main: main, Sub: rng.Int64N(3)}, rng.IntN(3) == 0)
			if h == nil {
				h = newHistory(c)
			} else {
				h = h.append(c)
			}
			want = append(want, c)
			if rng.IntN(1+5000*round) == 0 {
				at := want[rng.IntN(len(want))].main() - rng.Int64N(2)
				h = h.compact(at)
				want = compactSlice(want, at)
			}
			if h == nil {
				if len(want) != 0 {
					t.Fatalf("step %d: nothing left, want %d", step, len(want))
				}
				continue
			}
			if step%1000 == 0 {
				olds = append(olds, old{h, want[:len(want):len(want)]})
				if got := h.all(); !slices.Equal(got, want) || h.len() != len(want) {
					t.Fatalf("step %d: %d changes, want %d", step, len(got), len(want))
				}
			}
			if step%10 == 0 {
				o := olds[rng.IntN(len(olds))]
				checkAt(t, h, want, rng)
				checkAt(t, o.h, o.want, rng)
			}
		}
	}
}

// compactSlice is for a key whose current change is above rev.
func compactSlice(want []change, rev int64) []change {
	n := 0
	for n < len(want) && want[n].main() <= rev {
		n++
	}
	if n > 0 && (!want[n-1].tombstone() || want[n-1].main() == rev) {
		n--
	}
	return want[n:]
}

func checkAt(t *testing.T, h *history, want []change, rng *rand.Rand) {
	t.Helper()
	if len(want) == 0 {
		return
	}
	// No reader asks an old history for what came after it.
	rev := want[rng.IntN(len(want))].main() - rng.Int64N(2)
	var last change
	found := false
	for _, c := range want {
		if c.main() > rev {
			break
		}
		last, found = c, true
	}
	if got, ok := h.at(rev); ok != found || got != last {
		t.Fatalf("at(%d) = %v %v, want %v %v", rev, got, ok, last, found)
	}
}

// TestOldTree wants a change to an old tree to be noticed.
func TestOldTree(t *testing.T) {
	var tree Tree
	for main := range int64(6) {
		tree, _, _ = tree.Put([]byte("k"), kv.Revision{Main: 10 + main})
	}
	tree.Put([]byte("k"), kv.Revision{Main: 20})
	wantPanic(t, "an old tree", func() { tree.Put([]byte("k"), kv.Revision{Main: 21}) })
	wantPanic(t, "an old revision", func() { tree.Put([]byte("other"), kv.Revision{Main: 14}) })
}

func wantPanic(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("a change to %s was not noticed", what)
		}
	}()
	f()
}
