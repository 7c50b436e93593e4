// Package auth keeps users, roles and permissions, and tells who may do what.
//
// The state is replicated: the applier alone changes it, through Store, and keeps it in
// the buckets auth, authUsers and authRoles as etcd does. A refusal is part of the
// replicated history, too: a request is checked when it is applied, by the name and the
// revision in its entry, and every member must come to the same answer, etcd's included.
// So the checks and their order, the errors and the steps of the revision are etcd's.
//
// Anybody may read: a State never changes, and Store.State returns the newest.
//
// Beside the state stand the tokens (tokens.go, jwt.go), by which a member knows its
// clients again, and the passwords (password.go). Neither is part of the state.
package auth

import (
	"maps"
	"slices"

	"go.etcd.io/etcd/api/v3/authpb"
)

// Root is the user, and the role, that may do everything.
const Root = "root"

// Identity is who asks, and by which revision of the state that was found out. The zero
// Identity is nobody.
type Identity struct {
	User     string
	Revision uint64
}

// Access is what somebody wants to do with keys.
type Access bool

const (
	Read  Access = false
	Write Access = true
)

// State is all users and roles at one revision. It is immutable.
type State struct {
	enabled  bool
	revision uint64
	users    map[string]*user
	roles    map[string]*authpb.Role
}

// user is a user and, once asked for, what it may do. The messages of users and roles are
// shared by states and not changed.
type user struct {
	*authpb.User
	perms permissionCache
}

// Enabled reports whether permissions are checked.
func (s *State) Enabled() bool { return s.enabled }

// Revision is stepped by every change but that of switching on. It begins with 1.
func (s *State) Revision() uint64 { return s.revision }

// Permit says whether who may read or write the key, or all keys from key up to end (a
// zero byte: to the last). While the state is off everybody may. ErrUserEmpty is for
// nobody, ErrOldRevision for an identity from before the last change, ErrDenied else.
func (s *State) Permit(who Identity, access Access, key, end []byte) error {
	switch {
	case !s.enabled:
		return nil
	case who.Revision == 0:
		return ErrUserEmpty
	case who.Revision < s.revision:
		return ErrOldRevision
	}
	u := s.users[who.User]
	if u == nil || !isRoot(u) && !s.permissions(u).of(access).cover(key, end) {
		return ErrDenied
	}
	return nil
}

// PermitAdmin says whether who may change users, roles and members: ErrUserEmpty,
// ErrUserNotFound, ErrDenied. The revision does not matter.
func (s *State) PermitAdmin(who Identity) error {
	if !s.enabled {
		return nil
	}
	if who.User == "" {
		return ErrUserEmpty
	}
	switch u := s.users[who.User]; {
	case u == nil:
		return ErrUserNotFound
	case !isRoot(u):
		return ErrDenied
	}
	return nil
}

// PermitLease says whether who may attach to a lease, end it or renew it, which takes
// the right to write every key on it.
func (s *State) PermitLease(who Identity, keys [][]byte) error {
	return s.permitKeys(who, Write, keys)
}

// PermitLeaseKeys says whether who may see the keys on a lease.
func (s *State) PermitLeaseKeys(who Identity, keys [][]byte) error {
	return s.permitKeys(who, Read, keys)
}

func (s *State) permitKeys(who Identity, access Access, keys [][]byte) error {
	if s.PermitAdmin(who) == nil {
		return nil
	}
	for _, key := range keys {
		if err := s.Permit(who, access, key, nil); err != nil {
			return err
		}
	}
	return nil
}

// isRoot reports whether u has the role root. Roles are in order.
func isRoot(u *user) bool {
	_, found := slices.BinarySearch(u.Roles, Root)
	return found
}

// User returns what a user may see of itself: ErrUserNotFound, or its roles in order. They
// must not be changed.
func (s *State) User(name string) (roles []string, err error) {
	u := s.users[name]
	if u == nil {
		return nil, ErrUserNotFound
	}
	return u.Roles, nil
}

// HasRole reports whether there is such a user and has the role.
func (s *State) HasRole(name, role string) bool {
	u := s.users[name]
	return u != nil && slices.Contains(u.Roles, role)
}

// Role returns the permissions of a role, which must not be changed, or ErrRoleNotFound.
// The role root is shown with all keys.
func (s *State) Role(name string) ([]*authpb.Permission, error) {
	r := s.roles[name]
	switch {
	case r == nil:
		return nil, ErrRoleNotFound
	case name == Root:
		return []*authpb.Permission{{PermType: authpb.Permission_READWRITE, Key: []byte{}, RangeEnd: []byte{0}}}, nil
	}
	return r.KeyPermission, nil
}

// Users and Roles are all names in order.
func (s *State) Users() []string { return slices.Sorted(maps.Keys(s.users)) }
func (s *State) Roles() []string { return slices.Sorted(maps.Keys(s.roles)) }
