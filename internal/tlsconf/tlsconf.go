// Package tlsconf makes TLS configurations from the files that etcd's flags name, and
// keeps them true: certificate, key, CA and revocation list are looked at on every
// handshake (a few stat calls) and read again when they changed, so that no certificate
// ever needs a restart. What cannot be read later (a half-written pair, a file that is
// gone for a moment) leaves the last good state in force, with a warning.
package tlsconf

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Files are the flags of one side, client port or peer port.
type Files struct {
	CertFile, KeyFile string // what the server shows
	// ClientCertFile and ClientKeyFile are what the member shows as a client; empty:
	// the server's pair.
	ClientCertFile, ClientKeyFile string
	TrustedCAFile                 string // who must have signed client certificates
	ClientCertAuth                bool   // clients must show a certificate
	CRLFile                       string // certificates revoked by serial number, PEM or DER
	// AllowedCNs or AllowedHostnames, of which one may be given, say which client
	// certificates are let in; empty: any that the CA signed.
	AllowedCNs       []string
	AllowedHostnames []string
	// SkipClientSANVerify lets peers in whose address is not in their certificate.
	SkipClientSANVerify bool
	// SelfMade says that the members' certificates are made by themselves (SelfCert): who
	// dials cannot know them, and takes any, as etcd does.
	SelfMade bool
}

// Empty reports whether f names no server certificate.
func (f Files) Empty() bool { return f.CertFile == "" && f.KeyFile == "" }

// String is f as etcd logs it.
func (f Files) String() string {
	return fmt.Sprintf("cert = %s, key = %s, client-cert=%s, client-key=%s, trusted-ca = %s, client-cert-auth = %v, crl-file = %s",
		f.CertFile, f.KeyFile, f.ClientCertFile, f.ClientKeyFile, f.TrustedCAFile, f.ClientCertAuth, f.CRLFile)
}

// Protocol is what both sides share.
type Protocol struct {
	CipherSuites []string // names; empty: Go's choice
	MinVersion   string   // TLS1.2 or TLS1.3; empty: TLS1.2
	MaxVersion   string   // the same; empty: the newest
}

// Check reports what is wrong with p.
func (p Protocol) Check() error {
	least, err := version(p.MinVersion)
	if err != nil {
		return err
	}
	most, err := version(p.MaxVersion)
	if err != nil {
		return err
	}
	if most != 0 && least > most {
		return fmt.Errorf("min version (%s) is greater than max version (%s)", p.MinVersion, p.MaxVersion)
	}
	if least == tls.VersionTLS13 && len(p.CipherSuites) > 0 {
		return errors.New("cipher suites cannot be configured when only TLS1.3 is enabled")
	}
	_, err = cipherSuites(p.CipherSuites)
	return err
}

func version(name string) (uint16, error) {
	switch name {
	case "":
		return 0, nil
	case "TLS1.2":
		return tls.VersionTLS12, nil
	case "TLS1.3":
		return tls.VersionTLS13, nil
	}
	return 0, fmt.Errorf("unexpected TLS version %q (must be one of: TLS1.2, TLS1.3)", name)
}

func cipherSuites(names []string) ([]uint16, error) {
	ids := map[string]uint16{
		"TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305":   tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		"TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305": tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	}
	for _, c := range slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites()) {
		ids[c.Name] = c.ID
	}
	var out []uint16
	for _, name := range names {
		id, ok := ids[name]
		if !ok {
			return nil, fmt.Errorf("unexpected TLS cipher suite %q", name)
		}
		out = append(out, id)
	}
	return out, nil
}

// Source hands out configurations made from one set of files. It is safe for concurrent
// use.
type Source struct {
	files Files
	base  tls.Config // what does not change with the files
	log   *slog.Logger

	state atomic.Pointer[state]
	mu    sync.Mutex // held while reading files again
	// failed is the stamps of the files that last could not be read, so that one broken
	// state is warned about once; guarded by mu.
	failed stamps
}

