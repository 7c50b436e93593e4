package mvcc

import (
	"math"

	"quorate/internal/kv"
)

// queue holds the revisions that compactions will drop, in the order in which they become
// due, so that a compaction costs what it frees and not what there is.
//
// A revision of a key is due once a compaction reaches the main revision of the next one.
// A tombstone is due for compactions beyond its own. The store has one queue of each:
// tombstones must go last, because while an older revision of its key is in the file,
// only the tombstone keeps the key from coming back when the file is read again.
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

// peek appends to drops what is due at main revision rev, until it holds limit.
func (q *queue) peek(drops []drop, rev int64, limit int) []drop {
	i := q.head
	for _, c := range q.chunks {
		for ; i < c.n; i++ {
			e := c.list[i]
			due := c.due + int64(e.due)
			if due > rev || len(drops) >= limit {
				return drops
			}
			drops = append(drops, drop{kv.Revision{Main: e.main, Sub: int64(e.sub)}, due})
		}
		i = 0
	}
	return drops
}

// pop removes the first n.
func (q *queue) pop(n int) {
	q.head += n
	for len(q.chunks) > 0 && q.head >= q.chunks[0].n {
		q.head -= q.chunks[0].n
		q.chunks[0] = nil
		q.chunks = q.chunks[1:]
	}
	if len(q.chunks) == 0 {
		q.chunks, q.head = nil, 0
	}
}
