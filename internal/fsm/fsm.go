// Package fsm is the replicated state machine: it decodes committed entries and applies
// them to the store, the leases, the alarms, the users and the membership. It is the only writer of
// state and deterministic: no clock, no randomness, no goroutine.
//
// A request is checked whole before it changes anything, so that a refused one leaves no
// trace and a started one cannot fail.
package fsm

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"quorate/internal/auth"
	"quorate/internal/kv"
	"quorate/internal/lease"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/membershippb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Result is what applying one request gave.
type Result struct {
	// Field says which request it was.
	Field wire.Field
	// Rev is the store's revision for the response header.
	Rev int64
	// Body is the response message in wire form without its header (field 1).
	Body []byte
	// Err is why the request was refused; nothing was changed then.
	Err error
	// Done, if not nil, is closed when a physical compaction has given its space back.
	Done <-chan struct{}
}

// ErrUnsupported means that the log holds a request that this version cannot apply. The
// member must not go on: skipping it would make its state differ from the log's.
var ErrUnsupported = errors.New("the log holds a request that this version does not know")

// Machine applies entries. The applier owns it.
type Machine struct {
	store   *mvcc.Store
	leases  func() *lease.Lessor
	cluster *membership.Cluster
	alarms  *Alarms
	auth    *auth.Store

	access access     // of the entry that is applied
	events []kv.Event // of the batch so far
	counts Counts     // of the batch so far
	path   []bool     // scratch of txn
}

// New returns a machine over state that was loaded from store. leases is asked whenever a
// request touches a lease; it may wait until they are loaded.
func New(store *mvcc.Store, leases func() *lease.Lessor, cluster *membership.Cluster, alarms *Alarms, auth *auth.Store) *Machine {
	return &Machine{store: store, leases: leases, cluster: cluster, alarms: alarms, auth: auth}
}

// Counts says how many operations were applied.
type Counts struct {
	Puts, Deletes, Ranges uint64
	Txns                  uint64 // requests of more than one operation
	PutBytes              int64  // of keys and values
}

// TakeCounts returns what was counted since the last call.
func (m *Machine) TakeCounts() Counts {
	counts := m.counts
	m.counts = Counts{}
	return counts
}

// TakeEvents returns the changes made since the last call, in revision order.
func (m *Machine) TakeEvents() []kv.Event {
	events := m.events
	m.events = nil
	return events
}

// Apply applies one committed normal entry. now is the leader's clock, for leases alone:
// it decides when one expires, never what the state is. id is the request's, by which its
// proposer waits; 0 for an empty entry. The error is ErrUnsupported or a damaged entry.
func (m *Machine) Apply(e *raftpb.Entry, now time.Time) (id uint64, res Result, err error) {
	if len(e.Data) == 0 {
		return 0, Result{}, nil // a leader's first entry
	}
	req, err := wire.DecodeRaftRequest(e.Data)
	if err != nil {
		return 0, Result{}, fmt.Errorf("entry %d of term %d: %w", e.GetIndex(), e.GetTerm(), err)
	}
	m.access = m.accessOf(&req)
	res, err = m.dispatch(req, e.GetIndex(), now)
	if err != nil {
		return req.ID, res, fmt.Errorf("entry %d of term %d: %w", e.GetIndex(), e.GetTerm(), err)
	}
	if res.Rev == 0 {
		res.Rev = m.store.Rev()
	}
	res.Field = req.Field
	return req.ID, res, nil
}

