package index

import (
	"encoding/binary"
	"math/bits"

	"quorate/internal/kv"
)

// A leaf is full with leafMax keys, or with more than one key and leafBytesMax of text.
// More keys to a leaf would save a few bytes a key and cost every put of a new key, which
// copies the leaf. Masks have room for 64.
const (
	leafMax      = 32
	leafBytesMax = 4 << 10
)

// leaf holds keys and their current changes.
//
// A change is a row of four numbers, each in as many bytes as the largest of the leaf
// needs, little-endian:
//
//	Mod.Main - base | Mod.Main - Create | Version - 1 | Mod.Sub
//
// so keys that were written once and alone cost only what their revisions differ by. The
// row of a dead key is that of its tombstone, as if created and changed by it alone.
type leaf struct {
	keys  block
	rows  []byte     // n rows, and rowPad bytes so that 8 bytes can be read at each number
	hist  []*history // of the keys in has, in order; not changed in place
	has   uint64     // keys that have older changes, a bit each
	dead  uint64     // keys whose current change is a tombstone
	base  int64
	shape shape
	tag   uint64 // the writer that may change the leaf in place
}

const rowPad = 8

// shape is the width of each number of a row, 0 to 8 bytes.
type shape [4]uint8

func (s shape) stride() int { return int(s[0]) + int(s[1]) + int(s[2]) + int(s[3]) }

// row is a change as its parts.
type row struct {
	mod             kv.Revision
	create, version int64
}

// numbers are what is stored of r in a leaf with the given base.
func (r *row) numbers(base int64) [4]uint64 {
	return [4]uint64{
		uint64(r.mod.Main - base), uint64(r.mod.Main - r.create), uint64(r.version - 1), uint64(r.mod.Sub),
	}
}

func width(v uint64) uint8 { return uint8(bits.Len64(v)+7) / 8 }

func (l *leaf) len() int          { return l.keys.len() }
func (l *leaf) isDead(i int) bool { return l.dead>>i&1 != 0 }
func (l *leaf) live() int64       { return int64(l.len() - bits.OnesCount64(l.dead)) }

// dirty reports whether a compaction may find something to forget.
func (l *leaf) dirty() bool { return l.dead|l.has != 0 }

// load reads the number of w bytes at the start of b, which must have 8.
func load(b []byte, w uint8) uint64 {
	return binary.LittleEndian.Uint64(b) & (1<<(8*uint(w)) - 1)
}

func store(b []byte, w uint8, v uint64) {
	mask := uint64(1)<<(8*uint(w)) - 1
	binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)&^mask|v&mask)
}

func (l *leaf) mod(i int) kv.Revision {
	s := l.shape
	b := l.rows[i*s.stride():]
	main := load(b, s[0])
	return kv.Revision{
		Main: l.base + int64(main),
		Sub:  int64(load(b[s[0]+s[1]+s[2]:], s[3])),
	}
}

func (l *leaf) row(i int) row {
	s := l.shape
	b := l.rows[i*s.stride():]
	main := l.base + int64(load(b, s[0]))
	b = b[s[0]:]
	create := main - int64(load(b, s[1]))
	b = b[s[1]:]
	version := int64(load(b, s[2])) + 1
	b = b[s[2]:]
	return row{kv.Revision{Main: main, Sub: int64(load(b, s[3]))}, create, version}
}

func (l *leaf) entry(i int, key []byte) Entry {
	r := l.row(i)
	return Entry{Key: key, Mod: r.mod, Create: r.create, Version: r.version}
}

// history returns key i's older changes, nil if it has none.
func (l *leaf) history(i int) *history {
	if l.has>>i&1 == 0 {
		return nil
	}
	return l.hist[bits.OnesCount64(l.has&below(i))]
}

// at returns key i's newest change at or below main revision rev.
func (l *leaf) at(i int, rev int64) (mod kv.Revision, tombstone, ok bool) {
	if mod = l.mod(i); mod.Main <= rev {
		return mod, l.isDead(i), true
	}
	h := l.history(i)
	if h == nil {
		return kv.Revision{}, false, false
	}
	c, ok := h.at(rev)
	return c.rev(), c.tombstone(), ok
}

// clone returns a copy that the writer with the given tag may change.
func (l *leaf) clone(tag uint64) *leaf {
	c := *l
	c.tag = tag
	c.rows = append([]byte(nil), l.rows...)
	return &c
}

// The methods below change a leaf in place.

// set makes r key i's current change.
func (l *leaf) set(i int, r row, dead bool) {
	l.dead &^= 1 << i
	if dead {
		l.dead |= 1 << i
	}
	if l.write(i, &r) {
		return
	}
	var buf [leafMax]row
	rows := l.allRows(buf[:0])
	rows[i] = r
	// A leaf that is changed will be again: leave room for the revisions to come.
	l.pack(rows, shape{2})
}

// write stores r as row i if it fits the leaf's shape.
func (l *leaf) write(i int, r *row) bool {
	num := r.numbers(l.base)
	for j, w := range l.shape {
		if width(num[j]) > w {
			return false
		}
	}
	b := l.rows[i*l.shape.stride():]
	for j, w := range l.shape {
		store(b, w, num[j])
		b = b[w:]
	}
	return true
}

