package wal

import "encoding/binary"

// A group is what one Append writes: with one write and one sync, after the group before
// it is on disk. It begins with a mark, a record of type typeCRC whose data etcd does not
// look at:
//
//	4 bytes  length of what follows the mark in the group, little-endian
//	4 bytes  CRC-32C of the record's crc, the mark's offset in the file, and the length
//	4 bytes  CRC-32C of what follows the mark in the group
//
// A mark says that everything before it was on disk when it was written, so that Open
// need not guess whether a bad record is a torn tail or damage. And a group that is whole
// has not changed in any bit since.
type group struct {
	at   int64 // offset of the mark
	from int64 // offset of what follows the mark
	end  int64
	// whole tells that nothing is missing and nothing has changed.
	whole bool
}

const (
	markDataBytes = 12
	markBytes     = frameBytes + 24 // the sum takes 1 to 5 bytes, padding makes up for it
)

// appendMark appends a mark that sealMark completes. crc is the sum of all data so far.
func appendMark(b []byte, crc uint32) []byte {
	start := len(b)
	b = appendHead(b, typeCRC, crc, markDataBytes)
	b = append(b, make([]byte, markDataBytes)...)
	return appendPad(b, start)
}

// sealMark completes the mark that b begins with; the rest of b is its group. off is
// where b will lie in the file.
func sealMark(b []byte, off int64, crc uint32) {
	data := b[frameBytes+2+1+varintLen(uint64(crc))+2:][:markDataBytes]
	rest := b[markBytes:]
	binary.LittleEndian.PutUint32(data, uint32(len(rest)))
	binary.LittleEndian.PutUint32(data[4:], markCheck(crc, off, uint32(len(rest))))
	binary.LittleEndian.PutUint32(data[8:], checksum(0, rest))
}

func markCheck(crc uint32, off int64, length uint32) uint32 {
	var b [12]byte
	binary.LittleEndian.PutUint64(b[:], uint64(off))
	binary.LittleEndian.PutUint32(b[8:], length)
	return checksum(crc, b[:])
}

// isMark reports whether rec, which was read at off, is a mark.
func isMark(rec record, off int64) bool {
	return rec.typ == typeCRC && len(rec.data) == markDataBytes &&
		binary.LittleEndian.Uint32(rec.data[4:]) == markCheck(rec.crc, off, binary.LittleEndian.Uint32(rec.data))
}
