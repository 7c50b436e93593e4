package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Cluster is some members, each with an address, ports and a data directory that it keeps
// over restarts. Its methods are for one goroutine at a time; those of different members may
// run at once.
type Cluster struct {
	Members []*Member
	// Network is the members' own, nil when they share the loopback interface because this
	// process has no namespaces (see Isolate): then nothing can be cut.
	Network *Network
	// OwnClocks gives processes that are launched from now on clocks that SetClock can step,
	// where that is possible.
	OwnClocks bool

	dir   string
	flags []string
}

// Member is one place in a cluster and the process that runs there.
type Member struct {
	Name string
	Dir  string // data directory
	Addr string // host:port for clients
	Peer string // host:port for members
	// Kind is the server that the next Launch starts. It may be changed while none runs.
	Kind Kind

	// Server is the process that runs or ran last; nil before the first.
	Server *Server

	cluster *Cluster
	index   int
	initial string // its --initial-cluster
	joins   bool   // --initial-cluster-state=existing
	paused  bool
	slow    string // the control group that slows its disk
	mounted bool
}

// NewCluster makes the members of a new cluster, one of each kind given, with directories
// below dir and the same further flags. None is started.
func NewCluster(dir string, kinds []Kind, flags ...string) (*Cluster, error) {
	network, err := newNetwork()
	if err != nil {
		return nil, err
	}
	c := &Cluster{Network: network, dir: dir, flags: flags}
	for _, k := range kinds {
		if _, err := c.place(k); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	initial := c.initialCluster()
	for _, m := range c.Members {
		m.initial = initial
	}
	return c, nil
}

// Join makes one more member and adds it to the running cluster, as a learner or a voter. It
// is not started.
func (c *Cluster) Join(ctx context.Context, k Kind, learner bool) (*Member, error) {
	asked := c.anyRunning()
	if asked == nil {
		return nil, errors.New("no member runs")
	}
	conn, err := asked.Server.Conn()
	if err != nil {
		return nil, err
	}
	m, err := c.place(k)
	if err != nil {
		return nil, err
	}
	m.joins, m.initial = true, c.initialCluster()
	for {
		_, err = pb.NewClusterClient(conn).MemberAdd(ctx, &pb.MemberAddRequest{PeerURLs: []string{"http://" + m.Peer}, IsLearner: learner})
		// Members must have been connected for some seconds before the cluster changes.
		if status.Code(err) != codes.Unavailable || ctx.Err() != nil {
			return m, err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Rejoin removes a member from the cluster for good, empties its directory, and adds it again,
// as a new member in the same place: first as a learner, which is promoted once it has caught
// up. It returns once that member serves.
func (c *Cluster) Rejoin(ctx context.Context, m *Member) error {
	var asked *Member
	for _, o := range c.Members {
		if o != m && o.Running() && !o.paused {
			asked = o
		}
	}
	if asked == nil {
		return errors.New("no other member runs")
	}
	client, err := asked.Client()
	if err != nil {
		return err
	}
	defer client.Close()
	url := "http://" + m.Peer
	// Each step is repeated until it is done, for an answer may be lost, and members must
	// have been connected for some seconds before the cluster changes.
	until := func(what string, done func(*clientv3.Member) bool, do func(context.Context, *clientv3.Member) error) error {
		for {
			short, cancel := context.WithTimeout(ctx, 10*time.Second)
			var now *clientv3.Member
			list, err := client.MemberList(short)
			if err == nil {
				for _, x := range list.Members {
					if slices.Contains(x.PeerURLs, url) {
						now = (*clientv3.Member)(x)
					}
				}
				if !done(now) {
					err = do(short, now)
				}
			}
			cancel()
			if err == nil && done(now) {
				return nil
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s %s: %w", what, m.Name, errors.Join(err, ctx.Err()))
			case <-time.After(50 * time.Millisecond):
			}
		}
	}
	err = until("remove", func(x *clientv3.Member) bool { return x == nil }, func(ctx context.Context, x *clientv3.Member) error {
		_, err := client.MemberRemove(ctx, x.ID)
		return err
	})
	if err != nil {
		return err
	}
	// A member that hears of its removal ends by itself; one that does not is ended.
	if _, ended := m.Server.WaitExit(5 * time.Second); !ended {
		m.Kill()
	}
	if err := m.empty(); err != nil {
		return err
	}
	err = until("add", func(x *clientv3.Member) bool { return x != nil }, func(ctx context.Context, _ *clientv3.Member) error {
		_, err := client.MemberAddAsLearner(ctx, []string{url})
		return err
	})
	if err != nil {
		return err
	}
	m.joins, m.initial = true, c.initialCluster()
	if err := m.Launch(); err != nil {
		return err
	}
	err = until("promote", func(x *clientv3.Member) bool { return x != nil && !x.IsLearner }, func(ctx context.Context, x *clientv3.Member) error {
		_, err := client.MemberPromote(ctx, x.ID)
		return err
	})
	if err != nil {
		return err
	}
	return m.WaitReady(ctx)
}

func (c *Cluster) anyRunning() *Member {
	for _, m := range c.Members {
		if m.Running() && !m.paused {
			return m
		}
	}
	return nil
}

func (c *Cluster) initialCluster() string {
	var list []string
	for _, m := range c.Members {
		list = append(list, m.Name+"=http://"+m.Peer)
	}
	return strings.Join(list, ",")
}

// place adds a member with addresses of its own.
func (c *Cluster) place(k Kind) (*Member, error) {
	i := len(c.Members)
	m := &Member{cluster: c, index: i, Name: fmt.Sprintf("m%d", i), Kind: k}
	m.Dir = filepath.Join(c.dir, m.Name)
	if c.Network != nil {
		if err := c.Network.addHost(); err != nil {
			return nil, err
		}
		m.Addr, m.Peer = c.Network.addr(i)+":2379", c.Network.addr(i)+":2380"
	} else {
		for _, addr := range []*string{&m.Addr, &m.Peer} {
			port, err := FreePort()
			if err != nil {
				return nil, err
			}
			*addr = fmt.Sprintf("127.0.0.1:%d", port)
		}
	}
	c.Members = append(c.Members, m)
	return m, nil
}

// Start launches every member that does not run and returns once all serve.
func (c *Cluster) Start(ctx context.Context) error {
	for _, m := range c.Members {
		if !m.Running() {
			if err := m.Launch(); err != nil {
				return err
			}
		}
	}
	return c.WaitReady(ctx)
}

// WaitReady returns once every member serves, or with the error of the first that ends or
// takes too long.
func (c *Cluster) WaitReady(ctx context.Context) error {
	for _, m := range c.Members {
		if m.Server == nil {
			return fmt.Errorf("%s was not launched", m.Name)
		}
		if err := m.WaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// WaitReady is Server.WaitReady with an error that says who and ends with the log.
func (m *Member) WaitReady(ctx context.Context) error {
	if err := m.Server.WaitReady(ctx); err != nil {
		return fmt.Errorf("%s (%v): %w\nits log ends:\n%s", m.Name, m.Kind, err, m.Server.LogTail(15))
	}
	return nil
}

// Launch starts the member's process and does not wait until it serves.
func (m *Member) Launch() error {
	if m.Running() {
		return fmt.Errorf("%s runs already", m.Name)
	}
	bin, args, err := command(m.Kind)
	if err != nil {
		return err
	}
	state := "new"
	if m.joins {
		state = "existing"
	}
	args = slices.Concat(args, []string{
		"--name=" + m.Name,
		"--data-dir=" + m.Dir,
		"--listen-client-urls=http://" + m.Addr,
		"--advertise-client-urls=http://" + m.Addr,
		"--listen-peer-urls=http://" + m.Peer,
		"--initial-advertise-peer-urls=http://" + m.Peer,
		"--initial-cluster=" + m.initial,
		"--initial-cluster-state=" + state,
		"--initial-cluster-token=quorate-test",
	}, m.cluster.flags)
	start := func() error {
		m.Server, err = run(m.Kind, bin, m.Dir, m.Addr, m.cluster.OwnClocks, args)
		return err
	}
	m.paused = false
	if n := m.cluster.Network; n != nil {
		return n.hosts[m.index].within(start)
	}
	return start()
}

// Running reports whether the member's process is there, paused or not.
func (m *Member) Running() bool {
	if m.Server == nil {
		return false
	}
	select {
	case <-m.Server.Exited():
		return false
	default:
		return true
	}
}

// Kill ends the member at once. Killing one that does not run does nothing.
func (m *Member) Kill() {
	if m.Server != nil {
		m.Server.Kill()
	}
}

// Stop asks the member to end in order and waits for it.
func (m *Member) Stop() error {
	if err := m.Server.Stop(); err != nil {
		return fmt.Errorf("%s: %w", m.Name, err)
	}
	return nil
}

// Pause stops the member's process where it is, without its knowing, until Resume.
func (m *Member) Pause() error {
	m.paused = true
	return m.Server.cmd.Process.Signal(syscall.SIGSTOP)
}

// Resume undoes Pause.
func (m *Member) Resume() error {
	m.paused = false
	return m.Server.cmd.Process.Signal(syscall.SIGCONT)
}

// Index is the member's place in the cluster's Members and Network.
func (m *Member) Index() int { return m.index }

// Replace stops the member and starts the other kind in its place, on the same directory,
// addresses and flags. It returns once that one serves.
func (m *Member) Replace(ctx context.Context) error {
	if err := m.Stop(); err != nil {
		return err
	}
	m.Kind = m.Kind.Other()
	if err := m.Launch(); err != nil {
		return err
	}
	return m.WaitReady(ctx)
}

// Client is etcd's client with the member as its only endpoint. It connects again quickly, so
// that what is measured is the member's pause and not the client's back-off.
func (m *Member) Client() (*clientv3.Client, error) {
	backoff := grpc.ConnectParams{MinConnectTimeout: time.Second}
	backoff.Backoff.BaseDelay = 2 * time.Millisecond
	backoff.Backoff.Multiplier = 1.5
	backoff.Backoff.MaxDelay = 50 * time.Millisecond
	return clientv3.New(clientv3.Config{
		Endpoints:            []string{m.Addr},
		DialOptions:          []grpc.DialOption{grpc.WithConnectParams(backoff)},
		DialKeepAliveTime:    2 * time.Second,
		DialKeepAliveTimeout: 2 * time.Second,
		Logger:               zap.NewNop(),
	})
}

// Status is what the member says of itself.
func (m *Member) Status(ctx context.Context) (*pb.StatusResponse, error) {
	conn, err := m.Server.Conn()
	if err != nil {
		return nil, err
	}
	return pb.NewMaintenanceClient(conn).Status(ctx, &pb.StatusRequest{})
}

// Leader returns the member that leads, once one says so of itself and a majority of the
// members agrees.
func (c *Cluster) Leader(ctx context.Context) (*Member, error) {
	for {
		votes := map[uint64]int{}
		byID := map[uint64]*Member{}
		for _, m := range c.Members {
			if !m.Running() || m.paused {
				continue
			}
			ctx, cancel := context.WithTimeout(ctx, time.Second)
			s, err := m.Status(ctx)
			cancel()
			if err == nil {
				votes[s.Leader]++
				byID[s.Header.MemberId] = m
			}
		}
		for id, n := range votes {
			if m := byID[id]; m != nil && n > len(c.Members)/2 {
				return m, nil
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("find the leader: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Lead makes a member the leader.
func (c *Cluster) Lead(ctx context.Context, m *Member) error {
	s, err := m.Status(ctx)
	if err != nil {
		return err
	}
	for {
		leader, err := c.Leader(ctx)
		if err != nil || leader == m {
			return err
		}
		conn, err := leader.Server.Conn()
		if err != nil {
			return err
		}
		// An etcd whose transfer was given up waits for it for as long as it is asked to.
		attempt, cancel := context.WithTimeout(ctx, 3*time.Second)
		_, err = pb.NewMaintenanceClient(conn).MoveLeader(attempt, &pb.MoveLeaderRequest{TargetID: s.Header.MemberId})
		cancel()
		// A leader that has changed meanwhile, or cannot hand over yet, is asked again.
		if err != nil && ctx.Err() != nil {
			return fmt.Errorf("move the leader: %w", err)
		}
	}
}

// Settle returns once every member has applied everything and none is behind, with the
// revision that all are at. Nothing may be written meanwhile.
func (c *Cluster) Settle(ctx context.Context) (revision int64, err error) {
	for {
		seen := map[string]bool{}
		for _, m := range c.Members {
			s, serr := m.Status(ctx)
			if serr != nil {
				return 0, fmt.Errorf("status of %s: %w", m.Name, serr)
			}
			revision = s.Header.Revision
			seen[fmt.Sprintf("applied %d, revision %d", s.RaftAppliedIndex, revision)] = true
		}
		if len(seen) == 1 {
			return revision, nil
		}
		select {
		case <-ctx.Done():
			return 0, fmt.Errorf("the members do not come together: %v: %w", seen, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Hash is HashKV of every member at a revision, 0 for the last one, and an error that shows
// all of them when they differ.
func (c *Cluster) Hash(ctx context.Context, revision int64) (uint32, error) {
	var hashes []string
	answers := map[string]bool{}
	var hash uint32
	for _, m := range c.Members {
		conn, err := m.Server.Conn()
		if err != nil {
			return 0, err
		}
		h, err := pb.NewMaintenanceClient(conn).HashKV(ctx, &pb.HashKVRequest{Revision: revision})
		if err != nil {
			return 0, fmt.Errorf("hash of %s: %w", m.Name, err)
		}
		hash = h.Hash
		answer := fmt.Sprintf("%08x from revision %d to %d", h.Hash, h.CompactRevision, h.HashRevision)
		answers[answer] = true
		hashes = append(hashes, fmt.Sprintf("%s (%v): %s", m.Name, m.Kind, answer))
	}
	if len(answers) > 1 {
		return 0, fmt.Errorf("the members' contents differ:\n%s", strings.Join(hashes, "\n"))
	}
	return hash, nil
}

// Close kills every member and takes its network and mounts away.
func (c *Cluster) Close() error {
	var errs []error
	for _, m := range c.Members {
		m.Kill()
		errs = append(errs, m.fastDisk(), m.unmount())
	}
	if c.Network != nil {
		errs = append(errs, c.Network.close())
	}
	return errors.Join(errs...)
}

// Reachable waits until somebody listens for clients.
func (m *Member) Reachable(ctx context.Context) error {
	for {
		conn, err := net.DialTimeout("tcp", m.Addr, time.Second)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(5 * time.Millisecond):
		}
	}
}
