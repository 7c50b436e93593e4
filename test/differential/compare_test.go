package differential

import (
	"bytes"
	"fmt"
	"sort"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// exceptions are the differences that are meant or cannot be otherwise, each with its reason.
// An exception makes the two outcomes equal in what it is about and in nothing else.
var exceptions = []struct {
	about  string
	reason string
	apply  func(r *run, c *call, etcd, quorate *outcome)
}{
	{
		"lease of a key in a keys_only reply",
		"etcd 3.7 loses it (etcd issue 22209); etcd 3.6 and quorate tell it",
		func(_ *run, c *call, etcd, quorate *outcome) {
			for _, o := range []*outcome{etcd, quorate} {
				eachRange(c.req, o.reply, func(req *pb.RangeRequest, r *pb.RangeResponse) {
					for _, kv := range r.Kvs {
						if req.KeysOnly {
							kv.Lease = 0
						}
					}
				})
			}
		},
	},
	{
		"remaining TTL",
		"it counts down in each server by itself; one second apart is equal",
		func(_ *run, c *call, etcd, quorate *outcome) {
			a, ok1 := etcd.reply.(*pb.LeaseTimeToLiveResponse)
			b, ok2 := quorate.reply.(*pb.LeaseTimeToLiveResponse)
			if ok1 && ok2 && a.TTL > 0 && b.TTL > 0 && max(a.TTL-b.TTL, b.TTL-a.TTL) <= 1 {
				b.TTL = a.TTL
			}
		},
	},
	{
		"order of LeaseLeases",
		"it is by remaining time, in which leases granted within one instant tie",
		func(_ *run, c *call, etcd, quorate *outcome) {
			for _, o := range []*outcome{etcd, quorate} {
				if r, ok := o.reply.(*pb.LeaseLeasesResponse); ok {
					sort.Slice(r.Leases, func(i, j int) bool { return r.Leases[i].ID < r.Leases[j].ID })
				}
			}
		},
	},
	{
		"order of the keys of a lease",
		"etcd walks a map",
		func(_ *run, c *call, etcd, quorate *outcome) {
			for _, o := range []*outcome{etcd, quorate} {
				if r, ok := o.reply.(*pb.LeaseTimeToLiveResponse); ok {
					sort.Slice(r.Keys, func(i, j int) bool { return bytes.Compare(r.Keys[i], r.Keys[j]) < 0 })
				}
			}
		},
	},
	{
		"id of a lease that the server chose",
		"it is random",
		func(_ *run, c *call, etcd, quorate *outcome) {
			req, ok := c.req.(*pb.LeaseGrantRequest)
			if !ok || req.ID != 0 {
				return
			}
			for _, o := range []*outcome{etcd, quorate} {
				if r, ok := o.reply.(*pb.LeaseGrantResponse); ok && r.ID > 0 {
					r.ID = 0
				}
			}
		},
	},
	{
		"HashKV at a revision that the store is or was compacted to",
		"etcd answers with the hash that it took on the way of one of its last ten compactions, once such has finished; that hash is by the compaction before",
		func(_ *run, c *call, etcd, quorate *outcome) {
			if r, ok := etcd.reply.(*pb.HashKVResponse); ok && r.CompactRevision < r.HashRevision &&
				quorate.status.Message() == "etcdserver: mvcc: required revision has been compacted" {
				*quorate = *etcd
			}
			a, ok1 := etcd.reply.(*pb.HashKVResponse)
			b, ok2 := quorate.reply.(*pb.HashKVResponse)
			if ok1 && ok2 && a.CompactRevision != b.CompactRevision && a.HashRevision == b.HashRevision &&
				max(a.CompactRevision, b.CompactRevision) == a.HashRevision {
				b.Hash, b.CompactRevision = a.Hash, a.CompactRevision
			}
		},
	},
	{
		"RangeStream with a sort target but no order",
		"etcd sorts each chunk by the target and then goes on from the wrong key; quorate says that it does not sort",
		func(_ *run, c *call, etcd, quorate *outcome) {
			r, ok := c.req.(*pb.RangeRequest)
			if ok && c.rpc == rpcRangeStream && r.SortTarget != pb.RangeRequest_KEY && r.SortOrder == pb.RangeRequest_NONE &&
				quorate.status.Code() == codes.Unimplemented {
				*quorate = *etcd
			}
		},
	},
	{
		"HashKV at a revision at which no key exists, of a store that has been compacted",
		"etcd then counts whatever records of before its compaction has not removed yet",
		func(r *run, c *call, etcd, quorate *outcome) {
			a, ok1 := etcd.reply.(*pb.HashKVResponse)
			b, ok2 := quorate.reply.(*pb.HashKVResponse)
			if ok1 && ok2 && a.CompactRevision == b.CompactRevision && a.CompactRevision > 0 && r.emptyAt(a.HashRevision) {
				b.Hash = a.Hash
			}
		},
	},
	{
		"HashKV without a revision after a compaction to revision 0",
		"etcd answers for ever with the hash that it took on the way of that compaction",
		func(_ *run, c *call, etcd, quorate *outcome) {
			req, ok := c.req.(*pb.HashKVRequest)
			if a, ok1 := etcd.reply.(*pb.HashKVResponse); ok && ok1 && req.Revision == 0 && a.HashRevision == 0 {
				*quorate = *etcd
			}
		},
	},
	{
		"spaces in the errors of Status",
		"an alarm is told in protobuf's text form, whose spacing changes with each build on purpose",
		func(_ *run, c *call, etcd, quorate *outcome) {
			for _, o := range []*outcome{etcd, quorate} {
				if r, ok := o.reply.(*pb.StatusResponse); ok {
					for i, e := range r.Errors {
						r.Errors[i] = strings.Join(strings.Fields(e), " ")
					}
				}
			}
		},
	},
	{
		"sizes and log positions in Status",
		"they say how a store keeps its data, not what it holds",
		func(_ *run, c *call, etcd, quorate *outcome) {
			for _, o := range []*outcome{etcd, quorate} {
				if r, ok := o.reply.(*pb.StatusResponse); ok {
					r.DbSize, r.DbSizeInUse, r.RaftIndex, r.RaftAppliedIndex = 0, 0, 0, 0
				}
			}
		},
	},
	{
		"text for a request that is not protobuf",
		"it is the decoder's, not etcd's; the code is compared",
		func(_ *run, c *call, etcd, quorate *outcome) {
			if etcd.status.Code() == codes.Internal && quorate.status.Code() == codes.Internal {
				quorate.status = etcd.status
			}
		},
	},
	{
		"sizes in gRPC's refusal of a large message",
		"the sentence is gRPC's own and differs between its versions; the code is compared",
		func(_ *run, c *call, etcd, quorate *outcome) {
			const refusal = "grpc: received message larger than max"
			if strings.HasPrefix(etcd.status.Message(), refusal) && strings.HasPrefix(quorate.status.Message(), refusal) &&
				etcd.status.Code() == quorate.status.Code() {
				quorate.status = etcd.status
			}
		},
	},
}

// eachRange calls f for every range of a request and its reply.
func eachRange(req, reply proto.Message, f func(*pb.RangeRequest, *pb.RangeResponse)) {
	switch reply := reply.(type) {
	case *pb.RangeResponse:
		f(req.(*pb.RangeRequest), reply)
	case *pb.RangeStreamResponse:
		if reply.RangeResponse != nil {
			f(req.(*pb.RangeRequest), reply.RangeResponse)
		}
	case *pb.TxnResponse:
		ops := req.(*pb.TxnRequest).Failure
		if reply.Succeeded {
			ops = req.(*pb.TxnRequest).Success
		}
		for i, r := range reply.Responses[:min(len(ops), len(reply.Responses))] {
			switch r := r.Response.(type) {
			case *pb.ResponseOp_ResponseRange:
				if op, ok := ops[i].Request.(*pb.RequestOp_RequestRange); ok {
					f(op.RequestRange, r.ResponseRange)
				}
			case *pb.ResponseOp_ResponseTxn:
				if op, ok := ops[i].Request.(*pb.RequestOp_RequestTxn); ok {
					eachRange(op.RequestTxn, r.ResponseTxn, f)
				}
			}
		}
	}
}

// compare returns what differs between two outcomes of a call, "" for nothing. It may change
// them where an exception says so.
func (r *run) compare(c *call, etcd, quorate outcome) string {
	if same(etcd, quorate) {
		return ""
	}
	for _, e := range exceptions {
		e.apply(r, c, &etcd, &quorate)
	}
	if same(etcd, quorate) {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%v\n  etcd:    %v\n  quorate: %v", c, etcd, quorate)
	if etcd.reply != nil && quorate.reply != nil {
		for _, d := range fieldDiff(nil, "", etcd.reply.ProtoReflect(), quorate.reply.ProtoReflect()) {
			fmt.Fprintf(&b, "\n  field %s", d)
		}
	}
	return b.String()
}

func same(a, b outcome) bool {
	return a.status.Code() == b.status.Code() && a.status.Message() == b.status.Message() &&
		(a.reply == nil) == (b.reply == nil) && (a.reply == nil || proto.Equal(a.reply, b.reply))
}

// fieldDiff appends a line for each field in which a and b, of one type, differ.
func fieldDiff(diffs []string, path string, a, b protoreflect.Message) []string {
	if a.IsValid() != b.IsValid() {
		return append(diffs, fmt.Sprintf("%s: present: etcd %v, quorate %v", path, a.IsValid(), b.IsValid()))
	}
	fields := a.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		name := path + "." + string(f.Name())
		va, vb := a.Get(f), b.Get(f)
		switch {
		case f.IsList():
			la, lb := va.List(), vb.List()
			if la.Len() != lb.Len() {
				diffs = append(diffs, fmt.Sprintf("%s: length: etcd %d, quorate %d", name, la.Len(), lb.Len()))
			}
			for i := range min(la.Len(), lb.Len()) {
				diffs = valueDiff(diffs, fmt.Sprintf("%s[%d]", name, i), f, la.Get(i), lb.Get(i))
			}
		default:
			diffs = valueDiff(diffs, name, f, va, vb)
		}
		if len(diffs) > 8 {
			return diffs
		}
	}
	return diffs
}

func valueDiff(diffs []string, path string, f protoreflect.FieldDescriptor, a, b protoreflect.Value) []string {
	if f.Message() != nil {
		return fieldDiff(diffs, path, a.Message(), b.Message())
	}
	if !a.Equal(b) {
		diffs = append(diffs, fmt.Sprintf("%s: etcd %s, quorate %s", path, valueText(f, a), valueText(f, b)))
	}
	return diffs
}

// text writes a message on one line, with long bytes cut.
func text(m proto.Message) string {
	if m == nil {
		return "nothing"
	}
	var b strings.Builder
	writeMessage(&b, m.ProtoReflect())
	return b.String()
}

func writeMessage(b *strings.Builder, m protoreflect.Message) {
	b.WriteByte('{')
	first := true
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if !m.Has(f) {
			continue
		}
		if !first {
			b.WriteByte(' ')
		}
		first = false
		fmt.Fprintf(b, "%s:", f.Name())
		if !f.IsList() {
			writeValue(b, f, m.Get(f))
			continue
		}
		l := m.Get(f).List()
		b.WriteByte('[')
		for j := range l.Len() {
			if j > 0 {
				b.WriteByte(' ')
			}
			if j == 12 {
				fmt.Fprintf(b, "… %d in all", l.Len())
				break
			}
			writeValue(b, f, l.Get(j))
		}
		b.WriteByte(']')
	}
	b.WriteByte('}')
}

func writeValue(b *strings.Builder, f protoreflect.FieldDescriptor, v protoreflect.Value) {
	if f.Message() != nil {
		writeMessage(b, v.Message())
		return
	}
	b.WriteString(valueText(f, v))
}

func valueText(f protoreflect.FieldDescriptor, v protoreflect.Value) string {
	switch f.Kind() {
	case protoreflect.BytesKind:
		return shortBytes(v.Bytes())
	case protoreflect.StringKind:
		return strconv.Quote(v.String())
	case protoreflect.EnumKind:
		if d := f.Enum().Values().ByNumber(v.Enum()); d != nil {
			return string(d.Name())
		}
		return strconv.Itoa(int(v.Enum()))
	}
	return v.String()
}

func shortBytes(p []byte) string {
	if len(p) > 80 {
		return fmt.Sprintf("%q…(%d bytes)", p[:16], len(p))
	}
	return strconv.Quote(string(p))
}
