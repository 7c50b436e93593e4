package ctl

import (
	"context"
	"io"
	"slices"
	"testing"

	"github.com/spf13/cobra"
)

func TestSplitWords(t *testing.T) {
	for _, c := range []struct {
		line string
		want []string
	}{
		{"", nil},
		{"  ", nil},
		{"put k v", []string{"put", "k", "v"}},
		{`put "a b" 'c d' e`, []string{"put", "a b", "c d", "e"}},
		{`"\x00\n\"" ''`, []string{"\x00\n\"", ""}},
		{`a"b c"d`, []string{`a"b`, `c"d`}},
		{`'a"b' "c'd"`, []string{`a"b`, `c'd`}},
	} {
		if got, err := splitWords(c.line); !slices.Equal(got, c.want) || err != nil {
			t.Errorf("%q: got %q, %v, want %q", c.line, got, err, c.want)
		}
	}
	if w, err := splitWords(`"\q"`); err == nil {
		t.Errorf("a bad escape is %q", w)
	}
}

// FuzzTxnLines wants an operation or an error of every line, and no panic, which the client's
// constructors are quick with.
func FuzzTxnLines(f *testing.F) {
	for _, s := range []string{`mod("a") > "1"`, `lease("a") != "ff"`, `val("") = ""`, `x("a") = "1"`, `ver("a") ~ "1"`, `put "a" b --lease=1`,
		`get --prefix a --limit 3`, `del a b --range`, `g a`, `put`, `get --from-key --prefix a`, `put -h a`, `del "\q"`} {
		f.Add(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // del does not wait for second thoughts
	cmd := &cobra.Command{}
	cmd.SetContext(ctx)
	cmd.SetErr(io.Discard)
	c := &call{cmd: cmd}
	f.Fuzz(func(t *testing.T, line string) {
		if cmp, err := parseCompare(line); err == nil && cmp.GetCompare().GetTargetUnion() == nil {
			t.Errorf("%q compares with nothing", line)
		}
		if op, err := c.parseRequest(line); err == nil && !op.IsGet() && !op.IsPut() && !op.IsDelete() {
			t.Errorf("%q is no operation", line)
		}
	})
}
