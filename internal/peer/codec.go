package peer

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"

	"quorate/internal/membership"

	"go.etcd.io/raft/v3/raftpb"
)

// kind tells the two streams between a pair of members apart. See docs/formats/peer.md.
type kind int

const (
	streamMessage kind = iota // all but appends; appends while the other is down
	streamAppend              // appends alone ("msgappv2" in etcd)
	kinds
)

// path is the last part of the stream's address.
func (k kind) path() string {
	if k == streamAppend {
		return "msgapp"
	}
	return "message"
}

func (k kind) String() string {
	if k == streamAppend {
		return "append stream"
	}
	return "message stream"
}

// Records of the append stream.
const (
	recordHeartbeat byte = iota // of the link: nothing follows
	recordEntries               // count, {size, entry}*, commit: goes on where the last left off
	recordMessage               // size, message
)

// messageBytesMax bounds one received message, as in etcd, and snapshotMessageMax the
// message before a snapshot's file.
const (
	messageBytesMax    = 512 << 20
	snapshotMessageMax = 64 << 20
)

// encoder writes the messages of one stream in their order.
type encoder struct {
	kind kind
	// Of the append stream: where the last append ended, and its term.
	term, index uint64
}

// append appends m to b as the stream's next message.
func (c *encoder) append(b []byte, m *raftpb.Message) ([]byte, error) {
	if c.kind == streamMessage {
		return appendSized(b, m)
	}
	if c.index == m.GetIndex() && c.term == m.GetLogTerm() && c.term == m.GetTerm() {
		b = append(b, recordEntries)
		b = binary.BigEndian.AppendUint64(b, uint64(len(m.Entries)))
		for _, e := range m.Entries {
			b = binary.BigEndian.AppendUint64(b, uint64(entrySize(e)))
			b = appendEntry(b, e)
		}
		c.index += uint64(len(m.Entries))
		return binary.BigEndian.AppendUint64(b, m.GetCommit()), nil
	}
	b, err := appendSized(append(b, recordMessage), m)
	if err != nil {
		return b, err
	}
	c.term, c.index = m.GetTerm(), m.GetIndex()
	if n := len(m.Entries); n > 0 {
		c.index = m.Entries[n-1].GetIndex()
	}
	return b, nil
}

// heartbeat appends what keeps an idle stream alive.
func (c *encoder) heartbeat(b []byte) []byte {
	if c.kind == streamAppend {
		return append(b, recordHeartbeat)
	}
	b = binary.BigEndian.AppendUint64(b, 2)
	return append(b, fieldType<<3|wireVarint, byte(raftpb.MsgHeartbeat))
}

// appendSized appends the length of m in eight bytes, and m.
func appendSized(b []byte, m *raftpb.Message) ([]byte, error) {
	start := len(b)
	b, err := appendMessage(append(b, 0, 0, 0, 0, 0, 0, 0, 0), m)
	if err != nil {
		return b[:start], err
	}
	binary.BigEndian.PutUint64(b[start:], uint64(len(b)-start-8))
	return b, nil
}

// decoder reads the messages of one stream.
type decoder struct {
	r             *bufio.Reader
	kind          kind
	local, remote membership.ID

	term, index uint64
	read        int    // bytes of the current message
	arena       []byte // free space for small entries
}

// next returns the next message and its length on the wire. The message is nil for a
// heartbeat of the link.
func (d *decoder) next() (*raftpb.Message, int, error) {
	d.read = 0
	m, err := d.message()
	return m, d.read, err
}

func (d *decoder) message() (*raftpb.Message, error) {
	if d.kind == streamMessage {
		m, err := d.sized()
		if err == nil && m.GetType() == raftpb.MsgHeartbeat && m.GetFrom() == 0 && m.GetTo() == 0 {
			return nil, nil
		}
		return m, err
	}
	record, err := d.r.ReadByte()
	if err != nil {
		return nil, err
	}
	d.read++
	switch record {
	case recordHeartbeat:
		return nil, nil
	case recordEntries:
		return d.entries()
	case recordMessage:
		m, err := d.sized()
		if err != nil {
			return nil, err
		}
		d.term, d.index = m.GetTerm(), m.GetIndex()
		if n := len(m.Entries); n > 0 {
			d.index = m.Entries[n-1].GetIndex()
		}
		return m, nil
	}
	return nil, fmt.Errorf("peer: record of unknown type %d", record)
}

