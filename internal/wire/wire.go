// Package wire turns etcd's protobuf messages into package kv's types and back,
// without reflection and without copying: decoded byte slices point into the input.
//
// It covers the messages that a busy member sees by the thousand: KeyValue, the KV
// requests, InternalRaftRequest, Event and the responses around them. What it writes is
// byte for byte what protobuf-go writes, because HashKV is a checksum over those bytes.
// Everything rarer goes through protobuf-go's own code.
package wire

import "quorate/internal/kv"

// Field is the number of the request that an InternalRaftRequest carries.
type Field int32

const (
	FieldRange            Field = 3
	FieldPut              Field = 4
	FieldDelete           Field = 5
	FieldTxn              Field = 6
	FieldCompact          Field = 7
	FieldLeaseGrant       Field = 8
	FieldLeaseRevoke      Field = 9
	FieldAlarm            Field = 10
	FieldLeaseCheckpoint  Field = 11
	FieldClusterVersion   Field = 1300
	FieldMemberAttributes Field = 1301
	FieldDowngradeInfo    Field = 1302
)

// KeyValue is mvccpb.KeyValue.
type KeyValue struct {
	Key     []byte
	Create  int64
	Mod     int64
	Version int64
	Value   []byte
	Lease   kv.LeaseID
}
