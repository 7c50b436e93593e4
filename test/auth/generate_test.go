package auth

import (
	"fmt"
	"math/rand/v2"

	"google.golang.org/protobuf/proto"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// A gen makes the calls of one step.
type gen struct {
	*rand.Rand
	run  *run
	step int
}

func (g *gen) one(n int) bool { return g.IntN(n) == 0 }

func pick[T any](g *gen, all ...T) T { return all[g.IntN(len(all))] }

// user is mostly one that may exist. The first is not made to vanish often.
func (g *gen) user() string { return pick(g, "root", "u1", "u1", "u2", "u2", "u3", "u4", "nobody", "") }

// other is a user that may come and go.
func (g *gen) other() string {
	if g.one(12) {
		return g.user()
	}
	return pick(g, "u1", "u2", "u3", "u4")
}

func (g *gen) role() string {
	if g.one(12) {
		return pick(g, "root", "nothing", "")
	}
	return pick(g, "r1", "r2", "r3")
}

func (g *gen) password() string { return pick(g, "p1", "p1", "p2", "p3", "") }

// key is one of few, so that permissions and requests meet.
func (g *gen) key() []byte {
	if g.one(40) {
		return nil
	}
	return []byte(pick(g, "a", "b", "c", "d", "e") + pick(g, "", "", "a", "c", "e"))
}

// end is the end of a range of keys, which may also be empty, reversed, or open.
func (g *gen) end(key []byte) []byte {
	switch g.IntN(10) {
	case 0, 1, 2, 3:
		return nil
	case 4:
		return []byte{0}
	case 5:
		if len(key) > 0 {
			return append(key[:len(key)-1:len(key)-1], key[len(key)-1]+1)
		}
		return []byte{0}
	}
	return g.key()
}

func (g *gen) keyRange() (key, end []byte) {
	key = g.key()
	if g.one(12) {
		key = []byte{0}
	}
	return key, g.end(key)
}

// lease is one of those that may be granted, or none.
func (g *gen) lease() int64 { return int64(1000 + g.IntN(6)) }

// somebody is who asks: root often enough for things to happen.
func (g *gen) somebody(root int) *session {
	if g.IntN(10) < root {
		if s := g.run.newest("root"); s != nil {
			return s
		}
	}
	switch all := g.run.sessions; {
	case g.one(10) || len(all) == 0:
		return nil
	case g.one(16):
		// Never given out. The number of a token is that of a log entry: one that has been applied, or the
		// server would wait for it.
		text := pick(g, "", "bad", "abcdefghijklmnop.1", "abcdefghijklmnop.x", "a.b.c", ".1", "x.", "abcdefghijklmnop.-1")
		return &session{user: "wrong token", tokens: [2]string{text, text}, header: pick(g, "token", "authorization"), prefix: pick(g, "", "Bearer ")}
	case g.one(3):
		return pick(g, all...)
	}
	if s := g.run.newest(pick(g, "u1", "u2", "u3", "u4")); s != nil {
		return s
	}
	return nil
}

// calls returns the calls of a step.
func (g *gen) calls() []*call {
	switch n := g.IntN(100); {
	case n < 50:
		m, req := g.data()
		return []*call{{m, req, g.somebody(1)}}
	case n < 72:
		m, req := g.auth()
		return []*call{{m, req, g.somebody(8)}}
	case n < 84:
		m, req := g.admin()
		return []*call{{m, req, g.somebody(3)}}
	case n < 86:
		return g.locks()
	case n < 87:
		return g.setUp()
	case n < 88:
		// Off, some changes without being asked who one is, and on again.
		calls := []*call{{authDisable, &pb.AuthDisableRequest{}, g.somebody(9)}}
		for range g.IntN(4) {
			m, req := g.auth()
			calls = append(calls, &call{m, req, pick(g, nil, g.somebody(0))})
		}
		return append(calls, g.setUp()...)
	default:
		return []*call{g.login()}
	}
}

// setUp makes sure of root, and enables authentication.
func (g *gen) setUp() []*call {
	return []*call{
		{userAdd, &pb.AuthUserAddRequest{Name: "root", Password: "p1"}, nil},
		{roleAdd, &pb.AuthRoleAddRequest{Name: "root"}, nil},
		{userGrantRole, &pb.AuthUserGrantRoleRequest{User: "root", Role: "root"}, nil},
		{authEnable, &pb.AuthEnableRequest{}, nil},
		{authenticate, &pb.AuthenticateRequest{Name: "root", Password: "p1"}, nil},
	}
}

// populate gives a new server users that may do something.
func (g *gen) populate() []*call {
	var calls []*call
	for _, role := range []string{"r1", "r2", "r3"} {
		calls = append(calls, &call{roleAdd, &pb.AuthRoleAddRequest{Name: role}, nil})
		for range 2 {
			key, end := g.keyRange()
			calls = append(calls, &call{roleGrantPermission, &pb.AuthRoleGrantPermissionRequest{Name: role,
				Perm: &authpb.Permission{PermType: authpb.Permission_Type(g.IntN(3)), Key: key, RangeEnd: end}}, nil})
		}
	}
	for _, user := range []string{"u1", "u2", "u3", "u4"} {
		calls = append(calls, &call{userAdd, &pb.AuthUserAddRequest{Name: user, Password: "p2"}, nil},
			&call{userGrantRole, &pb.AuthUserGrantRoleRequest{User: user, Role: pick(g, "r1", "r2", "r3")}, nil})
	}
	calls = append(calls, g.setUp()...)
	for _, user := range []string{"u1", "u2", "u3", "u4"} {
		calls = append(calls, &call{authenticate, &pb.AuthenticateRequest{Name: user, Password: "p2"}, nil})
	}
	return calls
}

// login is a call for a token, mostly with the right password.
func (g *gen) login() *call {
	name := pick(g, "root", "u1", "u2", "u3", "u4", g.user())
	password, known := g.run.passwords[name]
	if !known || g.one(8) {
		password = g.password()
	}
	return &call{authenticate, &pb.AuthenticateRequest{Name: name, Password: password}, nil}
}

// auth is a call about users, roles, and permissions.
func (g *gen) auth() (*method, proto.Message) {
	switch g.IntN(26) {
	case 0, 1, 2:
		req := &pb.AuthUserAddRequest{Name: g.other(), Password: g.password()}
		switch g.IntN(8) {
		case 0:
			req.Options = &authpb.UserAddOptions{NoPassword: true}
		case 1:
			req.Options = &authpb.UserAddOptions{}
		case 2:
			req.HashedPassword = "of another" // which is for the log only
		}
		return userAdd, req
	case 3:
		return userGet, &pb.AuthUserGetRequest{Name: g.user()}
	case 4:
		return userList, &pb.AuthUserListRequest{}
	case 5:
		return userDelete, &pb.AuthUserDeleteRequest{Name: g.other()}
	case 6, 7:
		return userChangePassword, &pb.AuthUserChangePasswordRequest{Name: g.other(), Password: g.password()}
	case 8, 9, 10, 11:
		return userGrantRole, &pb.AuthUserGrantRoleRequest{User: g.other(), Role: g.role()}
	case 12:
		return userRevokeRole, &pb.AuthUserRevokeRoleRequest{Name: g.other(), Role: g.role()}
	case 13, 14:
		return roleAdd, &pb.AuthRoleAddRequest{Name: g.role()}
	case 15:
		return roleGet, &pb.AuthRoleGetRequest{Role: g.role()}
	case 16:
		return roleList, &pb.AuthRoleListRequest{}
	case 17:
		if g.one(2) {
			return roleDelete, &pb.AuthRoleDeleteRequest{Role: g.role()}
		}
		return authStatus, &pb.AuthStatusRequest{}
	case 18, 19, 20, 21, 22:
		req := &pb.AuthRoleGrantPermissionRequest{Name: g.role()}
		if !g.one(40) {
			key, end := g.keyRange()
			req.Perm = &authpb.Permission{PermType: authpb.Permission_Type(g.IntN(3)), Key: key, RangeEnd: end}
		}
		return roleGrantPermission, req
	case 23, 24:
		key, end := g.keyRange()
		return roleRevokePermission, &pb.AuthRoleRevokePermissionRequest{Role: g.role(), Key: key, RangeEnd: end}
	}
	return authEnable, &pb.AuthEnableRequest{}
}

// data is a call about keys or leases.
func (g *gen) data() (*method, proto.Message) {
	switch g.IntN(20) {
	case 0, 1, 2, 3, 4:
		return rangeKV, g.rangeRequest()
	case 5:
		return rangeStream, g.rangeRequest()
	case 6, 7, 8, 9:
		return put, g.putRequest()
	case 10, 11:
		return deleteRange, g.deleteRequest()
	case 12, 13, 14, 15:
		return txn, g.txnRequest(2)
	case 16:
		return leaseGrant, &pb.LeaseGrantRequest{ID: g.lease(), TTL: 500_000}
	case 17:
		return leaseRevoke, &pb.LeaseRevokeRequest{ID: g.lease()}
	case 18:
		return leaseTimeToLive, &pb.LeaseTimeToLiveRequest{ID: g.lease(), Keys: g.one(2)}
	}
	if g.one(2) {
		return leaseKeepAlive, &pb.LeaseKeepAliveRequest{ID: g.lease()}
	}
	return leaseLeases, &pb.LeaseLeasesRequest{}
}

func (g *gen) rangeRequest() *pb.RangeRequest {
	key, end := g.keyRange()
	r := &pb.RangeRequest{Key: key, RangeEnd: end, Serializable: g.one(3), CountOnly: g.one(8)}
	switch g.IntN(8) {
	case 0:
		r.Revision = g.run.rev - int64(g.IntN(20))
	case 1:
		r.Revision = g.run.rev + 100
	case 2:
		r.Limit = int64(g.IntN(3))
	}
	return r
}

func (g *gen) putRequest() *pb.PutRequest {
	r := &pb.PutRequest{Key: g.key(), Value: fmt.Appendf(nil, "v%d", g.step), PrevKv: g.one(3)}
	if g.one(3) {
		r.Lease = g.lease()
	}
	switch g.IntN(10) {
	case 0:
		r.IgnoreValue, r.Value = true, nil
	case 1:
		r.IgnoreLease, r.Lease = true, 0
	}
	return r
}

func (g *gen) deleteRequest() *pb.DeleteRangeRequest {
	key, end := g.keyRange()
	return &pb.DeleteRangeRequest{Key: key, RangeEnd: end, PrevKv: g.one(3)}
}

// txnRequest is a transaction with others in it, so many deep.
func (g *gen) txnRequest(depth int) *pb.TxnRequest {
	r := &pb.TxnRequest{}
	for range g.IntN(3) {
		key, end := g.keyRange()
		r.Compare = append(r.Compare, &pb.Compare{Key: key, RangeEnd: end, Target: pb.Compare_VERSION, Result: pb.Compare_CompareResult(g.IntN(4)),
			TargetUnion: &pb.Compare_Version{Version: int64(g.IntN(3))}})
	}
	for _, branch := range []*[]*pb.RequestOp{&r.Success, &r.Failure} {
		for range g.IntN(3) {
			*branch = append(*branch, g.op(depth))
		}
	}
	return r
}

func (g *gen) op(depth int) *pb.RequestOp {
	switch n := g.IntN(8); {
	case n < 3:
		r := g.rangeRequest()
		r.Serializable = false
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
	case n < 5:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: g.putRequest()}}
	case n < 7 || depth == 0:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: g.deleteRequest()}}
	}
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: g.txnRequest(depth - 1)}}
}

