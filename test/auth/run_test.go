package auth

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/test/harness"
)

// errDiffer begins the report of a difference.
var errDiffer = errors.New("they differ: ")

// A run is one episode: two fresh servers and what is known of them.
type run struct {
	sides [2]*side // etcd, quorate

	rev       int64             // etcd's revision
	compacted int64             // the revision that it was compacted to
	sessions  []*session        // in the order of logins, also those that are over
	passwords map[string]string // of the users, as far as the calls tell

	journal []string
	agreed  int
	refused map[string]int    // answers by code, to see that a run is about something
	others  map[string]string // with -gather, differences in calls that change nothing, by kind
}

// flags of both servers. Nothing is ever crashed here, so nothing needs to be synced.
var serverFlags = []string{"--unsafe-no-fsync", "--bcrypt-cost=4", "--log-level=error"}

// newRun starts two fresh servers below dir.
func newRun(dir string, flags ...string) (*run, error) {
	r := &run{rev: 1, passwords: map[string]string{}, refused: map[string]int{}}
	var errs [2]error
	var wg sync.WaitGroup
	for i := range r.sides {
		wg.Go(func() {
			kind := harness.Kind(i)
			s := &side{index: i}
			s.server, errs[i] = harness.Launch(kind, filepath.Join(dir, kind.String()), append(serverFlags[:len(serverFlags):len(serverFlags)], flags...)...)
			if errs[i] != nil {
				return
			}
			r.sides[i] = s
			if errs[i] = s.server.WaitReady(context.Background()); errs[i] != nil {
				errs[i] = fmt.Errorf("%v: %w\n%s", kind, errs[i], s.server.LogTail(20))
				return
			}
			s.conn, errs[i] = s.server.Conn()
		})
	}
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *run) close() {
	for _, s := range r.sides {
		if s == nil {
			continue
		}
		for _, w := range s.watch {
			w.close()
		}
		s.server.Kill()
	}
}

func (r *run) logf(format string, args ...any) {
	r.journal = append(r.journal, fmt.Sprintf(format, args...))
}

// newest is the user's last session, nil if there is none.
func (r *run) newest(user string) *session {
	for i := len(r.sessions) - 1; i >= 0; i-- {
		if r.sessions[i].user == user {
			return r.sessions[i]
		}
	}
	return nil
}

// step performs a step of the episode.
func (r *run) step(seed uint64, i int) error {
	g := &gen{Rand: mathrand.New(mathrand.NewPCG(seed, uint64(i))), run: r, step: i}
	r.logf("-- step %d", i)
	if i == 0 && seed%8 != 0 {
		for _, c := range g.populate() {
			if err := r.do(g, c); err != nil {
				return err
			}
		}
	}
	if g.one(10) {
		return r.watchStep(g)
	}
	for _, c := range g.calls() {
		if c.method == compact {
			// It could overtake a watch of either side that has not caught up.
			for i := range r.sides[0].watch {
				if err := r.catchUp(i); err != nil {
					return err
				}
			}
		}
		if err := r.do(g, c); err != nil {
			return err
		}
	}
	return nil
}

// do makes one call on both sides, and compares the answers.
func (r *run) do(g *gen, c *call) error {
	var outs [2]outcome
	var errs [2]error
	var wg sync.WaitGroup
	for i, s := range r.sides {
		wg.Go(func() { outs[i], errs[i] = s.do(c) })
	}
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	var tokens [2]string
	for i, o := range outs {
		if a, ok := o.reply.(*pb.AuthenticateResponse); ok {
			tokens[i] = a.Token
		}
	}
	r.logf("%v\n    %v", c, outs[0])
	if d := compare(c, outs[0], outs[1]); d != "" {
		if *gather > 1 && slices.Contains(looks, c.method) {
			// Both are as they were, and there may be more to find.
			kind := fmt.Sprintf("%s %v %v", c.method.name, outs[0].status, outs[1].status)
			if r.others == nil {
				r.others = map[string]string{}
			}
			r.others[kind] = d
			return nil
		}
		return fmt.Errorf("%w%s", errDiffer, d)
	}
	r.agreed++
	r.refused[outs[0].status.Code().String()]++
	r.follow(g, c, outs[0], tokens)
	return nil
}

// looks are calls that change nothing.
var looks = []*method{rangeKV, rangeStream, leaseTimeToLive, leaseLeases, statusOf, hash, hashKV, snapshot, memberList, authStatus, userGet, userList,
	roleGet, roleList, leaderOf}

