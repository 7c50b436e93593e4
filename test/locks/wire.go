// Package locks calls the services Lock and Election of the real etcd and of quorate with
// the same random requests, and compares what they answer and what is in the stores then.
//
//	go test ./locks                                         about half a minute
//	go test ./locks -timeout 0 -args -duration 8h           a night
//	go test ./locks -args -seed 17                          that run again
package locks

import (
	"fmt"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// The messages of both services are few and flat, and are not in etcd's API module; so
// requests are written field by field, and answers compared as they are.

type msg []byte

func (m msg) bytes(num protowire.Number, v string) msg {
	if v == "" {
		return m
	}
	return protowire.AppendString(protowire.AppendTag(m, num, protowire.BytesType), v)
}

func (m msg) int(num protowire.Number, v int64) msg {
	if v == 0 {
		return m
	}
	return protowire.AppendVarint(protowire.AppendTag(m, num, protowire.VarintType), uint64(v))
}

func lockRequest(name string, lease int64) msg { return msg{}.bytes(1, name).int(2, lease) }
func unlockRequest(key string) msg             { return msg{}.bytes(1, key) }
func leaderRequest(name string) msg            { return msg{}.bytes(1, name) }
func campaignRequest(name string, lease int64, value string) msg {
	return msg{}.bytes(1, name).int(2, lease).bytes(3, value)
}

func leaderKey(name, key string, rev, lease int64) msg {
	return msg{}.bytes(1, name).bytes(2, key).int(3, rev).int(4, lease)
}

func resignRequest(leader msg) msg { return msg{}.bytes(1, string(leader)) }
func proclaimRequest(leader msg, value string) msg {
	return msg{}.bytes(1, string(leader)).bytes(2, value)
}

// answer is a response: its header, of which only the revision is compared, and the rest.
type answer struct {
	rev  int64
	rest []byte
}

func parse(b []byte) (a answer, err error) {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeField(b)
		if n < 0 {
			return a, protowire.ParseError(n)
		}
		field := b[:n]
		b = b[n:]
		if num != 1 || typ != protowire.BytesType {
			a.rest = append(a.rest, field...)
			continue
		}
		_, _, tag := protowire.ConsumeTag(field)
		content, _ := protowire.ConsumeBytes(field[tag:])
		var h pb.ResponseHeader
		if err := proto.Unmarshal(content, &h); err != nil {
			return a, err
		}
		if h.ClusterId == 0 || h.MemberId == 0 || h.RaftTerm == 0 {
			return a, fmt.Errorf("incomplete header %v", &h)
		}
		a.rev = h.Revision
	}
	return a, nil
}

// kv is the key in a LeaderResponse.
func (a answer) kv() *mvccpb.KeyValue {
	_, _, n := protowire.ConsumeTag(a.rest)
	content, _ := protowire.ConsumeBytes(a.rest[max(n, 0):])
	var kv mvccpb.KeyValue
	if proto.Unmarshal(content, &kv) != nil {
		return nil
	}
	return &kv
}

// raw is a codec for messages that are bytes already.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(v.(msg))}, nil
}

func (raw) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}
