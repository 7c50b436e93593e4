package differential

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// gen makes requests. The key space is small, so that operations meet each other's keys,
// leases and revisions all the time.
type gen struct {
	*rand.Rand
	rev       int64 // etcd's revision now
	compacted int64 // what etcd was compacted to, -1 for not yet
	compacts  bool  // the episode has compactions
}

// one says yes once in n times.
func (g *gen) one(n int) bool { return g.IntN(n) == 0 }

var keys = []string{
	"a", "b", "c", "d", "a/1", "a/2", "a/3", "a/3/x", "a0", "b/1", "b/2", "z",
	"\x00", "\x00\x00", "\x01", "\xff", "\xff\xff", "a\x00", "a\xff", "\xe4\xbd\xa0\xe5\xa5\xbd",
	"a/" + strings.Repeat("long", 60),
}

// leases are the ids that grants, puts and revokes choose from; each lives far longer than
// an episode, so that none expires by itself.
var leases = []int64{1, 2, 3, 4, 5, 77, -3, math.MaxInt64, math.MinInt64, 1 << 40}

func pick[T any](g *gen, from []T) T { return from[g.IntN(len(from))] }

func (g *gen) key() []byte {
	if g.one(200) {
		return nil
	}
	if g.one(3) {
		return []byte(pick(g, keys))
	}
	return []byte(pick(g, keys[:12]))
}

// span returns a key and a range end of every form: a point, everything, from a key on, a
// prefix, from one key to another, empty and reversed.
func (g *gen) span() (key, end []byte) {
	key = g.key()
	switch g.IntN(12) {
	case 0, 1, 2:
		return key, nil
	case 3, 4:
		return []byte{0}, []byte{0}
	case 5:
		return key, []byte{0}
	case 6, 7:
		return key, prefixEnd(key)
	case 8:
		return key, key
	default:
		end = g.key()
		if bytes.Compare(key, end) > 0 && !g.one(8) {
			key, end = end, key
		}
		return key, end
	}
}

// prefixEnd is the end of the keys that begin with p.
func prefixEnd(p []byte) []byte {
	end := bytes.Clone(p)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return []byte{0}
}

// revision picks the revision of a read: mostly now or readable, at times compacted, in the
// future or absurd.
func (g *gen) revision() int64 {
	switch n := g.IntN(40); {
	case n < 16:
		return 0
	case n < 20:
		return g.rev
	case n < 32:
		low := max(g.compacted, 1)
		return low + g.Int64N(max(g.rev-low, 0)+1)
	case n < 34:
		return g.compacted
	case n < 37:
		return max(g.compacted, 1) - g.Int64N(4)
	case n < 39:
		return g.rev + 1 + g.Int64N(3)
	}
	return pick(g, []int64{-1, math.MaxInt64, math.MinInt64, 1})
}

// bound picks a bound for the revision filters of a range.
func (g *gen) bound() int64 {
	if g.one(3) {
		return pick(g, []int64{-1, 1, math.MaxInt64, g.rev, g.rev + 1})
	}
	return max(1, g.rev-g.Int64N(30))
}

func (g *gen) rangeRequest() *pb.RangeRequest {
	r := &pb.RangeRequest{Serializable: g.one(2)}
	r.Key, r.RangeEnd = g.span()
	if !g.one(3) {
		r.Revision = g.revision()
	}
	if g.one(2) {
		r.Limit = pick(g, []int64{0, 1, 1, 2, 3, 5, 100, math.MaxInt64, -1})
	}
	if g.one(2) {
		r.SortOrder = pb.RangeRequest_SortOrder(g.IntN(3))
		r.SortTarget = pb.RangeRequest_SortTarget(g.IntN(5))
	}
	if g.one(100) {
		r.SortOrder = pick(g, []pb.RangeRequest_SortOrder{3, -1, math.MaxInt32})
	}
	if g.one(100) {
		r.SortTarget = pick(g, []pb.RangeRequest_SortTarget{5, -1, math.MinInt32})
	}
	r.KeysOnly = g.one(5)
	r.CountOnly = g.one(8)
	if g.one(4) {
		for _, f := range []*int64{&r.MinModRevision, &r.MaxModRevision, &r.MinCreateRevision, &r.MaxCreateRevision} {
			if g.one(2) {
				*f = g.bound()
			}
		}
	}
	return r
}

func (g *gen) value() []byte {
	switch g.IntN(40) {
	case 0:
		return nil
	case 1:
		return bytes.Repeat([]byte{byte(g.Uint32())}, 1+g.IntN(4000))
	case 2:
		v := make([]byte, g.IntN(64))
		for i := range v {
			v[i] = byte(g.Uint32())
		}
		return v
	}
	return fmt.Appendf(nil, "%d", g.IntN(6))
}

