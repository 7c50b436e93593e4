package peer

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"go.etcd.io/raft/v3/raftpb"
)

// A raftpb.Message is encoded and decoded by hand: a busy member does it for every append
// and every acknowledgement. The bytes are those of protobuf-go. What is rare here (a
// snapshot) or does not belong here (responses, unknown fields) is left to protobuf-go.
//
//	Message   1 type  2 to  3 from  4 term  5 logTerm  6 index  7 entries*  8 commit
//	          9 snapshot  10 reject  11 rejectHint  12 context  13 vote  14 responses*
//	Entry     1 type  2 term  3 index  4 data
//
// proto2: a field that is set is written even if it is zero.
const (
	fieldType = iota + 1
	fieldTo
	fieldFrom
	fieldTerm
	fieldLogTerm
	fieldIndex
	fieldEntries
	fieldCommit
	fieldSnapshot
	fieldReject
	fieldRejectHint
	fieldContext
	fieldVote
	fieldResponses

	fieldEntryType  = 1
	fieldEntryTerm  = 2
	fieldEntryIndex = 3
	fieldEntryData  = 4
)

// Keys as they stand in the message; all take one byte.
const (
	wireVarint = byte(protowire.VarintType)
	wireBytes  = byte(protowire.BytesType)
)

func appendUint(b []byte, field byte, v *uint64) []byte {
	if v == nil {
		return b
	}
	return protowire.AppendVarint(append(b, field<<3|wireVarint), *v)
}

func appendBytes(b []byte, field byte, v []byte) []byte {
	if v == nil {
		return b
	}
	return protowire.AppendBytes(append(b, field<<3|wireBytes), v)
}

// appendMessage appends m in wire form.
func appendMessage(b []byte, m *raftpb.Message) ([]byte, error) {
	if len(m.Responses) > 0 {
		return proto.MarshalOptions{}.MarshalAppend(b, m)
	}
	if m.Type != nil {
		b = protowire.AppendVarint(append(b, fieldType<<3|wireVarint), uint64(*m.Type))
	}
	b = appendUint(b, fieldTo, m.To)
	b = appendUint(b, fieldFrom, m.From)
	b = appendUint(b, fieldTerm, m.Term)
	b = appendUint(b, fieldLogTerm, m.LogTerm)
	b = appendUint(b, fieldIndex, m.Index)
	for _, e := range m.Entries {
		b = protowire.AppendVarint(append(b, fieldEntries<<3|wireBytes), uint64(entrySize(e)))
		b = appendEntry(b, e)
	}
	b = appendUint(b, fieldCommit, m.Commit)
	if m.Snapshot != nil {
		snap, err := proto.Marshal(m.Snapshot)
		if err != nil {
			return b, fmt.Errorf("encode a snapshot's message: %w", err)
		}
		b = protowire.AppendBytes(append(b, fieldSnapshot<<3|wireBytes), snap)
	}
	if m.Reject != nil {
		b = append(b, fieldReject<<3|wireVarint, byte(protowire.EncodeBool(*m.Reject)))
	}
	b = appendUint(b, fieldRejectHint, m.RejectHint)
	b = appendBytes(b, fieldContext, m.Context)
	return appendUint(b, fieldVote, m.Vote), nil
}

func appendEntry(b []byte, e *raftpb.Entry) []byte {
	if e.Type != nil {
		b = protowire.AppendVarint(append(b, fieldEntryType<<3|wireVarint), uint64(*e.Type))
	}
	b = appendUint(b, fieldEntryTerm, e.Term)
	b = appendUint(b, fieldEntryIndex, e.Index)
	return appendBytes(b, fieldEntryData, e.Data)
}

// entrySize is the length of what appendEntry appends.
func entrySize(e *raftpb.Entry) (n int) {
	if e.Type != nil {
		n += 1 + protowire.SizeVarint(uint64(*e.Type))
	}
	if e.Term != nil {
		n += 1 + protowire.SizeVarint(*e.Term)
	}
	if e.Index != nil {
		n += 1 + protowire.SizeVarint(*e.Index)
	}
	if e.Data != nil {
		n += 1 + protowire.SizeBytes(len(e.Data))
	}
	return n
}

// weight is about what m takes in a queue, in bytes.
func weight(m *raftpb.Message) int {
	n := 64 + len(m.Context)
	for _, e := range m.Entries {
		n += 32 + len(e.Data)
	}
	if m.Snapshot != nil {
		n += len(m.Snapshot.Data)
	}
	return n
}

// slot is a message and the scalars that its fields point to, in one allocation.
type slot struct {
	m      raftpb.Message
	typ    raftpb.MessageType
	reject bool
	// to, from, term, logTerm, index, commit, rejectHint, vote
	scalars [8]uint64
}

// entrySlot is the same for an entry.
type entrySlot struct {
	e           raftpb.Entry
	typ         raftpb.EntryType
	term, index uint64
}

