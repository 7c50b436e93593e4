// Package node builds a member from its parts and owns them all: it is the only package
// that knows every other one.
//
// A write passes four owners, once each and in one direction:
//
//	Propose ─▶ consensus loop ─▶ log writer ─▶ consensus loop ─▶ applier ─▶ reply
//	           (loop.go)         (append.go)                     (apply.go)
//
// The keeper (keeper.go) looks after what time brings: leases that end, space, automatic
// compaction. Close ends them in the order of the arrows, so that none is handed work
// after its end.
package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"quorate/internal/auth"
	"quorate/internal/consensus"
	"quorate/internal/fsm"
	"quorate/internal/kv"
	"quorate/internal/lease"
	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/mvcc"
	"quorate/internal/vfs"
	"quorate/internal/wal"
	"quorate/internal/watch"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// Version is the release of etcd whose API and formats the member speaks; clients and
// peers see it as the server's version.
const Version = "3.7.1"

var serverVersion = membership.Version{Major: 3, Minor: 7, Patch: 1}

// Config is what a member is built from. Every field must be set unless it says more.
type Config struct {
	Name    string
	DataDir string
	WALDir  string // "": below DataDir

	PeerURLs            []string // this member's, as the others are to reach it
	ClientURLs          []string // this member's, as clients are to reach it
	InitialCluster      string   // name=url,name=url: the members of a new cluster
	InitialClusterToken string
	NewCluster          bool // without data: found a cluster, rather than join one
	MaxLearners         int
	ForceNewCluster     bool // go on alone on the data of a larger cluster

	Tick          time.Duration // heartbeat interval
	ElectionTicks int           // election timeout in ticks
	PreVote       bool

	SnapshotCount   uint64 // entries between two marks that bound the log
	SegmentBytes    int64  // of the log's files; 0: etcd's
	QuotaBytes      int64  // 0: 2 GiB; below 0: none
	MaxRequestBytes int
	NoSync          bool

	ProgressInterval time.Duration // of watches
	FragmentBytes    int           // of watch responses

	Compaction Compaction
	SlowApply  time.Duration // applying one request for longer is logged

	StrictReconfigCheck bool // refuse changes of the membership that could cost the quorum
	TickAdvance         bool // the first election need not wait a whole timeout
	CatchUpEntries      int  // applied entries that are kept for slow followers
	CatchUpTicks        int  // for how long more than that are kept, as far as they are small

	AuthToken    string        // kind of tokens and options, see auth.NewTokens; "": simple
	AuthTokenTTL time.Duration // of simple tokens; 0: etcd's
	BcryptCost   int           // of password hashes; bcrypt's default if it knows no such cost

	Network Network // to the other members
	Peers   Peers   // asks them; nil: nobody is asked
	FS      vfs.FS  // where the log is kept; nil: the system's

	// OnCommit, unless nil, is shown the committed entries in order, by the loop when it
	// hands them to the applier. They must not be changed. A checker looks on with it.
	OnCommit func(entries []*raftpb.Entry)

	Metrics *metrics.Set
	Logger  *slog.Logger
}

// quotaDefault is etcd's quota when none is given, in bytes.
const quotaDefault = 2 << 30

// quota is the effective quota in bytes, 0 for none.
func (c *Config) quota() int64 {
	switch {
	case c.QuotaBytes < 0:
		return 0
	case c.QuotaBytes == 0:
		return quotaDefault
	}
	return c.QuotaBytes
}

func (c *Config) electionTimeout() time.Duration {
	return time.Duration(c.ElectionTicks) * c.Tick
}

// requestTimeout is how long a proposal or a linearizable read may take, as etcd's.
func (c *Config) requestTimeout() time.Duration { return 5*time.Second + 2*c.electionTimeout() }

