package ctl

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// endpointParallel bounds how many endpoints are asked at the same time.
const endpointParallel = 16

func endpointVerb() verb {
	var cluster bool
	return verb{
		use:    "endpoint <subcommand>",
		short:  "Endpoint related commands",
		long:   "Endpoint related commands",
		group:  groupCluster,
		shared: clusterFlag(&cluster),
		sub:    []verb{endpointHealthVerb(&cluster), endpointStatusVerb(&cluster), endpointHashVerb(&cluster)},
	}
}

// clusterFlag registers --cluster.
func clusterFlag(cluster *bool) func(*pflag.FlagSet) {
	return func(fs *pflag.FlagSet) {
		fs.BoolVar(cluster, "cluster", false, "use all endpoints from the cluster member list")
	}
}

// targets returns the configuration of clients and the endpoints to ask one by one: those of the
// flags, or with cluster those of all members.
func (c *call) targets(cluster bool) (*clientv3.ConfigSpec, []string, error) {
	spec, err := c.configure()
	if err != nil || !cluster {
		return spec, specEndpoints(spec), err
	}
	client, err := c.dial(spec)
	if err != nil {
		return nil, nil, fail(exitError, err)
	}
	ctx, cancel := c.timeout()
	defer cancel()
	members, err := client.MemberList(ctx)
	if cerr := client.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return nil, nil, fmt.Errorf("failed to fetch endpoints from etcd cluster member list: %w", err)
	}
	var endpoints []string
	for _, m := range members.Members {
		endpoints = append(endpoints, m.ClientURLs...)
	}
	return spec, endpoints, nil
}

func specEndpoints(spec *clientv3.ConfigSpec) []string {
	if spec == nil {
		return nil
	}
	return spec.Endpoints
}

// only returns spec for one endpoint.
func only(spec *clientv3.ConfigSpec, endpoint string) *clientv3.ConfigSpec {
	one := spec.Clone()
	one.Endpoints = []string{endpoint}
	return one
}

// askAll asks every endpoint, some at a time, each with a client of its own and --command-timeout.
// Answers and errors are in the order of endpoints.
func askAll[T any](c *call, spec *clientv3.ConfigSpec, endpoints []string,
	ask func(ctx context.Context, client *clientv3.Client, endpoint string) (T, error)) ([]T, []error) {
	answers, errs := make([]T, len(endpoints)), make([]error, len(endpoints))
	slots := make(chan struct{}, endpointParallel)
	var wg sync.WaitGroup
	for i, ep := range endpoints {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			client, err := c.dial(only(spec, ep))
			if err != nil {
				errs[i] = err
				return
			}
			ctx, cancel := c.timeout()
			defer cancel()
			answers[i], errs[i] = ask(ctx, client, ep)
			if err := client.Close(); errs[i] == nil {
				errs[i] = err
			}
		})
	}
	wg.Wait()
	return answers, errs
}

// askEach is askAll for verbs that list the endpoints that answered: others are reported on standard
// error, as what, and the last of their errors is returned.
func askEach[T any](c *call, cluster bool, what string,
	ask func(ctx context.Context, client *clientv3.Client, endpoint string) (T, error)) ([]T, error, error) {
	spec, endpoints, err := c.targets(cluster)
	if err != nil {
		return nil, nil, err
	}
	answers, errs := askAll(c, spec, endpoints, ask)
	var good []T
	var last error
	for i, ep := range endpoints {
		if errs[i] != nil {
			last = errs[i]
			c.warnf("Failed to get the %s of endpoint %s (%v)", what, ep, last)
			continue
		}
		good = append(good, answers[i])
	}
	return good, last, nil
}

func endpointHealthVerb(cluster *bool) verb {
	return verb{
		use:   "health",
		short: "Checks the healthiness of endpoints specified in `--endpoints` flag",
		forms: endpointForms,
		run: func(c *call, _ []string) error {
			spec, endpoints, err := c.targets(*cluster)
			if err != nil {
				return err
			}
			all, errs := askAll(c, spec, endpoints, checkHealth)
			healthy := true
			for i := range all {
				if errs[i] != nil {
					all[i] = endpointHealth{Endpoint: endpoints[i], Error: errs[i].Error()}
				}
				healthy = healthy && all[i].Health
			}
			if err := c.print.print(all); err != nil {
				return err
			}
			if !healthy {
				return errors.New("unhealthy cluster")
			}
			return nil
		},
	}
}

// checkHealth reads a key, which takes a quorum, and asks for alarms. Only a failure to close the
// client is left to be an error.
func checkHealth(ctx context.Context, client *clientv3.Client, endpoint string) (endpointHealth, error) {
	start := time.Now()
	_, err := client.Get(ctx, "health")
	h := endpointHealth{Endpoint: endpoint, Took: time.Since(start).String()}
	// Being refused takes a quorum as well.
	if err != nil && !errors.Is(err, rpctypes.ErrPermissionDenied) {
		h.Error = err.Error()
		return h, nil
	}
	resp, err := client.AlarmList(ctx)
	switch {
	case err != nil:
		h.Error = "Unable to fetch the alarm list"
	case len(resp.Alarms) > 0:
		h.Error = "Active Alarm(s): "
		for _, a := range resp.Alarms {
			switch a.Alarm {
			case pb.AlarmType_NOSPACE, pb.AlarmType_CORRUPT:
				h.Error += a.Alarm.String() + " "
			default:
				h.Error += "UNKNOWN "
			}
		}
	default:
		h.Health = true
	}
	return h, nil
}

