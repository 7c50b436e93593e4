package ctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// delWarning is how long del waits before it removes an explicit range, for second thoughts.
const delWarning = 2 * time.Second

var (
	errPrefixAndFromKey = fail(exitBadArgs, errors.New("`--prefix` and `--from-key` cannot be set at the same time, choose one"))
	errRangeAndPrefix   = fail(exitBadArgs, errors.New("too many arguments, only accept one argument when `--prefix` or `--from-key` is set"))
	errPutArgs          = fail(exitBadArgs, errors.New("put command needs 1 argument and input from stdin or 2 arguments"))
)

// keyRange turns the arguments and flags that get and del share into a key and options.
func keyRange(args []string, prefix, fromKey bool) (string, []clientv3.OpOption, error) {
	key := args[0]
	if len(args) > 1 {
		if prefix || fromKey {
			return "", nil, errRangeAndPrefix
		}
		return key, []clientv3.OpOption{clientv3.WithRange(args[1])}, nil
	}
	switch {
	case key == "" && (prefix || fromKey):
		// Every key: the least key there is, and no end.
		return "\x00", []clientv3.OpOption{clientv3.WithFromKey()}, nil
	case prefix:
		return key, []clientv3.OpOption{clientv3.WithPrefix()}, nil
	case fromKey:
		return key, []clientv3.OpOption{clientv3.WithFromKey()}, nil
	}
	return key, nil, nil
}

// getFlags are the flags of get.
type getFlags struct {
	consistency, order, sortBy                 string
	limit, rev                                 int64
	prefix, fromKey                            bool
	keysOnly, countOnly, valuesOnly, stream    bool
	minCreate, maxCreate, minModRev, maxModRev int64
}

func (f *getFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.consistency, "consistency", "l", "Linearizable(l) or Serializable(s)")
	fs.StringVar(&f.order, "order", "", "Order of results; ASCEND or DESCEND (ASCEND by default)")
	fs.StringVar(&f.sortBy, "sort-by", "", "Sort target; CREATE, KEY, MODIFY, VALUE, or VERSION")
	fs.Int64Var(&f.limit, "limit", 0, "Maximum number of results")
	fs.BoolVar(&f.prefix, "prefix", false, "Get keys with matching prefix")
	fs.BoolVar(&f.fromKey, "from-key", false, "Get keys that are greater than or equal to the given key using byte compare")
	fs.Int64Var(&f.rev, "rev", 0, "Specify the kv revision")
	fs.BoolVar(&f.keysOnly, "keys-only", false, "Get only the keys")
	fs.BoolVar(&f.countOnly, "count-only", false, "Get only the count")
	fs.BoolVar(&f.valuesOnly, "print-value-only", false, `Only write values when using the "simple" output format`)
	fs.Int64Var(&f.minCreate, "min-create-rev", 0, "Minimum create revision")
	fs.Int64Var(&f.maxCreate, "max-create-rev", 0, "Maximum create revision")
	fs.Int64Var(&f.minModRev, "min-mod-rev", 0, "Minimum modification revision")
	fs.Int64Var(&f.maxModRev, "max-mod-rev", 0, "Maximum modification revision")
	fs.BoolVar(&f.stream, "stream", false, "Use the RangeStream RPC")
}

var sortTargets = map[string]clientv3.SortTarget{
	"": clientv3.SortByKey, "KEY": clientv3.SortByKey, "VERSION": clientv3.SortByVersion, "VALUE": clientv3.SortByValue,
	"CREATE": clientv3.SortByCreateRevision, "MODIFY": clientv3.SortByModRevision,
}

var sortOrders = map[string]clientv3.SortOrder{
	"": clientv3.SortNone, "ASCEND": clientv3.SortAscend, "DESCEND": clientv3.SortDescend,
}

// serializable reads a --consistency value.
func serializable(consistency string) (bool, error) {
	switch consistency {
	case "s":
		return true, nil
	case "l":
		return false, nil
	}
	return false, fail(exitBadFeature, fmt.Errorf("unknown consistency flag %q", consistency))
}

