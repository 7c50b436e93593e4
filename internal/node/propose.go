package node

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"quorate/internal/auth"
	"quorate/internal/consensus"
	"quorate/internal/fsm"
	"quorate/internal/kv"
	"quorate/internal/wire"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

const (
	// proposalsMax and proposalBytesMax bound what clients wait for at a time; beyond
	// them a proposal gets kv.ErrTooManyRequests.
	proposalsMax     = 100_000
	proposalBytesMax = 256 << 20
	// batchBytesMax bounds one batch of proposals, and so one append to the log.
	batchBytesMax = 8 << 20
	// goneBytesMax bounds what the queue holds that nobody waits for any more, beside as
	// much as what is waited for.
	goneBytesMax = 1 << 20
	// entryOverhead is more than the log needs for an entry beside its data, in bytes.
	entryOverhead = 128
)

// proposal is one request on its way through the log, and the slot for its answer.
type proposal struct {
	id   uint64
	data []byte // InternalRaftRequest; of a change of the membership, ConfChange
	kind raftpb.EntryType
	// only, if not 0, is the one term in which the request makes sense: this member leads
	// it, and what the request says follows from that. It is not proposed in another.
	only uint64
	at   time.Time

	// Guarded by proposals.mu.
	term  uint64 // in which it was handed on last; 0: not yet
	batch *batch // in which it was sent to the leader of that term; nil: this member led

	// Set before done gets its token.
	result fsm.Result
	err    error
	done   chan struct{}
}

// proposals are the requests that clients of this member wait for.
type proposals struct {
	mu      sync.Mutex
	queue   []queued             // not in the log yet, in order of arrival
	waiting map[uint64]*proposal // all, by id
	bytes   int64                // of all
	gone    int64                // bytes in the queue, at most, that nobody waits for any more
	closed  error                // why no more are taken

	lastID atomic.Uint64
	pool   sync.Pool
}

// take returns a proposal with a new id.
func (ps *proposals) take() *proposal {
	p, ok := ps.pool.Get().(*proposal)
	if !ok {
		p = &proposal{done: make(chan struct{}, 1)}
	}
	p.id = ps.lastID.Add(1)
	return p
}

// queued is a proposal that is not in the log yet. It does not point at the proposal,
// which belongs to its client again once the wait is over.
type queued struct {
	id   uint64
	data []byte
	kind raftpb.EntryType
}

// size is what q takes, about.
func (q queued) size() int64 { return int64(len(q.data)) + entryOverhead }

// batch is proposals that were sent to a leader as one message.
type batch struct {
	handed consensus.Handed
	ids    []uint64
	at     time.Time // sent last

	accepted bool // guarded by proposals.mu: one of them was applied, so it has arrived
}

// firstID is where a run of a member begins to count ids that no other member and no
// earlier run uses. It is random: a clock may go back between two runs. From there to the
// end of the numbers is more than anybody can count.
func firstID() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint64(b[:]) >> 1
}

// add takes p in, or says why not. room is how many bytes the log surely takes.
func (ps *proposals) add(p *proposal, room int64) error {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	switch {
	case ps.closed != nil:
		return ps.closed
	case len(ps.waiting) >= proposalsMax, ps.bytes+int64(len(p.data)) > proposalBytesMax:
		return kv.ErrTooManyRequests
	case ps.bytes+int64(len(p.data))+int64(len(ps.waiting)+1)*entryOverhead > room:
		return kv.ErrNoSpace
	}
	ps.waiting[p.id] = p
	ps.bytes += int64(len(p.data))
	ps.queue = append(ps.queue, queued{p.id, p.data, p.kind})
	return nil
}

// batch takes the next proposals from the queue, at most batchBytesMax unless one alone
// is larger. Those whose clients have gone are dropped. leads is the term that this
// member leads, 0 if none: proposals for another end with kv.ErrLeaderChanged.
func (ps *proposals) batch(leads uint64) []queued {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if len(ps.queue) == 0 {
		return nil
	}
	taken, size := 0, 0
	batch := make([]queued, 0, len(ps.queue))
	for _, q := range ps.queue {
		if len(batch) > 0 && size+len(q.data) > batchBytesMax {
			break
		}
		taken++
		p := ps.waiting[q.id]
		if p != nil && p.only != 0 && p.only != leads {
			ps.endLocked(p, kv.ErrLeaderChanged)
			p = nil
		}
		if p == nil {
			ps.gone -= q.size()
			continue
		}
		batch = append(batch, q)
		size += len(q.data)
	}
	rest := copy(ps.queue, ps.queue[taken:])
	clear(ps.queue[rest:])
	ps.queue = ps.queue[:rest]
	return batch
}

