package index

import (
	"fmt"
	"math/bits"
	"sync/atomic"

	"quorate/internal/kv"
)

// Writer makes many changes to a Tree. It is what Put, Delete and Compact of Tree are
// made of, but changes in place what it has copied itself since the last call of Tree,
// so a batch of changes copies each node at most once.
//
// A Writer is for one goroutine. It can be read like a Tree, between changes; it must not
// be changed from within Ascend and its like.
type Writer struct {
	tree
	tag  uint64
	path []step // from the root to the parent of the leaf in question
}

// tree keeps the embedded Tree from being taken out without Writer.Tree.
type tree = Tree

// step is one inner node on the way down and the child that the way goes on to.
type step struct {
	n   *inner
	kid int
}

// tags tell the nodes of different writers, and of one writer before and after Tree,
// apart. Zero is the tag of nodes that nobody may change.
var tags atomic.Uint64

// Edit returns a Writer that starts with t.
func (t Tree) Edit() *Writer { return &Writer{tree: t, tag: tags.Add(1)} }

// Tree returns all changes so far as a Tree that stays as it is while the Writer goes on.
func (w *Writer) Tree() Tree {
	w.tag = tags.Add(1)
	return w.tree
}

// Put is Tree.Put.
func (w *Writer) Put(key []byte, rev kv.Revision) (prev Entry, live bool) {
	w.advance(rev)
	l, i, found := w.descend(key)
	r := row{mod: rev, create: rev.Main, version: 1}
	if !found {
		w.insert(l, i, key, r)
		return Entry{}, false
	}
	if live = !l.isDead(i); live {
		prev = l.entry(i, key)
		r.create, r.version = prev.Create, prev.Version+1
	}
	w.change(l, i, r, false)
	return prev, live
}

// Delete is Tree.Delete.
func (w *Writer) Delete(key []byte, rev kv.Revision) (prev Entry, live bool) {
	l, i, found := w.descend(key)
	if !found || l.isDead(i) {
		return Entry{}, false
	}
	w.advance(rev)
	prev = l.entry(i, key)
	w.change(l, i, row{mod: rev, create: rev.Main, version: 1}, true)
	return prev, true
}

// advance notes that rev is the newest change.
func (w *Writer) advance(rev kv.Revision) {
	if !w.last.Less(rev) || uint64(rev.Sub) > subMax {
		panic(fmt.Sprintf("index: change at %v after one at %v", rev, w.last))
	}
	w.last = rev
}

// descend finds key's leaf, nil in an empty tree, and sets path.
func (w *Writer) descend(key []byte) (l *leaf, pos int, found bool) {
	w.path = w.path[:0]
	n := w.root
	if n == nil {
		return nil, 0, false
	}
	for {
		kid := n.kidFor(key)
		w.path = append(w.path, step{n, kid})
		if n.leaves != nil {
			l = n.leaves[kid]
			pos, found = l.keys.find(key)
			return l, pos, found
		}
		n = n.inners[kid]
	}
}

// own makes all of path the writer's own, and returns its last step.
func (w *Writer) own() step {
	for d := range w.path {
		s := &w.path[d]
		if s.n.tag == w.tag {
			continue
		}
		s.n = s.n.clone(w.tag)
		if d == 0 {
			w.root = s.n
		} else {
			up := w.path[d-1]
			up.n.inners[up.kid] = s.n
		}
	}
	return w.path[len(w.path)-1]
}

// ownLeaf returns l, at the end of path, as the writer's own.
func (w *Writer) ownLeaf(l *leaf) *leaf {
	s := w.own()
	if l.tag != w.tag {
		l = l.clone(w.tag)
		s.n.leaves[s.kid] = l
	}
	return l
}

// settle tells the nodes of path that the leaf below has changed, and has more live keys.
func (w *Writer) settle(l *leaf, more int64) {
	dirty := l.dirty()
	for d := len(w.path) - 1; d >= 0; d-- {
		s := w.path[d]
		s.n.set(s.kid, s.n.live[s.kid]+more, dirty)
		dirty = s.n.dirty != 0
	}
}

// change makes r the current change of a key that is there.
func (w *Writer) change(l *leaf, i int, r row, dead bool) {
	l = w.ownLeaf(l)
	was := l.live()
	l.remember(i)
	l.set(i, r, dead)
	w.settle(l, l.live()-was)
}

