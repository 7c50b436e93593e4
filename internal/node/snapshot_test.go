package node

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// carefulDisk checks that little is ever left for one sync.
type carefulDisk struct {
	t        *testing.T
	content  bytes.Buffer
	unsynced int
	syncs    int
	fails    error
}

func (d *carefulDisk) Write(b []byte) (int, error) {
	if d.unsynced += len(b); d.unsynced > receiveStep {
		d.t.Errorf("%d bytes wait for one sync", d.unsynced)
	}
	return d.content.Write(b)
}

func (d *carefulDisk) Sync() error {
	d.unsynced = 0
	d.syncs++
	return d.fails
}

func TestReceivedFileIsSyncedInSteps(t *testing.T) {
	for _, size := range []int{0, 1, receiveStep - 1, receiveStep, receiveStep + 1, 3*receiveStep + 7} {
		content := strings.Repeat("x", size)
		d := &carefulDisk{t: t}
		n, err := copySynced(d, strings.NewReader(content))
		if err != nil || n != int64(size) || d.content.String() != content {
			t.Errorf("%d of %d bytes: %v", n, size, err)
		}
		if d.unsynced != 0 || d.syncs == 0 {
			t.Errorf("%d of %d bytes are not synced at the end, %d syncs", d.unsynced, size, d.syncs)
		}
	}
	broken := errors.New("broken")
	if _, err := copySynced(&carefulDisk{t: t, fails: broken}, strings.NewReader("x")); !errors.Is(err, broken) {
		t.Errorf("a failed sync: %v", err)
	}
	if _, err := copySynced(&carefulDisk{t: t}, io.MultiReader(strings.NewReader("x"), brokenReader{broken})); !errors.Is(err, broken) {
		t.Errorf("a broken connection: %v", err)
	}
}

type brokenReader struct{ err error }

func (r brokenReader) Read([]byte) (int, error) { return 0, r.err }

// A snapshot whose sender is paused does not keep another's from being received.
func TestPausedSenderHoldsUpNoOther(t *testing.T) {
	n := run(t, testConfig(t.TempDir()))
	message := func(index uint64) *raftpb.Message {
		return &raftpb.Message{Type: raftpb.MsgSnap.Enum(), Snapshot: &raftpb.Snapshot{Metadata: &raftpb.SnapshotMetadata{Index: &index}}}
	}
	paused, resume := io.Pipe()
	first := make(chan error)
	go func() { first <- n.receiveSnapshot(message(100), paused, -1) }()
	if _, err := resume.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := n.receiveSnapshot(message(101), strings.NewReader("no database"), -1); err == nil || errors.Is(err, errReceiving) {
		t.Errorf("the second: %v", err)
	}
	resume.CloseWithError(io.ErrUnexpectedEOF)
	if err := <-first; !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("the first: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(n.cfg.snapDir(), "*"+receivedSuffix))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
