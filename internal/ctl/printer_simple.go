package ctl

import (
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// simplePrinter writes keys and values as lines, and everything else as short sentences.
// Write errors stay in w, a bufio.Writer, until the call flushes it.
type simplePrinter struct {
	w          io.Writer
	errw       io.Writer // unhealthy endpoints are reported here
	hex        bool
	valuesOnly bool
}

func (p *simplePrinter) print(answer any) error {
	switch a := answer.(type) {
	case *pb.RangeResponse:
		p.kvs(a.GetKvs())
	case *pb.PutResponse:
		fmt.Fprintln(p.w, "OK")
		if a.GetPrevKv() != nil {
			p.kv(a.GetPrevKv())
		}
	case *pb.DeleteRangeResponse:
		fmt.Fprintln(p.w, a.GetDeleted())
		p.kvs(a.GetPrevKvs())
	case *pb.TxnResponse:
		return p.txn(a)
	case *clientv3.WatchResponse:
		for _, e := range a.Events {
			ev := (*mvccpb.Event)(e)
			fmt.Fprintln(p.w, ev.GetType())
			if ev.GetPrevKv() != nil {
				p.kv(ev.GetPrevKv())
			}
			p.kv(ev.GetKv())
		}
	case *clientv3.LeaseGrantResponse:
		fmt.Fprintf(p.w, "lease %016x granted with TTL(%ds)\n", a.ID, a.TTL)
	case leaseRevoked:
		fmt.Fprintf(p.w, "lease %016x revoked\n", a.id)
	case *clientv3.LeaseKeepAliveResponse:
		fmt.Fprintf(p.w, "lease %016x keepalived with TTL(%d)\n", a.ID, a.TTL)
	case leaseInfo:
		p.lease(a)
	case *clientv3.LeaseLeasesResponse:
		fmt.Fprintf(p.w, "found %d leases\n", len(a.Leases))
		for _, l := range a.Leases {
			fmt.Fprintf(p.w, "%016x\n", l.ID)
		}
	case *pb.AlarmResponse:
		for _, m := range a.GetAlarms() {
			fmt.Fprintln(p.w, alarmText(m))
		}
	case memberChanged:
		// The ids stand in columns of 16, padded with blanks and not with zeros.
		fmt.Fprintf(p.w, "Member %16x %s cluster %16x\n", a.id, a.did, a.header.GetClusterId())
	case leaderMoved:
		fmt.Fprintf(p.w, "Leadership transferred from %x to %x\n", a.from, a.to)
	case authChanged:
		fmt.Fprintln(p.w, a.did)
	case *pb.AuthStatusResponse:
		fmt.Fprintf(p.w, "Authentication Status: %v\nAuthRevision: %d\n", a.GetEnabled(), a.GetAuthRevision())
	case userInfo:
		fmt.Fprintf(p.w, "User: %s\n%s\n", a.name, strings.Join(append([]string{"Roles:"}, a.resp.GetRoles()...), " "))
	case *pb.AuthUserListResponse:
		p.names(a.GetUsers())
	case roleInfo:
		p.role(a)
	case *pb.AuthRoleListResponse:
		p.names(a.GetRoles())
	case []endpointHealth:
		for _, h := range a {
			if h.Error == "" {
				fmt.Fprintf(p.w, "%s is healthy: successfully committed proposal: took = %s\n", h.Endpoint, h.Took)
			} else {
				fmt.Fprintf(p.errw, "%s is unhealthy: failed to commit proposal: %s\n", h.Endpoint, h.Error)
			}
		}
	default:
		_, rows, ok := tabulate(answer)
		if !ok {
			return errNoForm(formSimple)
		}
		for _, row := range rows {
			fmt.Fprintln(p.w, strings.Join(row, ", "))
		}
	}
	return nil
}

func (p *simplePrinter) txn(r *pb.TxnResponse) error {
	if r.GetSucceeded() {
		fmt.Fprintln(p.w, "SUCCESS")
	} else {
		fmt.Fprintln(p.w, "FAILURE")
	}
	for _, op := range r.GetResponses() {
		fmt.Fprintln(p.w)
		if err := p.print(opAnswer(op)); err != nil {
			return err
		}
	}
	return nil
}

// opAnswer returns the response inside a transaction's operation.
func opAnswer(op *pb.ResponseOp) any {
	switch o := op.GetResponse().(type) {
	case *pb.ResponseOp_ResponseRange:
		return o.ResponseRange
	case *pb.ResponseOp_ResponsePut:
		return o.ResponsePut
	case *pb.ResponseOp_ResponseDeleteRange:
		return o.ResponseDeleteRange
	case *pb.ResponseOp_ResponseTxn:
		return o.ResponseTxn
	}
	return op
}

func (p *simplePrinter) lease(a leaseInfo) {
	r := a.resp
	if r.GrantedTTL == 0 && r.TTL == -1 {
		fmt.Fprintf(p.w, "lease %016x already expired\n", r.ID)
		return
	}
	fmt.Fprintf(p.w, "lease %016x granted with TTL(%ds), remaining(%ds)", r.ID, r.GrantedTTL, r.TTL)
	if a.keys {
		fmt.Fprintf(p.w, ", attached keys(%s)", r.Keys)
	}
	fmt.Fprintln(p.w)
}

func (p *simplePrinter) names(names []string) {
	for _, n := range names {
		fmt.Fprintln(p.w, n)
	}
}

// role lists the ranges that a role may read, then those that it may write.
func (p *simplePrinter) role(a roleInfo) {
	fmt.Fprintf(p.w, "Role %s\n", a.name)
	for _, kind := range []struct {
		title string
		perm  authpb.Permission_Type
	}{{"KV Read:", authpb.READ}, {"KV Write:", authpb.WRITE}} {
		fmt.Fprintln(p.w, kind.title)
		if a.name == rootName && a.resp.GetPerm() == nil {
			fmt.Fprintln(p.w, "\t[, <open ended>") // its power is in no permission
		}
		for _, perm := range a.resp.GetPerm() {
			if t := perm.GetPermType(); t == kind.perm || t == authpb.READWRITE {
				fmt.Fprintf(p.w, "\t%s\n", permissionText(string(perm.GetKey()), string(perm.GetRangeEnd())))
			}
		}
	}
}

// permissionText writes the range of a permission.
func permissionText(key, end string) string {
	if end == "" {
		return key
	}
	text := fmt.Sprintf("[%s, %s)", key, end)
	if end == openEnd {
		text = fmt.Sprintf("[%s, <open ended>", key)
	}
	if key != "" && clientv3.GetPrefixRangeEnd(key) == end {
		text += fmt.Sprintf(" (prefix %s)", key)
	}
	return text
}

func (p *simplePrinter) kvs(kvs []*mvccpb.KeyValue) {
	for _, kv := range kvs {
		p.kv(kv)
	}
}

func (p *simplePrinter) kv(kv *mvccpb.KeyValue) {
	if !p.valuesOnly {
		p.line(kv.GetKey())
	}
	p.line(kv.GetValue())
}

func (p *simplePrinter) line(b []byte) {
	if p.hex {
		fmt.Fprintln(p.w, escapeHex(b))
		return
	}
	fmt.Fprintf(p.w, "%s\n", b)
}

// escapeHex returns b with each byte as \x and two hexadecimal digits.
func escapeHex(b []byte) string {
	out := make([]byte, 0, 4*len(b))
	for i := range b {
		out = append(out, '\\', 'x')
		out = hex.AppendEncode(out, b[i:i+1])
	}
	return string(out)
}

// alarmText names the member and kind of an alarm, in the form of protobuf's text.
func alarmText(m *pb.AlarmMember) string {
	var parts []string
	if id := m.GetMemberID(); id != 0 {
		parts = append(parts, fmt.Sprintf("memberID:%d", id))
	}
	if kind := m.GetAlarm(); kind != pb.AlarmType_NONE {
		parts = append(parts, "alarm:"+kind.String())
	}
	return strings.Join(parts, " ")
}
