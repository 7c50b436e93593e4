// Package formats holds quorate's files against etcd's own packages: what one writes the
// other reads.
package formats

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"quorate/internal/vfs"
	"quorate/internal/wal"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	etcdwal "go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

const segmentBytes = 64 << 10

func init() { etcdwal.SegmentSizeBytes = segmentBytes }

var (
	metadata     = wal.Metadata{NodeID: 0x8e9e05c52164694d, ClusterID: 0xcdf818194e3a8c32}
	etcdMetadata = &pb.Metadata{NodeID: &metadata.NodeID, ClusterID: &metadata.ClusterID}
	conf         = &raftpb.ConfState{Voters: []uint64{1, 2}, Learners: []uint64{3}, AutoLeave: proto.Bool(false)}
)

// history is what a log should hold.
type history struct {
	entries []*raftpb.Entry // from index 1
	term    uint64
	vote    uint64
	commit  uint64
	mark    uint64
}

func (h *history) hard() *raftpb.HardState {
	return &raftpb.HardState{Term: &h.term, Vote: &h.vote, Commit: &h.commit}
}

// log is a log that is open, ours or etcd's.
type log interface {
	save(es []*raftpb.Entry, hs *raftpb.HardState) error
	mark(index, term uint64) error
	close() error
}

type ours struct{ l *wal.Log }

func (o ours) save(es []*raftpb.Entry, hs *raftpb.HardState) error {
	return o.l.Append(es, hs, len(es) > 0)
}
func (o ours) mark(index, term uint64) error {
	return o.l.SaveSnapshot(wal.Snapshot{Index: index, Term: term, ConfState: conf}, nil)
}
func (o ours) close() error { return o.l.Close() }

type etcds struct{ w *etcdwal.WAL }

func (e etcds) save(es []*raftpb.Entry, hs *raftpb.HardState) error { return e.w.Save(hs, es) }
func (e etcds) mark(index, term uint64) error {
	return e.w.SaveSnapshot(&walpb.Snapshot{Index: &index, Term: &term, ConfState: conf})
}
func (e etcds) close() error { return e.w.Close() }

// grow writes a random piece of history.
func (h *history) grow(t *testing.T, l log, rnd *rand.Rand, steps int) {
	t.Helper()
	for range steps {
		last := uint64(len(h.entries))
		from := last + 1
		switch rnd.IntN(12) {
		case 0:
			if h.commit > h.mark {
				h.mark += 1 + rnd.Uint64N(h.commit-h.mark)
				if err := l.mark(h.mark, h.entries[h.mark-1].GetTerm()); err != nil {
					t.Fatal(err)
				}
			}
			continue
		case 1:
			h.term++
			h.vote = rnd.Uint64()
			if last > h.commit {
				from = h.commit + 1 + rnd.Uint64N(last-h.commit)
			}
		}
		h.term = max(h.term, 1)
		var es []*raftpb.Entry
		for i := range rnd.Uint64N(5) {
			e := &raftpb.Entry{Index: proto.Uint64(from + i), Term: proto.Uint64(h.term)}
			if rnd.IntN(5) > 0 {
				e.Data = make([]byte, rnd.IntN(4000))
				for k := range e.Data {
					e.Data[k] = byte(rnd.Uint32())
				}
			}
			if rnd.IntN(3) == 0 {
				e.Type = raftpb.EntryType(rnd.IntN(3)).Enum()
			}
			es = append(es, e)
		}
		if len(es) > 0 {
			h.entries = append(h.entries[:from-1:from-1], es...)
		}
		h.commit += rnd.Uint64N(uint64(len(h.entries)) - h.commit + 1)
		if err := l.save(es, h.hard()); err != nil {
			t.Fatal(err)
		}
	}
}

// openEtcd opens dir with etcd's package, as etcd does when it starts.
func (h *history) openEtcd(t *testing.T, dir string) log {
	t.Helper()
	lg := zap.NewNop()
	snaps, err := etcdwal.ValidSnapshotEntries(lg, dir)
	if err != nil {
		t.Fatal("etcd looks for marks:", err)
	}
	newest := snaps[len(snaps)-1]
	if newest.GetIndex() != h.mark {
		t.Fatalf("etcd finds mark %d, want %d", newest.GetIndex(), h.mark)
	}
	if h.mark > 0 && !proto.Equal(newest.ConfState, conf) {
		t.Fatalf("etcd finds conf state %v", newest.ConfState)
	}
	if _, err := etcdwal.Verify(lg, dir, newest); err != nil {
		t.Fatal("etcd verifies:", err)
	}
	w, err := etcdwal.Open(lg, dir, newest)
	if err != nil {
		t.Fatal("etcd opens:", err)
	}
	md, hs, es, err := w.ReadAll()
	if err != nil {
		t.Fatal("etcd reads:", err)
	}
	got := new(pb.Metadata)
	if err := proto.Unmarshal(md, got); err != nil || !proto.Equal(got, etcdMetadata) {
		t.Fatalf("etcd reads metadata %v: %v", got, err)
	}
	h.same(t, "etcd", es, hs)
	return etcds{w}
}

