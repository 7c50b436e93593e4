package formats

import (
	"bytes"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"quorate/internal/auth"
	"quorate/internal/fsm"
	"quorate/internal/kv"
	"quorate/internal/lease"
	"quorate/internal/membership"
	"quorate/internal/mvcc"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	etcdauth "go.etcd.io/etcd/server/v3/auth"
	etcdmembership "go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3alarm"
	"go.etcd.io/etcd/server/v3/etcdserver/apply"
	"go.etcd.io/etcd/server/v3/etcdserver/cindex"
	etcdlease "go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
	etcdmvcc "go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

var authTime = flag.Duration("auth", 10*time.Second, "how long random entries about users are applied to both state machines")

// TestAuthAgainstEtcd applies the same random entries, about users, roles and keys and by
// users of all kinds, to quorate's state machine and to etcd's. Both must refuse the same
// for the same reason and keep the same bytes: a member that differs in one entry differs
// for ever.
func TestAuthAgainstEtcd(t *testing.T) {
	seed := rand.Uint64()
	if s := os.Getenv("AUTH_SEED"); s != "" {
		if _, err := fmt.Sscan(s, &seed); err != nil {
			t.Fatal(err)
		}
	}
	end := time.Now().Add(*authTime)
	applied, refused := 0, make(map[string]int)
	for ; time.Now().Before(end) && !t.Failed(); seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			g := &generator{Rand: rand.New(rand.NewPCG(seed, 0))}
			ours, theirs := newOurs(t), newTheirs(t)
			for range 600 {
				r := g.request()
				err, want := ours.apply(r), theirs.apply(r)
				applied++
				if r.AuthUserGet != nil {
					err, want = "", "" // a read: whoever proposed it answers it
				}
				if want != "" {
					refused[want]++
				}
				if err != want {
					t.Fatalf("%v\ngot  %q\nwant %q", r, err, want)
				}
				st := ours.users.State()
				g.revision = st.Revision()
				if st.Enabled() != theirs.users.IsAuthEnabled() || st.Revision() != theirs.users.Revision() {
					t.Fatalf("%v\nenabled %v, want %v; revision %d, want %d", r, st.Enabled(), theirs.users.IsAuthEnabled(), st.Revision(), theirs.users.Revision())
				}
			}
			compareFiles(t, ours.close(t), theirs.close())
		})
	}
	t.Logf("%d entries; refused: %v", applied, refused)
	if len(refused) < 18 && !t.Failed() {
		t.Errorf("only %d kinds of refusals", len(refused))
	}
}

// ---- the two state machines ----

type quorateMachine struct {
	store   *mvcc.Store
	users   *auth.Store
	machine *fsm.Machine
	path    string
	index   uint64
}

func newOurs(t *testing.T) *quorateMachine {
	o := &quorateMachine{path: filepath.Join(t.TempDir(), "ours")}
	var err error
	if o.store, err = mvcc.Open(o.path, mvcc.Options{NoSync: true}); err != nil {
		t.Fatal(err)
	}
	tokens, err := auth.NewTokens("simple", 0)
	if err != nil {
		t.Fatal(err)
	}
	if o.users, err = auth.Load(o.store, tokens, 4); err != nil {
		t.Fatal(err)
	}
	cluster, err := membership.Load(o.store, membership.Version{Major: 3, Minor: 7, Patch: 1}, 1)
	if err != nil {
		t.Fatal(err)
	}
	alarms, err := fsm.LoadAlarms(o.store)
	if err != nil {
		t.Fatal(err)
	}
	leases := lease.New(1)
	o.machine = fsm.New(o.store, func() *lease.Lessor { return leases }, cluster, alarms, o.users)
	return o
}

// apply returns why r was refused, "" if it was not.
func (o *quorateMachine) apply(r *pb.InternalRaftRequest) string {
	data, err := proto.Marshal(r)
	if err != nil {
		panic(err)
	}
	o.index++
	_, res, err := o.machine.Apply(&raftpb.Entry{Index: &o.index, Term: new(uint64(1)), Data: data}, time.Now())
	if err != nil {
		panic(err)
	}
	o.store.Publish(o.index, 1)
	return o.text(res.Err)
}

