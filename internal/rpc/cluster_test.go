package rpc

import (
	"context"
	"fmt"
	"reflect"
	"testing"

	"quorate/internal/kv"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

func TestCluster(t *testing.T) {
	m, conn := serveMember(t)
	c, ctx := pb.NewClusterClient(conn), t.Context()
	l, err := c.MemberList(ctx, &pb.MemberListRequest{})
	if err != nil || len(l.Members) != 1 || l.Members[0].ID != testMember || m.reads.Load() != 0 {
		t.Errorf("member list: %v, %v, %d read indexes", l, err, m.reads.Load())
	}
	if _, err := c.MemberList(ctx, &pb.MemberListRequest{Linearizable: true}); err != nil || m.reads.Load() != 1 {
		t.Errorf("linearizable member list: %v, %d read indexes", err, m.reads.Load())
	}

	header := &pb.ResponseHeader{ClusterId: testCluster, MemberId: testMember, RaftTerm: testTerm}
	all := m.Members()
	check := func(got proto.Message, err error, want proto.Message) {
		t.Helper()
		if err != nil || !proto.Equal(got, want) {
			t.Errorf("got  %v, %v\nwant %v", got, err, want)
		}
	}
	add, err := c.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"http://b:2380", " https://a:2380"}, IsLearner: true})
	urls := []string{"http://b:2380", "https://a:2380"}
	check(add, err, &pb.MemberAddResponse{Header: header, Member: &pb.Member{ID: 5, PeerURLs: urls, IsLearner: true}, Members: all})
	remove, err := c.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: 6})
	check(remove, err, &pb.MemberRemoveResponse{Header: header, Members: all})
	update, err := c.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: 7, PeerURLs: urls})
	check(update, err, &pb.MemberUpdateResponse{Header: header, Members: all})
	promote, err := c.MemberPromote(ctx, &pb.MemberPromoteRequest{ID: 8})
	check(promote, err, &pb.MemberPromoteResponse{Header: header, Members: all})
	want := []change{
		{"add", 0, urls, true}, {what: "remove", id: 6}, {what: "update", id: 7, urls: urls}, {what: "promote", id: 8},
	}
	if !reflect.DeepEqual(m.changes, want) {
		t.Errorf("asked for %v, want %v", m.changes, want)
	}
}

// TestClusterRefusals wants etcd's codes and texts.
func TestClusterRefusals(t *testing.T) {
	m, conn := serveMember(t)
	c, ctx := pb.NewClusterClient(conn), t.Context()
	remove := func(context.Context) error {
		return second(c.MemberRemove(ctx, &pb.MemberRemoveRequest{ID: testMember}))
	}
	for _, tc := range []struct {
		err  error
		code codes.Code
		text string
	}{
		{kv.ErrMemberNotFound, codes.NotFound, "etcdserver: member not found"},
		{kv.ErrMemberExists, codes.FailedPrecondition, "etcdserver: member ID already exist"},
		{kv.ErrPeerURLExists, codes.FailedPrecondition, "etcdserver: Peer URLs already exists"},
		{kv.ErrMemberNotLearner, codes.FailedPrecondition, "etcdserver: can only promote a learner member"},
		{kv.ErrLearnerNotReady, codes.FailedPrecondition, "etcdserver: can only promote a learner member which is in sync with leader"},
		{kv.ErrTooManyLearners, codes.FailedPrecondition, "etcdserver: too many learner members in cluster"},
		{kv.ErrNotEnoughStarted, codes.Unknown, "etcdserver: re-configuration failed due to not enough started members"},
		{kv.ErrUnhealthy, codes.Unavailable, "etcdserver: unhealthy cluster"},
		{kv.ErrLeaderFailed, codes.Unavailable, "etcdserver: request timed out, possibly due to previous leader failure"},
		{kv.ErrConnectionLost, codes.Unavailable, "etcdserver: request timed out, possibly due to connection lost"},
		{kv.ErrTransferSlow, codes.Unknown, "etcdserver: request timed out, leader transfer took too long"},
	} {
		m.changeErr = fmt.Errorf("change: %w", tc.err)
		if got := status.Convert(remove(ctx)); got.Code() != tc.code || got.Message() != tc.text {
			t.Errorf("%v: got %v %q, want %v %q", tc.err, got.Code(), got.Message(), tc.code, tc.text)
		}
	}
	m.changeErr, m.changes = nil, nil
	const bad = "etcdserver: given member URLs are invalid"
	for _, urls := range [][]string{
		nil, {"127.0.0.1:1"}, {"http://host"}, {"http://host:1/path"}, {"ftp://host:1"}, {"http://a:1", "x"}, {"http://a:1\x7f"},
	} {
		if err := second(c.MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: urls})); status.Convert(err).Message() != bad || status.Code(err) != codes.InvalidArgument {
			t.Errorf("add %q: %v", urls, err)
		}
		if err := second(c.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: testMember, PeerURLs: urls})); status.Convert(err).Message() != bad {
			t.Errorf("update to %q: %v", urls, err)
		}
	}
	if err := second(c.MemberUpdate(ctx, &pb.MemberUpdateRequest{ID: 1})); status.Code(err) != codes.NotFound {
		t.Errorf("update of no member: %v", err)
	}
	if m.changes != nil {
		t.Errorf("bad URLs reached the member: %v", m.changes)
	}
}