// handed notes where a batch went. It returns the batch if it was sent to a leader.
func (ps *proposals) handed(taken []queued, h consensus.Handed, now time.Time) *batch {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	var b *batch
	if h.Number > 0 {
		b = &batch{handed: h, ids: make([]uint64, len(taken)), at: now}
	}
	for i, q := range taken {
		if p := ps.waiting[q.id]; p != nil {
			p.term, p.batch = h.Term, b
		}
		if b != nil {
			b.ids[i] = q.id
		}
	}
	return b
}

// open is those of the batches that may not have arrived. The leader takes them in order,
// so all before one that was accepted have.
func (ps *proposals) open(batches []*batch) []*batch {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for i := len(batches) - 1; i >= 0; i-- {
		if batches[i].accepted {
			return batches[i+1:]
		}
	}
	return batches
}

// again is what of b is still waited for, to be sent again.
func (ps *proposals) again(b *batch) []queued {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	var left []queued
	for _, id := range b.ids {
		if p := ps.waiting[id]; p != nil && p.batch == b {
			left = append(left, queued{p.id, p.data, p.kind})
		}
	}
	return left
}

// reclaim is called once an entry of term is applied: what was handed on in an earlier
// term and is not applied by now never will be, and goes back to the queue, see package
// consensus.
func (ps *proposals) reclaim(term uint64) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	var lost []queued
	for _, p := range ps.waiting {
		if p.term == 0 || p.term >= term {
			continue
		}
		if p.only != 0 {
			ps.endLocked(p, kv.ErrLeaderChanged)
			continue
		}
		p.term, p.batch = 0, nil
		lost = append(lost, queued{p.id, p.data, p.kind})
	}
	slices.SortFunc(lost, func(a, b queued) int { return cmp.Compare(a.id, b.id) })
	ps.queue = append(lost, ps.queue...)
}

// doubt ends the waits for what was handed on up to term: entries that may be theirs were
// replaced by a snapshot.
func (ps *proposals) doubt(term uint64, err error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.waiting {
		if p.term != 0 && p.term <= term {
			ps.endLocked(p, err)
		}
	}
}

// endLocked ends the wait for p with err.
func (ps *proposals) endLocked(p *proposal, err error) {
	ps.remove(p.id)
	p.err = err
	p.done <- struct{}{}
}

// requeue puts a batch that reached no log back to the front.
func (ps *proposals) requeue(taken []queued) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.queue = append(taken, ps.queue...)
}

// answer is the result of the request with an id.
type answer struct {
	id     uint64
	result fsm.Result
}

// finish hands answers to those who still wait for them.
func (ps *proposals) finish(answers []answer) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for i := range answers {
		if p := ps.remove(answers[i].id); p != nil {
			if p.batch != nil {
				p.batch.accepted = true
			}
			p.result = answers[i].result
			p.done <- struct{}{}
		}
	}
}

// remove forgets a proposal. The caller holds mu.
func (ps *proposals) remove(id uint64) *proposal {
	p := ps.waiting[id]
	if p != nil {
		delete(ps.waiting, id)
		ps.bytes -= int64(len(p.data))
		if p.term == 0 {
			ps.gone += queued{data: p.data}.size()
		}
	}
	return p
}

// tidy takes out of the queue what nobody waits for any more, once it is much: while no
// proposal goes on, clients may come, give up and come again. The caller holds mu.
func (ps *proposals) tidy() {
	if ps.gone > ps.bytes+goneBytesMax {
		ps.queue = slices.DeleteFunc(ps.queue, func(q queued) bool { return ps.waiting[q.id] == nil })
		ps.gone = 0
	}
}

// abandon is called by a client that waits no more. It reports whether the proposal was
// still waiting: if not, its answer is in done.
func (ps *proposals) abandon(p *proposal) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	defer ps.tidy()
	return ps.remove(p.id) == p
}

// expire ends the waits that began before t. The requests may yet be applied.
func (ps *proposals) expire(t time.Time, err error) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, p := range ps.waiting {
		if p.at.Before(t) {
			ps.endLocked(p, err)
		}
	}
	ps.tidy()
}

