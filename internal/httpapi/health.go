package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// health answers /health: {"health":"true","reason":""}. ?serializable=true leaves out
// what needs a quorum, ?exclude=NOSPACE an alarm.
func (o *Options) health(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		getOnly(nil)(w, r)
		return
	}
	reason := o.unhealthy(r)
	body, err := json.Marshal(struct {
		Health string `json:"health"`
		Reason string `json:"reason"`
	}{fmt.Sprint(reason == ""), reason})
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if reason != "" {
		o.Metrics.HealthFailed.Inc()
		http.Error(w, string(body), http.StatusServiceUnavailable)
		o.Logger.Warn("/health error", "output", string(body), "status-code", http.StatusServiceUnavailable)
		return
	}
	o.Metrics.HealthOK.Inc()
	w.Write(body)
}

// unhealthy is why the member is not healthy, "" if it is.
func (o *Options) unhealthy(r *http.Request) string {
	query := r.URL.Query()
	serializable := query.Get("serializable") == "true"
	for _, a := range o.Member.Alarms() {
		if slices.Contains(query["exclude"], a.Alarm.String()) {
			continue
		}
		switch a.Alarm {
		case pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT:
			return "ALARM " + a.Alarm.String()
		}
		return "ALARM UNKNOWN"
	}
	if !serializable && o.Member.Leader() == 0 {
		return "RAFT NO LEADER"
	}
	ctx, cancel := context.WithTimeout(r.Context(), o.ReadTimeout)
	defer cancel()
	if err := o.Member.Read(ctx, serializable); err != nil {
		return fmt.Sprintf("RANGE ERROR:%s", err)
	}
	return ""
}

// check is one thing that a probe looks at.
type check struct {
	name string
	run  func(context.Context) error
}

// probes mounts /health, /livez and /readyz, and each check of the latter two under its
// own path.
func (o *Options) probes(mux *http.ServeMux) {
	mux.HandleFunc("/health", o.health)
	read := func(serializable bool) func(context.Context) error {
		return func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, o.ReadTimeout)
			defer cancel()
			return o.Member.Read(ctx, serializable)
		}
	}
	o.probe(mux, "livez", []check{{"serializable_read", read(true)}})
	o.probe(mux, "readyz", []check{
		{"data_corruption", o.checkCorruption},
		{"serializable_read", read(true)},
		{"linearizable_read", read(false)},
		{"non_learner", o.checkLearner},
	})
}

func (o *Options) checkCorruption(context.Context) error {
	for _, a := range o.Member.Alarms() {
		if a.Alarm == pb.AlarmType_CORRUPT {
			return fmt.Errorf("alarm activated: %s", a.Alarm)
		}
	}
	return nil
}

func (o *Options) checkLearner(context.Context) error {
	if o.Member.IsLearner() {
		return errors.New("not supported for learner")
	}
	return nil
}

// probe mounts the checks of one kind: all at /kind (without those that ?exclude names),
// each at /kind/name. The answer is "ok", or with ?verbose and on failure a line for each.
func (o *Options) probe(mux *http.ServeMux, kind string, checks []check) {
	all := func(r *http.Request) []check {
		exclude := r.URL.Query()["exclude"]
		return slices.DeleteFunc(slices.Clone(checks), func(c check) bool { return slices.Contains(exclude, c.name) })
	}
	mux.HandleFunc("/"+kind, getOnly(o.answer(kind, all)))
	for _, c := range checks {
		mux.HandleFunc("/"+kind+"/"+c.name, getOnly(o.answer(kind, func(*http.Request) []check { return []check{c} })))
	}
}

func (o *Options) answer(kind string, choose func(*http.Request) []check) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var lines strings.Builder
		failed := false
		for _, c := range choose(r) {
			err := c.run(r.Context())
			status, value := "success", int64(1)
			if err != nil {
				status, value, failed = "error", 0, true
				fmt.Fprintf(&lines, "[-]%s failed: %v\n", c.name, err)
			} else {
				fmt.Fprintf(&lines, "[+]%s ok\n", c.name)
			}
			o.Metrics.HealthCheck.With(kind, c.name).Set(value)
			o.Metrics.HealthChecks.With(kind, c.name, status).Inc()
		}
		if failed {
			http.Error(w, lines.String(), http.StatusServiceUnavailable)
			o.Logger.Error("Health check error", "path", r.URL.Path, "reason", lines.String(), "status-code", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		text := "ok\n"
		if r.URL.Query().Has("verbose") {
			text = lines.String() + text
		}
		w.Write([]byte(text))
	}
}
