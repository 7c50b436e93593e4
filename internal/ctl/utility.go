package ctl

import (
	"fmt"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/api/v3/version"
)

// versionVerb prints the version of the root command: its Version, or that of the API it speaks.
func versionVerb() verb {
	return verb{
		use:   "version",
		short: "Prints the version",
		group: groupUtility,
		run: func(c *call, _ []string) error {
			root := c.cmd.Root()
			v := root.Version
			if v == "" {
				v = version.Version
			}
			fmt.Fprintf(c.out, "%s version: %s\nAPI version: %s\n", root.Name(), v, version.APIVersion)
			return nil
		},
	}
}

func optionsVerb() verb {
	return verb{
		use:   "options",
		short: "Show the global command-line flags",
		group: groupUtility,
		run: func(c *call, _ []string) error {
			shown := pflag.NewFlagSet("", pflag.ContinueOnError)
			c.g.flags.VisitAll(func(f *pflag.Flag) {
				visible := *f
				visible.Hidden = false
				shown.AddFlag(&visible)
			})
			fmt.Fprintf(c.out, "The following options can be passed to any command:\n\n%s", shown.FlagUsages())
			return nil
		},
	}
}