func (m *Machine) dispatch(req wire.RaftRequest, index uint64, now time.Time) (Result, error) {
	switch req.Field {
	case wire.FieldPut:
		var p kv.Put
		if err := wire.DecodePut(req.Body, &p); err != nil {
			return Result{}, err
		}
		return m.put(&p), nil
	case wire.FieldTxn:
		var t kv.Txn
		if err := wire.DecodeTxn(req.Body, &t); err != nil {
			return Result{}, err
		}
		return m.txn(&t), nil
	case wire.FieldDelete:
		var d kv.Delete
		if err := wire.DecodeDelete(req.Body, &d); err != nil {
			return Result{}, err
		}
		return m.delete(&d), nil
	case wire.FieldRange:
		return Result{}, nil // reads leave no trace; no version proposes them any more
	case wire.FieldCompact:
		var c kv.Compact
		if err := wire.DecodeCompact(req.Body, &c); err != nil {
			return Result{}, err
		}
		return m.compact(&c), nil
	case wire.FieldLeaseGrant:
		return decoded(req.Body, func(r *pb.LeaseGrantRequest) Result { return m.grant(r, now) })
	case wire.FieldLeaseRevoke:
		return decoded(req.Body, m.revoke)
	case wire.FieldLeaseCheckpoint:
		return decoded(req.Body, func(r *pb.LeaseCheckpointRequest) Result { return m.checkpoint(r, now) })
	case wire.FieldAlarm:
		return decoded(req.Body, m.alarm)
	case wire.FieldClusterVersion:
		return m.memberState(req.Body, &membershippb.ClusterVersionSetRequest{})
	case wire.FieldMemberAttributes:
		return m.memberState(req.Body, &membershippb.ClusterMemberAttrSetRequest{})
	case wire.FieldDowngradeInfo:
		return m.memberState(req.Body, &membershippb.DowngradeInfoSetRequest{})
	case wire.FieldDowngradeTest:
		return Result{}, nil
	}
	if res, ok, err := m.authRequest(req, index, now); ok {
		return res, err
	}
	return Result{}, fmt.Errorf("request %d: %w", req.Field, ErrUnsupported)
}

// decoded runs apply on the message of one of the rarer requests.
func decoded[T any, M interface {
	*T
	proto.Message
}](body []byte, apply func(M) Result) (Result, error) {
	r := M(new(T))
	if err := proto.Unmarshal(body, r); err != nil {
		return Result{}, err
	}
	return apply(r), nil
}

// memberState applies one of the requests that members make among themselves. Its
// errors mean that this member must not go on.
func (m *Machine) memberState(body []byte, r proto.Message) (Result, error) {
	if err := proto.Unmarshal(body, r); err != nil {
		return Result{}, err
	}
	switch r := r.(type) {
	case *membershippb.ClusterVersionSetRequest:
		if _, err := m.cluster.SetVersion(r.Ver); err != nil {
			return Result{}, err
		}
		KeepStorageVersion(m.store, m.cluster.State().Version)
	case *membershippb.ClusterMemberAttrSetRequest:
		at := r.GetMemberAttributes()
		return Result{}, m.cluster.SetAttributes(membership.ID(r.Member_ID), at.GetName(), at.GetClientUrls())
	case *membershippb.DowngradeInfoSetRequest:
		m.cluster.SetDowngrade(membership.Downgrade{Target: r.Ver, Enabled: r.Enabled})
	}
	return Result{}, nil
}

// KeepStorageVersion writes the version of the file's form, which follows the cluster's
// from 3.6 on.
func KeepStorageVersion(to buckets, cluster membership.Version) {
	if cluster.Less(membership.Version{Major: 3, Minor: 6}) {
		return
	}
	to.PutBucket("meta", []byte("storageVersion"), []byte(cluster.MinorOnly().String()))
}

// ApplyConfChange applies a committed change of the membership to the member list. An
// invalid change is refused and changes nothing; Raft must be told of it as a change of
// no member.
func (m *Machine) ApplyConfChange(cc *raftpb.ConfChange) (membership.Change, error) {
	ch, err := m.cluster.Apply(cc)
	if err != nil {
		return ch, err
	}
	KeepConfState(m.store, m.cluster.State())
	return ch, nil
}

// KeepConfState writes Raft's view of the membership, for etcd. A restore from a backup
// leaves the one of the cluster that the backup is of.
func KeepConfState(to buckets, s *membership.State) {
	conf, err := json.Marshal(ConfState(s))
	if err != nil {
		panic("fsm: encode configuration: " + err.Error()) // numbers alone; cannot fail
	}
	to.PutBucket("meta", []byte("confState"), conf)
}

