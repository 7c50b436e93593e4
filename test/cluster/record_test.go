package cluster

import (
	"fmt"
	"slices"
	"sort"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// moment is the time since the round began, on the tests' own monotonic clock.
type moment = time.Duration

// action is what a client asks for.
type action int

const (
	put    action = iota
	putTwo        // two keys in one transaction
	get
	list   // all keys
	remove // delete
	swap   // put if the value is the one expected
)

func (a action) String() string {
	return [...]string{"put", "put two", "get", "list", "delete", "swap"}[a]
}

// op is one request of a client and what became of it.
type op struct {
	client, member int
	action         action
	keys, values   []string // what is written; keys alone for get and delete
	old            string   // swap: the value expected, "" for none
	serializable   bool

	call, ret moment
	err       error // nil: acknowledged. Else it is in doubt.

	rev int64              // the revision in the answer
	hit bool               // swap: it was made; delete: there was something
	kvs []*mvccpb.KeyValue // get, list; swap that was not made: what is there
}

func (o *op) acked() bool { return o.err == nil }

func (o *op) writes() bool { return o.action != get && o.action != list }

func (o *op) String() string {
	s := fmt.Sprintf("client %d at m%d, %v to %v: %v %v %v", o.client, o.member, o.call, o.ret, o.action, o.keys, o.values)
	if o.action == swap {
		s += fmt.Sprintf(" for %q", o.old)
	}
	if o.serializable {
		s += " (serializable)"
	}
	if o.err != nil {
		return s + ": " + o.err.Error()
	}
	s += fmt.Sprintf(": revision %d", o.rev)
	if o.action == swap || o.action == remove {
		s += fmt.Sprintf(", %t", o.hit)
	}
	for _, kv := range o.kvs {
		s += fmt.Sprintf(", %s=%s@%d", kv.Key, kv.Value, kv.ModRevision)
	}
	return s
}

// event is a change as a watch told it.
type event struct {
	kv     *mvccpb.KeyValue // of a deletion only key and mod revision
	delete bool
	at     moment // of its arrival
}

func (e event) String() string {
	if e.delete {
		return fmt.Sprintf("%d: delete %s", e.kv.ModRevision, e.kv.Key)
	}
	return fmt.Sprintf("%d: %s = %s (created %d, version %d, lease %x)", e.kv.ModRevision, e.kv.Key, e.kv.Value, e.kv.CreateRevision, e.kv.Version, e.kv.Lease)
}

func (e event) same(f event) bool { return e.String() == f.String() }

// tape is what one watch told, in the order in which it did.
type tape struct {
	who  string
	from int64 // the revision that it was asked to start at

	mu     sync.Mutex
	events []event
	upTo   int64 // every event up to this revision has come
	err    error
}

func (w *tape) seen() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.upTo
}

// tenancy is the life of one lease with one key.
type tenancy struct {
	key     string
	id      int64
	until   moment // it may not end before
	missed  string // an answer that it was not there before that
	revoked bool   // on purpose, from some moment on
	revoke  moment
}

// record is everything that is known of one round. Its owner is the round once all who add to
// it have ended.
type record struct {
	mu     sync.Mutex
	ops    []*op
	leases []*tenancy
	faults []*fault
	tapes  []*tape // whole, one for each member
	pieces []*tape // from some revision on, and ended early
}

func (r *record) add(o *op) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, o)
}

// version is the state of a key from a revision on; nil when it is deleted.
type version struct {
	rev int64
	kv  *mvccpb.KeyValue
	at  moment
}

// history is the sequence of all changes of a round, and the state at every revision of it.
type history struct {
	events   []event
	versions map[string][]version
	byValue  map[string][]event // those that put; a value is asked for only once
	byRev    map[int64][]event
	deletes  map[string]int
}

func newHistory(events []event) *history {
	h := &history{events: events, versions: map[string][]version{}, byValue: map[string][]event{}, byRev: map[int64][]event{}, deletes: map[string]int{}}
	for _, e := range events {
		key := string(e.kv.Key)
		v := version{rev: e.kv.ModRevision, at: e.at}
		if e.delete {
			h.deletes[key]++
		} else {
			v.kv = e.kv
			h.byValue[string(e.kv.Value)] = append(h.byValue[string(e.kv.Value)], e)
		}
		h.versions[key] = append(h.versions[key], v)
		h.byRev[v.rev] = append(h.byRev[v.rev], e)
	}
	return h
}

// at is the key at a revision, nil when it is not there.
func (h *history) at(key string, rev int64) *mvccpb.KeyValue {
	vs := h.versions[key]
	i := sort.Search(len(vs), func(i int) bool { return vs[i].rev > rev })
	if i == 0 {
		return nil
	}
	return vs[i-1].kv
}

// change is what happened to a key at a revision.
func (h *history) change(key string, rev int64) (event, bool) {
	for _, e := range h.byRev[rev] {
		if string(e.kv.Key) == key {
			return e, true
		}
	}
	return event{}, false
}

func (h *history) keys(prefix string) []string {
	var keys []string
	for k := range h.versions {
		if len(k) >= len(prefix) && k[:len(prefix)] == prefix {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}
