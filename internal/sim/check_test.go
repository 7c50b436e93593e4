package sim

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	"quorate/internal/kv"
	"quorate/internal/membership"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// checker looks on, and notes what must not be.
type checker struct {
	w          *world
	stats      stats
	violations []string
	clock      int64 // order of calls and returns

	leaders   map[uint64]uint64 // term → member
	entries   map[place]content
	committed []place // by index, from 0

	states  map[uint64]string // applied index → what every member then holds
	hashes  map[uint64]string // the same with all revisions, for some
	changes []change          // of keys, in order of their revisions
	rev     int64             // up to which they are known

	applications map[string]int          // of requests that write a unique value
	unapplied    []committedRequest      // by index
	appliedAt    map[string]int64        // first seen applied, in order with calls
	ops          []*op                   // that are over
	promises     map[int64][]promise     // by lease
	revoked      map[int64]time.Duration // by lease
	asked        map[int64]bool          // clients asked for its end

	alarmed map[uint64]bool // members whose alarm for want of space is committed
	eased   time.Duration   // when the last of them was lowered; 0: never

	added    map[membership.ID]bool // by committed changes, and not removed again
	removed  map[membership.ID]bool
	learners map[membership.ID]bool
}

// place is where an entry stands in the log.
type place struct{ index, term uint64 }

// content is a digest of an entry, and the term before it.
type content struct{ prev, sum uint64 }

// change is one of a key.
type change struct {
	rev, sub   int64
	key, value string
	deleted    bool
}

// committedRequest is one that no member was seen to have applied yet.
type committedRequest struct {
	index uint64
	tag   string
}

// promise is what a client was told of a lease: that it lasts from at least then.
type promise struct {
	sent time.Duration
	ttl  int64
}

func newChecker(w *world) *checker {
	return &checker{
		w: w, leaders: map[uint64]uint64{}, entries: map[place]content{}, committed: []place{{}},
		states: map[uint64]string{}, hashes: map[uint64]string{}, rev: 1,
		applications: map[string]int{}, appliedAt: map[string]int64{},
		promises: map[int64][]promise{}, revoked: map[int64]time.Duration{}, asked: map[int64]bool{},
		alarmed: map[uint64]bool{},
		added:   map[membership.ID]bool{}, removed: map[membership.ID]bool{}, learners: map[membership.ID]bool{},
	}
}

func (c *checker) violation(s string) {
	c.violations = append(c.violations, fmt.Sprintf("at %s: %s", c.w.now(), s))
}

// tick is the next moment: no two calls or returns share one.
func (c *checker) tick() int64 { c.clock++; return c.clock }

func (c *checker) committedTo() uint64 { return uint64(len(c.committed) - 1) }

// stepped looks at a member after a turn of its loop.
func (c *checker) stepped(m *member) {
	n := m.n
	if term := n.Term(); n.Leader() == n.MemberID() {
		if old, ok := c.leaders[term]; ok && old != n.MemberID() {
			c.w.fail("two leaders in term %d: %x and %x", term, old, n.MemberID())
		} else if !ok {
			c.leaders[term] = n.MemberID()
			c.stats.leaders++
		}
	}
	c.logs(m)
}

// logs compares the part of a member's durable log that was not committed when it was
// looked at last.
func (c *checker) logs(m *member) {
	ents := m.n.LogFrom(m.seen)
	for i, e := range ents {
		at := place{e.GetIndex(), e.GetTerm()}
		h := fnv.New64a()
		_, _ = h.Write(e.Data) // cannot fail
		got := content{sum: mix(h.Sum64(), uint64(e.GetType()))}
		old, known := c.entries[at]
		switch {
		case i > 0:
			got.prev = ents[i-1].GetTerm()
		case known:
			got.prev = old.prev // what is before was not read
		default:
			got.prev = unknownTerm
		}
		switch {
		case !known || old.sum == got.sum && old.prev == unknownTerm:
			c.entries[at] = got
		case old.sum != got.sum || got.prev != unknownTerm && old.prev != got.prev:
			c.w.fail("logs do not match: entry %d of term %d is another on %s", at.index, at.term, m.cfg.Name)
		}
	}
}

const unknownTerm = 1 << 63

