package ctl

import (
	"fmt"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// fieldsPrinter writes every field of an answer as a line `"Name" : value`. With hex, ids are
// hexadecimal; keys and values are always Go-quoted strings.
// Write errors stay in w, a bufio.Writer, until the call flushes it.
type fieldsPrinter struct {
	w   io.Writer
	hex bool
}

func (p *fieldsPrinter) print(answer any) error {
	switch a := answer.(type) {
	case *pb.RangeResponse:
		p.header(a.GetHeader())
		p.kvs("", a.GetKvs())
		p.field("More", a.GetMore())
		p.field("Count", a.GetCount())
	case *pb.PutResponse:
		p.header(a.GetHeader())
		if a.GetPrevKv() != nil {
			p.kv("Prev", a.GetPrevKv())
		}
	case *pb.DeleteRangeResponse:
		p.header(a.GetHeader())
		p.field("Deleted", a.GetDeleted())
		p.kvs("Prev", a.GetPrevKvs())
	case *pb.TxnResponse:
		p.header(a.GetHeader())
		p.field("Succeeded", a.GetSucceeded())
		for _, op := range a.GetResponses() {
			if err := p.print(opAnswer(op)); err != nil {
				return err
			}
		}
	case *clientv3.WatchResponse:
		p.header(a.Header)
		for _, e := range a.Events {
			ev := (*mvccpb.Event)(e)
			p.field("Type", ev.GetType())
			if ev.GetPrevKv() != nil {
				p.kv("Prev", ev.GetPrevKv())
			}
			p.kv("", ev.GetKv())
		}
	case *clientv3.LeaseGrantResponse:
		p.header(a.ResponseHeader)
		p.lease("ID", int64(a.ID))
		p.field("TTL", a.TTL)
	case leaseRevoked:
		p.header((*pb.LeaseRevokeResponse)(a.resp).GetHeader())
	case *clientv3.LeaseKeepAliveResponse:
		p.header(a.ResponseHeader)
		p.lease("ID", int64(a.ID))
		p.field("TTL", a.TTL)
	case leaseInfo:
		p.header(a.resp.ResponseHeader)
		p.lease("ID", int64(a.resp.ID))
		p.field("TTL", a.resp.TTL)
		p.field("GrantedTTL", a.resp.GrantedTTL)
		for _, k := range a.resp.Keys {
			p.quoted("Key", string(k))
		}
	case *clientv3.LeaseLeasesResponse:
		p.header(a.ResponseHeader)
		for _, l := range a.Leases {
			p.lease("ID", int64(l.ID))
		}
	case *pb.AlarmResponse:
		p.header(a.GetHeader())
		for _, m := range a.GetAlarms() {
			p.id("MemberID", m.GetMemberID())
			p.field("AlarmType", m.GetAlarm())
			fmt.Fprintln(p.w)
		}
	case *pb.MemberListResponse:
		p.members(a)
	case authChanged:
		p.header(a.resp.GetHeader())
	case roleInfo:
		p.header(a.resp.GetHeader())
		for _, perm := range a.resp.GetPerm() {
			// Two spaces, as always.
			fmt.Fprintf(p.w, "%q :  %s\n", "PermType", perm.GetPermType())
			p.quoted("Key", string(perm.GetKey()))
			p.quoted("RangeEnd", string(perm.GetRangeEnd()))
		}
	case *pb.AuthRoleListResponse:
		p.header(a.GetHeader())
		fmt.Fprintf(p.w, "%q :", "Roles")
		for _, role := range a.GetRoles() {
			fmt.Fprintf(p.w, " %q", role)
		}
		fmt.Fprintln(p.w)
	case []endpointHealth:
		for _, h := range a {
			p.quoted("Endpoint", h.Endpoint)
			p.field("Health", h.Health)
			p.field("Took", h.Took)
			p.field("Error", h.Error)
			fmt.Fprintln(p.w)
		}
	case []endpointStatus:
		for _, s := range a {
			p.status(s)
		}
	case []endpointHash:
		for _, h := range a {
			p.header(h.HashKV.GetHeader())
			p.quoted("Endpoint", h.Endpoint)
			p.field("Hash", h.HashKV.GetHash())
			p.field("HashRevision", h.HashKV.GetHashRevision())
			fmt.Fprintln(p.w)
		}
	default:
		return errNoForm(formFields)
	}
	return nil
}

func (p *fieldsPrinter) field(name string, v any)     { fmt.Fprintf(p.w, "%q : %v\n", name, v) }
func (p *fieldsPrinter) quoted(name string, v string) { fmt.Fprintf(p.w, "%q : %q\n", name, v) }
func (p *fieldsPrinter) kvs(pre string, kvs []*mvccpb.KeyValue) {
	for _, kv := range kvs {
		p.kv(pre, kv)
	}
}

// id writes the id of a member or cluster.
func (p *fieldsPrinter) id(name string, id uint64) {
	if p.hex {
		fmt.Fprintf(p.w, "%q : %x\n", name, id)
		return
	}
	p.field(name, id)
}

// lease writes the id of a lease.
func (p *fieldsPrinter) lease(name string, id int64) {
	if p.hex {
		fmt.Fprintf(p.w, "%q : %016x\n", name, id)
		return
	}
	p.field(name, id)
}

func (p *fieldsPrinter) header(h *pb.ResponseHeader) {
	p.id("ClusterID", h.GetClusterId())
	p.id("MemberID", h.GetMemberId())
	// Answers that are not about keys carry no revision.
	if h.GetRevision() > 0 {
		p.field("Revision", h.GetRevision())
	}
	p.field("RaftTerm", h.GetRaftTerm())
}

func (p *fieldsPrinter) kv(pre string, kv *mvccpb.KeyValue) {
	p.quoted(pre+"Key", string(kv.GetKey()))
	p.field(pre+"CreateRevision", kv.GetCreateRevision())
	p.field(pre+"ModRevision", kv.GetModRevision())
	p.field(pre+"Version", kv.GetVersion())
	p.quoted(pre+"Value", string(kv.GetValue()))
	p.lease(pre+"Lease", kv.GetLease())
}

func (p *fieldsPrinter) members(a *pb.MemberListResponse) {
	p.header(a.GetHeader())
	for _, m := range a.GetMembers() {
		p.id("ID", m.GetID())
		p.quoted("Name", m.GetName())
		for _, u := range m.GetPeerURLs() {
			p.quoted("PeerURL", u)
		}
		for _, u := range m.GetClientURLs() {
			p.quoted("ClientURL", u)
		}
		p.field("IsLearner", m.GetIsLearner())
		fmt.Fprintln(p.w)
	}
}

func (p *fieldsPrinter) status(s endpointStatus) {
	r := s.Status
	p.header(r.GetHeader())
	p.quoted("Version", r.GetVersion())
	p.quoted("StorageVersion", r.GetStorageVersion())
	p.field("DBSize", r.GetDbSize())
	p.field("DBSizeInUse", r.GetDbSizeInUse())
	p.field("DBSizeQuota", r.GetDbSizeQuota())
	p.field("Leader", r.GetLeader())
	p.field("IsLearner", r.GetIsLearner())
	p.field("RaftIndex", r.GetRaftIndex())
	p.field("RaftTerm", r.GetRaftTerm())
	p.field("RaftAppliedIndex", r.GetRaftAppliedIndex())
	p.field("Errors", r.GetErrors())
	p.quoted("Endpoint", s.Endpoint)
	p.quoted("DowngradeTargetVersion", r.GetDowngradeInfo().GetTargetVersion())
	p.field("DowngradeEnabled", r.GetDowngradeInfo().GetEnabled())
	fmt.Fprintln(p.w)
}
