package httpapi

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
)

// guard stands before the client port's handlers: it turns away browsers that were led
// here by a foreign name (DNS rebinding, CVE-2018-5702), answers CORS and keeps the
// gateway's old path alive.
type guard struct {
	next    http.Handler
	log     *slog.Logger
	origins []string // nil: all
	hosts   []string // nil: all
	unnamed func() bool
}

func newGuard(next http.Handler, o Options) *guard {
	return &guard{next, o.Logger, restricted(o.CORS), restricted(o.Hosts), o.GatewayUnnamed}
}

// restricted is list, or nil if it allows everything.
func restricted(list []string) []string {
	if len(list) == 0 || slices.Contains(list, "*") {
		return nil
	}
	return list
}

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if rest, ok := strings.CutPrefix(r.URL.Path, "/v3beta/"); ok {
		r.URL.Path = "/v3/" + rest
	}
	if r.TLS == nil && g.hosts != nil {
		if host := hostname(r); !slices.Contains(g.hosts, host) {
			g.log.Warn("rejecting HTTP request to prevent DNS rebinding attacks", "host", host)
			http.Error(w, misdirected(host), http.StatusMisdirectedRequest)
			return
		}
	}
	if g.unnamed != nil && strings.HasPrefix(r.URL.Path, "/v3/") && named(r) && g.unnamed() {
		http.Error(w, "CommonName of client sending a request against gateway will be ignored and not used as expected", http.StatusBadRequest)
		return
	}
	if origin := g.origin(r); origin != "" {
		h := w.Header()
		h.Add("Access-Control-Allow-Methods", "POST, GET, OPTIONS, PUT, DELETE")
		h.Add("Access-Control-Allow-Origin", origin)
		h.Add("Access-Control-Allow-Headers", "accept, content-type, authorization")
	}
	if r.Method == http.MethodOptions {
		w.WriteHeader(http.StatusOK)
		return
	}
	g.next.ServeHTTP(w, r)
}

// named reports whether the client's certificate, which was verified, names somebody.
func named(r *http.Request) bool {
	if r.TLS == nil {
		return false
	}
	for _, chain := range r.TLS.VerifiedChains {
		if len(chain) > 0 && chain[0].Subject.CommonName != "" {
			return true
		}
	}
	return false
}

// origin is what the CORS header allows, "" for no header.
func (g *guard) origin(r *http.Request) string {
	if g.origins == nil {
		return "*"
	}
	if origin := r.Header.Get("Origin"); slices.Contains(g.origins, origin) {
		return origin
	}
	return ""
}

// hostname is the Host header without its port.
func hostname(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.Host)
	if err != nil {
		return r.Host
	}
	return host
}

func misdirected(host string) string {
	return fmt.Sprintf(`
etcd received your request, but the Host header was unrecognized.

To fix this, choose one of the following options:
- Enable TLS, then any HTTPS request will be allowed.
- Add the hostname you want to use to the whitelist in settings.
  - e.g. etcd --host-whitelist %q

This requirement has been added to help prevent "DNS Rebinding" attacks (CVE-2018-5702).
`, host)
}