// commit notes an entry that a member takes for committed.
func (c *checker) commit(m *member, e *raftpb.Entry) {
	at := place{e.GetIndex(), e.GetTerm()}
	m.seen, m.handed = max(m.seen, at.index), at.index
	switch {
	case at.index < uint64(len(c.committed)):
		if old := c.committed[at.index]; old != at {
			c.w.fail("%s has committed entry %d of term %d, where another has term %d", m.cfg.Name, at.index, at.term, old.term)
		}
		return
	case at.index > uint64(len(c.committed)):
		c.w.fail("the checker has missed entries before %d", at.index)
		return
	}
	c.committed = append(c.committed, at)
	c.w.note("commit", at.index, at.term)
	if e.GetType() == raftpb.EntryConfChange {
		c.changed(e)
		return
	}
	if e.GetType() != raftpb.EntryNormal || len(e.Data) == 0 {
		return
	}
	req, err := wire.DecodeRaftRequest(e.Data)
	if err != nil {
		c.w.fail("entry %d: %v", at.index, err)
		return
	}
	c.request(at.index, req)
}

// changed notes a change of the membership, and has a member start that was added.
func (c *checker) changed(e *raftpb.Entry) {
	var cc raftpb.ConfChange
	if err := proto.Unmarshal(e.Data, &cc); err != nil {
		c.w.fail("entry %d: %v", e.GetIndex(), err)
		return
	}
	id := membership.ID(cc.GetNodeId())
	c.w.note("change", uint64(cc.GetType()), uint64(id))
	switch cc.GetType() {
	case raftpb.ConfChangeRemoveNode:
		c.removed[id] = true
		delete(c.added, id)
		delete(c.learners, id)
	case raftpb.ConfChangeAddNode, raftpb.ConfChangeAddLearnerNode:
		if c.removed[id] {
			return // it is refused
		}
		if cc.GetType() == raftpb.ConfChangeAddNode {
			delete(c.learners, id)
		} else {
			c.learners[id] = true
		}
		founder := slices.ContainsFunc(c.w.members, func(m *member) bool { return m.id == id })
		if !c.added[id] && !founder {
			var add membership.Context
			if err := json.Unmarshal(cc.Context, &add); err != nil {
				c.w.fail("entry %d: %v", e.GetIndex(), err)
				return
			}
			c.w.post(-1, func() { c.w.join(id, add.PeerURLs) })
		}
		c.added[id] = true
	}
}

// lastVoter reports whether nobody else has a vote.
func (c *checker) lastVoter(id membership.ID) bool {
	return c.added[id] && !c.learners[id] && len(c.added)-len(c.learners) == 1
}

// request notes that a request is committed, which is to be once at most. What makes the
// store larger is refused, by all, while there is an alarm.
func (c *checker) request(index uint64, req wire.RaftRequest) {
	value := ""
	switch req.Field {
	case wire.FieldPut:
		var p pb.PutRequest
		if err := proto.Unmarshal(req.Body, &p); err == nil {
			value = string(p.Value)
		}
	case wire.FieldTxn:
		var t pb.TxnRequest
		if err := proto.Unmarshal(req.Body, &t); err == nil {
			value = string(t.Success[len(t.Success)-1].GetRequestPut().GetValue())
		}
	case wire.FieldLeaseGrant:
		var g pb.LeaseGrantRequest
		if err := proto.Unmarshal(req.Body, &g); err == nil {
			value = grantTag(g.ID)
		}
	case wire.FieldLeaseRevoke:
		var r pb.LeaseRevokeRequest
		if err := proto.Unmarshal(req.Body, &r); err == nil {
			c.leaseRevoked(r.ID)
		}
	case wire.FieldAlarm:
		var a pb.AlarmRequest
		if err := proto.Unmarshal(req.Body, &a); err == nil {
			c.alarm(&a)
		}
	}
	if value == "" || len(c.alarmed) > 0 {
		return
	}
	c.applications[value]++
	if n := c.applications[value]; n > 1 {
		c.w.fail("request %s was applied %d times", value, n)
	} else {
		c.unapplied = append(c.unapplied, committedRequest{index, value})
	}
}

