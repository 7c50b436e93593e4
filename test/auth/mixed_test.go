package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.uber.org/zap"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"go.etcd.io/etcd/api/v3/authpb"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"quorate/test/harness"
)

// TestMixed takes clusters of both kinds through changes of users, roles and permissions while clients of
// each member work as these users, leadership goes round, and members are restarted, also as the other kind
// on the same directory. In the end all members hold the same keys, users, roles and permissions, byte for
// byte. On the way:
//
//   - nobody but root gets at the keys of root, by any member;
//   - a token from one quorate is good at all others at once;
//   - no call fails but for want of a permission, of a user, or of a leader.
func TestMixed(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers")
	}
	for _, kinds := range [][]harness.Kind{
		{harness.Etcd, harness.Quorate, harness.Quorate},
		{harness.Etcd, harness.Quorate, harness.Etcd},
	} {
		t.Run(fmt.Sprint(kinds), func(t *testing.T) {
			c, err := harness.NewCluster(t.TempDir(), kinds, "--bcrypt-cost=4")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			})
			ctx, cancel := context.WithTimeout(context.Background(), *duration+2*time.Minute)
			defer cancel()
			if err := c.Start(ctx); err != nil {
				t.Fatal(err)
			}
			m := &mixed{c: c, rand: rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0)), counts: map[string]int{}}
			err = m.run(ctx, *duration/2)
			t.Logf("calls: %v", m.counts)
			if err != nil {
				for _, member := range c.Members {
					t.Logf("%s (%v): %.2000s", member.Name, member.Kind, member.Server.LogTail(5))
				}
				t.Fatal(err)
			}
		})
	}
}

// mixed is a cluster under load.
type mixed struct {
	c    *harness.Cluster
	root []*clientv3.Client // of each member
	rand *rand.Rand         // of the one that changes users and roles

	// secured is held for reading by calls that must not see authentication switched off or a member away,
	// which forgets its tokens.
	secured sync.RWMutex

	mu     sync.Mutex
	counts map[string]int // calls by what came of them
	errs   []error        // what should not be
}

const (
	fixedUsers = 4 // u0 to u3 stay, those up to churnUsers come and go
	churnUsers = 8
	roles      = 5
	roamer     = "roamer" // a user, its role, and the one key that it may touch
)

// run sets the cluster up, lets the load loose for so long, and compares the members.
func (m *mixed) run(ctx context.Context, long time.Duration) error {
	if err := m.setUp(ctx); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	defer func() {
		for _, c := range m.root {
			_ = c.Close() // its calls have been looked at
		}
	}()
	working, stop := context.WithTimeout(ctx, long)
	defer stop()
	var wg sync.WaitGroup
	loop := func(pause time.Duration, do func(ctx context.Context, n int)) {
		wg.Go(func() {
			for n := 0; working.Err() == nil; n++ {
				do(ctx, n)
				select {
				case <-time.After(pause):
				case <-working.Done():
				}
			}
		})
	}
	for i := range m.c.Members {
		for u := range churnUsers {
			loop(time.Millisecond, func(ctx context.Context, n int) { m.work(ctx, i, u, n) })
		}
	}
	loop(10*time.Millisecond, m.roam)
	loop(2*time.Millisecond, m.change)
	loop(2*time.Second, m.lead)
	loop(4*time.Second, m.restart)
	wg.Wait()
	return errors.Join(append(m.errs, m.compare(ctx))...)
}

