package sim

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"quorate/internal/kv"
	"quorate/internal/membership"
	"quorate/internal/node"
	"quorate/internal/peer"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// network carries messages between members. Each pair has a connection; what is sent over
// it arrives in order or, by a plan's chance, out of order or twice. A message that is
// lost takes the connection with it, and what else is under way there.
type network struct {
	w     *world
	mu    sync.Mutex
	ends  map[membership.ID]*end
	byID  map[membership.ID]*member
	urls  map[string]membership.ID
	cuts  map[direction]bool
	links map[direction]*link
}

// direction is one of a pair's two.
type direction struct{ from, to membership.ID }

// link is one direction of a connection.
type link struct {
	broken  int           // how often it has
	arrival time.Duration // of the last message
	losing  bool          // the sender was told
	since   time.Time     // when it came to stand; zero: it does not
}

func newNetwork(w *world) *network {
	return &network{
		w: w, ends: map[membership.ID]*end{}, byID: map[membership.ID]*member{}, urls: map[string]membership.ID{},
		cuts: map[direction]bool{}, links: map[direction]*link{},
	}
}

// end is one run of a member on the network.
type end struct {
	net     *network
	member  *member
	self    membership.ID
	h       peer.Handler
	peers   map[membership.ID]bool
	tasks   sync.WaitGroup
	batches map[batches]uint64 // taken as an etcd does
}

// batches are those that one run of a member has proposed in a term.
type batches struct{ from, incarnation, term uint64 }

var _ node.Network = (*end)(nil)

func (nw *network) linkOf(d direction) *link {
	l := nw.links[d]
	if l == nil {
		l = &link{}
		nw.links[d] = l
	}
	return l
}

// open reports whether messages pass in a direction, and who receives them.
func (nw *network) open(d direction) (*end, bool) {
	nw.mu.Lock()
	defer nw.mu.Unlock()
	to := nw.ends[d.to]
	return to, to != nil && nw.ends[d.from] != nil && !nw.cuts[d]
}

func (e *end) Open(self, _ membership.ID, h peer.Handler) {
	e.net.mu.Lock()
	defer e.net.mu.Unlock()
	e.self, e.h = self, h
	e.net.ends[self] = e
	e.net.byID[self] = e.member
	for _, u := range e.member.cfg.PeerURLs {
		e.net.urls[u] = self
	}
}

func (e *end) Add(id membership.ID, _ []string) {
	e.net.mu.Lock()
	known := e.peers[id]
	e.peers[id] = true
	e.net.mu.Unlock()
	if !known {
		e.net.w.post(int(e.member.i), func() { e.net.connect(e.self, id) })
	}
}

func (e *end) Update(id membership.ID, urls []string) {}

// Remove ends the connection to a member, which tries to connect again.
func (e *end) Remove(id membership.ID) {
	e.net.mu.Lock()
	known := e.peers[id]
	delete(e.peers, id)
	e.net.mu.Unlock()
	if known {
		e.net.w.post(e.member.i, func() {
			e.net.breakOff(e.self, id)
			e.net.connect(e.self, id)
		})
	}
}

func (e *end) IsQuorate(id membership.ID) bool {
	e.net.mu.Lock()
	defer e.net.mu.Unlock()
	m := e.net.byID[id]
	return m == nil || !m.etcd() || e.net.w.plan.plant.unknownEtcd
}

// etcd reports whether the member takes proposals of others as an etcd does: whichever
// arrives in its term, whether or not others were lost, and as often as it arrives.
func (m *member) etcd() bool { return m.i == m.w.plan.etcd }

// asEtcd makes a proposal look like the next one, as an etcd minds no numbers.
func (e *end) asEtcd(m *raftpb.Message) {
	if !e.member.etcd() || m.GetType() != raftpb.MsgProp || m.GetTerm() != e.member.n.Term() {
		return
	}
	if e.batches == nil {
		e.batches = map[batches]uint64{}
	}
	b := batches{m.GetFrom(), m.GetLogTerm(), m.GetTerm()}
	e.batches[b]++
	m.Index = new(e.batches[b])
}

