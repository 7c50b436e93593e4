package ctl

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

func userVerb() verb {
	return verb{
		use:   "user <subcommand>",
		short: "User related commands",
		long:  "User related commands",
		group: groupAuth,
		sub: []verb{userAddVerb(), userDeleteVerb(), userGetVerb(), userListVerb(), userPasswdVerb(),
			userGrantRoleVerb(), userRevokeRoleVerb()},
	}
}

// interactiveFlag registers --interactive.
func interactiveFlag(fs *pflag.FlagSet, interactive *bool) {
	fs.BoolVar(interactive, "interactive", true, "prompt for the password and ask for it twice; if false, read the first word of standard input")
}

func userAddVerb() verb {
	var interactive, noPassword bool
	var fromFlag string
	return verb{
		use:   "add <user name or user:password> [options]",
		short: "Adds a new user",
		forms: responseForms,
		flags: func(fs *pflag.FlagSet) {
			interactiveFlag(fs, &interactive)
			fs.StringVar(&fromFlag, "new-user-password", "", "supply the password from the command line flag")
			fs.BoolVar(&noPassword, "no-password", false, "create a user without password (CN based auth only)")
		},
		run: func(c *call, args []string) error {
			if len(args) != 1 {
				return fail(exitBadArgs, errors.New("user add command requires user name as its argument"))
			}
			name, password := args[0], fromFlag
			switch {
			case noPassword:
				password = ""
			case fromFlag == "":
				var err error
				if name, password, err = c.nameAndPassword(args[0], interactive); err != nil {
					return err
				}
			}
			return c.askAuth(func(ctx context.Context, client *clientv3.Client, _ []string) (any, error) {
				resp, err := client.UserAddWithOptions(ctx, name, password, &clientv3.UserAddOptions{NoPassword: noPassword})
				return authChanged{fmt.Sprintf("User %s created", name), (*pb.AuthUserAddResponse)(resp)}, err
			}, nil)
		},
	}
}

// nameAndPassword takes apart the argument name:password of a new user, and asks for a password if it holds
// none.
func (c *call) nameAndPassword(arg string, interactive bool) (name, password string, err error) {
	name, password, given := strings.Cut(arg, ":")
	switch {
	case !given:
		password, err = c.newPassword(name, interactive)
	case name == "":
		err = fail(exitBadArgs, errors.New("empty user name is not allowed"))
	}
	return name, password, err
}

func userDeleteVerb() verb {
	return verb{
		use:   "delete <user name>",
		short: "Deletes a user",
		forms: responseForms,
		run: withArgs(1, "user delete command requires user name as its argument", func(ctx context.Context, client *clientv3.Client, args []string) (any, error) {
			resp, err := client.UserDelete(ctx, args[0])
			return authChanged{fmt.Sprintf("User %s deleted", args[0]), (*pb.AuthUserDeleteResponse)(resp)}, err
		}),
	}
}

func userGetVerb() verb {
	var detail bool
	return verb{
		use:   "get <user name> [options]",
		short: "Gets detailed information of a user",
		// The fields form shows the roles of --detail only.
		forms: responseForms,
		flags: func(fs *pflag.FlagSet) {
			fs.BoolVar(&detail, "detail", false, "show permissions of roles granted to the user")
		},
		run: func(c *call, args []string) error {
			if len(args) != 1 {
				return fail(exitBadArgs, errors.New("user get command requires user name as its argument"))
			}
			if err := c.connect(); err != nil {
				return err
			}
			resp, err := c.getUser(args[0])
			if err != nil {
				return err
			}
			if detail {
				return c.showRoles(args[0], resp.GetRoles())
			}
			return c.print.print(userInfo{args[0], resp})
		},
	}
}

func (c *call) getUser(name string) (*pb.AuthUserGetResponse, error) {
	ctx, cancel := c.timeout()
	defer cancel()
	resp, err := c.client.UserGet(ctx, name)
	return (*pb.AuthUserGetResponse)(resp), err
}

// showRoles prints the user's name, as text in every form, and what each of the roles may do.
func (c *call) showRoles(user string, roles []string) error {
	fmt.Fprintf(c.out, "User: %s\n", user)
	for _, role := range roles {
		fmt.Fprintln(c.out)
		ctx, cancel := c.timeout()
		resp, err := c.client.RoleGet(ctx, role)
		cancel()
		if err != nil {
			return err
		}
		if err := c.print.print(roleInfo{role, (*pb.AuthRoleGetResponse)(resp)}); err != nil {
			return err
		}
	}
	return nil
}

func userListVerb() verb {
	return verb{
		use:   "list",
		short: "Lists all users",
		forms: changeForms,
		run: withArgs(0, "user list command requires no arguments", func(ctx context.Context, client *clientv3.Client, _ []string) (any, error) {
			resp, err := client.UserList(ctx)
			return (*pb.AuthUserListResponse)(resp), err
		}),
	}
}

func userPasswdVerb() verb {
	var interactive bool
	return verb{
		use:   "passwd <user name> [options]",
		short: "Changes password of user",
		forms: responseForms,
		flags: func(fs *pflag.FlagSet) { interactiveFlag(fs, &interactive) },
		run: func(c *call, args []string) error {
			if len(args) != 1 {
				return fail(exitBadArgs, errors.New("user passwd command requires user name as its argument"))
			}
			password, err := c.newPassword(args[0], interactive)
			if err != nil {
				return err
			}
			return c.askAuth(func(ctx context.Context, client *clientv3.Client, args []string) (any, error) {
				resp, err := client.UserChangePassword(ctx, args[0], password)
				return authChanged{"Password updated", (*pb.AuthUserChangePasswordResponse)(resp)}, err
			}, args)
		},
	}
}

func userGrantRoleVerb() verb {
	return verb{
		use:   "grant-role <user name> <role name>",
		short: "Grants a role to a user",
		forms: responseForms,
		run: withArgs(2, "user grant command requires user name and role name as its argument", func(ctx context.Context, client *clientv3.Client, args []string) (any, error) {
			resp, err := client.UserGrantRole(ctx, args[0], args[1])
			return authChanged{fmt.Sprintf("Role %s is granted to user %s", args[1], args[0]), (*pb.AuthUserGrantRoleResponse)(resp)}, err
		}),
	}
}

func userRevokeRoleVerb() verb {
	return verb{
		use:   "revoke-role <user name> <role name>",
		short: "Revokes a role from a user",
		forms: responseForms,
		run: withArgs(2, "user revoke-role requires user name and role name as its argument", func(ctx context.Context, client *clientv3.Client, args []string) (any, error) {
			resp, err := client.UserRevokeRole(ctx, args[0], args[1])
			return authChanged{fmt.Sprintf("Role %s is revoked from user %s", args[1], args[0]), (*pb.AuthUserRevokeRoleResponse)(resp)}, err
		}),
	}
}
