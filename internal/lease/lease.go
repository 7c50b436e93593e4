// Package lease keeps leases: which exist, which keys hang on them, and when they end.
//
// Existence and attachment are replicated: only the applier changes them (Grant, Revoke,
// Attach, Detach), and every member holds the same. Time is the leader's alone: Promote
// gives every lease its full time again, in O(1); Renew moves one deadline; Expired
// hands out those that are over, for the leader to propose their revocation. A lease
// never ends early; it may outlive its time.
//
// # Time
//
// A lease remembers when it was last renewed, and a Lessor when it was promoted. A lease
// ends its TTL after its renewal or the promotion and what was granted on top, whichever
// is later. So a promotion touches no lease. Expired finds out who is next
// from a heap of the times to look at a lease again, which are never after its deadline
// but may be before it: a renewal leaves the heap alone, and Expired corrects it when the
// lease's turn comes. After a promotion the heap is filled again by the first Expired, a
// thousand leases at a time, with the lock free in between.
//
// etcd can write a lease's remaining time to the log now and then, and a new leader then
// grants only that (LeaseCheckpoint, off by default). To be safe this needs a write in
// the log before the first renewal after each such note. A Lessor grants the full time
// instead; the notes are kept for etcd's sake, see Checkpoint.
package lease

import (
	"errors"
	"math"
	"slices"
	"sync"
	"time"

	"quorate/internal/kv"
)

// TTLMax is the longest TTL that a lease can have, in seconds.
const TTLMax = 9_000_000_000

// retryAfter is how soon Expired returns a lease again that nobody has revoked.
const retryAfter = 3 * time.Second

// stride is how many leases are visited before the lock is given free for others.
const stride = 1024

// ErrExpired is Renew's answer for a lease that is over and will be revoked any moment.
var ErrExpired = errors.New("lease is over but not revoked yet")

// Lessor holds all leases. It takes time as an argument: it has no clock and no
// goroutine. All methods may be called at the same time, but Grant, Revoke, Attach,
// Detach, Restore and Checkpoint by the applier alone.
type Lessor struct {
	// OnGrant and OnRevoke, unless nil, are called after each Grant and Revoke that
	// succeeded, for counting. They are to be set before anything else is done.
	OnGrant  func(ttl int64)
	OnRevoke func()

	minTTL int64

	mu     sync.RWMutex
	byID   map[kv.LeaseID]slot
	slab   slab
	many   map[slot]*keyList // of leases whose keys are not few
	queue  queue
	start  time.Time // what all times are counted from; set by the first call that has one
	primed slot      // leases below are in the queue; up to there they are put in by Expired

	promoted bool    // this member keeps time
	from     instant // no lease counts as renewed before
}

// instant is nanoseconds since Lessor.start.
type instant int64

// New returns an empty Lessor. minTTL (seconds) is the least TTL a lease gets.
func New(minTTL int64) *Lessor {
	l := &Lessor{minTTL: minTTL}
	l.clearLocked()
	return l
}

// clearLocked forgets all leases, and gives back the memory of what once were many.
func (l *Lessor) clearLocked() {
	l.byID, l.many = make(map[kv.LeaseID]slot), make(map[slot]*keyList)
	l.slab, l.queue, l.primed = slab{}, queue{}, 0
}

// instantLocked turns a time into an instant.
func (l *Lessor) instantLocked(t time.Time) instant {
	if l.start.IsZero() {
		// A margin, so that callers whose clocks were read in another order than they
		// come stay above zero.
		l.start = t.Add(-time.Hour)
	}
	return max(0, instant(t.Sub(l.start)))
}

// Restore adds a lease that the store held at start (leasepb.Lease's fields). One that
// exists already it leaves as it is.
func (l *Lessor) Restore(id kv.LeaseID, ttl, _ int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.byID[id]; !ok && id != kv.NoLease {
		l.addLocked(id, ttl, 0)
	}
}

// Grant creates a lease and returns the TTL it really got. kv.ErrLeaseNotFound for the id
// that means none, kv.ErrLeaseTTLTooLarge, kv.ErrLeaseExists.
func (l *Lessor) Grant(id kv.LeaseID, ttl int64, now time.Time) (int64, error) {
	switch {
	case id == kv.NoLease:
		return 0, kv.ErrLeaseNotFound
	case ttl > TTLMax:
		return 0, kv.ErrLeaseTTLTooLarge
	}
	ttl, err := l.grant(id, ttl, now)
	if err == nil && l.OnGrant != nil {
		l.OnGrant(ttl)
	}
	return ttl, err
}