// admin is a call about the store or the members. Those about members ask for what cannot be done.
func (g *gen) admin() (*method, proto.Message) {
	switch g.IntN(15) {
	case 0:
		// Not all: etcd has two hashes at a revision that it was compacted to.
		return compact, &pb.CompactionRequest{Revision: g.run.rev - 1 - int64(g.IntN(30)), Physical: g.one(2)}
	case 1:
		return alarm, &pb.AlarmRequest{Action: pb.AlarmRequest_GET}
	case 2:
		return alarm, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE}
	case 3:
		return statusOf, &pb.StatusRequest{}
	case 4:
		if g.one(4) {
			return defragment, &pb.DefragmentRequest{}
		}
		return authStatus, &pb.AuthStatusRequest{}
	case 5:
		return hash, &pb.HashRequest{}
	case 6:
		return hashKV, &pb.HashKVRequest{Revision: g.run.rev}
	case 7:
		return snapshot, &pb.SnapshotRequest{}
	case 8:
		return moveLeader, &pb.MoveLeaderRequest{TargetID: 1}
	case 9:
		return downgrade, &pb.DowngradeRequest{Action: pb.DowngradeRequest_VALIDATE, Version: pick(g, "3.5.0", "bogus")}
	case 10:
		return memberList, &pb.MemberListRequest{Linearizable: g.one(2)}
	case 11:
		return memberAdd, &pb.MemberAddRequest{PeerURLs: []string{"http://127.0.0.1:2380"}} // which the one member has
	case 12:
		return memberRemove, &pb.MemberRemoveRequest{ID: 1}
	case 13:
		return memberUpdate, &pb.MemberUpdateRequest{ID: 1, PeerURLs: []string{"http://127.0.0.1:1"}}
	}
	return memberPromote, &pb.MemberPromoteRequest{ID: 1}
}

// locks takes a lock or an election of this step's own, so that nobody waits, and lets it go again.
func (g *gen) locks() []*call {
	as, lease := g.somebody(3), g.lease()
	name := fmt.Sprintf("%s%d", g.key(), g.step)
	key := fmt.Sprintf("%s/%x", name, lease)
	if g.one(2) {
		return []*call{{campaign, fields(name, lease, "v"), as}, {leaderOf, fields(name, 0, ""), g.somebody(3)}, {unlock, fields(key, 0, ""), as}}
	}
	return []*call{{lock, fields(name, lease, ""), as}, {unlock, fields(key, 0, ""), g.somebody(3)}, {unlock, fields(key, 0, ""), as}}
}
