package logging

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math"
	"path"
	"runtime"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"
)

// timeFormat has microseconds, as etcd's lines have.
const timeFormat = "2006-01-02T15:04:05.000000Z0700"

// handler writes one line per record, in one Write.
type handler struct {
	out     *output
	level   slog.Leveler
	console bool

	// What WithAttrs and WithGroup added: attrs is encoded already, with a comma before
	// each; open counts the groups whose braces are still open in it.
	attrs   []byte
	open    int
	pending []string // groups without a member so far, which are not written
}

type output struct {
	sync.Mutex
	io.Writer
}

func newHandler(w io.Writer, level slog.Leveler, console bool) *handler {
	return &handler{out: &output{Writer: w}, level: level, console: console}
}

// Enabled implements slog.Handler.
func (h *handler) Enabled(_ context.Context, l slog.Level) bool { return l >= h.level.Level() }

var lines = sync.Pool{New: func() any { return new(make([]byte, 0, 512)) }}

// Handle implements slog.Handler.
func (h *handler) Handle(_ context.Context, r slog.Record) error {
	line := lines.Get().(*[]byte)
	b := (*line)[:0]
	if h.console {
		b = h.appendConsole(b, r)
	} else {
		b = h.appendJSON(b, r)
	}
	b = append(b, '\n')

	h.out.Lock()
	_, err := h.out.Write(b)
	h.out.Unlock()

	*line = b
	lines.Put(line)
	return err
}

func (h *handler) appendJSON(b []byte, r slog.Record) []byte {
	b = append(b, `{"level":"`...)
	b = append(b, levelName(r.Level)...)
	if !r.Time.IsZero() {
		b = append(b, `","ts":"`...)
		b = r.Time.AppendFormat(b, timeFormat)
	}
	if c := caller(r.PC); c != "" {
		b = append(b, `","caller":"`...)
		b = append(b, c...)
	}
	b = append(b, `","msg":`...)
	b = appendString(b, r.Message)
	b = h.appendAttrs(b, r)
	return append(b, '}')
}

// appendConsole writes tab-separated columns for people, attributes as JSON in the last.
func (h *handler) appendConsole(b []byte, r slog.Record) []byte {
	if !r.Time.IsZero() {
		b = r.Time.AppendFormat(b, timeFormat)
		b = append(b, '\t')
	}
	b = append(b, levelName(r.Level)...)
	if c := caller(r.PC); c != "" {
		b = append(b, '\t')
		b = append(b, c...)
	}
	b = append(b, '\t')
	b = append(b, r.Message...)
	b = append(b, '\t')
	start := len(b)
	b = h.appendAttrs(b, r)
	if len(b) == start {
		return b[:start-1]
	}
	b[start] = '{' // in place of the first comma
	return append(b, '}')
}

// appendAttrs writes the handler's and the record's attributes, a comma before each.
func (h *handler) appendAttrs(b []byte, r slog.Record) []byte {
	b = append(b, h.attrs...)
	open := h.open
	if r.NumAttrs() > 0 {
		start := len(b)
		b = openGroups(b, h.pending)
		mark := len(b)
		r.Attrs(func(a slog.Attr) bool {
			b = appendAttr(b, a)
			return true
		})
		if len(b) == mark {
			b = b[:start] // all attributes were empty
		} else {
			open += len(h.pending)
		}
	}
	for range open {
		b = append(b, '}')
	}
	return b
}

func openGroups(b []byte, names []string) []byte {
	for _, name := range names {
		b = appendKey(b, name)
		b = append(b, '{')
	}
	return b
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	if len(attrs) == 0 {
		return h
	}
	n := *h
	n.attrs = openGroups(append([]byte(nil), h.attrs...), h.pending)
	n.open, n.pending = h.open+len(h.pending), nil
	for _, a := range attrs {
		n.attrs = appendAttr(n.attrs, a)
	}
	return &n
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	n := *h
	n.pending = append(h.pending[:len(h.pending):len(h.pending)], name)
	return &n
}

