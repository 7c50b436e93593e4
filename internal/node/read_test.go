package node

import (
	"fmt"
	"testing"
)

// TestAnsweredWriteIsVisible: a write is in every View that is taken after its answer. A
// member that is alone asks nobody before it reads, so nothing else would make up for it.
func TestAnsweredWriteIsVisible(t *testing.T) {
	n := run(t, testConfig(t.TempDir()))
	for c := range 4 {
		t.Run(fmt.Sprint("client", c), func(t *testing.T) {
			t.Parallel()
			for i := range 300 {
				key, want := fmt.Sprint("k", c), fmt.Sprint(i)
				put(t, n, key, want)
				if got, _ := get(t, n, key); got != want {
					t.Fatalf("%q is read after %q was put", got, want)
				}
			}
		})
	}
}