func (g *gen) lease() int64 {
	if !g.one(4) {
		return 0
	}
	return pick(g, leases)
}

func (g *gen) putRequest() *pb.PutRequest {
	r := &pb.PutRequest{Key: g.key(), Value: g.value(), Lease: g.lease(), PrevKv: g.one(3)}
	if g.one(10) {
		r.IgnoreValue = true
		if !g.one(5) {
			r.Value = nil
		}
	}
	if g.one(10) {
		r.IgnoreLease = true
		if !g.one(5) {
			r.Lease = 0
		}
	}
	return r
}

func (g *gen) deleteRequest() *pb.DeleteRangeRequest {
	r := &pb.DeleteRangeRequest{PrevKv: g.one(2)}
	r.Key, r.RangeEnd = g.span()
	if g.one(2) {
		r.RangeEnd = nil // or the store is empty most of the time
	}
	return r
}

func (g *gen) compare() *pb.Compare {
	c := &pb.Compare{
		Result: pb.Compare_CompareResult(g.IntN(4)),
		Target: pb.Compare_CompareTarget(g.IntN(5)),
	}
	c.Key, c.RangeEnd = g.span()
	if !g.one(3) {
		c.RangeEnd = nil
	}
	if g.one(50) {
		c.Result = pick(g, []pb.Compare_CompareResult{4, -1})
	}
	small := g.Int64N(4)
	union := c.Target
	if g.one(20) {
		union = pb.Compare_CompareTarget(g.IntN(6)) // the union need not be the target's
	}
	switch union {
	case pb.Compare_VERSION:
		c.TargetUnion = &pb.Compare_Version{Version: small}
	case pb.Compare_CREATE:
		c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: pick(g, []int64{0, g.rev, g.bound()})}
	case pb.Compare_MOD:
		c.TargetUnion = &pb.Compare_ModRevision{ModRevision: pick(g, []int64{0, g.rev, g.bound()})}
	case pb.Compare_VALUE:
		c.TargetUnion = &pb.Compare_Value{Value: g.value()}
	case pb.Compare_LEASE:
		c.TargetUnion = &pb.Compare_Lease{Lease: g.lease()}
	}
	if g.one(50) {
		c.Target = pick(g, []pb.Compare_CompareTarget{5, -1})
	}
	return c
}

func (g *gen) requestOp(depth int) *pb.RequestOp {
	switch n := g.IntN(20); {
	case n < 7:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: g.putRequest()}}
	case n < 12:
		r := g.rangeRequest()
		if !g.one(5) {
			r.Revision = 0 // one that cannot be read refuses the whole txn
		}
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
	case n < 15 || depth == 0 && n < 19:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: g.deleteRequest()}}
	case n < 19:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: g.txnRequest(depth - 1)}}
	}
	if g.one(8) {
		return &pb.RequestOp{}
	}
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: g.putRequest()}}
}

func (g *gen) txnRequest(depth int) *pb.TxnRequest {
	r := &pb.TxnRequest{}
	for range g.IntN(3) {
		r.Compare = append(r.Compare, g.compare())
	}
	for range pick(g, []int{0, 1, 1, 2, 2, 3, 4}) {
		r.Success = append(r.Success, g.requestOp(depth))
	}
	for range pick(g, []int{0, 1, 1, 2, 2, 3}) {
		r.Failure = append(r.Failure, g.requestOp(depth))
	}
	return r
}

// readTxn is a txn of ranges only, which needs no log entry.
func (g *gen) readTxn() *pb.TxnRequest {
	r := &pb.TxnRequest{}
	for range g.IntN(3) {
		r.Compare = append(r.Compare, g.compare())
	}
	ops := func() (ops []*pb.RequestOp) {
		for range g.IntN(4) {
			q := g.rangeRequest()
			ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: q}})
		}
		return ops
	}
	r.Success, r.Failure = ops(), ops()
	return r
}

// crashesEtcd says whether a txn may end the real etcd 3.7.1, which does not see that a put
// overlaps with a deletion from its key or one before it on (it takes the range end "\0" for
// a key). Where the put wants the key to exist, etcd finds it gone in the midst of the txn,
// and ends: at each start again, because the txn is in its log. And where it deletes and puts
// a key in one revision, the store is damaged by a compaction to that revision: the next read
// there ends etcd. So such txns go only into episodes without compactions. What quorate makes
// of them is in TestSurvives.
func (g *gen) crashesEtcd(r *pb.TxnRequest) bool {
	var deletes, puts, ignores bool
	var walk func(r *pb.TxnRequest)
	walk = func(r *pb.TxnRequest) {
		for _, op := range slices.Concat(r.GetSuccess(), r.GetFailure()) {
			if d := op.GetRequestDeleteRange(); d != nil && string(d.RangeEnd) == "\x00" {
				deletes = true
			}
			if p := op.GetRequestPut(); p != nil {
				puts = true
				ignores = ignores || p.IgnoreValue || p.IgnoreLease
			}
			walk(op.GetRequestTxn())
		}
	}
	walk(r)
	return deletes && (ignores || puts && g.compacts)
}