// insert adds a key that is not there.
func (w *Writer) insert(l *leaf, i int, key []byte, r row) {
	if l == nil {
		var g gather
		g.text = append(g.text, key...)
		g.put(r, false, nil)
		w.root = &inner{leaves: []*leaf{g.leaf(w.tag)}, live: []int64{1}, tag: w.tag}
		return
	}
	if !l.full() {
		l = w.ownLeaf(l)
		l.insert(i, key, r)
		w.settle(l, 1)
		return
	}
	s := w.own()
	var left, right *leaf
	if i == l.len() && w.rightmost() {
		// Keys that come in order leave full leaves behind.
		var g gather
		g.text = append(g.text, key...)
		g.put(r, false, nil)
		left, right = l, g.leaf(w.tag)
	} else {
		mid := l.keys.middle()
		left, right = l.slice(0, mid, w.tag), l.slice(mid, l.len(), w.tag)
		if i <= mid {
			left.insert(i, key, r)
		} else {
			right.insert(i-mid, key, r)
		}
	}
	s.n.leaves[s.kid] = left
	w.grow(separator(left.keys.appendKey(nil, left.len()-1), right.keys.appendKey(nil, 0)), right)
}

// rightmost reports whether path leads to the last leaf.
func (w *Writer) rightmost() bool {
	for _, s := range w.path {
		if s.kid != s.n.len()-1 {
			return false
		}
	}
	return true
}

// separator is the shortest key that is after left and not after right.
func separator(left, right []byte) []byte {
	return right[:common(left, right)+1]
}

// grow puts leaf l behind the one at the end of path, which has changed, and splits the
// nodes above that are full. The path must be the writer's own; it is void afterwards.
func (w *Writer) grow(sep []byte, l *leaf) {
	var k *inner
	for d := len(w.path) - 1; d >= 0; d-- {
		n, kid := w.path[d].n, w.path[d].kid
		n.update(kid)
		if l == nil && k == nil {
			continue
		}
		if !n.full() {
			n.insert(kid+1, sep, l, k)
			l, k = nil, nil
			continue
		}
		mid := n.len() / 2
		up := n.seps.appendKey(nil, mid-1)
		left, right := n.slice(0, mid, w.tag), n.slice(mid, n.len(), w.tag)
		if kid < mid {
			left.insert(kid+1, sep, l, k)
		} else {
			right.insert(kid+1-mid, sep, l, k)
		}
		sep, l, k = up, nil, right
		if d > 0 {
			above := w.path[d-1]
			above.n.inners[above.kid] = left
			continue
		}
		w.root = &inner{
			seps:   packKeys(1, func(int) []byte { return sep }),
			inners: []*inner{left, right},
			live:   make([]int64, 2),
			tag:    w.tag,
		}
		w.root.update(0)
		w.root.update(1)
	}
}

// Compact is Tree.Compact.
func (w *Writer) Compact(key []byte, rev int64) {
	l, i, found := w.descend(key)
	if !found {
		return
	}
	if h, gone := l.compact(i, rev); gone || h != l.history(i) {
		w.forget(l, i, i+1, rev)
	}
}

// Sweep does Compact for all keys from key from on, until it has been through at most
// leaves (1 or more) leaves that had something to look at; a leaf has up to 32 keys. It
// returns where to go on, or more false at the end. Keys without older changes cost
// nothing, whole subtrees of them are stepped over.
func (w *Writer) Sweep(from []byte, rev int64, leaves int) (next []byte, more bool) {
	for ; leaves > 0; leaves-- {
		l, after, bounded := w.descendDirty(from)
		if l == nil {
			return nil, false
		}
		i, _ := l.keys.find(from)
		w.forget(l, i, l.len(), rev)
		if !bounded {
			return nil, false
		}
		from = after
	}
	return from, true
}

// descendDirty sets path to the first dirty leaf with keys at or after from, and returns
// it and the separator behind it, if there is one. l is nil if there is no such leaf.
func (w *Writer) descendDirty(from []byte) (l *leaf, after []byte, bounded bool) {
	w.path = w.path[:0]
	if w.root == nil {
		return nil, nil, false
	}
	n, kid := w.root, w.root.kidFor(from)
	for {
		switch next := n.nextDirty(kid); {
		case next >= 0:
			w.path = append(w.path, step{n, next})
			if n.leaves != nil {
				for d := len(w.path) - 1; d >= 0; d-- {
					if s := w.path[d]; s.kid < s.n.seps.len() {
						return n.leaves[next], s.n.seps.appendKey(nil, s.kid), true
					}
				}
				return n.leaves[next], nil, false
			}
			n = n.inners[next]
			if next == kid {
				kid = n.kidFor(from)
			} else {
				kid = 0
			}
		case len(w.path) == 0:
			return nil, nil, false
		default: // nothing dirty further right here: one up, one to the right
			last := len(w.path) - 1
			n, kid = w.path[last].n, w.path[last].kid+1
			w.path = w.path[:last]
		}
	}
}

// compact returns what of key i's older changes a compaction at rev leaves, and whether
// it leaves nothing of the key at all.
func (l *leaf) compact(i int, rev int64) (h *history, gone bool) {
	if main := l.mod(i).Main; main <= rev {
		return nil, l.isDead(i) && main < rev
	}
	if h = l.history(i); h != nil {
		h = h.compact(rev)
	}
	return h, false
}

