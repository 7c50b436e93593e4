package httpapi

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"crypto/tls"

	"quorate/internal/metrics"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// fake is a healthy member; tests make it ill.
type fake struct {
	alarms           []*pb.AlarmMember
	noLeader         bool
	learner          bool
	readErr          error // of any read
	readIndexErr     error // of linearizable reads
	cluster, storage string
	hang             bool
}

func (f *fake) Alarms() []*pb.AlarmMember { return f.alarms }
func (f *fake) IsLearner() bool           { return f.learner }
func (f *fake) Versions() (string, string) {
	return f.cluster, f.storage
}
func (f *fake) Leader() uint64 {
	if f.noLeader {
		return 0
	}
	return 7
}
func (f *fake) Read(ctx context.Context, serializable bool) error {
	if f.hang && !serializable {
		<-ctx.Done()
		return ctx.Err()
	}
	if f.readErr != nil || serializable {
		return f.readErr
	}
	return f.readIndexErr
}

func options(f *fake) Options {
	return Options{
		Member: f, Metrics: metrics.New(false), Logger: slog.New(slog.DiscardHandler),
		ServerVersion: "3.7.1", ReadTimeout: 50 * time.Millisecond,
	}
}

func get(h http.Handler, method, target string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
			continue
		}
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// The bodies and codes are those that etcd 3.7.1 answered.
func TestGatewayKeepsNamedClientsOut(t *testing.T) {
	on := false
	next := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	g := newGuard(next, Options{GatewayUnnamed: func() bool { return on }})
	code := func(path, name string) int {
		r := httptest.NewRequest(http.MethodPost, path, nil)
		r.TLS = &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{{Subject: pkix.Name{CommonName: name}}}}}
		w := httptest.NewRecorder()
		g.ServeHTTP(w, r)
		return w.Code
	}
	if c := code("/v3/kv/range", "root"); c != http.StatusOK {
		t.Errorf("off: %d", c)
	}
	on = true
	for _, tc := range []struct {
		path, name string
		want       int
	}{{"/v3/kv/range", "root", 400}, {"/v3beta/kv/range", "root", 400}, {"/v3/kv/range", "", 200}, {"/health", "root", 200}} {
		if c := code(tc.path, tc.name); c != tc.want {
			t.Errorf("%s by %q: %d, want %d", tc.path, tc.name, c, tc.want)
		}
	}
}

func TestProbes(t *testing.T) {
	corrupt := []*pb.AlarmMember{{MemberID: 1, Alarm: pb.AlarmType_CORRUPT}}
	nospace := []*pb.AlarmMember{{MemberID: 1, Alarm: pb.AlarmType_NOSPACE}}
	boom := errors.New("boom")
	for _, tt := range []struct {
		name   string
		member fake
		path   string
		code   int
		body   string
	}{
		{"healthy", fake{}, "/health", 200, `{"health":"true","reason":""}`},
		{"no space", fake{alarms: nospace}, "/health", 503, `{"health":"false","reason":"ALARM NOSPACE"}` + "\n"},
		{"no space excluded", fake{alarms: nospace}, "/health?exclude=NOSPACE", 200, `{"health":"true","reason":""}`},
		{"corrupt, other excluded", fake{alarms: corrupt}, "/health?exclude=NOSPACE", 503, `{"health":"false","reason":"ALARM CORRUPT"}` + "\n"},
		{"no leader", fake{noLeader: true}, "/health", 503, `{"health":"false","reason":"RAFT NO LEADER"}` + "\n"},
		{"no leader, serializable", fake{noLeader: true}, "/health?serializable=true", 200, `{"health":"true","reason":""}`},
		{"read fails", fake{readIndexErr: boom}, "/health", 503, `{"health":"false","reason":"RANGE ERROR:boom"}` + "\n"},
		{"read fails, serializable", fake{readIndexErr: boom}, "/health?serializable=true", 200, `{"health":"true","reason":""}`},
		{"read hangs", fake{hang: true}, "/health", 503, `{"health":"false","reason":"RANGE ERROR:context deadline exceeded"}` + "\n"},

		{"alive", fake{}, "/livez", 200, "ok\n"},
		{"alive, verbose", fake{}, "/livez?verbose", 200, "[+]serializable_read ok\nok\n"},
		{"alive without quorum", fake{noLeader: true, readIndexErr: boom}, "/livez", 200, "ok\n"},
		{"dead", fake{readErr: boom}, "/livez", 503, "[-]serializable_read failed: boom\n\n"},
		{"one check", fake{}, "/livez/serializable_read", 200, "ok\n"},
		{"no such check", fake{}, "/livez/ping", 404, "404 page not found\n"},

		{"ready", fake{}, "/readyz", 200, "ok\n"},
		{"ready, verbose", fake{}, "/readyz?verbose", 200, "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n"},
		{"no quorum", fake{readIndexErr: boom}, "/readyz", 503, "[+]data_corruption ok\n[+]serializable_read ok\n[-]linearizable_read failed: boom\n[+]non_learner ok\n\n"},
		{"no quorum, excluded", fake{readIndexErr: boom}, "/readyz?exclude=linearizable_read&verbose=", 200, "[+]data_corruption ok\n[+]serializable_read ok\n[+]non_learner ok\nok\n"},
		{"unknown excluded", fake{}, "/readyz?exclude=foo", 200, "ok\n"},
		{"corrupt", fake{alarms: corrupt}, "/readyz/data_corruption", 503, "[-]data_corruption failed: alarm activated: CORRUPT\n\n"},
		{"learner", fake{learner: true}, "/readyz/non_learner", 503, "[-]non_learner failed: not supported for learner\n\n"},
		{"no space is ready", fake{alarms: nospace}, "/readyz", 200, "ok\n"},
		{"hang", fake{hang: true}, "/readyz/linearizable_read", 503, "[-]linearizable_read failed: context deadline exceeded\n\n"},

		{"version", fake{cluster: "3.7.0", storage: "3.7.0"}, "/version", 200, `{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"3.7.0"}`},
		{"undecided version", fake{}, "/version", 200, `{"etcdserver":"3.7.1","etcdcluster":"not_decided","storage":"unknown"}`},
		{"root", fake{}, "/", 404, "404 page not found\n"},
		{"no pprof", fake{}, "/debug/pprof/", 404, "404 page not found\n"},
	} {
		w := get(Client(options(&tt.member)), "GET", tt.path)
		if w.Code != tt.code || w.Body.String() != tt.body {
			t.Errorf("%s: GET %s: %d %q, want %d %q", tt.name, tt.path, w.Code, w.Body, tt.code, tt.body)
		}
	}
}

