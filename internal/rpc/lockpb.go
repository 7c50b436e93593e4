package rpc

import (
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// The messages of v3lockpb and v3electionpb are not in etcd's API module but in its server,
// which the product does without. They are few, so they are described here and handled by
// reflection. They are not registered under their names, so that a program which embeds
// quorate may import etcd's own.
var (
	lockpb = describe("v3lockpb", map[string][]field{
		"LockRequest":    {bytesField("name", 1), intField("lease", 2)},
		"LockResponse":   {headerField, bytesField("key", 2)},
		"UnlockRequest":  {bytesField("key", 1)},
		"UnlockResponse": {headerField},
	})
	electionpb = describe("v3electionpb", map[string][]field{
		"CampaignRequest":  {bytesField("name", 1), intField("lease", 2), bytesField("value", 3)},
		"CampaignResponse": {headerField, messageField("leader", 2, "v3electionpb.LeaderKey")},
		"LeaderKey":        {bytesField("name", 1), bytesField("key", 2), intField("rev", 3), intField("lease", 4)},
		"LeaderRequest":    {bytesField("name", 1)},
		"LeaderResponse":   {headerField, messageField("kv", 2, fullName(&mvccpb.KeyValue{}))},
		"ResignRequest":    {messageField("leader", 1, "v3electionpb.LeaderKey")},
		"ResignResponse":   {headerField},
		"ProclaimRequest":  {messageField("leader", 1, "v3electionpb.LeaderKey"), bytesField("value", 2)},
		"ProclaimResponse": {headerField},
	})
)

type field = *descriptorpb.FieldDescriptorProto

func describeField(name string, number int32, kind descriptorpb.FieldDescriptorProto_Type, message string) field {
	f := &descriptorpb.FieldDescriptorProto{
		Name: &name, Number: &number, Type: &kind, Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum(),
	}
	if message != "" {
		f.TypeName = proto.String("." + message)
	}
	return f
}

func bytesField(name string, number int32) field {
	return describeField(name, number, descriptorpb.FieldDescriptorProto_TYPE_BYTES, "")
}

func intField(name string, number int32) field {
	return describeField(name, number, descriptorpb.FieldDescriptorProto_TYPE_INT64, "")
}

func messageField(name string, number int32, message string) field {
	return describeField(name, number, descriptorpb.FieldDescriptorProto_TYPE_MESSAGE, message)
}

var headerField = messageField("header", 1, fullName(&pb.ResponseHeader{}))

func fullName(m proto.Message) string { return string(m.ProtoReflect().Descriptor().FullName()) }

// describe makes the messages of a package, which may hold those of etcd's API.
func describe(pkg string, messages map[string][]field) protoreflect.MessageDescriptors {
	file := &descriptorpb.FileDescriptorProto{
		Name: proto.String(pkg + ".proto"), Package: &pkg, Syntax: proto.String("proto3"),
		Dependency: []string{
			pb.File_rpc_proto.Path(),
			mvccpb.File_kv_proto.Path(),
		},
	}
	for name, fields := range messages {
		file.MessageType = append(file.MessageType, &descriptorpb.DescriptorProto{Name: proto.String(name), Field: fields})
	}
	made, err := protodesc.NewFile(file, protoregistry.GlobalFiles)
	if err != nil {
		panic("describe " + pkg + ": " + err.Error())
	}
	return made.Messages()
}

// message is a message of lockpb or electionpb. The names of its fields are constants of
// this package: a wrong one panics in every test.
type message struct{ *dynamicpb.Message }

func newMessage(in protoreflect.MessageDescriptors, name protoreflect.Name) message {
	return message{dynamicpb.NewMessage(in.ByName(name))}
}

func (m message) field(name protoreflect.Name) protoreflect.FieldDescriptor {
	return m.Descriptor().Fields().ByName(name)
}

func (m message) bytes(name protoreflect.Name) []byte { return m.Get(m.field(name)).Bytes() }
func (m message) int(name protoreflect.Name) int64    { return m.Get(m.field(name)).Int() }

// leader is the field of that name, if it is there.
func (m message) leader() (leader message, ok bool) {
	f := m.field("leader")
	if !m.Has(f) {
		return message{}, false
	}
	return message{m.Get(f).Message().Interface().(*dynamicpb.Message)}, true
}

func (m message) setBytes(name protoreflect.Name, v []byte) message {
	m.Set(m.field(name), protoreflect.ValueOfBytes(v))
	return m
}

func (m message) setInt(name protoreflect.Name, v int64) message {
	m.Set(m.field(name), protoreflect.ValueOfInt64(v))
	return m
}

func (m message) setMessage(name protoreflect.Name, v proto.Message) message {
	m.Set(m.field(name), protoreflect.ValueOfMessage(v.ProtoReflect()))
	return m
}

// send sends m with its fields in order, as generated code does.
func (m message) send(stream grpc.ServerStream) error {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return err
	}
	return stream.SendMsg(Frame{b})
}