// txn is a txn of any form that etcd survives.
func (g *gen) txn(depth int) *pb.TxnRequest {
	for {
		if r := g.txnRequest(depth); !g.crashesEtcd(r) {
			return r
		}
	}
}

// wideTxn has about as many operations as are allowed, on keys of its own.
func (g *gen) wideTxn() *pb.TxnRequest {
	n := pick(g, []int{60, 127, 128, 129, 300})
	r := &pb.TxnRequest{}
	for i := range n {
		r.Success = append(r.Success, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{
			RequestPut: &pb.PutRequest{Key: fmt.Appendf(nil, "wide/%d", i), Value: g.value()},
		}})
	}
	if g.one(2) {
		r.Success = append(r.Success[:max(0, n-2)], &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: g.txn(1)}})
	}
	if g.one(2) {
		for range pick(g, []int{1, 128, 129}) {
			r.Compare = append(r.Compare, g.compare())
		}
	}
	return r
}

// damaged is a valid request of the KV service with some bytes of its encoding changed, cut
// or added.
func (g *gen) damaged() *call {
	var c *call
	switch g.IntN(4) {
	case 0:
		c = newCall(rpcRange, g.rangeRequest())
	case 1:
		c = newCall(rpcPut, g.putRequest())
	case 2:
		c = newCall(rpcDelete, g.deleteRequest())
	default:
		c = newCall(rpcTxn, g.txn(2))
	}
	body := bytes.Clone(c.body)
	for range 1 + g.IntN(3) {
		switch n := len(body); {
		case n > 0 && g.one(3):
			body[g.IntN(n)] = byte(g.Uint32())
		case n > 0 && g.one(3):
			body[g.IntN(n)] ^= 1 << g.IntN(8)
		case n > 0 && g.one(3):
			body = body[:g.IntN(n)]
		case n > 0 && g.one(2):
			i := g.IntN(n)
			body = append(body[:i:i], body[i+1:]...)
		default:
			// A field that the message does not have, or has, a second time.
			body = append(body, byte(g.Uint32()), byte(g.IntN(4)))
		}
	}
	// What both decoders make of it, if anything, is what the exceptions go by.
	req := proto.Clone(c.req)
	proto.Reset(req)
	if proto.Unmarshal(body, req) != nil {
		return &call{rpc: c.rpc, body: body, note: "damaged"}
	}
	if r, ok := req.(*pb.TxnRequest); ok && g.crashesEtcd(r) {
		return c
	}
	return &call{rpc: c.rpc, req: req, body: body, note: fmt.Sprintf("damaged %q", body[:min(len(body), 60)])}
}

// maxRequestBytes is both servers' default for --max-request-bytes.
const maxRequestBytes = 1572864

// large is a put near one of the limits on a request's size, but not so near that the
// header of a log entry, which holds a random id, decides.
func (g *gen) large() *call {
	size := pick(g, []int{maxRequestBytes - 1024, maxRequestBytes + 1024, maxRequestBytes + 512<<10 - 1024, maxRequestBytes + 512<<10 + 1024, 4 << 20})
	return newCall(rpcPut, &pb.PutRequest{Key: []byte("large"), Value: bytes.Repeat([]byte("v"), size)})
}

// changes returns the calls of one step that change something, or try to; each is made on
// both servers before the next one.
func (g *gen) changes() []*call {
	switch n := g.IntN(1000); {
	case n < 340:
		return []*call{newCall(rpcPut, g.putRequest())}
	case n < 440:
		return []*call{newCall(rpcDelete, g.deleteRequest())}
	case n < 740:
		return []*call{newCall(rpcTxn, g.txn(3))}
	case n < 750:
		return []*call{newCall(rpcTxn, g.wideTxn())}
	case n < 830:
		return []*call{g.grant()}
	case n < 870:
		return []*call{newCall(rpcRevoke, &pb.LeaseRevokeRequest{ID: pick(g, append(leases, 0, 999))})}
	case n < 890:
		return []*call{newCall(rpcKeepAlive, &pb.LeaseKeepAliveRequest{ID: pick(g, append(leases, 0, 999))})}
	case n < 893:
		return g.shortLease()
	case n < 915:
		return []*call{newCall(rpcCompact, g.compaction())}
	case n < 919:
		return g.alarm()
	case n < 921:
		return []*call{newCall(rpcDefragment, &pb.DefragmentRequest{})}
	case n < 923:
		return []*call{newCall(rpcMoveLeader, &pb.MoveLeaderRequest{TargetID: pick(g, []uint64{0, 1, math.MaxUint64})})}
	case n < 926:
		return []*call{g.large()}
	default:
		return []*call{g.damaged()}
	}
}