func (h *history) openOurs(t *testing.T, dir string) log {
	t.Helper()
	l, rec, err := wal.Open(dir, h.commit, wal.Options{FS: vfs.OS(), SegmentBytes: segmentBytes})
	if err != nil {
		t.Fatal("we open:", err)
	}
	if rec.Metadata != metadata || rec.Snapshot.Index != h.mark || h.mark > 0 && !proto.Equal(rec.Snapshot.ConfState, conf) {
		t.Fatalf("we read %+v, want mark %d", rec, h.mark)
	}
	h.same(t, "we", rec.Entries, rec.HardState)
	return ours{l}
}

func (h *history) same(t *testing.T, who string, es []*raftpb.Entry, hs *raftpb.HardState) {
	t.Helper()
	want := h.entries[h.mark:]
	if len(es) != len(want) {
		t.Fatalf("%s read %d entries, want %d", who, len(es), len(want))
	}
	for i := range es {
		if !proto.Equal(es[i], want[i]) {
			t.Fatalf("%s read entry %v, want %v", who, es[i], want[i])
		}
	}
	if len(h.entries) > 0 && !proto.Equal(hs, h.hard()) {
		t.Fatalf("%s read hard state %v, want %v", who, hs, h.hard())
	}
}

// Both write on in turn, in one directory, stopped in order.
func TestBothTakeTurns(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 0))
			dir := filepath.Join(t.TempDir(), "wal")
			h := &history{}
			var l log
			if seed%2 == 0 {
				o, err := wal.Create(dir, metadata, wal.Options{FS: vfs.OS(), SegmentBytes: segmentBytes})
				if err != nil {
					t.Fatal(err)
				}
				l = ours{o}
			} else {
				md, err := proto.Marshal(etcdMetadata)
				if err != nil {
					t.Fatal(err)
				}
				w, err := etcdwal.Create(zap.NewNop(), dir, md)
				if err != nil {
					t.Fatal(err)
				}
				l = etcds{w}
			}
			for range 8 {
				h.grow(t, l, rnd, rnd.IntN(80))
				// A copy taken now is what kill -9 leaves. What is only remembered then
				// is a commit index.
				if _, ok := l.(etcds); ok {
					h.openOurs(t, copyDir(t, dir))
				} else {
					killed := *h
					if err := l.save(nil, killed.hard()); err != nil {
						t.Fatal(err)
					}
					if err := l.mark(h.mark, h.termAt(h.mark)); err != nil {
						t.Fatal(err)
					}
					killed.openEtcd(t, copyDir(t, dir))
				}
				if err := l.close(); err != nil {
					t.Fatal(err)
				}
				if rnd.IntN(2) == 0 {
					l = h.openEtcd(t, dir)
				} else {
					l = h.openOurs(t, dir)
				}
			}
			if err := l.close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func (h *history) termAt(index uint64) uint64 {
	if index == 0 {
		return 0
	}
	return h.entries[index-1].GetTerm()
}

