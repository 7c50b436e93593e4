package wal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"quorate/internal/vfs"
)

// DamageError says that a log holds what no crash can have left: it was changed or lost
// after it had been on disk. Nothing was changed by finding it.
type DamageError struct {
	File   string
	Offset int64
	Reason string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("log segment %s is damaged at byte %d: %s; it is not the torn end of a last write, "+
		"so cutting it off could lose acknowledged writes: restore the file, or the member from a snapshot, "+
		"or remove the member and add it again with an empty data directory", e.File, e.Offset, e.Reason)
}

// reader reads a segment front to back through one buffer.
type reader struct {
	f    vfs.File
	name string
	size int64
	buf  []byte
	off  int64 // where buf lies in the file
}

const readBytes = 1 << 20

// at is n bytes at off, fewer if the file ends before; they are valid until the next call.
func (r *reader) at(off int64, n int64) ([]byte, error) {
	n = max(0, min(n, r.size-off))
	if off >= r.off && off+n <= r.off+int64(len(r.buf)) {
		return r.buf[off-r.off:][:n], nil
	}
	want := min(max(n, readBytes), r.size-off)
	if int64(cap(r.buf)) < want {
		r.buf = make([]byte, want)
	}
	r.buf = r.buf[:want]
	r.off = off
	if m, err := r.f.ReadAt(r.buf, off); m < len(r.buf) {
		r.buf = r.buf[:0]
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read %s at %d: %w", r.name, off, err)
	}
	return r.buf[:n], nil
}

var zeroBlock [64 << 10]byte

func isZero(b []byte) bool {
	for len(b) > len(zeroBlock) {
		if !bytes.Equal(b[:len(zeroBlock)], zeroBlock[:]) {
			return false
		}
		b = b[len(zeroBlock):]
	}
	return bytes.Equal(b, zeroBlock[:len(b)])
}

// lastNonzero is the offset after the last byte at or after off that is not zero, off if
// there is none.
func (r *reader) lastNonzero(off int64) (int64, error) {
	end := off
	for ; off < r.size; off += readBytes {
		b, err := r.at(off, readBytes)
		if err != nil {
			return 0, err
		}
		if isZero(b) {
			continue
		}
		for i := len(b) - 1; i >= 0; i-- {
			if b[i] != 0 {
				end = off + int64(i) + 1
				break
			}
		}
	}
	return end, nil
}

// bad says why there is no record where one is looked for.
type bad struct {
	reason string
	zeros  bool // there are zeros: perhaps the end
	short  bool // the file ends before it does
	body   int64
}

// record decodes the record at off and says how long it is on disk. Its crc is not
// checked.
func (r *reader) record(off int64) (rec record, length int64, b *bad, err error) {
	head, err := r.at(off, frameBytes)
	if err != nil {
		return rec, 0, nil, err
	}
	if len(head) < frameBytes {
		return rec, 0, &bad{reason: "the file ends in the middle of a frame", zeros: isZero(head), short: true}, nil
	}
	word := binary.LittleEndian.Uint64(head)
	if word == 0 {
		return rec, 0, &bad{reason: "there are zeros where a record should begin, and more behind them", zeros: true}, nil
	}
	body, pad, ok := unframe(word)
	if !ok {
		return rec, 0, &bad{reason: fmt.Sprintf("%016x is not the frame of a record", word)}, nil
	}
	length = frameBytes + body + int64(pad)
	if body > r.size || length > r.size-off {
		return rec, 0, &bad{reason: fmt.Sprintf("a record of %d bytes runs past the end of the file", body), short: true}, nil
	}
	all, err := r.at(off, length)
	if err != nil {
		return rec, 0, nil, err
	}
	rec, perr := parseBody(all[frameBytes:][:body])
	if perr != nil || !isZero(all[frameBytes+body:]) {
		return rec, 0, &bad{reason: "what lies there " + errRecord.Error(), body: body}, nil
	}
	return rec, length, nil, nil
}

// group reads the group whose mark is at off and checks it.
func (r *reader) group(off, length int64, mark record) (group, error) {
	g := group{at: off, from: off + length}
	n := int64(binary.LittleEndian.Uint32(mark.data))
	want := binary.LittleEndian.Uint32(mark.data[8:])
	g.end = g.from + n
	if g.end > r.size {
		return g, nil
	}
	rest, err := r.at(g.from, n)
	if err != nil {
		return g, err
	}
	g.whole = checksum(0, rest) == want
	return g, nil
}

func (r *reader) damage(off int64, format string, args ...any) error {
	return &DamageError{File: r.name, Offset: off, Reason: fmt.Sprintf(format, args...)}
}

// chain is the sum over the data of all records so far.
type chain struct {
	sum     uint32
	started bool
	synced  int64 // of the segment being read, was on disk before more was written
	cut     bool  // it ends inside a group

	last   int64  // of the segment being read, where the last record of content begins
	before uint32 // sum before that
}

// scan calls see for every record of the segment, in order, with its offset, and returns
// where the last one ends, and where what is not zero ends. If the segment is the last of
// the log, what lies between may be the torn tail of a last write; in any other there is
// nothing.
func (r *reader) scan(c *chain, last bool, see func(rec record, off int64) error) (off, end int64, err error) {
	g := group{end: -1}
	c.synced = 0
	for {
		if off == g.end && !g.whole {
			return 0, 0, r.damage(g.at, "the write of %d bytes there is not what was written", g.end-g.at)
		}
		rec, length, b, err := r.record(off)
		if err != nil {
			return 0, 0, err
		}
		if b == nil {
			b, err = r.link(c, &g, off, length, rec)
			if err != nil {
				return 0, 0, err
			}
		}
		if b != nil {
			c.cut = off < g.end
			end, err := r.judge(off, g, b, last)
			return off, end, err
		}
		if rec.typ != typeCRC {
			if err := see(rec, off); err != nil {
				return 0, 0, err
			}
		}
		off += length
	}
}

// link checks that the record continues the chain, and keeps track of groups.
func (r *reader) link(c *chain, g *group, off, length int64, rec record) (*bad, error) {
	if off == 0 && rec.typ != typeCRC {
		return nil, r.damage(0, "a segment begins with a checksum record, this one does not")
	}
	if rec.typ != typeCRC {
		sum := checksum(c.sum, rec.data)
		if sum != rec.crc {
			return &bad{reason: fmt.Sprintf("the checksum of a record is %08x, it should be %08x", rec.crc, sum), body: length - frameBytes}, nil
		}
		c.last, c.before, c.sum = off, c.sum, sum
		return nil, nil
	}
	if c.started && rec.crc != c.sum {
		return nil, r.damage(off, "the checksum record says %08x, the records before it sum up to %08x", rec.crc, c.sum)
	}
	c.sum, c.started = rec.crc, true
	switch {
	case len(rec.data) == 0: // etcd's, at the beginning of a segment
		return nil, nil
	case !isMark(rec, off):
		return &bad{reason: "a checksum record carries data of an unknown kind", body: length - frameBytes}, nil
	case g.whole && off < g.end:
		return nil, r.damage(off, "a write begins inside the one before it")
	}
	// If another group begins inside one that is not whole, that one was torn, and its
	// end was cut off then.
	var err error
	c.synced = off
	*g, err = r.group(off, length, rec)
	if err == nil && off == 0 && !g.whole {
		return nil, r.damage(0, "the first write of the segment is not what was written")
	}
	return nil, err
}
