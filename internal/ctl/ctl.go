// Package ctl is the command line client: etcdctl's verbs, flags, environment, output forms, exit
// codes and error texts, written on etcd's Go client.
//
// One verb is one value of type verb: its names and flags, and a run function that reads the
// arguments, asks the server and hands the answer to a printer. Global flags are registered once
// (globals) and shared by all verbs, so the same verbs work below any root command. A printer is
// one output form; it is chosen by --write-out and knows every kind of answer it can show.
//
// Where etcdctl 3.7.1 crashes or half works, this package does what was meant: an unknown operator
// or a lease comparison in a transaction is an error or works (etcdctl panics), an output form that
// cannot show the answer is refused before the request is sent (etcdctl sends it first), answers
// about leases in protobuf form are whole, ETCDCTL_COMMAND_TIMEOUT holds for every verb that does not
// wait by its nature, a saved snapshot is compared with its checksum, a lock within a lock tells its
// command of its own key.
//
// Not here yet: make-mirror, check, downgrade.
package ctl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// The groups under which help lists the verbs.
const (
	groupKV          = "kv"
	groupCluster     = "cluster maintenance"
	groupUtility     = "utility"
	groupConcurrency = "concurrency"
	groupAuth        = "authentication"
)

// Command returns the whole client as one root command named etcdctl.
//
// Run it with Execute, which also knows the exit code. Command switches cobra's prefix matching on
// for the process, as etcdctl does: "etcdctl endp st" is "etcdctl endpoint status".
func Command() *cobra.Command {
	cobra.EnablePrefixMatching = true
	root := &cobra.Command{
		Use:   "etcdctl",
		Short: "A command line client for quorate and etcd.",
	}
	g := Mount(root)
	root.PersistentFlags().AddFlagSet(g)
	help := root.HelpFunc()
	root.SetHelpFunc(func(cmd *cobra.Command, args []string) {
		help(cmd, args)
		fmt.Fprintf(cmd.OutOrStdout(), "Use %q for a list of global command-line options (applies to all commands).\n",
			root.Name()+" options")
	})
	return root
}

// Mount adds every client verb, and the groups they are listed in, to root.
//
// The global flags belong to each verb, not to root, because root may have other commands with flags
// of the same names. They are returned for a root that wants to take them before the verb too.
func Mount(root *cobra.Command) *pflag.FlagSet {
	g := newGlobals()
	for _, group := range []cobra.Group{
		{ID: groupKV, Title: "Key-value commands"},
		{ID: groupCluster, Title: "Cluster maintenance commands"},
		{ID: groupConcurrency, Title: "Concurrency commands"},
		{ID: groupAuth, Title: "Authentication commands"},
		{ID: groupUtility, Title: "Utility commands"},
	} {
		if !root.ContainsGroup(group.ID) {
			root.AddGroup(&group)
		}
	}
	for _, v := range []verb{
		getVerb(), putVerb(), delVerb(), txnVerb(), compactionVerb(), watchVerb(), leaseVerb(),
		endpointVerb(), alarmVerb(), defragVerb(), memberVerb(), moveLeaderVerb(), snapshotVerb(),
		lockVerb(), electVerb(),
		authVerb(), userVerb(), roleVerb(),
		versionVerb(), optionsVerb(),
	} {
		cmd := v.command(g)
		cmd.PersistentFlags().AddFlagSet(g.flags)
		root.AddCommand(cmd)
	}
	return g.flags
}

// Execute runs root with the process's arguments and returns the exit code for the process.
// Errors have been printed on standard error, as "Error: text".
func Execute(ctx context.Context, root *cobra.Command) int {
	return ExitCode(root.ExecuteContext(ctx))
}

// A verb describes one command of the client.
type verb struct {
	use, short, long, example string
	group                     string // help group; empty below another verb
	forms                     []form // output forms that can show the answer; empty: the verb prints text only
	flags                     func(fs *pflag.FlagSet)
	shared                    func(fs *pflag.FlagSet) // flags for the verb and the verbs below it
	run                       func(c *call, args []string) error
	sub                       []verb
}

// command builds the cobra command of v and of the verbs below it.
func (v verb) command(g *globals) *cobra.Command {
	cmd := &cobra.Command{Use: v.use, Short: v.short, Long: v.long, Example: v.example, GroupID: v.group}
	if v.flags != nil {
		v.flags(cmd.Flags())
	}
	if v.shared != nil {
		v.shared(cmd.PersistentFlags())
	}
	for _, s := range v.sub {
		cmd.AddCommand(s.command(g))
	}
	if v.run == nil {
		return cmd
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		// From here on an error is about the request, not about the usage of flags.
		cmd.SilenceUsage = true
		c := &call{cmd: cmd, verb: v, g: g, in: cmd.InOrStdin(), out: bufio.NewWriter(cmd.OutOrStdout())}
		err := v.run(c, args)
		if cerr := c.close(); err == nil {
			err = cerr
		}
		if errors.Is(err, errSilent) {
			cmd.SilenceErrors = true
		}
		return err
	}
	return cmd
}

// A call is one run of a verb: its streams, and after connect its client and printer.
type call struct {
	cmd  *cobra.Command
	verb verb
	g    *globals
	in   io.Reader
	out  *bufio.Writer // flushed by close; earlier by flush where output is a stream

	// Set by connect and configure.
	lg     *zap.Logger
	form   form
	print  printer
	client *clientv3.Client
}

// base returns the context that ends with the process.
func (c *call) base() context.Context {
	if ctx := c.cmd.Context(); ctx != nil {
		return ctx
	}
	return context.Background()
}

// timeout returns a context that ends after --command-timeout.
func (c *call) timeout() (context.Context, context.CancelFunc) {
	return context.WithTimeout(c.base(), c.g.commandTimeout)
}

// flush writes what has been printed so far.
func (c *call) flush() error {
	if err := c.out.Flush(); err != nil {
		return fail(exitIO, fmt.Errorf("write output: %w", err))
	}
	return nil
}

// close flushes the output and ends the client's connections.
func (c *call) close() error {
	err := c.flush()
	if c.client == nil {
		return err
	}
	// A watch or renewal in progress ends with the client; that it was cancelled is no news.
	if cerr := c.client.Close(); err == nil && cerr != nil && !errors.Is(cerr, context.Canceled) {
		err = fail(exitBadConnection, cerr)
	}
	return err
}

// warnf writes one line to standard error.
func (c *call) warnf(format string, args ...any) {
	fmt.Fprintf(c.cmd.ErrOrStderr(), format+"\n", args...)
}
