package config

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"strings"
)

// Parsed is what a command line comes to.
type Parsed struct {
	*Config // nil with Help or Version

	Help    bool // print Usage and exit
	Version bool // print the version and exit

	notes notes
}

// UsageError is a command line that cannot be understood: the process exits with status
// 2, as with etcd. Every other error of Parse is about what was said, and means status 1.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

// Parse reads a command line (without the program's name) and an environment
// ("NAME=value", as os.Environ gives it) and, if they name one, the configuration file.
// The Config has passed Validate. When it did not, Parsed is returned along with the
// error, for its log options and notes.
func Parse(args, environ []string) (*Parsed, error) {
	p := &Parsed{}
	c := Default()
	t := newTable(c, &p.notes)
	switch err := t.fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return &Parsed{Help: true}, nil
	case err != nil:
		return nil, &UsageError{t.explain(err)}
	}
	if arg := t.fs.Arg(0); arg == "gateway" || arg == "grpc-proxy" {
		return nil, &UsageError{fmt.Errorf("etcd's %s is not a part of quorate; etcd's own works with it", arg)}
	} else if arg != "" || t.fs.NArg() > 0 {
		return nil, fmt.Errorf("%q is not a valid flag", arg)
	}
	if t.version {
		return &Parsed{Version: true}, nil
	}

	env := newEnvironment(environ)
	file := t.configFile
	if file == "" {
		file = env.values["ETCD_CONFIG_FILE"]
	}
	if file != "" {
		// Nothing that flags or environment said may show.
		p.notes = nil
		c = Default()
		t = newTable(c, &p.notes)
		if err := t.readFile(file); err != nil {
			return nil, err
		}
		p.notes.info("loaded server configuration, other configuration command line flags and environment variables will be ignored if provided", "path", file)
	} else if err := t.readEnvironment(env); err != nil {
		return nil, err
	}
	set := t.set()
	if file == "" && set["listen-client-urls"] && !set["advertise-client-urls"] {
		c.AdvertiseClientURLs = nil
	}
	if (c.DiscoverySRV != "" || c.DiscoverySRVName != "" || len(c.Discovery.Endpoints) > 0) && !set["initial-cluster"] {
		c.InitialCluster = ""
	}
	t.noteUseless(set)
	p.Config = c
	if err := c.Validate(); err != nil {
		return p, err
	}
	c.finish(&p.notes)
	c.warnings(&p.notes)
	return p, nil
}

// LogNotes writes what was noticed while the configuration was read, when there was no logger.
func (p *Parsed) LogNotes(log *slog.Logger) { p.notes.log(log) }

// explain adds to an error of package flag the name that was probably meant.
func (t *table) explain(err error) error {
	name, ok := strings.CutPrefix(err.Error(), "flag provided but not defined: -")
	if !ok {
		return err
	}
	switch name {
	case "discovery", "discovery-proxy":
		return fmt.Errorf("%w\netcd's v2 discovery is gone; name the members with --initial-cluster", err)
	case "enable-v2", "experimental-enable-v2v3":
		return fmt.Errorf("%w\netcd's v2 API is gone; remove the flag", err)
	}
	if near := nearest(name, t.names()); near != "" {
		return fmt.Errorf("%w\ndid you mean --%s?", err, near)
	}
	return err
}

// ---- environment ----

type environment struct {
	names  []string
	values map[string]string
}

func newEnvironment(environ []string) environment {
	e := environment{values: make(map[string]string)}
	for _, s := range environ {
		if name, value, ok := strings.Cut(s, "="); ok && strings.HasPrefix(name, "ETCD_") {
			e.names = append(e.names, name)
			e.values[name] = value
		}
	}
	return e
}

// specialEnv are variables that are not flags: of etcd itself and of its failpoints.
var specialEnv = map[string]bool{"ETCD_UNSUPPORTED_ARCH": true, "ETCD_VERIFY": true, "ETCD_CONFIG_FILE": true}

// readEnvironment sets flags that the command line did not.
func (t *table) readEnvironment(env environment) error {
	set := t.set()
	known := make(map[string]bool)
	var failed error
	t.fs.VisitAll(func(f *flag.Flag) {
		key := "ETCD_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value := env.values[key]
		if failed != nil || value == "" || f.Name == "version" {
			return
		}
		known[key] = true
		if set[f.Name] {
			t.notes.warn("environment variable is shadowed by the command-line flag of its name", "environment-variable", key)
			return
		}
		if err := t.fs.Set(f.Name, value); err != nil {
			failed = fmt.Errorf("invalid value %q for %s: %w", value, key, err)
			return
		}
		if strings.Contains(f.Name, "password") {
			value = "***"
		}
		t.notes.info("recognized and used environment variable", "variable-name", key, "variable-value", value)
	})
	for _, name := range env.names {
		if !known[name] && !specialEnv[name] {
			t.notes.warn("unrecognized environment variable", "environment-variable", name+"="+env.values[name])
		}
	}
	return failed
}

// set are the flags that any source gave, by today's names.
func (t *table) set() map[string]bool {
	set := make(map[string]bool)
	t.fs.Visit(func(f *flag.Flag) {
		set[f.Name] = true
		if now, ok := experimental[f.Name]; ok {
			set[now] = true
		}
	})
	return set
}

// deprecated is what etcd says about flags that it is about to drop.
var deprecated = map[string]string{
	"max-snapshots":  "--max-snapshots is deprecated in 3.6 and will be decommissioned in 3.8.",
	"v2-deprecation": "--v2-deprecation is deprecated and scheduled for removal in v3.8. The default value is enforced, ignoring user input.",
}

// noteUseless notes flags that were given and do nothing.
func (t *table) noteUseless(set map[string]bool) {
	for _, g := range t.groups {
		if g.title != compatibilityTitle {
			continue
		}
		for _, name := range g.names {
			switch {
			case !set[name]:
			case deprecated[name] != "":
				t.notes.warn(deprecated[name])
			default:
				t.notes.info("flag is accepted for compatibility and has no effect", "flag-name", name)
			}
		}
	}
}

// ---- notes ----

// notes are log lines from before there is a logger.
type notes []note

type note struct {
	level slog.Level
	text  string
	args  []any
}

func (n *notes) info(text string, args ...any) { *n = append(*n, note{slog.LevelInfo, text, args}) }
func (n *notes) warn(text string, args ...any) { *n = append(*n, note{slog.LevelWarn, text, args}) }

func (n notes) log(log *slog.Logger) {
	for _, note := range n {
		log.Log(context.Background(), note.level, note.text, note.args...)
	}
}

// ---- suggestions ----

// nearest is the candidate that takes fewest edits from name, "" if all take many.
func nearest(name string, candidates []string) string {
	best, bestEdits := "", max(2, len(name)/4)+1
	for _, c := range candidates {
		if n := edits(name, c); n < bestEdits {
			best, bestEdits = c, n
		}
	}
	return best
}

// edits is the Levenshtein distance of a and b.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			n := diagonal
			if a[i] != b[j] {
				n = 1 + min(diagonal, row[j], row[j+1])
			}
			diagonal, row[j+1] = row[j+1], n
		}
	}
	return row[len(b)]
}
