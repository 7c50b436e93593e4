package quorate

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

func urls(t *testing.T, list string) URLs {
	t.Helper()
	us, err := ParseURLs(list)
	if err != nil {
		t.Fatal(err)
	}
	return us
}

// testConfig listens on ports of the system's choice.
func testConfig(t *testing.T) *Config {
	t.Helper()
	cfg := DefaultConfig()
	cfg.DataDir = filepath.Join(t.TempDir(), "data")
	cfg.ListenClientURLs = urls(t, "http://127.0.0.1:0")
	cfg.ListenPeerURLs = urls(t, "http://127.0.0.1:0")
	cfg.ListenMetricsURLs = urls(t, "http://127.0.0.1:0")
	return cfg
}

func start(t *testing.T, cfg *Config) *Server {
	t.Helper()
	s, err := Start(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func client(t *testing.T, endpoint string, conf *tls.Config) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, TLS: conf, DialTimeout: 5 * time.Second, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// putGet writes a key and reads it back.
func putGet(t *testing.T, c *clientv3.Client, key, value string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := c.Put(ctx, key, value); err != nil {
		t.Fatal(err)
	}
	got, err := c.Get(ctx, key)
	if err != nil || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != value {
		t.Fatalf("get %s: %v, %v", key, got, err)
	}
}

func fetch(t *testing.T, c *http.Client, url string) (int, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

func TestServe(t *testing.T) {
	cfg := testConfig(t)
	s := start(t, cfg)
	c := client(t, s.Endpoints()[0], nil)
	w := c.Watch(t.Context(), "a", clientv3.WithRev(1))
	putGet(t, c, "a", "1")
	<-w

	metricsURL := s.MetricsURLs()[0]
	for _, tt := range []struct{ url, body string }{
		{s.Endpoints()[0] + "/health", `{"health":"true","reason":""}`},
		{s.Endpoints()[0] + "/version", `{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}`},
		{metricsURL + "/readyz", "ok\n"},
		{metricsURL + "/livez?verbose", "[+]serializable_read ok\nok\n"},
	} {
		if code, body := fetch(t, http.DefaultClient, tt.url); code != 200 || body != tt.body {
			t.Errorf("GET %s: %d %q, want %q", tt.url, code, body, tt.body)
		}
	}
	for _, p := range s.plain {
		if p.kind != kindPeer {
			continue
		}
		var members []struct{ Name string }
		_, body := fetch(t, http.DefaultClient, p.bound()+"/members")
		if err := json.Unmarshal([]byte(body), &members); err != nil || len(members) != 1 || members[0].Name != "default" {
			t.Errorf("/members: %s, %v", body, err)
		}
	}
	_, body := fetch(t, http.DefaultClient, metricsURL+"/metrics")
	for _, want := range []string{
		`etcd_cluster_version{cluster_version="3.7"} 1`, "etcd_debugging_mvcc_keys_total 1", "etcd_debugging_mvcc_current_revision 2",
		"etcd_debugging_mvcc_watcher_total 1", "etcd_debugging_mvcc_watch_stream_total 1", "etcd_debugging_mvcc_events_total 1",
		"etcd_server_has_leader 1", "etcd_server_is_leader 1", `etcd_server_version{server_version="3.7.1"} 1`,
		"etcd_server_quota_backend_bytes 2.147483648e+09", `etcd_server_feature_enabled{name="FastLeaseKeepAlive",stage="BETA"} 1`,
		`grpc_server_handled_total{grpc_code="OK",grpc_method="Put",grpc_service="etcdserverpb.KV",grpc_type="unary"} 1`,
	} {
		if !strings.Contains(body, "\n"+want+"\n") {
			t.Errorf("/metrics has no %q", want)
		}
	}
	resp, err := http.Post(s.Endpoints()[0]+"/v3/kv/range", "application/json", strings.NewReader(`{"key":"YQ=="}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if data, err := io.ReadAll(resp.Body); err != nil || !bytes.Contains(data, []byte(`"value":"MQ=="`)) {
		t.Errorf("/v3/kv/range: %s, %v", data, err)
	}
}

// What an operator need not say, a program need not either.
func TestDerivedConfig(t *testing.T) {
	t.Chdir(t.TempDir())
	cfg := testConfig(t)
	cfg.Name, cfg.DataDir = "m", ""
	cfg.ListenClientURLs, cfg.ClientAutoTLS = urls(t, "https://127.0.0.1:0"), true
	start(t, cfg)
	for _, name := range []string{"m.etcd/member/snap/db", "m.etcd/fixtures/client/cert.pem"} {
		if _, err := os.Stat(name); err != nil {
			t.Error(err)
		}
	}
	if cfg.DataDir != "" {
		t.Error("the caller's Config was changed")
	}
}

func TestDataOutlivesTheServer(t *testing.T) {
	cfg := testConfig(t)
	for i, want := range []int{0, 1, 2} {
		s, err := Start(t.Context(), cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		c := client(t, s.Endpoints()[0], nil)
		got, err := c.Get(t.Context(), "k", clientv3.WithPrefix(), clientv3.WithCountOnly())
		if err != nil || got.Count != int64(want) {
			t.Errorf("start %d: %v, %v; want %d keys", i, got, err, want)
		}
		putGet(t, c, "k"+string(rune('0'+i)), "v")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("closed twice: %v", err)
		}
	}
}

// Streams that a client holds open do not keep the server from stopping.
func TestCloseWithWatch(t *testing.T) {
	s := start(t, testConfig(t))
	c := client(t, s.Endpoints()[0], nil)
	w := c.Watch(t.Context(), "a")
	putGet(t, c, "a", "1")
	if r := <-w; len(r.Events) != 1 {
		t.Fatalf("watch: %+v", r)
	}
	begin := time.Now()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("closing took %v", d)
	}
}

func TestAutoTLS(t *testing.T) {
	cfg := testConfig(t)
	cfg.ListenClientURLs = urls(t, "https://127.0.0.1:0")
	cfg.AdvertiseClientURLs = urls(t, "https://127.0.0.1:2379")
	cfg.ListenPeerURLs = urls(t, "https://127.0.0.1:0")
	cfg.ListenMetricsURLs = urls(t, "https://127.0.0.1:0")
	cfg.ClientAutoTLS, cfg.PeerAutoTLS = true, true
	s := start(t, cfg)

	data, err := os.ReadFile(filepath.Join(cfg.FixturesDir("client"), "cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(data)
	putGet(t, client(t, s.Endpoints()[0], &tls.Config{RootCAs: roots}), "a", "1")

	// HTTP/2 and HTTP/1.1 alike, on the client port and the metrics port.
	for _, h2 := range []bool{false, true} {
		web := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: h2}}
		for _, u := range []string{s.Endpoints()[0] + "/health", s.MetricsURLs()[0] + "/livez"} {
			if code, body := fetch(t, web, u); code != 200 {
				t.Errorf("HTTP/2 %v: GET %s: %d %s", h2, u, code, body)
			}
		}
		web.CloseIdleConnections()
	}
	if _, err := http.Get(s.Endpoints()[0] + "/health"); err == nil {
		t.Error("a client that does not trust the certificate was answered")
	}
}

// Clients with certificates, and a new authority while the server runs.
func TestClientCertificates(t *testing.T) {
	dir := t.TempDir()
	caA, caB := newCA(t), newCA(t)
	cfg := testConfig(t)
	cfg.ListenClientURLs = urls(t, "https://127.0.0.1:0")
	cfg.AdvertiseClientURLs = urls(t, "https://127.0.0.1:2379")
	cfg.ClientTLS.CertFile, cfg.ClientTLS.KeyFile = caA.issue(t, dir, "server")
	cfg.ClientTLS.ClientCertAuth = true
	cfg.ClientTLS.TrustedCAFile = filepath.Join(dir, "ca.pem")
	writePEM(t, cfg.ClientTLS.TrustedCAFile, "CERTIFICATE", caA.cert.Raw)
	s := start(t, cfg)

	roots := x509.NewCertPool()
	roots.AddCert(caA.cert)
	with := func(ca *ca, name string) *tls.Config {
		pair, err := tls.LoadX509KeyPair(ca.issue(t, dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}
	}
	refused := func(why string, conf *tls.Config) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := client(t, s.Endpoints()[0], conf).Put(ctx, "a", "1"); err == nil {
			t.Errorf("%s was let in", why)
		}
	}
	putGet(t, client(t, s.Endpoints()[0], with(caA, "a")), "a", "1")
	refused("a client without a certificate", &tls.Config{RootCAs: roots})
	refused("a client of another authority", with(caB, "b"))

	writePEM(t, cfg.ClientTLS.TrustedCAFile, "CERTIFICATE", caB.cert.Raw)
	putGet(t, client(t, s.Endpoints()[0], with(caB, "b")), "a", "2")
	refused("a client of the former authority", with(caA, "a"))
}

// ca is a certificate authority.
type ca struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t *testing.T) *ca {
	t.Helper()
	key, der := certify(t, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, nil)
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &ca{cert, key}
}

// issue writes a certificate for 127.0.0.1 and its key.
func (c *ca) issue(t *testing.T, dir, name string) (certFile, keyFile string) {
	t.Helper()
	key, der := certify(t, &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}, c)
	certFile, keyFile = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+"-key.pem")
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, certFile, "CERTIFICATE", der)
	writePEM(t, keyFile, "EC PRIVATE KEY", keyDER)
	return certFile, keyFile
}

// certify signs tmpl by the authority, or by itself if that is nil.
func certify(t *testing.T, tmpl *x509.Certificate, by *ca) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if by == nil {
		by = &ca{tmpl, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, by.cert, &key.PublicKey, by.key)
	if err != nil {
		t.Fatal(err)
	}
	return key, der
}

func writePEM(t *testing.T, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestUnixSocketAndSplitHTTP(t *testing.T) {
	dir, err := os.MkdirTemp("", "q") // t.TempDir's names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	// What a killed server leaves behind.
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()

	cfg := testConfig(t)
	cfg.ListenClientURLs = urls(t, "unix://"+socket+",http://127.0.0.1:0")
	cfg.ListenClientHTTPURLs = urls(t, "http://127.0.0.1:0")
	s := start(t, cfg)
	for _, e := range s.Endpoints() {
		putGet(t, client(t, e, nil), "a", e)
		if strings.HasPrefix(e, "http") {
			if resp, err := http.Get(e + "/health"); err == nil {
				resp.Body.Close()
				t.Errorf("%s answers HTTP although HTTP has a listener of its own", e)
			}
		}
	}
	if len(s.Endpoints()) != 2 {
		t.Errorf("endpoints %v", s.Endpoints())
	}
	for _, l := range s.clients {
		if l.httpOnly {
			if code, _ := fetch(t, http.DefaultClient, l.bound()+"/health"); code != 200 {
				t.Errorf("%s/health: %d", l.bound(), code)
			}
		}
	}
}

func TestStartErrors(t *testing.T) {
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"invalid", func(c *Config) { c.HeartbeatInterval = 0 }, "--heartbeat-interval must be >0"},
		{"address in use", func(c *Config) { c.ListenClientURLs = urls(t, "http://"+busy.Addr().String()) }, "address already in use"},
		{"no certificate", func(c *Config) {
			c.ListenClientURLs = urls(t, "https://127.0.0.1:0")
			c.ClientTLS.CertFile, c.ClientTLS.KeyFile = "/nonexistent/c", "/nonexistent/k"
		}, "open /nonexistent/c: no such file or directory"},
		{"not in the cluster", func(c *Config) { c.InitialCluster = "other=http://127.0.0.1:1" }, `couldn't find local name "default" in the initial cluster configuration`},
	} {
		cfg := testConfig(t)
		tt.change(cfg)
		s, err := Start(t.Context(), cfg, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.want)
		}
		if s != nil {
			t.Errorf("%s: a server came with the error", tt.name)
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	cfg := testConfig(t)
	if s, err := Start(ctx, cfg, slog.New(slog.DiscardHandler)); err == nil {
		s.Close() // it was ready before it looked: allowed
	} else if !errors.Is(err, context.Canceled) {
		t.Errorf("canceled start: %v", err)
	}
	// Whatever happened, the directory is free again and sound.
	start(t, cfg)
}

func TestSecondServerOnOneDirectoryIsRefused(t *testing.T) {
	cfg := testConfig(t)
	start(t, cfg)
	again := testConfig(t)
	again.DataDir = cfg.DataDir
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if s, err := Start(ctx, again, slog.New(slog.DiscardHandler)); err == nil {
		s.Close()
		t.Error("two servers run on one directory")
	} else {
		t.Log(err)
	}
}

// Connections beyond the limit wait until one ends.
func TestLimitedListener(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newLimited(inner, make(chan struct{}, 2))
	accepted := make(chan net.Conn)
	ended := make(chan error, 1)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				ended <- err
				return
			}
			accepted <- c
		}
	}()
	var conns []net.Conn
	for range 3 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	for range 2 {
		conns = append(conns, <-accepted)
	}
	select {
	case <-accepted:
		t.Fatal("a third connection was accepted")
	case <-time.After(100 * time.Millisecond):
	}
	conns[0].Close()
	conns[0].Close() // must not make room twice
	<-accepted
	// Closing ends Accept also while it holds a connection that waits.
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, net.ErrClosed) {
		t.Errorf("Accept ended with %v", err)
	}
}