func copyDir(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "wal")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// A write that a power failure tore is cut off by either, and either goes on after the
// other has cut it.
func TestTornTail(t *testing.T) {
	cuts := 0
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		dir := filepath.Join(t.TempDir(), "wal")
		o, err := wal.Create(dir, metadata, wal.Options{FS: vfs.OS(), SegmentBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		h := &history{term: 1}
		h.grow(t, ours{o}, rnd, 10)
		if err := o.Append(nil, h.hard(), true); err != nil {
			t.Fatal(err)
		}
		before := size(t, dir)
		more := &history{entries: h.entries, term: h.term, vote: h.vote, commit: h.commit, mark: h.mark}
		var es []*raftpb.Entry
		for i := range uint64(4) {
			data := make([]byte, 200+rnd.IntN(1000))
			for k := range data {
				data[k] = byte(rnd.Uint32()) | 1
			}
			es = append(es, &raftpb.Entry{Index: proto.Uint64(uint64(len(h.entries)) + 1 + i), Term: proto.Uint64(h.term), Data: data})
		}
		more.entries = append(h.entries[:len(h.entries):len(h.entries)], es...)
		if err := o.Append(es, more.hard(), true); err != nil {
			t.Fatal(err)
		}
		after := size(t, dir)
		torn := copyDir(t, dir)
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		tear(t, torn, rnd, before, after)

		// etcd first, then we, or the other way round.
		sawOurs, oursErr := readOurs(t, copyDir(t, torn))
		w := copyDir(t, torn)
		etcdwal.Repair(zap.NewNop(), w)
		sawEtcd, etcdErr := readEtcd(w)
		if oursErr != nil || etcdErr != nil {
			t.Fatalf("seed %d: we %v, etcd %v", seed, oursErr, etcdErr)
		}
		if sawOurs != sawEtcd {
			t.Fatalf("seed %d: we keep %d entries, etcd %d", seed, sawOurs, sawEtcd)
		}
		if sawOurs < len(more.entries)-int(h.mark) {
			cuts++
		}
		h.entries = more.entries[:sawOurs+int(h.mark)]
		x := &history{entries: h.entries, term: h.term, vote: h.vote, commit: h.commit, mark: h.mark}
		l := x.openEtcd(t, w)
		x.grow(t, l, rnd, 10)
		if err := l.close(); err != nil {
			t.Fatal(err)
		}
		l = x.openOurs(t, w)
		x.grow(t, l, rnd, 10)
		if err := l.close(); err != nil {
			t.Fatal(err)
		}
		if err := x.openEtcd(t, w).close(); err != nil {
			t.Fatal(err)
		}
		// Ours after our own cut.
		o, _, err = wal.Open(torn, 0, wal.Options{FS: vfs.OS(), SegmentBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		h.grow(t, ours{o}, rnd, 10)
		if err := o.Close(); err != nil {
			t.Fatal(err)
		}
		if err := h.openEtcd(t, torn).close(); err != nil {
			t.Fatal(err)
		}
		if err := h.openOurs(t, torn).close(); err != nil {
			t.Fatal(err)
		}
	}
	if cuts < 20 {
		t.Errorf("only %d of 60 were cut", cuts)
	}
}

// size is where the records of the only segment in dir end.
func size(t *testing.T, dir string) int {
	t.Helper()
	b, err := os.ReadFile(segment(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	return (len(b) + 7) &^ 7
}

func segment(t *testing.T, dir string) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.wal"))
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	return names[0]
}

// tear makes some sectors of what was written from before to after as they were: zero.
func tear(t *testing.T, dir string, rnd *rand.Rand, before, after int) {
	t.Helper()
	name := segment(t, dir)
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for from := before; from < after; {
		to := min((from/512+1)*512, after)
		if rnd.IntN(3) == 0 {
			clear(b[from:to])
		}
		from = to
	}
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func readOurs(t *testing.T, dir string) (int, error) {
	l, rec, err := wal.Open(dir, 0, wal.Options{FS: vfs.OS(), SegmentBytes: 1 << 20})
	if err != nil {
		return 0, err
	}
	return len(rec.Entries), l.Close()
}

func readEtcd(dir string) (int, error) {
	snaps, err := etcdwal.ValidSnapshotEntries(zap.NewNop(), dir)
	if err != nil {
		return 0, err
	}
	w, err := etcdwal.Open(zap.NewNop(), dir, snaps[len(snaps)-1])
	if err != nil {
		return 0, err
	}
	_, _, es, err := w.ReadAll()
	if err != nil {
		return 0, err
	}
	return len(es), w.Close()
}

// Neither opens what the other has open.
func TestLocks(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "wal")
	o, err := wal.Create(dir, metadata, wal.Options{FS: vfs.OS(), SegmentBytes: segmentBytes})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := etcdwal.Open(zap.NewNop(), dir, &walpb.Snapshot{}); err == nil {
		t.Error("etcd opened a log that we have open")
	}
	if err := o.Close(); err != nil {
		t.Fatal(err)
	}
	h := &history{}
	l := h.openEtcd(t, dir)
	if _, _, err := wal.Open(dir, 0, wal.Options{FS: vfs.OS()}); err == nil {
		t.Error("we opened a log that etcd has open")
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
}
