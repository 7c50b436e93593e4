package rpc

import (
	"context"
	"errors"
	"time"

	"quorate/internal/auth"
	"quorate/internal/fsm"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// authService is etcdserverpb.Auth. Changes go through the log, where they are checked
// and applied; what only asks is answered here, linearizably (etcd has it in the log, too).
type authService struct {
	*services
	pb.UnsafeAuthServer
}

// change has r replicated for a client that may do so, and returns the answer's header.
// Who may not is refused before r costs anything, and again when it is applied.
func (a authService) change(ctx context.Context, field wire.Field, r proto.Message, prepare func() error) (*pb.ResponseHeader, error) {
	if err := a.permitAdmin(ctx); err != nil {
		return nil, err
	}
	if prepare != nil {
		if err := prepare(); err != nil {
			return nil, err
		}
	}
	res, err := a.proposeMessage(ctx, field, r)
	if err != nil {
		return nil, err
	}
	return a.pbHeader(res.Rev), nil
}

// read returns who asks and the state, once it is linearizable.
func (a authService) read(ctx context.Context) (*auth.State, auth.Identity, error) {
	if err := a.ReadIndex(ctx); err != nil {
		return nil, auth.Identity{}, err
	}
	who, err := a.identify(ctx)
	return a.Auth(), who, err
}

// readAdmin is read for clients that may see everything.
func (a authService) readAdmin(ctx context.Context) (*auth.State, error) {
	st, who, err := a.read(ctx)
	if err == nil {
		err = st.PermitAdmin(who)
	}
	return st, err
}

func (a authService) AuthStatus(ctx context.Context, _ *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	st, _, err := a.read(ctx)
	if err != nil {
		return nil, err
	}
	return &pb.AuthStatusResponse{Header: a.pbHeader(0), Enabled: st.Enabled(), AuthRevision: st.Revision()}, nil
}

func (a authService) AuthEnable(ctx context.Context, r *pb.AuthEnableRequest) (*pb.AuthEnableResponse, error) {
	h, err := a.change(ctx, wire.FieldAuthEnable, r, nil)
	if err != nil {
		return nil, err
	}
	return &pb.AuthEnableResponse{Header: h}, nil
}

func (a authService) AuthDisable(ctx context.Context, r *pb.AuthDisableRequest) (*pb.AuthDisableResponse, error) {
	h, err := a.change(ctx, wire.FieldAuthDisable, r, nil)
	if err != nil {
		return nil, err
	}
	return &pb.AuthDisableResponse{Header: h}, nil
}

// Authenticate compares the password here, where it may take its time, and has the log
// say that its user may have a token. If users or roles change in between, the password
// may have, too, and it is compared again. The password itself never enters the log.
func (a authService) Authenticate(ctx context.Context, r *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	if err := a.ReadIndex(ctx); err != nil {
		return nil, err
	}
	for {
		st := a.Auth()
		if err := a.Passwords().Check(ctx, st, r.Name, r.Password, time.Now()); err != nil {
			a.noteFailure(r.Name, err)
			return nil, err
		}
		res, err := a.authenticated(ctx, r.Name)
		if err != nil {
			return nil, err
		}
		if a.Auth().Revision() != st.Revision() {
			continue
		}
		out := &pb.AuthenticateResponse{}
		if err := proto.Unmarshal(res.Body, out); err != nil {
			return nil, err
		}
		if a.Tokens().Signed() {
			who := auth.Identity{User: r.Name, Revision: st.Revision()}
			if out.Token, err = a.Tokens().Sign(who, time.Now()); err != nil {
				return nil, err
			}
		}
		out.Header = a.pbHeader(res.Rev)
		return out, nil
	}
}

// noteFailure leaves a trace of a login that was refused.
func (a authService) noteFailure(name string, err error) {
	if errors.Is(err, auth.ErrFailed) || errors.Is(err, auth.ErrNoPasswordUser) {
		a.log.Warn("invalid authentication was requested", "user", name, "error", err)
	}
}

// authenticated has the log give a token to a user whose password is right. Whoever logs
// in is nobody yet.
func (a authService) authenticated(ctx context.Context, name string) (fsm.Result, error) {
	body, err := proto.Marshal(&pb.InternalAuthenticateRequest{Name: name, SimpleToken: a.Tokens().Prefix()})
	if err != nil {
		return fsm.Result{}, err
	}
	res, err := a.ProposeAs(ctx, auth.Identity{}, wire.FieldAuthenticate, body)
	if err == nil {
		err = res.Err
	}
	return res, err
}

func (a authService) UserAdd(ctx context.Context, r *pb.AuthUserAddRequest) (*pb.AuthUserAddResponse, error) {
	h, err := a.change(ctx, wire.FieldUserAdd, r, func() (err error) {
		if !r.GetOptions().GetNoPassword() {
			r.HashedPassword, err = a.Passwords().Hash(ctx, r.Password)
			r.Password = ""
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserAddResponse{Header: h}, nil
}

func (a authService) UserChangePassword(ctx context.Context, r *pb.AuthUserChangePasswordRequest) (*pb.AuthUserChangePasswordResponse, error) {
	h, err := a.change(ctx, wire.FieldUserChangePassword, r, func() (err error) {
		if r.Password != "" {
			r.HashedPassword, err = a.Passwords().Hash(ctx, r.Password)
			r.Password = ""
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserChangePasswordResponse{Header: h}, nil
}

// UserGet tells users about themselves, and root about all.
func (a authService) UserGet(ctx context.Context, r *pb.AuthUserGetRequest) (*pb.AuthUserGetResponse, error) {
	st, who, err := a.read(ctx)
	if err != nil {
		return nil, err
	}
	if err := st.PermitAdmin(who); err != nil && r.Name != who.User {
		return nil, err
	}
	roles, err := st.User(r.Name)
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserGetResponse{Header: a.pbHeader(0), Roles: roles}, nil
}

func (a authService) UserList(ctx context.Context, _ *pb.AuthUserListRequest) (*pb.AuthUserListResponse, error) {
	st, err := a.readAdmin(ctx)
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserListResponse{Header: a.pbHeader(0), Users: st.Users()}, nil
}

func (a authService) UserDelete(ctx context.Context, r *pb.AuthUserDeleteRequest) (*pb.AuthUserDeleteResponse, error) {
	h, err := a.change(ctx, wire.FieldUserDelete, r, nil)
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserDeleteResponse{Header: h}, nil
}

func (a authService) UserGrantRole(ctx context.Context, r *pb.AuthUserGrantRoleRequest) (*pb.AuthUserGrantRoleResponse, error) {
	h, err := a.change(ctx, wire.FieldUserGrantRole, r, nil)
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserGrantRoleResponse{Header: h}, nil
}

func (a authService) UserRevokeRole(ctx context.Context, r *pb.AuthUserRevokeRoleRequest) (*pb.AuthUserRevokeRoleResponse, error) {
	h, err := a.change(ctx, wire.FieldUserRevokeRole, r, nil)
	if err != nil {
		return nil, err
	}
	return &pb.AuthUserRevokeRoleResponse{Header: h}, nil
}

func (a authService) RoleAdd(ctx context.Context, r *pb.AuthRoleAddRequest) (*pb.AuthRoleAddResponse, error) {
	h, err := a.change(ctx, wire.FieldRoleAdd, r, nil)
	if err != nil {
		return nil, err
	}
	return &pb.AuthRoleAddResponse{Header: h}, nil
}

// RoleGet tells users about the roles that they have, and root about all.
func (a authService) RoleGet(ctx context.Context, r *pb.AuthRoleGetRequest) (*pb.AuthRoleGetResponse, error) {
	st, who, err := a.read(ctx)
	if err != nil {
		return nil, err
	}
	if err := st.PermitAdmin(who); err != nil && !st.HasRole(who.User, r.Role) {
		return nil, err
	}
	perms, err := st.Role(r.Role)
	if err != nil {
		return nil, err
	}
	return &pb.AuthRoleGetResponse{Header: a.pbHeader(0), Perm: perms}, nil
}

func (a authService) RoleList(ctx context.Context, _ *pb.AuthRoleListRequest) (*pb.AuthRoleListResponse, error) {
	st, err := a.readAdmin(ctx)
	if err != nil {
		return nil, err
	}
	return &pb.AuthRoleListResponse{Header: a.pbHeader(0), Roles: st.Roles()}, nil
}

func (a authService) RoleDelete(ctx context.Context, r *pb.AuthRoleDeleteRequest) (*pb.AuthRoleDeleteResponse, error) {
	h, err := a.change(ctx, wire.FieldRoleDelete, r, nil)
	if err != nil {
		return nil, err
	}
	return &pb.AuthRoleDeleteResponse{Header: h}, nil
}

func (a authService) RoleGrantPermission(ctx context.Context, r *pb.AuthRoleGrantPermissionRequest) (*pb.AuthRoleGrantPermissionResponse, error) {
	h, err := a.change(ctx, wire.FieldRoleGrant, r, nil)
	if err != nil {
		return nil, err
	}
	return &pb.AuthRoleGrantPermissionResponse{Header: h}, nil
}

func (a authService) RoleRevokePermission(ctx context.Context, r *pb.AuthRoleRevokePermissionRequest) (*pb.AuthRoleRevokePermissionResponse, error) {
	h, err := a.change(ctx, wire.FieldRoleRevoke, r, nil)
	if err != nil {
		return nil, err
	}
	return &pb.AuthRoleRevokePermissionResponse{Header: h}, nil
}
