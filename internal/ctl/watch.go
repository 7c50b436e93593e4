package ctl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"

	"github.com/spf13/pflag"
	clientv3 "go.etcd.io/etcd/client/v3"
)

var (
	errWatchArgs      = errors.New("bad number of arguments")
	errWatchConflict  = errors.New("bad number of arguments (found conflicting environment key)")
	errWatchSeparator = errors.New("bad number of arguments (found separator --, but no commands)")
	errWatchCancelled = errors.New("watch is canceled by the server")
)

// watchFlags are the flags of watch, on the command line and on a line of interactive input.
type watchFlags struct {
	interactive, prefix, prevKV, progressNotify bool
	rev                                         int64
}

func (f *watchFlags) register(fs *pflag.FlagSet) {
	fs.BoolVarP(&f.interactive, "interactive", "i", false, "Interactive mode")
	fs.BoolVar(&f.prefix, "prefix", false, "Watch on a prefix if prefix is set")
	fs.Int64Var(&f.rev, "rev", 0, "Revision to start watching")
	fs.BoolVar(&f.prevKV, "prev-kv", false, "get the previous key-value pair before the event happens")
	fs.BoolVar(&f.progressNotify, "progress-notify", false, "get periodic watch progress notification from server")
}

// A watchEnv is the key and range end that the environment gives to watches without arguments.
type watchEnv struct{ key, rangeEnd string }

// A watchRequest is what to watch and the command to run for each event, if any.
type watchRequest struct {
	watchFlags
	args []string // key, range end
	exec []string
}

// newWatchRequest reads the positional arguments of a watch; dash is the number of them before "--",
// -1 without it. Key and range end come from the arguments or from the environment, not from both.
func newWatchRequest(f watchFlags, args []string, dash int, env watchEnv) (watchRequest, error) {
	r := watchRequest{watchFlags: f, args: args}
	if dash >= 0 {
		if r.args, r.exec = args[:dash], args[dash:]; len(r.exec) == 0 {
			return r, errWatchSeparator
		}
	}
	if env.key != "" {
		if len(r.args) > 0 {
			return r, errWatchConflict
		}
		if r.args = []string{env.key}; env.rangeEnd != "" {
			r.args = append(r.args, env.rangeEnd)
		}
	}
	if len(r.args) == 0 {
		return r, errWatchArgs
	}
	return r, nil
}

// watch opens the watch; its channel closes when ctx ends.
func (r watchRequest) watch(ctx context.Context, client *clientv3.Client) (clientv3.WatchChan, error) {
	opts := []clientv3.OpOption{clientv3.WithRev(r.rev)}
	if len(r.args) == 2 {
		if r.prefix {
			return nil, errors.New("`range_end` and `--prefix` are mutually exclusive")
		}
		opts = append(opts, clientv3.WithRange(r.args[1]))
	}
	if r.prefix {
		opts = append(opts, clientv3.WithPrefix())
	}
	if r.prevKV {
		opts = append(opts, clientv3.WithPrevKV())
	}
	if r.progressNotify {
		opts = append(opts, clientv3.WithProgressNotify())
	}
	return client.Watch(clientv3.WithRequireLeader(ctx), r.args[0], opts...), nil
}

func watchVerb() verb {
	var f watchFlags
	return verb{
		use:   "watch [options] [key or prefix] [range_end] [--] [exec-command arg1 arg2 ...]",
		short: "Watches events stream on keys or prefixes",
		group: groupKV,
		forms: responseForms,
		flags: f.register,
		run: func(c *call, args []string) error {
			env := watchEnv{os.Getenv(envWatchKey), os.Getenv(envWatchRangeEnd)}
			if env.key == "" && env.rangeEnd != "" {
				return fail(exitBadArgs, fmt.Errorf("%s is empty but got %s=%q", envWatchKey, envWatchRangeEnd, env.rangeEnd))
			}
			if f.interactive {
				return c.watchInteractive(env)
			}
			req, err := newWatchRequest(f, args, c.cmd.ArgsLenAtDash(), env)
			if err != nil {
				return fail(exitBadArgs, err)
			}
			if err := c.connect(); err != nil {
				return err
			}
			events, err := req.watch(c.base(), c.client)
			if err != nil {
				return fail(exitBadArgs, err)
			}
			var mu sync.Mutex
			if err := c.printEvents(&mu, events, req.exec); err != nil {
				return err
			}
			return fail(exitInterrupted, errWatchCancelled)
		},
	}
}