// alarm notes that a member has raised or lowered its alarm.
func (c *checker) alarm(a *pb.AlarmRequest) {
	had := len(c.alarmed) > 0
	switch a.Action {
	case pb.AlarmRequest_ACTIVATE:
		c.alarmed[a.MemberID] = true
		c.stats.alarms++
	case pb.AlarmRequest_DEACTIVATE:
		delete(c.alarmed, a.MemberID)
	}
	if had && len(c.alarmed) == 0 {
		c.eased = c.w.now()
	}
}

// overQuota reports whether there was a reason to refuse o for want of space: an alarm
// while it was under way, or that its member has no room for as much as it says. A
// member may learn late that an alarm was lowered.
func (c *checker) overQuota(o *op) bool {
	if c.w.plan.quota == 0 {
		return false
	}
	if len(c.alarmed) > 0 || c.eased > 0 && o.sent <= c.eased+alarmPatience || !o.alive() {
		return true
	}
	_, inUse := o.on.n.Store().Size()
	return inUse+int64(len(o.value)+len(o.expect))+entryMax > c.w.plan.quota
}

const (
	// alarmPatience is how much later than others a member may hear of an alarm's end.
	alarmPatience = 2 * time.Second
	// entryMax is what a request has beside its values, in bytes.
	entryMax = 200
)

// shown notes which requests a member is the first to have applied. A sole voter's reads
// see no request before that, others' reads none before it is committed.
func (c *checker) shown(to uint64) {
	for len(c.unapplied) > 0 && c.unapplied[0].index <= to {
		c.appliedAt[c.unapplied[0].tag] = c.tick()
		c.unapplied = c.unapplied[1:]
	}
}

func grantTag(lease int64) string { return fmt.Sprint("lease ", lease) }

// tag is the unique value by which the log tells whether o was applied, "" if it has none.
func (o *op) tag() string {
	switch o.kind {
	case put, swap, del, leased:
		return o.value
	case grant:
		return grantTag(o.lease)
	}
	return ""
}

// applied looks at a member after a turn of its applier.
func (c *checker) applied(m *member) {
	v := m.n.View()
	defer v.Release()
	if at := v.Applied(); at == m.at {
		return
	} else if at < m.at {
		c.w.fail("%s has gone back from entry %d to %d", m.cfg.Name, m.at, at)
	}
	if m.at = v.Applied(); m.at > m.handed {
		m.installed = c.w.now() // more than it was told to apply
		m.handed = m.at
	}
	c.shown(m.at)
	c.learn(m)

	var b strings.Builder
	fmt.Fprintf(&b, "revision %d, compacted %d, leases", v.Rev(), v.CompactRev())
	ids := m.n.Leases().List()
	slices.Sort(ids)
	for _, id := range ids {
		fmt.Fprintf(&b, " %d", id)
	}
	for _, mb := range m.n.Cluster().State().Members {
		fmt.Fprintf(&b, ", member %s %s %v %v", mb.ID, mb.Name, mb.PeerURLs, mb.IsLearner)
	}
	for _, a := range m.n.Status().Alarms {
		fmt.Fprintf(&b, ", alarm %v", a)
	}
	if _, err := v.Range(&kv.Range{Span: kv.Span{Key: []byte{0}, End: []byte{0}}}, func(kv []byte) { fmt.Fprintf(&b, ", %x", kv) }); err != nil {
		c.w.fail("read %s: %v", m.cfg.Name, err)
	}
	c.same(c.states, m, b.String())
	if m.at%16 == 0 || c.w.calm {
		sum, compacted, rev, err := v.HashKV(0)
		c.same(c.hashes, m, fmt.Sprint(sum, compacted, rev, err))
	}
}

// same compares what a member holds with what others held when they had applied the same.
func (c *checker) same(held map[uint64]string, m *member, got string) {
	if old, ok := held[m.at]; ok && old != got {
		c.w.fail("the state after entry %d differs:\n%s\non %s:\n%s", m.at, old, m.cfg.Name, got)
	}
	held[m.at] = got
}

// learn notes the changes that a member is the first to have applied.
func (c *checker) learn(m *member) {
	v := m.n.View()
	defer v.Release()
	if v.Rev() <= c.rev {
		return
	}
	err := v.Changes(c.rev+1, v.Rev(), func(e kv.Event) bool {
		k, err := wire.DecodeKeyValue(e.KV)
		if err != nil {
			c.w.fail("revision %v: %v", e.Rev, err)
		}
		c.changes = append(c.changes, change{e.Rev.Main, 0, string(e.Key), string(k.Value), e.Tombstone})
		return true
	})
	if err != nil {
		c.w.fail("the checker has missed revisions from %d on: %v", c.rev+1, err)
	}
	c.rev = v.Rev()
}

