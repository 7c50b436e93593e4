package wal

import "encoding/binary"

// A group is what one Append writes: with one write and one sync, after the group before
// it is on disk. It begins with a mark, a record of type typeCRC whose data etcd does not
// look at:
//
//	4 bytes  length of what follows the mark in the group, little-endian
//	4 bytes  CRC-32C of the mark's crc, its offset in the file, the length, and the
//	         bytes that follow it in the group
//
// A group that is whole was written by us, there, and no bit of it has changed since. And
// a mark says that everything before it had been synced when it was written, so that
// Open need not guess whether a bad record is a torn tail or damage.
type group struct {
	at   int64 // offset of the mark
	from int64 // offset of what follows the mark
	end  int64
	// whole tells that the check holds.
	whole bool
}

const (
	markDataBytes = 8
	markBytesMax  = frameBytes + 24
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
	body, pad, _ := unframe(binary.LittleEndian.Uint64(b))
	rest := b[frameBytes+int(body)+pad:]
	binary.LittleEndian.PutUint32(data, uint32(len(rest)))
	binary.LittleEndian.PutUint32(data[4:], markCheck(crc, off, rest))
}

func markCheck(crc uint32, off int64, rest []byte) uint32 {
	var head [12]byte
	binary.LittleEndian.PutUint64(head[:], uint64(off))
	binary.LittleEndian.PutUint32(head[8:], uint32(len(rest)))
	return checksum(checksum(crc, head[:]), rest)
}
