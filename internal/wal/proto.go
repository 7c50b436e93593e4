package wal

import (
	"encoding/binary"
	"fmt"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// The payloads of records, in protobuf, written and read without reflection: they are
// on the path of every write, and a start reads a million of them.

// fields walks over the fields of a message, in ascending order, each once.
type fields struct {
	b     []byte
	num   uint64
	v     uint64 // of a varint field
	bytes []byte // of a bytes field; not nil then
	seen  uint64 // bits of varint fields
	lens  uint64 // bits of bytes fields
	bad   bool
}

// next moves to the next field and reports whether there is one.
func (f *fields) next() bool {
	if len(f.b) == 0 || f.bad {
		return false
	}
	tag := uint64(f.b[0])
	num := tag >> 3
	if tag >= 0x80 || num <= f.num {
		f.bad = true
		return false
	}
	f.num = num
	v, n := binary.Uvarint(f.b[1:])
	if n <= 0 {
		f.bad = true
		return false
	}
	f.b = f.b[1+n:]
	switch tag & 7 {
	case 0:
		f.v, f.bytes = v, nil
		f.seen |= 1 << num
	case 2:
		if v > uint64(len(f.b)) {
			f.bad = true
			return false
		}
		f.v, f.bytes = 0, f.b[:v:v]
		f.b = f.b[v:]
		f.lens |= 1 << num
	default:
		f.bad = true
		return false
	}
	return true
}

// done reports whether the message was well formed and had no fields but these, given
// as bits of their numbers.
func (f *fields) done(varints, lens uint64) bool {
	return !f.bad && len(f.b) == 0 && f.seen&^varints == 0 && f.lens&^lens == 0
}

// appendEntryHead appends an entry but for the bytes of its Data, which come last.
func appendEntryHead(b []byte, e *raftpb.Entry) []byte {
	if e.Type != nil {
		b = append(b, 0x08)
		b = binary.AppendUvarint(b, uint64(*e.Type))
	}
	if e.Term != nil {
		b = append(b, 0x10)
		b = binary.AppendUvarint(b, *e.Term)
	}
	if e.Index != nil {
		b = append(b, 0x18)
		b = binary.AppendUvarint(b, *e.Index)
	}
	if e.Data != nil {
		b = append(b, 0x22)
		b = binary.AppendUvarint(b, uint64(len(e.Data)))
	}
	return b
}

// entryHeadMax bounds what appendEntryHead appends.
const entryHeadMax = 11 + 11 + 11 + 6

// EntryBytes is the most that an entry takes in the log, for comparing with Room.
func EntryBytes(e *raftpb.Entry) int64 {
	return int64(recordExtra + entryHeadMax + len(e.GetData()))
}

// entrySlab is room for entries that Open reads, so that a million of them are not four
// million allocations.
type entrySlab struct {
	left []slabEntry
	data []byte
}

type slabEntry struct {
	e           raftpb.Entry
	term, index uint64
	typ         raftpb.EntryType
}

const (
	slabEntries = 256
	slabBytes   = 256 << 10
)

// entryView is an entry as it lies in the log.
type entryView struct {
	term, index uint64
	has         uint64 // bits of the fields that are there
	typ         raftpb.EntryType
	data        []byte
}

func parseEntry(b []byte) (v entryView, ok bool) {
	f := fields{b: b}
	for f.next() {
		switch f.num {
		case 1:
			v.typ = raftpb.EntryType(f.v)
			if f.v > uint64(raftpb.EntryConfChangeV2) {
				return v, false
			}
		case 2:
			v.term = f.v
		case 3:
			v.index = f.v
		case 4:
			v.data = f.bytes
		}
	}
	v.has = f.seen | f.lens
	return v, f.done(1<<1|1<<2|1<<3, 1<<4) && v.index != 0
}

// entry copies v out of the read buffer.
func (s *entrySlab) entry(v entryView) *raftpb.Entry {
	if len(s.left) == 0 {
		s.left = make([]slabEntry, slabEntries)
	}
	se := &s.left[0]
	s.left = s.left[1:]
	if v.has&(1<<1) != 0 {
		se.typ = v.typ
		se.e.Type = &se.typ
	}
	if v.has&(1<<2) != 0 {
		se.term = v.term
		se.e.Term = &se.term
	}
	if v.has&(1<<3) != 0 {
		se.index = v.index
		se.e.Index = &se.index
	}
	if v.has&(1<<4) != 0 {
		n := len(v.data)
		if n > slabBytes/16 {
			se.e.Data = append(make([]byte, 0, n), v.data...)
			return &se.e
		}
		if n > len(s.data) {
			s.data = make([]byte, slabBytes)
		}
		se.e.Data = s.data[:n:n]
		copy(se.e.Data, v.data)
		s.data = s.data[n:]
	}
	return &se.e
}

// state is a hard state by value.
type state struct{ term, vote, commit uint64 }

func appendState(b []byte, s state) []byte {
	b = append(b, 0x08)
	b = binary.AppendUvarint(b, s.term)
	b = append(b, 0x10)
	b = binary.AppendUvarint(b, s.vote)
	b = append(b, 0x18)
	return binary.AppendUvarint(b, s.commit)
}

func stateOf(hs *raftpb.HardState) state {
	return state{hs.GetTerm(), hs.GetVote(), hs.GetCommit()}
}

func (s state) hardState() *raftpb.HardState {
	return &raftpb.HardState{Term: &s.term, Vote: &s.vote, Commit: &s.commit}
}

func parseState(b []byte) (s state, ok bool) {
	f := fields{b: b}
	for f.next() {
		switch f.num {
		case 1:
			s.term = f.v
		case 2:
			s.vote = f.v
		case 3:
			s.commit = f.v
		}
	}
	return s, f.done(1<<1|1<<2|1<<3, 0)
}

func appendSnapshot(b []byte, s Snapshot) ([]byte, error) {
	b = append(b, 0x08)
	b = binary.AppendUvarint(b, s.Index)
	b = append(b, 0x10)
	b = binary.AppendUvarint(b, s.Term)
	if s.ConfState == nil {
		return b, nil
	}
	conf, err := proto.Marshal(s.ConfState)
	if err != nil {
		return nil, fmt.Errorf("encode conf state: %w", err)
	}
	b = append(b, 0x1a)
	b = binary.AppendUvarint(b, uint64(len(conf)))
	return append(b, conf...), nil
}

func parseSnapshot(b []byte) (s Snapshot, ok bool) {
	f := fields{b: b}
	for f.next() {
		switch f.num {
		case 1:
			s.Index = f.v
		case 2:
			s.Term = f.v
		case 3:
			s.ConfState = new(raftpb.ConfState)
			if proto.Unmarshal(f.bytes, s.ConfState) != nil {
				return s, false
			}
		}
	}
	return s, f.done(1<<1|1<<2, 1<<3)
}

func appendMetadata(b []byte, md Metadata) []byte {
	b = append(b, 0x08)
	b = binary.AppendUvarint(b, md.NodeID)
	b = append(b, 0x10)
	return binary.AppendUvarint(b, md.ClusterID)
}

func parseMetadata(b []byte) (md Metadata, ok bool) {
	f := fields{b: b}
	for f.next() {
		switch f.num {
		case 1:
			md.NodeID = f.v
		case 2:
			md.ClusterID = f.v
		}
	}
	return md, f.done(1<<1|1<<2, 0)
}