// state is what the files said when their stamps were as noted.
type state struct {
	stamps  stamps
	cert    *tls.Certificate
	client  *tls.Certificate // what the member shows as a client
	roots   *x509.CertPool   // nil: no CA file
	revoked map[string]bool  // serial numbers' bytes

	// ticketKey lets clients resume sessions of this state, and of no other: after a
	// change everybody shakes hands in full, against the new files.
	ticketKey [32]byte
	made      time.Time
	configs   sync.Map // servers' configurations by their protocols
}

// ticketKeyAgeMax is when a state is made anew although no file changed, so that a key of
// session tickets does not live for ever.
const ticketKeyAgeMax = 24 * time.Hour

// Load reads the files and returns their Source. Its errors carry etcd's texts. A server
// must have CertFile and KeyFile.
func Load(f Files, p Protocol, log *slog.Logger) (*Source, error) {
	if err := p.Check(); err != nil {
		return nil, err
	}
	if f.KeyFile == "" || f.CertFile == "" {
		return nil, fmt.Errorf("KeyFile and CertFile must both be present[key: %v, cert: %v]", f.KeyFile, f.CertFile)
	}
	if (f.ClientKeyFile == "") != (f.ClientCertFile == "") {
		return nil, fmt.Errorf("ClientKeyFile and ClientCertFile must both be present or both absent: key: %v, cert: %v]", f.ClientKeyFile, f.ClientCertFile)
	}
	if len(f.AllowedCNs) > 0 && len(f.AllowedHostnames) > 0 {
		return nil, fmt.Errorf("AllowedCNs and AllowedHostnames are mutually exclusive (cns=%q, hostnames=%q)", f.AllowedCNs, f.AllowedHostnames)
	}
	s := &Source{files: f, log: log}
	s.base.MinVersion, _ = version(p.MinVersion) // Check has seen them
	s.base.MaxVersion, _ = version(p.MaxVersion)
	s.base.CipherSuites, _ = cipherSuites(p.CipherSuites)
	if s.base.MinVersion == 0 {
		s.base.MinVersion = tls.VersionTLS12
	}
	st, err := s.read()
	if err != nil {
		return nil, err
	}
	s.state.Store(st)
	return s, nil
}

// ServerConfig returns a configuration for a server that speaks the given protocols
// (ALPN). Changed files take part in the next handshake.
func (s *Source) ServerConfig(protocols ...string) *tls.Config {
	c := s.base.Clone()
	c.NextProtos = protocols
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		return s.ForHello(protocols...), nil
	}
	// Some libraries insist on a certificate in the configuration itself.
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.current().cert, nil }
	return c
}

// ForHello returns the configuration for one handshake; a server that chooses protocols
// by what the client offers calls it from its own GetConfigForClient.
func (s *Source) ForHello(protocols ...string) *tls.Config {
	st := s.current()
	name := strings.Join(protocols, ",")
	if c, ok := st.configs.Load(name); ok {
		return c.(*tls.Config)
	}
	c, _ := st.configs.LoadOrStore(name, s.serverConfig(st, protocols))
	return c.(*tls.Config)
}

// ClientConfig returns a configuration with which the member dials others of its side.
func (s *Source) ClientConfig() *tls.Config {
	c := s.base.Clone()
	c.RootCAs = s.current().roots
	c.InsecureSkipVerify = s.files.SelfMade
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return s.current().client, nil
	}
	return c
}

func (s *Source) serverConfig(st *state, protocols []string) *tls.Config {
	c := s.base.Clone()
	c.NextProtos = protocols
	c.Certificates = []tls.Certificate{*st.cert}
	if s.files.TrustedCAFile != "" || s.files.ClientCertAuth {
		c.ClientAuth = tls.RequireAndVerifyClientCert
		c.ClientCAs = st.roots
	}
	c.SetSessionTicketKeys([][32]byte{st.ticketKey})
	c.VerifyConnection = func(cs tls.ConnectionState) error { return s.verify(cs, st) }
	return c
}

