// Package logging makes the server's logger: log/slog whose lines have the shape that
// etcd's have, because log collectors and scripts are made for it:
//
//	{"level":"info","ts":"2026-11-22T19:18:56.368412Z","caller":"node/node.go:81","msg":"...","key":"value"}
//
// Level names are debug, info, warn, error, panic and fatal. Durations are written as
// text ("1.5s"), times like ts, errors as their text.
package logging

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
)

// LevelPanic and LevelFatal stand above slog's levels, to ask for less than errors.
const (
	LevelPanic = slog.LevelError + 4
	LevelFatal = slog.LevelError + 8
)

// Names of outputs that are not files.
const (
	OutputDefault = "default" // stderr
	OutputStderr  = "stderr"
	OutputStdout  = "stdout"
	OutputJournal = "systemd/journal"
)

// ErrRotationOutput says that rotation was asked for without exactly one file to rotate.
var ErrRotationOutput = errors.New("--log-outputs requires a single file path when --log-rotate-config-json is defined")

// Options choose what is logged, how, and where to.
type Options struct {
	Level   string   // debug, info, warn, error, panic or fatal; empty: info
	Format  string   // json or console; empty: json
	Outputs []string // of the names above, or paths of files to append to; empty: default

	// Rotate rotates the one file among Outputs as Rotation says: a JSON object with
	// maxsize (MB), maxage (days), maxbackups, localtime and compress.
	Rotate   bool
	Rotation string
}

// New returns a logger and what closes its files. Its errors carry etcd's texts.
func New(o Options) (*slog.Logger, io.Closer, error) {
	level, err := ParseLevel(o.Level)
	if err != nil {
		return nil, nil, err
	}
	if err := checkFormat(o.Format); err != nil {
		return nil, nil, err
	}
	w, closer, err := open(o)
	if err != nil {
		return nil, nil, err
	}
	return slog.New(newHandler(w, level, o.Format == "console")), closer, nil
}

// Check reports whether New would accept o, without opening anything.
func Check(o Options) error {
	if _, err := ParseLevel(o.Level); err != nil {
		return err
	}
	if err := checkFormat(o.Format); err != nil {
		return err
	}
	return checkOutputs(o)
}

// Discard is a logger that writes nothing.
func Discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// ParseLevel returns the level of that name; the empty name is info.
func ParseLevel(name string) (slog.Level, error) {
	switch strings.ToLower(name) {
	case "debug":
		return slog.LevelDebug, nil
	case "", "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	case "dpanic", "panic":
		return LevelPanic, nil
	case "fatal":
		return LevelFatal, nil
	}
	return 0, fmt.Errorf("unrecognized level: %q", name)
}

func levelName(l slog.Level) string {
	switch {
	case l >= LevelFatal:
		return "fatal"
	case l >= LevelPanic:
		return "panic"
	case l >= slog.LevelError:
		return "error"
	case l >= slog.LevelWarn:
		return "warn"
	case l >= slog.LevelInfo:
		return "info"
	}
	return "debug"
}

func checkFormat(format string) error {
	switch format {
	case "", "json", "console":
		return nil
	}
	return fmt.Errorf("unknown log format: %s, supported values json, console", format)
}

func checkOutputs(o Options) error {
	if len(o.Outputs) > 1 && slices.Contains(o.Outputs, OutputDefault) {
		return fmt.Errorf("multi logoutput for %q is not supported yet", OutputDefault)
	}
	if len(o.Outputs) > 1 && slices.Contains(o.Outputs, OutputJournal) {
		return fmt.Errorf("running with systemd/journal but other '--log-outputs' values (%q) are configured with 'default'; override 'default' value with something else", o.Outputs)
	}
	if !o.Rotate {
		return nil
	}
	if files := slices.DeleteFunc(slices.Clone(o.Outputs), notFile); len(files) != 1 {
		return ErrRotationOutput
	}
	_, err := parseRotation(o.Rotation)
	return err
}

func notFile(output string) bool {
	switch output {
	case OutputDefault, OutputStderr, OutputStdout, OutputJournal, "":
		return true
	}
	return false
}

// open opens every output. Lines go to all of them; a failure of one does not keep the
// others from getting theirs.
func open(o Options) (io.Writer, io.Closer, error) {
	if err := checkOutputs(o); err != nil {
		return nil, nil, err
	}
	outputs := slices.Compact(slices.Sorted(slices.Values(o.Outputs)))
	if len(outputs) == 0 {
		outputs = []string{OutputDefault}
	}
	if slices.Contains(outputs, os.DevNull) {
		outputs = []string{os.DevNull}
	}
	var ws writers
	var files closers
	for _, name := range outputs {
		switch name {
		case OutputDefault, OutputStderr:
			ws = append(ws, os.Stderr)
		case OutputStdout:
			ws = append(ws, os.Stdout)
		case OutputJournal:
			w, err := newJournal(os.Stderr)
			if err != nil {
				return nil, nil, errors.Join(err, files.Close())
			}
			ws = append(ws, w)
		default:
			f, err := openFile(name, o)
			if err != nil {
				return nil, nil, errors.Join(err, files.Close())
			}
			ws, files = append(ws, f), append(files, f)
		}
	}
	if len(ws) == 1 {
		return ws[0], files, nil
	}
	return ws, files, nil
}

func openFile(name string, o Options) (io.WriteCloser, error) {
	if o.Rotate {
		l, err := parseRotation(o.Rotation)
		if err != nil {
			return nil, err
		}
		l.Filename = name
		return l, nil
	}
	return os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
}

type writers []io.Writer

func (ws writers) Write(p []byte) (int, error) {
	var errs []error
	for _, w := range ws {
		if _, err := w.Write(p); err != nil {
			errs = append(errs, err)
		}
	}
	return len(p), errors.Join(errs...)
}

type closers []io.Closer

func (cs closers) Close() error {
	var errs []error
	for _, c := range cs {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}
