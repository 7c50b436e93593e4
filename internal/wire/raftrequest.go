package wire

import (
	"encoding/binary"
	"fmt"
)

// Field is the number of the request that an InternalRaftRequest carries.
type Field int32

const (
	FieldRange           Field = 3
	FieldPut             Field = 4
	FieldDelete          Field = 5
	FieldTxn             Field = 6
	FieldCompact         Field = 7
	FieldLeaseGrant      Field = 8
	FieldLeaseRevoke     Field = 9
	FieldAlarm           Field = 10
	FieldLeaseCheckpoint Field = 11

	FieldAuthEnable         Field = 1000
	FieldAuthDisable        Field = 1011
	FieldAuthenticate       Field = 1012
	FieldAuthStatus         Field = 1013
	FieldUserAdd            Field = 1100
	FieldUserDelete         Field = 1101
	FieldUserGet            Field = 1102
	FieldUserChangePassword Field = 1103
	FieldUserGrantRole      Field = 1104
	FieldUserRevokeRole     Field = 1105
	FieldUserList           Field = 1106
	FieldRoleList           Field = 1107
	FieldRoleAdd            Field = 1200
	FieldRoleDelete         Field = 1201
	FieldRoleGet            Field = 1202
	FieldRoleGrant          Field = 1203
	FieldRoleRevoke         Field = 1204

	FieldClusterVersion   Field = 1300
	FieldMemberAttributes Field = 1301
	FieldDowngradeInfo    Field = 1302

	FieldDowngradeTest Field = 9900 // carries nothing to apply
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
	case FieldAuthEnable:
		return "auth_enable"
	case FieldAuthDisable:
		return "auth_disable"
	case FieldAuthenticate:
		return "authenticate"
	case FieldAuthStatus:
		return "auth_status"
	case FieldUserAdd:
		return "auth_user_add"
	case FieldUserDelete:
		return "auth_user_delete"
	case FieldUserGet:
		return "auth_user_get"
	case FieldUserChangePassword:
		return "auth_user_change_password"
	case FieldUserGrantRole:
		return "auth_user_grant_role"
	case FieldUserRevokeRole:
		return "auth_user_revoke_role"
	case FieldUserList:
		return "auth_user_list"
	case FieldRoleList:
		return "auth_role_list"
	case FieldRoleAdd:
		return "auth_role_add"
	case FieldRoleDelete:
		return "auth_role_delete"
	case FieldRoleGet:
		return "auth_role_get"
	case FieldRoleGrant:
		return "auth_role_grant_permission"
	case FieldRoleRevoke:
		return "auth_role_revoke_permission"
	case FieldDowngradeTest:
		return "downgrade_version_test"
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

// RequestHeader is etcdserverpb.RequestHeader: whose request an entry is.
type RequestHeader struct {
	ID uint64 // the proposer's name for the request
	// Username and AuthRevision are who asked, if auth is on. The name must be valid UTF-8.
	Username     string
	AuthRevision uint64
}

func (h *RequestHeader) size() int {
	n := sizeNumber(h.ID) + sizeNumber(h.AuthRevision)
	if h.Username != "" {
		n += 1 + sizeVarint(uint64(len(h.Username))) + len(h.Username)
	}
	return n
}

// RaftRequestSize is the length of what AppendRaftRequest appends for a body of n bytes.
func RaftRequestSize(h *RequestHeader, field Field, n int) int {
	header := h.size()
	return sizeVarint(uint64(fieldHeader)<<3) + sizeVarint(uint64(header)) + header +
		sizeVarint(uint64(field)<<3) + sizeVarint(uint64(n)) + n
}

// AppendRaftRequest appends an InternalRaftRequest with the header h that carries body as
// its field. The body is copied once, as it is.
func AppendRaftRequest(b []byte, h *RequestHeader, field Field, body []byte) []byte {
	// protobuf-go writes fields in the order of their numbers.
	if field > fieldHeader {
		b = h.append(b)
	}
	b = binary.AppendUvarint(b, uint64(field)<<3|uint64(lenPfx))
	b = binary.AppendUvarint(b, uint64(len(body)))
	b = append(b, body...)
	if field < fieldHeader {
		b = h.append(b)
	}
	return b
}

func (h *RequestHeader) append(b []byte) []byte {
	b = binary.AppendUvarint(b, uint64(raftHeader))
	b = binary.AppendUvarint(b, uint64(h.size()))
	b = appendNumber(b, 1, h.ID)
	if h.Username != "" {
		b = append(b, 2<<3|byte(lenPfx))
		b = binary.AppendUvarint(b, uint64(len(h.Username)))
		b = append(b, h.Username...)
	}
	return appendNumber(b, 3, h.AuthRevision)
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
		f == FieldAuthEnable, f >= FieldAuthDisable && f <= FieldAuthStatus,
		f >= FieldUserAdd && f <= FieldRoleList,
		f >= FieldRoleAdd && f <= FieldRoleRevoke,
		f >= FieldClusterVersion && f <= FieldDowngradeInfo,
		f == FieldDowngradeTest:
		return true
	}
	return false
}