// setUp makes root, whose keys are below secret/, and the users that stay, and switches authentication on.
func (m *mixed) setUp(ctx context.Context) error {
	first, err := m.c.Members[0].Client()
	if err != nil {
		return err
	}
	defer first.Close()
	_, err1 := first.UserAdd(ctx, "root", "pw")
	_, err2 := first.RoleAdd(ctx, "root")
	_, err3 := first.UserGrantRole(ctx, "root", "root")
	_, err4 := first.Put(ctx, "secret/a", "of root")
	errs := []error{err1, err2, err3, err4}
	for r := range roles {
		_, err := first.RoleAdd(ctx, fmt.Sprintf("r%d", r))
		errs = append(errs, err)
	}
	// A change of its roles would end the tokens of a user.
	_, err5 := first.UserAdd(ctx, roamer, "pw")
	_, err6 := first.RoleAdd(ctx, roamer)
	_, err7 := first.RoleGrantPermission(ctx, roamer, roamer, "", clientv3.PermissionType(authpb.READWRITE))
	_, err8 := first.UserGrantRole(ctx, roamer, roamer)
	errs = append(errs, err5, err6, err7, err8)
	for u := range fixedUsers {
		_, err1 := first.UserAdd(ctx, fmt.Sprintf("u%d", u), "pw")
		_, err2 := first.UserGrantRole(ctx, fmt.Sprintf("u%d", u), fmt.Sprintf("r%d", u))
		_, err3 := first.RoleGrantPermission(ctx, fmt.Sprintf("r%d", u), "k", "l", clientv3.PermissionType(authpb.READWRITE))
		errs = append(errs, err1, err2, err3)
	}
	_, err = first.AuthEnable(ctx)
	errs = append(errs, err)
	for i := range m.c.Members {
		c, err := m.client(i, "root")
		errs = append(errs, err)
		m.root = append(m.root, c)
	}
	return errors.Join(errs...)
}

// client connects to a member as a user.
func (m *mixed) client(member int, user string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{
		Endpoints: []string{m.c.Members[member].Addr}, Username: user, Password: "pw", DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
}

func oneOf[T any](all ...T) T { return all[rand.IntN(len(all))] }

func (m *mixed) note(what string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		m.counts[what]++
		return
	}
	m.counts[what+": "+reason(err)]++
}

func (m *mixed) fail(format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.errs) < 5 {
		m.errs = append(m.errs, fmt.Errorf(format, args...))
	}
}

// reason is what an error says, without what is a matter of the moment.
func reason(err error) string {
	if e := (rpctypes.EtcdError{}); errors.As(err, &e) {
		return e.Error()
	}
	if errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded {
		return "deadline"
	}
	return status.Convert(err).Code().String()
}

// expected says that a call may be answered so while users, roles and leaders change.
func expected(err error) bool {
	switch text := reason(err); {
	case err == nil, text == "deadline", strings.HasPrefix(text, codes.Unavailable.String()):
		return true
	default:
		code := rpctypes.ErrorDesc(err)
		for _, known := range []error{rpctypes.ErrPermissionDenied, rpctypes.ErrUserNotFound, rpctypes.ErrAuthFailed, rpctypes.ErrInvalidAuthToken,
			rpctypes.ErrAuthOldRevision, rpctypes.ErrUserEmpty, rpctypes.ErrLeaseNotFound, rpctypes.ErrLeaderChanged, rpctypes.ErrNoLeader, rpctypes.ErrTimeout,
			rpctypes.ErrTimeoutDueToLeaderFail, rpctypes.ErrTimeoutDueToConnectionLost, rpctypes.ErrAuthNotEnabled, rpctypes.ErrStopped, rpctypes.ErrNotCapable} {
			if text == known.Error() || code == known.Error() {
				return true
			}
		}
		// A proposal that a leader which has just lost its place turns down.
		return strings.Contains(err.Error(), "raft proposal dropped")
	}
}