// verify lets a client in or not. It runs after the chain was verified, and on resumed
// sessions too.
func (s *Source) verify(cs tls.ConnectionState, st *state) error {
	for _, c := range cs.PeerCertificates {
		if serial := c.SerialNumber.Bytes(); st.revoked[string(serial)] {
			return fmt.Errorf("transport: certificate serial %x revoked", serial)
		}
	}
	if len(s.files.AllowedCNs) == 0 && len(s.files.AllowedHostnames) == 0 {
		return nil
	}
	for _, chain := range cs.VerifiedChains {
		if len(chain) > 0 && s.allowed(chain[0]) {
			return nil
		}
	}
	return errors.New("client certificate authentication failed")
}

func (s *Source) allowed(c *x509.Certificate) bool {
	if len(s.files.AllowedCNs) > 0 {
		return slices.Contains(s.files.AllowedCNs, c.Subject.CommonName)
	}
	return slices.ContainsFunc(s.files.AllowedHostnames, func(name string) bool {
		return c.VerifyHostname(name) == nil
	})
}

// current is the newest state that could be read.
func (s *Source) current() *state {
	st := s.state.Load()
	now := s.files.stamps()
	if now == st.stamps && time.Since(st.made) < ticketKeyAgeMax {
		return st
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st = s.state.Load() // another handshake may have been here first
	changed := now != st.stamps
	if !changed && time.Since(st.made) < ticketKeyAgeMax || now == s.failed {
		return st
	}
	next, err := s.read()
	if err != nil {
		s.failed = now
		s.log.Warn("cannot read changed TLS files; the previous ones stay in use", "tls-info", s.files.String(), "error", err)
		return st
	}
	s.failed = stamps{}
	s.state.Store(next)
	if changed {
		s.log.Info("TLS files changed and are in use", "tls-info", s.files.String())
	}
	return next
}

// read reads all files. Its stamps are taken before, so that a change meanwhile is seen
// as one afterwards.
func (s *Source) read() (*state, error) {
	f := s.files
	st := &state{stamps: f.stamps(), made: time.Now()}
	if _, err := rand.Read(st.ticketKey[:]); err != nil {
		return nil, err
	}
	var err error
	if st.cert, err = pair(f.CertFile, f.KeyFile); err != nil {
		return nil, err
	}
	s.warnOfTime(f.CertFile, st)
	st.client = st.cert
	if f.ClientCertFile != "" {
		if st.client, err = pair(f.ClientCertFile, f.ClientKeyFile); err != nil {
			return nil, err
		}
	}
	if f.TrustedCAFile != "" {
		if st.roots, err = pool(f.TrustedCAFile); err != nil {
			return nil, err
		}
	}
	if f.CRLFile != "" {
		if st.revoked, err = revoked(f.CRLFile); err != nil {
			return nil, err
		}
	}
	return st, nil
}

// warnOfTime says when a certificate is used outside its time: nobody will trust it, and they
// say so on their side alone.
func (s *Source) warnOfTime(file string, st *state) {
	if c := st.cert.Leaf; c != nil && (st.made.After(c.NotAfter) || st.made.Before(c.NotBefore)) {
		s.log.Warn("certificate has expired or is not yet valid; replace the file, without a restart",
			"cert-file", file, "not-before", c.NotBefore, "not-after", c.NotAfter)
	}
}

func pair(certFile, keyFile string) (*tls.Certificate, error) {
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return nil, err
	}
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, err
	}
	c, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", certFile, keyFile, err)
	}
	return &c, nil
}

// pool reads every certificate of a PEM file.
func pool(name string) (*x509.CertPool, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	p, n := x509.NewCertPool(), 0
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("trusted CA file %s: %w", name, err)
		}
		p.AddCert(c)
		n++
	}
	if n == 0 {
		return nil, fmt.Errorf("no certificate in trusted CA file %s", name)
	}
	return p, nil
}

func revoked(name string) (map[string]bool, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	if block, _ := pem.Decode(data); block != nil {
		data = block.Bytes
	}
	list, err := x509.ParseRevocationList(data)
	if err != nil {
		return nil, fmt.Errorf("revocation list %s: %w", name, err)
	}
	serials := make(map[string]bool)
	for _, c := range list.RevokedCertificateEntries {
		serials[string(c.SerialNumber.Bytes())] = true
	}
	return serials, nil
}