// Node is a running member.
type Node struct {
	cfg Config
	log *slog.Logger
	met *metrics.Set

	// Constant after Start.
	id        uint64
	clusterID uint64
	wal       *wal.Log
	store     *mvcc.Store
	leases    atomic.Pointer[lease.Lessor] // replaced with the store's content
	network   Network
	peers     Peers
	cluster   *membership.Cluster
	remotes   []membership.Member // of the cluster that this member joins
	alarms    *fsm.Alarms
	auth      *auth.Store
	tokens    *auth.Tokens
	passwords *auth.Passwords
	hub       *watch.Hub

	// Owned by the consensus loop.
	core *consensus.Core
	loopState

	// Owned by the log writer.
	hard *raftpb.HardState // last written

	// Owned by the applier.
	machine     *fsm.Machine
	answers     []answer         // scratch
	alarmGauges []*metrics.Gauge // of the alarms that are raised

	// The last entry that a mark in the log stands for: the flusher's, but for snapshots,
	// which come while it rests.
	lastMark atomic.Uint64

	proposals proposals
	inbox     mailbox[arrival] // to the loop
	appends   mailbox[logWork] // to the log writer
	applies   mailbox[applyWork]
	received  atomic.Int64  // bytes of peers' messages in inbox
	receiving chan struct{} // a place for each snapshot that comes in

	// As of the loop's last turn; anyone may look.
	term      atomic.Uint64
	leader    atomic.Uint64
	committed atomic.Uint64
	leading   atomic.Bool // consensus.Core.Leads; the leases were told
	alone     atomic.Bool // consensus.Core.Alone
	learner   atomic.Bool
	memberAt  atomic.Uint64 // last entry that changed the membership, or is about to

	leasesLoaded chan struct{} // closed once they are, or cannot be
	leasesFailed atomic.Bool   // they cannot be
	logFull      atomic.Bool   // no more segments can be prepared

	meter meter

	lifecycle
}

// lifecycle starts and ends a Node's goroutines.
type lifecycle struct {
	ctx     context.Context // ends with the node
	cancel  context.CancelFunc
	closing sync.RWMutex // held while ctx ends, and by those who must not begin after that

	ready     chan struct{}
	readyOnce sync.Once

	failed   chan struct{}
	failOnce sync.Once
	failure  error

	stopLoop, stopAppend, stopApply chan struct{}
	loopDone, appendDone, applyDone chan struct{}
	keeperDone                      chan struct{}
	leads                           chan struct{}  // a token when leadership begins
	overQuota                       chan struct{}  // a token when the quota is reached
	background                      sync.WaitGroup // what the loop starts, and reading the leases after the start

	closeOnce sync.Once
	closeErr  error
}

func newLifecycle() lifecycle {
	ctx, cancel := context.WithCancel(context.Background())
	return lifecycle{
		ctx: ctx, cancel: cancel,
		ready: make(chan struct{}), failed: make(chan struct{}),
		stopLoop: make(chan struct{}), stopAppend: make(chan struct{}), stopApply: make(chan struct{}),
		loopDone: make(chan struct{}), appendDone: make(chan struct{}), applyDone: make(chan struct{}),
		keeperDone: make(chan struct{}), leads: make(chan struct{}, 1), overQuota: make(chan struct{}, 1),
	}
}

// fail ends the member because it cannot keep its promises any more. The owner that
// called it must not go on with what failed.
func (n *Node) fail(err error) {
	n.failOnce.Do(func() {
		n.log.Error("the member cannot go on and stops", "error", err)
		n.failure = err
		close(n.failed)
	})
}

// Ready is closed once the member can serve clients.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Failed is closed once the member cannot go on; Err then says why. The process must
// stop: what was acknowledged is on disk, and nothing more will be.
func (n *Node) Failed() <-chan struct{} { return n.failed }

// Err is why the member failed, nil before Failed is closed.
func (n *Node) Err() error {
	select {
	case <-n.failed:
		return n.failure
	default:
		return nil
	}
}

// Close ends the member: proposals that wait get kv.ErrStopped, what was applied is
// flushed. It returns once every goroutine is gone.
func (n *Node) Close() error {
	n.closeOnce.Do(func() {
		n.proposals.close(kv.ErrStopped)
		n.closing.Lock()
		n.cancel()
		n.closing.Unlock()
		<-n.keeperDone
		n.network.Close()
		// The loop first, so that nothing new is proposed, committed or sent; then the
		// applier, and the store with all it was given; last the log, in which the store's
		// last flush may leave a mark.
		close(n.stopLoop)
		<-n.loopDone
		n.alone.Store(false) // a read that comes now is told that the member is stopped
		n.background.Wait()
		n.hub.Close()
		close(n.stopApply)
		n.store.Unbound() // or a full disk would keep the applier for ever
		<-n.applyDone
		err := wrap("close store", n.store.Close())
		n.closeErr = errors.Join(err, wrap("close log", n.closeLog()))
	})
	return n.closeErr
}

// closeLog ends the log writer and closes the log. An append that waits for room on a full
// disk ends with the log; nobody was told that it was written.
func (n *Node) closeLog() error {
	close(n.stopAppend)
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	for ended := false; !ended && !n.logFull.Load(); {
		select {
		case <-n.appendDone:
			ended = true
		case <-look.C:
		}
	}
	err := n.wal.Close()
	<-n.appendDone
	return err
}

func wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// ---- what the services ask ----

// ClusterID and MemberID are the member's identity, constant.
func (n *Node) ClusterID() uint64 { return n.clusterID }
func (n *Node) MemberID() uint64  { return n.id }