// follow keeps what is known up to date with an answer on which both sides agree.
func (r *run) follow(g *gen, c *call, o outcome, tokens [2]string) {
	if o.status.Code() == codes.Unauthenticated && !g.one(4) {
		// A token that is no longer good shows nothing new.
		r.sessions = slices.DeleteFunc(r.sessions, func(s *session) bool { return s == c.as })
	}
	if o.reply == nil {
		return
	}
	if h, ok := o.reply.(interface{ GetHeader() *pb.ResponseHeader }); ok && h.GetHeader() != nil {
		r.rev = max(r.rev, h.GetHeader().Revision)
	}
	switch req := c.req.(type) {
	case *pb.CompactionRequest:
		r.compacted = req.Revision
	case *pb.AuthUserAddRequest:
		r.passwords[req.Name] = req.Password
	case *pb.AuthUserChangePasswordRequest:
		r.passwords[req.Name] = req.Password
	case *pb.AuthenticateRequest:
		header, prefix := "token", ""
		if g.one(3) {
			header, prefix = "authorization", pick(g, "", "Bearer ")
		}
		r.sessions = append(r.sessions, &session{req.Name, tokens, header, prefix})
		if len(r.sessions) > 64 {
			r.sessions = r.sessions[1:]
		}
	}
}

// perform runs the episode of a seed on fresh servers. A difference, or a fault, comes with what was done
// before.
func perform(dir string, seed uint64, until time.Time) (r *run, err error) {
	var flags []string
	if seed%4 == 1 {
		// Tokens that carry the revision of the users and roles that they were made at.
		options, err := jwtOptions(dir)
		if err != nil {
			return nil, err
		}
		flags = append(flags, "--auth-token="+options)
	}
	r, err = newRun(dir, flags...)
	if err != nil {
		return nil, err
	}
	defer r.close()
	for i := range *steps {
		if time.Now().After(until) {
			break
		}
		if err := r.step(seed, i); err != nil {
			return r, fmt.Errorf("seed %d, step %d: %w", seed, i, err)
		}
	}
	for len(r.sides[0].watch) > 0 {
		if err := r.catchUp(0); err != nil {
			return r, fmt.Errorf("seed %d, in the end: %w", seed, err)
		}
		if err := r.dropWatch(0); err != nil {
			return r, err
		}
	}
	return r, nil
}

// jwtOptions makes a key pair and returns the value of --auth-token that uses it.
func jwtOptions(dir string) (string, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", err
	}
	privateDER, err1 := x509.MarshalPKCS8PrivateKey(private)
	publicDER, err2 := x509.MarshalPKIXPublicKey(public)
	privateFile, publicFile := filepath.Join(dir, "private.pem"), filepath.Join(dir, "public.pem")
	err3 := os.WriteFile(privateFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: privateDER}), 0o600)
	err4 := os.WriteFile(publicFile, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: publicDER}), 0o600)
	return "jwt,sign-method=EdDSA,ttl=10m,priv-key=" + privateFile + ",pub-key=" + publicFile, errors.Join(err1, err2, err3, err4)
}

func TestDifferential(t *testing.T) {
	if testing.Short() {
		t.Skip("starts servers")
	}
	harness.Peer(t, "etcd")
	harness.QuorateBinary(t)
	until := time.Now().Add(*duration)
	next, episodes := *seed, 0
	if *seed == 0 {
		next = uint64(time.Now().UnixNano()) % 1_000_000_000
	}
	agreed, differ, codes, others := 0, 0, map[string]int{}, map[string]string{}
	for ; time.Now().Before(until) && differ < *gather; next++ {
		r, err := perform(t.TempDir(), next, until)
		if r == nil {
			t.Fatal(err)
		}
		episodes++
		agreed += r.agreed
		for code, n := range r.refused {
			codes[code] += n
		}
		for kind, d := range r.others {
			if others[kind] == "" {
				others[kind] = d
				t.Errorf("seed %d: they differ: %s", next, d)
			}
		}
		if err != nil {
			differ++
			tail := r.journal
			if *seed == 0 {
				tail = tail[max(0, len(tail)-12):]
			}
			if *gather > 1 {
				tail = nil
			}
			t.Errorf("%v\n%s\nagain with: go test ./auth -run Differential -v -args -seed %d -duration 10m", err, strings.Join(tail, "\n"), next)
		}
		if *seed != 0 {
			break
		}
	}
	t.Logf("%d episodes, %d calls agreed, by code: %v", episodes, agreed, codes)
}