func endpointStatusVerb(cluster *bool) verb {
	return verb{
		use:   "status",
		short: "Prints out the status of endpoints specified in `--endpoints` flag",
		long: `When --write-out is set to simple, this command prints out comma-separated status lists for each endpoint.
The items in the lists are endpoint, ID, version, storage version, db size, in use, percentage not in use, quota,
is leader, is learner, raft term, raft index, raft applied index, errors, downgrade target version, downgrade enabled.
`,
		forms: endpointForms,
		run: func(c *call, _ []string) error {
			all, failed, err := askEach(c, *cluster, "status",
				func(ctx context.Context, client *clientv3.Client, ep string) (endpointStatus, error) {
					resp, err := client.Status(ctx, ep)
					return endpointStatus{ep, (*pb.StatusResponse)(resp)}, err
				})
			if err != nil {
				return err
			}
			if err := c.print.print(all); err != nil {
				return err
			}
			if failed != nil {
				return errSilent
			}
			return nil
		},
	}
}

func endpointHashVerb(cluster *bool) verb {
	var rev int64
	return verb{
		use:   "hashkv",
		short: "Prints the KV history hash for each endpoint in --endpoints",
		forms: endpointForms,
		flags: func(fs *pflag.FlagSet) {
			fs.Int64Var(&rev, "rev", 0, "maximum revision to hash (default: latest revision)")
		},
		run: func(c *call, _ []string) error {
			all, failed, err := askEach(c, *cluster, "hash",
				func(ctx context.Context, client *clientv3.Client, ep string) (endpointHash, error) {
					resp, err := client.HashKV(ctx, ep, rev)
					return endpointHash{ep, (*pb.HashKVResponse)(resp)}, err
				})
			if err != nil {
				return err
			}
			if err := c.print.print(all); err != nil {
				return err
			}
			return failed
		},
	}
}

func alarmVerb() verb {
	alarm := func(use, short string, ask func(context.Context, *clientv3.Client) (*clientv3.AlarmResponse, error)) verb {
		return verb{
			use:   use,
			short: short,
			forms: responseForms,
			run: func(c *call, args []string) error {
				if len(args) != 0 {
					return fail(exitBadArgs, fmt.Errorf("alarm %s command accepts no arguments", use))
				}
				if err := c.connect(); err != nil {
					return err
				}
				ctx, cancel := c.timeout()
				defer cancel()
				resp, err := ask(ctx, c.client)
				if err != nil {
					return err
				}
				return c.print.print((*pb.AlarmResponse)(resp))
			},
		}
	}
	return verb{
		use:   "alarm <subcommand>",
		short: "Alarm related commands",
		long:  "Alarm related commands",
		group: groupCluster,
		sub: []verb{
			alarm("disarm", "Disarms all alarms", func(ctx context.Context, client *clientv3.Client) (*clientv3.AlarmResponse, error) {
				return client.AlarmDisarm(ctx, &clientv3.AlarmMember{})
			}),
			alarm("list", "Lists all alarms", func(ctx context.Context, client *clientv3.Client) (*clientv3.AlarmResponse, error) {
				return client.AlarmList(ctx)
			}),
		},
	}
}

func defragVerb() verb {
	var cluster bool
	return verb{
		use:    "defrag",
		short:  "Defragments the storage of the etcd members with given endpoints",
		group:  groupCluster,
		shared: clusterFlag(&cluster),
		run: func(c *call, _ []string) error {
			spec, endpoints, err := c.targets(cluster)
			if err != nil {
				return err
			}
			failed := false
			// One after the other: an etcd member serves nothing meanwhile.
			for _, ep := range endpoints {
				took, err := c.defragment(spec, ep)
				if err != nil {
					c.warnf("Failed to defragment etcd member[%s]. took %s. (%v)", ep, took, err)
					failed = true
					continue
				}
				fmt.Fprintf(c.out, "Finished defragmenting etcd member[%s]. took %s\n", ep, took)
				if err := c.flush(); err != nil {
					return err
				}
			}
			if failed {
				return errSilent
			}
			return nil
		},
	}
}

// defragment asks one member to defragment and returns how long that took.
func (c *call) defragment(spec *clientv3.ConfigSpec, endpoint string) (time.Duration, error) {
	client, err := c.dial(only(spec, endpoint))
	if err != nil {
		return 0, err
	}
	ctx, cancel := c.timeout()
	defer cancel()
	start := time.Now()
	_, err = client.Defragment(ctx, endpoint)
	took := time.Since(start)
	if cerr := client.Close(); err == nil {
		err = cerr
	}
	return took, err
}