// sized reads a length and as much of a message.
func (d *decoder) sized() (*raftpb.Message, error) {
	size, err := d.uint64()
	if err != nil {
		return nil, err
	}
	b, err := readBytes(d.r, size, messageBytesMax)
	if err != nil {
		return nil, err
	}
	d.read += len(b)
	return decodeMessage(b)
}

// entriesStep is for how many entries room is made at a time: the count on the wire is
// believed only as far as entries follow.
const entriesStep = 256

// entriesMax bounds how many there may be: tiny ones take more room than on the wire.
const entriesMax = 4 << 20

// entries reads an append that goes on where the last one ended.
func (d *decoder) entries() (*raftpb.Message, error) {
	s := new(slot)
	s.typ = raftpb.MsgApp
	m := &s.m
	m.Type = &s.typ
	m.To, m.From = s.set(0, uint64(d.local)), s.set(1, uint64(d.remote))
	m.Term, m.LogTerm, m.Index = s.set(2, d.term), s.set(3, d.term), s.set(4, d.index)

	count, err := d.uint64()
	if err != nil {
		return nil, err
	}
	if count > entriesMax {
		return nil, errTooLarge
	}
	var slots []entrySlot
	for i := uint64(0); i < count; i++ {
		if len(slots) == 0 {
			slots = make([]entrySlot, min(count-i, entriesStep))
			if m.Entries == nil {
				m.Entries = make([]*raftpb.Entry, 0, len(slots))
			}
		}
		b, err := d.entryBytes()
		if err != nil {
			return nil, noEOF(err)
		}
		if err := slots[0].decodeEntry(b); err != nil {
			return nil, err
		}
		m.Entries = append(m.Entries, &slots[0].e)
		slots = slots[1:]
		d.index++
	}
	commit, err := d.uint64()
	if err != nil {
		return nil, noEOF(err)
	}
	m.Commit = s.set(5, commit)
	return m, nil
}

// arenaBytes is how much small entries share. They follow each other in the log and leave
// it together, so that none keeps the memory of others for long.
const arenaBytes = 16 << 10

// entryBytes reads the bytes of an entry.
func (d *decoder) entryBytes() ([]byte, error) {
	size, err := d.uint64()
	if err != nil {
		return nil, err
	}
	if size > messageBytesMax || d.read+int(size) > messageBytesMax {
		return nil, errTooLarge
	}
	d.read += int(size)
	if size > arenaBytes/4 {
		return readBytes(d.r, size, messageBytesMax)
	}
	n := int(size)
	if len(d.arena) < n {
		d.arena = make([]byte, arenaBytes)
	}
	b := d.arena[:n:n]
	if _, err := io.ReadFull(d.r, b); err != nil {
		return nil, noEOF(err)
	}
	d.arena = d.arena[n:]
	return b, nil
}

func (d *decoder) uint64() (uint64, error) {
	b, err := d.r.Peek(8)
	if err != nil {
		if len(b) > 0 {
			err = noEOF(err)
		}
		return 0, err
	}
	v := binary.BigEndian.Uint64(b)
	d.read += 8
	_, err = d.r.Discard(8)
	return v, err
}

// readStep is how much room is made before any of it is read.
const readStep = 1 << 20

// readBytes reads size bytes, at most limit. Room grows with what arrives: a length is
// believed only that far.
func readBytes(r io.Reader, size uint64, limit int) ([]byte, error) {
	if size > uint64(limit) {
		return nil, errTooLarge
	}
	n := int(size)
	b := make([]byte, min(n, readStep))
	for done := 0; ; {
		k, err := io.ReadFull(r, b[done:])
		done += k
		if err != nil {
			return nil, noEOF(err)
		}
		if done == n {
			return b, nil
		}
		b = append(b, make([]byte, min(n-done, done))...)
	}
}

// noEOF makes the end of a stream within a message an error of its own.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