// close ends all waits with err and refuses new proposals with it.
func (ps *proposals) close(err error) {
	ps.mu.Lock()
	ps.closed = err
	ps.mu.Unlock()
	ps.expire(time.Now().Add(time.Hour), err)
}

// Propose replicates one request and returns once this member has applied it. body is
// the request message in wire form, field its place in InternalRaftRequest; body is not
// kept. Errors that the state machine answers with are in Result.Err; the error is about
// the fate of the proposal itself: kv.ErrTooLarge, kv.ErrTooManyRequests, kv.ErrNoSpace
// (never in the log), kv.ErrTimeout, kv.ErrStopped or ctx's (unknown).
//
// The request is the member's own; see ProposeAs for those of clients.
func (n *Node) Propose(ctx context.Context, field wire.Field, body []byte) (fsm.Result, error) {
	return n.ProposeAs(ctx, auth.Identity{}, field, body)
}

// ProposeAs is Propose for a client, who must be as it is known to be by the newest state
// of users while permissions are on. It is checked when the request is applied.
func (n *Node) ProposeAs(ctx context.Context, who auth.Identity, field wire.Field, body []byte) (fsm.Result, error) {
	p, err := n.begin(0, who, field, body)
	if err != nil {
		return fsm.Result{}, err
	}
	return n.await(ctx, p, field)
}

// begin hands a proposal to the loop, to be awaited. If only is not 0 the request is
// proposed in that term alone, while this member leads it; else it ends with
// kv.ErrLeaderChanged.
func (n *Node) begin(only uint64, who auth.Identity, field wire.Field, body []byte) (*proposal, error) {
	p := n.proposals.take()
	h := wire.RequestHeader{ID: p.id, Username: who.User, AuthRevision: who.Revision}
	size := wire.RaftRequestSize(&h, field, len(body))
	if size > n.cfg.MaxRequestBytes {
		n.proposals.pool.Put(p)
		return nil, kv.ErrTooLarge
	}
	room, err := n.admit(field, body)
	if err != nil {
		n.proposals.pool.Put(p)
		return nil, err
	}
	p.data = wire.AppendRaftRequest(make([]byte, 0, size), &h, field, body)
	p.kind, p.only = raftpb.EntryNormal, only
	if err := n.enqueue(p, room); err != nil {
		return nil, err
	}
	return p, nil
}

// proposeChange replicates a change of the membership, whose id it sets, and returns once
// this member has applied it.
func (n *Node) proposeChange(ctx context.Context, cc *raftpb.ConfChange) error {
	p := n.proposals.take()
	cc.Id = new(p.id)
	data, err := proto.Marshal(cc)
	if err != nil {
		return fmt.Errorf("encode a change of the membership: %w", err)
	}
	p.data, p.kind, p.only = data, raftpb.EntryConfChange, 0
	if err := n.enqueue(p, n.room()); err != nil {
		return err
	}
	res, err := n.await(ctx, p, wire.FieldMemberAttributes)
	return cmp.Or(err, res.Err)
}

// enqueue hands p to the loop, or says why not; then p must not be used any more. room is
// how many bytes the log surely takes.
func (n *Node) enqueue(p *proposal, room int64) error {
	p.at = time.Now()
	if err := n.proposals.add(p, room); err != nil {
		p.data = nil
		n.proposals.pool.Put(p)
		return err
	}
	n.inbox.signal()
	return nil
}

// await waits for the answer to p, which is counted as field. p must not be used
// afterwards.
func (n *Node) await(ctx context.Context, p *proposal, field wire.Field) (fsm.Result, error) {
	select {
	case <-p.done:
	case <-ctx.Done():
		if n.proposals.abandon(p) {
			// Not back into the pool: the log may still hold on to its data.
			n.met.ProposalsFailed.Inc()
			return fsm.Result{}, ctx.Err()
		}
		<-p.done
	}
	result, err := p.result, p.err
	n.meter.proposed(field, err == nil && result.Err == nil, time.Since(p.at))
	if err != nil {
		n.met.ProposalsFailed.Inc()
	}
	p.data, p.result, p.err = nil, fsm.Result{}, nil
	p.term, p.batch = 0, nil
	n.proposals.pool.Put(p)
	return result, err
}

// count is how many proposals wait.
func (ps *proposals) count() int {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return len(ps.waiting)
}
