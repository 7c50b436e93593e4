package wire

import (
	"encoding/binary"
	"fmt"
)

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

func (f Field) String() string {
	switch f {
	case FieldRange:
		return "range"
	case FieldPut:
		return "put"
	case FieldDelete:
		return "delete_range"
	case FieldTxn:
		return "txn"
	case FieldCompact:
		return "compaction"
	case FieldLeaseGrant:
		return "lease_grant"
	case FieldLeaseRevoke:
		return "lease_revoke"
	case FieldAlarm:
		return "alarm"
	case FieldLeaseCheckpoint:
		return "lease_checkpoint"
	case FieldClusterVersion:
		return "cluster_version_set"
	case FieldMemberAttributes:
		return "cluster_member_attr_set"
	case FieldDowngradeInfo:
		return "downgrade_info_set"
	}
	return fmt.Sprintf("field %d", int32(f))
}

// RaftRequest is etcdserverpb.InternalRaftRequest: what a normal raft entry holds.
type RaftRequest struct {
	// ID is the proposer's name for the request: the header's, else the message's own,
	// which members before etcd 3.0 wrote.
	ID uint64
	// Username and AuthRevision are who asked, if auth was on.
	Username     []byte
	AuthRevision uint64
	// Field says which message Body is; 0 if there is none.
	Field Field
	Body  []byte
}

const (
	raftID     = 1<<3 | varint
	raftHeader = 100<<3 | lenPfx

	fieldHeader = Field(100)
)

// RaftRequestSize is the length of what AppendRaftRequest appends for a body of n bytes.
func RaftRequestSize(id uint64, field Field, n int) int {
	header := sizeNumber(id)
	return sizeVarint(uint64(fieldHeader)<<3) + sizeVarint(uint64(header)) + header +
		sizeVarint(uint64(field)<<3) + sizeVarint(uint64(n)) + n
}

// AppendRaftRequest appends an InternalRaftRequest{Header: {ID: id}} that carries body as
// its field. The body is copied once, as it is.
func AppendRaftRequest(b []byte, id uint64, field Field, body []byte) []byte {
	// protobuf-go writes fields in the order of their numbers.
	if field > fieldHeader {
		b = appendRaftHeader(b, id)
	}
	b = binary.AppendUvarint(b, uint64(field)<<3|uint64(lenPfx))
	b = binary.AppendUvarint(b, uint64(len(body)))
	b = append(b, body...)
	if field < fieldHeader {
		b = appendRaftHeader(b, id)
	}
	return b
}

func appendRaftHeader(b []byte, id uint64) []byte {
	b = binary.AppendUvarint(b, uint64(raftHeader))
	b = append(b, byte(sizeNumber(id)))
	return appendNumber(b, 1, id)
}

// DecodeRaftRequest decodes an entry's data. Byte slices point into b, except that Body
// is a copy if the same field stands twice, which merges the two.
//
// No member writes two different requests into one entry. Should one be found, the one
// with the lowest number counts, which is near to etcd's order of asking.
// Length-prefixed fields with unknown numbers are given as the Field, since an entry
// that this member does not know must not pass for an empty one; a field that is known
// takes precedence over them.
func DecodeRaftRequest(b []byte) (RaftRequest, error) {
	var q RaftRequest
	r := reader{b: b}
	var ownID uint64
	for r.next() {
		switch {
		case r.tag == raftID:
			ownID = r.v
		case r.tag == raftHeader:
			if err := q.header(r.data); err != nil {
				return q, err
			}
		case r.tag&7 == lenPfx:
			q.body(Field(r.tag>>3), r.data)
		}
	}
	if q.ID == 0 {
		q.ID = ownID
	}
	return q, r.err()
}

// header decodes a RequestHeader into q.
func (q *RaftRequest) header(b []byte) error {
	r := reader{b: b}
	for r.next() {
		switch r.tag {
		case 1<<3 | varint:
			q.ID = r.v
		case 2<<3 | lenPfx:
			q.Username = r.data
		case 3<<3 | varint:
			q.AuthRevision = r.v
		}
	}
	return r.err()
}

func (q *RaftRequest) body(f Field, data []byte) {
	switch {
	case q.Field == f:
		// Two encodings one after the other are the encoding of their merge. The
		// reader's slices have no spare capacity, so append does not write into b.
		q.Body = append(q.Body, data...)
	case q.Field == 0, f.known() && !q.Field.known(), f.known() == q.Field.known() && f < q.Field:
		q.Field, q.Body = f, data
	}
}

// known reports whether f is a request that etcd 3.7's log can hold.
func (f Field) known() bool {
	switch {
	case f >= FieldRange && f <= FieldLeaseCheckpoint,
		f == 1000, f >= 1011 && f <= 1013, // auth on, off, authenticate, status
		f >= 1100 && f <= 1107, // users
		f >= 1200 && f <= 1204, // roles
		f >= FieldClusterVersion && f <= FieldDowngradeInfo,
		f == 9900: // the version test of a downgrade
		return true
	}
	return false
}