func (l *Lessor) grant(id kv.LeaseID, ttl int64, now time.Time) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.byID[id]; ok {
		return 0, kv.ErrLeaseExists
	}
	return l.addLocked(id, ttl, l.instantLocked(now)), nil
}

func (l *Lessor) addLocked(id kv.LeaseID, ttl int64, renewed instant) int64 {
	ttl = max(ttl, l.minTTL)
	s := l.slab.add(lease{id: id, ttl: ttl, renewed: renewed})
	l.byID[id] = s
	if l.promoted {
		l.queue.push(&l.slab, s, l.deadlineLocked(l.slab.at(s)))
	}
	return ttl
}

// Revoke removes a lease and returns its keys in order. kv.ErrLeaseNotFound.
func (l *Lessor) Revoke(id kv.LeaseID) ([][]byte, error) {
	l.mu.Lock()
	s, ok := l.byID[id]
	if !ok {
		l.mu.Unlock()
		return nil, kv.ErrLeaseNotFound
	}
	keys := l.keysLocked(s)
	l.queue.remove(&l.slab, s)
	l.slab.free(s)
	delete(l.byID, id)
	delete(l.many, s)
	if len(l.byID) == 0 {
		l.clearLocked()
	}
	l.mu.Unlock()
	if l.OnRevoke != nil {
		l.OnRevoke()
	}
	return toBytes(keys), nil
}

// Exists reports whether there is such a lease.
func (l *Lessor) Exists(id kv.LeaseID) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	_, ok := l.byID[id]
	return ok
}

// Len is the number of leases.
func (l *Lessor) Len() int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return len(l.byID)
}

// Attach hangs key, which is copied, on lease id, which must exist. A key that hangs there
// already stays; one that hangs on another lease must be detached from that by the caller.
func (l *Lessor) Attach(id kv.LeaseID, key []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.byID[id]
	if !ok {
		panic("lease: attach a key to lease " + id.String() + ", which does not exist")
	}
	l.attachLocked(s, string(key))
}

// Detach takes key off lease id. It does nothing if it does not hang there, as when the
// lease is being revoked.
func (l *Lessor) Detach(id kv.LeaseID, key []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s, ok := l.byID[id]; ok {
		l.detachLocked(s, string(key))
	}
}

// Checkpoint takes note of a remaining time that a leader wrote to the log, and returns
// the lease's TTL, which the store keeps beside it. It changes no deadline: see the
// package comment. kv.ErrLeaseNotFound.
func (l *Lessor) Checkpoint(id kv.LeaseID, _ int64, _ time.Time) (ttl int64, err error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	s, ok := l.byID[id]
	if !ok {
		return 0, kv.ErrLeaseNotFound
	}
	return l.slab.at(s).ttl, nil
}

// Promote starts timekeeping: every lease gets its full time from now, and extend on top.
func (l *Lessor) Promote(now time.Time, extend time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.promoted = true
	l.from = l.instantLocked(now) + instant(max(extend, 0))
	l.queue, l.primed = queue{}, 0
}

// Demote ends timekeeping: no lease ends until the next Promote.
func (l *Lessor) Demote() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.promoted = false
	l.queue, l.primed = queue{}, 0
}

// deadlineLocked is when lease e ends, while the Lessor is promoted.
func (l *Lessor) deadlineLocked(e *lease) instant {
	return max(e.renewed, l.from).after(e.ttl)
}

// after is the instant ttl seconds later, or the last there is (292 years).
func (i instant) after(ttl int64) instant {
	if instant(ttl) > (math.MaxInt64-i)/instant(time.Second) {
		return math.MaxInt64
	}
	return i + instant(ttl)*instant(time.Second)
}

// Renew gives a lease its full time again and returns its TTL. kv.ErrLeaseNotFound;
// kv.ErrNotLeader while not promoted. ErrExpired if the lease is over: its revocation may
// have been proposed, so that to renew it might be a lie. The caller asks again until the
// lease is gone (or another leader gives it time).
func (l *Lessor) Renew(id kv.LeaseID, now time.Time) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.promoted {
		return 0, kv.ErrNotLeader
	}
	s, ok := l.byID[id]
	if !ok {
		return 0, kv.ErrLeaseNotFound
	}
	e := l.slab.at(s)
	if l.deadlineLocked(e) <= l.instantLocked(now) {
		return 0, ErrExpired
	}
	e.renewed = max(e.renewed, l.instantLocked(now))
	return e.ttl, nil
}

