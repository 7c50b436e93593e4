package ctl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// untilSignal returns a context that ends when the process is told to stop, and with base.
func (c *call) untilSignal() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(c.base(), syscall.SIGINT, syscall.SIGTERM)
}

// withSession connects and runs do with a session. Its lease is not revoked in the end: keys that others may
// have attached to it last until it runs out.
func (c *call) withSession(do func(s *concurrency.Session) error, opts ...concurrency.SessionOption) error {
	if err := c.connect(); err != nil {
		return err
	}
	s, err := concurrency.NewSession(c.client, opts...)
	if err != nil {
		return err
	}
	defer s.Orphan()
	return do(s)
}

// show prints a range response at once.
func (c *call) show(resp *clientv3.GetResponse) error {
	if err := c.print.print((*pb.RangeResponse)(resp)); err != nil {
		return err
	}
	return c.flush()
}

func lockVerb() verb {
	ttl := 10
	return verb{
		use:   "lock <lockname> [exec-command arg1 arg2 ...]",
		short: "Acquires a named lock",
		group: groupConcurrency,
		forms: responseForms,
		flags: func(fs *pflag.FlagSet) { fs.IntVar(&ttl, "ttl", ttl, "timeout for session") },
		run: func(c *call, args []string) error {
			if len(args) == 0 {
				return fail(exitBadArgs, errors.New("lock takes a lock name argument and an optional command to execute"))
			}
			err := c.withSession(func(s *concurrency.Session) error { return c.lock(s, args[0], args[1:]) }, concurrency.WithTTL(ttl))
			// The command's exit status becomes ours.
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				return fail(exit.ExitCode(), err)
			}
			return err
		},
	}
}

// lock waits for the lock and holds it while the command runs, or without one until a signal.
func (c *call) lock(s *concurrency.Session, name string, command []string) error {
	m := concurrency.NewMutex(s, name)
	ctx, stop := c.untilSignal()
	defer stop()
	if err := m.Lock(ctx); err != nil {
		return err
	}
	unlock := func() error {
		ctx, cancel := c.timeout()
		defer cancel()
		return m.Unlock(ctx)
	}
	if len(command) > 0 {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Env = append(os.Environ(), "ETCD_LOCK_KEY="+m.Key(), fmt.Sprintf("ETCD_LOCK_REV=%d", m.Header().GetRevision()))
		cmd.Stdout, cmd.Stderr = c.cmd.OutOrStdout(), c.cmd.ErrOrStderr()
		err := cmd.Run()
		if uerr := unlock(); err == nil {
			err = uerr
		}
		return err
	}
	resp, err := c.client.Get(ctx, m.Key())
	if err != nil {
		return err
	}
	if len(resp.Kvs) == 0 {
		return errors.New("lock lost on init")
	}
	if err := c.show(resp); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return unlock()
	case <-s.Done():
		return errors.New("session expired")
	}
}

func electVerb() verb {
	var listen bool
	return verb{
		use:   "elect <election-name> [proposal]",
		short: "Observes and participates in leader election",
		group: groupConcurrency,
		forms: responseForms,
		flags: func(fs *pflag.FlagSet) { fs.BoolVarP(&listen, "listen", "l", false, "observation mode") },
		run: func(c *call, args []string) error {
			var do func(*concurrency.Session) error
			switch {
			case len(args) != 1 && len(args) != 2:
				return fail(exitBadArgs, errors.New("elect takes one election name argument and an optional proposal argument"))
			case len(args) == 1 && !listen:
				return fail(exitBadArgs, errors.New("no proposal argument but -l not set"))
			case len(args) == 2 && listen:
				return fail(exitBadArgs, errors.New("proposal given but -l is set"))
			case listen:
				do = func(s *concurrency.Session) error { return c.observe(s, args[0]) }
			default:
				do = func(s *concurrency.Session) error { return c.campaign(s, args[0], args[1]) }
			}
			return c.withSession(do)
		},
	}
}

// observe prints each leader of the election until a signal.
func (c *call) observe(s *concurrency.Session, election string) error {
	ctx, stop := c.untilSignal()
	defer stop()
	for resp := range concurrency.NewElection(s, election).Observe(ctx) {
		if err := c.show(resp); err != nil {
			return err
		}
	}
	if ctx.Err() == nil {
		return errors.New("elect: observer lost")
	}
	return nil
}

// campaign waits to be elected, prints the key that says so, and leads until a signal.
func (c *call) campaign(s *concurrency.Session, election, proposal string) error {
	ctx, stop := c.untilSignal()
	defer stop()
	e := concurrency.NewElection(s, election)
	if err := e.Campaign(ctx, proposal); err != nil {
		return err
	}
	resp, err := c.client.Get(ctx, e.Key())
	if err != nil {
		return err
	}
	if err := c.show(resp); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		resign, cancel := c.timeout()
		defer cancel()
		return e.Resign(resign)
	case <-s.Done():
		return errors.New("elect: session expired")
	}
}
