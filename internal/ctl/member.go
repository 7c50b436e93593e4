package ctl

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

func memberVerb() verb {
	return verb{
		use:   "member <subcommand>",
		short: "Membership related commands",
		long:  "Membership related commands",
		group: groupCluster,
		sub:   []verb{memberAddVerb(), memberRemoveVerb(), memberUpdateVerb(), memberListVerb(), memberPromoteVerb()},
	}
}

// peerURLsFlag registers --peer-urls.
func peerURLsFlag(fs *pflag.FlagSet, urls *string, whose string) {
	fs.StringVar(urls, "peer-urls", "", "comma separated peer URLs for the "+whose+" member.")
}

var errNoPeerURLs = fail(exitBadArgs, errors.New("member peer urls not provided"))

// memberID reads the id of a member, the one argument, which is hexadecimal wherever people read or
// write it.
func memberID(args []string) (uint64, error) {
	if len(args) != 1 {
		return 0, fail(exitBadArgs, errors.New("member ID is not provided"))
	}
	id, err := strconv.ParseUint(args[0], 16, 64)
	if err != nil {
		return 0, fail(exitBadArgs, fmt.Errorf("bad member ID arg (%w), expecting ID in Hex", err))
	}
	return id, nil
}

func memberAddVerb() verb {
	var peerURLs string
	var learner bool
	return verb{
		use:   "add <memberName> [options]",
		short: "Adds a member into the cluster",
		forms: changeForms,
		flags: func(fs *pflag.FlagSet) {
			peerURLsFlag(fs, &peerURLs, "new")
			fs.BoolVar(&learner, "learner", false, "indicates if the new member is raft learner")
		},
		run: func(c *call, args []string) error {
			switch {
			case len(args) < 1:
				return fail(exitBadArgs, errors.New("member name not provided"))
			case len(args) > 1:
				text := "too many arguments"
				for _, arg := range args {
					if strings.HasPrefix(strings.ToLower(arg), "http") {
						text += ", did you mean --peer-urls=" + arg
					}
				}
				return fail(exitBadArgs, errors.New(text))
			case peerURLs == "":
				return errNoPeerURLs
			}
			return c.addMember(args[0], peerURLs, learner)
		},
	}
}

// addMember adds a member and, in the simple form, prints the variables that its server is to be
// started with.
func (c *call) addMember(name, peerURLs string, learner bool) error {
	if err := c.connect(); err != nil {
		return err
	}
	ctx, cancel := c.timeout()
	defer cancel()
	add, did := c.client.MemberAdd, "added to"
	if learner {
		add = c.client.MemberAddAsLearner
	}
	resp, err := add(ctx, strings.Split(peerURLs, ","))
	if err != nil {
		return err
	}
	if resp.Member.GetIsLearner() {
		did = "added as learner to"
	}
	r := (*pb.MemberAddResponse)(resp)
	if err := c.print.print(memberChanged{r.GetMember().GetID(), did, r.GetHeader(), r.GetMember(), r.GetMembers(), r}); err != nil {
		return err
	}
	if c.form != formSimple {
		return nil
	}
	var initial []string
	for _, m := range r.GetMembers() {
		memberName := m.GetName()
		if m.GetID() == r.GetMember().GetID() {
			memberName = name // which the cluster learns from the member's own start
		}
		for _, u := range m.GetPeerURLs() {
			initial = append(initial, memberName+"="+u)
		}
	}
	fmt.Fprintf(c.out, "\nETCD_NAME=%q\nETCD_INITIAL_CLUSTER=%q\nETCD_INITIAL_ADVERTISE_PEER_URLS=%q\nETCD_INITIAL_CLUSTER_STATE=\"existing\"\n",
		name, strings.Join(initial, ","), peerURLs)
	return nil
}

// A membersResponse is what the answers about changes of members have in common.
type membersResponse interface {
	proto.Message
	GetHeader() *pb.ResponseHeader
	GetMembers() []*pb.Member
}

// changeMember asks for a change of one member that exists, and prints the answer.
func (c *call) changeMember(id uint64, did string,
	change func(context.Context, *clientv3.Client) (membersResponse, error)) error {
	if err := c.connect(); err != nil {
		return err
	}
	ctx, cancel := c.timeout()
	defer cancel()
	resp, err := change(ctx, c.client)
	if err != nil {
		return err
	}
	return c.print.print(memberChanged{id: id, did: did, header: resp.GetHeader(), members: resp.GetMembers(), resp: resp})
}