// work makes some calls as a user through a member.
func (m *mixed) work(ctx context.Context, member, u, n int) {
	user := fmt.Sprintf("u%d", u)
	m.secured.RLock()
	c, err := m.client(member, user)
	m.secured.RUnlock()
	if err != nil {
		m.note("login", err)
		if !expected(err) {
			m.fail("login of %s at %s: %w", user, m.c.Members[member].Name, err)
		}
		time.Sleep(50 * time.Millisecond)
		return
	}
	defer c.Close()
	for i := range 30 {
		key := fmt.Sprintf("k%d", rand.IntN(20))
		var what string
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		m.secured.RLock()
		switch rand.IntN(8) {
		case 0, 1:
			what = "put"
			_, err = c.Put(call, key, fmt.Sprintf("%s.%d.%d", user, n, i))
		case 2:
			what = "get"
			_, err = c.Get(call, key)
		case 3:
			what = "range"
			_, err = c.Get(call, "k", clientv3.WithRange(oneOf("l", "lz", "k3")))
		case 4:
			what = "delete"
			_, err = c.Delete(call, key)
		case 5:
			what = "txn"
			_, err = c.Txn(call).If(clientv3.Compare(clientv3.Version(key), "=", 0)).Then(clientv3.OpPut(key, "new"), clientv3.OpGet("k1")).
				Else(clientv3.OpDelete("k2"), clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("k4", user)}, nil)).Commit()
		case 6:
			what = "secret"
			switch rand.IntN(4) {
			case 0:
				_, err = c.Get(call, "secret/a")
			case 1:
				_, err = c.Put(call, "secret/b", user)
			case 2:
				_, err = c.Get(call, "k", clientv3.WithRange("t"))
			case 3:
				_, err = c.Txn(call).Then(clientv3.OpGet(key), clientv3.OpTxn(nil, nil, []clientv3.Op{clientv3.OpGet("secret/a")})).
					Else(clientv3.OpPut(key, "never")).Commit()
			}
			if err == nil {
				m.fail("%s got at the keys of root through %s", user, m.c.Members[member].Name)
			}
		case 7:
			what = "lease"
			var lease *clientv3.LeaseGrantResponse
			if lease, err = c.Grant(call, 1000); err == nil {
				_, err = c.Put(call, key, "leased", clientv3.WithLease(lease.ID))
				if _, rerr := c.Revoke(call, lease.ID); !expected(rerr) {
					m.fail("revoke as %s through %s: %w", user, m.c.Members[member].Name, rerr)
				}
			}
		}
		m.secured.RUnlock()
		cancel()
		m.note(what, err)
		if !expected(err) {
			m.fail("%s of %s as %s through %s (%v): %w", what, key, user, m.c.Members[member].Name, m.c.Members[member].Kind, err)
		}
	}
}

// roam logs in at one member and uses the token at the others at once.
func (m *mixed) roam(ctx context.Context, n int) {
	m.secured.RLock()
	defer m.secured.RUnlock()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	at := m.c.Members[n%len(m.c.Members)]
	conn, err := at.Server.Conn()
	if err != nil {
		m.fail("%w", err)
		return
	}
	login, err := pb.NewAuthClient(conn).Authenticate(ctx, &pb.AuthenticateRequest{Name: roamer, Password: "pw"})
	m.note("authenticate", err)
	if err != nil {
		if !expected(err) {
			m.fail("authenticate at %s: %w", at.Name, err)
		}
		return
	}
	for _, member := range m.c.Members {
		conn, err := member.Server.Conn()
		if err != nil {
			m.fail("%w", err)
			return
		}
		_, err = pb.NewKVClient(conn).Put(metadata.AppendToOutgoingContext(ctx, "token", login.Token), &pb.PutRequest{Key: []byte(roamer), Value: fmt.Append(nil, n)})
		m.note(fmt.Sprintf("token of %v at %v", at.Kind, member.Kind), err)
		// An etcd looks for a token once it has applied the log entry before the one that makes it, so that it may
		// be too early.
		refused := status.Code(err) == codes.Unauthenticated && !isEtcd(at) && !isEtcd(member)
		if !expected(err) || refused || status.Code(err) == codes.PermissionDenied {
			m.fail("a token of %s (%v) at %s (%v): %w", at.Name, at.Kind, member.Name, member.Kind, err)
		}
	}
}

// isEtcd says that the member is an etcd, also where etcd stands in for quorate.
func isEtcd(m *harness.Member) bool { return m.Kind == harness.Etcd || harness.SelfTest() }

