package rpc

import (
	"bytes"
	"context"
	"io"
	"testing"
	"time"

	"quorate/internal/kv"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

func TestLease(t *testing.T) {
	m, conn := serveMember(t)
	c, store, ctx := pb.NewLeaseClient(conn), pb.NewKVClient(conn), t.Context()
	header := func(rev int64) *pb.ResponseHeader {
		return &pb.ResponseHeader{ClusterId: testCluster, MemberId: testMember, RaftTerm: testTerm, Revision: rev}
	}
	check := func(name string, got proto.Message, err error, want proto.Message) {
		t.Helper()
		if err != nil || !proto.Equal(got, want) {
			t.Errorf("%s:\n got %v, %v\nwant %v", name, got, err, want)
		}
	}
	fails := func(name string, err error, code codes.Code, text string) {
		t.Helper()
		if s := status.Convert(err); s.Code() != code || s.Message() != text {
			t.Errorf("%s: %v, want %v %q", name, err, code, text)
		}
	}

	g, err := c.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: -5, TTL: 100})
	check("grant", g, err, &pb.LeaseGrantResponse{Header: header(1), ID: -5, TTL: 100})
	g, err = c.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 9, TTL: -1})
	check("grant with the least TTL", g, err, &pb.LeaseGrantResponse{Header: header(1), ID: 9, TTL: 2})
	_, err = c.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 9, TTL: 50})
	fails("grant again", err, codes.FailedPrecondition, "etcdserver: lease already exists")
	_, err = c.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 9_000_000_001})
	fails("grant for too long", err, codes.OutOfRange, "etcdserver: too large lease TTL")
	g, err = c.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: 9_000_000_000})
	if err != nil || g.ID <= 0 || g.TTL != 9_000_000_000 {
		t.Errorf("grant without an id: %v, %v", g, err)
	}
	chosen := g.ID

	for _, key := range []string{"b", "a"} {
		if _, err := store.Put(ctx, &pb.PutRequest{Key: []byte(key), Lease: -5}); err != nil {
			t.Fatal(err)
		}
	}
	ttl, err := c.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: -5, Keys: true})
	if left := ttl.GetTTL(); left > 60 && left < 99 {
		ttl.TTL = 99 // the machine is slow
	}
	check("time to live", ttl, err, &pb.LeaseTimeToLiveResponse{
		Header: header(3), ID: -5, TTL: 99, GrantedTTL: 100, Keys: [][]byte{[]byte("a"), []byte("b")},
	})
	ttl, err = c.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: -5})
	if left := ttl.GetTTL(); left > 60 && left < 99 {
		ttl.TTL = 99
	}
	check("without keys", ttl, err, &pb.LeaseTimeToLiveResponse{Header: header(3), ID: -5, TTL: 99, GrantedTTL: 100})
	ttl, err = c.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: 4, Keys: true})
	check("of none", ttl, err, &pb.LeaseTimeToLiveResponse{Header: header(3), ID: 4, TTL: -1})

	all, err := c.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
	check("list", all, err, &pb.LeaseLeasesResponse{
		Header: header(3), Leases: []*pb.LeaseStatus{{ID: 9}, {ID: -5}, {ID: chosen}},
	})

	alive, err := c.LeaseKeepAlive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	renew := func(name string, id, ttl int64) {
		t.Helper()
		if err := alive.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
		got, err := alive.Recv()
		check(name, got, err, &pb.LeaseKeepAliveResponse{Header: header(m.store.Rev()), ID: id, TTL: ttl})
	}
	renew("keep alive", -5, 100)
	renew("keep none alive", 1234, 0)
	renew("keep the id of none alive", 0, 0)

	rev, err := c.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: -5})
	check("revoke", rev, err, &pb.LeaseRevokeResponse{Header: header(4)})
	got, err := store.Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}})
	check("its keys", got, err, &pb.RangeResponse{Header: header(4)})
	_, err = c.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: -5})
	fails("revoke again", err, codes.NotFound, "etcdserver: requested lease not found")
	_, err = c.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{})
	fails("revoke none", err, codes.NotFound, "etcdserver: requested lease not found")
	renew("keep alive what is revoked", -5, 0)

	if err := alive.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := alive.Recv(); err != io.EOF {
		t.Errorf("the end of the stream is %v", err)
	}
}

