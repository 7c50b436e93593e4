package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"quorate/internal/auth"
	"quorate/internal/consensus"
	"quorate/internal/fsm"
	"quorate/internal/kv"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
	"quorate/internal/snapshot"
	"quorate/internal/vfs"
	"quorate/internal/wal"
	"quorate/internal/watch"
	"quorate/internal/wire"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// What a data directory may be refused for.
var (
	// ErrMismatch: the log and the file are not of one history.
	ErrMismatch = errors.New("the log and the database file do not belong together")
	// ErrRemoved: the member must not run any more.
	ErrRemoved = errors.New("the member has been permanently removed from the cluster")
)

// memberDir, snapDir, walDir and dbPath are where etcd keeps them.
func (c *Config) memberDir() string { return filepath.Join(c.DataDir, "member") }
func (c *Config) snapDir() string   { return filepath.Join(c.memberDir(), "snap") }
func (c *Config) dbPath() string    { return filepath.Join(c.snapDir(), "db") }
func (c *Config) walDir() string {
	return cmp.Or(c.WALDir, filepath.Join(c.memberDir(), "wal"))
}

// Start opens or creates the member's data and starts its goroutines. It returns before
// the member is ready to serve; Ready tells when.
func Start(cfg Config) (*Node, error) {
	n, err := build(cfg)
	if err != nil {
		return nil, err
	}
	go n.writeLog()
	go n.apply()
	go n.loop()
	go n.keep()
	return n, nil
}

// Open is Start without the goroutines of loop, log writer and applier: whoever calls it
// has to call Tick, StepLoop, StepLog and StepApply, one at a time, in any order.
func Open(cfg Config) (*Node, error) {
	n, err := build(cfg)
	if err != nil {
		return nil, err
	}
	close(n.loopDone)
	close(n.appendDone)
	close(n.applyDone)
	go n.keep()
	return n, nil
}

// build makes a Node of what its data directory holds.
func build(cfg Config) (*Node, error) {
	if cfg.FS == nil {
		cfg.FS = vfs.OS()
	}
	n := &Node{
		cfg: cfg, log: cfg.Logger, met: cfg.Metrics, network: cfg.Network, peers: cfg.Peers,
		inbox: newMailbox[arrival](), appends: newMailbox[logWork](), applies: newMailbox[applyWork](),
		leasesLoaded: make(chan struct{}), receiving: make(chan struct{}, receivingMax),
		lifecycle: newLifecycle(),
	}
	n.proposals.waiting = make(map[uint64]*proposal)
	n.loopState.connected = make(map[membership.ID]bool)
	n.meter = newMeter(cfg.Metrics)
	if err := n.open(); err != nil {
		n.cancel()
		return nil, err
	}
	n.measure()
	n.showAlarms()
	n.hub = watch.New(watch.Options{
		View: func() watch.View { return n.store.View() },
		AppendHeader: func(b []byte, rev int64) []byte {
			h := wire.Header{ClusterID: n.clusterID, MemberID: n.id, Revision: rev, Term: n.term.Load()}
			return wire.AppendHeader(b, &h)
		},
		ProgressInterval: cfg.ProgressInterval,
		FragmentBytes:    cfg.FragmentBytes,
	})
	n.network.Open(membership.ID(n.id), membership.ID(n.clusterID), peerHandler{n})
	for _, m := range append(n.cluster.State().Members, n.remotes...) {
		if uint64(m.ID) != n.id {
			n.network.Add(m.ID, m.PeerURLs)
		}
	}
	return n, nil
}

