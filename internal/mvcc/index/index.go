// Package index is the ordered map from keys to their revisions, in memory.
//
// A Tree is immutable: changing it gives a new one that shares what did not change, so a
// reader keeps the state it began with and takes no lock. It is a B+tree. Inner nodes
// count the live keys below each child, so that counting a range costs O(log n). A leaf
// packs up to 32 keys, without their common prefix, into one pointer-free block and the
// keys' current revisions into another: a million keys must cost little more than their
// bytes, and the collector should have little to follow.
//
// A key that was deleted stays as a dead entry until compaction forgets it. Older
// revisions of a key are a list of their own, which only grows at its end and is shared
// by all trees that know the key.
//
// # One writer
//
// Any number of goroutines may read any number of trees while one goroutine makes new
// ones. Trees form a line, not a bush: each change must be made to the newest tree,
// because the lists of older revisions are appended to in place. A change to an older
// tree panics where it can be noticed. For many changes in a row use a Writer (Tree.Edit),
// which copies what it changes once and not once per change.
package index

import (
	"math/bits"

	"quorate/internal/kv"
)

// Tree maps keys to revisions. The zero Tree is empty.
type Tree struct {
	root *inner
	last kv.Revision // the newest change
}

// Entry is what a key's current generation is: created at main revision Create, changed
// Version times since, last by Mod. Key is never changed and may be kept.
type Entry struct {
	Key     []byte
	Mod     kv.Revision
	Create  int64
	Version int64
}

// Put records that key was set at rev, which must be after every change of key so far.
// prev is the key's state before, if it was live; its Key is the given one. The tree
// copies key.
func (t Tree) Put(key []byte, rev kv.Revision) (next Tree, prev Entry, live bool) {
	w := t.Edit()
	prev, live = w.Put(key, rev)
	return w.Tree(), prev, live
}

// Delete records that key was deleted at rev. Where key is not live, live is false and
// next is t.
func (t Tree) Delete(key []byte, rev kv.Revision) (next Tree, prev Entry, live bool) {
	w := t.Edit()
	prev, live = w.Delete(key, rev)
	return w.Tree(), prev, live
}

// Compact forgets the changes of key that nothing at or above main revision rev can see.
//
// The rule is etcd's: of the changes at or below rev only the newest stays, and that only
// if it is not a tombstone of before rev. (A tombstone of exactly rev stays: watchers may
// still start there.) A key with no change left is gone.
func (t Tree) Compact(key []byte, rev int64) Tree {
	w := t.Edit()
	w.Compact(key, rev)
	return w.Tree()
}

// Last is the newest change that the tree knows of, compacted or not.
func (t Tree) Last() kv.Revision { return t.last }

// Get returns the state of key now, if it is live. The entry's Key is the given one.
func (t Tree) Get(key []byte) (Entry, bool) {
	l, i, found := t.seek(key)
	if !found || l.isDead(i) {
		return Entry{}, false
	}
	return l.entry(i, key), true
}

// At returns the newest change of key at or below main revision rev, and whether that is
// a tombstone. ok is false where there is none (or it is compacted away).
func (t Tree) At(key []byte, rev int64) (mod kv.Revision, tombstone, ok bool) {
	l, i, found := t.seek(key)
	if !found {
		return kv.Revision{}, false, false
	}
	return l.at(i, rev)
}

// Survivor returns the one change of key at or below main revision rev that a compaction
// at rev keeps, and whether it is a tombstone.
//
// Readers and the file need the survivor in either case. etcd's HashKV leaves out a
// tombstone: at hash revision r it takes of the changes at or below the compacted
// revision only those that Survivor(key, r) names and that are no tombstones. If there is
// no such change in the whole store, it takes them all.
func (t Tree) Survivor(key []byte, rev int64) (mod kv.Revision, tombstone, ok bool) {
	mod, tombstone, ok = t.At(key, rev)
	if ok && tombstone && mod.Main < rev {
		return kv.Revision{}, false, false
	}
	return mod, tombstone, ok
}

// Len is the number of live keys.
func (t Tree) Len() int64 {
	if t.root == nil {
		return 0
	}
	return t.root.total()
}

// Count is the number of live keys in span, in O(log n).
func (t Tree) Count(span kv.Span) int64 {
	if span.Single() {
		if _, ok := t.Get(span.Key); ok {
			return 1
		}
		return 0
	}
	if t.root == nil {
		return 0
	}
	upper := t.root.total
	if !span.Unbounded() {
		upper = func() int64 { return t.rank(span.End) }
	}
	return max(0, upper()-t.rank(span.Key))
}

