package rpc

import pb "go.etcd.io/etcd/api/v3/etcdserverpb"

// leaseService is etcdserverpb.Lease.
type leaseService struct {
	pb.UnimplementedLeaseServer
	*services
}

func newLease(s *services) pb.LeaseServer { return leaseService{services: s} }