// op returns the request of flags and arguments, as key and options.
func (f *getFlags) op(args []string) (string, []clientv3.OpOption, error) {
	if len(args) == 0 {
		return "", nil, fail(exitBadArgs, errors.New("get command needs one argument as key and an optional argument as range_end"))
	}
	if f.prefix && f.fromKey {
		return "", nil, errPrefixAndFromKey
	}
	if f.keysOnly && f.countOnly {
		return "", nil, fail(exitBadArgs, errors.New("`--keys-only` and `--count-only` cannot be set at the same time, choose one"))
	}
	local, err := serializable(f.consistency)
	if err != nil {
		return "", nil, err
	}
	key, opts, err := keyRange(args, f.prefix, f.fromKey)
	if err != nil {
		return "", nil, err
	}
	order, ok := sortOrders[strings.ToUpper(f.order)]
	if !ok {
		return "", nil, fail(exitBadFeature, fmt.Errorf("bad sort order %v", f.order))
	}
	target, ok := sortTargets[strings.ToUpper(f.sortBy)]
	if !ok {
		return "", nil, fail(exitBadFeature, fmt.Errorf("bad sort target %v", f.sortBy))
	}
	if f.maxCreate > 0 && f.minCreate > f.maxCreate {
		return "", nil, fail(exitBadFeature, fmt.Errorf("getMinCreateRev(=%v) > getMaxCreateRev(=%v)", f.minCreate, f.maxCreate))
	}
	if f.maxModRev > 0 && f.minModRev > f.maxModRev {
		return "", nil, fail(exitBadFeature, fmt.Errorf("getMinModRev(=%v) > getMaxModRev(=%v)", f.minModRev, f.maxModRev))
	}
	opts = append(opts, clientv3.WithLimit(f.limit), clientv3.WithSort(target, order))
	for _, o := range []struct {
		on  bool
		opt clientv3.OpOption
	}{
		{local, clientv3.WithSerializable()},
		{f.rev > 0, clientv3.WithRev(f.rev)},
		{f.keysOnly, clientv3.WithKeysOnly()},
		{f.countOnly, clientv3.WithCountOnly()},
		{f.minCreate > 0, clientv3.WithMinCreateRev(f.minCreate)},
		{f.maxCreate > 0, clientv3.WithMaxCreateRev(f.maxCreate)},
		{f.minModRev > 0, clientv3.WithMinModRev(f.minModRev)},
		{f.maxModRev > 0, clientv3.WithMaxModRev(f.maxModRev)},
	} {
		if o.on {
			opts = append(opts, o.opt)
		}
	}
	return key, opts, nil
}

func getVerb() verb {
	var f getFlags
	return verb{
		use:   "get [options] <key> [range_end]",
		short: "Gets the key or a range of keys",
		group: groupKV,
		forms: responseForms,
		flags: f.register,
		run: func(c *call, args []string) error {
			key, opts, err := f.op(args)
			if err != nil {
				return err
			}
			if err := c.connect(); err != nil {
				return err
			}
			if f.countOnly && c.form != formFields {
				return fail(exitBadArgs, errors.New("--count-only is only for `--write-out=fields`"))
			}
			if f.valuesOnly {
				simple, ok := c.print.(*simplePrinter)
				if !ok {
					return fail(exitBadArgs, errors.New("print-value-only is only for `--write-out=simple`"))
				}
				simple.valuesOnly = true
			}
			ctx, cancel := c.timeout()
			defer cancel()
			resp, err := get(ctx, c.client, f.stream, key, opts)
			if err != nil {
				return err
			}
			return c.print.print((*pb.RangeResponse)(resp))
		},
	}
}

// get asks in one call, or in a stream of parts that it puts together.
func get(ctx context.Context, client *clientv3.Client, stream bool, key string, opts []clientv3.OpOption) (*clientv3.GetResponse, error) {
	if !stream {
		return client.Get(ctx, key, opts...)
	}
	parts, err := client.GetStream(ctx, key, opts...)
	if err != nil {
		return nil, err
	}
	return clientv3.GetStreamToGetResponse(parts)
}

// putFlags are the flags of put.
type putFlags struct {
	lease                            string
	prevKV, ignoreValue, ignoreLease bool
}

func (f *putFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.lease, "lease", "0", "lease ID (in hexadecimal) to attach to the key")
	fs.BoolVar(&f.prevKV, "prev-kv", false, "return the previous key-value pair before modification")
	fs.BoolVar(&f.ignoreValue, "ignore-value", false, "updates the key using its current value")
	fs.BoolVar(&f.ignoreLease, "ignore-lease", false, "updates the key using its current lease")
}

// op returns the request of flags and arguments; a missing value is read from stdin, if there is one.
func (f *putFlags) op(args []string, stdin io.Reader) (key, value string, opts []clientv3.OpOption, err error) {
	if len(args) == 0 {
		return "", "", nil, errPutArgs
	}
	switch {
	case f.ignoreValue && len(args) > 1:
		return "", "", nil, fail(exitBadArgs, errors.New("put command needs only 1 argument when 'ignore-value' is set"))
	case f.ignoreValue:
	case len(args) > 1:
		value = args[1]
	case stdin == nil:
		return "", "", nil, errPutArgs
	default:
		b, err := io.ReadAll(stdin)
		if err != nil || len(b) == 0 {
			return "", "", nil, errPutArgs
		}
		value = string(b)
	}
	id, err := strconv.ParseInt(f.lease, 16, 64)
	if err != nil {
		return "", "", nil, fail(exitBadArgs, fmt.Errorf("bad lease ID (%w), expecting ID in Hex", err))
	}
	if id != 0 {
		opts = append(opts, clientv3.WithLease(clientv3.LeaseID(id)))
	}
	if f.prevKV {
		opts = append(opts, clientv3.WithPrevKV())
	}
	if f.ignoreValue {
		opts = append(opts, clientv3.WithIgnoreValue())
	}
	if f.ignoreLease {
		opts = append(opts, clientv3.WithIgnoreLease())
	}
	return args[0], value, opts, nil
}

