package index

import "math/bits"

// An inner node is full with innerMax children, or with at least four and innerBytesMax
// of separators.
const (
	innerMax      = 64
	innerBytesMax = 4 << 10
)

// inner is a node above leaves or above other inner nodes; all leaves are equally deep.
// Separator i parts child i from child i+1: keys before it are in the former, it and
// those after it in the latter.
type inner struct {
	seps   block
	leaves []*leaf // one of leaves and inners is nil
	inners []*inner
	live   []int64 // live keys below each child
	shared bool    // live is another node's too; most changes leave it as it is
	dirty  uint64  // children below which a compaction may find something to forget
	tag    uint64  // the writer that may change the node in place
}

func (n *inner) len() int { return len(n.live) }

func (n *inner) total() int64 {
	var sum int64
	for _, live := range n.live {
		sum += live
	}
	return sum
}

// kidFor returns the child in whose range key is.
func (n *inner) kidFor(key []byte) int {
	i, found := n.seps.find(key)
	if found {
		i++
	}
	return i
}

// walk is a way through the leaves of a span.
type walk struct {
	skipDead bool // what has no live keys may be left out
	down     bool // from the last leaf to the first
	// fn gets each leaf and which of its keys, from i to j, are in the span. It ends the
	// walk by false.
	fn func(l *leaf, i, j int) bool
}

// through goes through what n has from from on and before to (nil: no end). It returns
// false if fn did.
func (w *walk) through(n *inner, from, to []byte) bool {
	first, last := 0, n.len()-1
	if from != nil {
		first = n.kidFor(from)
	}
	if to != nil {
		last = n.kidFor(to)
	}
	for i := range last - first + 1 {
		kid := first + i
		if w.down {
			kid = last - i
		}
		if w.skipDead && n.live[kid] == 0 {
			continue
		}
		var kidFrom, kidTo []byte
		if kid == first {
			kidFrom = from
		}
		if kid == last {
			kidTo = to
		}
		if n.inners != nil {
			if !w.through(n.inners[kid], kidFrom, kidTo) {
				return false
			}
			continue
		}
		l := n.leaves[kid]
		i, j := 0, l.len()
		if kidFrom != nil {
			i, _ = l.keys.find(kidFrom)
		}
		if kidTo != nil {
			j, _ = l.keys.find(kidTo)
		}
		if i < j && !w.fn(l, i, j) {
			return false
		}
	}
	return true
}

func (n *inner) bytes() int64 {
	sum := int64(160 + cap(n.seps.b) + 8*(cap(n.leaves)+cap(n.inners)+cap(n.live)))
	for _, l := range n.leaves {
		sum += l.bytes()
	}
	for _, k := range n.inners {
		sum += k.bytes()
	}
	return sum
}

// clone returns a copy that the writer with the given tag may change.
func (n *inner) clone(tag uint64) *inner {
	c := *n
	c.tag = tag
	c.leaves = copyOf(n.leaves)
	c.inners = copyOf(n.inners)
	c.shared = true
	return &c
}

func copyOf[T any](s []T) []T {
	if s == nil {
		return nil
	}
	return append(make([]T, 0, len(s)), s...)
}

// full reports whether the node must be split before it takes another child.
func (n *inner) full() bool {
	return n.len() >= innerMax || n.len() >= 4 && len(n.seps.b) > innerBytesMax
}

// slice returns a node of the children from i to j.
func (n *inner) slice(i, j int, tag uint64) *inner {
	s := &inner{tag: tag, seps: n.seps.slice(i, j-1), live: copyOf(n.live[i:j]), dirty: n.dirty >> i & below(j-i)}
	if n.leaves != nil {
		s.leaves = copyOf(n.leaves[i:j])
	} else {
		s.inners = copyOf(n.inners[i:j])
	}
	return s
}

// The methods below change a node in place.

// update takes over what child i says of itself.
func (n *inner) update(i int) {
	if n.leaves != nil {
		l := n.leaves[i]
		n.set(i, l.live(), l.dirty())
	} else {
		k := n.inners[i]
		n.set(i, k.total(), k.dirty != 0)
	}
}

// set says how many live keys are below child i and whether it is dirty.
func (n *inner) set(i int, live int64, dirty bool) {
	if n.live[i] != live {
		if n.shared {
			n.live, n.shared = copyOf(n.live), false
		}
		n.live[i] = live
	}
	n.dirty &^= 1 << i
	if dirty {
		n.dirty |= 1 << i
	}
}

// insert puts a child at i > 0 behind separator sep: l or k, the other being nil. The
// node must not be full.
func (n *inner) insert(i int, sep []byte, l *leaf, k *inner) {
	seps, ok := block{}, false
	if n.seps.n > 0 {
		seps, ok = n.seps.insert(i-1, sep)
	}
	if !ok {
		seps = n.seps.with(i-1, sep)
	}
	n.seps = seps
	if l != nil {
		n.leaves = insertAt(n.leaves, i, l)
	} else {
		n.inners = insertAt(n.inners, i, k)
	}
	n.live, n.shared = insertAt(n.live, i, 0), false
	n.dirty = gap(n.dirty, i)
	n.update(i)
}

func insertAt[T any](s []T, i int, v T) []T {
	next := make([]T, len(s)+1)
	copy(next, s[:i])
	next[i] = v
	copy(next[i+1:], s[i:])
	return next
}

func removeAt[T any](s []T, i int) []T {
	if s == nil {
		return nil
	}
	return append(append(make([]T, 0, len(s)-1), s[:i]...), s[i+1:]...)
}

// remove takes out child i and the separator in front of it (behind it, for the first).
func (n *inner) remove(i int) {
	if last := n.seps.len(); last > 0 {
		gone := max(i-1, 0)
		var scratch []byte
		n.seps = packKeys(last-1, func(at int) []byte {
			if at >= gone {
				at++
			}
			scratch = n.seps.appendKey(scratch[:0], at)
			return scratch
		})
	}
	n.leaves = removeAt(n.leaves, i)
	n.inners = removeAt(n.inners, i)
	n.live, n.shared = removeAt(n.live, i), false
	n.dirty = n.dirty&below(i) | n.dirty>>1&^below(i)
}

// nextDirty returns the first dirty child at or after i, or -1.
func (n *inner) nextDirty(i int) int {
	if m := n.dirty &^ below(i); m != 0 {
		return bits.TrailingZeros64(m)
	}
	return -1
}
