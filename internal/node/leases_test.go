package node

import (
	"errors"
	"testing"
	"time"

	"quorate/internal/kv"
	"quorate/internal/lease"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// A member that is stopped while it reads its leases must not apply anything to a part of
// them: a put on a lease that is not read yet would be refused, and be lost.
func TestLeasesAreNotSeenInPart(t *testing.T) {
	n := &Node{leasesLoaded: make(chan struct{}), lifecycle: newLifecycle()}
	n.leases.Store(lease.New(1))
	n.cancel()
	got := make(chan *lease.Lessor)
	go func() { got <- n.Leases() }()
	select {
	case <-got:
		t.Fatal("leases that are not read yet are handed out")
	case <-time.After(50 * time.Millisecond):
	}
	close(n.leasesLoaded)
	if <-got != n.lessor() {
		t.Error("other leases")
	}
}

// If the leases cannot be read, nothing that was applied without them is kept.
func TestNothingIsAppliedWithoutLeases(t *testing.T) {
	n := run(t, testConfig(t.TempDir()))
	put(t, n, "a", "b")
	before := n.Applied()
	n.leasesFailed.Store(true)
	body, err := proto.Marshal(&pb.PutRequest{Key: []byte("c"), Value: []byte("d")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Propose(t.Context(), wire.FieldPut, body); !errors.Is(err, kv.ErrStopped) {
		t.Errorf("a put gets %v", err)
	}
	<-n.Failed()
	if !errors.Is(n.Err(), errLeases) || n.Applied() != before {
		t.Errorf("%v; applied up to %d, was %d", n.Err(), n.Applied(), before)
	}
}
