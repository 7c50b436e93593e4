package node

import (
	"errors"
	"slices"
	"testing"
	"time"

	"quorate/internal/consensus"
	"quorate/internal/fsm"
	"quorate/internal/kv"
)

func newProposals() *proposals { return &proposals{waiting: make(map[uint64]*proposal)} }

func newProposal(id uint64, size int) *proposal {
	return &proposal{id: id, data: make([]byte, size), at: time.Unix(100, 0), done: make(chan struct{}, 1)}
}

const plenty = 1 << 40

func TestBatchTakesWhatFitsInOrder(t *testing.T) {
	ps := newProposals()
	for id := uint64(1); id <= 4; id++ {
		if err := ps.add(newProposal(id, batchBytesMax/3), plenty); err != nil {
			t.Fatal(err)
		}
	}
	ids := func(b []queued) (ids []uint64) {
		for _, q := range b {
			ids = append(ids, q.id)
		}
		return ids
	}
	first := ps.batch(0)
	if got := ids(first); len(got) != 3 || got[0] != 1 || got[2] != 3 {
		t.Fatalf("first batch: %v", got)
	}
	ps.requeue(first)
	if got := ids(ps.batch(0)); len(got) != 3 || got[0] != 1 {
		t.Errorf("the same again after requeue: %v", got)
	}
	if got := ids(ps.batch(0)); len(got) != 1 || got[0] != 4 {
		t.Errorf("last batch: %v", got)
	}
	if got := ps.batch(0); got != nil {
		t.Errorf("batch of nothing: %v", ids(got))
	}
}

// A proposal that makes sense in one term is handed on in that term, by the member that
// leads it, or not at all: not by a follower, not in a later term that the member leads
// again, and not once more after it was lost.
func TestProposalOfOneTermIsMadeInNoOther(t *testing.T) {
	for leads, made := range map[uint64]bool{0: false, 4: false, 5: true, 7: false} {
		ps := newProposals()
		p := newProposal(1, 10)
		p.only = 5
		if err := ps.add(p, plenty); err != nil {
			t.Fatal(err)
		}
		if got := len(ps.batch(leads)) == 1; got != made {
			t.Errorf("the leader of term %d makes a proposal of term 5: %v", leads, got)
		}
		if made {
			ps.handed([]queued{{id: 1}}, consensus.Handed{Term: 5}, time.Unix(101, 0))
			ps.reclaim(5)
			if p.err != nil || ps.count() != 1 {
				t.Errorf("given up in its own term: %v", p.err)
			}
			ps.reclaim(6)
		}
		if len(ps.batch(leads)) != 0 || ps.count() != 0 || !errors.Is(p.err, kv.ErrLeaderChanged) {
			t.Errorf("leader of term %d: %d proposals wait, answered with %v", leads, ps.count(), p.err)
		}
	}
}

func TestBatchTakesOneThatIsLargerThanItsBound(t *testing.T) {
	ps := newProposals()
	if err := ps.add(newProposal(1, batchBytesMax+1), plenty); err != nil {
		t.Fatal(err)
	}
	if got := ps.batch(0); len(got) != 1 {
		t.Errorf("batch of %d", len(got))
	}
}

func TestProposalsAreBounded(t *testing.T) {
	ps := newProposals()
	if err := ps.add(newProposal(1, 1000), 1000); !errors.Is(err, kv.ErrNoSpace) {
		t.Errorf("more than there is room for: %v", err)
	}
	if err := ps.add(newProposal(1, proposalBytesMax-10), plenty); err != nil {
		t.Fatal(err)
	}
	if err := ps.add(newProposal(2, 11), plenty); !errors.Is(err, kv.ErrTooManyRequests) {
		t.Errorf("more bytes than the bound: %v", err)
	}
	ps.finish([]answer{{id: 1}})
	if ps.bytes != 0 {
		t.Errorf("%d bytes after the last answer", ps.bytes)
	}
	for id := range uint64(proposalsMax) {
		if err := ps.add(newProposal(id+1, 1), plenty); err != nil {
			t.Fatal(err)
		}
	}
	if err := ps.add(newProposal(proposalsMax+1, 1), plenty); !errors.Is(err, kv.ErrTooManyRequests) {
		t.Errorf("more than the bound: %v", err)
	}
}