func (g *gen) grant() *call {
	const longest = 9_000_000_000
	return newCall(rpcGrant, &pb.LeaseGrantRequest{
		ID:  pick(g, leases),
		TTL: pick(g, []int64{10_000, 10_000, 20_000, 1_000_000, longest, longest + 1, math.MaxInt64}),
	})
}

// shortLease grants leases that would soon expire, looks at them and revokes them at once.
func (g *gen) shortLease() []*call {
	id := int64(1000 + g.IntN(3))
	ttl := pick(g, []int64{-1, 0, 1, 2, 3, math.MinInt64})
	return []*call{
		newCall(rpcGrant, &pb.LeaseGrantRequest{ID: id, TTL: ttl}),
		newCall(rpcPut, &pb.PutRequest{Key: g.key(), Lease: id}),
		newCall(rpcTimeToLive, &pb.LeaseTimeToLiveRequest{ID: id, Keys: true}),
		newCall(rpcRevoke, &pb.LeaseRevokeRequest{ID: id}),
		newCall(rpcTimeToLive, &pb.LeaseTimeToLiveRequest{ID: id, Keys: true}),
		newCall(rpcKeepAlive, &pb.LeaseKeepAliveRequest{ID: id}),
	}
}

func (g *gen) compaction() *pb.CompactionRequest {
	rev := g.rev - g.Int64N(60)
	if !g.compacts {
		return &pb.CompactionRequest{Revision: g.rev + 1 + g.Int64N(3)} // refused
	}
	if g.one(4) {
		rev = g.revision()
	}
	return &pb.CompactionRequest{Revision: rev, Physical: g.one(2)}
}

// alarm raises an alarm, sees what is refused, and clears it.
func (g *gen) alarm() []*call {
	kind := pick(g, []pb.AlarmType{pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT})
	member := uint64(g.IntN(2)) * 12345
	calls := []*call{newCall(rpcAlarm, &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: member, Alarm: kind})}
	try := []*call{
		newCall(rpcPut, g.putRequest()),
		newCall(rpcDelete, g.deleteRequest()),
		newCall(rpcTxn, g.txn(1)),
		newCall(rpcTxn, g.readTxn()),
		newCall(rpcRange, g.rangeRequest()),
		g.grant(),
		newCall(rpcRevoke, &pb.LeaseRevokeRequest{ID: pick(g, leases)}),
		newCall(rpcCompact, g.compaction()),
		newCall(rpcAlarm, &pb.AlarmRequest{Action: pb.AlarmRequest_GET, Alarm: pb.AlarmType(g.IntN(3))}),
		newCall(rpcStatus, &pb.StatusRequest{}),
	}
	g.Shuffle(len(try), func(i, j int) { try[i], try[j] = try[j], try[i] })
	calls = append(calls, try[:4+g.IntN(6)]...)
	return append(calls,
		newCall(rpcAlarm, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, MemberID: member, Alarm: kind}),
		newCall(rpcAlarm, &pb.AlarmRequest{Action: pb.AlarmRequest_GET}))
}

// reads returns calls that change nothing, to be made at once.
func (g *gen) reads() []*call {
	var calls []*call
	for range pick(g, []int{0, 1, 2, 4, 8, 12}) {
		calls = append(calls, g.read())
	}
	return calls
}

func (g *gen) read() *call {
	switch n := g.IntN(100); {
	case n < 55:
		return newCall(rpcRange, g.rangeRequest())
	case n < 70:
		r := g.rangeRequest()
		if !g.one(10) {
			r.SortOrder, r.SortTarget = 0, 0
			r.MinModRevision, r.MaxModRevision, r.MinCreateRevision, r.MaxCreateRevision = 0, 0, 0, 0
		}
		return newCall(rpcRangeStream, r)
	case n < 82:
		return newCall(rpcTxn, g.readTxn())
	case n < 88:
		return newCall(rpcTimeToLive, &pb.LeaseTimeToLiveRequest{ID: pick(g, append(leases, 0, 999)), Keys: g.one(2)})
	case n < 91:
		return newCall(rpcLeases, &pb.LeaseLeasesRequest{})
	case n < 95:
		return newCall(rpcHashKV, &pb.HashKVRequest{Revision: g.revision()})
	case n < 97:
		return newCall(rpcStatus, &pb.StatusRequest{})
	case n < 98:
		return newCall(rpcMembers, &pb.MemberListRequest{Linearizable: g.one(2)})
	case n < 99:
		return newCall(rpcAuthStatus, &pb.AuthStatusRequest{})
	}
	return newCall(rpcAlarm, &pb.AlarmRequest{Action: pb.AlarmRequest_GET, Alarm: pb.AlarmType(g.IntN(3)), MemberID: uint64(g.IntN(2))})
}