// text is an error in etcd's words.
func (o *quorateMachine) text(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, kv.ErrKeyNotFound):
		return "etcdserver: key not found"
	case errors.Is(err, kv.ErrLeaseNotFound):
		return "lease not found"
	case errors.Is(err, kv.ErrLeaseExists):
		return "lease already exists"
	}
	return err.Error()
}

func (o *quorateMachine) close(t *testing.T) string {
	if err := o.store.Close(); err != nil {
		t.Fatal(err)
	}
	return o.path
}

type etcdMachine struct {
	be      backend.Backend
	users   etcdauth.AuthStore
	applier apply.UberApplier
	path    string
	stop    func()
}

func newTheirs(t *testing.T) *etcdMachine {
	lg := zap.NewNop()
	e := &etcdMachine{path: filepath.Join(t.TempDir(), "theirs")}
	conf := backend.DefaultBackendConfig(lg)
	conf.Path, conf.UnsafeNoFsync = e.path, true
	e.be = backend.New(conf)
	cluster := etcdmembership.NewCluster(lg)
	lessor := etcdlease.NewLessor(lg, e.be, nil, etcdlease.LessorConfig{MinLeaseTTL: 1})
	store := etcdmvcc.NewStore(lg, e.be, lessor, etcdmvcc.StoreConfig{})
	alarms, err := v3alarm.NewAlarmStore(lg, schema.NewAlarmBackend(lg, e.be))
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	close(closed)
	tokens, err := etcdauth.NewTokenProvider(lg, "simple", func(uint64) <-chan struct{} { return closed }, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	e.users = etcdauth.NewAuthStore(lg, schema.NewAuthBackend(lg, e.be), tokens, 4)
	e.applier = apply.NewUberApplier(apply.ApplierOptions{
		Logger: lg, KV: store, AlarmStore: alarms, AuthStore: e.users, Lessor: lessor, Cluster: cluster,
		RaftStatus: raftStatus{}, ConsistentIndex: cindex.NewConsistentIndex(e.be), Backend: e.be,
		QuotaBackendBytesCfg: 1 << 30, WarningApplyDuration: time.Hour,
	})
	e.stop = func() {
		lessor.Stop()
		if err := errors.Join(e.users.Close(), store.Close(), e.be.Close()); err != nil {
			t.Error(err)
		}
	}
	return e
}

type raftStatus struct{}

func (raftStatus) MemberID() (id types.ID) { return 1 }
func (raftStatus) Leader() (id types.ID)   { return 1 }
func (raftStatus) CommittedIndex() uint64  { return 1 }
func (raftStatus) AppliedIndex() uint64    { return 1 }
func (raftStatus) Term() uint64            { return 1 }

func (e *etcdMachine) apply(r *pb.InternalRaftRequest) string {
	res := e.applier.Apply(&apply.InternalRaftRequestWrapper{InternalRaftRequest: proto.CloneOf(r)}, true)
	if res.Err != nil {
		return res.Err.Error()
	}
	return ""
}

func (e *etcdMachine) close() string {
	e.stop()
	return e.path
}

// compareFiles holds the buckets that the entries changed against each other.
func compareFiles(t *testing.T, ours, theirs string) {
	a, b := contents(t, ours), contents(t, theirs)
	for key, want := range b {
		if got, ok := a[key]; !ok || !bytes.Equal(got, want) {
			t.Errorf("%s: got %x (%v), want %x", key, got, ok, want)
		}
	}
	for key := range a {
		if _, ok := b[key]; !ok {
			t.Errorf("%s is not in etcd's file", key)
		}
	}
}

func contents(t *testing.T, path string) map[string][]byte {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	m := make(map[string][]byte)
	err = db.View(func(tx *bbolt.Tx) error {
		for _, name := range []string{"auth", "authUsers", "authRoles", "key"} {
			b := tx.Bucket([]byte(name))
			if b == nil {
				return fmt.Errorf("no bucket %s", name)
			}
			err := b.ForEach(func(k, v []byte) error {
				m[fmt.Sprintf("%s/%q", name, k)] = bytes.Clone(v)
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// ---- random entries ----

type generator struct {
	*rand.Rand
	revision uint64 // of users and roles now
	id       uint64
}

func pick[T any](g *generator, of ...T) T { return of[g.IntN(len(of))] }

func (g *generator) user() string {
	return pick(g, "root", "root", "alice", "bob", "carol", "nobody", "")
}
func (g *generator) role() string { return pick(g, "root", "reader", "writer", "a", "z", "none") }
func (g *generator) key() []byte {
	return []byte(pick(g, "\x00", "a", "b", "b\x00", "bb", "c", "d", "e", "f", "g", "h", "k", "m", "z", "\xff", "\xff\xff"))
}

// end is the end of a range; many are below their beginning.
func (g *generator) end() []byte {
	switch g.IntN(6) {
	case 0, 1:
		return nil
	case 2:
		return []byte{0}
	}
	return g.key()
}

// request is an entry by somebody: often root, with the newest revision or an older one.
func (g *generator) request() *pb.InternalRaftRequest {
	g.id++
	r := &pb.InternalRaftRequest{Header: &pb.RequestHeader{ID: g.id}}
	admin := g.IntN(10) < 6
	switch n := g.IntN(20); {
	case n < 14 && admin, n < 10:
		r.Header.Username = "root"
	default:
		r.Header.Username = g.user()
	}
	switch g.IntN(12) {
	case 0:
	case 1:
		r.Header.AuthRevision = g.revision - 1
	case 2:
		r.Header.AuthRevision = g.revision + 1
	default:
		r.Header.AuthRevision = g.revision
	}
	if admin {
		g.admin(r)
		return r
	}
	if g.IntN(3) > 0 {
		r.Header.Username = pick(g, "alice", "bob", "carol")
	}
	switch g.IntN(8) {
	case 0, 1:
		r.Put = g.put()
	case 2:
		r.DeleteRange = g.delete()
	case 3, 4, 5:
		r.Txn = g.txn(2)
	case 6:
		r.LeaseGrant = &pb.LeaseGrantRequest{ID: g.Int64N(6) + 1, TTL: 100}
	case 7:
		r.LeaseRevoke = &pb.LeaseRevokeRequest{ID: g.Int64N(6) + 1}
	}
	return r
}

// admin makes r a change of users or roles.
func (g *generator) admin(r *pb.InternalRaftRequest) {
	hashed := func() string { return base64.StdEncoding.EncodeToString([]byte(fmt.Sprint("hash", g.IntN(9)))) }
	switch g.IntN(24) {
	case 0, 1:
		r.AuthEnable = &pb.AuthEnableRequest{}
	case 2:
		if g.IntN(4) == 0 {
			r.AuthDisable = &pb.AuthDisableRequest{}
		} else {
			r.AuthStatus = &pb.AuthStatusRequest{}
		}
	case 3, 4, 5:
		r.AuthUserAdd = &pb.AuthUserAddRequest{Name: g.user(), HashedPassword: pick(g, hashed(), hashed(), "", "?"),
			Options: pick(g, nil, &authpb.UserAddOptions{}, &authpb.UserAddOptions{NoPassword: true})}
	case 6:
		if g.IntN(3) == 0 {
			r.AuthUserDelete = &pb.AuthUserDeleteRequest{Name: g.user()}
		}
	case 7:
		r.AuthUserChangePassword = &pb.AuthUserChangePasswordRequest{Name: g.user(), HashedPassword: pick(g, hashed(), "", "?")}
	case 8, 9, 10:
		r.AuthUserGrantRole = &pb.AuthUserGrantRoleRequest{User: g.user(), Role: g.role()}
		if r.AuthUserGrantRole.User != "root" && r.AuthUserGrantRole.Role == "root" && g.IntN(5) > 0 {
			r.AuthUserGrantRole.Role = "a"
		}
	case 11:
		r.AuthUserRevokeRole = &pb.AuthUserRevokeRoleRequest{Name: g.user(), Role: g.role()}
	case 12, 13:
		r.AuthRoleAdd = &pb.AuthRoleAddRequest{Name: pick(g, g.role(), g.role(), g.role(), "")}
	case 14:
		if g.IntN(4) == 0 {
			r.AuthRoleDelete = &pb.AuthRoleDeleteRequest{Role: g.role()}
		}
	case 15, 16, 17, 18, 19:
		r.AuthRoleGrantPermission = &pb.AuthRoleGrantPermissionRequest{Name: g.role()}
		if g.IntN(30) > 0 {
			r.AuthRoleGrantPermission.Perm = &authpb.Permission{PermType: authpb.Permission_Type(g.IntN(3)), Key: g.key(), RangeEnd: g.end()}
			if g.IntN(30) == 0 {
				r.AuthRoleGrantPermission.Perm.Key = nil
			}
		}
	case 20:
		r.AuthRoleRevokePermission = &pb.AuthRoleRevokePermissionRequest{Role: g.role(), Key: g.key(), RangeEnd: g.end()}
	case 21:
		r.Authenticate = &pb.InternalAuthenticateRequest{Name: g.user(), SimpleToken: strings.Repeat("x", 1+g.IntN(3)) + fmt.Sprint(g.id)}
	case 22:
		r.AuthUserGet = &pb.AuthUserGetRequest{Name: "root"}
		r.Header.Username, r.Header.AuthRevision = "root", g.revision
	}
	if proto.Size(r) == proto.Size(&pb.InternalRaftRequest{Header: r.Header}) {
		r.AuthRoleAdd = &pb.AuthRoleAddRequest{Name: g.role()}
	}
}

func (g *generator) put() *pb.PutRequest {
	p := &pb.PutRequest{Key: g.key(), Value: []byte(fmt.Sprint(g.id)), PrevKv: g.IntN(3) == 0}
	if g.IntN(2) == 0 {
		p.Lease = g.Int64N(6) + 1
	}
	p.IgnoreLease = p.Lease == 0 && g.IntN(6) == 0
	if g.IntN(8) == 0 {
		p.IgnoreValue, p.Value = true, nil
	}
	return p
}

func (g *generator) delete() *pb.DeleteRangeRequest {
	return &pb.DeleteRangeRequest{Key: g.key(), RangeEnd: g.end(), PrevKv: g.IntN(3) == 0}
}

func (g *generator) txn(depth int) *pb.TxnRequest {
	t := &pb.TxnRequest{}
	for range g.IntN(3) {
		t.Compare = append(t.Compare, &pb.Compare{Key: g.key(), RangeEnd: g.end(), Result: pb.Compare_GREATER,
			Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{Version: g.Int64N(3)}})
	}
	used := make(map[string]bool) // a transaction must not put a key twice
	for range g.IntN(3) {
		t.Success = append(t.Success, g.op(depth, used))
	}
	for range g.IntN(2) {
		t.Failure = append(t.Failure, g.op(depth, used))
	}
	return t
}

func (g *generator) op(depth int, used map[string]bool) *pb.RequestOp {
	switch n := g.IntN(7); {
	case n == 0 && depth > 0:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: g.txn(depth - 1)}}
	case n < 3:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: g.key(), RangeEnd: g.end()}}}
	case n < 5:
		return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: g.delete()}}
	}
	p := g.put()
	if used[string(p.Key)] {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: p.Key}}}
	}
	used[string(p.Key)] = true
	p.IgnoreValue, p.IgnoreLease = false, false // the key may be deleted before, which etcd ends of
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: p}}
}
