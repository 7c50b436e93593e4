package node

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"quorate/internal/vfs"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// gatedFS is the file system with syncs of files that wait while the gate is locked.
type gatedFS struct {
	vfs.FS
	gate sync.RWMutex
}

type gatedFile struct {
	vfs.File
	fs *gatedFS
}

func (g *gatedFS) Open(name string) (vfs.File, error)   { return g.wrap(g.FS.Open(name)) }
func (g *gatedFS) Create(name string) (vfs.File, error) { return g.wrap(g.FS.Create(name)) }
func (g *gatedFS) wrap(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return gatedFile{f, g}, nil
}

func (f gatedFile) Sync() error {
	f.fs.gate.RLock()
	defer f.fs.gate.RUnlock()
	return f.File.Sync()
}

// TestForwardedProposalsWaitTheirTurn: what other members send to the leader must not keep
// its own clients waiting, so both wait for the disk in the same way.
func TestForwardedProposalsWaitTheirTurn(t *testing.T) {
	disks := []*gatedFS{}
	c := newCluster(t, 3, func(cfg *Config) {
		cfg.ElectionTicks = 500 // the leader must not find itself sick
		disks = append(disks, &gatedFS{FS: vfs.OS()})
		cfg.FS = disks[len(disks)-1]
	})
	lead := c.leader()
	disk := disks[lead]
	appending := func() (with int) {
		done := make(chan struct{})
		c.nodes[lead].inbox.put(arrival{call: func() {
			for _, a := range c.nodes[lead].appending {
				if len(a.message.Entries) > 0 {
					with++
				}
			}
			close(done)
		}})
		<-done
		return with
	}

	disk.gate.Lock()
	locked := true
	unlock := func() {
		if locked {
			locked = false
			disk.gate.Unlock()
		}
	}
	defer unlock()
	var wg sync.WaitGroup
	for k := range 20 { // one after the other, so that each is a message of its own
		for i, n := range c.nodes {
			wg.Go(func() {
				body, err := proto.Marshal(&pb.PutRequest{Key: fmt.Appendf(nil, "%d/%d", i, k)})
				if err != nil {
					t.Error(err)
					return
				}
				if res, err := n.Propose(t.Context(), wire.FieldPut, body); err != nil || res.Err != nil {
					t.Errorf("a put through member %d: %v, %v", i, err, res.Err)
				}
			})
		}
		time.Sleep(2 * time.Millisecond)
		if got := appending(); got > appendingMax {
			t.Fatalf("%d Appends with entries are with the log writer", got)
		}
	}
	if appending() == 0 {
		t.Fatal("nothing waits for the disk")
	}
	unlock()
	wg.Wait()
	c.same()
}
