package ctl

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

// A form is a value of --write-out.
type form string

const (
	formSimple   form = "simple"
	formFields   form = "fields"
	formJSON     form = "json"
	formProtobuf form = "protobuf"
	formTable    form = "table"
)

// The forms that kinds of answers have.
var (
	responseForms = []form{formSimple, formFields, formJSON, formProtobuf}
	endpointForms = []form{formSimple, formFields, formJSON, formTable}
	changeForms   = []form{formSimple, formJSON, formProtobuf}
	allForms      = []form{formSimple, formFields, formJSON, formProtobuf, formTable}
)

// A printer writes answers in one form.
//
// The kinds of answer are the server's responses (*pb.RangeResponse, *pb.PutResponse,
// *pb.DeleteRangeResponse, *pb.TxnResponse, *pb.MemberListResponse, *pb.AlarmResponse, *pb.AuthStatusResponse,
// *pb.AuthUserListResponse, *pb.AuthRoleListResponse), the client's (*clientv3.WatchResponse and those about
// leases), and this package's own: leaseRevoked, leaseInfo, memberChanged, leaderMoved, authChanged, userInfo,
// roleInfo, []endpointHealth, []endpointStatus, []endpointHash.
// An error is one of writing, or errNoForm for a kind that the form cannot show.
type printer interface {
	print(answer any) error
}

// errNoForm is returned for an answer that an output form cannot show.
func errNoForm(f form) error {
	return fail(exitBadFeature, fmt.Errorf("%s not supported as output format", f))
}

// choosePrinter sets the printer of --write-out, and refuses a form that cannot show the verb's
// answer before anything is asked of the server.
func (c *call) choosePrinter() error {
	c.form = form(c.g.writeOut)
	switch c.form {
	case formSimple:
		c.print = &simplePrinter{w: c.out, errw: c.cmd.ErrOrStderr(), hex: c.g.hex}
	case formFields:
		c.print = &fieldsPrinter{w: c.out, hex: c.g.hex}
	case formJSON:
		c.print = &jsonPrinter{w: c.out, hex: c.g.hex}
	case formProtobuf:
		c.print = &protobufPrinter{w: c.out}
	case formTable:
		c.print = &tablePrinter{w: c.out}
	default:
		return fail(exitBadFeature, errors.New("unsupported output format"))
	}
	if len(c.verb.forms) > 0 && !slices.Contains(c.verb.forms, c.form) {
		return errNoForm(c.form)
	}
	return nil
}

// A leaseRevoked is the answer to lease revoke.
type leaseRevoked struct {
	id   clientv3.LeaseID
	resp *clientv3.LeaseRevokeResponse
}

// A leaseInfo is the answer to lease timetolive.
type leaseInfo struct {
	resp *clientv3.LeaseTimeToLiveResponse
	keys bool // the attached keys were asked for
}

// A memberChanged is the answer to member add, remove, update and promote.
type memberChanged struct {
	id      uint64
	did     string // what was done, up to the word before "cluster"
	header  *pb.ResponseHeader
	added   *pb.Member // by member add, else nil
	members []*pb.Member
	resp    proto.Message // all of it
}

// A leaderMoved is the answer to move-leader.
type leaderMoved struct {
	from, to uint64
	resp     *pb.MoveLeaderResponse
}

// An endpointHealth says whether an endpoint serves reads through consensus and has no alarm.
type endpointHealth struct {
	Endpoint string `json:"endpoint"`
	Health   bool   `json:"health"`
	Took     string `json:"took"`
	Error    string `json:"error,omitempty"`
}

// An endpointStatus is one endpoint's answer to endpoint status.
type endpointStatus struct {
	Endpoint string             `json:"Endpoint"`
	Status   *pb.StatusResponse `json:"Status"`
}

// An endpointHash is one endpoint's answer to endpoint hashkv.
type endpointHash struct {
	Endpoint string             `json:"Endpoint"`
	HashKV   *pb.HashKVResponse `json:"HashKV"`
}

// jsonPrinter writes each answer as one line of JSON, with the field names of etcd's Go structs.
// Of byte strings and ids, hex concerns the ids of members only: the rest keeps JSON's types.
type jsonPrinter struct {
	w   io.Writer
	hex bool
}

func (p *jsonPrinter) print(answer any) error {
	switch a := answer.(type) {
	case leaseRevoked:
		answer = a.resp
	case leaseInfo:
		answer = a.resp
	case *pb.TxnResponse:
		answer = txnToJSON(a)
	case *pb.MemberListResponse:
		if p.hex {
			answer = membersToJSON(a.GetHeader(), nil, a.GetMembers())
		}
	case memberChanged:
		answer = a.resp
		if p.hex {
			answer = membersToJSON(a.header, a.added, a.members)
		}
	case leaderMoved:
		answer = a.resp
	case authChanged:
		answer = a.resp
	case userInfo:
		answer = a.resp
	case roleInfo:
		answer = a.resp
	}
	b, err := json.Marshal(answer)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	_, err = fmt.Fprintf(p.w, "%s\n", b)
	return err
}