func memberRemoveVerb() verb {
	return verb{
		use:   "remove <memberID>",
		short: "Removes a member from the cluster",
		forms: changeForms,
		run: func(c *call, args []string) error {
			id, err := memberID(args)
			if err != nil {
				return err
			}
			return c.changeMember(id, "removed from", func(ctx context.Context, client *clientv3.Client) (membersResponse, error) {
				r, err := client.MemberRemove(ctx, id)
				return (*pb.MemberRemoveResponse)(r), err
			})
		},
	}
}

func memberUpdateVerb() verb {
	var peerURLs string
	return verb{
		use:   "update <memberID> [options]",
		short: "Updates a member in the cluster",
		forms: changeForms,
		flags: func(fs *pflag.FlagSet) { peerURLsFlag(fs, &peerURLs, "updated") },
		run: func(c *call, args []string) error {
			id, err := memberID(args)
			if err != nil {
				return err
			}
			if peerURLs == "" {
				return errNoPeerURLs
			}
			return c.changeMember(id, "updated in", func(ctx context.Context, client *clientv3.Client) (membersResponse, error) {
				r, err := client.MemberUpdate(ctx, id, strings.Split(peerURLs, ","))
				return (*pb.MemberUpdateResponse)(r), err
			})
		},
	}
}

func memberPromoteVerb() verb {
	return verb{
		use:   "promote <memberID>",
		short: "Promotes a non-voting member in the cluster",
		long:  "Promotes a non-voting learner member to a voting one in the cluster.\n",
		forms: changeForms,
		run: func(c *call, args []string) error {
			id, err := memberID(args)
			if err != nil {
				return err
			}
			return c.changeMember(id, "promoted in", func(ctx context.Context, client *clientv3.Client) (membersResponse, error) {
				r, err := client.MemberPromote(ctx, id)
				return (*pb.MemberPromoteResponse)(r), err
			})
		},
	}
}

func memberListVerb() verb {
	var consistency string
	return verb{
		use:   "list",
		short: "Lists all members in the cluster",
		long: `When --write-out is set to simple, this command prints out comma-separated member lists for each endpoint.
The items in the lists are ID, Status, Name, Peer Addrs, Client Addrs, Is Learner.
`,
		forms: allForms,
		flags: func(fs *pflag.FlagSet) {
			fs.StringVar(&consistency, "consistency", "l", "Linearizable(l) or Serializable(s)")
		},
		run: func(c *call, _ []string) error {
			local, err := serializable(consistency)
			if err != nil {
				return err
			}
			if err := c.connect(); err != nil {
				return err
			}
			var opts []clientv3.OpOption
			if local {
				opts = append(opts, clientv3.WithSerializable())
			}
			ctx, cancel := c.timeout()
			defer cancel()
			resp, err := c.client.MemberList(ctx, opts...)
			if err != nil {
				return err
			}
			return c.print.print((*pb.MemberListResponse)(resp))
		},
	}
}

func moveLeaderVerb() verb {
	return verb{
		use:   "move-leader <transferee-member-id>",
		short: "Transfers leadership to another etcd cluster member.",
		group: groupCluster,
		forms: changeForms,
		run: func(c *call, args []string) error {
			if len(args) != 1 {
				return fail(exitBadArgs, errors.New("move-leader command needs 1 argument"))
			}
			to, err := strconv.ParseUint(args[0], 16, 64)
			if err != nil {
				return fail(exitBadArgs, err)
			}
			return c.moveLeader(to)
		},
	}
}

// moveLeader finds the leader among the endpoints, which alone can hand over, and asks it to.
func (c *call) moveLeader(to uint64) error {
	spec, err := c.configure()
	if err != nil {
		return err
	}
	ctx, cancel := c.timeout()
	defer cancel()
	for _, ep := range spec.Endpoints {
		client, err := c.dial(only(spec, ep))
		if err != nil {
			return err
		}
		c.client = client // closed with the call, unless it is not the leader's
		st, err := client.Status(ctx, ep)
		if err != nil {
			return err
		}
		if st.Leader == st.Header.GetMemberId() {
			resp, err := client.MoveLeader(ctx, to)
			if err != nil {
				return err
			}
			return c.print.print(leaderMoved{st.Leader, to, (*pb.MoveLeaderResponse)(resp)})
		}
		c.client = nil
		if err := client.Close(); err != nil {
			return fail(exitBadConnection, err)
		}
	}
	return fail(exitBadArgs, fmt.Errorf("no leader endpoint given at %v", spec.Endpoints))
}
