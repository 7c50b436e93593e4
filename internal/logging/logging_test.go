package logging

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/slogtest"
	"time"
	"unicode/utf8"

	"github.com/coreos/go-systemd/v22/journal"
)

// The line that an etcd log reader sees: these members, in this order, in this form.
func TestLineHasEtcdsShape(t *testing.T) {
	var buf bytes.Buffer
	log := slog.New(newHandler(&buf, slog.LevelInfo, false))
	log.Info("ready to serve client requests", "name", "m0", "took", 1500*time.Millisecond,
		"err", errors.New("no"), "urls", []string{"http://a", "b"}, "n", 7, "ok", true)
	want := regexp.MustCompile(`^\{"level":"info","ts":"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d{4})",` +
		`"caller":"logging/logging_test\.go:\d+","msg":"ready to serve client requests",` +
		`"name":"m0","took":"1\.5s","err":"no","urls":\["http://a","b"\],"n":7,"ok":true\}` + "\n$")
	if !want.MatchString(buf.String()) {
		t.Errorf("got  %s\nwant %s", buf.String(), want)
	}
}

func TestConsole(t *testing.T) {
	var buf bytes.Buffer
	log := slog.New(newHandler(&buf, slog.LevelInfo, true))
	log.Warn("half a brace {", "a", 1)
	log.Error("plain")
	want := regexp.MustCompile(`^\S+\twarn\tlogging/logging_test\.go:\d+\thalf a brace \{\t\{"a":1\}\n` +
		`\S+\terror\tlogging/logging_test\.go:\d+\tplain\n$`)
	if !want.MatchString(buf.String()) {
		t.Errorf("got %q", buf.String())
	}
}

// The handler obeys every rule that slog sets for handlers.
func TestHandlerContract(t *testing.T) {
	var buf bytes.Buffer
	slogtest.Run(t, func(*testing.T) slog.Handler {
		buf.Reset()
		return newHandler(&buf, slog.LevelInfo, false)
	}, func(t *testing.T) map[string]any {
		var m map[string]any
		if err := json.Unmarshal(buf.Bytes(), &m); err != nil {
			t.Fatalf("%s: %v", buf.Bytes(), err)
		}
		if v, ok := m["ts"]; ok {
			m[slog.TimeKey] = v
			delete(m, "ts")
		}
		return m
	})
}

type nilStringer struct{ s string }

func (n *nilStringer) String() string { return n.s }

// FuzzLine: whatever is logged, one valid JSON line comes out and says it.
func FuzzLine(f *testing.F) {
	f.Add("msg", "key", "value")
	f.Add("a\nb\x00\xff\u2028\"\\", "{", "\x7f")
	f.Fuzz(func(t *testing.T, msg, key, value string) {
		var buf bytes.Buffer
		log := slog.New(newHandler(&buf, slog.LevelInfo, false))
		log.With(key, value).WithGroup(key).Info(msg, key, value, "nil", (*nilStringer)(nil),
			"nan", math.NaN(), "fn", func() {}, "map", map[string]any{key: value})
		if bytes.Count(buf.Bytes(), []byte("\n")) != 1 || !json.Valid(buf.Bytes()) {
			t.Fatalf("not one JSON line: %q", buf.Bytes())
		}
		var m struct{ Msg string }
		if err := json.Unmarshal(buf.Bytes(), &m); err != nil {
			t.Fatal(err)
		}
		if utf8.ValidString(msg) && !strings.EqualFold(key, "msg") && m.Msg != msg {
			t.Fatalf("msg %q, want %q", m.Msg, msg)
		}
	})
}

