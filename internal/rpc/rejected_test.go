package rpc

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// syncBuffer is a bytes.Buffer for several goroutines.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func debugLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// TestRejected fails TLS handshakes in several ways and reads what the operator is told.
func TestRejected(t *testing.T) {
	serverTLS, clientTLS := selfSigned(t)
	asking := serverTLS.Clone()
	asking.ClientAuth = tls.RequireAnyClientCert
	asking.VerifyConnection = func(tls.ConnectionState) error { return errors.New("not on the list") }
	for _, tc := range []struct {
		name   string
		server *tls.Config
		client func(net.Conn)
		want   []string
	}{
		{"plaintext", serverTLS, func(c net.Conn) { _, _ = io.WriteString(c, "GET / HTTP/1.1\r\n\r\n") },
			[]string{"level=WARN", `server-name=""`, `error="tls: first record does not look like a TLS handshake"`}},
		{"unknown authority", serverTLS, func(c net.Conn) { _ = tls.Client(c, &tls.Config{ServerName: "some.host"}).Handshake() },
			[]string{"level=WARN", "server-name=some.host", `error="remote error: tls: bad certificate"`}},
		{"certificate that is not wanted", asking, func(c net.Conn) {
			config := clientTLS.Clone()
			config.ServerName, config.InsecureSkipVerify, config.Certificates = "some.host", true, serverTLS.Certificates
			_ = tls.Client(c, config).Handshake()
		}, []string{"level=WARN", "server-name=some.host", "ip-addresses=[127.0.0.1]", "dns-names=[]", `error="not on the list"`}},
		{"nothing", serverTLS, func(c net.Conn) { _ = c.(*net.TCPConn).CloseWrite() }, []string{"level=DEBUG", "error=EOF"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out syncBuffer
			_, addr := start(t, newMember(t), func(o *Options) { o.Logger = debugLog(&out) }, func(l *Listener) { l.TLS = tc.server })
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			tc.client(c)
			if _, err := io.Copy(io.Discard, c); err != nil && isTimeout(err) {
				t.Fatal(err)
			}
			want := append(tc.want, `msg="rejected connection on client endpoint"`, "remote-addr="+c.LocalAddr().String())
			line := out.String() // written before the connection was closed
			for _, w := range want {
				if !strings.Contains(line, w) {
					t.Errorf("the log lacks %s: %s", w, line)
				}
			}
			if n := strings.Count(line, "\n"); n != 1 {
				t.Errorf("%d lines: %s", n, line)
			}
		})
	}
}

// TestRejectedAtShutdown: who is sent away because the server stops did nothing wrong.
func TestRejectedAtShutdown(t *testing.T) {
	var out syncBuffer
	serverTLS, _ := selfSigned(t)
	s, addr := start(t, newMember(t), func(o *Options) { o.Logger = debugLog(&out) }, func(l *Listener) { l.TLS = serverTLS })
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		s.conns.mu.Lock()
		n := len(s.conns.open)
		s.conns.mu.Unlock()
		if n > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the connection never came")
		}
	}
	s.Shutdown(t.Context())
	_, _ = io.Copy(io.Discard, c) // until the server has closed it
	if strings.Contains(out.String(), "rejected") {
		t.Error(out.String())
	}
}

// TestRejectedBound floods the log.
func TestRejectedBound(t *testing.T) {
	var out syncBuffer
	r := rejected{log: debugLog(&out)}
	addr := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}
	long := tls.ConnectionState{ServerName: strings.Repeat("n", 60_000)}
	for range rejectedMax + 40 {
		r.note(addr, long, errors.New(strings.Repeat("e", 60_000)))
	}
	if n, size := strings.Count(out.String(), "\n"), len(out.String()); n != rejectedMax || size > rejectedMax*2000 {
		t.Errorf("%d lines, %d bytes", n, size)
	}
	r.since = r.since.Add(-rejectedWindow)
	for range 2 {
		r.note(addr, tls.ConnectionState{}, io.ErrUnexpectedEOF)
	}
	if got := strings.Count(out.String(), "left-out="); got != 1 || !strings.Contains(out.String(), "left-out=40") {
		t.Errorf("said %d times how many were left out", got)
	}
}