// change makes one change of users, roles or permissions through a member, or a look at them.
func (m *mixed) change(ctx context.Context, n int) {
	r := m.rand
	c := m.root[r.IntN(len(m.root))]
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	come := fmt.Sprintf("u%d", fixedUsers+r.IntN(churnUsers-fixedUsers))
	anyone := fmt.Sprintf("u%d", r.IntN(churnUsers))
	role := fmt.Sprintf("r%d", r.IntN(roles))
	from := fmt.Sprintf("k%d", r.IntN(20))
	to := oneOf("", "l", "k5", "k9", "m")
	var what string
	var err error
	switch r.IntN(12) {
	case 0, 1:
		what = "user add"
		_, err = c.UserAdd(ctx, come, "pw")
	case 2:
		what = "user delete"
		_, err = c.UserDelete(ctx, come)
	case 3:
		what = "user passwd"
		_, err = c.UserChangePassword(ctx, come, oneOf("pw", "pw", "other"))
	case 4, 5:
		what = "grant role"
		_, err = c.UserGrantRole(ctx, anyone, role)
	case 6:
		what = "revoke role"
		_, err = c.UserRevokeRole(ctx, anyone, role)
	case 7:
		what = "role add or delete"
		if _, err = c.RoleAdd(ctx, role); rpctypes.ErrorDesc(err) == rpctypes.ErrRoleAlreadyExist.Error() && r.IntN(3) == 0 {
			_, err = c.RoleDelete(ctx, role)
		}
	case 8, 9:
		what = "grant permission"
		_, err = c.RoleGrantPermission(ctx, role, from, to, clientv3.PermissionType(r.IntN(3)))
	case 10:
		what = "revoke permission"
		_, err = c.RoleRevokePermission(ctx, role, from, to)
	case 11:
		if n%50 != 0 {
			what = "list"
			_, err = c.UserList(ctx)
			break
		}
		what, err = "off and on", m.offAndOn(c)
	}
	m.note(what, err)
	switch rpctypes.ErrorDesc(err) {
	case rpctypes.ErrUserAlreadyExist.Error(), rpctypes.ErrRoleNotFound.Error(), rpctypes.ErrRoleAlreadyExist.Error(), rpctypes.ErrRoleNotGranted.Error(),
		rpctypes.ErrPermissionNotGranted.Error(), rpctypes.ErrUserNotFound.Error(),
		rpctypes.ErrInvalidAuthMgmt.Error(): // an empty range
		return
	}
	if !expected(err) {
		m.fail("%s: %w", what, err)
	}
}

