// Package wire turns etcd's protobuf messages into package kv's types and back,
// without reflection and without copying: decoded byte slices point into the input.
//
// It covers the messages that a busy member sees by the thousand: KeyValue, the KV
// requests, InternalRaftRequest, Event and the responses around them. What it writes is
// byte for byte what protobuf-go writes, because HashKV is a checksum over those bytes.
// Everything rarer goes through protobuf-go's own code.
//
// What it reads, it reads by proto3's rules and takes and refuses exactly what
// protobuf-go does: fields in any order, the last of a repeated scalar wins, repeated
// messages merge, a known number with another wire type counts as unknown, unknown
// fields and groups are stepped over. It never panics on any input. A field that would
// hold a message nested deeper than depthMax is an error.
//
// Decode functions set only the fields that they find, so the target should be zero;
// Append functions extend the buffer they are given and return it, as append does.
package wire

import (
	"encoding/binary"
	"errors"
	"math/bits"

	"google.golang.org/protobuf/encoding/protowire"
)

// ErrMalformed is what every decoder returns for bytes that are not a message.
var ErrMalformed = errors.New("cannot parse invalid wire-format data")

// depthMax bounds the nesting of messages in a request. It is one less than
// protobuf-go's bound, so that a request that is taken from a client is still taken
// inside an InternalRaftRequest by a member that uses protobuf-go.
const depthMax = protowire.DefaultRecursionLimit - 1

// Wire types, the low three bits of a tag.
const (
	varint  = uint32(protowire.VarintType)
	fixed64 = uint32(protowire.Fixed64Type)
	lenPfx  = uint32(protowire.BytesType)
	fixed32 = uint32(protowire.Fixed32Type)
)

// reader walks the fields of one message:
//
//	r := reader{b: b}
//	for r.next() {
//		switch r.tag {
//		case 1<<3 | lenPfx: key = r.data
//		}
//	}
//	return r.err()
//
// A tag that no case names, be it for its number or its wire type, is thereby unknown
// and skipped.
type reader struct {
	b    []byte // what is left to read
	tag  uint32 // number<<3 | wire type of the current field
	v    uint64 // its value, if it is a varint
	data []byte // its value, if it is length-prefixed; a part of b
	bad  bool
}

// next moves to the next field. It returns false at the end and at the first fault.
func (r *reader) next() bool {
	if len(r.b) == 0 {
		return false
	}
	tag := uint64(r.b[0])
	if tag < 0x80 {
		r.b = r.b[1:]
	} else if tag = r.varint(); r.bad {
		return false
	}
	if tag>>3 < uint64(protowire.MinValidNumber) || tag>>3 > uint64(protowire.MaxValidNumber) {
		return r.fail()
	}
	r.tag = uint32(tag)
	switch r.tag & 7 {
	case varint:
		r.v = r.varint()
		return !r.bad
	case lenPfx:
		n := r.varint()
		if r.bad || n > uint64(len(r.b)) {
			return r.fail()
		}
		r.data = r.b[:n:n]
		r.b = r.b[n:]
		return true
	}
	// Fixed-size fields and groups occur in no message of ours.
	n := protowire.ConsumeFieldValue(protowire.Number(r.tag>>3), protowire.Type(r.tag&7), r.b)
	if n < 0 {
		return r.fail()
	}
	r.b = r.b[n:]
	return true
}

func (r *reader) varint() uint64 {
	if len(r.b) > 0 && r.b[0] < 0x80 {
		v := uint64(r.b[0])
		r.b = r.b[1:]
		return v
	}
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) fail() bool {
	r.bad = true
	return false
}

func (r *reader) err() error {
	if r.bad {
		return ErrMalformed
	}
	return nil
}

// sizeVarint is the number of bytes of v as a varint.
func sizeVarint(v uint64) int {
	// 9/64 is close enough to 1/7 for all 64 values.
	return (9*bits.Len64(v) + 64) / 64
}

// sizeBytes is the size of a length-prefixed field with a tag of one byte, 0 if empty.
func sizeBytes(n int) int {
	if n == 0 {
		return 0
	}
	return 1 + sizeVarint(uint64(n)) + n
}

// sizeNumber is the size of a varint field with a tag of one byte, 0 if zero.
func sizeNumber(v uint64) int {
	if v == 0 {
		return 0
	}
	return 1 + sizeVarint(v)
}

// The append functions below leave out zero values, as proto3 does; num is below 16.

func appendBytes(b []byte, num byte, data []byte) []byte {
	if len(data) == 0 {
		return b
	}
	return appendMessage(b, num, data)
}

func appendNumber(b []byte, num byte, v uint64) []byte {
	if v == 0 {
		return b
	}
	return binary.AppendUvarint(append(b, num<<3|byte(varint)), v)
}

func appendBool(b []byte, num byte, v bool) []byte {
	if !v {
		return b
	}
	return append(b, num<<3|byte(varint), 1)
}

// appendMessage appends a field even if it is empty: a message that is present.
func appendMessage(b []byte, num byte, data []byte) []byte {
	b = append(b, num<<3|byte(lenPfx))
	b = binary.AppendUvarint(b, uint64(len(data)))
	return append(b, data...)
}

// Mark is an open message field, see Open.
type Mark int

// Open starts a message field whose size is not known yet: what is appended until
// Close is its content. Fields nest; num is below 16.
func Open(b []byte, num int) ([]byte, Mark) {
	b = append(b, byte(num)<<3|byte(lenPfx), 0)
	return b, Mark(len(b))
}

// Close ends the field that m opened. It moves the content by a few bytes if it is
// longer than 127, because lengths are written in as few bytes as protobuf-go uses.
func Close(b []byte, m Mark) []byte {
	n := len(b) - int(m)
	if n < 0x80 {
		b[m-1] = byte(n)
		return b
	}
	extra := sizeVarint(uint64(n)) - 1
	for range extra {
		b = append(b, 0)
	}
	copy(b[int(m)+extra:], b[m:int(m)+n])
	binary.PutUvarint(b[m-1:], uint64(n))
	return b
}
