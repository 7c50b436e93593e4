package node

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"quorate/internal/kv"
	"quorate/internal/membership"
	"quorate/internal/peer"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// wires is a network within the process: what is sent arrives at once, in order, unless
// one of the two is cut off.
type wires struct {
	mu    sync.Mutex
	nodes map[membership.ID]peer.Handler
	cut   map[membership.ID]bool
	urls  map[string]membership.ID
	drop  func(m *raftpb.Message) bool
	// promoted is asked what becomes of the leader's answer to a promotion.
	promoted func(error) error
}

func newWires() *wires {
	return &wires{nodes: map[membership.ID]peer.Handler{}, cut: map[membership.ID]bool{}, urls: map[string]membership.ID{}}
}

// to is one member's end.
func (w *wires) to() *wireEnd { return &wireEnd{wires: w} }

func (w *wires) handler(from, to membership.ID) peer.Handler {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cut[from] || w.cut[to] || w.nodes[from] == nil {
		return nil
	}
	return w.nodes[to]
}

func (w *wires) isolate(id membership.ID, yes bool) {
	w.mu.Lock()
	w.cut[id] = yes
	w.mu.Unlock()
}

// kill is what the others see of the death of a process.
func (w *wires) kill(id membership.ID) {
	w.mu.Lock()
	delete(w.nodes, id)
	var others []peer.Handler
	for _, h := range w.nodes {
		others = append(others, h)
	}
	w.mu.Unlock()
	for _, h := range others {
		h.Gone(id)
	}
}

type wireEnd struct {
	*wires
	self       membership.ID
	done       sync.WaitGroup
	amongEtcds atomic.Bool // the others are etcds
}

func (w *wireEnd) Open(self, _ membership.ID, h peer.Handler) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.self = self
	w.nodes[self] = h
}

func (w *wireEnd) Add(id membership.ID, urls []string) {
	w.mu.Lock()
	for _, u := range urls {
		w.urls[u] = id
	}
	h, self := w.nodes[id], w.nodes[w.self]
	w.mu.Unlock()
	if h != nil {
		h.Connected(w.self)
		self.Connected(id)
	}
}

func (w *wireEnd) Update(id membership.ID, urls []string) { w.Add(id, urls) }
func (w *wireEnd) Remove(membership.ID)                   {}

func (w *wireEnd) Send(ms []*raftpb.Message) {
	for _, m := range ms {
		w.mu.Lock()
		drop := w.drop
		w.mu.Unlock()
		h := w.handler(w.self, membership.ID(m.GetTo()))
		if h == nil || drop != nil && drop(m) {
			continue
		}
		h.Receive(proto.Clone(m).(*raftpb.Message))
	}
}

func (w *wireEnd) SendSnapshot(m *raftpb.Message, db io.ReadCloser, size int64) {
	self := w.handler(w.self, w.self)
	w.done.Go(func() {
		err := peer.ErrUnreachable
		if h := w.handler(w.self, membership.ID(m.GetTo())); h != nil {
			err = h.ReceiveSnapshot(proto.Clone(m).(*raftpb.Message), db, size)
		}
		if cerr := db.Close(); err == nil {
			err = cerr
		}
		if self != nil {
			self.SnapshotSent(membership.ID(m.GetTo()), err)
		}
	})
}

func (w *wireEnd) ActiveSince(id membership.ID) time.Time {
	if w.handler(w.self, id) == nil {
		return time.Time{}
	}
	return time.Now().Add(-time.Hour)
}

func (w *wireEnd) IsQuorate(membership.ID) bool { return !w.amongEtcds.Load() }

func (w *wireEnd) Close() {
	w.mu.Lock()
	delete(w.nodes, w.self)
	w.mu.Unlock()
	w.done.Wait()
}

// asker is wires as Peers.
type asker struct{ *wires }

func (a asker) find(urls []string) (peer.Handler, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, u := range urls {
		if h := a.nodes[a.urls[u]]; h != nil && !a.cut[a.urls[u]] {
			return h, nil
		}
	}
	return nil, peer.ErrUnreachable
}

func (a asker) Members(_ context.Context, urls []string) (membership.ID, []membership.Member, error) {
	h, err := a.find(urls)
	if err != nil {
		return 0, nil, err
	}
	return membership.ID(h.(peerHandler).clusterID), h.Members(), nil
}

