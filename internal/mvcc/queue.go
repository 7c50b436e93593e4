package mvcc

import (
	"math"
	"slices"

	"quorate/internal/kv"
)

// queue holds the revisions that compactions will drop, in the order in which they become
// due, so that a compaction costs what it frees and not what there is.
//
// A revision of a key is due once a compaction reaches the main revision of the next one.
// A tombstone is due for compactions beyond its own. The store has one queue of each. So
// whatever is cut from both at one revision has with each entry all older ones of its key.
type queue struct {
	chunks []*queueChunk
	head   int // first entry of chunks[0] that is left
}

const queueChunkLen = 1024

type queueChunk struct {
	n    int
	due  int64 // that of the first entry
	list [queueChunkLen]queued
}

type queued struct {
	main int64
	sub  uint32
	due  uint32 // above the chunk's
}

// drop is a revision that compactions at or above due drop.
type drop struct {
	rev kv.Revision
	due int64
}

// push adds rev, which is due no earlier than all before it.
func (q *queue) push(rev kv.Revision, due int64) {
	c := (*queueChunk)(nil)
	if n := len(q.chunks); n > 0 {
		c = q.chunks[n-1]
	}
	if c == nil || c.n == queueChunkLen || due-c.due > math.MaxUint32 {
		c = &queueChunk{due: due}
		q.chunks = append(q.chunks, c)
	}
	c.list[c.n] = queued{main: rev.Main, sub: uint32(rev.Sub), due: uint32(due - c.due)}
	c.n++
}

// bound is a revision up to rev at which about limit chunks are due, at least, if as many
// are.
func (q *queue) bound(rev int64, limit int) int64 {
	if len(q.chunks) <= limit {
		return rev
	}
	last := q.chunks[limit-1]
	return min(rev, last.dueOf(last.n-1))
}

// cut removes and returns the entries that are due at main revision rev.
func (q *queue) cut(rev int64) queue {
	n := 0
	for n < len(q.chunks) && q.chunks[n].dueOf(q.chunks[n].n-1) <= rev {
		n++
	}
	cut := queue{chunks: slices.Clone(q.chunks[:n]), head: q.head}
	if n > 0 {
		clear(q.chunks[:n])
		q.chunks, q.head = q.chunks[n:], 0
	}
	if !q.due(rev) {
		return cut
	}
	part := *q.chunks[0]
	for q.due(rev) {
		q.head++ // there is an entry behind, which is not due
	}
	part.n = q.head
	cut.chunks = append(cut.chunks, &part)
	return cut
}

// due reports whether anything is, at main revision rev.
func (q *queue) due(rev int64) bool {
	return len(q.chunks) > 0 && q.chunks[0].dueOf(q.head) <= rev
}

// dueOf is the main revision at which entry i is due.
func (c *queueChunk) dueOf(i int) int64 { return c.due + int64(c.list[i].due) }

// appendTo appends all revisions that the queue holds to revs.
func (q *queue) appendTo(revs []kv.Revision) []kv.Revision {
	revs = slices.Grow(revs, len(q.chunks)*queueChunkLen)
	head := q.head
	for _, c := range q.chunks {
		for _, e := range c.list[head:c.n] {
			revs = append(revs, kv.Revision{Main: e.main, Sub: int64(e.sub)})
		}
		head = 0
	}
	return revs
}