// TestLeaseWithoutLeader: calls that need the leader's clock wait for a leader.
func TestLeaseWithoutLeader(t *testing.T) {
	m, conn := serveMember(t)
	c, ctx := pb.NewLeaseClient(conn), t.Context()
	if _, err := c.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: 1, TTL: 60}); err != nil {
		t.Fatal(err)
	}
	m.leases.Demote()
	short, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	if _, err := c.LeaseTimeToLive(short, &pb.LeaseTimeToLiveRequest{ID: 1}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("time to live without a leader: %v", err)
	}
	// The list and what does not exist need no clock.
	if all, err := c.LeaseLeases(ctx, &pb.LeaseLeasesRequest{}); err != nil || len(all.Leases) != 1 {
		t.Errorf("list: %v, %v", all, err)
	}
	alive, err := c.LeaseKeepAlive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := alive.Send(&pb.LeaseKeepAliveRequest{ID: 1}); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(50*time.Millisecond, func() { m.leases.Promote(time.Now(), 0) })
	if r, err := alive.Recv(); err != nil || r.TTL != 60 {
		t.Errorf("keep alive after a leader came: %v, %v", r, err)
	}
}

// TestRenewalsTogether: renewals that come together on a stream do not wait for each other,
// and are answered in order, also where no more of them may be made at once.
func TestRenewalsTogether(t *testing.T) {
	for _, full := range []bool{false, true} {
		m := newMember(t)
		s := newLease(&services{Backend: m, opts: &Options{}})
		for id := range kv.LeaseID(3 * renewalsPerStream) {
			if _, err := m.leases.Grant(id+1, 60+int64(id), time.Now()); err != nil {
				t.Fatal(err)
			}
		}
		for full && len(s.renewing) < cap(s.renewing) {
			s.renewing <- struct{}{}
		}
		stream := &renewalStream{ctx: t.Context(), together: renewalsPerStream, left: 3 * renewalsPerStream}
		m.leases.Demote() // so that renewals wait
		stream.onTogether = func() { m.leases.Promote(time.Now(), 0) }
		if full {
			stream.onTogether()
		}
		if err := s.keepAlive(stream); err != nil {
			t.Fatal(err)
		}
		if len(stream.answers) != 3*renewalsPerStream {
			t.Fatalf("%d answers", len(stream.answers))
		}
		for i, r := range stream.answers {
			if r.ID != int64(i+1) || r.TTL != int64(60+i) {
				t.Errorf("answer %d is %v", i, r)
			}
		}
	}
}

// renewalStream asks for leases 1, 2, … and calls onTogether when so many were asked for
// that a stream which makes one at a time would never read.
type renewalStream struct {
	grpc.ServerStream
	ctx        context.Context
	together   int
	onTogether func()
	asked      int
	left       int
	answers    []*pb.LeaseKeepAliveResponse
}

func (s *renewalStream) Context() context.Context { return s.ctx }

func (s *renewalStream) RecvMsg(m any) error {
	if s.left == 0 {
		return io.EOF
	}
	s.asked++
	s.left--
	if s.asked == s.together {
		s.onTogether()
	}
	b, err := proto.Marshal(&pb.LeaseKeepAliveRequest{ID: int64(s.asked)})
	m.(*request).body = b
	return err
}

func (s *renewalStream) SendMsg(m any) error {
	r := new(pb.LeaseKeepAliveResponse)
	s.answers = append(s.answers, r)
	return proto.Unmarshal(bytes.Join(m.(Frame), nil), r)
}

