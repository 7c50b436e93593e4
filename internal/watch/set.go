package watch

import (
	"math/rand/v2"
	"strings"

	"quorate/internal/kv"
)

// flags are what, beside the span, makes watchers see different bytes.
type flags uint8

const (
	withPrev flags = 1 << iota
	noPut
	noDelete
)

// span is a kv.Span to be compared: end is "" for a single key and for no end.
type span struct {
	start, end string
	unbounded  bool
}

func spanOf(s kv.Span) span {
	if s.Unbounded() {
		return span{start: string(s.Key), unbounded: true}
	}
	return span{start: string(s.Key), end: string(s.End)}
}

func (s *span) single() bool { return s.end == "" && !s.unbounded }

// compare orders spans by start, then end, an unbounded one last.
func (s *span) compare(o *span) int {
	if c := strings.Compare(s.start, o.start); c != 0 {
		return c
	}
	switch {
	case s.unbounded == o.unbounded:
		return strings.Compare(s.end, o.end)
	case s.unbounded:
		return 1
	}
	return -1
}

// endsBefore reports whether s ends before o does; neither is a single key.
func (s *span) endsBefore(o *span) bool {
	return !s.unbounded && (o.unbounded || s.end < o.end)
}

// group is the watchers that see the same: one span, one set of flags.
type group struct {
	span
	flags   flags
	size    int        // watchers, in whichever state
	live    []*watcher // those that are live; in a catch-up pass, nil
	sibling *group     // same span, other flags

	// While a batch is matched: which of its events the group sees, and the message
	// made of them.
	hits    []int32
	message *message
}

// wants reports whether the group's filters let an event through.
func (g *group) wants(tombstone bool) bool {
	if tombstone {
		return g.flags&noDelete == 0
	}
	return g.flags&noPut == 0
}

// set is groups by what they watch: a map for single keys, a tree of intervals for
// spans. The zero value is empty.
type set struct {
	keys  map[string]*group // the first of the siblings
	spans *interval
	size  int // watchers
	bytes int // about what they hold
}

// watcherBytes is about what a watcher holds beside its span.
const watcherBytes = 512

// bytes is about what a watcher of s holds.
func (s *span) bytes() int { return watcherBytes + len(s.start) + len(s.end) }

// add returns the group of sp and fl, which it makes if there is none, with one more
// watcher in it.
func (s *set) add(sp span, fl flags) *group {
	s.size++
	s.bytes += sp.bytes()
	first := s.find(&sp)
	for g := first; g != nil; g = g.sibling {
		if g.flags == fl {
			g.size++
			return g
		}
	}
	g := &group{span: sp, flags: fl, size: 1}
	if first != nil {
		g.sibling, first.sibling = first.sibling, g
		return g
	}
	if g.single() {
		if s.keys == nil {
			s.keys = map[string]*group{}
		}
		s.keys[g.start] = g
	} else {
		s.spans = s.spans.insert(&interval{group: g, maxEnd: &g.span, priority: rand.Uint32()})
	}
	return g
}

// find returns the first of the groups of sp.
func (s *set) find(sp *span) *group {
	if sp.single() {
		return s.keys[sp.start]
	}
	for n := s.spans; n != nil; {
		switch c := sp.compare(&n.group.span); {
		case c < 0:
			n = n.left
		case c > 0:
			n = n.right
		default:
			return n.group
		}
	}
	return nil
}

// remove takes one watcher off g, and forgets g after the last.
func (s *set) remove(g *group) {
	s.size--
	s.bytes -= g.span.bytes()
	if g.size--; g.size > 0 {
		return
	}
	first := s.find(&g.span)
	if first != g {
		for first.sibling != g {
			first = first.sibling
		}
		first.sibling = g.sibling
		return
	}
	switch {
	case g.single() && g.sibling != nil:
		s.keys[g.start] = g.sibling
	case g.single():
		delete(s.keys, g.start)
		if len(s.keys) == 0 {
			s.keys = nil // a map does not shrink
		}
	case g.sibling != nil:
		s.spans.replace(g.sibling)
	default:
		s.spans = s.spans.remove(&g.span)
	}
}

// match appends to found the first sibling of every span that key lies in.
func (s *set) match(found []*group, key []byte) []*group {
	if g := s.keys[string(key)]; g != nil {
		found = append(found, g)
	}
	return s.spans.match(found, key)
}

// interval is a node of a treap of spans, ordered by start and then end. maxEnd is the
// span below it (its own included) that ends last, so that a search for the spans around
// a key leaves out every subtree that ends before it: O(log n) and what it finds.
type interval struct {
	group       *group // the first of the siblings
	maxEnd      *span
	left, right *interval
	priority    uint32
}

// update sets n.maxEnd from n's children and returns n.
func (n *interval) update() *interval {
	n.maxEnd = &n.group.span
	for _, child := range [...]*interval{n.left, n.right} {
		if child != nil && n.maxEnd.endsBefore(child.maxEnd) {
			n.maxEnd = child.maxEnd
		}
	}
	return n
}

// insert adds x, whose span is not yet in n's tree, and returns the tree.
func (n *interval) insert(x *interval) *interval {
	if n == nil {
		return x
	}
	if x.priority > n.priority {
		x.left, x.right = n.split(&x.group.span)
		return x.update()
	}
	if x.group.compare(&n.group.span) < 0 {
		n.left = n.left.insert(x)
	} else {
		n.right = n.right.insert(x)
	}
	return n.update()
}

// split parts n's tree into what is ordered before sp and after it.
func (n *interval) split(sp *span) (before, after *interval) {
	if n == nil {
		return nil, nil
	}
	if n.group.compare(sp) < 0 {
		n.right, after = n.right.split(sp)
		return n.update(), after
	}
	before, n.left = n.left.split(sp)
	return before, n.update()
}

// merge joins two trees of which a is ordered before b.
func (a *interval) merge(b *interval) *interval {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	case a.priority > b.priority:
		a.right = a.right.merge(b)
		return a.update()
	default:
		b.left = a.merge(b.left)
		return b.update()
	}
}

// remove takes out the node of sp, which must be there, and returns the tree.
func (n *interval) remove(sp *span) *interval {
	switch c := sp.compare(&n.group.span); {
	case c < 0:
		n.left = n.left.remove(sp)
	case c > 0:
		n.right = n.right.remove(sp)
	default:
		return n.left.merge(n.right)
	}
	return n.update()
}

// replace puts g in the place of the group with the same span, which must be there.
func (n *interval) replace(g *group) {
	switch c := g.compare(&n.group.span); {
	case c < 0:
		n.left.replace(g)
	case c > 0:
		n.right.replace(g)
	default:
		n.group = g
	}
	n.update()
}

// match appends the group of every node whose span key lies in.
func (n *interval) match(found []*group, key []byte) []*group {
	for n != nil && (n.maxEnd.unbounded || string(key) < n.maxEnd.end) {
		found = n.left.match(found, key)
		if string(key) < n.group.start {
			return found
		}
		if n.group.unbounded || string(key) < n.group.end {
			found = append(found, n.group)
		}
		n = n.right
	}
	return found
}
