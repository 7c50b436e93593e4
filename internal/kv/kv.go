// Package kv is the vocabulary of the store: revisions, key ranges, requests,
// records and events, and the errors that every layer above may return.
//
// It imports nothing of ours and holds no state. The meanings are etcd's v3 API's;
// where a rule is easy to get wrong it stands at the type that it concerns.
package kv

import (
	"bytes"
	"cmp"
	"fmt"
)

// Revision names one change of the store: the Sub-th change (from 0) made by the
// request that moved the store to main revision Main. A fresh store is at main
// revision 1; its first write makes 2.
type Revision struct {
	Main int64
	Sub  int64
}

// Less reports whether r was made before o.
func (r Revision) Less(o Revision) bool {
	return r.Main < o.Main || r.Main == o.Main && r.Sub < o.Sub
}

// Compare is negative if r was made before o, positive if after it, and 0 if they are one.
func (r Revision) Compare(o Revision) int {
	return cmp.Or(cmp.Compare(r.Main, o.Main), cmp.Compare(r.Sub, o.Sub))
}

// IsZero reports whether r names no change.
func (r Revision) IsZero() bool { return r == Revision{} }

func (r Revision) String() string { return fmt.Sprintf("%d.%d", r.Main, r.Sub) }

// LeaseID names a lease; zero means none. Negative ids are legal.
type LeaseID int64

// NoLease is the lease of a key that has none.
const NoLease LeaseID = 0

func (id LeaseID) String() string { return fmt.Sprintf("%016x", uint64(id)) }

// Span is a range of keys as the API writes it: an empty End means Key alone, an
// End of one zero byte means every key from Key on, anything else is [Key, End).
// Key "\x00" with End "\x00" is therefore the whole store.
type Span struct {
	Key []byte
	End []byte
}

// Single reports whether s names exactly one key.
func (s Span) Single() bool { return len(s.End) == 0 }

// Unbounded reports whether s has no upper end.
func (s Span) Unbounded() bool { return len(s.End) == 1 && s.End[0] == 0 }

// Contains reports whether key lies in s.
func (s Span) Contains(key []byte) bool {
	if s.Single() {
		return bytes.Equal(key, s.Key)
	}
	if bytes.Compare(key, s.Key) < 0 {
		return false
	}
	return s.Unbounded() || bytes.Compare(key, s.End) < 0
}

// Record is one change as the store keeps it: its revision and the mvccpb.KeyValue
// in wire form. The KeyValue of a tombstone holds the key alone.
//
// KV is shared and never modified. It stays valid while the View it came from is held.
type Record struct {
	Rev       Revision
	Tombstone bool
	KV        []byte
}

// Event is a Record on its way to watchers, with what matching them needs.
type Event struct {
	Record
	// Key is the changed key, a part of KV or an equal copy.
	Key []byte
	// Prev is the revision of the key's previous value, zero if it had none.
	Prev Revision
}
