package rpc

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"

	"quorate/internal/auth"
	"quorate/internal/kv"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// leaseService is etcdserverpb.Lease. Its handlers write their answers in wire form, so
// that a list of a million leases is held once, and under the bound of all replies.
type leaseService struct {
	*services
	listing  chan struct{} // has room for the one LeaseLeases call that is at work
	renewing chan struct{} // has room for the renewals that are at work beside others of their stream
}

func newLease(s *services) leaseService {
	return leaseService{services: s, listing: make(chan struct{}, 1), renewing: make(chan struct{}, renewalsMax)}
}

func leaseServiceDesc() *grpc.ServiceDesc {
	method := func(name string, h func(leaseService, grpc.ServerStream, *call) error) grpc.StreamDesc {
		return grpc.StreamDesc{StreamName: name, Handler: func(srv any, stream grpc.ServerStream) error {
			s := srv.(leaseService)
			return kvService{s.services}.serve(stream, func(_ kvService, stream grpc.ServerStream, c *call) error {
				return h(s, stream, c)
			})
		}}
	}
	return &grpc.ServiceDesc{
		ServiceName: "etcdserverpb.Lease",
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{
			method("LeaseGrant", leaseService.grant),
			method("LeaseRevoke", leaseService.revoke),
			method("LeaseTimeToLive", leaseService.timeToLive),
			method("LeaseLeases", leaseService.leases),
			{
				StreamName:    "LeaseKeepAlive",
				Handler:       func(srv any, stream grpc.ServerStream) error { return srv.(leaseService).keepAlive(stream) },
				ServerStreams: true,
				ClientStreams: true,
			},
		},
		Metadata: "rpc.proto",
	}
}

// decode reads a request that is rare enough for protobuf-go.
func decode(c *call, m proto.Message) error {
	if proto.Unmarshal(c.body, m) != nil {
		return malformed(wire.ErrMalformed)
	}
	return nil
}

func (s leaseService) grant(stream grpc.ServerStream, c *call) error {
	var r pb.LeaseGrantRequest
	if err := decode(c, &r); err != nil {
		return err
	}
	if err := s.permitKnown(stream.Context()); err != nil {
		return err
	}
	body := c.body
	if r.ID == int64(kv.NoLease) {
		r.ID = int64(s.newLeaseID())
		var err error
		if body, err = proto.Marshal(&r); err != nil {
			return err
		}
	}
	return s.propose(stream, c, wire.FieldLeaseGrant, body)
}

// newLeaseID picks an id, above zero, that no lease has.
func (s *services) newLeaseID() kv.LeaseID {
	for {
		if id := kv.LeaseID(rand.Int64()); id > 0 && !s.Leases().Exists(id) {
			return id
		}
	}
}

func (s leaseService) revoke(stream grpc.ServerStream, c *call) error {
	var r pb.LeaseRevokeRequest
	if err := decode(c, &r); err != nil {
		return err
	}
	if err := s.permitKnown(stream.Context()); err != nil {
		return err
	}
	return s.propose(stream, c, wire.FieldLeaseRevoke, c.body)
}

func (s leaseService) propose(stream grpc.ServerStream, c *call, field wire.Field, body []byte) error {
	res, err := s.Propose(stream.Context(), field, body)
	if err != nil {
		return err
	}
	return kvService{s.services}.answer(stream, c, res)
}

// timeToLive answers for a lease that does not exist with a TTL of -1.
func (s leaseService) timeToLive(stream grpc.ServerStream, c *call) error {
	var r pb.LeaseTimeToLiveRequest
	if err := decode(c, &r); err != nil {
		return err
	}
	ctx, id := stream.Context(), kv.LeaseID(r.ID)
	if err := s.permitKnown(ctx); err != nil {
		return err
	}
	t, err := s.timeToLivePermitted(ctx, id, r.Keys)
	if err != nil {
		return err
	}
	s.begin(c)
	b := appendInt(c.reply.room(3*fieldOverhead), 2, r.ID)
	c.reply.cur = appendInt(appendInt(b, 3, t.TTL), 4, t.GrantedTTL)
	for _, key := range t.Keys {
		b := protowire.AppendTag(c.reply.room(len(key)+fieldOverhead), 5, protowire.BytesType)
		if c.reply.err != nil {
			return c.reply.err
		}
		c.reply.cur = protowire.AppendBytes(b, key)
	}
	return s.send(stream, c)
}