// Info is what LeaseTimeToLive tells.
type Info struct {
	ID        kv.LeaseID
	Granted   int64    // TTL in seconds
	Remaining int64    // seconds, rounded down; 0 if the lease is over
	Keys      [][]byte // in order
}

// Lookup describes one lease. kv.ErrLeaseNotFound; kv.ErrNotLeader while not promoted.
func (l *Lessor) Lookup(id kv.LeaseID, withKeys bool, now time.Time) (Info, error) {
	info, keys, err := l.lookup(id, withKeys, now)
	info.Keys = toBytes(keys)
	return info, err
}

func (l *Lessor) lookup(id kv.LeaseID, withKeys bool, now time.Time) (info Info, keys []string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.byID[id]
	switch {
	case !ok:
		return Info{}, nil, kv.ErrLeaseNotFound
	case !l.promoted:
		return Info{}, nil, kv.ErrNotLeader
	}
	e := l.slab.at(s)
	left := time.Duration(l.deadlineLocked(e) - l.instantLocked(now))
	if withKeys {
		keys = l.keysLocked(s)
	}
	return Info{ID: id, Granted: e.ttl, Remaining: max(0, int64(left/time.Second))}, keys, nil
}

// List returns all ids, soonest to expire first. Leases that are granted or revoked
// meanwhile may be among them or not.
func (l *Lessor) List() []kv.LeaseID {
	type ending struct {
		id kv.LeaseID
		at instant
	}
	var all []ending
	for from, more := slot(0), true; more; from += stride {
		l.mu.RLock()
		if from == 0 {
			all = make([]ending, 0, len(l.byID))
		}
		for s := range l.slab.used(from, from+stride) {
			e := l.slab.at(s)
			at := instant(e.ttl)
			if l.promoted {
				at = l.deadlineLocked(e)
			}
			all = append(all, ending{e.id, at})
		}
		more = from+stride < l.slab.end()
		l.mu.RUnlock()
	}
	slices.SortFunc(all, func(a, b ending) int {
		switch {
		case a.at < b.at, a.at == b.at && a.id < b.id:
			return -1
		}
		return 1
	})
	ids := make([]kv.LeaseID, len(all))
	for i, e := range all {
		ids[i] = e.id
	}
	return ids
}

// Expired returns at most limit leases that are over at now and have not been returned in
// the last few seconds, and when to ask again (zero: when something is granted or
// renewed; the caller should then poll twice a second). Where more are over than limit
// the caller thereby bounds how many end at a time. One goroutine at a time may call it.
func (l *Lessor) Expired(now time.Time, limit int) (ids []kv.LeaseID, next time.Time) {
	for l.prime() {
	}
	for more := true; more; {
		ids, next, more = l.expired(now, limit, ids)
	}
	return ids, next
}

// prime puts some leases into the queue that are not in it since a promotion, and reports
// whether there may be others.
func (l *Lessor) prime() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.promoted || l.primed >= l.slab.end() {
		return false
	}
	for s := range l.slab.used(l.primed, l.primed+stride) {
		if !l.queue.has(&l.slab, s) {
			l.queue.push(&l.slab, s, l.deadlineLocked(l.slab.at(s)))
		}
	}
	l.primed += stride
	return true
}

// expired appends to ids and reports whether it stopped early to let others in.
func (l *Lessor) expired(now time.Time, limit int, ids []kv.LeaseID) (all []kv.LeaseID, next time.Time, more bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.promoted {
		return ids, time.Time{}, false
	}
	at := l.instantLocked(now)
	for range stride {
		s, due, ok := l.queue.first(&l.slab)
		switch {
		case !ok:
			return ids, time.Time{}, false
		case due > at:
			return ids, l.start.Add(time.Duration(due)), false
		case len(ids) >= limit:
			return ids, now, false
		}
		e := l.slab.at(s)
		if deadline := l.deadlineLocked(e); deadline > at {
			l.queue.later(&l.slab, s, deadline) // it was renewed
			continue
		}
		ids = append(ids, e.id)
		l.queue.later(&l.slab, s, at+instant(retryAfter))
	}
	return ids, time.Time{}, true
}
