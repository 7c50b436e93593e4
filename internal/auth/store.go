package auth

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"sort"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/protobuf/proto"
)

// Buckets is the store's access to the database file, see mvcc.Store.
type Buckets interface {
	PutBucket(bucket string, key, value []byte)
	DeleteBucket(bucket string, key []byte)
	ReadBucket(bucket string, fn func(key, value []byte) error) error
}

// etcd's buckets, and the keys of the first: a byte 0 or 1, and 8 bytes big-endian.
const (
	bucketAuth  = "auth"
	bucketUsers = "authUsers"
	bucketRoles = "authRoles"
)

var (
	keyEnabled  = []byte("authEnabled")
	keyRevision = []byte("authRevision")
)

// NameMax is how long the name of a user or role may be, in bytes: the file's keys are no
// longer. (etcd takes longer ones and then ends on all members.)
const NameMax = 32768

// Store is the applier's hand on the state. Only the applier calls its methods, except
// State. Each returns an error of this package and has changed nothing then, or nil.
type Store struct {
	buckets Buckets
	state   atomic.Pointer[State]
	cost    int
	tokens  *Tokens
}

// Load reads the state from buckets; a new one gets its first revision. Tokens are given
// to users by tokens. cost is that of a bcrypt hash, for passwords in entries of etcd
// before 3.5, which carry them in plain text.
func Load(from Buckets, tokens *Tokens, cost int) (*Store, error) {
	s := &Store{buckets: from, tokens: tokens, cost: cost}
	return s, s.Reload()
}

