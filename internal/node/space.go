package node

import (
	"math"
	"time"

	"quorate/internal/kv"
	"quorate/internal/membership"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// The three ways in which a member runs out of space, and what it does. In each, reads,
// deletes, compactions and revocations go on as long as they can, and writes resume by
// themselves.
//
//   - The quota: bytes in use exceed --quota-backend-bytes. The NOSPACE alarm is raised,
//     on all members as in etcd, and lowered when use has fallen well below the quota.
//   - The log's disk is full: the log then says how much surely fits (wal.Log.Room), and
//     what does not fit is refused before it is proposed. What was proposed before waits in
//     the log writer until there is room; it is never lost.
//   - The file's disk is full: the flusher waits (mvcc.Store.Stalled). The log still
//     holds everything; what makes the tail grow is refused before the tail is at its
//     bound.

const (
	// quotaClear is the share of the quota below which the alarm is lowered.
	quotaClear = 0.95
	// roomForDeletes is kept free in the log for requests that make room, in bytes.
	roomForDeletes = 1 << 20
	// stalledTailMax bounds the tail while the flusher cannot write.
	stalledTailMax = 32 << 20
)

// admit says whether there is space for a request: nil or kv.ErrNoSpace. It is called
// before the request is in the log, so that a refused one leaves no trace. room is how
// much of the log the request may share with those that wait already, in bytes.
func (n *Node) admit(field wire.Field, body []byte) (room int64, err error) {
	room = n.room()
	if !growing(field) {
		return room, nil
	}
	room -= roomForDeletes
	if n.store.Stalled() != nil && n.store.TailBytes() > stalledTailMax {
		return 0, kv.ErrNoSpace
	}
	if quota := n.cfg.quota(); quota > 0 {
		_, inUse := n.store.Size()
		if inUse+int64(len(body)) > quota && (field != wire.FieldTxn || txnPuts(body)) {
			n.quotaReached()
			return 0, kv.ErrNoSpace
		}
	}
	return room, nil
}

// room is how many bytes the log surely takes.
func (n *Node) room() int64 {
	if !n.logFull.Load() {
		return math.MaxInt64
	}
	return n.wal.Room()
}

// growing reports whether a request may make the store larger.
func growing(field wire.Field) bool {
	return field == wire.FieldPut || field == wire.FieldTxn || field == wire.FieldLeaseGrant
}

// txnPuts reports whether the transaction in body holds a put. It decodes, so it is
// asked only when space is short.
func txnPuts(body []byte) bool {
	var t kv.Txn
	return wire.DecodeTxn(body, &t) != nil || t.Puts()
}

// onLogFull is called by the log when it can prepare no more segments, and when it can
// again.
func (n *Node) onLogFull(err error) {
	n.logFull.Store(err != nil)
	if err != nil {
		n.log.Error("the log's disk is full or fails; writes that do not fit are refused until it recovers", "error", err)
	} else {
		n.log.Info("the log's disk has room again; writes resume")
	}
}

// quotaReached has the keeper raise the alarm. Whoever finds it raised or asked for need
// do nothing.
func (n *Node) quotaReached() {
	if n.alarms.NoSpace() {
		return
	}
	select {
	case n.overQuota <- struct{}{}:
	default: // the keeper has not seen the last one yet
	}
}

// raiseNoSpace raises the alarm unless it was raised meanwhile.
func (n *Node) raiseNoSpace() {
	if n.alarms.NoSpace() {
		return
	}
	n.log.Warn("the store has reached its quota; writes that make it larger are refused", "quota-bytes", n.cfg.quota())
	n.setNoSpace(n.id, pb.AlarmRequest_ACTIVATE)
}

// stallNotice is when the log last said that the file cannot be written, so that a disk
// that stays full does not fill the log.
type stallNotice struct {
	stalled bool
	next    time.Time
	pause   time.Duration
}

// stallPauseMax bounds the time between two notices of one stall.
const stallPauseMax = time.Minute

// due reports whether it is time to say that the file cannot be written, which is what err
// says if it is not nil: at once, and then after ever longer times; or that it can be again.
func (s *stallNotice) due(err error, now time.Time) (stalled, over bool) {
	switch {
	case err == nil:
		over = s.stalled
		*s = stallNotice{}
	case !now.Before(s.next):
		s.pause = min(stallPauseMax, max(time.Second, 2*s.pause))
		s.stalled, s.next = true, now.Add(s.pause)
		stalled = true
	}
	return stalled, over
}

// noticeStall tells the operator of a file that cannot be written.
func (n *Node) noticeStall(s *stallNotice, now time.Time) {
	err := n.store.Stalled()
	switch stalled, over := s.due(err, now); {
	case stalled:
		n.log.Warn("the file cannot be written now; the log holds what is missing", "error", err, "unflushed-bytes", n.store.TailBytes())
	case over:
		n.log.Info("the file can be written again")
	}
}

// watchSpace lowers this member's alarm once there is space again. The leader does so for
// members that cannot: those that were removed, or are away. One that comes back and has
// still no space raises its alarm again.
func (n *Node) watchSpace() {
	quota := n.cfg.quota()
	if _, inUse := n.store.Size(); quota > 0 && float64(inUse) > quotaClear*float64(quota) {
		return
	}
	for _, a := range n.alarms.List(pb.AlarmType_NOSPACE) {
		id := membership.ID(a.MemberID)
		if a.MemberID == n.id || n.leading.Load() && n.absent(id) {
			n.log.Info("the store is below its quota again; writes resume", "alarm-of", id.String())
			n.setNoSpace(a.MemberID, pb.AlarmRequest_DEACTIVATE)
		}
	}
}

// absent reports whether another member was removed, or is away.
func (n *Node) absent(id membership.ID) bool {
	state := n.cluster.State()
	_, known := state.Member(id)
	return state.IsRemoved(id) || known && n.network.ActiveSince(id).IsZero()
}

// setNoSpace changes the alarm of a member.
func (n *Node) setNoSpace(id uint64, action pb.AlarmRequest_AlarmAction) {
	err := n.proposeMessage(wire.FieldAlarm, &pb.AlarmRequest{MemberID: id, Action: action, Alarm: pb.AlarmType_NOSPACE})
	if err != nil && n.ctx.Err() == nil {
		n.log.Warn("could not change the NOSPACE alarm", "action", action.String(), "error", err)
	}
}
