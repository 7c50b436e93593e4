package config

import (
	"fmt"
	"strings"
)

// Usage is the text of --help: every flag with its default, by group.
func Usage() string {
	var b strings.Builder
	b.WriteString(`Usage:

  quorate serve [flags]     run a member (started under the name etcd: without serve)
  quorate serve --version   show the version
  quorate serve --help      show this

Flags are those of etcd 3.7, with one dash or two. Each can also be given as an
environment variable (--data-dir as ETCD_DATA_DIR); the flag wins. With --config-file,
a YAML file with the same names, flags and environment are ignored. In that file a time
is a text ("10s") or a number of nanoseconds.
`)
	t := newTable(Default(), &notes{})
	for _, g := range t.groups {
		fmt.Fprintf(&b, "\n%s:\n", g.title)
		for _, name := range g.names {
			f := t.fs.Lookup(name)
			fmt.Fprintf(&b, "  --%s '%s'\n", name, f.DefValue)
			for line := range strings.Lines(f.Usage) {
				b.WriteString("      " + line)
			}
			if f.Usage != "" {
				b.WriteString("\n")
			}
		}
	}
	return b.String()
}

func gateList() string {
	var lines []string
	for _, f := range features {
		lines = append(lines, fmt.Sprintf("%s=true|false (%s - default=%t)", f.Name, f.Stage, f.Default))
	}
	return strings.Join(lines, "\n")
}
