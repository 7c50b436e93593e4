package ctl

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/pflag"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// leaseID reads a lease ID, which is hexadecimal wherever people read or write it.
func leaseID(arg string) (clientv3.LeaseID, error) {
	id, err := strconv.ParseInt(arg, 16, 64)
	if err != nil {
		return 0, fail(exitBadArgs, fmt.Errorf("bad lease ID arg (%w), expecting ID in Hex", err))
	}
	return clientv3.LeaseID(id), nil
}

func leaseVerb() verb {
	return verb{
		use:   "lease <subcommand>",
		short: "Lease related commands",
		long:  "Lease related commands",
		group: groupKV,
		sub:   []verb{leaseGrantVerb(), leaseRevokeVerb(), leaseTimeToLiveVerb(), leaseListVerb(), leaseKeepAliveVerb()},
	}
}

func leaseGrantVerb() verb {
	return verb{
		use:   "grant <ttl>",
		short: "Creates leases",
		forms: responseForms,
		run: func(c *call, args []string) error {
			if len(args) != 1 {
				return fail(exitBadArgs, errors.New("lease grant command needs TTL argument"))
			}
			ttl, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil {
				return fail(exitBadArgs, fmt.Errorf("bad TTL (%w)", err))
			}
			if err := c.connect(); err != nil {
				return err
			}
			ctx, cancel := c.timeout()
			defer cancel()
			resp, err := c.client.Grant(ctx, ttl)
			if err != nil {
				return fmt.Errorf("failed to grant lease (%w)", err)
			}
			return c.print.print(resp)
		},
	}
}

func leaseRevokeVerb() verb {
	return verb{
		use:   "revoke <leaseID>",
		short: "Revokes leases",
		forms: responseForms,
		run: func(c *call, args []string) error {
			if len(args) != 1 {
				return fail(exitBadArgs, errors.New("lease revoke command needs 1 argument"))
			}
			id, err := leaseID(args[0])
			if err != nil {
				return err
			}
			if err := c.connect(); err != nil {
				return err
			}
			ctx, cancel := c.timeout()
			defer cancel()
			resp, err := c.client.Revoke(ctx, id)
			if err != nil {
				return fmt.Errorf("failed to revoke lease (%w)", err)
			}
			return c.print.print(leaseRevoked{id, resp})
		},
	}
}

func leaseTimeToLiveVerb() verb {
	var keys bool
	return verb{
		use:   "timetolive <leaseID> [options]",
		short: "Get lease information",
		forms: responseForms,
		flags: func(fs *pflag.FlagSet) {
			fs.BoolVar(&keys, "keys", false, "Get keys attached to this lease")
		},
		run: func(c *call, args []string) error {
			if len(args) != 1 {
				return fail(exitBadArgs, errors.New("lease timetolive command needs lease ID as argument"))
			}
			id, err := leaseID(args[0])
			if err != nil {
				return err
			}
			if err := c.connect(); err != nil {
				return err
			}
			var opts []clientv3.LeaseOption
			if keys {
				opts = append(opts, clientv3.WithAttachedKeys())
			}
			ctx, cancel := c.timeout()
			defer cancel()
			resp, err := c.client.TimeToLive(ctx, id, opts...)
			if err != nil {
				return fail(exitBadConnection, err)
			}
			return c.print.print(leaseInfo{resp, keys})
		},
	}
}

func leaseListVerb() verb {
	return verb{
		use:   "list",
		short: "List all active leases",
		forms: responseForms,
		run: func(c *call, _ []string) error {
			if err := c.connect(); err != nil {
				return err
			}
			ctx, cancel := c.timeout()
			defer cancel()
			resp, err := c.client.Leases(ctx)
			if err != nil {
				return fail(exitBadConnection, err)
			}
			return c.print.print(resp)
		},
	}
}

func leaseKeepAliveVerb() verb {
	var once bool
	return verb{
		use:   "keep-alive [options] <leaseID>",
		short: "Keeps leases alive (renew)",
		forms: responseForms,
		flags: func(fs *pflag.FlagSet) {
			fs.BoolVar(&once, "once", false, "Resets the keep-alive time to its original value and exits immediately")
		},
		run: func(c *call, args []string) error {
			if len(args) != 1 {
				return fail(exitBadArgs, errors.New("lease keep-alive command needs lease ID as argument"))
			}
			id, err := leaseID(args[0])
			if err != nil {
				return err
			}
			if err := c.connect(); err != nil {
				return err
			}
			if once {
				return c.keepAliveOnce(id)
			}
			return c.keepAlive(id)
		},
	}
}

func (c *call) keepAliveOnce(id clientv3.LeaseID) error {
	ctx, cancel := c.timeout()
	defer cancel()
	resp, err := c.client.KeepAliveOnce(ctx, id)
	if err != nil {
		return fail(exitBadConnection, err)
	}
	return c.print.print(resp)
}

// keepAlive renews a lease, and prints each renewal, until it is gone.
func (c *call) keepAlive(id clientv3.LeaseID) error {
	renewals, err := c.client.KeepAlive(c.base(), id)
	if err != nil {
		return fail(exitBadConnection, err)
	}
	for resp := range renewals {
		if err := c.print.print(resp); err != nil {
			return err
		}
		if err := c.flush(); err != nil {
			return err
		}
	}
	if c.form == formSimple {
		fmt.Fprintf(c.out, "lease %016x expired or revoked.\n", id)
	}
	return nil
}
