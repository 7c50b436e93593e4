package node

import (
	"context"
	"testing"
)

// What nobody waits for any more is not kept, even if there is no leader for a long time.
func TestReadsThatAreGivenUpAreDropped(t *testing.T) {
	cfg := testConfig(t.TempDir())
	cfg.InitialCluster = "m1=http://127.0.0.1:2380,m2=http://127.0.0.1:2480,m3=http://127.0.0.1:2580"
	n, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	waits, stop := context.WithCancel(t.Context())
	defer stop()
	go n.ReadIndex(waits)
	for range 1000 {
		if n.ReadIndex(gone) == nil {
			t.Fatal("a read without a leader is confirmed")
		}
	}
	held := make(chan int)
	eventually(t, "the reads are dropped but for the one that is waited for", func() bool {
		n.inbox.put(arrival{call: func() { held <- len(n.reads.fresh) }})
		return <-held == 1
	})
}
