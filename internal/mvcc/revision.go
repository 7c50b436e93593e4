package mvcc

import (
	"encoding/binary"

	"quorate/internal/kv"
)

// A revision in the file, as the key of a record in bucket "key" and as the value of the
// two compaction marks in bucket "meta":
//
//	main, 8 bytes big endian | '_' | sub, 8 bytes big endian [| 't' for a tombstone]
//
// The order of these bytes is the order of revisions.
const (
	revLen    = 17
	revMark   = '_'
	tombstone = 't'
)

// appendRev appends rev in the file's form to b.
func appendRev(b []byte, rev kv.Revision, dead bool) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(rev.Main))
	b = append(b, revMark)
	b = binary.BigEndian.AppendUint64(b, uint64(rev.Sub))
	if dead {
		b = append(b, tombstone)
	}
	return b
}

// parseRev reads what appendRev wrote. ok is false if b is anything else.
func parseRev(b []byte) (rev kv.Revision, dead, ok bool) {
	switch {
	case len(b) == revLen:
	case len(b) == revLen+1 && b[revLen] == tombstone:
		dead = true
	default:
		return kv.Revision{}, false, false
	}
	rev.Main = int64(binary.BigEndian.Uint64(b))
	rev.Sub = int64(binary.BigEndian.Uint64(b[9:]))
	return rev, dead, b[8] == revMark && rev.Main >= 0 && rev.Sub >= 0
}