// TestLeaseBadRequests sends what is not a message.
func TestLeaseBadRequests(t *testing.T) {
	_, conn := serveMember(t)
	bad := []byte{0x0a, 0xff}
	var reply []byte
	for _, method := range []string{"LeaseGrant", "LeaseRevoke", "LeaseTimeToLive", "LeaseLeases"} {
		err := conn.Invoke(t.Context(), "/etcdserverpb.Lease/"+method, bad, &reply, grpc.ForceCodec(rawCodec{}))
		s := status.Convert(err)
		if s.Code() != codes.Internal || s.Message() != "grpc: error unmarshalling request: proto: "+wire.ErrMalformed.Error() {
			t.Errorf("%s: %v", method, err)
		}
	}
	stream, err := conn.NewStream(t.Context(), &leaseServiceDesc().Streams[4], "/etcdserverpb.Lease/LeaseKeepAlive", grpc.ForceCodec(rawCodec{}))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.SendMsg(bad); err != nil {
		t.Fatal(err)
	}
	err = stream.RecvMsg(&reply)
	s := status.Convert(err)
	if s.Code() != codes.Internal || s.Message() != "grpc: failed to unmarshal the received message: proto: "+wire.ErrMalformed.Error() {
		t.Errorf("LeaseKeepAlive: %v", err)
	}
}

// TestLeaseStreamEnds wants a stream to end with its client and with the member.
func TestLeaseStreamEnds(t *testing.T) {
	m := newMember(t)
	srv, addr := start(t, m, nil, nil)
	c := pb.NewLeaseClient(dial(t, addr))
	ctx, cancel := context.WithCancel(t.Context())
	gone, err := c.LeaseKeepAlive(ctx)
	if err != nil {
		t.Fatal(err)
	}
	idle, err := c.LeaseKeepAlive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// Both are there once they have answered.
	for _, s := range []pb.Lease_LeaseKeepAliveClient{gone, idle} {
		if err := s.Send(&pb.LeaseKeepAliveRequest{ID: 3}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	for deadline := time.Now().Add(5 * time.Second); openStreams(srv) != 1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d streams are open", openStreams(srv))
		}
	}
	stopped, stop := context.WithTimeout(t.Context(), 5*time.Second)
	defer stop()
	srv.Shutdown(stopped)
	if _, err := idle.Recv(); status.Convert(err).Message() != "etcdserver: server stopped" {
		t.Errorf("an idle stream ends with %v", err)
	}
	if stopped.Err() != nil {
		t.Error("the shutdown waited for an idle stream")
	}
}

func openStreams(s *Server) int {
	s.services.streams.Lock()
	defer s.services.streams.Unlock()
	return len(s.services.streams.open)
}

// FuzzKeepAliveID holds the decoder against protobuf-go.
func FuzzKeepAliveID(f *testing.F) {
	for _, id := range []int64{0, 1, -1, 1 << 62} {
		b, err := proto.Marshal(&pb.LeaseKeepAliveRequest{ID: id})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(append(b, b...))
		f.Add(append([]byte{0x12, 1, 'x'}, b...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		id, ok := keepAliveID(b)
		var want pb.LeaseKeepAliveRequest
		err := proto.Unmarshal(b, &want)
		if ok != (err == nil) || ok && int64(id) != want.ID {
			t.Errorf("%x: %v, %v, want %v, %v", b, id, ok, want.ID, err)
		}
	})
}

// BenchmarkKeepAlive renews one lease on one stream, client included.
func BenchmarkKeepAlive(b *testing.B) {
	m := newMember(b)
	_, addr := start(b, m, nil, nil)
	if _, err := m.leases.Grant(1, 60, time.Now()); err != nil {
		b.Fatal(err)
	}
	alive, err := pb.NewLeaseClient(dial(b, addr)).LeaseKeepAlive(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := alive.Send(&pb.LeaseKeepAliveRequest{ID: 1}); err != nil {
			b.Fatal(err)
		}
		if _, err := alive.Recv(); err != nil {
			b.Fatal(err)
		}
	}
}
