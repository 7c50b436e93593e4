package auth

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"quorate/internal/kv"

	"golang.org/x/crypto/bcrypt"
)

// Passwords makes and compares bcrypt hashes, which is meant to be slow: a few at a time,
// so that logins cannot take the member's processors from everybody else, and no more
// than waitersMax wait for their turn.
//
// A password that was right is right for a while without another hash: many processes of
// one user log in when they start or lose their member. What is kept of it is a digest
// under a key of this process, together with the hash that it was compared with and the
// revision of the state, so that any change voids it.
type Passwords struct {
	cost  int
	turns chan struct{}
	queue atomic.Int64
	key   [sha256.Size]byte

	mu    sync.Mutex
	right map[string]rightPassword // by user
}

type rightPassword struct {
	digest   [sha256.Size]byte
	revision uint64
	until    time.Time
}

const (
	waitersMax = 4096
	rightFor   = time.Minute
	rightMax   = 1 << 14 // users; when full, all are forgotten
)

// NewPasswords returns Passwords that make hashes of a cost; one that bcrypt does not know
// is its default.
func NewPasswords(cost int) *Passwords {
	if cost < bcrypt.MinCost || cost > bcrypt.MaxCost {
		cost = bcrypt.DefaultCost
	}
	p := &Passwords{
		cost:  cost,
		turns: make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
		right: make(map[string]rightPassword),
	}
	_, _ = rand.Read(p.key[:]) // never fails
	return p
}

// Cost is that of new hashes.
func (p *Passwords) Cost() int { return p.cost }

// turn runs fn when it is its turn: kv.ErrTooManyRequests, or ctx's error.
func (p *Passwords) turn(ctx context.Context, fn func() error) error {
	if p.queue.Add(1) > waitersMax {
		p.queue.Add(-1)
		return kv.ErrTooManyRequests
	}
	defer p.queue.Add(-1)
	select {
	case p.turns <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-p.turns }()
	return fn()
}

// Hash is the hash of a password in base64, as entries carry it. One of more than 72 bytes
// is refused with bcrypt's error.
func (p *Passwords) Hash(ctx context.Context, password string) (hashed string, err error) {
	err = p.turn(ctx, func() error {
		b, err := bcrypt.GenerateFromPassword([]byte(password), p.cost)
		hashed = base64.StdEncoding.EncodeToString(b)
		return err
	})
	return hashed, err
}

// Check compares a password with that of a user in st: nil if it is right, ErrNotEnabled,
// ErrFailed, ErrNoPasswordUser, or an error as of Hash.
func (p *Passwords) Check(ctx context.Context, st *State, name, password string, now time.Time) error {
	if !st.enabled {
		return ErrNotEnabled
	}
	u := st.users[name]
	switch {
	case u == nil:
		return ErrFailed
	case u.GetOptions().GetNoPassword():
		return ErrNoPasswordUser
	}
	want := rightPassword{p.digest(u.Password, password), st.revision, now.Add(rightFor)}
	if p.known(name, want, now) {
		return nil
	}
	return p.turn(ctx, func() error {
		if p.known(name, want, now) {
			return nil // found out while this one waited
		}
		if bcrypt.CompareHashAndPassword(u.Password, []byte(password)) != nil {
			return ErrFailed
		}
		p.keep(name, want)
		return nil
	})
}

// digest is of both the hash and the password, of which the first has a length of its own.
func (p *Passwords) digest(hash []byte, password string) (d [sha256.Size]byte) {
	first := sha256.Sum256(hash)
	m := hmac.New(sha256.New, p.key[:])
	m.Write(first[:])
	m.Write([]byte(password))
	m.Sum(d[:0])
	return d
}

func (p *Passwords) known(name string, want rightPassword, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	have, ok := p.right[name]
	return ok && have.revision == want.revision && now.Before(have.until) && hmac.Equal(have.digest[:], want.digest[:])
}

func (p *Passwords) keep(name string, right rightPassword) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.right) >= rightMax {
		clear(p.right)
	}
	p.right[name] = right
}
