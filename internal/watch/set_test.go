package watch

import (
	"math/rand/v2"
	"slices"
	"testing"

	"quorate/internal/kv"
)

// TestSet compares the set with a list of groups that is walked whole.
func TestSet(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 1))
		letters := "ab\x00\xff"
		key := func() []byte {
			b := make([]byte, 1+r.IntN(3))
			for i := range b {
				b[i] = letters[r.IntN(len(letters))]
			}
			return b
		}
		var s set
		type member struct {
			kv.Span
			g *group
		}
		var members []member
		for range 300 {
			switch {
			case r.IntN(5) < 2 && len(members) > 0:
				i := r.IntN(len(members))
				s.remove(members[i].g)
				members = slices.Delete(members, i, i+1)
			default:
				sp := kv.Span{Key: key()}
				switch r.IntN(3) {
				case 0:
					sp.End = []byte{0}
				case 1:
					if sp.End = key(); string(sp.End) <= string(sp.Key) {
						sp.Key, sp.End = sp.End, sp.Key
					}
					if len(sp.End) == 0 || string(sp.Key) == string(sp.End) || sp.Unbounded() {
						continue
					}
				}
				members = append(members, member{sp, s.add(spanOf(sp), flags(r.IntN(3)))})
			}
			if s.size != len(members) {
				t.Fatalf("seed %d: size %d, want %d", seed, s.size, len(members))
			}
			k := key()
			got := map[*group]bool{}
			for _, first := range s.match(nil, k) {
				for g := first; g != nil; g = g.sibling {
					if got[g] {
						t.Fatalf("seed %d: a group found twice", seed)
					}
					got[g] = true
				}
			}
			want := map[*group]int{}
			for _, m := range members {
				if m.Contains(k) {
					want[m.g]++
					if !got[m.g] {
						t.Fatalf("seed %d: key %q in %q not found", seed, k, m.Span)
					}
				}
			}
			if len(got) != len(want) {
				t.Fatalf("seed %d: key %q found in %d groups, want %d", seed, k, len(got), len(want))
			}
			for g, n := range want {
				if g.size != n {
					t.Fatalf("seed %d: group of %d, want %d", seed, g.size, n)
				}
			}
		}
		for _, m := range members {
			s.remove(m.g)
		}
		if s.keys != nil || s.spans != nil || s.size != 0 {
			t.Fatalf("seed %d: an empty set holds something", seed)
		}
	}
}
