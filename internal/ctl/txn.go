package ctl

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func txnVerb() verb {
	var interactive bool
	return verb{
		use:   "txn [options]",
		short: "Txn processes all the requests in one transaction",
		long: `Txn reads a transaction from standard input and applies it as one atomic step.

A transaction has three parts, each ended by an empty line:
1) conditions,
2) requests to apply if all conditions are true,
3) requests to apply if any condition is false.

For example, interactively:

---
txn -i
# compares:
mod("key1") > "0"

# success requests (get, put, del):
put key1 "overwrote-key1"

# failure requests (get, put, del):
put key1 "created-key1"
put key2 "some extra key"

---

A condition is a target, a quoted key in brackets, an operator (=, !=, < or >) and a quoted value.
Targets are version, create, mod, value and lease (a hexadecimal ID); ver, c, m and val are short for them.`,
		group: groupKV,
		forms: responseForms,
		flags: func(fs *pflag.FlagSet) {
			fs.BoolVarP(&interactive, "interactive", "i", false, "Input transaction in interactive mode")
		},
		run: func(c *call, args []string) error {
			if len(args) != 0 {
				return fail(exitBadArgs, errors.New("txn command does not accept argument"))
			}
			if err := c.connect(); err != nil {
				return err
			}
			in := bufio.NewReader(c.in)
			prompt := func(s string) error {
				if !interactive {
					return nil
				}
				fmt.Fprintln(c.out, s)
				return c.flush()
			}
			if err := prompt("compares:"); err != nil {
				return err
			}
			cmps, err := readPart(in, parseCompare)
			if err != nil {
				return err
			}
			if err := prompt("success requests (get, put, del):"); err != nil {
				return err
			}
			then, err := readPart(in, c.parseRequest)
			if err != nil {
				return err
			}
			if err := prompt("failure requests (get, put, del):"); err != nil {
				return err
			}
			orElse, err := readPart(in, c.parseRequest)
			if err != nil {
				return err
			}
			ctx, cancel := c.timeout()
			defer cancel()
			resp, err := c.client.Txn(ctx).If(cmps...).Then(then...).Else(orElse...).Commit()
			if err != nil {
				return err
			}
			return c.print.print((*pb.TxnResponse)(resp))
		},
	}
}

// readPart reads lines up to an empty one. The input may not end before it.
func readPart[T any](in *bufio.Reader, parse func(line string) (T, error)) ([]T, error) {
	var part []T
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return nil, fail(exitInvalidInput, err)
		}
		if line = strings.TrimSpace(line); line == "" {
			return part, nil
		}
		v, err := parse(line)
		if err != nil {
			var coded *exitCodeError
			if !errors.As(err, &coded) {
				err = fail(exitInvalidInput, err)
			}
			return nil, err
		}
		part = append(part, v)
	}
}

// compareOps are the operators that clientv3.Compare knows; it panics on others.
var compareOps = map[string]bool{"=": true, "!=": true, "<": true, ">": true}

// parseCompare reads a condition such as mod("key") > "0".
func parseCompare(line string) (clientv3.Cmp, error) {
	target, rest, ok := strings.Cut(line, "(")
	if !ok {
		return clientv3.Cmp{}, fmt.Errorf("malformed comparison: %s", line)
	}
	var key, op, val string
	n, err := fmt.Sscanf(rest, "%q) %s %q", &key, &op, &val)
	if n != 3 {
		return clientv3.Cmp{}, fmt.Errorf("malformed comparison: %s; got %s(%q) %s %q", line, target, key, op, val)
	}
	if err != nil {
		return clientv3.Cmp{}, fmt.Errorf("malformed comparison: %s (%w)", line, err)
	}
	if !compareOps[op] {
		return clientv3.Cmp{}, fmt.Errorf("malformed comparison: %s (unknown operator %s)", line, op)
	}
	number := func(cmp clientv3.Cmp, base int) (clientv3.Cmp, error) {
		v, err := strconv.ParseInt(val, base, 64)
		if err != nil {
			return clientv3.Cmp{}, fmt.Errorf("invalid txn compare request: %s", line)
		}
		return clientv3.Compare(cmp, op, v), nil
	}
	switch target {
	case "ver", "version":
		return number(clientv3.Version(key), 10)
	case "c", "create":
		return number(clientv3.CreateRevision(key), 10)
	case "m", "mod":
		return number(clientv3.ModRevision(key), 10)
	case "lease":
		return number(clientv3.LeaseValue(key), 16)
	case "val", "value":
		return clientv3.Compare(clientv3.Value(key), op, val), nil
	}
	return clientv3.Cmp{}, fmt.Errorf("malformed comparison: %s (unknown target %s)", line, target)
}

// parseRequest reads a get, put or del with its flags. The value of a put must be on the line:
// standard input is the transaction.
func (c *call) parseRequest(line string) (clientv3.Op, error) {
	args, err := splitWords(line)
	if err != nil {
		return clientv3.Op{}, err
	}
	if len(args) < 2 {
		return clientv3.Op{}, fmt.Errorf("invalid txn compare request: %s", line)
	}
	fs := pflag.NewFlagSet(args[0], pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	invalid := fmt.Errorf("invalid txn request: %s", line)
	switch {
	case args[0] == "":
		return clientv3.Op{}, invalid
	case strings.HasPrefix("get", args[0]):
		var f getFlags
		f.register(fs)
		if fs.Parse(args[1:]) != nil {
			return clientv3.Op{}, invalid
		}
		key, opts, err := f.op(fs.Args())
		if err != nil {
			return clientv3.Op{}, err
		}
		return clientv3.OpGet(key, opts...), nil
	case strings.HasPrefix("put", args[0]):
		var f putFlags
		f.register(fs)
		if fs.Parse(args[1:]) != nil {
			return clientv3.Op{}, invalid
		}
		key, value, opts, err := f.op(fs.Args(), nil)
		if err != nil {
			return clientv3.Op{}, err
		}
		return clientv3.OpPut(key, value, opts...), nil
	case strings.HasPrefix("del", args[0]):
		var f delFlags
		f.register(fs)
		if fs.Parse(args[1:]) != nil {
			return clientv3.Op{}, invalid
		}
		key, opts, err := f.op(c.base(), fs.Args(), c.warnf)
		if err != nil {
			return clientv3.Op{}, err
		}
		return clientv3.OpDelete(key, opts...), nil
	}
	return clientv3.Op{}, invalid
}

// word matches a word of an input line: "double quoted" with Go's escapes, 'single quoted' as it
// stands, or bare up to the next space.
var word = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|'[^']*'|[^'"\s]\S*`)

// splitWords splits a line of interactive input into words, without their quotes.
func splitWords(line string) ([]string, error) {
	words := word.FindAllString(line, -1)
	for i, w := range words {
		switch w[0] {
		case '\'':
			words[i] = w[1 : len(w)-1]
		case '"':
			s, err := strconv.Unquote(w)
			if err != nil {
				return nil, fail(exitInvalidInput, err)
			}
			words[i] = s
		}
	}
	return words, nil
}
