package wal

// judge decides about the end of a segment: b is why there is no record at off. If off
// is the end of the segment or of the log, it returns where what is not zero ends; else
// it returns a DamageError.
//
// A crash in the middle of an append leaves each sector of it either written or as it
// was before, zero; nothing follows it. So a tail is torn only if
//
//  1. a sector's share of the bad record is all zero (or the file ends inside it), which
//     is how etcd tells too, and
//  2. nothing follows that was written later.
//
// What was written later is known exactly in a group of ours: everything after its
// length, but for the mark by which a start has cut it off, which may be torn itself.
// Where the mark of a group is itself lost, it is any later mark. etcd writes no
// marks, so behind its records it is any valid record, though that may refuse a tail that
// was torn in several places.
func (r *reader) judge(off int64, g group, b *bad, last bool) (end int64, err error) {
	if end, err = r.lastNonzero(off); err != nil {
		return 0, err
	}
	inside := off < g.end
	switch {
	case off == 0:
		return 0, r.damage(0, "the segment has no beginning")
	case inside && g.whole:
		return 0, r.damage(off, "%s, though the write that it is part of is whole", b.reason)
	case !last && end > off:
		return 0, r.damage(off, "%s, and a later segment follows", b.reason)
	case end == off:
		// Zeros to the end. If records are missing here and a later segment follows, its
		// first record will not continue the sum.
		return end, nil
	}
	torn, err := r.torn(off, b)
	if err != nil {
		return 0, err
	}
	if !torn {
		return 0, r.damage(off, "%s, and no part of it is missing", b.reason)
	}
	later := int64(-1)
	switch {
	case inside:
		if end > max(g.end, off+markBytes) {
			later = g.end
		}
	case g.end == off:
		later, err = r.search(off+8, end, r.isMark)
	default:
		later, err = r.search(off+8, end, r.isRecord)
	}
	if err != nil {
		return 0, err
	}
	if later >= 0 {
		return 0, r.damage(off, "%s, but at byte %d follows what was written later", b.reason, later)
	}
	return end, nil
}

// torn reports whether the bad record at off can be one that was not written to its end.
func (r *reader) torn(off int64, b *bad) (bool, error) {
	if b.short {
		return true, nil
	}
	var from, to int64
	switch {
	case b.body > 0:
		from, to = off+frameBytes, off+frameBytes+b.body
	case b.zeros:
		from, to = off, (off/sectorBytes+1)*sectorBytes
	default:
		return false, nil
	}
	all, err := r.at(from, to-from)
	if err != nil {
		return false, err
	}
	for len(all) > 0 {
		n := min(int64(len(all)), sectorBytes-from%sectorBytes)
		if isZero(all[:n]) {
			return true, nil
		}
		all = all[n:]
		from += n
	}
	return false, nil
}

// search is the first offset in [off, end) where found holds, -1 if there is none.
// Records lie at multiples of 8.
func (r *reader) search(off, end int64, found func(off int64) (bool, error)) (int64, error) {
	for ; off < end; off += 8 {
		ok, err := found(off)
		if err != nil {
			return 0, err
		}
		if ok {
			return off, nil
		}
	}
	return -1, nil
}

func (r *reader) isMark(off int64) (bool, error) {
	rec, _, b, err := r.record(off)
	return err == nil && b == nil && isMark(rec, off), err
}

// isRecord reports whether the bytes at off are so much like a record that they must be
// one: its frame, its fields and those of its payload.
func (r *reader) isRecord(off int64) (bool, error) {
	rec, _, b, err := r.record(off)
	if err != nil || b != nil {
		return false, err
	}
	switch rec.typ {
	case typeMetadata:
		_, ok := parseMetadata(rec.data)
		return ok, nil
	case typeEntry:
		v, ok := parseEntry(rec.data)
		return ok && v.term != 0, nil
	case typeState:
		_, ok := parseState(rec.data)
		return ok, nil
	case typeSnapshot:
		_, ok := parseSnapshot(rec.data)
		return ok, nil
	default:
		return len(rec.data) == 0 || len(rec.data) == markDataBytes, nil
	}
}
