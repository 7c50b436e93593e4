package dirs

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/test/harness"
)

// clients are the stubs for one server.
type clients struct {
	kv    pb.KVClient
	lease pb.LeaseClient
	maint pb.MaintenanceClient
	clus  pb.ClusterClient
}

func connect(t testing.TB, s *harness.Server) clients {
	t.Helper()
	conn, err := s.Conn()
	if err != nil {
		t.Fatal(err)
	}
	return newClients(conn)
}

func newClients(conn *grpc.ClientConn) clients {
	return clients{pb.NewKVClient(conn), pb.NewLeaseClient(conn), pb.NewMaintenanceClient(conn), pb.NewClusterClient(conn)}
}

// writer makes random history. One that is cut short by the server's end just stops.
type writer struct {
	*rand.Rand
	clients
	rev, compacted int64
}

// write performs n operations and returns the first error that is not a refusal.
func (w *writer) write(ctx context.Context, n int) error {
	for range n {
		if err := w.step(ctx); err != nil {
			switch status.Code(err) {
			case codes.NotFound, codes.FailedPrecondition, codes.OutOfRange:
			default:
				return err
			}
		}
	}
	return nil
}

func (w *writer) step(ctx context.Context) error {
	key := fmt.Appendf(nil, "k%02d", w.IntN(40))
	value := []byte(strings.Repeat("v", w.IntN(300)))
	put := &pb.PutRequest{Key: key, Value: value}
	var header *pb.ResponseHeader
	var err error
	switch n := w.IntN(100); {
	case n < 50:
		if w.IntN(4) == 0 {
			put.Lease = 1 + w.Int64N(20)
		}
		var r *pb.PutResponse
		r, err = w.kv.Put(ctx, put)
		header = r.GetHeader()
	case n < 62:
		req := &pb.DeleteRangeRequest{Key: key}
		if w.IntN(3) == 0 {
			req.RangeEnd = fmt.Appendf(nil, "k%02d", w.IntN(40))
		}
		var r *pb.DeleteRangeResponse
		r, err = w.kv.DeleteRange(ctx, req)
		header = r.GetHeader()
	case n < 75:
		// Two puts and a deletion in one revision.
		var r *pb.TxnResponse
		r, err = w.kv.Txn(ctx, &pb.TxnRequest{
			Compare: []*pb.Compare{{Key: key, Result: pb.Compare_GREATER, Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{Version: w.Int64N(3)}}},
			Success: []*pb.RequestOp{
				{Request: &pb.RequestOp_RequestPut{RequestPut: put}},
				{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("k1"), RangeEnd: []byte("k13")}}},
			},
			Failure: []*pb.RequestOp{
				{Request: &pb.RequestOp_RequestPut{RequestPut: put}},
				{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("txn"), Value: value}}},
			},
		})
		if status.Code(err) == codes.InvalidArgument {
			err = nil // the key lay in the deleted range
		}
		header = r.GetHeader()
	case n < 87:
		_, err = w.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 1 + w.Int64N(20), TTL: 100_000 + w.Int64N(1_000_000)})
	case n < 96:
		var r *pb.LeaseRevokeResponse
		r, err = w.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 1 + w.Int64N(20)})
		header = r.GetHeader()
	default:
		if w.rev-w.compacted > 50 {
			w.compacted += 1 + w.Int64N(w.rev-w.compacted-20)
			_, err = w.kv.Compact(ctx, &pb.CompactionRequest{Revision: w.compacted, Physical: w.IntN(2) == 0})
		}
	}
	if header != nil {
		w.rev = max(w.rev, header.Revision)
	}
	return err
}

// writeUntilKilled lets several writers loose and kills the server in their midst.
func writeUntilKilled(t *testing.T, r *rand.Rand, s *harness.Server) {
	t.Helper()
	c := connect(t, s)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var wg sync.WaitGroup
	for range 4 {
		w := &writer{Rand: rand.New(rand.NewPCG(r.Uint64(), 4)), clients: c}
		wg.Go(func() {
			// How it ends is the kill's doing.
			_ = w.write(ctx, 1<<30)
		})
	}
	time.Sleep(50*time.Millisecond + time.Duration(r.Int64N(int64(400*time.Millisecond))))
	s.Kill()
	wg.Wait()
}