// open brings the member to the state that its data directory describes.
func (n *Node) open() (err error) {
	cfg := &n.cfg
	// The database file holds everybody's secrets; etcd uses the same mode.
	if err := os.MkdirAll(cfg.snapDir(), 0o700); err != nil {
		return fmt.Errorf("create data directory: %w", err)
	}
	if err := snapshot.Clean(cfg.FS, cfg.snapDir()); err != nil {
		return fmt.Errorf("remove what a crash left unfinished: %w", err)
	}
	walOptions := wal.Options{FS: cfg.FS, SegmentBytes: cfg.SegmentBytes, NoSync: cfg.NoSync, OnSync: n.met.WALSyncSeconds.Observe, OnWrite: n.meter.wrote, OnFull: n.onLogFull}
	exists, err := wal.Exists(cfg.FS, cfg.walDir())
	if err != nil {
		return fmt.Errorf("look for a log in %s: %w", cfg.walDir(), err)
	}
	_, dbErr := os.Stat(cfg.dbPath())

	var leased []leasedKey
	onLeased := func(id kv.LeaseID, key []byte) { leased = append(leased, leasedKey{id, key}) }
	if n.store, err = mvcc.Open(cfg.dbPath(), mvcc.Options{
		OnLeasedKey: onLeased,
		OnFlush:     n.onFlush,
		OnFailure:   func(err error) { n.fail(fmt.Errorf("write database file: %w", err)) },
		NoSync:      cfg.NoSync,
		Meters:      n.meter.store(),
	}); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.store.Close())
		}
	}()

	var found *wal.Recovered
	applied, _ := n.store.Applied()
	switch {
	case exists:
		n.wal, found, err = wal.Open(cfg.walDir(), applied, walOptions)
	case applied > 0:
		err = fmt.Errorf("%w: %s holds entries up to %d, but there is no log in %s; restore the log that was written with it, or restore a snapshot into an empty directory",
			ErrMismatch, cfg.dbPath(), applied, cfg.walDir())
	default:
		if found, err = n.found(); err == nil {
			err = cfg.syncAbove()
		}
		if err == nil {
			n.wal, err = wal.Create(cfg.walDir(), found.Metadata, walOptions)
		}
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.wal.Close())
		}
	}()
	switch _, err := os.Stat(cfg.receivedPath(found.Snapshot.Index)); {
	case applied >= found.Snapshot.Index:
	case err == nil:
		// A crash came between the mark of a received snapshot and its installation.
		leased = nil
		if err := n.store.Replace(cfg.receivedPath(found.Snapshot.Index), onLeased); err != nil {
			return fmt.Errorf("install the snapshot of entry %d: %w", found.Snapshot.Index, err)
		}
	case dbErr != nil:
		return fmt.Errorf("%w: %s is missing, and %s only goes back to entry %d; restore the file or start with an empty data directory",
			ErrMismatch, cfg.dbPath(), cfg.walDir(), found.Snapshot.Index)
	}
	if err := n.removeReceived(math.MaxUint64); err != nil {
		return fmt.Errorf("remove what a crash left unfinished: %w", err)
	}
	if err := n.load(); err != nil {
		return err
	}
	if err := n.startCore(found); err != nil {
		return err
	}
	leases := n.store.Bucket("lease")
	n.background.Go(func() { n.loadLeases(leases, leased) })
	return nil
}

// syncAbove makes the data directory itself outlive a crash. What is in member is synced
// by whoever puts it there.
func (c *Config) syncAbove() error {
	for _, dir := range []string{c.DataDir, filepath.Dir(filepath.Clean(c.DataDir))} {
		err := c.FS.SyncDir(dir)
		if dir != c.DataDir && slices.ContainsFunc(notToSync, func(e error) bool { return errors.Is(err, e) }) {
			continue
		}
		if err != nil {
			return fmt.Errorf("make the data directory durable: %w", err)
		}
	}
	return nil
}

// notToSync is said where the data directory was made by somebody else: the directory above
// may be closed to the member, read-only, or on a file system that syncs no directories.
var notToSync = []error{fs.ErrPermission, syscall.EROFS, syscall.EINVAL, errors.ErrUnsupported}

// load reads what the store keeps beside keys.
func (n *Node) load() error {
	tokens, err := auth.NewTokens(cmp.Or(n.cfg.AuthToken, "simple"), n.cfg.AuthTokenTTL)
	if err != nil {
		return fmt.Errorf("--auth-token: %w", err)
	}
	n.tokens = tokens
	n.passwords = auth.NewPasswords(n.cfg.BcryptCost)
	if n.auth, err = auth.Load(n.store, tokens, n.passwords.Cost()); err != nil {
		return fmt.Errorf("%s: %w", n.cfg.dbPath(), err)
	}
	if n.cluster, err = membership.Load(n.store, serverVersion, n.cfg.MaxLearners); err != nil {
		return fmt.Errorf("%s: %w", n.cfg.dbPath(), err)
	}
	if n.alarms, err = fsm.LoadAlarms(n.store); err != nil {
		return fmt.Errorf("%s: %w", n.cfg.dbPath(), err)
	}
	n.leases.Store(n.newLessor())
	n.machine = fsm.New(n.store, n.Leases, n.cluster, n.alarms, n.auth)
	return nil
}

// founders are the members that the flags name for a new cluster.
func (n *Node) founders() ([]membership.Member, error) {
	ic, err := membership.ParseInitialCluster(n.cfg.InitialCluster)
	if err != nil {
		return nil, fmt.Errorf("--initial-cluster: %w", err)
	}
	if err := cmp.Or(ic.Check(n.cfg.Name), ic.CheckAdvertised(n.cfg.Name, n.cfg.PeerURLs)); err != nil {
		return nil, err
	}
	return ic.Members(n.cfg.InitialClusterToken)
}

