package index

import (
	"bytes"
	"fmt"

	"quorate/internal/kv"
)

// Builder makes a Tree of changes that come sorted by key, and by revision within a key.
// It takes time in proportion to them and leaves every node full.
type Builder struct {
	g    gather
	last kv.Revision

	key     []byte // the key that is being collected
	cur     row    // its newest change so far
	dead    bool
	history *history
	some    bool // there is such a key

	leaves []*leaf
	seps   [][]byte // between the leaves
	edge   []byte   // the last key of the last leaf
}

// Add adds one change of key. create and version are those of the key after the change,
// as its KeyValue tells; they are of no interest for a tombstone. The key is copied. Add
// returns an error if the change is out of order.
func (b *Builder) Add(key []byte, rev kv.Revision, tombstone bool, create, version int64) error {
	if uint64(rev.Sub) > subMax || rev.Main < 0 {
		return fmt.Errorf("change %v of key %q: not a revision", rev, key)
	}
	if tombstone {
		create, version = rev.Main, 1
	}
	r := row{mod: rev, create: create, version: version}
	if b.last.Less(rev) {
		b.last = rev
	}
	switch order := bytes.Compare(b.key, key); {
	case b.some && order == 0:
		if !b.cur.mod.Less(rev) {
			return fmt.Errorf("change %v of key %q comes after %v", rev, key, b.cur.mod)
		}
		c := newChange(b.cur.mod, b.dead)
		if b.history == nil {
			b.history = newHistory(c)
		} else {
			b.history = b.history.append(c)
		}
	case b.some && order > 0:
		return fmt.Errorf("key %q comes after key %q", key, b.key)
	default:
		b.finishKey()
		b.key, b.some = append(b.key[:0], key...), true
	}
	b.cur, b.dead = r, tombstone
	return nil
}

func (b *Builder) finishKey() {
	if !b.some {
		return
	}
	if n := b.g.len(); n >= leafMax || n > 1 && len(b.g.text)+2*n > leafBytesMax {
		b.finishLeaf()
	}
	b.g.text = append(b.g.text, b.key...)
	b.g.put(b.cur, b.dead, b.history)
	b.history, b.some = nil, false
}

func (b *Builder) finishLeaf() {
	if b.g.len() == 0 {
		return
	}
	if len(b.leaves) > 0 {
		b.seps = append(b.seps, bytes.Clone(separator(b.edge, b.g.key(0))))
	}
	b.edge = append(b.edge[:0], b.g.key(b.g.len()-1)...)
	b.leaves = append(b.leaves, b.g.leaf(0))
	b.g.reset()
}

// Tree returns the tree of all that was added. The Builder is of no use afterwards.
func (b *Builder) Tree() Tree {
	b.finishKey()
	b.finishLeaf()
	if len(b.leaves) == 0 {
		return Tree{last: b.last}
	}
	nodes, seps := level(len(b.leaves), b.seps, func(n *inner, i, j int) {
		n.leaves = copyOf(b.leaves[i:j])
	})
	for len(nodes) > 1 {
		below := nodes
		nodes, seps = level(len(below), seps, func(n *inner, i, j int) {
			n.inners = copyOf(below[i:j])
		})
	}
	return Tree{root: nodes[0], last: b.last}
}

// level groups n children, with the separators between them, evenly into nodes, and
// returns these with the separators between them. fill sets a node's children.
func level(n int, seps [][]byte, fill func(node *inner, i, j int)) (nodes []*inner, up [][]byte) {
	groups := (n + innerMax - 1) / innerMax
	for g := range groups {
		i, j := g*n/groups, (g+1)*n/groups
		node := &inner{live: make([]int64, j-i)}
		node.seps = packKeys(j-i-1, func(at int) []byte { return seps[i+at] })
		fill(node, i, j)
		for kid := range j - i {
			node.update(kid)
		}
		nodes = append(nodes, node)
		if j < n {
			up = append(up, seps[j-1])
		}
	}
	return nodes, up
}