func (e *end) ActiveSince(id membership.ID) time.Time {
	e.net.mu.Lock()
	defer e.net.mu.Unlock()
	return e.net.linkOf(direction{e.self, id}).since
}

func (e *end) Close() {
	e.net.mu.Lock()
	if e.net.ends[e.self] == e {
		delete(e.net.ends, e.self)
	}
	e.net.mu.Unlock()
	e.tasks.Wait()
}

// connect makes a connection between two members, after a while, if it can.
func (nw *network) connect(a, b membership.ID) {
	w := nw.w
	w.later(w.between(100*time.Microsecond, 5*time.Millisecond), func() {
		ea, ok1 := nw.open(direction{b, a})
		eb, ok2 := nw.open(direction{a, b})
		if !ok1 || !ok2 || nw.turnedAway(ea, eb) || nw.turnedAway(eb, ea) || !ea.peers[b] && !eb.peers[a] {
			return
		}
		// Whoever does not know the other is told where it is.
		nw.mu.Lock()
		ea.peers[b], eb.peers[a] = true, true
		nw.mu.Unlock()
		nw.stands(direction{a, b}, time.Now())
		nw.stands(direction{b, a}, time.Now())
		ea.h.Connected(b)
		eb.h.Connected(a)
	})
}

// turnedAway reports whether a member refuses to talk to another because that was removed,
// and lets that know.
func (nw *network) turnedAway(from, to *end) bool {
	p := &nw.w.plan.plant
	if !to.h.IsRemoved(from.self) && !p.alwaysTold {
		return false
	}
	if !p.lostChanges {
		nw.w.later(nw.w.between(0, 5*time.Millisecond), func() {
			if nw.ends[from.self] == from {
				from.h.Removed()
			}
		})
	}
	return true
}

func (nw *network) stands(d direction, since time.Time) {
	nw.mu.Lock()
	defer nw.mu.Unlock()
	l := nw.linkOf(d)
	if since.IsZero() {
		l.broken++
	} else {
		l.losing = false
	}
	if l.since.IsZero() || since.IsZero() {
		l.since = since
	}
}

// breakOff ends the connection between two members, with all that is under way.
func (nw *network) breakOff(a, b membership.ID) {
	nw.stands(direction{a, b}, time.Time{})
	nw.stands(direction{b, a}, time.Time{})
	nw.lost(direction{a, b})
	nw.lost(direction{b, a})
}

// lost tells the sender, once a burst, that messages were lost.
func (nw *network) lost(d direction) {
	l := nw.linkOf(d)
	from := nw.ends[d.from]
	if l.losing || from == nil {
		return
	}
	l.losing = true
	nw.w.later(nw.w.between(0, 5*time.Millisecond), func() {
		if nw.ends[d.from] == from {
			from.h.Lost(d.to)
		}
	})
}

func (e *end) Send(ms []*raftpb.Message) {
	for _, m := range ms {
		for _, m := range e.net.w.plan.plant.tampered(m) {
			e.net.send(e, m)
		}
	}
}

func (nw *network) send(e *end, m *raftpb.Message) {
	w := nw.w
	w.check.stats.messages++
	w.note("send", uint64(e.member.i), m.GetTo(), uint64(m.GetType()), m.GetTerm(), m.GetLogTerm(), m.GetIndex(), m.GetCommit(), uint64(len(m.Entries)))
	d := direction{e.self, membership.ID(m.GetTo())}
	if !e.peers[d.to] || nw.ends[d.from] != e {
		return
	}
	if _, ok := nw.open(d); !ok {
		nw.lost(d)
		return
	}
	if w.chance(w.plan.loss) {
		nw.breakOff(d.from, d.to)
		nw.connect(d.from, d.to)
		return
	}
	m = proto.Clone(m).(*raftpb.Message)
	l := nw.linkOf(d)
	at := w.now() + w.between(w.plan.delayMin, w.plan.delayMax)
	if w.chance(w.plan.reorder) {
		at += w.between(0, 2*w.plan.delayMax)
	} else {
		at = max(at, l.arrival+1)
		l.arrival = at
	}
	nw.deliver(d, l.broken, at, m)
	if w.chance(w.plan.duplicate) && !(m.GetType() == raftpb.MsgProp && nw.byID[d.to].etcd()) {
		again := proto.Clone(m).(*raftpb.Message)
		nw.deliver(d, l.broken, at+w.between(0, 3*w.plan.delayMax), again)
	}
}

