package wal

import (
	"bytes"
	"slices"

	"go.etcd.io/raft/v3/raftpb"
)

// replay puts together what the records of a log say, oldest first. It checks what Raft
// promises of a log, for a record's type and place are not part of its checksum.
type replay struct {
	r        *reader // of the segment that is being read
	metadata []byte
	md       Metadata
	state    state
	hasState bool
	marks    []Snapshot
	safe     Snapshot // the newest mark at or below the commit index: it will be used, or one after it
	hasSafe  bool

	// entries[i] has index base+i; they begin after safe.
	entries []*raftpb.Entry
	base    uint64
	slab    entrySlab

	// last is the index of the entry or mark that the log ends with, term that entry's.
	last, term uint64
	hasEntry   bool

	// unsettled says that the last record is a mark beyond the commit index, before which
	// the log ended with lastBefore.
	unsettled  bool
	lastBefore uint64
}

func (p *replay) see(rec record, off int64) error {
	ok := true
	p.unsettled = false
	switch rec.typ {
	case typeMetadata:
		if p.metadata != nil {
			if !bytes.Equal(p.metadata, rec.data) {
				return p.r.damage(off, "it belongs to another member or cluster than the segments before it")
			}
			break
		}
		p.metadata = bytes.Clone(rec.data)
		p.md, ok = parseMetadata(rec.data)
	case typeEntry:
		var v entryView
		if v, ok = parseEntry(rec.data); ok {
			return p.entry(v, off)
		}
	case typeState:
		var s state
		if s, ok = parseState(rec.data); ok {
			if s.term < p.state.term || s.commit < p.state.commit {
				return p.r.damage(off, "the hard state goes back from term %d, commit %d to term %d, commit %d",
					p.state.term, p.state.commit, s.term, s.commit)
			}
			p.state, p.hasState = s, true
			p.advance()
		}
	case typeSnapshot:
		var s Snapshot
		if s, ok = parseSnapshot(rec.data); ok {
			p.unsettled, p.lastBefore = s.Index > p.state.commit, p.last
			p.marks = append(p.marks, s)
			p.last = max(p.last, s.Index)
			p.advance()
		}
	}
	if !ok {
		return p.r.damage(off, "the payload of a record of type %d is malformed", rec.typ)
	}
	return nil
}

func (p *replay) entry(v entryView, off int64) error {
	before := p.termBefore(v.index)
	switch {
	case v.term < before:
		return p.r.damage(off, "entry %d goes back from term %d to %d", v.index, before, v.term)
	case p.hasState && v.index <= p.state.commit && v.index <= p.last:
		return p.r.damage(off, "entry %d replaces a committed one", v.index)
	case p.hasEntry && v.index > p.last+1:
		return p.r.damage(off, "entries %d to %d are missing", p.last+1, v.index-1)
	}
	p.last, p.term, p.hasEntry = v.index, v.term, true
	if p.hasSafe && v.index <= p.safe.Index {
		return nil
	}
	e := p.slab.entry(v)
	switch {
	case len(p.entries) == 0, v.index < p.base, v.index > p.base+uint64(len(p.entries)):
		// A later index than the next can only follow a mark, see above: a snapshot of
		// the leader's has taken the place of what was there.
		p.entries, p.base = append(p.entries[:0], e), v.index
	default:
		p.entries = append(p.entries[:v.index-p.base], e)
	}
	return nil
}

// termBefore is the term of the entry that one at index is put behind, 0 if it is not known.
// One that takes the place of others may have a lower term than those: a new leader's
// uncommitted entries, of whatever terms, replace what an earlier one left.
func (p *replay) termBefore(index uint64) uint64 {
	switch {
	case index > p.last:
		return p.term
	case index > p.base && index-1 < p.base+uint64(len(p.entries)):
		return p.entries[index-1-p.base].GetTerm()
	case p.hasSafe && index == p.safe.Index+1:
		return p.safe.Term
	}
	return 0
}

// advance moves safe to the newest mark that is committed, and forgets entries up to it.
func (p *replay) advance() {
	i := len(p.marks)
	for i > 0 && p.marks[i-1].Index > p.state.commit {
		i--
	}
	if i == 0 {
		return
	}
	p.safe, p.hasSafe = p.marks[i-1], true
	p.marks = slices.Delete(p.marks, 0, i-1)
	if n := len(p.entries); n > 0 && p.safe.Index >= p.base {
		drop := min(uint64(n), p.safe.Index-p.base+1)
		if p.entries[drop-1].GetTerm() != p.safe.Term {
			// A leader's snapshot has taken the place of entries that were never
			// committed, and of all that followed them.
			drop, p.last = uint64(n), p.safe.Index
		}
		p.entries = p.entries[drop:]
		p.base += drop
	}
	if len(p.entries) == 0 {
		p.term = p.safe.Term // what comes next follows the mark, not what it replaced
	}
}

// undoMark forgets the last record, an unsettled mark.
func (p *replay) undoMark() {
	p.marks = p.marks[:len(p.marks)-1]
	p.last, p.unsettled = p.lastBefore, false
}

// finish checks what the log as a whole says, which ends at off of the last segment.
// synced is the index that is known to have been on disk.
func (p *replay) finish(synced uint64, off int64) (*Recovered, error) {
	switch last := p.last; {
	case p.metadata == nil:
		return nil, p.r.damage(off, "no record says which member the log belongs to")
	case !p.hasSafe:
		return nil, p.r.damage(off, "it has no snapshot mark at or below commit index %d", p.state.commit)
	case len(p.entries) > 0 && p.base != p.safe.Index+1:
		return nil, p.r.damage(off, "entries %d to %d are missing", p.safe.Index+1, p.base-1)
	case p.state.commit > last:
		return nil, p.r.damage(off, "the log ends with entry %d, but entries up to %d were committed", last, p.state.commit)
	case synced > last:
		return nil, p.r.damage(off, "the log ends with entry %d, but entries up to %d were on disk and have been applied", last, synced)
	}
	rec := &Recovered{Metadata: p.md, Snapshot: p.safe, Entries: p.entries}
	if p.hasState {
		// What was applied was committed, even if no hard state that says so was synced.
		p.state.commit = max(p.state.commit, synced)
		rec.HardState = p.state.hardState()
	}
	return rec, nil
}