// allRows appends all rows to rows.
func (l *leaf) allRows(rows []row) []row {
	for i := range l.len() {
		rows = append(rows, l.row(i))
	}
	return rows
}

// pack stores rows in the narrowest shape, but not narrower than least, that holds them.
func (l *leaf) pack(rows []row, least shape) {
	l.base = rows[0].mod.Main
	for i := range rows {
		l.base = min(l.base, rows[i].mod.Main)
	}
	l.shape = least
	for i := range rows {
		for j, v := range rows[i].numbers(l.base) {
			l.shape[j] = max(l.shape[j], width(v))
		}
	}
	l.rows = make([]byte, len(rows)*l.shape.stride()+rowPad)
	for i := range rows {
		l.write(i, &rows[i])
	}
}

// remember moves key i's current change to its older ones.
func (l *leaf) remember(i int) {
	c := newChange(l.mod(i), l.isDead(i))
	h := l.history(i)
	if h == nil {
		l.setHistory(i, newHistory(c))
	} else if next := h.append(c); next != h {
		l.setHistory(i, next)
	}
}

// setHistory makes h key i's older changes; nil for none.
func (l *leaf) setHistory(i int, h *history) {
	at := bits.OnesCount64(l.has & below(i))
	had := int(l.has >> i & 1)
	hist := make([]*history, 0, len(l.hist)+1)
	hist = append(hist, l.hist[:at]...)
	l.has &^= 1 << i
	if h != nil {
		hist = append(hist, h)
		l.has |= 1 << i
	}
	l.hist = append(hist, l.hist[at+had:]...)
	if len(l.hist) == 0 {
		l.hist = nil
	}
}

// insert puts a new, live key at i, where find says it belongs. The leaf must not be full.
func (l *leaf) insert(i int, key []byte, r row) {
	keys, ok := l.keys.insert(i, key)
	if !ok {
		keys = l.keys.with(i, key)
	}
	old := *l
	l.keys = keys
	l.dead = gap(l.dead, i)
	l.has = gap(l.has, i)
	stride := l.shape.stride()
	l.rows = make([]byte, len(old.rows)+stride)
	copy(l.rows, old.rows[:i*stride])
	copy(l.rows[(i+1)*stride:], old.rows[i*stride:])
	if !l.write(i, &r) {
		var buf [leafMax]row
		rows := append(old.allRows(buf[:0]), row{})
		copy(rows[i+1:], rows[i:])
		rows[i] = r
		l.pack(rows, shape{})
	}
}

// gap shifts the bits from i on up by one.
func gap(mask uint64, i int) uint64 {
	return mask&below(i) | mask&^below(i)<<1
}

// full reports whether the leaf should be split before it takes another key.
func (l *leaf) full() bool {
	return l.len() >= leafMax || l.len() > 1 && len(l.keys.b) > leafBytesMax
}

func (l *leaf) bytes() int64 {
	n := int64(128 + cap(l.keys.b) + cap(l.rows) + 8*cap(l.hist))
	for _, h := range l.hist {
		n += h.bytes()
	}
	return n
}

// slice returns a leaf of the keys from i to j, which may not be empty.
func (l *leaf) slice(i, j int, tag uint64) *leaf {
	var g gather
	g.add(l, i, j)
	return g.leaf(tag)
}

// gather collects keys, in order, for a new leaf.
type gather struct {
	text []byte
	ends []int
	rows []row
	hist []*history
	has  uint64
	dead uint64
}

func (g *gather) len() int { return len(g.ends) }

// add takes over the keys of l from i to j.
func (g *gather) add(l *leaf, i, j int) {
	for ; i < j; i++ {
		g.text = l.keys.appendKey(g.text, i)
		g.put(l.row(i), l.isDead(i), l.history(i))
	}
}

// put ends the key that was appended to g.text.
func (g *gather) put(r row, dead bool, h *history) {
	bit := uint64(1) << len(g.ends)
	g.ends = append(g.ends, len(g.text))
	g.rows = append(g.rows, r)
	if dead {
		g.dead |= bit
	}
	if h != nil {
		g.has |= bit
		g.hist = append(g.hist, h)
	}
}

func (g *gather) key(i int) []byte {
	if i == 0 {
		return g.text[:g.ends[0]]
	}
	return g.text[g.ends[i-1]:g.ends[i]]
}

// leaf makes a leaf of what was collected, at least one and at most leafMax keys.
func (g *gather) leaf(tag uint64) *leaf {
	l := &leaf{keys: packKeys(g.len(), g.key), has: g.has, dead: g.dead, tag: tag}
	if len(g.hist) > 0 {
		l.hist = append([]*history(nil), g.hist...)
	}
	l.pack(g.rows, shape{})
	return l
}

// reset empties g and keeps its memory.
func (g *gather) reset() {
	clear(g.hist)
	*g = gather{text: g.text[:0], ends: g.ends[:0], rows: g.rows[:0], hist: g.hist[:0]}
}
