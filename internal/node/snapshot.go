package node

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"quorate/internal/fsm"
	"quorate/internal/kv"
	"quorate/internal/lease"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
	"quorate/internal/snapshot"

	"go.etcd.io/raft/v3/raftpb"
)

// A member that lacks more than the log still holds receives the whole database file,
// here called a snapshot:
//
//	leader                                  follower
//	MsgSnap of core ─▶ store.Snapshot ─▶ network ─▶ file <index>.snap.db ─▶ MsgSnap to core
//	                                                 ▼
//	                     appended ◀─ install ◀─ mark in the log
//
// The mark is the moment at which the received file becomes the member's state: a start
// that finds a mark beyond the store's last entry installs the file first.

const receivedSuffix = ".snap.db"

// receivedPath is where the file is kept that a snapshot at index came with, as in etcd.
func (c *Config) receivedPath(index uint64) string {
	return filepath.Join(c.snapDir(), fmt.Sprintf("%016x%s", index, receivedSuffix))
}

// receivingMax bounds the snapshots that are received at a time. Whoever leads next sends its
// own, and need not wait for one whose sender is paused.
const receivingMax = 4

// errReceiving means that no other snapshot can be received now.
var errReceiving = fmt.Errorf("%d snapshots are being received already", receivingMax)

// receiveSnapshot keeps the file that m, a MsgSnap, came with, and gives m to the loop
// once it is on disk.
func (n *Node) receiveSnapshot(m *raftpb.Message, db io.Reader, size int64) error {
	select {
	case n.receiving <- struct{}{}:
		defer func() { <-n.receiving }()
	default:
		return errReceiving
	}
	begin := time.Now()
	index := m.GetSnapshot().GetMetadata().GetIndex()
	written, err := writeReceived(n.cfg.receivedPath(index), db, size, func(path string) error {
		// It is trusted only if it is what the message says; the log's mark would bind us to it.
		at, _, err := mvcc.Check(path)
		if err == nil && at != index {
			err = fmt.Errorf("the file is the state after entry %d", at)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("receive the snapshot of entry %d: %w", index, err)
	}
	n.log.Info("received a snapshot", "index", index, "from", membership.ID(m.GetFrom()).String(), "bytes", written, "took", time.Since(begin).String())
	n.receive(m)
	return nil
}

// writeReceived writes a file that is either whole, on disk and passed by check, or not
// there. One that is there already stays: it may be about to be installed.
func writeReceived(path string, from io.Reader, size int64, check func(path string) error) (written int64, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "tmp*"+receivedSuffix)
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	written, err = copySynced(f, from)
	if err == nil && size >= 0 && written != size {
		err = fmt.Errorf("it ended after %d of %d bytes", written, size)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return written, err
	}
	if err = check(f.Name()); err != nil {
		return written, err
	}
	if _, there := os.Stat(path); there == nil {
		return written, os.Remove(f.Name())
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return written, err
	}
	return written, syncDir(filepath.Dir(path))
}

const (
	receiveStep     = 1 << 20
	receivePauseMax = 50 * time.Millisecond
)

type syncWriter interface {
	io.Writer
	Sync() error
}

// copySynced writes from to f and syncs it, in steps of receiveStep with a pause as long
// as each: on a disk that is shared with a log, that log's syncs never wait for more than
// one step.
func copySynced(f syncWriter, from io.Reader) (written int64, err error) {
	for {
		n, err := io.CopyN(f, from, receiveStep)
		written += n
		if err != nil && err != io.EOF {
			return written, err
		}
		begin := time.Now()
		if err := f.Sync(); err != nil {
			return written, err
		}
		if err == io.EOF {
			return written, nil
		}
		time.Sleep(min(time.Since(begin), receivePauseMax))
	}
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// removeReceived deletes received files of snapshots up to index, which are installed by
// now or never will be.
func (n *Node) removeReceived(index uint64) error {
	names, err := os.ReadDir(n.cfg.snapDir())
	if err != nil {
		return err
	}
	for _, e := range names {
		number, ok := strings.CutSuffix(e.Name(), receivedSuffix)
		if !ok {
			continue
		}
		if at, err := strconv.ParseUint(number, 16, 64); err != nil || at > index {
			continue
		}
		if err := os.Remove(filepath.Join(n.cfg.snapDir(), e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// install makes the state that m's snapshot came with the member's. The applier calls it
// once the mark is in the log; everything before it is applied.
func (n *Node) install(m *raftpb.Message) error {
	meta := m.Snapshot.GetMetadata()
	begin := time.Now()
	var leased []leasedKey
	err := n.store.Replace(n.cfg.receivedPath(meta.GetIndex()), func(id kv.LeaseID, key []byte) {
		leased = append(leased, leasedKey{id, key})
	})
	if err != nil {
		return fmt.Errorf("install the snapshot of entry %d: %w", meta.GetIndex(), err)
	}
	if err := n.reload(leased); err != nil {
		return fmt.Errorf("install the snapshot of entry %d: %w", meta.GetIndex(), err)
	}
	n.memberAt.Store(meta.GetIndex())
	n.lastMark.Store(meta.GetIndex())
	// What was under way may be in the snapshot or not: nobody can know any more.
	n.proposals.doubt(meta.GetTerm(), kv.ErrTimeout)
	n.hub.Reload(n.store.Rev())
	n.log.Info("installed a snapshot", "index", meta.GetIndex(), "term", meta.GetTerm(), "took", time.Since(begin).String())
	if err := snapshot.Save(n.cfg.FS, n.cfg.snapDir(), meta.GetIndex(), meta.GetTerm(), meta.GetConfState(), n.cluster.State()); err != nil {
		n.log.Warn("could not write the snapshot file", "index", meta.GetIndex(), "error", err)
	}
	n.inbox.put(arrival{appended: m})
	return nil
}

// reload reads anew what the store keeps beside keys. leased are the keys on leases.
func (n *Node) reload(leased []leasedKey) error {
	if err := n.auth.Reload(); err != nil {
		return err
	}
	if err := n.cluster.Reload(); err != nil {
		return err
	}
	if err := n.alarms.Reload(n.store); err != nil {
		return err
	}
	n.showAlarms()
	// Whoever reads the old leases after the start must be done with them.
	<-n.leasesLoaded
	leases := n.newLessor()
	if err := restoreLeases(leases, n.store.Bucket("lease"), leased); err != nil {
		return err
	}
	n.leases.Store(leases)
	return nil
}

// restoreLeases reads the lease bucket and hangs the keys on the leases.
func restoreLeases(to *lease.Lessor, bucket *mvcc.Bucket, keys []leasedKey) error {
	err := bucket.Each(func(_, value []byte) error {
		id, ttl, remaining, err := fsm.ReadLease(value)
		if err != nil {
			return err
		}
		to.Restore(id, ttl, remaining)
		return nil
	})
	if err != nil {
		return err
	}
	for _, k := range keys {
		// A key may outlive its lease where an older version of etcd lost track of it.
		if to.Exists(k.id) {
			to.Attach(k.id, k.key)
		}
	}
	return nil
}

// sendSnapshot makes a snapshot of the store as it is now and sends it where m, a MsgSnap
// of core, is to go. Writes go on meanwhile.
func (n *Node) sendSnapshot(m *raftpb.Message) {
	to := membership.ID(m.GetTo())
	sn, err := n.store.Snapshot(n.ctx)
	if err != nil {
		n.snapshotSent(to, err)
		return
	}
	full, err := describeSnapshot(m, sn)
	if err != nil {
		n.snapshotSent(to, errors.Join(err, sn.Close()))
		return
	}
	n.log.Info("sending a snapshot", "to", to.String(), "index", full.Snapshot.GetMetadata().GetIndex(), "bytes", sn.Size)
	n.network.SendSnapshot(full, &snapshotReader{sn: sn}, sn.Size)
}

// describeSnapshot is m with what sn holds: which entry it stands for, and the members. Who
// votes follows from the members: the file's confState may be that of another cluster, from
// whose backup etcdutl made this one.
func describeSnapshot(m *raftpb.Message, sn *mvcc.Snapshot) (*raftpb.Message, error) {
	index, term := sn.Applied()
	state, err := membership.Read(sn)
	if err != nil {
		return nil, fmt.Errorf("read the members of a snapshot: %w", err)
	}
	return &raftpb.Message{
		Type: m.Type, To: m.To, From: m.From, Term: m.Term,
		Snapshot: &raftpb.Snapshot{
			Data:     snapshot.V2Store(state),
			Metadata: &raftpb.SnapshotMetadata{Index: &index, Term: &term, ConfState: fsm.ConfState(state)},
		},
	}, nil
}

// snapshotReader reads a snapshot that is written into a pipe.
type snapshotReader struct {
	sn   *mvcc.Snapshot
	pipe *io.PipeReader
	done chan struct{}
}

func (r *snapshotReader) Read(b []byte) (int, error) {
	if r.pipe == nil {
		var w *io.PipeWriter
		r.pipe, w = io.Pipe()
		r.done = make(chan struct{})
		go func() {
			defer close(r.done)
			_, err := r.sn.WriteTo(w)
			w.CloseWithError(err) // nil: io.EOF
		}()
	}
	return r.pipe.Read(b)
}

// Close ends the reading and lets go of the store's file.
func (r *snapshotReader) Close() error {
	if r.pipe != nil {
		if err := r.pipe.Close(); err != nil {
			return err
		}
		<-r.done
	}
	return r.sn.Close()
}

// snapshotSent tells the loop how sending a snapshot has ended.
func (n *Node) snapshotSent(to membership.ID, err error) {
	if err != nil && n.ctx.Err() == nil {
		n.log.Warn("could not send a snapshot", "to", to.String(), "error", err)
	}
	n.inbox.put(arrival{call: func() { n.core.SnapshotSent(uint64(to), err == nil) }})
}