// decodeMessage decodes b, which belongs to the message from then on: data and context of
// the message point into it. It takes and refuses what protobuf-go does.
func decodeMessage(b []byte) (*raftpb.Message, error) {
	entries, plain := countEntries(b)
	if plain {
		if m, ok := decodePlain(b, entries); ok {
			return m, nil
		}
	}
	m := new(raftpb.Message)
	if err := proto.Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("decode a message: %w", err)
	}
	return m, nil
}

// countEntries counts the entries of the message b. plain means that b has only fields
// that decodePlain knows.
func countEntries(b []byte) (entries int, plain bool) {
	for len(b) > 0 {
		key := b[0]
		b = b[1:]
		var n int
		switch key & 7 {
		case wireVarint:
			_, n = protowire.ConsumeVarint(b)
		case wireBytes:
			_, n = protowire.ConsumeBytes(b)
		default:
			return 0, false
		}
		if n < 0 || key >= fieldResponses<<3 {
			return 0, false
		}
		if key == fieldEntries<<3|wireBytes {
			entries++
		}
		b = b[n:]
	}
	return entries, true
}

// decodePlain decodes a message that countEntries found plain; false: it is not.
func decodePlain(b []byte, entries int) (*raftpb.Message, bool) {
	s := new(slot)
	m := &s.m
	var slots []entrySlot
	if entries > 0 {
		slots = make([]entrySlot, entries)
		m.Entries = make([]*raftpb.Entry, 0, entries)
	}
	for len(b) > 0 {
		field, wire := b[0]>>3, b[0]&7
		var v uint64
		var data []byte
		var n int
		if wire == wireVarint {
			v, n = protowire.ConsumeVarint(b[1:])
		} else {
			data, n = protowire.ConsumeBytes(b[1:])
			data = data[:len(data):len(data)]
		}
		b = b[1+n:]

		isBytes := field == fieldEntries || field == fieldSnapshot || field == fieldContext
		if isBytes != (wire == wireBytes) {
			return nil, false
		}
		switch field {
		case fieldType:
			s.typ = raftpb.MessageType(v)
			m.Type = &s.typ
		case fieldTo:
			m.To = s.set(0, v)
		case fieldFrom:
			m.From = s.set(1, v)
		case fieldTerm:
			m.Term = s.set(2, v)
		case fieldLogTerm:
			m.LogTerm = s.set(3, v)
		case fieldIndex:
			m.Index = s.set(4, v)
		case fieldEntries:
			es := &slots[len(m.Entries)]
			if !es.decode(data) {
				return nil, false
			}
			m.Entries = append(m.Entries, &es.e)
		case fieldCommit:
			m.Commit = s.set(5, v)
		case fieldSnapshot:
			if m.Snapshot != nil {
				return nil, false // two would have to be merged
			}
			m.Snapshot = new(raftpb.Snapshot)
			if err := proto.Unmarshal(data, m.Snapshot); err != nil {
				return nil, false
			}
		case fieldReject:
			s.reject = protowire.DecodeBool(v)
			m.Reject = &s.reject
		case fieldRejectHint:
			m.RejectHint = s.set(6, v)
		case fieldContext:
			m.Context = data
		case fieldVote:
			m.Vote = s.set(7, v)
		default:
			return nil, false
		}
	}
	return m, true
}

func (s *slot) set(i int, v uint64) *uint64 {
	s.scalars[i] = v
	return &s.scalars[i]
}

// decode decodes an entry whose data points into b; false: b is not a plain entry.
func (s *entrySlot) decode(b []byte) bool {
	for len(b) > 0 {
		key := b[0]
		var v uint64
		var n int
		if key == fieldEntryData<<3|wireBytes {
			s.e.Data, n = protowire.ConsumeBytes(b[1:])
		} else {
			v, n = protowire.ConsumeVarint(b[1:])
		}
		if n < 0 {
			return false
		}
		b = b[1+n:]
		switch key {
		case fieldEntryType<<3 | wireVarint:
			s.typ = raftpb.EntryType(v)
			s.e.Type = &s.typ
		case fieldEntryTerm<<3 | wireVarint:
			s.term = v
			s.e.Term = &s.term
		case fieldEntryIndex<<3 | wireVarint:
			s.index = v
			s.e.Index = &s.index
		case fieldEntryData<<3 | wireBytes:
			s.e.Data = s.e.Data[:len(s.e.Data):len(s.e.Data)]
		default:
			return false
		}
	}
	return true
}

// decodeEntry decodes an entry whose data points into b.
func (s *entrySlot) decodeEntry(b []byte) error {
	if s.decode(b) {
		return nil
	}
	*s = entrySlot{}
	if err := proto.Unmarshal(b, &s.e); err != nil {
		return fmt.Errorf("decode an entry: %w", err)
	}
	return nil
}
