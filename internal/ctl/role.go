package ctl

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func roleVerb() verb {
	return verb{
		use:   "role <subcommand>",
		short: "Role related commands",
		long:  "Role related commands",
		group: groupAuth,
		sub: []verb{roleAddVerb(), roleDeleteVerb(), roleGetVerb(), roleListVerb(),
			roleGrantPermissionVerb(), roleRevokePermissionVerb()},
	}
}

func roleAddVerb() verb {
	return verb{
		use:   "add <role name>",
		short: "Adds a new role",
		forms: responseForms,
		run: withArgs(1, "role add command requires role name as its argument", func(ctx context.Context, client *clientv3.Client, args []string) (any, error) {
			resp, err := client.RoleAdd(ctx, args[0])
			return authChanged{fmt.Sprintf("Role %s created", args[0]), (*pb.AuthRoleAddResponse)(resp)}, err
		}),
	}
}

func roleDeleteVerb() verb {
	return verb{
		use:   "delete <role name>",
		short: "Deletes a role",
		forms: responseForms,
		run: withArgs(1, "role delete command requires role name as its argument", func(ctx context.Context, client *clientv3.Client, args []string) (any, error) {
			resp, err := client.RoleDelete(ctx, args[0])
			return authChanged{fmt.Sprintf("Role %s deleted", args[0]), (*pb.AuthRoleDeleteResponse)(resp)}, err
		}),
	}
}

func roleGetVerb() verb {
	return verb{
		use:   "get <role name>",
		short: "Gets detailed information of a role",
		forms: responseForms,
		run: withArgs(1, "role get command requires role name as its argument", func(ctx context.Context, client *clientv3.Client, args []string) (any, error) {
			resp, err := client.RoleGet(ctx, args[0])
			return roleInfo{args[0], (*pb.AuthRoleGetResponse)(resp)}, err
		}),
	}
}

func roleListVerb() verb {
	return verb{
		use:   "list",
		short: "Lists all roles",
		forms: responseForms,
		run: withArgs(0, "role list command requires no arguments", func(ctx context.Context, client *clientv3.Client, _ []string) (any, error) {
			resp, err := client.RoleList(ctx)
			return (*pb.AuthRoleListResponse)(resp), err
		}),
	}
}

// permissionFlags are the flags that make a permission's key stand for a range.
type permissionFlags struct{ prefix, fromKey bool }

// register registers the flags of a verb that does this.
func (f *permissionFlags) register(fs *pflag.FlagSet, does string) {
	fs.BoolVar(&f.prefix, "prefix", false, does+" a prefix permission")
	fs.BoolVar(&f.fromKey, "from-key", false, does+" a permission of keys that are greater than or equal to the given key using byte compare")
}

func roleGrantPermissionVerb() verb {
	var flags permissionFlags
	return verb{
		use:   "grant-permission [options] <role name> <permission type> <key> [endkey]",
		short: "Grants a key to a role",
		forms: responseForms,
		flags: func(fs *pflag.FlagSet) { flags.register(fs, "grant") },
		run: func(c *call, args []string) error {
			if len(args) < 3 {
				return fail(exitBadArgs, errors.New("role grant command requires role name, permission type, and key [endkey] as its argument"))
			}
			kind, err := clientv3.StrToPermissionType(args[1])
			if err != nil {
				return fail(exitBadArgs, err)
			}
			key, end, err := flags.keyRange(args[2:])
			if err != nil {
				return fail(exitBadArgs, err)
			}
			return c.askAuth(func(ctx context.Context, client *clientv3.Client, args []string) (any, error) {
				resp, err := client.RoleGrantPermission(ctx, args[0], key, end, kind)
				return authChanged{fmt.Sprintf("Role %s updated", args[0]), (*pb.AuthRoleGrantPermissionResponse)(resp)}, err
			}, args)
		},
	}
}

func roleRevokePermissionVerb() verb {
	var flags permissionFlags
	return verb{
		use:   "revoke-permission <role name> <key> [endkey]",
		short: "Revokes a key from a role",
		forms: responseForms,
		flags: func(fs *pflag.FlagSet) { flags.register(fs, "revoke") },
		run: func(c *call, args []string) error {
			if len(args) < 2 {
				return fail(exitBadArgs, errors.New("role revoke-permission command requires role name and key [endkey] as its argument"))
			}
			key, end, err := flags.keyRange(args[1:])
			if err != nil {
				return fail(exitBadArgs, err)
			}
			return c.askAuth(func(ctx context.Context, client *clientv3.Client, args []string) (any, error) {
				resp, err := client.RoleRevokePermission(ctx, args[0], key, end)
				return authChanged{revokedText(args[0], args[1], end), (*pb.AuthRoleRevokePermissionResponse)(resp)}, err
			}, args)
		},
	}
}

// openEnd is the end of a range that has none.
const openEnd = "\x00"

// revokedText says which permission a role has lost. key is as it was given: empty for all keys.
func revokedText(role, key, end string) string {
	switch end {
	case "":
		return fmt.Sprintf("Permission of key %s is revoked from role %s", key, role)
	case openEnd:
		return fmt.Sprintf("Permission of range [%s, <open ended> is revoked from role %s", key, role)
	}
	return fmt.Sprintf("Permission of range [%s, %s) is revoked from role %s", key, end, role)
}

// keyRange returns the range of keys that a key, perhaps an end, and the flags stand for. An end that is
// empty stands for the one key.
func (f *permissionFlags) keyRange(args []string) (key, end string, err error) {
	key = args[0]
	switch {
	case key == "":
		// No permission is about the empty key, which no key may be: all keys are those from the first on.
		// What follows an empty key is not looked at.
		if f.prefix && f.fromKey {
			return "", "", errors.New("--from-key and --prefix flags are mutually exclusive")
		}
		if f.prefix || f.fromKey {
			return "\x00", openEnd, nil
		}
		return "\x00", "", nil
	case len(args) > 1 && f.prefix:
		return "", "", errors.New("unexpected endkey argument with --prefix flag")
	case len(args) > 1 && f.fromKey:
		return "", "", errors.New("unexpected endkey argument with --from-key flag")
	case len(args) > 1:
		return key, args[1], nil
	case f.prefix && f.fromKey:
		return "", "", errors.New("--from-key and --prefix flags are mutually exclusive")
	case f.prefix:
		return key, clientv3.GetPrefixRangeEnd(key), nil
	case f.fromKey:
		return key, openEnd, nil
	}
	return key, "", nil
}