// Term and Leader (0: none) are Raft's now, IsLearner whether this member has no vote.
func (n *Node) Term() uint64    { return n.term.Load() }
func (n *Node) Leader() uint64  { return n.leader.Load() }
func (n *Node) IsLearner() bool { return n.learner.Load() }

func (n *Node) View() *mvcc.View             { return n.store.View() }
func (n *Node) Store() *mvcc.Store           { return n.store }
func (n *Node) Watch() *watch.Hub            { return n.hub }
func (n *Node) Cluster() *membership.Cluster { return n.cluster }

// Auth is who may do what now; Tokens and Passwords are how clients prove who they are.
func (n *Node) Auth() *auth.State          { return n.auth.State() }
func (n *Node) Tokens() *auth.Tokens       { return n.tokens }
func (n *Node) Passwords() *auth.Passwords { return n.passwords }

// Applied is the last entry that is applied and published.
func (n *Node) Applied() uint64 {
	v := n.store.View()
	defer v.Release()
	return v.Applied()
}

// Status is where the member stands.
type Status struct {
	Leader    uint64 // 0: none
	Term      uint64
	Index     uint64 // last committed
	Applied   uint64
	IsLearner bool
	Alarms    []*pb.AlarmMember
	// ClusterVersion is "" until it is decided; StorageVersion is the data directory's.
	ClusterVersion string
	StorageVersion string
	QuotaBytes     int64 // 0: none
}

// Status returns where the member stands now, without asking others.
func (n *Node) Status() Status {
	v := n.store.View()
	defer v.Release()
	return Status{
		Leader:         n.leader.Load(),
		Term:           n.term.Load(),
		Index:          n.committed.Load(),
		Applied:        v.Applied(),
		IsLearner:      n.learner.Load(),
		Alarms:         n.alarms.List(pb.AlarmType_NONE),
		ClusterVersion: n.cluster.State().Version.String(),
		StorageVersion: n.cluster.State().Version.String(),
		QuotaBytes:     n.cfg.quota(),
	}
}

// MoveLeader hands leadership to a voter: kv.ErrNotLeader, kv.ErrBadTransferee,
// kv.ErrTransferSlow.
func (n *Node) MoveLeader(ctx context.Context, to uint64) error {
	if n.leader.Load() != n.id {
		return kv.ErrNotLeader
	}
	if m, ok := n.cluster.State().Member(membership.ID(to)); !ok || m.IsLearner {
		return kv.ErrBadTransferee
	}
	n.inbox.put(arrival{call: func() { n.core.TransferLeader(to) }})
	ctx, cancel := context.WithTimeoutCause(ctx, n.cfg.electionTimeout(), kv.ErrTransferSlow)
	defer cancel()
	if !n.awaitLeader(ctx, func(lead uint64) bool { return lead == to }) {
		return cmp.Or(context.Cause(ctx), kv.ErrStopped)
	}
	return nil
}

// raftLogger passes Raft's own lines on; what it calls fatal is fatal.
type raftLogger struct{ log *slog.Logger }

var _ raft.Logger = raftLogger{}

func (l raftLogger) Debug(v ...any)            { l.log.Debug(fmt.Sprint(v...)) }
func (l raftLogger) Debugf(f string, v ...any) { l.log.Debug(fmt.Sprintf(f, v...)) }
func (l raftLogger) Info(v ...any)             { l.log.Info(fmt.Sprint(v...)) }
func (l raftLogger) Infof(f string, v ...any) {
	if strings.HasPrefix(f, "entry at index %d missing") {
		// Raft's answer to a write that it has heard of already with a later one; it is
		// no news with writes that overlap.
		l.Debugf(f, v...)
		return
	}
	l.log.Info(fmt.Sprintf(f, v...))
}
func (l raftLogger) Warning(v ...any) { l.log.Warn(fmt.Sprint(v...)) }
func (l raftLogger) Warningf(f string, v ...any) {
	l.log.Warn(fmt.Sprintf(f, v...))
}
func (l raftLogger) Error(v ...any)            { l.log.Error(fmt.Sprint(v...)) }
func (l raftLogger) Errorf(f string, v ...any) { l.log.Error(fmt.Sprintf(f, v...)) }
func (l raftLogger) Fatal(v ...any)            { l.Panic(v...) }
func (l raftLogger) Fatalf(f string, v ...any) { l.Panicf(f, v...) }
func (l raftLogger) Panic(v ...any)            { panic("raft: " + fmt.Sprint(v...)) }
func (l raftLogger) Panicf(f string, v ...any) { panic("raft: " + fmt.Sprintf(f, v...)) }