// watchInteractive reads "watch" and "progress" commands from standard input until one is wrong or
// the input ends, and prints the events of all watches as they come.
func (c *call) watchInteractive(env watchEnv) error {
	if err := c.connect(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(c.base())
	var (
		mu      sync.Mutex // guards c.out and c.print
		watches sync.WaitGroup
	)
	defer watches.Wait()
	defer cancel(nil)

	lines := readLines(ctx, c)
	for {
		var l inputLine
		select {
		case l = <-lines:
		case <-ctx.Done():
			// A watch could not be printed, or the process was told to end.
			return context.Cause(ctx)
		}
		if l.err != nil {
			return fail(exitInvalidInput, fmt.Errorf("error reading watch request line: %w", l.err))
		}
		words, err := splitWords(l.text)
		if err != nil {
			return err
		}
		switch {
		case len(words) == 0:
			c.warnf("Invalid command: %s (watch and progress supported)", l.text)
		case words[0] == "progress":
			if err := c.client.RequestProgress(clientv3.WithRequireLeader(ctx)); err != nil {
				return err
			}
		case words[0] != "watch":
			c.warnf("Invalid command %s (only support watch)", l.text)
		case len(words) < 2 && env.key == "":
			c.warnf("Invalid command %s (command type or key is not provided)", l.text)
		default:
			var f watchFlags
			fs := pflag.NewFlagSet("watch", pflag.ContinueOnError)
			f.register(fs)
			if err := fs.Parse(words[1:]); err != nil {
				return fail(exitBadArgs, err)
			}
			req, err := newWatchRequest(f, fs.Args(), fs.ArgsLenAtDash(), env)
			if err != nil {
				return fail(exitBadArgs, err)
			}
			events, err := req.watch(ctx, c.client)
			if err != nil {
				c.warnf("Invalid command %s (%v)", l.text, err)
				continue
			}
			watches.Go(func() {
				if err := c.printEvents(&mu, events, req.exec); err != nil {
					cancel(err)
				}
			})
		}
	}
}

// An inputLine is a line without its end, or why there are no more.
type inputLine struct {
	text string
	err  error
}

// readLines hands over the lines of standard input, the last one with an error.
//
// Its goroutine ends with ctx or after the error; one that still blocks in a read ends with the
// process, since reading a terminal cannot be cancelled.
func readLines(ctx context.Context, c *call) <-chan inputLine {
	lines := make(chan inputLine)
	in := bufio.NewReader(c.in)
	go func() {
		for {
			text, err := in.ReadString('\n')
			select {
			case lines <- inputLine{strings.TrimSuffix(text, "\n"), err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return lines
}

// printEvents prints the responses of a watch and runs command for each event, until the watch ends.
// mu is held while a response is printed, so that those of several watches do not mix.
func (c *call) printEvents(mu *sync.Mutex, events clientv3.WatchChan, command []string) error {
	for resp := range events {
		if err := c.printResponse(mu, &resp); err != nil {
			return err
		}
		if len(command) == 0 {
			continue
		}
		for _, ev := range resp.Events {
			cmd := exec.CommandContext(c.client.Ctx(), command[0], command[1:]...)
			cmd.Env = append(os.Environ(),
				fmt.Sprintf("ETCD_WATCH_REVISION=%d", resp.Header.GetRevision()),
				fmt.Sprintf("ETCD_WATCH_EVENT_TYPE=%q", ev.Type),
				fmt.Sprintf("ETCD_WATCH_KEY=%q", ev.Kv.GetKey()),
				fmt.Sprintf("ETCD_WATCH_VALUE=%q", ev.Kv.GetValue()))
			cmd.Stdout, cmd.Stderr = c.cmd.OutOrStdout(), c.cmd.ErrOrStderr()
			if err := cmd.Run(); err != nil {
				c.warnf("command %q error (%v)", command, err)
				return errSilent
			}
		}
	}
	return nil
}

// printResponse prints one response of a watch.
func (c *call) printResponse(mu *sync.Mutex, resp *clientv3.WatchResponse) error {
	mu.Lock()
	defer mu.Unlock()
	if resp.Canceled {
		c.warnf("watch was canceled (%v)", resp.Err())
	}
	if resp.IsProgressNotify() {
		fmt.Fprintf(c.out, "progress notify: %d\n", resp.Header.GetRevision())
	}
	if err := c.print.print(resp); err != nil {
		return err
	}
	return c.flush()
}
