package mvcc

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
)

func TestSortByHead(t *testing.T) {
	t.Parallel()
	type element struct {
		head uint64
		rest int
	}
	compare := func(a, b element) int { return cmp.Compare(a.rest, b.rest) }
	for _, n := range []int{0, 1, 2, radixMin - 1, radixMin, 3 * radixMin, 20_000} {
		for _, mask := range []uint64{0, 1, 0xff, 0xff00, 0xff << 56, 0xf0f, 1<<63 | 3, 0xffff_ffff, 1<<64 - 1} {
			list := make([]element, n)
			for i := range list {
				list[i] = element{rand.Uint64()&mask | 5<<20&^mask, rand.IntN(1000)}
			}
			want := slices.Clone(list)
			slices.SortFunc(want, func(a, b element) int {
				return cmp.Or(cmp.Compare(a.head, b.head), compare(a, b))
			})
			if got := sortByHead(list, func(e *element) uint64 { return e.head }, compare); !slices.Equal(got, want) {
				t.Fatalf("%d elements, heads of %x: not sorted", n, mask)
			}
		}
	}
}