// ConfState is Raft's view of a membership.
func ConfState(s *membership.State) *raftpb.ConfState {
	cs := &raftpb.ConfState{AutoLeave: new(false)}
	for _, m := range s.Members {
		if m.IsLearner {
			cs.Learners = append(cs.Learners, uint64(m.ID))
		} else {
			cs.Voters = append(cs.Voters, uint64(m.ID))
		}
	}
	return cs
}

// keyValue decodes what the store holds. It was encoded here or checked by whoever
// proposed it, so that bytes which are no KeyValue mean a damaged file.
func keyValue(b []byte) wire.KeyValue {
	v, err := wire.DecodeKeyValue(b)
	if err != nil {
		panic("fsm: the store holds a damaged value: " + err.Error())
	}
	return v
}

// ---- keys ----

func (m *Machine) put(p *kv.Put) Result {
	if err := m.writable(); err != nil {
		return Result{Err: err}
	}
	if m.access.checked() {
		if err := m.access.put(p, m.leases()); err != nil {
			return Result{Err: err}
		}
	}
	tx := m.store.Begin()
	if err := m.checkPut(tx, p); err != nil {
		tx.End()
		return Result{Err: err}
	}
	body := m.doPut(tx, p, nil)
	return m.end(tx, body)
}

func (m *Machine) delete(d *kv.Delete) Result {
	if m.alarms.Corrupt() {
		return Result{Err: kv.ErrCorrupt}
	}
	if m.access.checked() {
		if err := m.access.delete(d); err != nil {
			return Result{Err: err}
		}
	}
	tx := m.store.Begin()
	body := m.doDelete(tx, d, nil)
	return m.end(tx, body)
}

// end closes tx and keeps its events for the watchers.
func (m *Machine) end(tx *mvcc.Tx, body []byte) Result {
	rev, events := tx.End()
	m.events = append(m.events, events...)
	return Result{Rev: rev, Body: body}
}

// writable reports why requests that make the store larger are refused now.
func (m *Machine) writable() error {
	switch {
	case m.alarms.Corrupt():
		return kv.ErrCorrupt
	case m.alarms.NoSpace():
		return kv.ErrNoSpace
	}
	return nil
}

// checkPut reports why p cannot be done in the state that tx sees.
func (m *Machine) checkPut(tx *mvcc.Tx, p *kv.Put) error {
	if p.Lease != kv.NoLease && !m.leases().Exists(p.Lease) {
		return kv.ErrLeaseNotFound
	}
	if p.IgnoreValue || p.IgnoreLease {
		if _, ok := tx.Get(p.Key); !ok {
			return kv.ErrKeyNotFound
		}
	}
	return nil
}

// doPut does p, which was checked, and appends PutResponse's fields but the header to b.
func (m *Machine) doPut(tx *mvcc.Tx, p *kv.Put, b []byte) []byte {
	value, id := p.Value, p.Lease
	if p.IgnoreValue || p.IgnoreLease || p.PrevKV {
		if prev, ok := tx.Get(p.Key); ok {
			if p.PrevKV {
				b = wire.AppendPutPrev(b, prev.KV)
			}
			old := keyValue(prev.KV)
			if p.IgnoreValue {
				value = old.Value
			}
			if p.IgnoreLease {
				id = old.Lease
			}
		}
	}
	m.counts.Puts++
	m.counts.PutBytes += int64(len(p.Key) + len(value))
	old := tx.Put(p.Key, value, id)
	if old != id {
		if old != kv.NoLease {
			m.leases().Detach(old, p.Key)
		}
		if id != kv.NoLease {
			m.leases().Attach(id, p.Key)
		}
	}
	return b
}

// doDelete does d and appends DeleteRangeResponse's fields but the header to b.
func (m *Machine) doDelete(tx *mvcc.Tx, d *kv.Delete, b []byte) []byte {
	var prevs []byte
	var each func(kv.Record)
	if d.PrevKV {
		each = func(prev kv.Record) {
			prevs = wire.AppendDeletedPrev(prevs, prev.KV)
		}
	}
	m.counts.Deletes++
	n := tx.Delete(d.Span, each, m.detach)
	return append(wire.AppendDeleted(b, n), prevs...)
}

