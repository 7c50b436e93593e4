package tlsconf

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority signs test certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	from time.Time // of what it issues, which is valid for two hours
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t, cert, key, time.Now().Add(-time.Hour)}
}

// issue writes name.pem and name-key.pem into dir and returns their paths.
func (a *authority) issue(dir, name, cn string, serial int64, hosts ...string) (cert, key string) {
	a.t.Helper()
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: cn},
		NotBefore: a.from, NotAfter: a.from.Add(2 * time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: hosts,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &priv.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(priv)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, key = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem")
	if err := errors.Join(writePEM(cert, "CERTIFICATE", der, 0o644), writePEM(key, "EC PRIVATE KEY", keyDER, 0o600)); err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// writeCA writes the certificates of as into dir/ca.pem.
func writeCA(t *testing.T, dir string, as ...*authority) string {
	t.Helper()
	var b bytes.Buffer
	for _, a := range as {
		if err := pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}); err != nil {
			t.Fatal(err)
		}
	}
	name := filepath.Join(dir, "ca.pem")
	replace(t, name, b.Bytes())
	return name
}

func replace(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := errors.Join(os.WriteFile(name+".new", data, 0o600), os.Rename(name+".new", name)); err != nil {
		t.Fatal(err)
	}
}

func (a *authority) revoke(dir string, asPEM bool, serials ...int64) string {
	a.t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(time.Now().UnixNano()), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	for _, n := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: big.NewInt(n), RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	if asPEM {
		der = pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
	}
	name := filepath.Join(dir, "crl")
	replace(a.t, name, der)
	return name
}