// offAndOn switches authentication off and on again, by a member's client of root. Either may be lost, or come
// late, in a change of leader.
func (m *mixed) offAndOn(c *clientv3.Client) error {
	m.secured.Lock()
	defer m.secured.Unlock()
	try := func(do func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		return do(ctx)
	}
	if err := try(func(ctx context.Context) error { _, err := c.AuthDisable(ctx); return err }); err != nil {
		m.note("off", err)
		time.Sleep(time.Second) // it takes place by then or never
	}
	enable := func(ctx context.Context) error {
		_, err := c.AuthEnable(ctx)
		return err
	}
	err := try(enable)
	for again := 0; err != nil && again < 20; again++ {
		time.Sleep(200 * time.Millisecond)
		err = try(enable)
	}
	if err != nil {
		return fmt.Errorf("authentication does not come on again: %w", err)
	}
	// A member that has not heard of it yet takes anybody's call, and has it refused later.
	for i, root := range m.root {
		for again := 0; ; again++ {
			if err = try(func(ctx context.Context) error { _, err := root.Get(ctx, "secret/a"); return err }); err == nil {
				break
			}
			if again == 50 {
				return fmt.Errorf("%s does not come along: %w", m.c.Members[i].Name, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	return nil
}

// lead hands leadership to the next member.
func (m *mixed) lead(ctx context.Context, n int) {
	m.secured.RLock()
	defer m.secured.RUnlock()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	to, err := m.status(ctx, n%len(m.root))
	if err != nil {
		m.note("status", err)
		return
	}
	for i := range m.root {
		st, err := m.status(ctx, i)
		if err != nil || st.Leader != st.Header.MemberId {
			continue
		}
		_, err = m.root[i].MoveLeader(ctx, to.Header.MemberId)
		m.note(fmt.Sprintf("lead to %v", m.c.Members[n%len(m.root)].Kind), err)
		return
	}
}

func (m *mixed) status(ctx context.Context, i int) (*pb.StatusResponse, error) {
	return pb.NewMaintenanceClient(m.root[i].ActiveConnection()).Status(ctx, &pb.StatusRequest{})
}

// restart stops a member and starts it again, every other time as the other kind.
func (m *mixed) restart(ctx context.Context, n int) {
	if n == 0 {
		return
	}
	m.secured.Lock()
	defer m.secured.Unlock()
	member := m.c.Members[n%len(m.c.Members)]
	kind, err := member.Kind, member.Stop()
	if err == nil && n%2 == 0 {
		member.Kind = kind.Other()
	}
	if err == nil {
		err = member.Launch()
	}
	if err == nil {
		err = member.WaitReady(ctx)
	}
	m.note(fmt.Sprintf("restart of %v as %v", kind, member.Kind), err)
	if err != nil {
		m.fail("restart %s (%v): %w", member.Name, member.Kind, err)
	}
}

// compare waits until all members have come together and wants them to hold the same.
func (m *mixed) compare(ctx context.Context) error {
	var rev int64
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		seen := map[string]bool{}
		for i := range m.root {
			st, err := m.status(ctx, i)
			if err != nil {
				return fmt.Errorf("status of %s (%v): %w", m.c.Members[i].Name, m.c.Members[i].Kind, err)
			}
			rev = st.Header.Revision
			seen[fmt.Sprintf("applied %d, revision %d", st.RaftAppliedIndex, rev)] = true
		}
		if len(seen) == 1 {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the members do not come together: %v", seen)
		}
	}
	hashes, revisions := map[uint32]string{}, map[uint64]string{}
	for i, c := range m.root {
		name := fmt.Sprintf("%s (%v) ", m.c.Members[i].Name, m.c.Members[i].Kind)
		h, err := pb.NewMaintenanceClient(c.ActiveConnection()).HashKV(ctx, &pb.HashKVRequest{Revision: rev})
		if err != nil {
			return fmt.Errorf("hash of %s: %w", name, err)
		}
		hashes[h.Hash] += name
		st, err := c.AuthStatus(ctx)
		if err != nil {
			return fmt.Errorf("auth status of %s: %w", name, err)
		}
		revisions[(*pb.AuthStatusResponse)(st).AuthRevision] += name
	}
	if len(hashes) > 1 || len(revisions) > 1 {
		return fmt.Errorf("the members differ: hashes %v, revisions of users and roles %v", hashes, revisions)
	}
	var first map[string]string
	for _, member := range m.c.Members {
		if err := member.Stop(); err != nil {
			return fmt.Errorf("stop %s: %w", member.Name, err)
		}
		got, err := authBuckets(member.Dir)
		if err != nil {
			return err
		}
		if first == nil {
			first = got
			m.note("users and roles on disk", nil)
			m.counts["users and roles on disk"] = len(got)
		}
		for key, v := range first {
			if got[key] != v {
				return fmt.Errorf("%s: %s (%v) holds %x, %s (%v) %x", key, m.c.Members[0].Name, m.c.Members[0].Kind, v, member.Name, member.Kind, got[key])
			}
		}
		if len(got) != len(first) {
			return fmt.Errorf("%s (%v) holds %d users and roles, %s %d", member.Name, member.Kind, len(got), m.c.Members[0].Name, len(first))
		}
	}
	return nil
}

// authBuckets reads what a stopped member has on disk of users, roles and permissions: bucket and key, and
// the value.
func authBuckets(dir string) (map[string]string, error) {
	db, err := bolt.Open(filepath.Join(dir, "member", "snap", "db"), 0o600, &bolt.Options{ReadOnly: true, Timeout: 5 * time.Second})
	if err != nil {
		return nil, fmt.Errorf("open the file of %s: %w", dir, err)
	}
	defer db.Close()
	all := map[string]string{}
	err = db.View(func(tx *bolt.Tx) error {
		for _, name := range []string{"auth", "authUsers", "authRoles"} {
			b := tx.Bucket([]byte(name))
			if b == nil {
				return fmt.Errorf("%s has no bucket %s", dir, name)
			}
			if err := b.ForEach(func(k, v []byte) error {
				all[fmt.Sprintf("%s/%s", name, k)] = string(bytes.Clone(v))
				return nil
			}); err != nil {
				return err
			}
		}
		return nil
	})
	return all, err
}
