package ctl

import (
	"context"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/protobuf/proto"
)

// cannedAuth is the part of canned that knows users and roles: alice and root, reader and root. Authentication
// cannot be enabled before root has been granted its role.
type cannedAuth struct {
	pb.UnimplementedAuthServer
	note    func(verb string, m proto.Message)
	granted bool
}

func (c *cannedAuth) AuthEnable(_ context.Context, r *pb.AuthEnableRequest) (*pb.AuthEnableResponse, error) {
	c.note("auth enable", r)
	if !c.granted {
		return nil, rpctypes.ErrGRPCRootRoleNotExist
	}
	return &pb.AuthEnableResponse{Header: cannedHeader}, nil
}

func (c *cannedAuth) AuthDisable(_ context.Context, r *pb.AuthDisableRequest) (*pb.AuthDisableResponse, error) {
	c.note("auth disable", r)
	return &pb.AuthDisableResponse{Header: cannedHeader}, nil
}

func (c *cannedAuth) AuthStatus(_ context.Context, r *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	c.note("auth status", r)
	return &pb.AuthStatusResponse{Header: cannedHeader, Enabled: true, AuthRevision: 7}, nil
}

func (c *cannedAuth) Authenticate(_ context.Context, r *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	c.note("authenticate", r)
	return &pb.AuthenticateResponse{Header: cannedHeader, Token: "token"}, nil
}

func (c *cannedAuth) UserAdd(_ context.Context, r *pb.AuthUserAddRequest) (*pb.AuthUserAddResponse, error) {
	c.note("user add", r)
	if r.Name == "alice" {
		return nil, rpctypes.ErrGRPCUserAlreadyExist
	}
	return &pb.AuthUserAddResponse{Header: cannedHeader}, nil
}

func (c *cannedAuth) UserGet(_ context.Context, r *pb.AuthUserGetRequest) (*pb.AuthUserGetResponse, error) {
	c.note("user get", r)
	if r.Name != "alice" {
		return nil, rpctypes.ErrGRPCUserNotFound
	}
	return &pb.AuthUserGetResponse{Header: cannedHeader, Roles: []string{"reader", "root"}}, nil
}

func (c *cannedAuth) UserList(_ context.Context, r *pb.AuthUserListRequest) (*pb.AuthUserListResponse, error) {
	c.note("user list", r)
	return &pb.AuthUserListResponse{Header: cannedHeader, Users: []string{"alice", "root"}}, nil
}

func (c *cannedAuth) UserDelete(_ context.Context, r *pb.AuthUserDeleteRequest) (*pb.AuthUserDeleteResponse, error) {
	c.note("user delete", r)
	return &pb.AuthUserDeleteResponse{Header: cannedHeader}, nil
}

func (c *cannedAuth) UserChangePassword(_ context.Context, r *pb.AuthUserChangePasswordRequest) (*pb.AuthUserChangePasswordResponse, error) {
	c.note("user passwd", r)
	return &pb.AuthUserChangePasswordResponse{Header: cannedHeader}, nil
}

func (c *cannedAuth) UserGrantRole(_ context.Context, r *pb.AuthUserGrantRoleRequest) (*pb.AuthUserGrantRoleResponse, error) {
	c.note("user grant-role", r)
	c.granted = c.granted || r.User == rootName && r.Role == rootName
	return &pb.AuthUserGrantRoleResponse{Header: cannedHeader}, nil
}

func (c *cannedAuth) UserRevokeRole(_ context.Context, r *pb.AuthUserRevokeRoleRequest) (*pb.AuthUserRevokeRoleResponse, error) {
	c.note("user revoke-role", r)
	return &pb.AuthUserRevokeRoleResponse{Header: cannedHeader}, nil
}

func (c *cannedAuth) RoleAdd(_ context.Context, r *pb.AuthRoleAddRequest) (*pb.AuthRoleAddResponse, error) {
	c.note("role add", r)
	return &pb.AuthRoleAddResponse{Header: cannedHeader}, nil
}

func (c *cannedAuth) RoleGet(_ context.Context, r *pb.AuthRoleGetRequest) (*pb.AuthRoleGetResponse, error) {
	c.note("role get", r)
	resp := &pb.AuthRoleGetResponse{Header: cannedHeader}
	if r.Role == "reader" {
		resp.Perm = []*authpb.Permission{
			{PermType: authpb.READ, Key: []byte("k")},
			{PermType: authpb.WRITE, Key: []byte("k"), RangeEnd: []byte("k9")},
			{PermType: authpb.READWRITE, Key: []byte("p"), RangeEnd: []byte("q")},
			{PermType: authpb.READ, Key: []byte("x"), RangeEnd: []byte{0}},
			{PermType: authpb.READ, Key: []byte{0}, RangeEnd: []byte{0}},
		}
	}
	return resp, nil
}

func (c *cannedAuth) RoleList(_ context.Context, r *pb.AuthRoleListRequest) (*pb.AuthRoleListResponse, error) {
	c.note("role list", r)
	return &pb.AuthRoleListResponse{Header: cannedHeader, Roles: []string{"reader", "root"}}, nil
}

func (c *cannedAuth) RoleDelete(_ context.Context, r *pb.AuthRoleDeleteRequest) (*pb.AuthRoleDeleteResponse, error) {
	c.note("role delete", r)
	return &pb.AuthRoleDeleteResponse{Header: cannedHeader}, nil
}

func (c *cannedAuth) RoleGrantPermission(_ context.Context, r *pb.AuthRoleGrantPermissionRequest) (*pb.AuthRoleGrantPermissionResponse, error) {
	c.note("role grant-permission", r)
	return &pb.AuthRoleGrantPermissionResponse{Header: cannedHeader}, nil
}

func (c *cannedAuth) RoleRevokePermission(_ context.Context, r *pb.AuthRoleRevokePermissionRequest) (*pb.AuthRoleRevokePermissionResponse, error) {
	c.note("role revoke-permission", r)
	return &pb.AuthRoleRevokePermissionResponse{Header: cannedHeader}, nil
}