// server accepts one byte on each connection and answers it.
func server(t *testing.T, s *Source) string {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", s.ServerConfig("h2"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b := make([]byte, 1)
			if _, err := c.Read(b); err != nil {
				t.Logf("server: %v", err)
			} else if _, err := c.Write(b); err != nil {
				t.Logf("server: %v", err)
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

type dialer struct {
	roots     *x509.CertPool
	cert, key string
	cache     tls.ClientSessionCache
}

// talk completes a handshake both ways and returns the server's certificate.
func (d dialer) talk(addr string) (tls.ConnectionState, error) {
	conf := &tls.Config{RootCAs: d.roots, NextProtos: []string{"h2"}, ClientSessionCache: d.cache}
	if d.cert != "" {
		c, err := pair(d.cert, d.key)
		if err != nil {
			return tls.ConnectionState{}, err
		}
		conf.Certificates = []tls.Certificate{*c}
	}
	c, err := tls.Dial("tcp", addr, conf)
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer c.Close()
	if _, err := c.Write([]byte("x")); err != nil {
		return tls.ConnectionState{}, err
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		return tls.ConnectionState{}, err
	}
	return c.ConnectionState(), nil
}

func load(t *testing.T, f Files) (*Source, *bytes.Buffer) {
	t.Helper()
	var buf bytes.Buffer
	s, err := Load(f, Protocol{}, slog.New(slog.NewTextHandler(&buf, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return s, &buf
}

// A certificate, the CA and the revocation list all change under a running server.
func TestFilesAreReloaded(t *testing.T) {
	dir := t.TempDir()
	a, b := newAuthority(t, "a"), newAuthority(t, "b")
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	cert, key := a.issue(dir, "server", "s", 10)
	f := Files{CertFile: cert, KeyFile: key, ClientCertAuth: true, TrustedCAFile: writeCA(t, dir, a), CRLFile: a.revoke(dir, false)}
	s, log := load(t, f)
	addr := server(t, s)

	client := dialer{roots: roots, cache: tls.NewLRUClientSessionCache(8)}
	client.cert, client.key = a.issue(dir, "client", "c", 20)
	foreign := dialer{roots: roots}
	foreign.cert, foreign.key = b.issue(dir, "foreign", "f", 30)

	serial := func(d dialer) (int64, error) {
		cs, err := d.talk(addr)
		if err != nil {
			return 0, err
		}
		return cs.PeerCertificates[0].SerialNumber.Int64(), nil
	}
	if n, err := serial(client); err != nil || n != 10 {
		t.Fatalf("first: %d, %v", n, err)
	}
	if cs, err := client.talk(addr); err != nil || !cs.DidResume {
		t.Errorf("a second connection did not resume the session (%v)", err)
	}
	if _, err := serial(dialer{roots: roots}); err == nil {
		t.Error("a client without certificate was let in")
	}
	if _, err := serial(foreign); err == nil {
		t.Error("a client of another CA was let in")
	}

	a.issue(dir, "server", "s", 11)
	if n, err := serial(client); err != nil || n != 11 {
		t.Errorf("after the certificate changed: %d, %v", n, err)
	}

	writeCA(t, dir, a, b)
	if _, err := serial(foreign); err != nil {
		t.Errorf("after the CA changed: %v", err)
	}

	for i, asPEM := range []bool{false, true} {
		a.revoke(dir, asPEM, 20)
		if _, err := serial(client); err == nil {
			t.Errorf("PEM %v: a revoked client was let in", asPEM)
		}
		a.revoke(dir, asPEM, int64(1000+i))
		if _, err := serial(client); err != nil {
			t.Errorf("PEM %v: a client that is revoked no more was kept out: %v", asPEM, err)
		}
	}

	// A broken file leaves what was in force, and is warned about once.
	log.Reset()
	replace(t, key, []byte("not a key"))
	for range 3 {
		if n, err := serial(client); err != nil || n != 11 {
			t.Errorf("with a broken key: %d, %v", n, err)
		}
	}
	if err := os.Remove(f.TrustedCAFile); err != nil {
		t.Fatal(err)
	}
	if _, err := serial(client); err != nil {
		t.Errorf("with a missing CA: %v", err)
	}
	if n := strings.Count(log.String(), "cannot read changed TLS files"); n != 2 {
		t.Errorf("%d warnings, want one for each broken state:\n%s", n, log)
	}
	writeCA(t, dir, a)
	a.issue(dir, "server", "s", 12)
	if n, err := serial(client); err != nil || n != 12 {
		t.Errorf("after the files were mended: %d, %v", n, err)
	}
}

func TestAllowed(t *testing.T) {
	dir := t.TempDir()
	a := newAuthority(t, "a")
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	ca := writeCA(t, dir, a)
	cert, key := a.issue(dir, "server", "s", 10)
	good := dialer{roots: roots}
	good.cert, good.key = a.issue(dir, "good", "good", 1, "good.example")
	bad := dialer{roots: roots}
	bad.cert, bad.key = a.issue(dir, "bad", "bad", 2, "bad.example")

	for name, f := range map[string]Files{
		"cn":       {AllowedCNs: []string{"x", "good"}},
		"hostname": {AllowedHostnames: []string{"x", "good.example"}},
	} {
		f.CertFile, f.KeyFile, f.TrustedCAFile = cert, key, ca
		s, _ := load(t, f)
		addr := server(t, s)
		if _, err := good.talk(addr); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := bad.talk(addr); err == nil {
			t.Errorf("%s: a client that is not allowed was let in", name)
		}
	}
}

func TestSelfCert(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "fixtures", "client")
	log := slog.New(slog.DiscardHandler)
	f, err := SelfCert(dir, []string{"127.0.0.1:2379", "localhost:2379", "[::1]:1"}, 1, log)
	if err != nil {
		t.Fatal(err)
	}
	s, _ := load(t, f)
	c := s.current().cert.Leaf
	for _, host := range []string{"127.0.0.1", "localhost", "::1"} {
		if err := c.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	if d := time.Until(c.NotAfter); d < 364*24*time.Hour || d > 366*24*time.Hour {
		t.Errorf("valid for %v", d)
	}
	if fi, err := os.Stat(f.KeyFile); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("key file: %v, %v", fi, err)
	}
	before, _ := os.ReadFile(f.CertFile)
	if _, err := SelfCert(dir, nil, 1, log); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.ReadFile(f.CertFile); !bytes.Equal(before, after) {
		t.Error("a valid certificate was replaced")
	}
	replace(t, f.CertFile, []byte("torn"))
	if _, err := SelfCert(dir, nil, 1, log); err != nil {
		t.Fatal(err)
	}
	if _, err := pair(f.CertFile, f.KeyFile); err != nil {
		t.Errorf("a broken certificate was not replaced: %v", err)
	}
	if _, err := SelfCert(dir, nil, 0, log); err == nil {
		t.Error("validity 0 was taken")
	}
}

func TestStartErrors(t *testing.T) {
	dir := t.TempDir()
	a := newAuthority(t, "a")
	cert, key := a.issue(dir, "server", "s", 1)
	empty := filepath.Join(dir, "empty")
	replace(t, empty, nil)
	for _, tt := range []struct {
		name string
		f    Files
		p    Protocol
		want string
	}{
		{"no key", Files{CertFile: cert}, Protocol{}, "KeyFile and CertFile must both be present[key: , cert: " + cert + "]"},
		{"missing file", Files{CertFile: cert, KeyFile: dir + "/none"}, Protocol{}, "open " + dir + "/none: no such file or directory"},
		{"wrong pair", Files{CertFile: cert, KeyFile: cert}, Protocol{}, "certificate " + cert + " with key " + cert + ": tls: found a certificate rather than a key in the PEM for the private key"},
		{"half a client pair", Files{CertFile: cert, KeyFile: key, ClientCertFile: cert}, Protocol{}, "ClientKeyFile and ClientCertFile must both be present or both absent: key: , cert: " + cert + "]"},
		{"cn and hostname", Files{CertFile: cert, KeyFile: key, AllowedCNs: []string{"a"}, AllowedHostnames: []string{"b"}}, Protocol{}, `AllowedCNs and AllowedHostnames are mutually exclusive (cns=["a"], hostnames=["b"])`},
		{"empty CA", Files{CertFile: cert, KeyFile: key, TrustedCAFile: empty}, Protocol{}, "no certificate in trusted CA file " + empty},
		{"bad CRL", Files{CertFile: cert, KeyFile: key, CRLFile: empty}, Protocol{}, "revocation list " + empty + ": x509: malformed crl"},
		{"bad version", Files{}, Protocol{MinVersion: "TLS1.1"}, `unexpected TLS version "TLS1.1" (must be one of: TLS1.2, TLS1.3)`},
		{"versions crossed", Files{}, Protocol{MinVersion: "TLS1.3", MaxVersion: "TLS1.2"}, "min version (TLS1.3) is greater than max version (TLS1.2)"},
		{"ciphers of 1.3", Files{}, Protocol{MinVersion: "TLS1.3", CipherSuites: []string{"TLS_AES_128_GCM_SHA256"}}, "cipher suites cannot be configured when only TLS1.3 is enabled"},
		{"bad cipher", Files{}, Protocol{CipherSuites: []string{"rot13"}}, `unexpected TLS cipher suite "rot13"`},
	} {
		_, err := Load(tt.f, tt.p, slog.New(slog.DiscardHandler))
		if err == nil || err.Error() != tt.want {
			t.Errorf("%s:\n got  %v\n want %s", tt.name, err, tt.want)
		}
	}
}

// A certificate that nobody trusts any more, or yet, is used, with a word about it.
func TestOutOfTime(t *testing.T) {
	dir := t.TempDir()
	a := newAuthority(t, "a")
	for _, tt := range []struct {
		name string
		from time.Duration
		warn bool
	}{{"now", -time.Hour, false}, {"expired", -3 * time.Hour, true}, {"early", time.Hour, true}} {
		a.from = time.Now().Add(tt.from)
		cert, key := a.issue(dir, tt.name, "s", 1)
		var log bytes.Buffer
		if _, err := Load(Files{CertFile: cert, KeyFile: key}, Protocol{}, slog.New(slog.NewTextHandler(&log, nil))); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		if warned := strings.Contains(log.String(), "expired or is not yet valid") && strings.Contains(log.String(), cert); warned != tt.warn {
			t.Errorf("%s: log %q", tt.name, &log)
		}
	}
}

func TestVersionsAndCiphers(t *testing.T) {
	dir := t.TempDir()
	a := newAuthority(t, "a")
	cert, key := a.issue(dir, "server", "s", 1)
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	s, err := Load(Files{CertFile: cert, KeyFile: key}, Protocol{
		MaxVersion: "TLS1.2", CipherSuites: []string{"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305"},
	}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	cs, err := dialer{roots: roots}.talk(server(t, s))
	if err != nil || cs.Version != tls.VersionTLS12 || cs.CipherSuite != tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 {
		t.Errorf("version %x, cipher %x, %v", cs.Version, cs.CipherSuite, err)
	}
}

func BenchmarkCurrent(b *testing.B) {
	dir := b.TempDir()
	f, err := SelfCert(dir, nil, 1, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	s, err := Load(f, Protocol{}, slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s.ForHello("h2")
	}
}