// timeToLivePermitted is TimeToLive for a client that may see the keys, if it wants to.
// The leader may know of keys that this member does not know of yet, so what it answers
// is looked at as well.
func (s leaseService) timeToLivePermitted(ctx context.Context, id kv.LeaseID, keys bool) (*pb.LeaseTimeToLiveResponse, error) {
	if !keys {
		return s.TimeToLive(ctx, id, false)
	}
	permit, err := s.permitLease(ctx, func(st *auth.State, who auth.Identity) error {
		return st.PermitLeaseKeys(who, s.Leases().Keys(id))
	})
	if err != nil {
		return nil, err
	}
	t, err := s.TimeToLive(ctx, id, true)
	if err != nil {
		return nil, err
	}
	if _, err := s.permitLease(ctx, func(st *auth.State, who auth.Identity) error {
		return st.PermitLeaseKeys(who, t.Keys)
	}); err != nil {
		return nil, err
	}
	return t, permit.unchanged()
}

// permitRenewal says whether the client may renew a lease. The member has to be up to
// date to know the lease's keys.
func (s leaseService) permitRenewal(ctx context.Context, id kv.LeaseID) error {
	if !s.Auth().Enabled() {
		return nil
	}
	if err := s.ReadIndex(ctx); err != nil {
		return err
	}
	if err := s.permitKnown(ctx); err != nil {
		return err
	}
	permit, err := s.permitLease(ctx, func(st *auth.State, who auth.Identity) error {
		return st.PermitLease(who, s.Leases().Keys(id))
	})
	if err != nil {
		return err
	}
	return permit.unchanged()
}

