package fsm

import (
	"time"

	"quorate/internal/auth"
	"quorate/internal/kv"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// What a request of the auth service does, and what anybody may do. Every request is
// checked here by who is named in its entry, however it was checked before it was
// proposed: what others have changed meanwhile counts, and etcd's members do the same.

// access is who asks by the entry that is being applied, and the state that says what it
// may do. The zero access may do everything: permissions are off.
type access struct {
	state *auth.State
	who   auth.Identity
}

// accessOf is the access of a request.
func (m *Machine) accessOf(req *wire.RaftRequest) access {
	st := m.auth.State()
	if !st.Enabled() {
		return access{}
	}
	return access{st, auth.Identity{User: string(req.Username), Revision: req.AuthRevision}}
}

// checked reports whether there is anything to check.
func (a *access) checked() bool { return a.state != nil }

func (a *access) admin() error {
	if !a.checked() {
		return nil
	}
	return a.state.PermitAdmin(a.who)
}

// AccessTo is what somebody may do with keys, for requests that are checked before or
// without being proposed. leases is asked for the keys on a lease.
type AccessTo struct {
	a      access
	leases keysOnLeases
}

// keysOnLeases is lease.Lessor's.
type keysOnLeases interface {
	Keys(id kv.LeaseID) [][]byte
}

// AccessOf is who's access by a state.
func AccessOf(st *auth.State, who auth.Identity, leases keysOnLeases) AccessTo {
	return AccessTo{access{st, who}, leases}
}

// Txn says whether t may be done. The permissions that auth.State.Permit tells about are
// needed for both branches, whichever will be taken.
func (t AccessTo) Txn(x *kv.Txn) error { return t.a.txn(x, t.leases) }

// put says whether p may be done: the lease's other keys would end with this one, and so
// the right to write them is needed, too.
func (a *access) put(p *kv.Put, leases keysOnLeases) error {
	if err := a.state.Permit(a.who, auth.Write, p.Key, nil); err != nil {
		return err
	}
	if err := a.lease(p.Lease, leases); err != nil {
		return err
	}
	if p.PrevKV {
		return a.state.Permit(a.who, auth.Read, p.Key, nil)
	}
	return nil
}

func (a *access) delete(d *kv.Delete) error {
	if err := a.state.Permit(a.who, auth.Write, d.Key, d.End); err != nil {
		return err
	}
	if d.PrevKV {
		return a.state.Permit(a.who, auth.Read, d.Key, d.End)
	}
	return nil
}

func (a *access) txn(t *kv.Txn, leases keysOnLeases) error {
	for i := range t.Compares {
		c := &t.Compares[i]
		if err := a.state.Permit(a.who, auth.Read, c.Key, c.End); err != nil {
			return err
		}
	}
	for _, ops := range [][]kv.Op{t.Success, t.Failure} {
		for _, op := range ops {
			var err error
			switch {
			case op.Range != nil:
				err = a.state.Permit(a.who, auth.Read, op.Range.Key, op.Range.End)
			case op.Put != nil:
				err = a.put(op.Put, leases)
			case op.Delete != nil:
				err = a.delete(op.Delete)
			case op.Txn != nil:
				err = a.txn(op.Txn, leases)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// lease says whether keys may be attached to lease id, or it may be revoked.
func (a *access) lease(id kv.LeaseID, leases keysOnLeases) error {
	if id == kv.NoLease || a.state.PermitAdmin(a.who) == nil {
		return nil
	}
	return a.state.PermitLease(a.who, leases.Keys(id))
}

// change applies one of the requests that change users, roles or the switch.
func (m *Machine) change(req wire.RaftRequest, r proto.Message, do func() error) (Result, error) {
	if err := proto.Unmarshal(req.Body, r); err != nil {
		return Result{}, err
	}
	if err := m.access.admin(); err != nil {
		return Result{Err: err}, nil
	}
	return Result{Err: do()}, nil
}

// authRequest applies a request of the auth service; ok is false if it is none.
func (m *Machine) authRequest(req wire.RaftRequest, index uint64, now time.Time) (res Result, ok bool, err error) {
	switch req.Field {
	case wire.FieldAuthEnable:
		res, err = m.change(req, &pb.AuthEnableRequest{}, m.auth.Enable)
	case wire.FieldAuthDisable:
		res, err = m.change(req, &pb.AuthDisableRequest{}, func() error { m.auth.Disable(); return nil })
	case wire.FieldAuthenticate:
		res, err = m.authenticate(req, index, now)
	case wire.FieldUserAdd:
		r := &pb.AuthUserAddRequest{}
		res, err = m.change(req, r, func() error { return m.auth.UserAdd(r) })
	case wire.FieldUserDelete:
		r := &pb.AuthUserDeleteRequest{}
		res, err = m.change(req, r, func() error { return m.auth.UserDelete(r) })
	case wire.FieldUserChangePassword:
		r := &pb.AuthUserChangePasswordRequest{}
		res, err = m.change(req, r, func() error { return m.auth.UserChangePassword(r) })
	case wire.FieldUserGrantRole:
		r := &pb.AuthUserGrantRoleRequest{}
		res, err = m.change(req, r, func() error { return m.auth.UserGrantRole(r) })
	case wire.FieldUserRevokeRole:
		r := &pb.AuthUserRevokeRoleRequest{}
		res, err = m.change(req, r, func() error { return m.auth.UserRevokeRole(r) })
	case wire.FieldRoleAdd:
		r := &pb.AuthRoleAddRequest{}
		res, err = m.change(req, r, func() error { return m.auth.RoleAdd(r) })
	case wire.FieldRoleDelete:
		r := &pb.AuthRoleDeleteRequest{}
		res, err = m.change(req, r, func() error { return m.auth.RoleDelete(r) })
	case wire.FieldRoleGrant:
		r := &pb.AuthRoleGrantPermissionRequest{}
		res, err = m.change(req, r, func() error { return m.auth.RoleGrantPermission(r) })
	case wire.FieldRoleRevoke:
		r := &pb.AuthRoleRevokePermissionRequest{}
		res, err = m.change(req, r, func() error { return m.auth.RoleRevokePermission(r) })
	case wire.FieldAuthStatus, wire.FieldUserGet, wire.FieldUserList, wire.FieldRoleGet, wire.FieldRoleList:
		// Reads, which etcd's members propose; they leave no trace, and are answered there.
	default:
		return Result{}, false, nil
	}
	return res, true, err
}

func (m *Machine) authenticate(req wire.RaftRequest, index uint64, now time.Time) (Result, error) {
	r := &pb.InternalAuthenticateRequest{}
	if err := proto.Unmarshal(req.Body, r); err != nil {
		return Result{}, err
	}
	token, err := m.auth.Authenticate(r.Name, r.SimpleToken, index, now)
	if err != nil {
		return Result{Err: err}, nil
	}
	body, err := proto.Marshal(&pb.AuthenticateResponse{Token: token})
	return Result{Body: body}, err
}