// startCore starts Raft where log and store leave off.
func (n *Node) startCore(found *wal.Recovered) error {
	n.id, n.clusterID = found.Metadata.NodeID, found.Metadata.ClusterID
	applied, _ := n.store.Applied()
	if n.cfg.ForceNewCluster && len(found.Entries)+int(applied) > 0 {
		if err := n.forceAlone(found, applied); err != nil {
			return fmt.Errorf("force new cluster: %w", err)
		}
	}
	hard := found.HardState
	if hard == nil {
		hard = &raftpb.HardState{}
	}
	last := found.Snapshot.Index
	if len(found.Entries) > 0 {
		last = found.Entries[len(found.Entries)-1].GetIndex()
	}
	switch {
	case applied < found.Snapshot.Index:
		return fmt.Errorf("%w: %s ends at entry %d, but the log in %s begins after entry %d; restore the newer file",
			ErrMismatch, n.cfg.dbPath(), applied, n.cfg.walDir(), found.Snapshot.Index)
	case applied > last:
		return fmt.Errorf("%w: %s holds entries up to %d, but the log in %s ends at %d; restore the log that was written with it",
			ErrMismatch, n.cfg.dbPath(), applied, n.cfg.walDir(), last)
	}
	// An applied entry was committed, whether or not the commit index was written since.
	hard.Commit = new(max(hard.GetCommit(), applied, found.Snapshot.Index))
	state := n.cluster.State()
	if state.IsRemoved(membership.ID(n.id)) {
		return fmt.Errorf("%w: delete %s and add the member anew to let it join again", ErrRemoved, n.cfg.DataDir)
	}
	conf := fsm.ConfState(state)
	log := consensus.NewLog(found.Snapshot.Index, found.Snapshot.Term, hard, conf)
	log.Append(found.Entries)

	var err error
	n.core, err = consensus.New(consensus.Config{
		ID:             n.id,
		ElectionTicks:  n.cfg.ElectionTicks,
		HeartbeatTicks: 1,
		PreVote:        n.cfg.PreVote,
		Applied:        applied,
		Incarnation:    firstID(),
		Logger:         raftLogger{n.log},
		KeepEntries:    n.cfg.CatchUpEntries,
		KeepBytes:      keepBytes,
		KeepTicks:      n.cfg.CatchUpTicks,
	}, log)
	if err != nil {
		return err
	}
	n.hard = proto.Clone(hard).(*raftpb.HardState)
	n.proposals.lastID.Store(firstID())
	n.lastMark.Store(found.Snapshot.Index)
	if applied > 0 {
		fsm.KeepStorageVersion(n.store, state.Version)
		fsm.KeepConfState(n.store, state)
	}
	if last == 0 && n.remotes == nil && n.cfg.NewCluster {
		return n.bootstrap()
	}
	n.log.Info("continuing", "member", membership.ID(n.id).String(), "cluster", membership.ID(n.clusterID).String(),
		"applied", applied, "committed", hard.GetCommit(), "last", last, "cut-bytes", found.Cut)
	return nil
}

// keepBytes bounds what is kept in memory of the applied log, beside CatchUpEntries.
const keepBytes = 64 << 20

// bootstrap puts the founders into the log.
func (n *Node) bootstrap() error {
	members, err := n.founders()
	if err != nil {
		return err
	}
	var peers []raft.Peer
	for _, m := range members {
		peers = append(peers, raft.Peer{ID: uint64(m.ID), Context: m.JSON()})
	}
	if !slices.ContainsFunc(peers, func(p raft.Peer) bool { return p.ID == n.id }) {
		return fmt.Errorf("%w: the empty log in %s was made for member %s, which the flags do not name; delete it to start anew",
			ErrMismatch, n.cfg.walDir(), membership.ID(n.id))
	}
	return n.core.Bootstrap(peers)
}

// leasedKey is a key that Open found on a lease.
type leasedKey struct {
	id  kv.LeaseID
	key []byte
}

// loadLeases reads the leases and hangs their keys on them, in the background: a member
// with a million leases serves before it has read them. What needs the leases waits for
// leasesLoaded, and so nothing changes the bucket before it is read. As the applier may
// wait in the middle of a Tx, nothing here may wait for the store.
func (n *Node) loadLeases(bucket *mvcc.Bucket, keys []leasedKey) {
	defer close(n.leasesLoaded)
	if err := restoreLeases(n.lessor(), bucket, keys); err != nil {
		n.leasesFailed.Store(true)
		n.fail(fmt.Errorf("%s: %w", n.cfg.dbPath(), err))
	}
}

// Run starts a member and waits until it is ready, or until ctx ends.
func Run(ctx context.Context, cfg Config) (*Node, error) {
	n, err := Start(cfg)
	if err != nil {
		return nil, err
	}
	select {
	case <-n.ready:
		return n, nil
	case <-n.failed:
		return nil, errors.Join(n.failure, n.Close())
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), n.Close())
	}
}
