package auth

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	mrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/crypto/bcrypt"
)

// memory is Buckets without a file.
type memory map[string]map[string][]byte

func (m memory) PutBucket(bucket string, key, value []byte) {
	if m[bucket] == nil {
		m[bucket] = make(map[string][]byte)
	}
	m[bucket][string(key)] = bytes.Clone(value)
}

func (m memory) DeleteBucket(bucket string, key []byte) { delete(m[bucket], string(key)) }

func (m memory) ReadBucket(bucket string, fn func(key, value []byte) error) error {
	for _, key := range slices.Sorted(maps.Keys(m[bucket])) {
		if err := fn([]byte(key), m[bucket][key]); err != nil {
			return err
		}
	}
	return nil
}

func newStore(t testing.TB) (*Store, memory) {
	t.Helper()
	tokens, err := NewTokens("simple", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	m := make(memory)
	s, err := Load(m, tokens, bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return s, m
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	for i, err := range errs {
		if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
}

func grant(s *Store, role, key, end string, kind authpb.Permission_Type) error {
	return s.RoleGrantPermission(&pb.AuthRoleGrantPermissionRequest{Name: role, Perm: &authpb.Permission{PermType: kind, Key: []byte(key), RangeEnd: []byte(end)}})
}

// withUsers is a store with root and u, which has the role r, switched on.
func withUsers(t testing.TB) (*Store, memory) {
	s, m := newStore(t)
	hash, err := NewPasswords(bcrypt.MinCost).Hash(t.Context(), "secret")
	must(t, err,
		s.UserAdd(&pb.AuthUserAddRequest{Name: Root, HashedPassword: hash}),
		s.UserGrantRole(&pb.AuthUserGrantRoleRequest{User: Root, Role: Root}),
		s.UserAdd(&pb.AuthUserAddRequest{Name: "u", HashedPassword: hash}),
		s.UserAdd(&pb.AuthUserAddRequest{Name: "cert", Options: &authpb.UserAddOptions{NoPassword: true}}),
		s.RoleAdd(&pb.AuthRoleAddRequest{Name: "r"}),
		s.UserGrantRole(&pb.AuthUserGrantRoleRequest{User: "u", Role: "r"}),
		s.Enable())
	return s, m
}

func TestPermit(t *testing.T) {
	s, _ := withUsers(t)
	must(t, grant(s, "r", "b", "d", authpb.Permission_READ), grant(s, "r", "d", "f", authpb.Permission_READWRITE),
		grant(s, "r", "k", "", authpb.Permission_WRITE), grant(s, "r", "x", "\x00", authpb.Permission_READ))
	st := s.State()
	who := Identity{"u", st.Revision()}
	for _, tc := range []struct {
		access   Access
		key, end string
		want     error
	}{
		{Read, "a", "", ErrDenied},
		{Read, "b", "", nil},
		{Read, "c\xff", "", nil},
		{Write, "c", "", ErrDenied},
		{Read, "b", "f", nil}, // two permissions that touch
		{Read, "b", "f\x00", ErrDenied},
		{Read, "a", "c", ErrDenied},
		{Write, "d", "f", nil},
		{Write, "k", "", nil},
		{Read, "k", "", ErrDenied},
		{Write, "k", "k\x00", nil},
		{Write, "k", "l", ErrDenied},
		{Read, "x", "\x00", nil},
		{Read, "y", "\x00", nil},
		{Read, "w", "\x00", ErrDenied},
		{Read, "zz", "", nil},
		{Read, "b", "b", nil}, // nothing, at a key that may be read
		{Read, "a", "a", ErrDenied},
	} {
		if err := st.Permit(who, tc.access, []byte(tc.key), []byte(tc.end)); err != tc.want {
			t.Errorf("write %v %q to %q: got %v, want %v", tc.access, tc.key, tc.end, err, tc.want)
		}
	}
	for _, tc := range []struct {
		name            string
		who             Identity
		permit, isAdmin error
	}{
		{"nobody", Identity{}, ErrUserEmpty, ErrUserEmpty},
		{"an old revision", Identity{"u", st.Revision() - 1}, ErrOldRevision, ErrDenied},
		{"a later revision", Identity{"u", st.Revision() + 1}, nil, ErrDenied},
		{"no such user", Identity{"v", st.Revision()}, ErrDenied, ErrUserNotFound},
		{"root", Identity{Root, st.Revision()}, nil, nil},
		{"root with an old revision", Identity{Root, 1}, ErrOldRevision, nil},
	} {
		if err := st.Permit(tc.who, Read, []byte("b"), nil); err != tc.permit {
			t.Errorf("%s: got %v, want %v", tc.name, err, tc.permit)
		}
		if err := st.PermitAdmin(tc.who); err != tc.isAdmin {
			t.Errorf("%s, admin: got %v, want %v", tc.name, err, tc.isAdmin)
		}
	}
	if err := st.PermitLease(who, [][]byte{[]byte("k"), []byte("a")}); err != ErrDenied {
		t.Errorf("a lease with another's key: %v", err)
	}
	if err := st.PermitLease(Identity{}, nil); err != nil {
		t.Errorf("a lease without keys: %v", err)
	}
}

// TestMergedRanges holds the merged ranges to a look at each permission alone.
func TestMergedRanges(t *testing.T) {
	letters := []string{"a", "b", "b\x00", "c", "d", "e", "f"}
	for seed := range uint64(2000) {
		r := mrand.New(mrand.NewPCG(seed, 1))
		var set ranges
		for range r.IntN(8) {
			p := &authpb.Permission{Key: []byte(letters[r.IntN(len(letters))])}
			switch end := letters[r.IntN(len(letters))]; {
			case r.IntN(4) == 0:
				p.RangeEnd = []byte{0}
			case end > string(p.Key):
				p.RangeEnd = []byte(end)
			}
			set.all = append(set.all, spanOf(p))
		}
		set.merge()
		covered := func(key string) bool {
			return slices.ContainsFunc(set.all, func(s span) bool {
				return compare(s.begin, []byte(key)) <= 0 && compare([]byte(key), s.end) < 0
			})
		}
		for i, key := range letters {
			if set.cover([]byte(key), nil) != covered(key) {
				t.Fatalf("seed %d: key %q: %v", seed, key, set.all)
			}
			// Beside a letter itself, all keys up to the next one are alike.
			whole := func(l string) bool { return covered(l) && (l == "b" || covered(l+"\x00")) }
			want := true
			for j := i + 1; j < len(letters); j++ {
				want = want && whole(letters[j-1])
				if got := set.cover([]byte(key), []byte(letters[j])); got != want {
					t.Fatalf("seed %d: %q to %q: got %v, want %v: %v", seed, key, letters[j], got, want, set.all)
				}
			}
			if got := set.cover([]byte(key), []byte{0}); got != (want && whole(letters[len(letters)-1]) && covered("zz")) {
				t.Fatalf("seed %d: from %q on: %v: %v", seed, key, got, set.all)
			}
		}
	}
}

// TestGrownTree checks that the tree for backward spans keeps the rules of a red-black tree.
func TestGrownTree(t *testing.T) {
	r := mrand.New(mrand.NewPCG(1, 2))
	var set ranges
	for range 3000 {
		a, b := fmt.Sprint(r.IntN(500)), fmt.Sprint(r.IntN(500))
		set.insert(&node{span: span{[]byte(min(a, b)), []byte(max(a, b) + "x")}, red: true})
	}
	var check func(n *node) (black int)
	check = func(n *node) int {
		if n == nil {
			return 1
		}
		for _, c := range []*node{n.left, n.right} {
			if c != nil && (c.parent != n || n.red && c.red) {
				t.Fatal("a node has a wrong parent or two reds follow each other")
			}
		}
		if n.left != nil && compare(n.left.begin, n.begin) > 0 || n.right != nil && compare(n.right.begin, n.begin) < 0 {
			t.Fatal("not in order")
		}
		l, r := check(n.left), check(n.right)
		if l != r {
			t.Fatal("the paths are not equally black")
		}
		if !n.red {
			l++
		}
		return l
	}
	check(set.root)
}

func TestStateIsKept(t *testing.T) {
	s, m := withUsers(t)
	must(t, grant(s, "r", "a", "b", authpb.Permission_READ))
	st := s.State()
	again, err := Load(m, s.tokens, bcrypt.MinCost)
	must(t, err)
	if got := again.State(); got.Revision() != st.Revision() || !got.Enabled() || !slices.Equal(got.Users(), st.Users()) || !slices.Equal(got.Roles(), st.Roles()) {
		t.Errorf("got %v, want %v", got, st)
	}
	if err := again.State().Permit(Identity{"u", st.Revision()}, Read, []byte("a"), nil); err != nil {
		t.Error(err)
	}
	// A new store has revision 1 on disk from the start, as etcd's.
	_, m = newStore(t)
	if got := m["auth"]["authRevision"]; !bytes.Equal(got, []byte{0, 0, 0, 0, 0, 0, 0, 1}) {
		t.Errorf("revision %x", got)
	}
	for _, broken := range []memory{
		{"auth": {"authRevision": {1}}}, {"authUsers": {"u": {0xff}}}, {"authRoles": {"r": {0xff}}},
	} {
		if _, err := Load(broken, s.tokens, bcrypt.MinCost); err == nil {
			t.Errorf("%v was loaded", broken)
		}
	}
}

func TestLongNames(t *testing.T) {
	s, _ := newStore(t)
	long := string(bytes.Repeat([]byte("x"), NameMax+1))
	if err := s.UserAdd(&pb.AuthUserAddRequest{Name: long, Options: &authpb.UserAddOptions{NoPassword: true}}); err != ErrInvalidMgmt {
		t.Error(err)
	}
	if err := s.RoleAdd(&pb.AuthRoleAddRequest{Name: long}); err != ErrInvalidMgmt {
		t.Error(err)
	}
}

func TestOldEntryWithPassword(t *testing.T) {
	s, _ := withUsers(t)
	must(t, s.UserAdd(&pb.AuthUserAddRequest{Name: "old", Password: "plain"}))
	if err := NewPasswords(bcrypt.MinCost).Check(t.Context(), s.State(), "old", "plain", time.Now()); err != nil {
		t.Error(err)
	}
}

func TestSimpleTokens(t *testing.T) {
	s, _ := withUsers(t)
	now := time.Unix(1000, 0)
	token, err := s.Authenticate("u", s.tokens.Prefix(), 7, now)
	must(t, err)
	rev := s.State().Revision()
	known := func(at time.Time) bool {
		who, ok := s.tokens.Identify(token, rev, at)
		if ok && who != (Identity{"u", rev}) {
			t.Errorf("identified %v", who)
		}
		return ok
	}
	if s.tokens.Awaited(token) != 7 || s.tokens.Awaited("x") != 0 || s.tokens.Awaited("x.y") != 0 {
		t.Error("a token's place in the log is not found")
	}
	if !known(now.Add(50*time.Second)) || !known(now.Add(100*time.Second)) {
		t.Error("use did not prolong a token")
	}
	if known(now.Add(161 * time.Second)) {
		t.Error("a token outlived its time")
	}
	token, err = s.Authenticate("u", s.tokens.Prefix(), 8, now)
	must(t, err, s.UserChangePassword(&pb.AuthUserChangePasswordRequest{Name: "u"}))
	if known(now) {
		t.Error("a token outlived the password")
	}
	token, err = s.Authenticate("u", s.tokens.Prefix(), 9, now)
	must(t, err)
	s.Disable()
	if known(now) {
		t.Error("a token outlived the switch")
	}
	if _, err := s.Authenticate("u", "x", 10, now); err != ErrNotEnabled {
		t.Error(err)
	}
	if got := s.tokens.assign("u", "", 3, now); got != "" {
		t.Errorf("a token that can be guessed: %q", got)
	}
}

func TestSimpleTokensAreBounded(t *testing.T) {
	tokens, err := NewTokens("simple", time.Minute)
	must(t, err)
	now := time.Unix(1000, 0)
	for i := range uint64(simpleMax + 100) {
		tokens.assign("u", "x", i, now)
	}
	if n := len(tokens.simple); n > simpleMax {
		t.Errorf("%d tokens", n)
	}
	if _, ok := tokens.Identify("x.0", 1, now); ok {
		t.Error("the oldest is good still")
	}
	if _, ok := tokens.Identify(fmt.Sprintf("x.%d", simpleMax), 1, now); !ok {
		t.Error("a new one is not good")
	}
	// One that lives on does not keep those behind it that are over.
	tokens.clear()
	tokens.assign("u", "keep", 1, now)
	for i := range uint64(50_000) {
		now = now.Add(time.Second)
		tokens.assign("u", "x", i, now)
		tokens.Identify("keep.1", 1, now)
	}
	if n := len(tokens.simple); n > 1000 {
		t.Errorf("%d tokens are kept, of which 61 are good", n)
	}
}

func TestTokenOptions(t *testing.T) {
	dir := t.TempDir()
	file := func(name, kind string, der []byte, err error) string {
		must(t, err)
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
		return path
	}
	pkcs8 := func(name string, private, public any) (priv, pub string) {
		der, err := x509.MarshalPKCS8PrivateKey(private)
		priv = file(name+".key", "PRIVATE KEY", der, err)
		der, err = x509.MarshalPKIXPublicKey(public)
		return priv, file(name+".pub", "PUBLIC KEY", der, err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	edPublic, edKey, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	rsaPriv, rsaPub := pkcs8("rsa", rsaKey, rsaKey.Public())
	edPriv, edPub := pkcs8("ed", edKey, edPublic)
	der, err := x509.MarshalECPrivateKey(ecKey)
	ecPriv := file("ec.key", "EC PRIVATE KEY", der, err)
	_, ecPub := pkcs8("ec8", ecKey, ecKey.Public())
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	_, otherPub := pkcs8("other", other, other.Public())

	now := time.Now()
	who := Identity{"u", 42}
	for _, tc := range []struct {
		spec   string
		want   error
		verify string // a verify-only form of it
	}{
		{"simple", nil, ""},
		{"", ErrInvalidOptions, ""},
		{"other", ErrInvalidOptions, ""},
		{"jwt", ErrInvalidMethod, ""},
		{"jwt,sign-method", ErrInvalidOptions, ""},
		{"jwt,sign-method=RS256,sign-method=RS256", ErrInvalidOptions, ""},
		{"jwt,a=b=c", ErrInvalidOptions, ""},
		{"jwt,sign-method=none," + "priv-key=" + rsaPriv, errors.ErrUnsupported, ""},
		{"jwt,sign-method=RS256", ErrMissingKey, ""},
		{"jwt,sign-method=HS256", ErrMissingKey, ""},
		{"jwt,sign-method=RS256,priv-key=/none", ErrInvalidOptions, ""},
		{"jwt,sign-method=RS256,ttl=x,priv-key=" + rsaPriv, ErrInvalidOptions, ""},
		{"jwt,sign-method=RS256,priv-key=" + rsaPriv + ",pub-key=" + otherPub, ErrKeyMismatch, ""},
		{"jwt,sign-method=RS256,ttl=10m,priv-key=" + rsaPriv + ",pub-key=" + rsaPub, nil, "jwt,sign-method=RS256,pub-key=" + rsaPub},
		{"jwt,sign-method=PS512,priv-key=" + rsaPriv, nil, "jwt,sign-method=PS512,pub-key=" + rsaPub},
		{"jwt,sign-method=ES256,priv-key=" + ecPriv, nil, "jwt,sign-method=ES256,pub-key=" + ecPub},
		{"jwt,sign-method=EdDSA,priv-key=" + edPriv + ",pub-key=" + edPub, nil, "jwt,sign-method=EdDSA,pub-key=" + edPub},
		{"jwt,sign-method=HS256,priv-key=" + rsaPub + ",unknown=x", nil, ""},
	} {
		tokens, err := NewTokens(tc.spec, 0)
		if tc.want == errors.ErrUnsupported && err != nil {
			continue
		}
		if !errors.Is(err, tc.want) || tc.want == nil && err != nil {
			t.Errorf("%s: %v, want %v", tc.spec, err, tc.want)
		}
		if err != nil || !tokens.Signed() {
			continue
		}
		token, err := tokens.Sign(who, now)
		must(t, err)
		readers := []*Tokens{tokens}
		if tc.verify != "" {
			reader, err := NewTokens(tc.verify, 0)
			must(t, err)
			if _, err := reader.Sign(who, now); err != ErrVerifyOnly {
				t.Errorf("%s signs: %v", tc.verify, err)
			}
			readers = append(readers, reader)
		}
		for _, r := range readers {
			if got, ok := r.Identify(token, 99, now); !ok || got != who {
				t.Errorf("%s: identified %v, %v", tc.spec, got, ok)
			}
			if _, ok := r.Identify(token, 99, now.Add(time.Hour)); ok {
				t.Errorf("%s: good after its time", tc.spec)
			}
			if _, ok := r.Identify(token+"x", 99, now); ok {
				t.Errorf("%s: good with another signature", tc.spec)
			}
		}
	}
	// A public key must not pass for the secret of another method.
	signed, err := NewTokens("jwt,sign-method=HS256,priv-key="+rsaPub, 0)
	must(t, err)
	forged, err := signed.Sign(Identity{Root, 42}, now)
	must(t, err)
	victim, err := NewTokens("jwt,sign-method=RS256,pub-key="+rsaPub, 0)
	must(t, err)
	if _, ok := victim.Identify(forged, 1, now); ok {
		t.Error("a token signed with the public key is good")
	}
}

func TestPasswords(t *testing.T) {
	s, _ := withUsers(t)
	p := NewPasswords(bcrypt.MinCost)
	now := time.Now()
	for _, tc := range []struct {
		user, password string
		want           error
	}{
		{"u", "secret", nil}, {"u", "secret", nil}, {"u", "wrong", ErrFailed}, {"v", "secret", ErrFailed}, {"cert", "", ErrNoPasswordUser},
	} {
		if err := p.Check(t.Context(), s.State(), tc.user, tc.password, now); err != tc.want {
			t.Errorf("%s %s: got %v, want %v", tc.user, tc.password, err, tc.want)
		}
	}
	// What was right is right without a turn, for a while and for this state alone.
	for len(p.turns) < cap(p.turns) {
		p.turns <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	check := func(at time.Time) error { return p.Check(ctx, s.State(), "u", "secret", at) }
	if err := check(now); err != nil {
		t.Errorf("again: %v", err)
	}
	if err := check(now.Add(2 * rightFor)); !errors.Is(err, context.Canceled) {
		t.Errorf("later: %v", err)
	}
	must(t, s.RoleAdd(&pb.AuthRoleAddRequest{Name: "another"}))
	if err := check(now); !errors.Is(err, context.Canceled) {
		t.Errorf("after a change: %v", err)
	}
	for range cap(p.turns) {
		<-p.turns
	}
	if _, err := p.Hash(t.Context(), string(bytes.Repeat([]byte("x"), 73))); err == nil {
		t.Error("a password of 73 bytes was hashed")
	}
	s.Disable()
	if err := p.Check(t.Context(), s.State(), "u", "secret", now); err != ErrNotEnabled {
		t.Errorf("off: %v", err)
	}
}

// TestReadersNeedNoLock lets readers look while the applier changes everything.
func TestReadersNeedNoLock(t *testing.T) {
	s, _ := withUsers(t)
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				st := s.State()
				if err := st.Permit(Identity{"u", st.Revision()}, Read, []byte("a"), []byte("b")); err != nil && err != ErrDenied {
					t.Error(err)
				}
				st.Users()
			}
		})
	}
	for i := range 2000 {
		key := fmt.Sprint("k", i%50)
		must(t, grant(s, "r", key, "", authpb.Permission_READ))
		if i%7 == 0 {
			must(t, s.RoleRevokePermission(&pb.AuthRoleRevokePermissionRequest{Role: "r", Key: []byte(key)}))
		}
	}
	close(done)
	wg.Wait()
}

// FuzzLoad checks that no bytes in the buckets crash a member, only keep it from starting.
func FuzzLoad(f *testing.F) {
	_, m := withUsers(f)
	f.Add(m[bucketAuth]["authRevision"], m[bucketUsers]["u"], []byte("\x0a\x01r\x12\x04\x12\x01a"))
	tokens, err := NewTokens("simple", 0)
	must(f, err)
	f.Fuzz(func(t *testing.T, revision, u, role []byte) {
		s, err := Load(memory{bucketAuth: {"authRevision": revision, "authEnabled": {1}}, bucketUsers: {"u": u}, bucketRoles: {"r": role}}, tokens, 4)
		if err != nil {
			return
		}
		st := s.State()
		for _, end := range []string{"", "\x00", "a", "z"} {
			_ = st.Permit(Identity{"u", ^uint64(0)}, Write, []byte("b"), []byte(end))
		}
	})
}

// FuzzToken checks that no token crashes a member or is anybody's without having been given.
func FuzzToken(f *testing.F) {
	simple, err := NewTokens("simple", 0)
	must(f, err)
	key := filepath.Join(f.TempDir(), "key")
	must(f, os.WriteFile(key, []byte("a secret"), 0o600))
	signed, err := NewTokens("jwt,sign-method=HS256,priv-key="+key, 0)
	must(f, err)
	f.Add("abc.12")
	f.Add("eyJhbGciOiJIUzI1NiJ9.e30.x")
	f.Fuzz(func(t *testing.T, token string) {
		simple.Awaited(token)
		for _, tokens := range []*Tokens{simple, signed} {
			if who, ok := tokens.Identify(token, 1, time.Now()); ok {
				t.Errorf("%q is %v", token, who)
			}
		}
	})
}

func BenchmarkPermit(b *testing.B) {
	s, _ := withUsers(b)
	for i := range 100 {
		must(b, grant(s, "r", fmt.Sprintf("key%03d", i), "", authpb.Permission_READWRITE))
	}
	st := s.State()
	who, key := Identity{"u", st.Revision()}, []byte("key050")
	b.ReportAllocs()
	for b.Loop() {
		if st.Permit(who, Write, key, nil) != nil {
			b.Fatal("denied")
		}
	}
}
