// Package httpapi serves what a member tells over plain HTTP, with etcd's paths, bodies
// and status codes: /health, /livez, /readyz, /version, /metrics, /debug/vars and, when
// asked for, /debug/pprof/ on the client port; the probes and /metrics on the metrics
// port. The peer port is package peer's.
//
// It knows the member by the small interface Member. The JSON gateway is made by package
// rpc and is mounted under /v3/.
package httpapi

import (
	"context"
	"encoding/json"
	"expvar"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"time"

	"quorate/internal/metrics"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Member is what is asked of a member. All of it may be called at any time, also before
// the member is ready.
type Member interface {
	Alarms() []*pb.AlarmMember
	Leader() uint64 // 0: none
	IsLearner() bool
	// Read reads a key of the store, from this member alone or linearizably.
	Read(ctx context.Context, serializable bool) error
	// Versions are the cluster's, "" until it is decided, and the data directory's.
	Versions() (cluster, storage string)
}

// Options say what to serve.
type Options struct {
	Member  Member
	Metrics *metrics.Set
	Logger  *slog.Logger

	ServerVersion string        // of etcd, as clients see it
	ReadTimeout   time.Duration // how long /health waits for its read

	Pprof bool
	// Gateway answers under /v3/ (and /v3beta/); nil: not served.
	Gateway http.Handler
	// GatewayUnnamed, unless nil, says whether the gateway refuses clients whose certificate
	// names a user: it cannot pass the name on, so that they would be taken for nobody.
	GatewayUnnamed func() bool

	// CORS origins and hosts that may be named without TLS; "*" or none: all.
	CORS  []string
	Hosts []string
}

// Client returns the handler of the client port.
func Client(o Options) http.Handler {
	mux := http.NewServeMux()
	o.probes(mux)
	mux.Handle("/metrics", o.Metrics.Handler())
	mux.HandleFunc("/version", getOnly(o.version))
	mux.HandleFunc("/debug/vars", getOnly(vars))
	if o.Pprof {
		// Index serves every profile of runtime/pprof by its name.
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	if o.Gateway != nil {
		mux.Handle("/v3/", o.Gateway)
	}
	return newGuard(mux, o)
}

// Metrics returns the handler of --listen-metrics-urls.
func Metrics(o Options) http.Handler {
	mux := http.NewServeMux()
	o.probes(mux)
	mux.Handle("/metrics", o.Metrics.Handler())
	return mux
}

// getOnly answers other methods as etcd does.
func getOnly(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet {
			w.Header().Set("Allow", http.MethodGet)
			http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
			return
		}
		h(w, r)
	}
}

func (o *Options) version(w http.ResponseWriter, _ *http.Request) {
	cluster, storage := o.Member.Versions()
	if cluster == "" {
		cluster = "not_decided"
	}
	if storage == "" {
		storage = "unknown"
	}
	writeJSON(w, struct {
		Server  string `json:"etcdserver"`
		Cluster string `json:"etcdcluster"`
		Storage string `json:"storage"`
	}{o.ServerVersion, cluster, storage})
}

func writeJSON(w http.ResponseWriter, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Write(data) // the client is gone if this fails, and nobody else cares
}

// vars is expvar's page, for etcd's content type and method rule.
func vars(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	io.WriteString(w, "{\n")
	first := true
	expvar.Do(func(kv expvar.KeyValue) {
		if !first {
			io.WriteString(w, ",\n")
		}
		first = false
		fmt.Fprintf(w, "%q: %s", kv.Key, kv.Value)
	})
	io.WriteString(w, "\n}\n")
}