// leaseRevoked notes the end of a lease, and compares it with what its client was told.
func (c *checker) leaseRevoked(id int64) {
	if _, ok := c.revoked[id]; ok {
		return
	}
	c.revoked[id] = c.w.now()
	for _, p := range c.promises[id] {
		c.kept(id, p)
	}
}

// kept checks a promise against the end of its lease, if that has come.
func (c *checker) kept(id int64, p promise) {
	end, over := c.revoked[id]
	if over && !c.asked[id] && end < p.sent+time.Duration(p.ttl)*time.Second {
		c.w.fail("lease %d has ended at %s: it was promised for %d s from %s", id, end, p.ttl, p.sent)
	}
}

// answered notes a request that is over.
func (c *checker) answered(o *op) {
	c.ops = append(c.ops, o)
	if o.err == nil && (o.kind == grant || o.kind == renew) {
		p := promise{o.sent, o.ttl}
		c.promises[o.lease] = append(c.promises[o.lease], p)
		c.kept(o.lease, p)
	}
	if tag := o.tag(); tag != "" && o.err == nil && c.applications[tag] != 1 {
		c.w.fail("request %v was acknowledged, and is committed %d times", o, c.applications[tag])
	}
}

// refused looks at the error of a request: whether there was a reason for it.
func (c *checker) refused(o *op) {
	if o.alive() {
		c.applied(o.on) // as it is by now
	}
	err, took := o.err, o.ended-o.sent
	patience := c.w.plan.requestTimeout()
	switch {
	case errors.Is(err, context.DeadlineExceeded) && o.deadline > 0 && took >= o.deadline:
	case errors.Is(err, kv.ErrStopped) && !o.alive():
	case errors.Is(err, kv.ErrTimeout) && (took >= patience || o.on.installed >= o.sent && o.on.installed > 0):
	case errors.Is(err, kv.ErrNoSpace) && (o.disk.outOfRoom(o.sent) || c.overQuota(o)):
		return
	case errors.Is(err, kv.ErrLeaseNotFound) && (o.kind == renew || o.kind == revoke || o.kind == leased):
		if _, over := c.revoked[o.lease]; !over && o.kind != leased {
			c.w.fail("%v: the lease was not found, but it has not ended", o)
		}
		return
	case o.kind == compact && (errors.Is(err, kv.ErrCompacted) || errors.Is(err, kv.ErrFutureRevision)):
		return
	default:
		c.w.fail("a request failed for no good reason: %v", o)
	}
	c.stats.unknown++
}

// requestTimeout is how long a member lets a request wait.
func (p *plan) requestTimeout() time.Duration {
	return 5*time.Second + 2*time.Duration(p.elections)*p.tick
}

// finish looks at the whole history.
func (c *checker) finish() {
	if len(c.violations) > 0 {
		return
	}
	c.order()
	c.linear()
}

// order checks that revisions follow real time: what begins after an answer sees at least
// its revision, and a write makes a higher one.
func (c *checker) order() {
	type moment struct {
		at int64
		o  *op
	}
	var ms []moment
	for _, o := range c.ops {
		if o.err == nil && o.at > 0 {
			ms = append(ms, moment{o.call, o}, moment{o.ret, o})
		}
	}
	slices.SortFunc(ms, func(a, b moment) int { return cmp.Compare(a.at, b.at) })
	highest := int64(0) // of those answered
	least := map[*op]int64{}
	for _, m := range ms {
		if m.at == m.o.call {
			least[m.o] = highest
			continue
		}
		writes := m.o.kind == put || m.o.kind == leased || m.o.kind == del || m.o.kind == swap && m.o.did
		if m.o.at < least[m.o] || writes && m.o.at == least[m.o] {
			c.violation(fmt.Sprintf("revisions do not follow time: %v began after revision %d was seen", m.o, least[m.o]))
			return
		}
		highest = max(highest, m.o.at)
	}
}
