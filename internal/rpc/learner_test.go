package rpc

import (
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestLearner calls a learner, as etcd has it and with Options.LearnerReads.
func TestLearner(t *testing.T) {
	get := &pb.RangeRequest{Key: []byte("a")}
	local := &pb.RangeRequest{Key: []byte("a"), Serializable: true}
	reads := &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: get}}}}
	readsLocal := &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestRange{RequestRange: local}}}}
	writes := &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestPut{RequestPut: put("a", "")}}}}
	for _, tc := range []struct {
		name            string
		plain, withFlag bool // whether it is answered
		call            func(t *testing.T, conn *grpc.ClientConn) error
	}{
		{"serializable range", true, true, func(t *testing.T, c *grpc.ClientConn) error {
			return second(pb.NewKVClient(c).Range(t.Context(), local))
		}},
		{"linearizable range", false, true, func(t *testing.T, c *grpc.ClientConn) error { return second(pb.NewKVClient(c).Range(t.Context(), get)) }},
		{"serializable stream", false, true, func(t *testing.T, c *grpc.ClientConn) error {
			return first(pb.NewKVClient(c).RangeStream(t.Context(), local))
		}},
		{"linearizable stream", false, true, func(t *testing.T, c *grpc.ClientConn) error {
			return first(pb.NewKVClient(c).RangeStream(t.Context(), get))
		}},
		{"reading txn", false, true, func(t *testing.T, c *grpc.ClientConn) error { return second(pb.NewKVClient(c).Txn(t.Context(), reads)) }},
		{"serializable txn", false, true, func(t *testing.T, c *grpc.ClientConn) error {
			return second(pb.NewKVClient(c).Txn(t.Context(), readsLocal))
		}},
		{"writing txn", false, false, func(t *testing.T, c *grpc.ClientConn) error {
			return second(pb.NewKVClient(c).Txn(t.Context(), writes))
		}},
		{"put", false, false, func(t *testing.T, c *grpc.ClientConn) error {
			return second(pb.NewKVClient(c).Put(t.Context(), put("a", "")))
		}},
		{"delete", false, false, func(t *testing.T, c *grpc.ClientConn) error {
			return second(pb.NewKVClient(c).DeleteRange(t.Context(), &pb.DeleteRangeRequest{Key: []byte("a")}))
		}},
		{"compact", false, false, func(t *testing.T, c *grpc.ClientConn) error {
			return second(pb.NewKVClient(c).Compact(t.Context(), &pb.CompactionRequest{}))
		}},
		{"watch", false, true, func(t *testing.T, c *grpc.ClientConn) error {
			w, err := pb.NewWatchClient(c).Watch(t.Context())
			if err == nil {
				_ = w.Send(watchCreateRequest(&pb.WatchCreateRequest{Key: []byte("a")}))
			}
			return first(w, err)
		}},
		{"lease list", false, false, func(t *testing.T, c *grpc.ClientConn) error {
			return second(pb.NewLeaseClient(c).LeaseLeases(t.Context(), &pb.LeaseLeasesRequest{}))
		}},
		{"keep-alive", false, false, func(t *testing.T, c *grpc.ClientConn) error {
			w, err := pb.NewLeaseClient(c).LeaseKeepAlive(t.Context())
			if err == nil {
				_ = w.Send(&pb.LeaseKeepAliveRequest{}) // Recv knows better why it failed
			}
			return first(w, err)
		}},
		{"member list", false, true, func(t *testing.T, c *grpc.ClientConn) error {
			return second(pb.NewClusterClient(c).MemberList(t.Context(), &pb.MemberListRequest{Linearizable: true}))
		}},
		{"promotion", false, false, func(t *testing.T, c *grpc.ClientConn) error {
			return second(pb.NewClusterClient(c).MemberPromote(t.Context(), &pb.MemberPromoteRequest{}))
		}},
		{"status", true, true, func(t *testing.T, c *grpc.ClientConn) error {
			return second(pb.NewMaintenanceClient(c).Status(t.Context(), &pb.StatusRequest{}))
		}},
		{"snapshot", true, true, func(t *testing.T, c *grpc.ClientConn) error {
			return first(pb.NewMaintenanceClient(c).Snapshot(t.Context(), &pb.SnapshotRequest{}))
		}},
		{"hash", false, false, func(t *testing.T, c *grpc.ClientConn) error {
			return second(pb.NewMaintenanceClient(c).HashKV(t.Context(), &pb.HashKVRequest{}))
		}},
	} {
		for _, flag := range []bool{false, true} {
			m := newMember(t)
			m.learner.Store(true)
			_, addr := start(t, m, func(o *Options) { o.LearnerReads = flag }, nil)
			err := tc.call(t, dial(t, addr))
			want := ""
			if flag && !tc.withFlag || !flag && !tc.plain {
				want = "etcdserver: rpc not supported for learner"
			}
			if st := status.Convert(err); st.Message() != want || want != "" && st.Code() != codes.FailedPrecondition {
				t.Errorf("%s, flag %v: %v", tc.name, flag, err)
			}
		}
	}
}

// first is the error of a stream, or of its first message.
func first[T any](s interface{ Recv() (T, error) }, err error) error {
	if err != nil {
		return err
	}
	return second(s.Recv())
}