// A jsonTxn has the JSON of a transaction's response: the members of a oneof carry no names that
// encoding/json would see.
type jsonTxn struct {
	Header    *pb.ResponseHeader `json:"header,omitempty"`
	Succeeded bool               `json:"succeeded,omitempty"`
	Responses []jsonTxnOp        `json:"responses,omitempty"`
}

type jsonTxnOp struct {
	Response struct {
		Range       *pb.RangeResponse       `json:"response_range,omitempty"`
		Put         *pb.PutResponse         `json:"response_put,omitempty"`
		DeleteRange *pb.DeleteRangeResponse `json:"response_delete_range,omitempty"`
		Txn         *jsonTxn                `json:"response_txn,omitempty"`
	} `json:"Response"`
}

func txnToJSON(r *pb.TxnResponse) *jsonTxn {
	t := &jsonTxn{Header: r.GetHeader(), Succeeded: r.GetSucceeded()}
	for _, op := range r.GetResponses() {
		var j jsonTxnOp
		switch o := op.GetResponse().(type) {
		case *pb.ResponseOp_ResponseRange:
			j.Response.Range = o.ResponseRange
		case *pb.ResponseOp_ResponsePut:
			j.Response.Put = o.ResponsePut
		case *pb.ResponseOp_ResponseDeleteRange:
			j.Response.DeleteRange = o.ResponseDeleteRange
		case *pb.ResponseOp_ResponseTxn:
			j.Response.Txn = txnToJSON(o.ResponseTxn)
		}
		t.Responses = append(t.Responses, j)
	}
	return t
}

// A hexID is an id in JSON as a string of hexadecimal digits.
type hexID uint64

func (id hexID) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%x", uint64(id)), nil }

type jsonHeader struct {
	ClusterID hexID  `json:"cluster_id"`
	MemberID  hexID  `json:"member_id"`
	Revision  int64  `json:"revision,omitempty"`
	RaftTerm  uint64 `json:"raft_term,omitempty"`
}

type jsonMember struct {
	ID         hexID    `json:"ID"`
	Name       string   `json:"name,omitempty"`
	PeerURLs   []string `json:"peerURLs,omitempty"`
	ClientURLs []string `json:"clientURLs,omitempty"`
	IsLearner  bool     `json:"isLearner,omitempty"`
}

func memberToJSON(m *pb.Member) *jsonMember {
	return &jsonMember{hexID(m.GetID()), m.GetName(), m.GetPeerURLs(), m.GetClientURLs(), m.GetIsLearner()}
}

// membersToJSON returns an answer about members with its ids in hexadecimal. added may be nil.
func membersToJSON(h *pb.ResponseHeader, added *pb.Member, members []*pb.Member) any {
	out := struct {
		Header  jsonHeader    `json:"header"`
		Member  *jsonMember   `json:"member,omitempty"`
		Members []*jsonMember `json:"members"`
	}{
		Header:  jsonHeader{hexID(h.GetClusterId()), hexID(h.GetMemberId()), h.GetRevision(), h.GetRaftTerm()},
		Members: []*jsonMember{},
	}
	if added != nil {
		out.Member = memberToJSON(added)
	}
	for _, m := range members {
		out.Members = append(out.Members, memberToJSON(m))
	}
	return out
}

// protobufPrinter writes the response message itself, with nothing before or after it.
type protobufPrinter struct{ w io.Writer }

func (p *protobufPrinter) print(answer any) error {
	m := message(answer)
	if m == nil {
		return errNoForm(formProtobuf)
	}
	b, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	_, err = p.w.Write(b)
	return err
}

// message returns the wire message of answer, nil if it has none.
func message(answer any) proto.Message {
	switch a := answer.(type) {
	case *clientv3.WatchResponse:
		m := &pb.WatchResponse{Header: a.Header, CompactRevision: a.CompactRevision, Canceled: a.Canceled, Created: a.Created}
		for _, e := range a.Events {
			m.Events = append(m.Events, (*mvccpb.Event)(e))
		}
		return m
	case *clientv3.LeaseGrantResponse:
		return &pb.LeaseGrantResponse{Header: a.ResponseHeader, ID: int64(a.ID), TTL: a.TTL, Error: a.Error}
	case leaseRevoked:
		return (*pb.LeaseRevokeResponse)(a.resp)
	case memberChanged:
		return a.resp
	case leaderMoved:
		return a.resp
	case authChanged:
		return a.resp
	case userInfo:
		return a.resp
	case roleInfo:
		return a.resp
	case *clientv3.LeaseKeepAliveResponse:
		return &pb.LeaseKeepAliveResponse{Header: a.ResponseHeader, ID: int64(a.ID), TTL: a.TTL}
	case leaseInfo:
		r := a.resp
		return &pb.LeaseTimeToLiveResponse{Header: r.ResponseHeader, ID: int64(r.ID), TTL: r.TTL, GrantedTTL: r.GrantedTTL, Keys: r.Keys}
	case *clientv3.LeaseLeasesResponse:
		m := &pb.LeaseLeasesResponse{Header: a.ResponseHeader}
		for _, l := range a.Leases {
			m.Leases = append(m.Leases, &pb.LeaseStatus{ID: int64(l.ID)})
		}
		return m
	case proto.Message:
		return a
	}
	return nil
}
