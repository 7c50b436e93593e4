package auth

import (
	"crypto"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// jwtTTL is how long a signed token lives if the options do not say.
const jwtTTL = 5 * time.Minute

// signer makes and reads JSON web tokens with the claims username, revision and exp.
type signer struct {
	method  jwt.SigningMethod
	private any // nil: tokens can be read only
	public  any
	ttl     time.Duration
}

// newSigner reads the options pub-key, priv-key (files), sign-method and ttl. Others are
// passed over, as by etcd.
func newSigner(options map[string]string) (*signer, error) {
	s := &signer{ttl: jwtTTL}
	var err error
	if ttl := options["ttl"]; ttl != "" {
		if s.ttl, err = time.ParseDuration(ttl); err != nil {
			return nil, fmt.Errorf("%w: ttl: %w", ErrInvalidOptions, err)
		}
	}
	public, err := readKey(options["pub-key"])
	if err != nil {
		return nil, err
	}
	private, err := readKey(options["priv-key"])
	if err != nil {
		return nil, err
	}
	if s.method = jwt.GetSigningMethod(options["sign-method"]); s.method == nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidOptions, ErrInvalidMethod)
	}
	return s, s.keys(private, public)
}

// readKey reads a file, "" none.
func readKey(file string) ([]byte, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidOptions, err)
	}
	return b, nil
}

// keys makes the signer's keys of files in PEM form. The public one follows from the
// private; if both are given they must belong together.
func (s *signer) keys(private, public []byte) error {
	var (
		key interface {
			crypto.PrivateKey
			Public() crypto.PublicKey
		}
		pub interface {
			crypto.PublicKey
			Equal(x crypto.PublicKey) bool
		}
		err error
	)
	switch s.method.(type) {
	case *jwt.SigningMethodHMAC:
		if len(private) == 0 {
			return ErrMissingKey
		}
		s.private, s.public = private, private
		return nil
	case *jwt.SigningMethodRSA, *jwt.SigningMethodRSAPSS:
		if len(private) > 0 {
			key, err = jwt.ParseRSAPrivateKeyFromPEM(private)
		}
		if err == nil && len(public) > 0 {
			pub, err = jwt.ParseRSAPublicKeyFromPEM(public)
		}
	case *jwt.SigningMethodECDSA:
		if len(private) > 0 {
			key, err = jwt.ParseECPrivateKeyFromPEM(private)
		}
		if err == nil && len(public) > 0 {
			pub, err = jwt.ParseECPublicKeyFromPEM(public)
		}
	case *jwt.SigningMethodEd25519:
		key, pub, err = edKeys(private, public)
	default:
		return fmt.Errorf("unsupported signing method: %T", s.method)
	}
	switch {
	case err != nil:
		return err
	case len(private) == 0 && len(public) == 0:
		return ErrMissingKey
	case len(private) == 0:
		s.public = pub
		return nil
	case len(public) > 0 && !pub.Equal(key.Public()):
		return ErrKeyMismatch
	}
	s.private, s.public = key, key.Public()
	return nil
}

// edKeys reads Ed25519 keys, of which either may be missing.
func edKeys(private, public []byte) (key interface {
	crypto.PrivateKey
	Public() crypto.PublicKey
}, pub interface {
	crypto.PublicKey
	Equal(x crypto.PublicKey) bool
}, err error) {
	if len(private) > 0 {
		k, err := jwt.ParseEdPrivateKeyFromPEM(private)
		if err != nil {
			return nil, nil, err
		}
		key = k.(crypto.Signer)
	}
	if len(public) > 0 {
		k, err := jwt.ParseEdPublicKeyFromPEM(public)
		if err != nil {
			return nil, nil, err
		}
		pub = k.(interface {
			crypto.PublicKey
			Equal(x crypto.PublicKey) bool
		})
	}
	return key, pub, nil
}

func (s *signer) sign(who Identity, now time.Time) (string, error) {
	if s.private == nil {
		return "", ErrVerifyOnly
	}
	return jwt.NewWithClaims(s.method, jwt.MapClaims{
		"username": who.User,
		"revision": who.Revision,
		"exp":      now.Add(s.ttl).Unix(),
	}).SignedString(s.private)
}

// verify reads a token. One that is over, was signed in another way or lacks a claim is
// nobody's.
func (s *signer) verify(token string, now time.Time) (Identity, bool) {
	parsed, err := jwt.Parse(token, func(t *jwt.Token) (any, error) {
		if t.Method.Alg() != s.method.Alg() {
			return nil, errors.New("signed by another method")
		}
		return s.public, nil
	}, jwt.WithTimeFunc(func() time.Time { return now }))
	if err != nil || !parsed.Valid {
		return Identity{}, false
	}
	claims, _ := parsed.Claims.(jwt.MapClaims)
	user, hasUser := claims["username"].(string)
	revision, hasRevision := claims["revision"].(float64)
	return Identity{User: user, Revision: uint64(revision)}, hasUser && hasRevision
}