func putVerb() verb {
	var f putFlags
	return verb{
		use:   "put [options] <key> <value> (<value> can also be given from stdin)",
		short: "Puts the given key into the store",
		long: `
Puts the given key into the store.

A <value> that begins with '-' would be taken for a flag; put '--' before it:

$ put <key> -- <value>
$ put -- <key> <value>

Without <value>, and without '--ignore-value', the value is read from standard input:

$ cat file | put <key>
`,
		group: groupKV,
		forms: responseForms,
		flags: f.register,
		run: func(c *call, args []string) error {
			key, value, opts, err := f.op(args, c.in)
			if err != nil {
				return err
			}
			if err := c.connect(); err != nil {
				return err
			}
			ctx, cancel := c.timeout()
			defer cancel()
			resp, err := c.client.Put(ctx, key, value, opts...)
			if err != nil {
				return err
			}
			return c.print.print((*pb.PutResponse)(resp))
		},
	}
}

// delFlags are the flags of del.
type delFlags struct{ prefix, prevKV, fromKey, isRange bool }

func (f *delFlags) register(fs *pflag.FlagSet) {
	fs.BoolVar(&f.prefix, "prefix", false, "delete keys with matching prefix")
	fs.BoolVar(&f.prevKV, "prev-kv", false, "return deleted key-value pairs")
	fs.BoolVar(&f.fromKey, "from-key", false, "delete keys that are greater than or equal to the given key using byte compare")
	fs.BoolVar(&f.isRange, "range", false, "delete range of keys")
}

// op returns the request of flags and arguments. An explicit range without --range is warned about
// and waited for, unless ctx ends first.
func (f *delFlags) op(ctx context.Context, args []string, warnf func(string, ...any)) (string, []clientv3.OpOption, error) {
	if len(args) == 0 || len(args) > 2 {
		return "", nil, fail(exitBadArgs, errors.New("del command needs one argument as key and an optional argument as range_end"))
	}
	if f.prefix && f.fromKey {
		return "", nil, errPrefixAndFromKey
	}
	key, opts, err := keyRange(args, f.prefix, f.fromKey)
	if err != nil {
		return "", nil, err
	}
	if len(args) == 2 && !f.isRange {
		warnf("Warning: Keys between %q and %q will be deleted. Please interrupt the command within next 2 seconds to cancel. "+
			"You can provide `--range` flag to avoid the delay.", args[0], args[1])
		select {
		case <-time.After(delWarning):
		case <-ctx.Done():
			return "", nil, ctx.Err()
		}
	}
	if f.prevKV {
		opts = append(opts, clientv3.WithPrevKV())
	}
	return key, opts, nil
}

func delVerb() verb {
	var f delFlags
	return verb{
		use:   "del [options] <key> [range_end]",
		short: "Removes the specified key or range of keys [key, range_end)",
		group: groupKV,
		forms: responseForms,
		flags: f.register,
		run: func(c *call, args []string) error {
			key, opts, err := f.op(c.base(), args, c.warnf)
			if err != nil {
				return err
			}
			if err := c.connect(); err != nil {
				return err
			}
			ctx, cancel := c.timeout()
			defer cancel()
			resp, err := c.client.Delete(ctx, key, opts...)
			if err != nil {
				return err
			}
			return c.print.print((*pb.DeleteRangeResponse)(resp))
		},
	}
}

func compactionVerb() verb {
	var physical bool
	return verb{
		use:   "compaction [options] <revision>",
		short: "Compacts the event history in etcd",
		group: groupKV,
		flags: func(fs *pflag.FlagSet) {
			fs.BoolVar(&physical, "physical", false, "'true' to wait for compaction to physically remove all old revisions")
		},
		run: func(c *call, args []string) error {
			if len(args) != 1 {
				return fail(exitBadArgs, errors.New("compaction command needs 1 argument"))
			}
			rev, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil {
				return err
			}
			if err := c.connect(); err != nil {
				return err
			}
			var opts []clientv3.CompactOption
			if physical {
				opts = append(opts, clientv3.WithCompactPhysical())
			}
			ctx, cancel := c.timeout()
			defer cancel()
			if _, err := c.client.Compact(ctx, rev, opts...); err != nil {
				return err
			}
			fmt.Fprintln(c.out, "compacted revision", rev)
			return nil
		},
	}
}
