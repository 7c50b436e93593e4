package index

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"quorate/internal/kv"
)

// TestReadersBesideWriter has readers go through the trees of a writer that goes on
// meanwhile. The race detector watches; the readers check that their tree stands still.
func TestReadersBesideWriter(t *testing.T) {
	const keys = 500
	var newest atomic.Pointer[Tree]
	newest.Store(&Tree{})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	all := kv.Span{Key: []byte{0}, End: []byte{0}}
	for reader := range 3 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(uint64(reader), 5))
			for {
				select {
				case <-stop:
					return
				default:
				}
				tree := *newest.Load()
				back := rng.Int64N(300)
				sum := func() string {
					h := fnv.New64()
					n := 0
					tree.AscendAt(all, tree.Last().Main-back, func(key []byte, mod kv.Revision) bool {
						fmt.Fprintf(h, "%q %v,", key, mod)
						return true
					})
					tree.Ascend(all, func(e Entry) bool { n++; return true })
					return fmt.Sprint(n, tree.Count(all), h.Sum64())
				}
				if a, b := sum(), sum(); a != b {
					t.Errorf("a tree changed: %s, then %s", a, b)
					return
				}
			}
		}()
	}
	rng := rand.New(rand.NewPCG(6, 7))
	w := Tree{}.Edit()
	for rev := int64(2); rev < 30000; rev++ {
		key := fmt.Appendf(nil, "k%d", rng.IntN(keys))
		if rng.IntN(3) == 0 {
			w.Delete(key, kv.Revision{Main: rev})
		} else {
			w.Put(key, kv.Revision{Main: rev})
		}
		if rev%10 == 0 {
			tree := w.Tree()
			newest.Store(&tree)
		}
		if rev%1000 == 0 {
			for from, more := []byte(nil), true; more; {
				from, more = w.Sweep(from, rev-500, 3)
			}
		}
	}
}