// deliver has m arrive unless the connection ends before.
func (nw *network) deliver(d direction, broken int, at time.Duration, m *raftpb.Message) {
	w := nw.w
	w.later(at-w.now(), func() {
		to, ok := nw.open(d)
		if !ok || nw.linkOf(d).broken != broken {
			return
		}
		if from := nw.ends[d.from]; from != nil && nw.turnedAway(from, to) {
			return
		}
		to.asEtcd(m)
		to.h.Receive(m)
	})
}

// SendSnapshot reads the file at once, and has it arrive after a while.
func (e *end) SendSnapshot(m *raftpb.Message, db io.ReadCloser, size int64) {
	nw, w := e.net, e.net.w
	e.tasks.Go(func() {
		data, err := io.ReadAll(db)
		if cerr := db.Close(); err == nil {
			err = cerr
		}
		order := e.member.i*len(w.members) + nw.memberOf(m.GetTo())
		w.post(order, func() {
			if err != nil {
				e.snapshotSent(m, err)
				return
			}
			w.later(w.between(w.plan.delayMin, 5*w.plan.delayMax), func() { e.snapshotArrives(m, data, size) })
		})
	})
}

func (e *end) snapshotSent(m *raftpb.Message, err error) {
	if e.net.ends[e.self] == e {
		e.h.SnapshotSent(membership.ID(m.GetTo()), err)
	}
}

func (e *end) snapshotArrives(m *raftpb.Message, data []byte, size int64) {
	nw, w := e.net, e.net.w
	to, ok := nw.open(direction{e.self, membership.ID(m.GetTo())})
	if !ok || w.chance(w.plan.loss) {
		e.snapshotSent(m, peer.ErrUnreachable)
		return
	}
	w.check.stats.snapshots++
	w.note("snapshot", m.GetFrom(), m.GetTo(), m.GetSnapshot().GetMetadata().GetIndex(), m.GetSnapshot().GetMetadata().GetTerm())
	order := e.member.i*len(w.members) + to.member.i
	to.tasks.Go(func() {
		err := to.h.ReceiveSnapshot(proto.Clone(m).(*raftpb.Message), bytes.NewReader(data), size)
		w.post(order, func() { e.snapshotSent(m, err) })
	})
}

func (nw *network) memberOf(id uint64) int {
	nw.mu.Lock()
	defer nw.mu.Unlock()
	if m := nw.byID[membership.ID(id)]; m != nil {
		return m.i
	}
	return 0
}

// cut keeps messages from passing in a direction.
func (nw *network) cut(d direction) {
	nw.mu.Lock()
	nw.cuts[d] = true
	nw.mu.Unlock()
}

// heal ends all cuts and makes all connections anew.
func (nw *network) heal() {
	nw.mu.Lock()
	clear(nw.cuts)
	nw.mu.Unlock()
	for i, a := range nw.w.members {
		for _, b := range nw.w.members[:i] {
			if a.id != 0 && b.id != 0 {
				nw.connect(a.id, b.id)
			}
		}
	}
}

