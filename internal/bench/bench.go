// Package bench puts load on a server that speaks the etcd v3 API and measures what it does with it:
// the command "bench" and its workloads.
//
// It is made to stay out of the picture. Requests are encoded by hand into memory that is reused,
// responses are not decoded beyond what a workload needs, many clients share few connections, and
// latencies go into histograms of a fixed size. A run is always bounded, by a number of requests or
// by time.
//
// In a closed loop (the default) each client sends its next request when it has the answer to the
// last one: this finds the rate that a server can give. In an open loop (--rate) requests are due at
// fixed times, and a late one counts from when it was due: this finds the latency that users of a
// server would see at that rate.
//
// With --against the same load runs on several servers in turn, A B A B, so that what else the
// machine does meets all of them, and the medians are compared.
//
// The client takes CPU time too. On a machine that it shares with the server, the server's CPU time
// per request (--pid) says more than the rate.
package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// countedDuration bounds a run whose --total was given without a --duration.
const countedDuration = 10 * time.Minute

// options are the flags of a workload.
type options struct {
	Config
	name    string
	eps     []string
	pids    []int
	against []string
	json    string
}

// Command returns the command bench with a subcommand for each workload.
func Command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Puts load on a server and measures it",
		Long: `Puts load on a server that speaks the etcd v3 API, and reports rate, latencies, errors and pauses, and
with --pid the CPU time and memory of a local server process.

For example, quorate and etcd in turn, three times each:

  bench put --clients 512 --conns 32 --rounds 3 --pid 4711 --against etcd=127.0.0.1:2479,pid=4712`,
		Args: cobra.NoArgs, // a word that names no workload is an error
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	for _, w := range []struct {
		name, short string
		flags       func(fs *pflag.FlagSet, o *options)
	}{
		{"put", "Puts values", nil},
		{"get", "Reads single keys", serializableFlag},
		{"list", "Reads all keys with the prefix, or --limit of them", func(fs *pflag.FlagSet, o *options) {
			serializableFlag(fs, o)
			fs.Int64Var(&o.Limit, "limit", 0, "most keys in an answer (0: all)")
			fs.BoolVar(&o.KeysOnly, "keys-only", false, "answers without values")
			fs.BoolVar(&o.CountOnly, "count-only", false, "answers with the number of keys only")
		}},
		{"txn", "Puts keys if they have not changed since, else reads them", func(fs *pflag.FlagSet, o *options) {
			fs.IntVar(&o.TxnOps, "ops", 1, "puts in a transaction")
		}},
		{"watch", "Puts keys that are watched, and measures when the events arrive", func(fs *pflag.FlagSet, o *options) {
			fs.IntVar(&o.Watchers, "watchers", 100, "number of watchers")
			fs.IntVar(&o.WatchStreams, "watch-streams", 10, "streams that the watchers are spread over")
			fs.BoolVar(&o.WatchKeys, "watch-keys", false, "each watcher watches one key, not all of them")
		}},
		{"lease", "Grants or renews leases", func(fs *pflag.FlagSet, o *options) {
			fs.StringVar(&o.LeaseOp, "op", leaseGrant, "what a request is: grant, cycle (grant and revoke) or keepalive")
			fs.Int64Var(&o.LeaseTTL, "ttl", 60, "time to live of the leases, in seconds")
		}},
		{"mixed", "Reads single keys and puts values", func(fs *pflag.FlagSet, o *options) {
			serializableFlag(fs, o)
			fs.Float64Var(&o.ReadRatio, "read-ratio", 0.9, "share of reads, 0 to 1")
		}},
	} {
		cmd.AddCommand(workloadCommand(w.name, w.short, w.flags))
	}
	cmd.AddCommand(gapCommand())
	return cmd
}

func serializableFlag(fs *pflag.FlagSet, o *options) {
	fs.BoolVar(&o.Serializable, "serializable", false, "read what the member has, without asking the others")
}

// tlsFlags registers the flags of connections with TLS.
func tlsFlags(fs *pflag.FlagSet, f *TLSFiles) {
	fs.StringVar(&f.CACert, "cacert", "", "file with the certificates of authorities; with it connections use TLS")
	fs.StringVar(&f.Cert, "cert", "", "file with the client's certificate")
	fs.StringVar(&f.Key, "key", "", "file with the client's key")
	fs.BoolVar(&f.InsecureSkipVerify, "insecure-skip-tls-verify", false, "use TLS without checking who the server is")
}