// Reload reads the state again, after the buckets were replaced by a snapshot's.
func (s *Store) Reload() error {
	st := &State{users: make(map[string]*user), roles: make(map[string]*authpb.Role)}
	err := s.buckets.ReadBucket(bucketAuth, func(key, value []byte) error {
		switch {
		case bytes.Equal(key, keyEnabled):
			st.enabled = len(value) == 1 && value[0] == 1
		case bytes.Equal(key, keyRevision):
			if len(value) != 8 {
				return fmt.Errorf("bucket auth: the revision has %d bytes", len(value))
			}
			st.revision = binary.BigEndian.Uint64(value)
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = s.buckets.ReadBucket(bucketUsers, func(key, value []byte) error {
		u := &authpb.User{}
		if err := proto.Unmarshal(value, u); err != nil {
			return fmt.Errorf("bucket authUsers: user %q: %w", key, err)
		}
		st.users[string(key)] = &user{User: u}
		return nil
	})
	if err != nil {
		return err
	}
	err = s.buckets.ReadBucket(bucketRoles, func(key, value []byte) error {
		r := &authpb.Role{}
		if err := proto.Unmarshal(value, r); err != nil {
			return fmt.Errorf("bucket authRoles: role %q: %w", key, err)
		}
		st.roles[string(key)] = r
		return nil
	})
	if err != nil {
		return err
	}
	if st.revision == 0 {
		s.commit(st)
		return nil
	}
	s.state.Store(st)
	return nil
}

// State returns the newest state. Anybody may call it.
func (s *Store) State() *State { return s.state.Load() }

// next is a copy of the state, to be changed and committed. Its maps are the state's still.
func (s *Store) next() *State {
	next := *s.state.Load()
	return &next
}

// commit steps the revision and shows the new state.
func (s *Store) commit(next *State) {
	next.revision++
	s.buckets.PutBucket(bucketAuth, keyRevision, binary.BigEndian.AppendUint64(nil, next.revision))
	s.state.Store(next)
}

// putUser writes a user into the next state, whose users must be its own.
func (s *Store) putUser(next *State, u *authpb.User) {
	next.users[string(u.Name)] = &user{User: u}
	s.buckets.PutBucket(bucketUsers, u.Name, encode(u))
}

func (s *Store) putRole(next *State, r *authpb.Role) {
	next.roles = maps.Clone(next.roles)
	next.roles[string(r.Name)] = r
	s.buckets.PutBucket(bucketRoles, r.Name, encode(r))
}

func encode(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic("auth: encode: " + err.Error()) // its strings were decoded, and so are valid
	}
	return b
}

// Enable switches permissions on. The revision stays.
func (s *Store) Enable() error {
	next := s.next()
	if next.enabled {
		return nil
	}
	root := next.users[Root]
	switch {
	case root == nil:
		return ErrRootUserNotExist
	case !isRoot(root):
		return ErrRootRoleNotExist
	}
	next.enabled = true
	s.buckets.PutBucket(bucketAuth, keyEnabled, []byte{1})
	s.state.Store(next)
	return nil
}

// Disable switches permissions off.
func (s *Store) Disable() {
	next := s.next()
	if !next.enabled {
		return
	}
	next.enabled = false
	s.buckets.PutBucket(bucketAuth, keyEnabled, []byte{0})
	s.commit(next)
	s.tokens.clear()
}

// Authenticate gives a token to a user whose password was found right before the entry
// was proposed: prefix and index, its place in the log, make a simple one, which is good
// at every member then. "" where tokens are signed, see Tokens.Sign.
func (s *Store) Authenticate(name, prefix string, index uint64, now time.Time) (token string, err error) {
	st := s.State()
	if !st.enabled {
		return "", ErrNotEnabled
	}
	if u := st.users[name]; u == nil || u.GetOptions().GetNoPassword() {
		return "", ErrFailed
	}
	return s.tokens.assign(name, prefix, index, now), nil
}

// UserAdd adds a user.
func (s *Store) UserAdd(r *pb.AuthUserAddRequest) error {
	if r.Name == "" {
		return ErrUserEmpty
	}
	next := s.next()
	if next.users[r.Name] != nil {
		return ErrUserExists
	}
	if len(r.Name) > NameMax {
		return ErrInvalidMgmt
	}
	options := r.Options
	if options == nil {
		options = &authpb.UserAddOptions{}
	}
	var password []byte
	if !options.NoPassword {
		var err error
		if password, err = s.password(r.Password, r.HashedPassword); err != nil {
			return err
		}
	}
	next.users = maps.Clone(next.users)
	s.putUser(next, &authpb.User{Name: []byte(r.Name), Password: password, Options: options})
	s.commit(next)
	return nil
}

// password is the hash that an entry carries, in base64.
func (s *Store) password(plain, hashed string) ([]byte, error) {
	if plain != "" && hashed == "" {
		// An entry of etcd before 3.5. Members salt it each for itself, there as here.
		if b, err := bcrypt.GenerateFromPassword([]byte(plain), s.cost); err == nil {
			return b, nil
		}
		return nil, ErrNoPasswordUser
	}
	b, err := base64.StdEncoding.DecodeString(hashed)
	if err != nil {
		return nil, ErrNoPasswordUser
	}
	return b, nil
}

// UserDelete deletes a user.
func (s *Store) UserDelete(r *pb.AuthUserDeleteRequest) error {
	next := s.next()
	switch {
	case next.enabled && r.Name == Root:
		return ErrInvalidMgmt
	case next.users[r.Name] == nil:
		return ErrUserNotFound
	}
	next.users = maps.Clone(next.users)
	delete(next.users, r.Name)
	s.buckets.DeleteBucket(bucketUsers, []byte(r.Name))
	s.commit(next)
	s.tokens.dropUser(r.Name)
	return nil
}

// UserChangePassword gives a user another password.
func (s *Store) UserChangePassword(r *pb.AuthUserChangePasswordRequest) error {
	next := s.next()
	u := next.users[r.Name]
	if u == nil {
		return ErrUserNotFound
	}
	var password []byte
	if !u.GetOptions().GetNoPassword() {
		var err error
		if password, err = s.password(r.Password, r.HashedPassword); err != nil {
			return err
		}
	}
	next.users = maps.Clone(next.users)
	s.putUser(next, &authpb.User{Name: []byte(r.Name), Roles: u.Roles, Password: password, Options: u.Options})
	s.commit(next)
	s.tokens.dropUser(r.Name)
	return nil
}

// UserGrantRole gives a role to a user. One that it has already changes nothing, nor the
// revision.
func (s *Store) UserGrantRole(r *pb.AuthUserGrantRoleRequest) error {
	next := s.next()
	u := next.users[r.User]
	switch {
	case u == nil:
		return ErrUserNotFound
	case r.Role != Root && next.roles[r.Role] == nil:
		return ErrRoleNotFound
	}
	if _, has := slices.BinarySearch(u.Roles, r.Role); has {
		return nil
	}
	next.users = maps.Clone(next.users)
	changed := proto.CloneOf(u.User)
	changed.Roles = append(changed.Roles, r.Role)
	slices.Sort(changed.Roles)
	s.putUser(next, changed)
	s.commit(next)
	return nil
}

// UserRevokeRole takes a role from a user.
func (s *Store) UserRevokeRole(r *pb.AuthUserRevokeRoleRequest) error {
	next := s.next()
	if next.enabled && r.Name == Root && r.Role == Root {
		return ErrInvalidMgmt
	}
	u := next.users[r.Name]
	if u == nil {
		return ErrUserNotFound
	}
	changed, had := without(u.User, r.Role)
	if !had {
		return ErrRoleNotGranted
	}
	next.users = maps.Clone(next.users)
	s.putUser(next, changed)
	s.commit(next)
	return nil
}

// without is u without a role, and whether it had it.
func without(u *authpb.User, role string) (*authpb.User, bool) {
	var roles []string
	for _, r := range u.Roles {
		if r != role {
			roles = append(roles, r)
		}
	}
	return &authpb.User{Name: u.Name, Password: u.Password, Options: u.Options, Roles: roles}, len(roles) < len(u.Roles)
}

// RoleAdd adds a role without permissions.
func (s *Store) RoleAdd(r *pb.AuthRoleAddRequest) error {
	next := s.next()
	switch {
	case r.Name == "":
		return ErrRoleEmpty
	case next.roles[r.Name] != nil:
		return ErrRoleExists
	case len(r.Name) > NameMax:
		return ErrInvalidMgmt
	}
	s.putRole(next, &authpb.Role{Name: []byte(r.Name)})
	s.commit(next)
	return nil
}

// RoleDelete deletes a role and takes it from all users.
func (s *Store) RoleDelete(r *pb.AuthRoleDeleteRequest) error {
	next := s.next()
	switch {
	case next.enabled && r.Role == Root:
		return ErrInvalidMgmt
	case next.roles[r.Role] == nil:
		return ErrRoleNotFound
	}
	next.roles = maps.Clone(next.roles)
	delete(next.roles, r.Role)
	s.buckets.DeleteBucket(bucketRoles, []byte(r.Role))
	next.users = maps.Clone(next.users)
	for _, name := range next.Users() {
		if changed, had := without(next.users[name].User, r.Role); had {
			s.putUser(next, changed)
		}
	}
	s.commit(next)
	return nil
}

// RoleGrantPermission gives a role a permission, or changes the one for the same range.
func (s *Store) RoleGrantPermission(r *pb.AuthRoleGrantPermissionRequest) error {
	p := r.Perm
	if p == nil {
		return ErrPermissionNotGiven
	}
	if len(p.Key) == 0 || len(p.RangeEnd) > 0 && !isOpen(p.RangeEnd) && bytes.Compare(p.Key, p.RangeEnd) >= 0 {
		return ErrInvalidMgmt
	}
	next := s.next()
	role := next.roles[r.Name]
	if role == nil {
		return ErrRoleNotFound
	}
	changed := proto.CloneOf(role)
	perms := changed.KeyPermission
	// Only the first of several ranges with the same beginning is found here, so that a
	// range may stand in a role twice, with the rights of both. So it is with etcd.
	i := sort.Search(len(perms), func(i int) bool { return bytes.Compare(perms[i].Key, p.Key) >= 0 })
	if i < len(perms) && bytes.Equal(perms[i].Key, p.Key) && bytes.Equal(perms[i].RangeEnd, p.RangeEnd) {
		perms[i].PermType = p.PermType
	} else {
		perms = append(perms, &authpb.Permission{Key: p.Key, RangeEnd: p.RangeEnd, PermType: p.PermType})
		// The order of ranges with the same beginning is in the file, and so must be what
		// this very function makes of it.
		sort.Sort(byKey(perms))
		changed.KeyPermission = perms
	}
	s.putRole(next, changed)
	s.commit(next)
	return nil
}

type byKey []*authpb.Permission

func (p byKey) Len() int           { return len(p) }
func (p byKey) Less(i, j int) bool { return bytes.Compare(p[i].Key, p[j].Key) < 0 }
func (p byKey) Swap(i, j int)      { p[i], p[j] = p[j], p[i] }

// RoleRevokePermission takes a permission from a role.
func (s *Store) RoleRevokePermission(r *pb.AuthRoleRevokePermissionRequest) error {
	next := s.next()
	role := next.roles[r.Role]
	if role == nil {
		return ErrRoleNotFound
	}
	changed := &authpb.Role{Name: role.Name}
	for _, p := range role.KeyPermission {
		if !bytes.Equal(p.Key, r.Key) || !bytes.Equal(p.RangeEnd, r.RangeEnd) {
			changed.KeyPermission = append(changed.KeyPermission, p)
		}
	}
	if len(changed.KeyPermission) == len(role.KeyPermission) {
		return ErrPermissionNotGranted
	}
	s.putRole(next, changed)
	s.commit(next)
	return nil
}