// down is called when a member's process has ended: the others notice, unless the whole
// machine is off.
func (nw *network) down(e *end, machine bool) {
	w := nw.w
	nw.mu.Lock()
	if nw.ends[e.self] == e {
		delete(nw.ends, e.self)
	}
	nw.mu.Unlock()
	for _, m := range w.members {
		if m.id == e.self || m.id == 0 {
			continue
		}
		other := nw.ends[m.id]
		nw.stands(direction{e.self, m.id}, time.Time{})
		nw.stands(direction{m.id, e.self}, time.Time{})
		if other == nil || machine || nw.cuts[direction{e.self, m.id}] || nw.cuts[direction{m.id, e.self}] {
			continue
		}
		w.later(w.between(200*time.Microsecond, 3*time.Millisecond), func() {
			// A new connection is refused as long as the member is down.
			if nw.ends[other.self] == other && nw.ends[e.self] == nil {
				other.h.Gone(e.self)
			}
		})
	}
}

// asker asks other members over the network, as peer.Client.
type asker struct {
	net *network
	m   *member
}

var _ node.Peers = asker{}

// askTimeout is how long an asker waits for a member that cannot be reached.
const askTimeout = 300 * time.Millisecond

// ask runs fn on the member that one of the urls is of, after the way there.
func (a asker) ask(ctx context.Context, urls []string, fn func(peer.Handler) error) error {
	w := a.net.w
	a.net.mu.Lock()
	id := membership.ID(0)
	for _, u := range urls {
		if id = a.net.urls[u]; id != 0 {
			break
		}
	}
	a.net.mu.Unlock()
	way := func() error {
		span := w.plan.delayMax - w.plan.delayMin
		d := w.plan.delayMin + time.Duration(mix(w.seed, uint64(a.m.i), uint64(id), uint64(w.now()))%uint64(max(1, span)))
		_, there := a.net.open(direction{a.m.id, id})
		_, back := a.net.open(direction{id, a.m.id})
		if !there || !back {
			d = askTimeout
		}
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", peer.ErrUnreachable, ctx.Err())
		}
		if !there || !back {
			return peer.ErrUnreachable
		}
		return nil
	}
	if a.m.id == 0 {
		return peer.ErrUnreachable // the world's goroutine asks, which must not wait
	}
	if err := way(); err != nil {
		return err
	}
	to, ok := a.net.open(direction{a.m.id, id})
	if !ok {
		return peer.ErrUnreachable
	}
	err := fn(to.h)
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", peer.ErrUnreachable, ctx.Err()) // the answer comes too late
	}
	if now, ok := a.net.open(direction{a.m.id, id}); !ok || now != to {
		return peer.ErrUnreachable // its process has ended, and the connection with it
	}
	return cmp.Or(err, way())
}

func (a asker) Members(ctx context.Context, urls []string) (cluster membership.ID, ms []membership.Member, err error) {
	if h := a.m.host; h != nil {
		return membership.ID(h.n.ClusterID()), h.n.Cluster().State().Members, nil // without waiting
	}
	err = a.ask(ctx, urls, func(h peer.Handler) error {
		ms = h.Members()
		return nil
	})
	return cluster, ms, err
}

func (a asker) Versions(ctx context.Context, urls []string) (server, cluster string, err error) {
	err = a.ask(ctx, urls, func(h peer.Handler) error {
		server = node.Version
		cluster, _ = h.Versions()
		return nil
	})
	return server, cluster, err
}

func (a asker) Promote(ctx context.Context, urls []string, id membership.ID, token string) (ms []membership.Member, err error) {
	err = a.ask(ctx, urls, func(h peer.Handler) (err error) {
		ms, err = h.Promote(ctx, id, token)
		return err
	})
	return ms, err
}

func (a asker) RenewLease(ctx context.Context, urls []string, id kv.LeaseID) (ttl int64, err error) {
	err = a.ask(ctx, urls, func(h peer.Handler) (err error) {
		ttl, err = h.RenewLease(ctx, id)
		return err
	})
	return ttl, err
}

func (a asker) LeaseTimeToLive(ctx context.Context, urls []string, id kv.LeaseID, keys bool) (r *pb.LeaseTimeToLiveResponse, err error) {
	err = a.ask(ctx, urls, func(h peer.Handler) (err error) {
		r, err = h.LeaseTimeToLive(ctx, id, keys)
		return err
	})
	return r, err
}
