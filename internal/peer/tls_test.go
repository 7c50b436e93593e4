package peer

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"quorate/internal/membership"

	"go.etcd.io/raft/v3/raftpb"
)

// authority issues certificates for 127.0.0.1.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a := &authority{c, key, x509.NewCertPool()}
	a.pool.AddCert(c)
	return a
}

func (a *authority) issue(t *testing.T) *tls.Certificate {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "member"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.key}
}

// issuer has an authority issue the certificates of members, and can change over to another.
type issuer struct {
	current atomic.Pointer[authority]
	asked   atomic.Int64 // how often members asked for a configuration to connect with
}

func newIssuer(a *authority) *issuer {
	is := new(issuer)
	is.current.Store(a)
	return is
}

// start is start of a member with TLS, with certificates on both sides.
func (is *issuer) start(t *testing.T, id membership.ID, change ...func(*Options)) *node {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &node{h: newMember(), id: id, url: "https://" + l.Addr().String(), addr: l.Addr().String()}
	config := func() *tls.Config {
		is.asked.Add(1)
		a := is.current.Load()
		return &tls.Config{Certificates: []tls.Certificate{*a.issue(t)}, RootCAs: a.pool}
	}
	o := Options{ServerVersion: "3.7.1", PeerURLs: []string{n.url}, ClientTLS: config}
	for _, c := range change {
		c(&o)
	}
	n.Transport = New(o)
	n.http = &http.Server{Handler: n.Handler(), ErrorLog: log.New(io.Discard, "", 0), TLSConfig: &tls.Config{
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			a := is.current.Load()
			return &tls.Config{
				Certificates: []tls.Certificate{*a.issue(t)}, ClientCAs: a.pool, ClientAuth: tls.RequireAndVerifyClientCert,
				NextProtos: []string{"h2", "http/1.1"},
			}, nil
		},
	}}
	go n.http.ServeTLS(l, "", "")
	t.Cleanup(n.end)
	n.Open(id, testCluster, n.h)
	return n
}

// Members speak TLS with certificates on both sides, and take new ones at the next
// connection.
func TestTLS(t *testing.T) {
	first, second := newAuthority(t), newAuthority(t)
	is := newIssuer(first)
	quick := func(o *Options) { o.ReadTimeout = time.Second }
	a, b := is.start(t, 1, quick), is.start(t, 2, quick)
	connect(t, a, b)
	a.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, 1, "x")})
	b.h.next(t)
	a.SendSnapshot(snapMessage(2), &zeros{n: 1 << 20, closed: make(chan struct{})}, 1<<20)
	a.h.expect(t, "snapshot 2 <nil>")

	before := is.asked.Load()
	is.current.Store(second)
	for _, n := range []*node{a, b} {
		for k := range kinds {
			n.remote(3 - n.id).outboxes[k].breakOff(errSilent)
		}
	}
	a.h.expect(t, "connected 2")
	a.reaches(t, b)
	b.reaches(t, a)
	if is.asked.Load() == before {
		t.Error("the certificates were not asked for again")
	}
	// One who has none is not let in.
	c := NewClient(func() *tls.Config { return &tls.Config{RootCAs: second.pool} }, "")
	if _, _, err := c.Members(t.Context(), []string{a.url}); err == nil {
		t.Error("a client without a certificate was answered")
	}
	c = NewClient(func() *tls.Config {
		return &tls.Config{RootCAs: second.pool, Certificates: []tls.Certificate{*second.issue(t)}}
	}, "")
	defer c.Close()
	if _, _, err := c.Members(t.Context(), []string{a.url}); err != nil {
		t.Error(err)
	}

	// A dead process is noticed behind TLS, too.
	b.end()
	a.h.expect(t, "gone 2")
}
