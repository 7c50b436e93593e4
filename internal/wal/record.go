package wal

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/bits"

	"go.etcd.io/raft/v3/raftpb"
)

// A record on disk, at a multiple of 8 bytes:
//
//	8 bytes  frame: length of the body in the low 56 bits; if the body is padded, the
//	         top byte is 0x80 | number of bytes of padding
//	body     protobuf: 1 type (varint), 2 crc (varint), 3 data (bytes)
//	0-7      zeros, up to the next multiple of 8
//
// crc is the CRC-32C of the data of all records of the whole log so far. A record of
// type typeCRC has no part in it: it says where the sum stands and, as the first record
// of a segment, lets the segment be checked without those before it.
const (
	typeMetadata = 1
	typeEntry    = 2
	typeState    = 3
	typeCRC      = 4
	typeSnapshot = 5
)

const (
	frameBytes  = 8
	sectorBytes = 512 // what a disk writes whole or not at all
	// recordExtra is the most that a record takes beside its data.
	recordExtra = frameBytes + 2 + 6 + 6 + 7
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(crc uint32, b []byte) uint32 { return crc32.Update(crc, castagnoli, b) }

func frame(body int) (word uint64, pad int) {
	pad = -body & 7
	word = uint64(body)
	if pad != 0 {
		word |= uint64(0x80|pad) << 56
	}
	return word, pad
}

// unframe reads a frame; ok is false if frame never gives that word.
func unframe(word uint64) (body int64, pad int, ok bool) {
	body = int64(word &^ (0xff << 56))
	want, pad := frame(int(body))
	return body, pad, want == word && body > 0
}

func varintLen(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }

// appendHead appends a record up to where n bytes of data follow.
func appendHead(b []byte, typ byte, crc uint32, n int) []byte {
	body := 2 + 1 + varintLen(uint64(crc)) + 1 + varintLen(uint64(n)) + n
	word, _ := frame(body)
	b = binary.LittleEndian.AppendUint64(b, word)
	b = append(b, 0x08, typ, 0x10)
	b = binary.AppendUvarint(b, uint64(crc))
	b = append(b, 0x1a)
	return binary.AppendUvarint(b, uint64(n))
}

var zeros8 [8]byte

// appendPad fills b up to the next multiple of 8, counted from start.
func appendPad(b []byte, start int) []byte { return append(b, zeros8[:-(len(b)-start)&7]...) }

// encoder appends records whose checksums continue a chain.
type encoder struct {
	sum   uint32 // of the data of all records so far
	space [64]byte
}

// record appends a record with data.
func (c *encoder) record(b []byte, typ byte, data []byte) []byte {
	c.sum = checksum(c.sum, data)
	start := len(b)
	b = appendHead(b, typ, c.sum, len(data))
	b = append(b, data...)
	return appendPad(b, start)
}

// entry appends the record of an entry, whose Data is copied once.
func (c *encoder) entry(b []byte, e *raftpb.Entry) []byte {
	head := appendEntryHead(c.space[:0], e)
	c.sum = checksum(checksum(c.sum, head), e.Data)
	start := len(b)
	b = appendHead(b, typeEntry, c.sum, len(head)+len(e.Data))
	b = append(b, head...)
	b = append(b, e.Data...)
	return appendPad(b, start)
}

// state appends the record of a hard state.
func (c *encoder) state(b []byte, s state) []byte {
	return c.record(b, typeState, appendState(c.space[:0], s))
}

// record is a decoded record; data is part of what it was decoded from.
type record struct {
	typ  byte
	crc  uint32
	data []byte
}

var errRecord = errors.New("is not a record")

// parseBody decodes a record's body. It takes only what a writer of the format makes:
// each field at most once, in order, none unknown.
func parseBody(b []byte) (r record, err error) {
	f := fields{b: b}
	for f.next() {
		switch f.num {
		case 1:
			if f.v == 0 || f.v > typeSnapshot {
				return r, errRecord
			}
			r.typ = byte(f.v)
		case 2:
			if f.v>>32 != 0 {
				return r, errRecord
			}
			r.crc = uint32(f.v)
		case 3:
			r.data = f.bytes
		}
	}
	if !f.done(1<<1|1<<2, 1<<3) || r.typ == 0 {
		return r, errRecord
	}
	return r, nil
}
