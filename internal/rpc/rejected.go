package rpc

import (
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Anybody can make handshakes fail, as fast as the network goes and with long names in
// them. Of the failures within rejectedWindow, rejectedMax are logged; the next one that
// is logged says how many were left out. What the stranger says is cut to rejectedText
// bytes.
const (
	rejectedWindow = time.Minute
	rejectedMax    = 60
	rejectedText   = 512
)

// rejected logs the connections whose TLS handshake fails.
type rejected struct {
	log *slog.Logger

	mu      sync.Mutex
	since   time.Time // when the window began
	lines   int       // logged in it
	leftOut int       // not logged since the last line
}

// note logs that a connection from remote was refused with err. Who only connects and
// hangs up, as port checks do, is left to the debug level, which has no bound.
func (r *rejected) note(remote net.Addr, state tls.ConnectionState, err error) {
	attrs := []any{"remote-addr", remote.String(), "server-name", cut(state.ServerName)}
	if len(state.PeerCertificates) > 0 {
		c := state.PeerCertificates[0]
		attrs = append(attrs, "ip-addresses", c.IPAddresses, "dns-names", c.DNSNames)
	}
	attrs = append(attrs, "error", cut(err.Error()))
	const text = "rejected connection on client endpoint"
	if errors.Is(err, io.EOF) {
		r.log.Debug(text, attrs...)
		return
	}
	leftOut, ok := r.take(time.Now())
	if !ok {
		return
	}
	if leftOut > 0 {
		attrs = append(attrs, "left-out", leftOut)
	}
	r.log.Warn(text, attrs...)
}

// take reports whether a line may be logged now, and how many were not before it.
func (r *rejected) take(now time.Time) (leftOut int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.since) >= rejectedWindow {
		r.since, r.lines = now, 0
	}
	if r.lines == rejectedMax {
		r.leftOut++
		return 0, false
	}
	r.lines++
	leftOut, r.leftOut = r.leftOut, 0
	return leftOut, true
}

// cut is s, or its beginning if it is long.
func cut(s string) string {
	if len(s) <= rejectedText {
		return s
	}
	return s[:rejectedText] + "..."
}
