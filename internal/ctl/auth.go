package ctl

import (
	"context"
	"errors"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

// rootName is the name of the user that must exist before authentication is enabled, and of the role that
// may do everything.
const rootName = "root"

// An authChanged is the answer to a verb that changes users or roles.
type authChanged struct {
	did  string // a sentence for people
	resp interface {
		proto.Message
		GetHeader() *pb.ResponseHeader
	}
}

// A userInfo is the answer to user get.
type userInfo struct {
	name string
	resp *pb.AuthUserGetResponse
}

// A roleInfo is the answer to role get.
type roleInfo struct {
	name string
	resp *pb.AuthRoleGetResponse
}

// An authAsk sends the request of one of the verbs about users and roles.
type authAsk func(ctx context.Context, client *clientv3.Client, args []string) (answer any, err error)

// withArgs returns the run of a verb that takes n arguments, and tells usage when there are more or fewer.
func withArgs(n int, usage string, send authAsk) func(*call, []string) error {
	return func(c *call, args []string) error {
		if len(args) != n {
			return fail(exitBadArgs, errors.New(usage))
		}
		return c.askAuth(send, args)
	}
}

// askAuth connects, sends the request, and prints the answer.
func (c *call) askAuth(send authAsk, args []string) error {
	if err := c.connect(); err != nil {
		return err
	}
	ctx, cancel := c.timeout()
	defer cancel()
	answer, err := send(ctx, c.client, args)
	if err != nil {
		return err
	}
	return c.print.print(answer)
}

func authVerb() verb {
	return verb{
		use:   "auth <enable or disable>",
		short: "Enable or disable authentication",
		long:  "Enable or disable authentication",
		group: groupAuth,
		sub:   []verb{authEnableVerb(), authDisableVerb(), authStatusVerb()},
	}
}

func authEnableVerb() verb {
	return verb{
		use:   "enable",
		short: "Enables authentication",
		run:   authSwitch("enable", "Authentication Enabled\n", enableAuthentication),
	}
}

func authDisableVerb() verb {
	return verb{
		use:   "disable",
		short: "Disables authentication",
		run: authSwitch("disable", "Authentication Disabled\n", func(ctx context.Context, client *clientv3.Client) error {
			_, err := client.AuthDisable(ctx)
			return err
		}),
	}
}

// authSwitch returns the run of a verb without arguments whose answer is one sentence in every form.
func authSwitch(name, done string, do func(context.Context, *clientv3.Client) error) func(*call, []string) error {
	return func(c *call, args []string) error {
		if len(args) != 0 {
			return fail(exitBadArgs, fmt.Errorf("auth %s command does not accept any arguments", name))
		}
		if err := c.connect(); err != nil {
			return err
		}
		ctx, cancel := c.timeout()
		defer cancel()
		if err := do(ctx, c.client); err != nil {
			return err
		}
		_, err := c.out.WriteString(done)
		return err
	}
}

// enableAuthentication enables authentication. Where the user root lacks the role root, it is created if need
// be and granted first.
func enableAuthentication(ctx context.Context, client *clientv3.Client) error {
	_, err := client.AuthEnable(ctx)
	if !errors.Is(err, rpctypes.ErrRootRoleNotExist) {
		return err
	}
	if _, err := client.RoleAdd(ctx, rootName); err != nil {
		return err
	}
	if _, err := client.UserGrantRole(ctx, rootName, rootName); err != nil {
		return err
	}
	_, err = client.AuthEnable(ctx)
	return err
}

func authStatusVerb() verb {
	return verb{
		use:   "status",
		short: "Returns authentication status",
		forms: changeForms,
		run: withArgs(0, "auth status command does not accept any arguments", func(ctx context.Context, client *clientv3.Client, _ []string) (any, error) {
			resp, err := client.AuthStatus(ctx)
			return (*pb.AuthStatusResponse)(resp), err
		}),
	}
}