// workloadCommand returns the command of one workload.
func workloadCommand(name, short string, own func(*pflag.FlagSet, *options)) *cobra.Command {
	// What a workload has no flag for gets a value that is valid, and that it does not use.
	o := &options{Config: Config{Workload: name, TxnOps: 1, Watchers: 1, WatchStreams: 1, LeaseTTL: 60}}
	cmd := &cobra.Command{
		Use:   name,
		Short: short,
		Args:  cobra.NoArgs,
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringSliceVar(&o.eps, "endpoints", []string{"127.0.0.1:2379"}, "endpoints of the server")
	fs.StringVar(&o.name, "name", "quorate", "name of the server in reports")
	fs.IntSliceVar(&o.pids, "pid", nil, "local process of the server, whose CPU time and memory are reported; repeatable")
	fs.StringArrayVar(&o.against, "against", nil, "another server to run the same load on in turn: NAME=ENDPOINTS[,pid=N]; repeatable")
	fs.IntVar(&o.Rounds, "rounds", 0, "runs on each server (default 1, with --against 3)")
	fs.IntVar(&o.Conns, "conns", 8, "connections")
	fs.IntVar(&o.Clients, "clients", 64, "clients, each with one request in flight, spread over the connections")
	fs.Int64Var(&o.Total, "total", 0, "requests in a run (0: as many as --duration allows)")
	fs.DurationVar(&o.Duration, "duration", 10*time.Second, "longest time of a run (10m when only --total is given)")
	fs.DurationVar(&o.Warmup, "warmup", 0, "load before each run that is not measured")
	fs.DurationVar(&o.Timeout, "timeout", 10*time.Second, "longest time of one request")
	fs.Float64Var(&o.Rate, "rate", 0, "requests a second, sent when due (0: as fast as they are answered)")
	fs.IntVar(&o.KeySize, "key-size", 32, "bytes of a key, prefix included")
	fs.IntVar(&o.ValSize, "val-size", 256, "bytes of a value")
	fs.Int64Var(&o.KeySpace, "key-space", 10000, "number of different keys")
	fs.BoolVar(&o.Sequential, "sequential-keys", false, "use the keys in order, not at random")
	fs.StringVar(&o.Prefix, "prefix", "bench/", "what keys begin with")
	fs.Uint64Var(&o.Seed, "seed", 1, "of the random keys and values")
	fs.StringVar(&o.json, "json", "", "write the report to this file as JSON (-: to standard output, and nothing else there)")
	tlsFlags(fs, &o.TLS)
	if own != nil {
		own(fs, o)
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cmd.SilenceUsage = true
		if cmd.Flags().Changed("total") && !cmd.Flags().Changed("duration") {
			o.Duration = countedDuration
		}
		return o.run(cmd)
	}
	return cmd
}

// servers returns the servers that the flags name.
func (o *options) servers() ([]Server, error) {
	servers := []Server{{Name: o.name, Endpoints: o.eps, PIDs: o.pids}}
	for _, a := range o.against {
		s, err := ParseServer(a)
		if err != nil {
			return nil, fmt.Errorf("--against: %w", err)
		}
		servers = append(servers, s)
	}
	return servers, nil
}

// run runs the load and writes the report.
func (o *options) run(cmd *cobra.Command) (err error) {
	if o.Servers, err = o.servers(); err != nil {
		return err
	}
	if o.Rounds == 0 {
		if o.Rounds = 1; len(o.Servers) > 1 {
			o.Rounds = 3
		}
	}
	if err := o.Validate(); err != nil {
		return err
	}
	out, closeJSON, err := openReport(cmd, o.json)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeJSON()) }()
	text := textWriter(cmd, o.json)

	p := newProgress(cmd.ErrOrStderr())
	rep, err := Run(base(cmd), &o.Config, p, func(r *Result) { printResult(text, &o.Config, r) })
	p.close()
	if err != nil {
		return err
	}
	if err := printComparison(text, rep); err != nil {
		return err
	}
	return writeJSON(out, rep)
}