func TestAnswerReachesItsProposalOnce(t *testing.T) {
	ps := newProposals()
	p := newProposal(7, 10)
	if err := ps.add(p, plenty); err != nil {
		t.Fatal(err)
	}
	ps.finish([]answer{{id: 6}, {7, fsm.Result{Rev: 42}}, {7, fsm.Result{Rev: 43}}})
	<-p.done
	if p.result.Rev != 42 {
		t.Errorf("result %+v", p.result)
	}
	if ps.abandon(p) {
		t.Error("a proposal that was answered can be abandoned")
	}
}

// While nothing can be proposed, clients that give up and come again leave nothing behind.
func TestAbandonedProposalsAreBounded(t *testing.T) {
	ps := newProposals()
	stays := newProposal(1, 1<<20)
	stays.at = time.Unix(200, 0)
	if err := ps.add(stays, plenty); err != nil {
		t.Fatal(err)
	}
	held := func() (n int64) {
		for _, q := range ps.queue {
			n += q.size()
		}
		return n
	}
	for id := uint64(2); id < 3000; id++ {
		p := newProposal(id, int(id*7919%(1<<20)))
		if err := ps.add(p, plenty); err != nil {
			t.Fatal(err)
		}
		if id%2 == 0 {
			if !ps.abandon(p) {
				t.Fatal("not abandoned")
			}
		} else {
			p.at = time.Unix(100, 0)
			ps.expire(time.Unix(150, 0), kv.ErrTimeout)
		}
		if id%100 == 0 { // some are taken out, and put back
			if taken := ps.batch(0); len(taken) != 1 || taken[0].id != 1 {
				t.Fatalf("batch %v", taken)
			} else {
				ps.requeue(taken)
			}
		}
		if got := held(); got > 2*ps.bytes+2*goneBytesMax {
			t.Fatalf("the queue holds %d bytes, of which %d are waited for", got, ps.bytes)
		}
	}
	if ps.gone < 0 {
		t.Errorf("%d bytes are gone", ps.gone)
	}
}

func TestExpiredProposalLeavesTheQueue(t *testing.T) {
	ps := newProposals()
	old, young := newProposal(1, 10), newProposal(2, 10)
	young.at = time.Unix(200, 0)
	for _, p := range []*proposal{old, young} {
		if err := ps.add(p, plenty); err != nil {
			t.Fatal(err)
		}
	}
	ps.expire(time.Unix(150, 0), kv.ErrTimeout)
	<-old.done
	if !errors.Is(old.err, kv.ErrTimeout) {
		t.Errorf("error %v", old.err)
	}
	if b := ps.batch(0); len(b) != 1 || b[0].id != 2 {
		t.Errorf("batch %v holds what nobody waits for", b)
	}
	ps.close(kv.ErrStopped)
	<-young.done
	if err := ps.add(newProposal(3, 1), plenty); !errors.Is(err, kv.ErrStopped) {
		t.Errorf("add after close: %v", err)
	}
}

func TestIDsDoNotRepeatAfterARestart(t *testing.T) {
	const runs, each = 1000, uint64(10 * proposalsMax)
	var starts []uint64
	for range runs {
		starts = append(starts, firstID())
	}
	slices.Sort(starts)
	for i, id := range starts[1:] {
		if id-starts[i] < each {
			t.Errorf("two runs begin at %x and %x", starts[i], id)
		}
	}
	if last := starts[runs-1]; last+each < last {
		t.Errorf("a run that begins at %x counts beyond the last number", last)
	}
}