// detach takes a deleted key off its lease.
func (m *Machine) detach(id kv.LeaseID, key []byte) { m.leases().Detach(id, key) }

func (m *Machine) compact(c *kv.Compact) Result {
	if m.alarms.Corrupt() {
		return Result{Err: kv.ErrCorrupt}
	}
	done, err := m.store.Compact(c.Revision)
	if err != nil {
		return Result{Err: err}
	}
	if !c.Physical {
		done = nil
	}
	return Result{Done: done}
}

// ---- leases ----

// leaseKey is a lease's key in the lease bucket.
func leaseKey(id kv.LeaseID) []byte { return binary.BigEndian.AppendUint64(nil, uint64(id)) }

// leaseValue is etcd's leasepb.Lease.
func leaseValue(id kv.LeaseID, ttl, remaining int64) []byte {
	var b []byte
	for i, v := range [...]int64{int64(id), ttl, remaining} {
		if v != 0 {
			b = protowire.AppendTag(b, protowire.Number(i+1), protowire.VarintType)
			b = protowire.AppendVarint(b, uint64(v))
		}
	}
	return b
}

// ReadLease decodes one pair of the lease bucket.
func ReadLease(value []byte) (id kv.LeaseID, ttl, remaining int64, err error) {
	for len(value) > 0 {
		num, typ, n := protowire.ConsumeTag(value)
		if n < 0 {
			return 0, 0, 0, fmt.Errorf("lease bucket: %w", protowire.ParseError(n))
		}
		value = value[n:]
		if typ != protowire.VarintType {
			n = protowire.ConsumeFieldValue(num, typ, value)
		} else {
			var v uint64
			v, n = protowire.ConsumeVarint(value)
			switch num {
			case 1:
				id = kv.LeaseID(v)
			case 2:
				ttl = int64(v)
			case 3:
				remaining = int64(v)
			}
		}
		if n < 0 {
			return 0, 0, 0, fmt.Errorf("lease bucket: %w", protowire.ParseError(n))
		}
		value = value[n:]
	}
	return id, ttl, remaining, nil
}

func (m *Machine) grant(r *pb.LeaseGrantRequest, now time.Time) Result {
	if err := m.writable(); err != nil {
		return Result{Err: err}
	}
	id := kv.LeaseID(r.ID)
	ttl, err := m.leases().Grant(id, r.TTL, now)
	if err != nil {
		return Result{Err: err}
	}
	m.store.PutBucket("lease", leaseKey(id), leaseValue(id, ttl, 0))
	var b []byte
	b = protowire.AppendTag(b, 2, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(id))
	b = protowire.AppendTag(b, 3, protowire.VarintType)
	b = protowire.AppendVarint(b, uint64(ttl))
	return Result{Body: b}
}

func (m *Machine) revoke(r *pb.LeaseRevokeRequest) Result {
	if m.alarms.Corrupt() {
		return Result{Err: kv.ErrCorrupt}
	}
	id := kv.LeaseID(r.ID)
	if m.access.checked() {
		if err := m.access.lease(id, m.leases()); err != nil {
			return Result{Err: err}
		}
	}
	keys, err := m.leases().Revoke(id)
	if err != nil {
		return Result{Err: err}
	}
	tx := m.store.Begin()
	for _, key := range keys {
		tx.Delete(kv.Span{Key: key}, nil, nil)
	}
	m.store.DeleteBucket("lease", leaseKey(id))
	return m.end(tx, nil)
}

func (m *Machine) checkpoint(r *pb.LeaseCheckpointRequest, now time.Time) Result {
	for _, c := range r.Checkpoints {
		id := kv.LeaseID(c.ID)
		ttl, err := m.leases().Checkpoint(id, c.Remaining_TTL, now)
		if err != nil {
			continue // revoked since the leader took the note
		}
		m.store.PutBucket("lease", leaseKey(id), leaseValue(id, ttl, c.Remaining_TTL))
	}
	return Result{}
}