func TestMethods(t *testing.T) {
	h := Client(options(&fake{}))
	for _, path := range []string{"/health", "/livez", "/readyz", "/readyz/non_learner", "/version", "/debug/vars"} {
		w := get(h, "POST", path)
		if w.Code != 405 || w.Body.String() != "Method Not Allowed\n" || w.Header().Get("Allow") != "GET" {
			t.Errorf("POST %s: %d %q", path, w.Code, w.Body)
		}
	}
	if w := get(h, "POST", "/metrics"); w.Code != 200 { // as etcd
		t.Errorf("POST /metrics: %d", w.Code)
	}
}

func TestPorts(t *testing.T) {
	o := options(&fake{})
	o.Pprof = true
	o.Gateway = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte("gw " + r.URL.Path)) })
	client, metricsPort := Client(o), Metrics(o)
	for _, tt := range []struct {
		path            string
		client, metrics int
	}{
		{"/health", 200, 200},
		{"/livez", 200, 200},
		{"/readyz", 200, 200},
		{"/metrics", 200, 200},
		{"/version", 200, 404},
		{"/members", 404, 404},
		{"/debug/vars", 200, 404},
		{"/debug/pprof/", 200, 404},
		{"/debug/pprof/goroutine", 200, 404},
		{"/debug/pprof/cmdline", 200, 404},
		{"/v3/kv/range", 200, 404},
	} {
		for name, p := range map[string]struct {
			h    http.Handler
			want int
		}{"client": {client, tt.client}, "metrics": {metricsPort, tt.metrics}} {
			if w := get(p.h, "GET", tt.path); w.Code != p.want {
				t.Errorf("%s port: GET %s: %d, want %d", name, tt.path, w.Code, p.want)
			}
		}
	}
	if w := get(client, "POST", "/v3beta/kv/range"); w.Body.String() != "gw /v3/kv/range" {
		t.Errorf("/v3beta/ is answered by %q", w.Body)
	}
	if w := get(client, "GET", "/debug/vars"); !strings.Contains(w.Body.String(), `"memstats": {`) || !strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") {
		t.Errorf("/debug/vars: %v %.100q", w.Header(), w.Body)
	}
}

func TestHosts(t *testing.T) {
	o := options(&fake{})
	o.Hosts = []string{"good.example", "127.0.0.1"}
	h := Client(o)
	for host, want := range map[string]int{"good.example": 200, "good.example:2379": 200, "127.0.0.1:1": 200, "evil.example": 421, "": 421} {
		if w := get(h, "GET", "/health", "Host", host); w.Code != want {
			t.Errorf("Host %q: %d, want %d", host, w.Code, want)
		}
	}
	r := httptest.NewRequest("GET", "/health", nil)
	r.Host, r.TLS = "evil.example", &tls.ConnectionState{}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	if w.Code != 200 {
		t.Errorf("with TLS any host is good, got %d", w.Code)
	}
}

func TestCORS(t *testing.T) {
	for _, tt := range []struct {
		cors         []string
		origin, want string
	}{
		{nil, "", "*"}, {[]string{"*"}, "http://a", "*"},
		{[]string{"http://a"}, "http://a", "http://a"}, {[]string{"http://a"}, "http://b", ""}, {[]string{"http://a"}, "", ""},
	} {
		o := options(&fake{})
		o.CORS = tt.cors
		for _, method := range []string{"GET", "OPTIONS"} {
			w := get(Client(o), method, "/health", "Origin", tt.origin)
			if got := w.Header().Get("Access-Control-Allow-Origin"); got != tt.want || w.Code != 200 {
				t.Errorf("%v, %s of %q: %d, allows %q, want %q", tt.cors, method, tt.origin, w.Code, got, tt.want)
			}
		}
	}
}

func TestCounts(t *testing.T) {
	f := &fake{}
	o := options(f)
	h := Client(o)
	get(h, "GET", "/health")
	get(h, "GET", "/readyz")
	f.readErr = errors.New("no")
	get(h, "GET", "/health")
	get(h, "GET", "/readyz/serializable_read")
	body := get(h, "GET", "/metrics").Body.String()
	for _, want := range []string{
		"etcd_server_health_success 1", "etcd_server_health_failures 1",
		`etcd_server_healthcheck{name="serializable_read",type="readyz"} 0`,
		`etcd_server_healthchecks_total{name="serializable_read",status="error",type="readyz"} 1`,
		`etcd_server_healthchecks_total{name="linearizable_read",status="success",type="readyz"} 1`,
	} {
		if !strings.Contains(body, "\n"+want+"\n") {
			t.Errorf("no %q", want)
		}
	}
}
