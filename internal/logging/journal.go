package logging

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/coreos/go-systemd/v22/journal"
)

// newJournal writes lines to systemd's journal with their priority, and to fallback what
// the journal does not take.
func newJournal(fallback io.Writer) (io.Writer, error) {
	if !journal.Enabled() {
		return nil, errors.New("--log-outputs=systemd/journal: the journal's socket cannot be reached")
	}
	return &journalWriter{fallback: fallback, name: filepath.Base(os.Args[0])}, nil
}

type journalWriter struct {
	fallback io.Writer
	name     string // SYSLOG_IDENTIFIER
}

func (w *journalWriter) Write(line []byte) (int, error) {
	err := journal.Send(string(line), priority(line), map[string]string{"SYSLOG_IDENTIFIER": w.name})
	if err != nil {
		return w.fallback.Write(line)
	}
	return len(line), nil
}

// priority finds the level that the handler wrote near the start of line, in either format.
func priority(line []byte) journal.Priority {
	head := line[:min(len(line), 48)]
	for _, l := range []struct {
		name     string
		priority journal.Priority
	}{
		{"fatal", journal.PriCrit},
		{"panic", journal.PriCrit},
		{"error", journal.PriErr},
		{"warn", journal.PriWarning},
		{"debug", journal.PriDebug},
	} {
		if bytes.HasPrefix(head, []byte(`{"level":"`+l.name)) || bytes.Contains(head, []byte("\t"+l.name+"\t")) {
			return l.priority
		}
	}
	return journal.PriInfo
}