func TestLevels(t *testing.T) {
	var buf bytes.Buffer
	for _, name := range []string{"debug", "info", "warn", "error", "panic", "fatal"} {
		level, err := ParseLevel(name)
		if err != nil {
			t.Fatal(err)
		}
		buf.Reset()
		log := slog.New(newHandler(&buf, level, false))
		log.Log(context.Background(), level, "x")
		if !strings.HasPrefix(buf.String(), `{"level":"`+name+`"`) {
			t.Errorf("%s: %q", name, buf.String())
		}
		buf.Reset()
		log.Log(context.Background(), level-1, "x")
		if buf.Len() > 0 {
			t.Errorf("%s: logged what is below it", name)
		}
	}
	if _, err := ParseLevel("loud"); err == nil || err.Error() != `unrecognized level: "loud"` {
		t.Errorf("got %v", err)
	}
}

func TestOutputs(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := os.WriteFile(a, []byte("old\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	log, c, err := New(Options{Outputs: []string{a, b, a}})
	if err != nil {
		t.Fatal(err)
	}
	log.Info("hello")
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for name, lines := range map[string]int{a: 2, b: 1} {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if n := bytes.Count(data, []byte("\n")); n != lines {
			t.Errorf("%s has %d lines, want %d: %s", name, n, lines, data)
		}
	}
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	log, c, err := New(Options{
		Outputs: []string{filepath.Join(dir, "log"), OutputStderr}, Rotate: true,
		Rotation: `{"maxsize": 1, "maxbackups": 2}`, Level: "info",
	})
	if err != nil {
		t.Fatal(err)
	}
	// Keep stderr out of the test's output: the file alone matters here.
	h := log.Handler().(*handler)
	h.out.Writer = h.out.Writer.(writers)[0]
	for range 30 {
		log.Info(strings.Repeat("x", 100_000))
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "log*"))
	if err != nil || len(files) < 3 {
		t.Errorf("files %v, %v; want the log and two backups", files, err)
	}
}

func TestBadOptions(t *testing.T) {
	for _, tt := range []struct {
		o    Options
		want string
	}{
		{Options{Format: "xml"}, "unknown log format: xml, supported values json, console"},
		{Options{Outputs: []string{"default", "stdout"}}, `multi logoutput for "default" is not supported yet`},
		{Options{Rotate: true, Outputs: []string{"stdout"}, Rotation: DefaultRotation}, ErrRotationOutput.Error()},
		{Options{Rotate: true, Outputs: []string{"a", "b"}, Rotation: DefaultRotation}, ErrRotationOutput.Error()},
		{Options{Rotate: true, Outputs: []string{"a"}, Rotation: "{"}, "improperly formatted log rotation config: "},
		{Options{Rotate: true, Outputs: []string{"a"}, Rotation: `{"maxsize":"x"}`}, "invalid log rotation config: "},
	} {
		err := Check(tt.o)
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%+v: got %v, want %s", tt.o, err, tt.want)
		}
		if _, _, err2 := New(tt.o); fmt.Sprint(err2) != fmt.Sprint(err) {
			t.Errorf("%+v: New says %v, Check %v", tt.o, err2, err)
		}
	}
}

func TestJournalPriority(t *testing.T) {
	for _, console := range []bool{false, true} {
		for level, want := range map[slog.Level]journal.Priority{
			slog.LevelDebug: journal.PriDebug, slog.LevelInfo: journal.PriInfo, slog.LevelWarn: journal.PriWarning,
			slog.LevelError: journal.PriErr, LevelFatal: journal.PriCrit,
		} {
			var buf bytes.Buffer
			slog.New(newHandler(&buf, slog.LevelDebug, console)).Log(context.Background(), level, "an error fatal")
			if got := priority(buf.Bytes()); got != want {
				t.Errorf("console %v, %v: %v, want %v", console, level, got, want)
			}
		}
	}
}

func BenchmarkLine(b *testing.B) {
	log := slog.New(newHandler(discard{}, slog.LevelInfo, false)).With("member", "m0")
	b.ReportAllocs()
	for b.Loop() {
		log.Info("request stats", "time spent", 3*time.Millisecond, "remote", "127.0.0.1:2379", "count", 7)
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