// permitLeases says whether the client may see which leases there are: all or none.
func (s leaseService) permitLeases(ctx context.Context) error {
	if err := s.permitKnown(ctx); err != nil {
		return err
	}
	permit, err := s.permitLease(ctx, func(st *auth.State, who auth.Identity) error {
		if st.PermitAdmin(who) == nil {
			return nil
		}
		for _, id := range s.Leases().List() {
			if err := st.PermitLeaseKeys(who, s.Leases().Keys(id)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return permit.unchanged()
}

// leases lists the leases that this member knows of.
func (s leaseService) leases(stream grpc.ServerStream, c *call) error {
	if err := decode(c, &pb.LeaseLeasesRequest{}); err != nil {
		return err
	}
	select {
	case s.listing <- struct{}{}:
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
	err := s.permitLeases(stream.Context())
	if err == nil {
		err = s.list(c)
	}
	<-s.listing
	if err != nil {
		return err
	}
	return s.send(stream, c)
}

func (s leaseService) list(c *call) error {
	s.begin(c)
	for _, id := range s.Leases().List() {
		b := protowire.AppendTag(c.reply.room(fieldOverhead), 2, protowire.BytesType)
		if c.reply.err != nil {
			return c.reply.err
		}
		b = append(b, byte(1+protowire.SizeVarint(uint64(id))))
		c.reply.cur = appendInt(b, 1, int64(id))
	}
	return c.reply.err
}

// begin starts the answer with a header as of now.
func (s leaseService) begin(c *call) {
	h := s.header(s.revision())
	c.reply.cur = wire.AppendHeader(c.reply.room(headerMax), &h)
}

func (s leaseService) send(stream grpc.ServerStream, c *call) error {
	if c.reply.err != nil {
		return c.reply.err
	}
	return stream.SendMsg(&c.reply)
}

// revision is the store's now.
func (s leaseService) revision() int64 {
	v := s.View()
	defer v.Release()
	return v.Rev()
}

// appendInt appends an int64 field, which proto3 leaves out if zero.
func appendInt(b []byte, num protowire.Number, v int64) []byte {
	if v == 0 {
		return b
	}
	return protowire.AppendVarint(protowire.AppendTag(b, num, protowire.VarintType), uint64(v))
}

// A renewal waits for a quorum, or for the leader, so those that come together on a stream
// are made together: they share a read index, and a client that keeps thousands of leases
// alive on one stream does not wait thousands of times.
const (
	renewalsPerStream = 32   // at once
	renewalsMax       = 1024 // at once on all streams; beyond it a stream makes one at a time
)

// keepAlive renews leases until the client has no more, and answers in the order in which
// it named them. Its goroutines end with the stream, at the latest when this has returned.
func (s leaseService) keepAlive(stream grpc.ServerStream) error {
	ended := make(chan error, 1)
	go func() { ended <- s.renewals(stream) }()
	select {
	case err := <-ended:
		return err
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

// renewal is one that was asked for. Its answer, or an error that ends the stream, is valid
// once done is closed.
type renewal struct {
	done   chan struct{}
	answer []byte
	err    error
}

func (s leaseService) renewals(stream grpc.ServerStream) error {
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	asked, received := make(chan *renewal, renewalsPerStream), make(chan error, 1)
	go func() {
		defer close(asked)
		received <- s.receiveRenewals(ctx, stream, asked)
	}()
	for r := range asked {
		<-r.done
		if r.err != nil {
			return r.err
		}
		if err := stream.SendMsg(Frame{r.answer}); err != nil {
			return err
		}
	}
	return <-received
}

// receiveRenewals begins renewals in the order in which they are asked for, until the
// client has no more or ctx ends.
func (s leaseService) receiveRenewals(ctx context.Context, stream grpc.ServerStream, asked chan<- *renewal) error {
	var req request
	defer req.free()
	for {
		switch err := stream.RecvMsg(&req); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		id, ok := keepAliveID(req.body)
		req.free()
		if !ok {
			return status.Errorf(codes.Internal, "grpc: failed to unmarshal the received message: proto: %v", wire.ErrMalformed)
		}
		r := &renewal{done: make(chan struct{})}
		select {
		case asked <- r:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case s.renewing <- struct{}{}:
			go func() {
				s.renew(ctx, id, r)
				<-s.renewing
			}()
		default:
			s.renew(ctx, id, r)
		}
	}
}

// renew makes a renewal.
func (s leaseService) renew(ctx context.Context, id kv.LeaseID, r *renewal) {
	defer close(r.done)
	// The header is as of before the renewal: a lease that was revoked at a revision
	// must not seem to have been renewed after it.
	h := s.header(s.revision())
	ttl, err := int64(0), s.permitRenewal(ctx, id)
	if err == nil {
		ttl, err = s.RenewLease(ctx, id)
	}
	if errors.Is(err, kv.ErrLeaseNotFound) {
		ttl, err = 0, nil
	}
	b := wire.AppendHeader(make([]byte, 0, headerMax+2*fieldOverhead), &h)
	r.answer, r.err = appendInt(appendInt(b, 2, int64(id)), 3, ttl), err
}

// keepAliveID is the id in a LeaseKeepAliveRequest.
func keepAliveID(b []byte) (id kv.LeaseID, ok bool) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 || num > protowire.MaxValidNumber {
			return 0, false
		}
		b = b[n:]
		if num == 1 && typ == protowire.VarintType {
			var v uint64
			if v, n = protowire.ConsumeVarint(b); n >= 0 {
				id = kv.LeaseID(v)
			}
		} else {
			n = protowire.ConsumeFieldValue(num, typ, b)
		}
		if n < 0 {
			return 0, false
		}
		b = b[n:]
	}
	return id, true
}
