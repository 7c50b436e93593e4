package bench

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Bounds on what flags may ask for: a load generator is not to exhaust the machine it runs on.
const (
	clientsMax  = 100_000
	connsMax    = 10_000
	valSizeMax  = 1 << 20 // what fits into a request with etcd's default limit
	durationMax = 24 * time.Hour
	roundsMax   = 100
)

// A Server is what a load is run against.
type Server struct {
	Name      string   `json:"name"`
	Endpoints []string `json:"endpoints"`
	PIDs      []int    `json:"pids,omitempty"` // local processes whose CPU time and memory count as the server's
}

// A Config describes a load and where to run it.
type Config struct {
	Workload string   `json:"workload"` // put, get, list, txn, watch, lease, mixed
	Servers  []Server `json:"servers"`  // in this order, again each round
	Rounds   int      `json:"rounds"`   // runs on each server

	Conns    int           `json:"conns"`       // connections, spread over the endpoints
	Clients  int           `json:"clients"`     // callers, spread over the connections; each has one request in flight
	Total    int64         `json:"total"`       // requests of a run, 0: as many as there is time for
	Duration time.Duration `json:"duration_ns"` // longest time of a run, after the warm-up
	Warmup   time.Duration `json:"warmup_ns"`   // load that is not measured, before each run
	Timeout  time.Duration `json:"timeout_ns"`  // of one request
	Rate     float64       `json:"rate"`        // requests a second, sent when due whatever the server does; 0: each client as fast as it is answered

	KeySize    int    `json:"key_size"` // bytes, prefix included
	ValSize    int    `json:"val_size"` // bytes
	KeySpace   int64  `json:"key_space"`
	Sequential bool   `json:"sequential_keys"` // keys in order, not at random
	Prefix     string `json:"prefix"`
	Seed       uint64 `json:"seed"` // of keys and values

	Limit        int64   `json:"limit"`
	Serializable bool    `json:"serializable"`
	KeysOnly     bool    `json:"keys_only"`
	CountOnly    bool    `json:"count_only"`
	ReadRatio    float64 `json:"read_ratio"` // mixed: share of gets
	TxnOps       int     `json:"txn_ops"`    // txn: puts in each
	Watchers     int     `json:"watchers"`
	WatchStreams int     `json:"watch_streams"`
	WatchKeys    bool    `json:"watch_keys"` // each watcher sees one key, not all
	LeaseOp      string  `json:"lease_op"`   // grant, cycle, keepalive
	LeaseTTL     int64   `json:"lease_ttl"`  // seconds

	TLS TLSFiles `json:"-"`
}

// Validate reports what cannot be run, or not within bounds.
func (c *Config) Validate() error {
	for _, check := range []struct {
		bad  bool
		text string
	}{
		{c.Clients < 1 || c.Clients > clientsMax, fmt.Sprintf("--clients must be 1 to %d", clientsMax)},
		{c.Conns < 1 || c.Conns > connsMax, fmt.Sprintf("--conns must be 1 to %d", connsMax)},
		{c.Total < 0, "--total must not be negative"},
		{c.Duration <= 0 || c.Duration > durationMax, fmt.Sprintf("--duration must be above 0 and at most %v", durationMax)},
		{c.Warmup < 0 || c.Warmup > durationMax, fmt.Sprintf("--warmup must be 0 to %v", durationMax)},
		{c.Timeout <= 0, "--timeout must be above 0"},
		{c.Rate < 0 || math.IsNaN(c.Rate) || math.IsInf(c.Rate, 0), "--rate must not be negative"},
		{c.KeySpace < 1, "--key-space must be at least 1"},
		{c.ValSize < 0 || c.ValSize > valSizeMax, fmt.Sprintf("--val-size must be 0 to %d", valSizeMax)},
		{c.KeySize < len(c.Prefix)+len(strconv.FormatInt(c.KeySpace-1, 10)), "--key-size is too small for the prefix and --key-space"},
		{c.KeySize > valSizeMax, fmt.Sprintf("--key-size must be at most %d", valSizeMax)},
		{c.Limit < 0, "--limit must not be negative"},
		{!(c.ReadRatio >= 0 && c.ReadRatio <= 1), "--read-ratio must be 0 to 1"},
		{c.TxnOps < 1 || c.TxnOps > 127, "--ops must be 1 to 127"},
		{c.Watchers < 1 || c.Watchers > 10*clientsMax, fmt.Sprintf("--watchers must be 1 to %d", 10*clientsMax)},
		{c.WatchStreams < 1 || c.WatchStreams > clientsMax, fmt.Sprintf("--watch-streams must be 1 to %d", clientsMax)},
		{c.LeaseTTL < 1, "--ttl must be at least 1"},
		{c.Rounds < 1 || c.Rounds > roundsMax, fmt.Sprintf("--rounds must be 1 to %d", roundsMax)},
		{len(c.Servers) == 0, "no server"},
		{c.Workload == "watch" && c.ValSize < stampSize, fmt.Sprintf("watch needs a --val-size of at least %d, for the time of the put", stampSize)},
	} {
		if check.bad {
			return errors.New(check.text)
		}
	}
	names := make(map[string]bool)
	for _, s := range c.Servers {
		if names[s.Name] {
			return fmt.Errorf("two servers are named %q", s.Name)
		}
		names[s.Name] = true
		if len(s.Endpoints) == 0 {
			return fmt.Errorf("server %s has no endpoint", s.Name)
		}
	}
	return nil
}

// ParseServer reads the value of --against: NAME=ENDPOINT[,ENDPOINT...][,pid=N...].
func ParseServer(s string) (Server, error) {
	name, rest, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return Server{}, fmt.Errorf("want NAME=ENDPOINTS[,pid=N], got %q", s)
	}
	srv := Server{Name: name}
	for part := range strings.SplitSeq(rest, ",") {
		switch pid, isPID := strings.CutPrefix(part, "pid="); {
		case isPID:
			n, err := strconv.Atoi(pid)
			if err != nil {
				return Server{}, fmt.Errorf("bad pid in %q: %w", s, err)
			}
			srv.PIDs = append(srv.PIDs, n)
		case part != "":
			srv.Endpoints = append(srv.Endpoints, part)
		}
	}
	if len(srv.Endpoints) == 0 {
		return Server{}, fmt.Errorf("no endpoint in %q", s)
	}
	return srv, nil
}