// Run runs the load of cfg on its servers in turn, round after round, calls each after every run,
// and returns the report. cfg must be valid. Messages go to progress.
func Run(ctx context.Context, cfg *Config, progress io.Writer, each func(*Result)) (*Report, error) {
	p, ok := progress.(*progressLine)
	if !ok {
		p = newProgress(progress)
		defer p.close()
	}
	rep := &Report{Config: cfg}
	for _, s := range cfg.Servers {
		rep.Servers = append(rep.Servers, &ServerReport{Server: s})
		// A server that is not there is better found now than after the others' first runs.
		if err := reachable(ctx, cfg, s); err != nil {
			return nil, fmt.Errorf("%s: %w", s.Name, err)
		}
	}
	for range cfg.Rounds {
		for i, s := range cfg.Servers {
			r, err := runOnce(ctx, cfg, s, p)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", s.Name, err)
			}
			rep.Servers[i].Runs = append(rep.Servers[i].Runs, r)
			each(r)
			if ctx.Err() != nil {
				return nil, fmt.Errorf("%s: interrupted", s.Name)
			}
		}
	}
	rep.summarize()
	return rep, nil
}

// reachable connects to every endpoint of s once, and looks at its processes.
func reachable(ctx context.Context, cfg *Config, s Server) error {
	p, err := dialPool(ctx, s.Endpoints, len(s.Endpoints), cfg.TLS, false)
	if err != nil {
		return err
	}
	for _, pid := range s.PIDs {
		if _, err := readUsage(pid); err != nil {
			return errors.Join(err, p.close())
		}
	}
	return p.close()
}

// gapCommand returns the command that measures pauses.
func gapCommand() *cobra.Command {
	var (
		c    GapConfig
		path string
	)
	cmd := &cobra.Command{
		Use:   "gap [flags] [-- command [args...]]",
		Short: "Measures the longest pauses of writers, also while a command runs",
		Long: `Puts values one after the other, each writer on its own, and reports the longest pauses between two
successes and all errors. With a command, such as one that compacts the server or kills its leader, what
happened before, during and after it is told apart.`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			cmd.SilenceUsage = true
			c.Command = args
			if err := c.Validate(); err != nil {
				return err
			}
			out, closeJSON, err := openReport(cmd, path)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, closeJSON()) }()
			rep, err := measureGaps(base(cmd), &c, cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			printGaps(textWriter(cmd, path), rep)
			return writeJSON(out, rep)
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.StringSliceVar(&c.Endpoints, "endpoints", []string{"127.0.0.1:2379"}, "endpoints; the writers are spread over them")
	fs.IntVar(&c.Writers, "writers", 1, "writers, each with a connection of its own")
	fs.DurationVar(&c.Duration, "duration", 10*time.Second, "longest time of all")
	fs.DurationVar(&c.After, "after", 2*time.Second, "when the command starts")
	fs.DurationVar(&c.Settle, "settle", 2*time.Second, "how long the writers go on after the command")
	fs.DurationVar(&c.Timeout, "timeout", 10*time.Second, "longest time of one put")
	fs.IntVar(&c.KeySize, "key-size", 32, "bytes of a key, prefix included")
	fs.IntVar(&c.ValSize, "val-size", 256, "bytes of a value")
	fs.Int64Var(&c.KeySpace, "key-space", 10000, "number of different keys")
	fs.StringVar(&c.Prefix, "prefix", "bench/", "what keys begin with")
	fs.StringVar(&path, "json", "", "write the report to this file as JSON (-: to standard output, and nothing else there)")
	tlsFlags(fs, &c.TLS)
	return cmd
}

// base returns the context of the process.
func base(cmd *cobra.Command) context.Context {
	if ctx := cmd.Context(); ctx != nil {
		return ctx
	}
	return context.Background()
}

// openReport opens the file that --json names, before the load runs in vain; "" and "-" need none.
func openReport(cmd *cobra.Command, path string) (io.Writer, func() error, error) {
	switch path {
	case "":
		return nil, func() error { return nil }, nil
	case "-":
		return cmd.OutOrStdout(), func() error { return nil }, nil
	}
	f, err := os.Create(path)
	if err != nil {
		return nil, nil, fmt.Errorf("--json: %w", err)
	}
	return f, f.Close, nil
}

// textWriter returns where the report for people goes: aside when the one for programs takes
// standard output.
func textWriter(cmd *cobra.Command, path string) io.Writer {
	if path == "-" {
		return cmd.ErrOrStderr()
	}
	return cmd.OutOrStdout()
}

func writeJSON(w io.Writer, v any) error {
	if w == nil {
		return nil
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("--json: %w", err)
	}
	return nil
}