// caller is the place of pc as its package's directory, file and line.
func caller(pc uintptr) string {
	if pc == 0 {
		return ""
	}
	f, _ := runtime.CallersFrames([]uintptr{pc}).Next()
	if f.File == "" {
		return ""
	}
	return path.Base(path.Dir(f.File)) + "/" + path.Base(f.File) + ":" + strconv.Itoa(f.Line)
}

// appendKey starts a member. A comma is due unless the member is a group's first.
func appendKey(b []byte, key string) []byte {
	if len(b) == 0 || b[len(b)-1] != '{' {
		b = append(b, ',')
	}
	b = appendString(b, key)
	return append(b, ':')
}

func appendAttr(b []byte, a slog.Attr) []byte {
	v := a.Value.Resolve()
	if a.Key == "" && v.Kind() != slog.KindGroup {
		if a.Equal(slog.Attr{}) {
			return b
		}
	}
	if v.Kind() != slog.KindGroup {
		b = appendKey(b, a.Key)
		return appendValue(b, v)
	}
	members := v.Group()
	if len(members) == 0 {
		return b
	}
	if a.Key == "" { // a group without a name is inlined
		for _, m := range members {
			b = appendAttr(b, m)
		}
		return b
	}
	b = appendKey(b, a.Key)
	b = append(b, '{')
	for _, m := range members {
		b = appendAttr(b, m)
	}
	return append(b, '}')
}

func appendValue(b []byte, v slog.Value) []byte {
	switch v.Kind() {
	case slog.KindString:
		return appendString(b, v.String())
	case slog.KindInt64:
		return strconv.AppendInt(b, v.Int64(), 10)
	case slog.KindUint64:
		return strconv.AppendUint(b, v.Uint64(), 10)
	case slog.KindBool:
		return strconv.AppendBool(b, v.Bool())
	case slog.KindFloat64:
		f := v.Float64()
		if math.IsNaN(f) || math.IsInf(f, 0) { // JSON has no such numbers
			return appendString(b, strconv.FormatFloat(f, 'g', -1, 64))
		}
		return strconv.AppendFloat(b, f, 'g', -1, 64)
	case slog.KindDuration:
		return appendString(b, v.Duration().String())
	case slog.KindTime:
		b = append(b, '"')
		b = v.Time().AppendFormat(b, timeFormat)
		return append(b, '"')
	}
	switch x := v.Any().(type) {
	case nil:
		return append(b, "null"...)
	case error:
		return appendText(b, x.Error)
	case []string:
		b = append(b, '[')
		for i, s := range x {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendString(b, s)
		}
		return append(b, ']')
	case []time.Duration:
		return appendString(b, fmt.Sprint(x))
	case json.Marshaler:
		return appendMarshaled(b, x)
	case fmt.Stringer:
		return appendText(b, x.String)
	default:
		return appendMarshaled(b, x)
	}
}

// appendText writes what text returns. It is a method of a value that may be a nil
// pointer; a log line must not end the process for that.
func appendText(b []byte, text func() string) (out []byte) {
	defer func() {
		if r := recover(); r != nil {
			out = appendString(b, fmt.Sprintf("!PANIC: %v", r))
		}
	}()
	return appendString(b, text())
}

func appendMarshaled(b []byte, x any) (out []byte) {
	defer func() {
		if r := recover(); r != nil {
			out = appendString(b, fmt.Sprintf("!PANIC: %v", r))
		}
	}()
	data, err := json.Marshal(x)
	if err != nil {
		return appendString(b, fmt.Sprintf("%+v", x))
	}
	return append(b, data...)
}

const hex = "0123456789abcdef"

// appendString writes s as a JSON string. Bytes that are not UTF-8 become U+FFFD, and
// control characters are escaped, so that a line is always one line.
func appendString(b []byte, s string) []byte {
	b = append(b, '"')
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 {
				b = append(b, s[start:i]...)
				b = append(b, `\ufffd`...)
				i++
				start = i
				continue
			}
			i += n
			continue
		}
		if c >= ' ' && c != '"' && c != '\\' {
			i++
			continue
		}
		b = append(b, s[start:i]...)
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\r':
			b = append(b, '\\', 'r')
		case '\t':
			b = append(b, '\\', 't')
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
		i++
		start = i
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}
