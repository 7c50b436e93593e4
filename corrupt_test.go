package quorate

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"
)

// threeConfigs are those of a cluster.
func threeConfigs(t *testing.T) []*Config {
	t.Helper()
	cfgs, cluster := make([]*Config, 3), make([]string, 3)
	for i := range cfgs {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // when all ports are known
		c := testConfig(t)
		c.Name = fmt.Sprintf("m%d", i)
		c.ListenPeerURLs = urls(t, "http://"+l.Addr().String())
		c.AdvertisePeerURLs = c.ListenPeerURLs
		cfgs[i], cluster[i] = c, c.Name+"="+c.ListenPeerURLs.String()
	}
	for _, c := range cfgs {
		c.InitialCluster = strings.Join(cluster, ",")
	}
	return cfgs
}

// startAll starts members that need each other. Who calls it closes them.
func startAll(t *testing.T, cfgs []*Config, log *slog.Logger) []*Server {
	t.Helper()
	servers, errs := make([]*Server, len(cfgs)), make([]error, len(cfgs))
	var starting sync.WaitGroup
	for i, c := range cfgs {
		starting.Go(func() { servers[i], errs[i] = Start(t.Context(), c, log) })
	}
	starting.Wait()
	for i, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { servers[i].Close() }) // if the test has not
	}
	return servers
}

// damage gives one key of a store that nobody uses another value of the same length.
func damage(t *testing.T, cfg *Config, key, value string) {
	t.Helper()
	db, err := bolt.Open(filepath.Join(cfg.DataDir, "member/snap/db"), 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	done := false
	if err := db.Update(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("key"))
		return b.ForEach(func(k, v []byte) error {
			item := &mvccpb.KeyValue{}
			if err := proto.Unmarshal(v, item); err != nil || string(item.Key) != key {
				return err
			}
			done, item.Value = true, []byte(value)
			v, err := proto.Marshal(item)
			if err != nil {
				return err
			}
			return b.Put(bytes.Clone(k), v)
		})
	}); err != nil || !done {
		t.Fatalf("damage the store: %v, found the key: %v", err, done)
	}
}

// A member whose data differs from the others' does not serve clients when InitialCorruptCheck is
// on, as kubeadm has it; without that, the leader finds it and ends writing.
func TestCorruptMember(t *testing.T) {
	var log safeBuffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	cfgs := threeConfigs(t)
	for _, c := range cfgs {
		if err := c.Features.Set("InitialCorruptCheck=true"); err != nil {
			t.Fatal(err)
		}
		c.CorruptCheckTime = 100 * time.Millisecond
	}
	servers := startAll(t, cfgs, logger)
	put := func(i int, value string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		_, err := client(t, servers[i].Endpoints()[0], nil).Put(ctx, "k", value)
		return err
	}
	if err := put(0, "right"); err != nil {
		t.Fatal(err)
	}
	last := len(servers) - 1
	restart := func() error {
		s, err := Start(t.Context(), cfgs[last], logger)
		if err == nil {
			servers[last] = s
			t.Cleanup(func() { s.Close() })
		}
		return err
	}
	closeLast := func() {
		t.Helper()
		if err := servers[last].Close(); err != nil {
			t.Fatal(err)
		}
	}
	closeLast()
	log.Reset()
	if err := restart(); err != nil {
		t.Fatal(err)
	}
	closeLast()
	if !strings.Contains(log.String(), "initial corruption checking passed") || strings.Contains(log.String(), "cannot compare") {
		t.Errorf("a sound member was not compared at its start:\n%s", log.String())
	}
	if strings.Contains(log.String(), "differs from the leader's") {
		t.Errorf("sound members differ:\n%s", log.String())
	}

	damage(t, cfgs[last], "k", "wrong")
	if err := restart(); err == nil || !strings.Contains(err.Error(), "found data inconsistency with peers: at revision 2 its data in "+cfgs[last].DataDir) {
		t.Fatalf("a damaged member started: %v", err)
	}
	if err := put(0, "right"); err != nil {
		t.Errorf("the others: %v", err)
	}

	damage(t, cfgs[last], "k", "wrong")
	if err := cfgs[last].Features.Set("InitialCorruptCheck=false"); err != nil {
		t.Fatal(err)
	}
	if err := restart(); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := put(0, "again")
		if err != nil && strings.Contains(err.Error(), "corrupt cluster") {
			break
		}
		if err != nil || time.Now().After(end) {
			t.Fatalf("nobody has found the damaged member: %v\n%s", err, log.String())
		}
	}
	alarms, err := clientAlarms(t, servers[0])
	if err != nil || len(alarms) != 1 || alarms[0].Alarm != pb.AlarmType_CORRUPT {
		t.Errorf("alarms %v, %v", alarms, err)
	}
}

func clientAlarms(t *testing.T, s *Server) ([]*pb.AlarmMember, error) {
	t.Helper()
	r, err := client(t, s.Endpoints()[0], nil).AlarmList(t.Context())
	if err != nil {
		return nil, err
	}
	return (*clientv3.AlarmResponse)(r).Alarms, nil
}

// safeBuffer is a buffer that several write to.
type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *safeBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *safeBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func (b *safeBuffer) Reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b.Reset()
}