// forget compacts the keys of leaf l, at the end of path, from i to j.
func (w *Writer) forget(l *leaf, i, j int, rev int64) {
	var gone uint64
	changed := false
	for at := i; at < j; at++ {
		if (l.has|l.dead)>>at&1 == 0 {
			continue
		}
		h, dropped := l.compact(at, rev)
		if dropped {
			gone |= 1 << at
		} else if h != l.history(at) {
			if !changed {
				l, changed = w.ownLeaf(l), true
			}
			l.setHistory(at, h)
		}
	}
	if gone == 0 {
		if changed {
			w.settle(l, 0)
		}
		return
	}
	s := w.own()
	if bits.OnesCount64(gone) == l.len() {
		w.shrink()
		return
	}
	var g gather
	for at := range l.len() {
		if gone>>at&1 == 0 {
			g.add(l, at, at+1)
		}
	}
	l = g.leaf(w.tag)
	s.n.leaves[s.kid] = l
	w.settle(l, 0)
	if l.small() {
		w.merge()
	}
}

// small leaves and nodes are merged with a neighbour if both together leave room.
func (l *leaf) small() bool {
	return l.len() <= leafMax/4 && len(l.keys.b) <= leafBytesMax/4
}

func (n *inner) small() bool {
	return n.len() <= innerMax/4 && len(n.seps.b) <= innerBytesMax/4
}

// shrink takes the leaf at the end of path out, and nodes that are empty then. The path
// must be the writer's own; it is void afterwards.
func (w *Writer) shrink() {
	for d := len(w.path) - 1; d >= 0; d-- {
		n, kid := w.path[d].n, w.path[d].kid
		if n.len() == 1 {
			if d == 0 {
				w.root = nil
			}
			continue
		}
		n.remove(kid)
		w.path = w.path[:d] // n itself may have become small
		w.refresh()
		w.balance(n)
		return
	}
}

// refresh has the nodes of path take over what has changed below them.
func (w *Writer) refresh() {
	for d := len(w.path) - 1; d >= 0; d-- {
		w.path[d].n.update(w.path[d].kid)
	}
}

// merge joins the leaf at the end of path with a neighbour if they fit. The path must be
// the writer's own; it is void afterwards.
func (w *Writer) merge() {
	last := len(w.path) - 1
	n, kid := w.path[last].n, w.path[last].kid
	for _, left := range []int{kid - 1, kid} {
		if left < 0 || left+1 >= n.len() {
			continue
		}
		a, b := n.leaves[left], n.leaves[left+1]
		if a.len()+b.len() > leafMax*3/4 || len(a.keys.b)+len(b.keys.b) > leafBytesMax*3/4 {
			continue
		}
		var g gather
		g.add(a, 0, a.len())
		g.add(b, 0, b.len())
		n.leaves[left] = g.leaf(w.tag)
		n.remove(left + 1)
		n.update(left)
		w.path = w.path[:last]
		w.refresh()
		w.balance(n)
		return
	}
}

// balance joins node n, below the end of path, with a neighbour if it is small and they
// fit, and so on up; a root with one inner child gives way to it.
func (w *Writer) balance(n *inner) {
	for len(w.path) > 0 && n.small() {
		last := len(w.path) - 1
		up, kid := w.path[last].n, w.path[last].kid
		w.path = w.path[:last]
		for _, left := range []int{kid - 1, kid} {
			if left < 0 || left+1 >= up.len() {
				continue
			}
			a, b := up.inners[left], up.inners[left+1]
			if a.len()+b.len() > innerMax*3/4 || len(a.seps.b)+len(b.seps.b) > innerBytesMax*3/4 {
				continue
			}
			up.inners[left] = join(a, b, up.seps.appendKey(nil, left), w.tag)
			up.remove(left + 1)
			up.update(left)
			break
		}
		n = up
	}
	for w.root.inners != nil && w.root.len() == 1 {
		w.root = w.root.inners[0]
	}
}

// join makes one node of two neighbours and the separator between them.
func join(a, b *inner, sep []byte, tag uint64) *inner {
	n := &inner{
		live:  append(copyOf(a.live), b.live...),
		dirty: a.dirty | b.dirty<<a.len(),
		tag:   tag,
	}
	if a.leaves != nil {
		n.leaves = append(copyOf(a.leaves), b.leaves...)
	} else {
		n.inners = append(copyOf(a.inners), b.inners...)
	}
	var scratch []byte
	n.seps = packKeys(a.seps.len()+1+b.seps.len(), func(i int) []byte {
		switch i -= a.seps.len(); {
		case i < 0:
			scratch = a.seps.appendKey(scratch[:0], i+a.seps.len())
		case i == 0:
			return sep
		default:
			scratch = b.seps.appendKey(scratch[:0], i-1)
		}
		return scratch
	})
	return n
}
