// Package index is the ordered map from keys to their revisions, in memory.
//
// A Tree is immutable: changing it returns a new one that shares what did not change,
// so a reader keeps the state it began with and takes no lock. Nodes count the live keys
// below them, so that counting a range costs O(log n). Entries are packed into few
// pointer-free blocks, because a million keys must cost little more than their bytes.
package index

import "quorate/internal/kv"

// Tree maps keys to revisions. The zero Tree is empty.
type Tree struct{}

// Entry is what a key's current generation is: created at main revision Create, changed
// Version times since, last by Mod. Key is valid as long as the Tree.
type Entry struct {
	Key     []byte
	Mod     kv.Revision
	Create  int64
	Version int64
}

// Put records that key was set at rev. prev is the key's state before, if it was live.
func (t Tree) Put(key []byte, rev kv.Revision) (next Tree, prev Entry, live bool) { panic("unbuilt") }

// Delete records that key, which must be live, was deleted at rev.
func (t Tree) Delete(key []byte, rev kv.Revision) (next Tree, prev Entry, live bool) {
	panic("unbuilt")
}

// Get returns the state of key now, if it is live.
func (t Tree) Get(key []byte) (Entry, bool) { panic("unbuilt") }

// At returns the newest change of key at or below main revision rev, and whether that is
// a tombstone. ok is false where there is none (or it is compacted away).
func (t Tree) At(key []byte, rev int64) (mod kv.Revision, tombstone, ok bool) { panic("unbuilt") }

// Count is the number of live keys in span, in O(log n).
func (t Tree) Count(span kv.Span) int64 { panic("unbuilt") }

// Ascend calls fn with the live keys of span in order until it returns false.
func (t Tree) Ascend(span kv.Span, fn func(Entry) bool) { panic("unbuilt") }

// AscendAt calls fn with the keys of span that were live at main revision rev, and the
// revision each then had, in order, until it returns false.
func (t Tree) AscendAt(span kv.Span, rev int64, fn func(key []byte, mod kv.Revision) bool) {
	panic("unbuilt")
}

// Compact forgets the changes of key that nothing at or above main revision rev can see.
// The rule is etcd's: see docs.
func (t Tree) Compact(key []byte, rev int64) Tree { panic("unbuilt") }
