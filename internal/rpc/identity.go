package rpc

import (
	"context"
	"strings"
	"time"
	"unicode/utf8"

	"quorate/internal/auth"
	"quorate/internal/fsm"
	"quorate/internal/kv"
	"quorate/internal/wire"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
)

// Who a client is, and what it may do. Nothing is looked at while permissions are off.
//
// A client's token is looked at where its call first needs to know who it is, after what
// the request itself may be refused for, as etcd does. What is replicated is checked
// again when it is applied; what is read is checked before, and its answer is dropped if
// users or roles have changed in between.

// identify tells who the client of a call is: its token's user, or the user that its
// certificate names; the zero Identity if it says neither. auth.ErrInvalidToken, or an
// error of ReadIndex.
func (s *services) identify(ctx context.Context) (auth.Identity, error) {
	st := s.Auth()
	if !st.Enabled() {
		return auth.Identity{}, nil
	}
	token, given := tokenOf(ctx)
	if !given {
		return s.ofCertificate(ctx, st), nil
	}
	now := time.Now()
	who, ok := s.Tokens().Identify(token, st.Revision(), now)
	if !ok && s.Tokens().Awaited(token) > s.Applied() {
		// Another member gave it. Whoever has it has been answered, so this member knows it
		// as soon as it is up to date.
		if err := s.ReadIndex(ctx); err != nil {
			return auth.Identity{}, err
		}
		who, ok = s.Tokens().Identify(token, s.Auth().Revision(), now)
	}
	if !ok || !utf8.ValidString(who.User) {
		return auth.Identity{}, auth.ErrInvalidToken
	}
	return who, nil
}

// tokenOf is the token in a call's metadata, under the name that clients of gRPC use or
// the one that HTTP has for it.
func tokenOf(ctx context.Context) (token string, given bool) {
	for _, name := range []string{rpctypes.TokenFieldNameGRPC, rpctypes.TokenFieldNameSwagger} {
		if v := metadata.ValueFromIncomingContext(ctx, name); len(v) > 0 {
			return strings.TrimPrefix(v[0], "Bearer "), true
		}
	}
	return "", false
}

// ofCertificate is the user that the client's certificate names, if it had to show one. A
// call that comes from the gateway has none: the connection is the gateway's.
func (s *services) ofCertificate(ctx context.Context, st *auth.State) auth.Identity {
	if !s.opts.CertificateUsers || len(metadata.ValueFromIncomingContext(ctx, "grpcgateway-accept")) > 0 {
		return auth.Identity{}
	}
	p, ok := peer.FromContext(ctx)
	if !ok {
		return auth.Identity{}
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return auth.Identity{}
	}
	for _, chain := range info.State.VerifiedChains {
		if len(chain) > 0 {
			if name := chain[0].Subject.CommonName; utf8.ValidString(name) {
				return auth.Identity{User: name, Revision: st.Revision()}
			}
			break
		}
	}
	return auth.Identity{}
}

// Propose has a request of the call's client replicated. See Backend.ProposeAs.
func (s *services) Propose(ctx context.Context, field wire.Field, body []byte) (fsm.Result, error) {
	who, err := s.identify(ctx)
	if err != nil {
		return fsm.Result{}, err
	}
	return s.ProposeAs(ctx, who, field, body)
}

// permitAdmin says whether the client may change users, roles and members.
func (s *services) permitAdmin(ctx context.Context) error {
	if !s.Auth().Enabled() {
		return nil
	}
	who, err := s.identify(ctx)
	if err != nil {
		return err
	}
	return s.Auth().PermitAdmin(who)
}

// permitKnown says whether the client is anybody.
func (s *services) permitKnown(ctx context.Context) error {
	if !s.Auth().Enabled() {
		return nil
	}
	who, err := s.identify(ctx)
	if err == nil && who == (auth.Identity{}) {
		err = auth.ErrUserEmpty
	}
	return err
}

// permitRead says whether the client may read a span. The caller asks unchanged once it
// has read.
func (s *services) permitRead(ctx context.Context, span kv.Span) (check, error) {
	return s.permit(ctx, func(st *auth.State, who auth.Identity) error {
		return st.Permit(who, auth.Read, span.Key, span.End)
	})
}

// permitReadTxn is permitRead for a transaction.
func (s *services) permitReadTxn(ctx context.Context, t *kv.Txn) (check, error) {
	return s.permit(ctx, func(st *auth.State, who auth.Identity) error {
		return fsm.AccessOf(st, who, s.Leases()).Txn(t)
	})
}

// check is a permission to read, and the revision of users and roles by which it was given.
type check struct {
	revision uint64 // 0: nobody was asked
	s        *services
}

// permitLease is permit for questions about leases, which concern the state at their
// beginning, however old the client's token is.
func (s *services) permitLease(ctx context.Context, ask func(*auth.State, auth.Identity) error) (check, error) {
	revision := s.Auth().Revision()
	c, err := s.permit(ctx, ask)
	if c.s != nil {
		c.revision = revision
	}
	return c, err
}

func (s *services) permit(ctx context.Context, ask func(*auth.State, auth.Identity) error) (check, error) {
	if !s.Auth().Enabled() {
		return check{}, nil
	}
	who, err := s.identify(ctx)
	if err != nil {
		return check{}, err
	}
	st := s.Auth() // after identify, which may have waited
	if err := ask(st, who); err != nil {
		return check{}, err
	}
	return check{who.Revision, s}, nil
}

// unchanged is auth.ErrOldRevision if users or roles have changed since the check: what
// was read meanwhile must not be shown.
func (c check) unchanged() error {
	if c.revision != 0 && c.revision != c.s.Auth().Revision() {
		return auth.ErrOldRevision
	}
	return nil
}
