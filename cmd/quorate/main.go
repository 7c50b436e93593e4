// Command quorate is a replicated key-value store that speaks the etcd v3 API.
//
// "quorate serve" runs a member, "quorate dev" a cluster of them on one machine; get, put, watch and
// the other verbs are its client; bench measures. Started under the name etcd it is the server, under the name etcdctl
// the client, so that it can stand where they stood.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"quorate"
	"quorate/internal/bench"
	"quorate/internal/config"
	"quorate/internal/ctl"

	"github.com/spf13/cobra"
)

func main() { os.Exit(run(os.Args, os.Environ())) }

// run does what args say and returns the exit status.
func run(args, environ []string) int {
	switch name := strings.TrimSuffix(filepath.Base(args[0]), ".exe"); name {
	case "etcd":
		return serve(args, args[1:], environ)
	case "etcdctl":
		return execute(ctl.Command(), args[1:])
	}
	// The server's flags are parsed as etcd parses them, which cobra cannot: with one
	// dash or two. So serve never reaches it.
	if len(args) > 1 && args[1] == "serve" {
		return serve(args, args[2:], environ)
	}
	return execute(command(), args[1:])
}

func execute(root *cobra.Command, args []string) int {
	root.SetArgs(args)
	return ctl.Execute(context.Background(), root)
}

// command is quorate with all its verbs.
func command() *cobra.Command {
	root := &cobra.Command{
		Use:   "quorate",
		Short: "A replicated key-value store that speaks the etcd v3 API",
		Long: `quorate is a strongly consistent, replicated key-value store that speaks the etcd v3 API
and keeps its data in etcd's formats.

  quorate serve               run a member on localhost, with its data in default.etcd
  quorate dev --members 3     run a cluster of three on localhost, for trying things out
  quorate put greeting hello  write a key
  quorate get greeting        read it`,
	}
	const server = "server"
	root.AddGroup(&cobra.Group{ID: server, Title: "Server commands"})
	root.AddCommand(&cobra.Command{
		Use: "serve", Short: "Runs a member; its flags are etcd's (serve --help)", GroupID: server,
		DisableFlagParsing: true,
		// Only "quorate help serve" comes here; see run.
		Run: func(cmd *cobra.Command, _ []string) { fmt.Fprint(cmd.OutOrStdout(), config.Usage()) },
	})
	serveCommand, _, err := root.Find([]string{"serve"})
	if err == nil {
		serveCommand.SetHelpFunc(func(cmd *cobra.Command, _ []string) { fmt.Fprint(cmd.OutOrStdout(), config.Usage()) })
	}
	root.AddCommand(devCommand(server))
	ctl.Mount(root)
	b := bench.Command()
	b.GroupID = server
	root.AddCommand(b)
	root.Version = quorate.Version
	root.SetVersionTemplate(versionText())
	return root
}

// versionText is the answer to --version: etcd's lines under etcd's names, first the
// version as "etcd Version: 3.7.1" because scripts cut it from there, and last what the
// program really is.
func versionText() string {
	return fmt.Sprintf("etcd Version: %s\nGit SHA: %s\nGo Version: %s\nGo OS/Arch: %s/%s\nServer: quorate\n",
		quorate.Version, revision(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
