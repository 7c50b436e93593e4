// Package lease keeps leases: which exist, which keys hang on them, and when they end.
//
// Existence and attachment are replicated: only the applier changes them (Grant, Revoke,
// Attach, Detach), and every member holds the same. Time is the leader's alone: Promote
// gives every lease its full time again, in O(1); Renew moves one deadline; Expired
// hands out those that are over, for the leader to propose their revocation. A lease
// never ends early; it may outlive its time.
package lease

import (
	"time"

	"quorate/internal/kv"
)

// Lessor holds all leases. It takes time as an argument: it has no clock and no
// goroutine.
type Lessor struct{}

// New returns an empty Lessor. minTTL (seconds) is the least TTL a lease gets.
func New(minTTL int64) *Lessor { panic("unbuilt") }

// Restore adds a lease that the store held at start (leasepb.Lease's fields).
func (l *Lessor) Restore(id kv.LeaseID, ttl, remaining int64) { panic("unbuilt") }

// Grant creates a lease and returns the TTL it really got. kv.ErrLeaseExists,
// kv.ErrLeaseTTLTooLarge.
func (l *Lessor) Grant(id kv.LeaseID, ttl int64, now time.Time) (int64, error) { panic("unbuilt") }

// Revoke removes a lease and returns its keys in order. kv.ErrLeaseNotFound.
func (l *Lessor) Revoke(id kv.LeaseID) ([][]byte, error) { panic("unbuilt") }

// Exists reports whether there is such a lease.
func (l *Lessor) Exists(id kv.LeaseID) bool { panic("unbuilt") }

// Attach hangs key on lease id, which must exist; Detach takes it off.
func (l *Lessor) Attach(id kv.LeaseID, key []byte) { panic("unbuilt") }
func (l *Lessor) Detach(id kv.LeaseID, key []byte) { panic("unbuilt") }

// Promote starts timekeeping: every lease gets its full (or remaining) time from now,
// and extend on top. Demote ends it.
func (l *Lessor) Promote(now time.Time, extend time.Duration) { panic("unbuilt") }
func (l *Lessor) Demote()                                     { panic("unbuilt") }

// Renew gives a lease its full time again and returns its TTL. kv.ErrLeaseNotFound;
// kv.ErrNotLeader while not promoted.
func (l *Lessor) Renew(id kv.LeaseID, now time.Time) (int64, error) { panic("unbuilt") }

// Info is what LeaseTimeToLive tells.
type Info struct {
	ID        kv.LeaseID
	Granted   int64 // TTL in seconds
	Remaining int64 // seconds
	Keys      [][]byte
}

// Lookup describes one lease. kv.ErrLeaseNotFound.
func (l *Lessor) Lookup(id kv.LeaseID, withKeys bool, now time.Time) (Info, error) { panic("unbuilt") }

// List returns all ids, soonest to expire first.
func (l *Lessor) List() []kv.LeaseID { panic("unbuilt") }

// Expired returns at most limit leases that are over at now and have not been returned in
// the last few seconds, and when to ask again (zero: when something is granted or
// renewed; the caller should then poll twice a second).
func (l *Lessor) Expired(now time.Time, limit int) (ids []kv.LeaseID, next time.Time) {
	panic("unbuilt")
}
