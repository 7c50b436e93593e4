package auth

import (
	"crypto/rand"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Tokens knows clients again by what Authenticate gave them. Tokens are simple or signed
// (jwt.go), as --auth-token says.
//
// A simple token is a random word and the place in the log of the entry that gave it, so
// that all members know it without asking. It is kept in memory alone, lives for a time
// after its last use at a member, and is void once its user changes.
type Tokens struct {
	signer *signer // nil: simple tokens

	ttl    time.Duration
	mu     sync.RWMutex
	simple map[string]*simpleToken
	order  []*simpleToken // all of simple, and some that have gone, oldest first
}

type simpleToken struct {
	token, user string
	ends        atomic.Int64 // Unix time in nanoseconds
	gone        bool         // guarded by Tokens.mu
}

const (
	// simpleMax bounds the simple tokens. When they are more, the oldest is void: its
	// client has to log in again, as the error tells it.
	simpleMax = 1 << 18
	// simpleTTL is how long a simple token lives if --auth-token-ttl is 0.
	simpleTTL = 300 * time.Second

	prefixLength = 16
	letters      = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// NewTokens reads --auth-token ("simple", or "jwt" and its options) and the files that it
// names. ttl is that of simple tokens. See errors.go for what may be wrong.
func NewTokens(spec string, ttl time.Duration) (*Tokens, error) {
	kind, options, err := parseOptions(spec)
	if err != nil {
		return nil, err
	}
	if ttl <= 0 {
		ttl = simpleTTL
	}
	t := &Tokens{ttl: ttl, simple: make(map[string]*simpleToken)}
	switch kind {
	case "simple":
	case "jwt":
		t.signer, err = newSigner(options)
	default:
		err = fmt.Errorf("%w: unknown kind of token %q", ErrInvalidOptions, kind)
	}
	if err != nil {
		return nil, err
	}
	return t, nil
}

// parseOptions splits "kind,name=value,name=value".
func parseOptions(spec string) (kind string, options map[string]string, err error) {
	kind, rest, more := strings.Cut(spec, ",")
	options = make(map[string]string)
	for more {
		var pair string
		pair, rest, more = strings.Cut(rest, ",")
		name, value, ok := strings.Cut(pair, "=")
		if _, twice := options[name]; twice || !ok || strings.Contains(value, "=") {
			return "", nil, fmt.Errorf("%w: %q", ErrInvalidOptions, pair)
		}
		options[name] = value
	}
	return kind, options, nil
}

// Signed reports whether tokens are made by Sign rather than by the applier.
func (t *Tokens) Signed() bool { return t.signer != nil }

// Prefix is the random part of a new simple token; "" where tokens are signed.
func (t *Tokens) Prefix() string {
	if t.signer != nil {
		return ""
	}
	b := make([]byte, prefixLength)
	// 208 is the largest multiple of 52 in a byte: what is above would make some letters
	// more likely.
	for i := range b {
		var r [1]byte
		for {
			_, _ = rand.Read(r[:]) // never fails
			if r[0] < 208 {
				break
			}
		}
		b[i] = letters[r[0]%52]
	}
	return string(b)
}

// Sign makes a token for who; ErrVerifyOnly without a key to sign with.
func (t *Tokens) Sign(who Identity, now time.Time) (string, error) { return t.signer.sign(who, now) }

// Identify tells whose token it is. revision is the state's: a simple token's user is
// known as of now, a signed one's as of its signature.
func (t *Tokens) Identify(token string, revision uint64, now time.Time) (who Identity, ok bool) {
	if t.signer != nil {
		return t.signer.verify(token, now)
	}
	t.mu.RLock()
	s := t.simple[token]
	t.mu.RUnlock()
	if s == nil || s.ends.Load() < now.UnixNano() {
		return Identity{}, false
	}
	s.ends.Store(now.Add(t.ttl).UnixNano())
	return Identity{User: s.user, Revision: revision}, true
}

// Awaited is the place in the log of the entry that gives a simple token: a member that
// has not applied it yet cannot know the token. 0 for what is none.
func (t *Tokens) Awaited(token string) uint64 {
	if t.signer != nil {
		return 0
	}
	_, number, ok := strings.Cut(token, ".")
	if !ok {
		return 0
	}
	before, err := strconv.ParseUint(number, 10, 64)
	if err != nil || before == math.MaxUint64 {
		return 0
	}
	return before + 1
}

// assign gives a simple token to a user. The applier calls it; so it does nothing where
// this member signs tokens, or where the proposer does. index is the entry's place in the
// log. The token tells that of the entry before, as most of etcd's do (what they tell is
// which entry they last noted as applied), so that most are good on both.
func (t *Tokens) assign(user, prefix string, index uint64, now time.Time) string {
	if t.signer != nil || prefix == "" {
		return ""
	}
	s := &simpleToken{token: prefix + "." + strconv.FormatUint(index-1, 10), user: user}
	s.ends.Store(now.Add(t.ttl).UnixNano())
	t.mu.Lock()
	defer t.mu.Unlock()
	t.simple[s.token] = s
	t.order = append(t.order, s)
	t.dropLocked(now)
	return s.token
}

// dropLocked forgets tokens from the oldest on: those that are over, up to the first that
// is not, and that too if there are too many. One that is over behind it is forgotten by
// sweepLocked, when the tokens have doubled.
func (t *Tokens) dropLocked(now time.Time) {
	for len(t.order) > 0 {
		if s := t.order[0]; !s.gone {
			if len(t.simple) <= simpleMax && s.ends.Load() >= now.UnixNano() {
				break
			}
			delete(t.simple, s.token)
		}
		t.order[0] = nil
		t.order = t.order[1:]
	}
	if len(t.order) == cap(t.order) {
		t.sweepLocked(now)
	}
}

// sweepLocked forgets all tokens that are over.
func (t *Tokens) sweepLocked(now time.Time) {
	left := t.order[:0]
	for _, s := range t.order {
		switch {
		case s.gone:
		case s.ends.Load() < now.UnixNano():
			delete(t.simple, s.token)
		default:
			left = append(left, s)
		}
	}
	t.order = append(make([]*simpleToken, 0, 2*len(left)+16), left...)
}

// dropUser makes the simple tokens of a user void, clear those of all.
func (t *Tokens) dropUser(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for token, s := range t.simple {
		if s.user == name {
			s.gone = true
			delete(t.simple, token)
		}
	}
}

func (t *Tokens) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	clear(t.simple)
	t.order = nil
}
