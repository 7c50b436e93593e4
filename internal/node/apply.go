package node

import (
	"errors"
	"fmt"
	"time"

	"quorate/internal/fsm"
	"quorate/internal/kv"
	"quorate/internal/wire"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// applyBatchMax is how many entries are applied before what they changed becomes visible
// and their clients hear of it.
const applyBatchMax = 256

// applyWork is work for the applier: one field is set.
type applyWork struct {
	entries *raftpb.Message // an Apply of core
	install *raftpb.Message // an Append of core whose snapshot is marked in the log
}

// apply is the applier: it owns the state machine. Committed entries are applied in
// order, a batch at a time; then a view that holds the batch is published, the clients
// get their answers, the watchers their events, and the loop its "applied".
func (n *Node) apply() {
	defer close(n.applyDone)
	for {
		select {
		case <-n.stopApply:
			return
		case <-n.applies.wake:
		}
		if err := n.StepApply(); err != nil {
			n.fail(fmt.Errorf("apply: %w", err))
			<-n.stopApply
			return
		}
	}
}

// StepApply is one turn of the applier: it applies what waits.
func (n *Node) StepApply() error {
	for _, w := range n.applies.take() {
		var err error
		if w.install != nil {
			err = n.install(w.install)
		} else {
			err = n.applyMessage(w.entries)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) applyMessage(m *raftpb.Message) error {
	done := &applied{message: m}
	ents := m.Entries
	for len(ents) > 0 {
		batch := ents[:min(len(ents), applyBatchMax)]
		if err := n.applyBatch(batch, done); err != nil {
			return err
		}
		ents = ents[len(batch):]
	}
	n.inbox.put(arrival{applied: done})
	return nil
}

// applyBatch applies entries and publishes what they changed. Changes of the membership
// are added to done, for the loop to tell Raft.
func (n *Node) applyBatch(ents []*raftpb.Entry, done *applied) error {
	at := time.Now()
	answers := n.answers[:0]
	for _, e := range ents {
		switch e.GetType() {
		case raftpb.EntryNormal:
			id, result, err := n.machine.Apply(e, at)
			if err != nil {
				return err
			}
			if id != 0 {
				answers = append(answers, answer{id, result})
				after := time.Now()
				n.applied(result, after.Sub(at))
				at = after
			}
		case raftpb.EntryConfChange:
			var cc raftpb.ConfChange
			if err := proto.Unmarshal(e.Data, &cc); err != nil {
				return fmt.Errorf("entry %d, a change of the membership: %w", e.GetIndex(), err)
			}
			n.memberAt.Store(e.GetIndex())
			ch, err := n.machine.ApplyConfChange(&cc)
			if err != nil {
				n.log.Warn("change of the membership refused", "index", e.GetIndex(), "error", err)
				cc.NodeId = new(uint64(raft.None))
			} else {
				n.log.Info("membership changed", "type", ch.Type.String(), "member", ch.Member.ID.String(), "peer-urls", ch.Member.PeerURLs)
			}
			answers = append(answers, answer{cc.GetId(), fsm.Result{Err: err}})
			done.changes = append(done.changes, change{&cc, ch})
		default:
			return fmt.Errorf("entry %d has type %s, which this version does not know", e.GetIndex(), e.GetType())
		}
	}
	if n.leasesFailed.Load() {
		return errLeases // what was applied without them must not be kept
	}
	last := ents[len(ents)-1]
	n.store.Publish(last.GetIndex(), last.GetTerm())
	n.proposals.finish(answers)
	clear(answers)
	n.answers = answers
	n.meter.counted(n.machine.TakeCounts())
	if events := n.machine.TakeEvents(); len(events) > 0 {
		n.hub.Publish(events, events[len(events)-1].Rev.Main)
	}
	return nil
}

// applied measures how long applying one request took.
func (n *Node) applied(res fsm.Result, took time.Duration) {
	ok := res.Err == nil || errors.Is(res.Err, kv.ErrCompacted)
	n.meter.applied(res.Field, ok, took)
	if res.Field == wire.FieldAlarm {
		n.showAlarms()
	}
	if took > n.cfg.SlowApply {
		n.met.SlowApplies.Inc()
		n.log.Warn("applying a request took too long", "request", res.Field.String(), "took", took.String(),
			"expected-duration", n.cfg.SlowApply.String())
	}
}
