package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"quorate/internal/kv"
	"quorate/internal/membership"
	"quorate/internal/metrics"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
)

const testCluster membership.ID = 0xc1a5

// member is a Handler that keeps what it is told.
type member struct {
	events    chan string // "connected 2", "lost 2", "gone 2", "removed", "snapshot 2 <error>"
	messages  chan *raftpb.Message
	snapshots chan received
	// hold makes ReceiveSnapshot read no more until it is closed; nil: not.
	hold chan struct{}

	mu      sync.Mutex
	removed map[membership.ID]bool
}

type received struct {
	m    *raftpb.Message
	n    int64
	size int64
	err  error
}

func newMember() *member {
	return &member{
		events: make(chan string, 1<<16), messages: make(chan *raftpb.Message, 1<<17),
		snapshots: make(chan received, 16), removed: make(map[membership.ID]bool),
	}
}

func (h *member) Receive(m *raftpb.Message) { h.messages <- m }

func (h *member) ReceiveSnapshot(m *raftpb.Message, db io.Reader, size int64) error {
	if h.hold != nil {
		<-h.hold
	}
	n, err := io.Copy(io.Discard, db)
	if err == nil && size >= 0 && n != size {
		err = io.ErrUnexpectedEOF
	}
	h.snapshots <- received{m, n, size, err}
	return err
}

func (h *member) Connected(id membership.ID) { h.events <- "connected " + id.String() }
func (h *member) Lost(id membership.ID)      { h.events <- "lost " + id.String() }
func (h *member) Gone(id membership.ID)      { h.events <- "gone " + id.String() }
func (h *member) Removed()                   { h.events <- "removed" }
func (h *member) SnapshotSent(id membership.ID, err error) {
	h.events <- fmt.Sprintf("snapshot %s %v", id, err)
}

func (h *member) IsRemoved(id membership.ID) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.removed[id]
}

func (h *member) remove(id membership.ID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.removed[id] = true
}

func (h *member) Members() []membership.Member {
	return []membership.Member{{ID: 1, PeerURLs: []string{"http://127.0.0.1:1"}, Name: "one"}}
}
func (h *member) Versions() (cluster, storage string) { return "3.7.0", "" }
func (h *member) Promote(_ context.Context, id membership.ID, token string) ([]membership.Member, error) {
	switch id {
	case 0:
		return []membership.Member{{ID: 1, Name: token}}, nil
	case 1:
		return h.Members(), nil
	case 2:
		return nil, kv.ErrMemberNotLearner
	case 3:
		return nil, kv.ErrLearnerNotReady
	case 4:
		return nil, kv.ErrNotLeader
	case 5:
		return nil, kv.ErrUnhealthy
	case 7:
		return nil, kv.ErrStopped
	}
	return nil, kv.ErrMemberNotFound
}
func (h *member) RenewLease(ctx context.Context, id kv.LeaseID) (int64, error) {
	switch id {
	case 1:
		return 60, nil
	case 2:
		return 0, kv.ErrNotLeader
	case 3:
		<-ctx.Done()
		return 0, ctx.Err()
	case 5:
		return 0, kv.ErrStopped
	}
	return 0, kv.ErrLeaseNotFound
}
func (h *member) LeaseTimeToLive(ctx context.Context, id kv.LeaseID, keys bool) (*pb.LeaseTimeToLiveResponse, error) {
	if _, err := h.RenewLease(ctx, id); err != nil {
		return nil, err
	}
	r := &pb.LeaseTimeToLiveResponse{ID: int64(id), TTL: 41, GrantedTTL: 60}
	if keys {
		r.Keys = [][]byte{[]byte("a"), []byte("b")}
	}
	return r, nil
}
func (h *member) HashKV(_ context.Context, rev int64) (*pb.HashKVResponse, error) {
	switch rev {
	case 1:
		return nil, kv.ErrCompacted
	case 9:
		return nil, kv.ErrFutureRevision
	}
	return &pb.HashKVResponse{Header: &pb.ResponseHeader{Revision: 5}, Hash: 77, CompactRevision: 2, HashRevision: rev}, nil
}
func (h *member) DowngradeEnabled(context.Context) (bool, error) { return true, nil }

// node is a Transport behind a port.
type node struct {
	*Transport
	h    *member
	id   membership.ID
	url  string
	addr string
	http *http.Server
	met  *metrics.Set
}

// start runs a Transport on a port of its own, or on addr.
func start(t testing.TB, id membership.ID, addr string, change ...func(*Options)) *node {
	t.Helper()
	n := listen(t, id, addr, change...)
	n.Open(id, testCluster, n.h)
	return n
}

// listen is start without Open.
func listen(t testing.TB, id membership.ID, addr string, change ...func(*Options)) *node {
	t.Helper()
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{h: newMember(), id: id, url: "http://" + l.Addr().String(), addr: l.Addr().String(), met: metrics.New(false)}
	o := Options{ServerVersion: "3.7.1", PeerURLs: []string{n.url}, Metrics: n.met}
	for _, c := range change {
		c(&o)
	}
	n.Transport = New(o)
	n.http = &http.Server{Handler: n.Handler()}
	go n.http.Serve(l)
	t.Cleanup(n.end)
	return n
}

// end stops it as a process that ends would.
func (n *node) end() {
	n.http.Close()
	n.Close()
}

