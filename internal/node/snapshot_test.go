package node

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
)

// carefulDisk checks that little is ever left for one sync.
type carefulDisk struct {
	bytes.Buffer
	t        *testing.T
	unsynced int
	fails    error
}

func (d *carefulDisk) Write(b []byte) (int, error) {
	if d.unsynced += len(b); d.unsynced > receiveStep {
		d.t.Errorf("%d bytes wait for one sync", d.unsynced)
	}
	return d.Buffer.Write(b)
}

func (d *carefulDisk) Sync() error {
	d.unsynced = 0
	return d.fails
}

func TestReceivedFileIsSyncedInSteps(t *testing.T) {
	for _, size := range []int{0, 1, receiveStep - 1, receiveStep, receiveStep + 1, 3*receiveStep + 7} {
		content := strings.Repeat("x", size)
		d := &carefulDisk{t: t, unsynced: 1} // so that an empty file must be synced, too
		n, err := copySynced(d, strings.NewReader(content))
		if err != nil || n != int64(size) || d.String() != content {
			t.Errorf("%d of %d bytes: %v", n, size, err)
		}
		if d.unsynced != 0 {
			t.Errorf("%d of %d bytes are not synced at the end", d.unsynced, size)
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