// rank is the number of live keys before key.
func (t Tree) rank(key []byte) int64 {
	var sum int64
	n := t.root
	for {
		i := n.kidFor(key)
		for _, live := range n.live[:i] {
			sum += live
		}
		if n.leaves != nil {
			l := n.leaves[i]
			pos, _ := l.keys.find(key)
			return sum + int64(bits.OnesCount64(^l.dead&below(pos)))
		}
		n = n.inners[i]
	}
}

// seek finds key's leaf and its place there.
func (t Tree) seek(key []byte) (l *leaf, pos int, found bool) {
	n := t.root
	if n == nil {
		return nil, 0, false
	}
	for n.leaves == nil {
		n = n.inners[n.kidFor(key)]
	}
	l = n.leaves[n.kidFor(key)]
	pos, found = l.keys.find(key)
	return l, pos, found
}

// Ascend calls fn with the live keys of span in order until it returns false.
func (t Tree) Ascend(span kv.Span, fn func(Entry) bool) {
	if span.Single() {
		if e, ok := t.Get(span.Key); ok {
			fn(e)
		}
		return
	}
	var k keyMaker
	t.walk(span, walk{skipDead: true, fn: func(l *leaf, i, j int) bool {
		for ; i < j; i++ {
			if !l.isDead(i) && !fn(l.entry(i, k.key(l, i))) {
				return false
			}
		}
		return true
	}})
}

// AscendAt calls fn with the keys of span that were live at main revision rev, and the
// revision each then had, in order, until it returns false. Keys may be kept.
func (t Tree) AscendAt(span kv.Span, rev int64, fn func(key []byte, mod kv.Revision) bool) {
	if span.Single() {
		if mod, tombstone, ok := t.At(span.Key, rev); ok && !tombstone {
			fn(span.Key, mod)
		}
		return
	}
	var k keyMaker
	t.walk(span, walk{skipDead: rev >= t.last.Main, fn: func(l *leaf, i, j int) bool {
		for ; i < j; i++ {
			if mod, tombstone, ok := l.at(i, rev); ok && !tombstone && !fn(k.key(l, i), mod) {
				return false
			}
		}
		return true
	}})
}

// Revisions is AscendAt without the keys, which cost a copy each: it calls fn with the
// revisions of the keys of span that were live at main revision rev, in key order.
func (t Tree) Revisions(span kv.Span, rev int64, fn func(mod kv.Revision) bool) {
	if span.Single() {
		if mod, tombstone, ok := t.At(span.Key, rev); ok && !tombstone {
			fn(mod)
		}
		return
	}
	t.walk(span, walk{skipDead: rev >= t.last.Main, fn: func(l *leaf, i, j int) bool {
		for ; i < j; i++ {
			if mod, tombstone, ok := l.at(i, rev); ok && !tombstone && !fn(mod) {
				return false
			}
		}
		return true
	}})
}

// RevisionsDown is Revisions in descending key order.
func (t Tree) RevisionsDown(span kv.Span, rev int64, fn func(mod kv.Revision) bool) {
	if span.Single() {
		t.Revisions(span, rev, fn)
		return
	}
	t.walk(span, walk{skipDead: rev >= t.last.Main, down: true, fn: func(l *leaf, i, j int) bool {
		for j--; j >= i; j-- {
			if mod, tombstone, ok := l.at(j, rev); ok && !tombstone && !fn(mod) {
				return false
			}
		}
		return true
	}})
}

// walk goes through span, which is not single, as w says.
func (t Tree) walk(span kv.Span, w walk) {
	if t.root == nil {
		return
	}
	var end []byte
	if !span.Unbounded() {
		end = span.End
	}
	w.through(t.root, span.Key, end)
}

// Bytes is about how much memory the tree holds, older revisions included. It visits
// every leaf.
func (t Tree) Bytes() int64 {
	if t.root == nil {
		return 0
	}
	return t.root.bytes()
}

// keyMaker puts keys together that are packed in leaves, a block of memory at a time.
type keyMaker struct {
	free  []byte
	block int
}

func (k *keyMaker) key(l *leaf, i int) []byte {
	prefix, suffix := l.keys.prefix(), l.keys.suffix(i)
	if len(prefix) == 0 {
		return suffix
	}
	n := len(prefix) + len(suffix)
	if n > len(k.free) {
		k.block = min(max(2*k.block, 512), 8<<10)
		k.free = make([]byte, max(k.block, n))
	}
	key := k.free[:n:n]
	k.free = k.free[n:]
	copy(key, prefix)
	copy(key[len(prefix):], suffix)
	return key
}

// below is a mask of the n lowest bits.
func below(n int) uint64 { return 1<<n - 1 }