// connect makes all of ns know each other and waits until every one reaches every other.
func connect(t testing.TB, ns ...*node) {
	t.Helper()
	for _, n := range ns {
		for _, o := range ns {
			if n != o {
				n.Add(o.id, []string{o.url})
			}
		}
	}
	for _, n := range ns {
		for _, o := range ns {
			if n != o {
				n.reaches(t, o)
			}
		}
	}
}

// reaches waits until both of n's streams to o stand.
func (n *node) reaches(t testing.TB, o *node) {
	t.Helper()
	until(t, fmt.Sprintf("%s has no streams to %s", n.id, o.id), func() bool {
		r := n.remote(o.id)
		for k := range r.outboxes {
			r.outboxes[k].mu.Lock()
			stands := r.outboxes[k].stream != nil
			r.outboxes[k].mu.Unlock()
			if !stands {
				return false
			}
		}
		return true
	})
}

func until(t testing.TB, trouble string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(trouble)
		}
	}
}

// expect waits for an event, passing over others.
func (h *member) expect(t testing.TB, event string) {
	t.Helper()
	for {
		select {
		case e := <-h.events:
			if e == event {
				return
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no event %q", event)
		}
	}
}

// never fails if the event comes within wait.
func (h *member) never(t testing.TB, event string, wait time.Duration) {
	t.Helper()
	end := time.After(wait)
	for {
		select {
		case e := <-h.events:
			if e == event {
				t.Fatalf("event %q", event)
			}
		case <-end:
			return
		}
	}
}

func message(typ raftpb.MessageType, from, to membership.ID, index uint64, data ...string) *raftpb.Message {
	m := &raftpb.Message{Type: typ.Enum(), From: new(uint64(from)), To: new(uint64(to)), Term: new(uint64(7)), Index: new(index)}
	for i, d := range data {
		m.Entries = append(m.Entries, &raftpb.Entry{Term: new(uint64(7)), Index: new(index + uint64(i) + 1), Data: []byte(d)})
	}
	if typ == raftpb.MsgApp {
		m.LogTerm = new(uint64(7))
	}
	return m
}

func (h *member) next(t testing.TB) *raftpb.Message {
	t.Helper()
	select {
	case m := <-h.messages:
		return m
	case <-time.After(10 * time.Second):
		t.Fatal("no message")
		return nil
	}
}

// The metrics tell which members are known, itself included, as etcd's do.
func TestKnownPeers(t *testing.T) {
	a, b := start(t, 1, ""), start(t, 2, "")
	known := func(id string) float64 { return a.met.KnownPeers.With("1", id).Value() }
	connect(t, a, b)
	if known("1") != 1 || known("2") != 1 {
		t.Errorf("known: itself %v, the other %v", known("1"), known("2"))
	}
	a.Remove(2)
	if known("1") != 1 || known("2") != 0 {
		t.Errorf("known after a removal: itself %v, the other %v", known("1"), known("2"))
	}
}

// What is sent on one stream arrives, once and in order, both ways at once.
func TestOrder(t *testing.T) {
	a, b, c := start(t, 1, ""), start(t, 2, ""), start(t, 3, "")
	nodes := []*node{a, b, c}
	connect(t, nodes...)
	const count = 3000
	for i := range uint64(count) {
		for _, n := range nodes {
			var ms []*raftpb.Message
			for _, o := range nodes {
				if o != n {
					ms = append(ms, message(raftpb.MsgApp, n.id, o.id, i, "x"), message(raftpb.MsgHeartbeat, n.id, o.id, i), message(raftpb.MsgProp, n.id, o.id, i, "y", "z"))
				}
			}
			n.Send(ms)
		}
		if i%100 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	for _, n := range nodes {
		next := make(map[[2]uint64]uint64)
		for range 2 * 3 * count {
			m := n.h.next(t)
			key := [2]uint64{m.GetFrom(), uint64(m.GetType())}
			if m.GetIndex() != next[key] {
				t.Fatalf("message %v from %x: index %d, want %d", m.GetType(), m.GetFrom(), m.GetIndex(), next[key])
			}
			next[key]++
		}
	}
}

func TestReconnect(t *testing.T) {
	a, b := start(t, 1, ""), start(t, 2, "")
	connect(t, a, b)
	if !a.IsQuorate(2) || !b.IsQuorate(1) || a.IsQuorate(3) {
		t.Error("who is a quorate was not told")
	}
	if a.ActiveSince(2).IsZero() || !a.ActiveSince(3).IsZero() {
		t.Error("ActiveSince")
	}
	for range 3 {
		b.end()
		a.h.expect(t, "gone 2")
		until(t, "still active", func() bool { return a.ActiveSince(2).IsZero() })
		if a.IsQuorate(2) {
			t.Error("nobody knows who comes back")
		}
		time.Sleep(200 * time.Millisecond)
		b = start(t, 2, b.addr)
		b.Add(1, []string{a.url})
		begin := time.Now()
		a.h.expect(t, "connected 2")
		a.reaches(t, b)
		t.Log("found again after", time.Since(begin))
		a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 1, 2, 1)})
		b.h.next(t)
	}
}

// A connection that breaks while the other process lives is no death.
func TestNotGone(t *testing.T) {
	a, b := start(t, 1, ""), start(t, 2, "")
	connect(t, a, b)
	for range 20 {
		r := b.remote(1)
		for k := range r.outboxes {
			r.outboxes[k].breakOff(errors.New("test"))
		}
		a.reaches(t, b)
		b.reaches(t, a)
	}
	a.h.never(t, "gone 2", 100*time.Millisecond)
	b.h.never(t, "gone 1", 100*time.Millisecond)
}