func (a asker) Versions(_ context.Context, urls []string) (server, cluster string, err error) {
	h, err := a.find(urls)
	if err != nil {
		return "", "", err
	}
	cluster, _ = h.Versions()
	return Version, cluster, nil
}

func (a asker) Promote(ctx context.Context, urls []string, id membership.ID, token string) ([]membership.Member, error) {
	h, err := a.find(urls)
	if err != nil {
		return nil, err
	}
	ms, err := h.Promote(ctx, id, token)
	if a.promoted != nil {
		err = a.promoted(err)
	}
	return ms, err
}

func (a asker) RenewLease(ctx context.Context, urls []string, id kv.LeaseID) (int64, error) {
	h, err := a.find(urls)
	if err != nil {
		return 0, err
	}
	return h.RenewLease(ctx, id)
}

func (a asker) LeaseTimeToLive(ctx context.Context, urls []string, id kv.LeaseID, keys bool) (*pb.LeaseTimeToLiveResponse, error) {
	h, err := a.find(urls)
	if err != nil {
		return nil, err
	}
	return h.LeaseTimeToLive(ctx, id, keys)
}

// cluster is several members on one network.
type cluster struct {
	*wires
	t     *testing.T
	cfgs  []Config
	nodes []*Node
}

func newCluster(t *testing.T, size int, change func(*Config)) *cluster {
	c := &cluster{wires: newWires(), t: t}
	initial := ""
	for i := range size {
		initial += fmt.Sprintf(",m%d=http://10.0.0.%d:2380", i, i)
	}
	for i := range size {
		cfg := c.config(i)
		cfg.InitialCluster = initial[1:]
		if change != nil {
			change(&cfg)
		}
		c.cfgs = append(c.cfgs, cfg)
		c.nodes = append(c.nodes, nil)
	}
	for i := range size {
		c.start(i)
	}
	for i := range size {
		c.awaitReady(i)
	}
	t.Cleanup(func() {
		for i := range c.nodes {
			c.stop(i)
		}
	})
	return c
}

func (c *cluster) config(i int) Config {
	cfg := testConfig(c.t.TempDir())
	cfg.Name = fmt.Sprintf("m%d", i)
	cfg.PeerURLs = []string{fmt.Sprintf("http://10.0.0.%d:2380", i)}
	cfg.ClientURLs = []string{fmt.Sprintf("http://10.0.0.%d:2379", i)}
	cfg.Peers = asker{c.wires}
	if os.Getenv("QUORATE_LOG") != "" {
		cfg.Logger = newTestLogger(cfg.Name)
	}
	return cfg
}

func (c *cluster) start(i int) {
	c.t.Helper()
	c.cfgs[i].Network = c.to()
	n, err := Start(c.cfgs[i])
	if err != nil {
		c.t.Fatalf("start member %d: %v", i, err)
	}
	c.nodes[i] = n
}

func (c *cluster) awaitReady(i int) {
	c.t.Helper()
	select {
	case <-c.nodes[i].Ready():
	case <-c.nodes[i].Failed():
		c.t.Fatalf("member %d: %v", i, c.nodes[i].Err())
	case <-time.After(20 * time.Second):
		c.t.Fatalf("member %d is not ready", i)
	}
}

func (c *cluster) stop(i int) {
	if c.nodes[i] == nil {
		return
	}
	if err := c.nodes[i].Close(); err != nil {
		c.t.Errorf("close member %d: %v", i, err)
	}
	c.nodes[i] = nil
}

// leader is the index of the member that leads.
func (c *cluster) leader() int {
	c.t.Helper()
	lead := -1
	eventually(c.t, "a leader", func() bool {
		for i, n := range c.nodes {
			if n != nil && n.leading.Load() && !c.cut[membership.ID(n.id)] {
				lead = i
				return true
			}
		}
		return false
	})
	return lead
}

// follower is the index of a member that runs and does not lead.
func (c *cluster) follower() int {
	lead := c.leader()
	for i, n := range c.nodes {
		if n != nil && i != lead && !n.IsLearner() {
			return i
		}
	}
	c.t.Fatal("no follower")
	return -1
}
