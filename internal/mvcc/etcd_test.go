package mvcc

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"quorate/internal/kv"
)

// TestEtcd makes the same random history in a real etcd, from the directory that
// QUORATE_PEERS names, and here, compares HashKV, kills etcd and opens the file that it
// leaves.
func TestEtcd(t *testing.T) {
	t.Parallel()
	peers := os.Getenv("QUORATE_PEERS")
	if peers == "" {
		t.Skip("QUORATE_PEERS names no directory with an etcd to compare with")
	}
	seed := rand.Uint64()
	defer func() {
		if t.Failed() {
			t.Logf("seed %d", seed)
		}
	}()
	rnd := rand.New(rand.NewPCG(seed, 5))
	dir := t.TempDir()
	etcd, client := startEtcd(t, filepath.Join(peers, "etcd"), dir)
	ctx := t.Context()
	s := mustOpen(t, filepath.Join(dir, "db"), Options{NoSync: true})
	compare := func(s *Store, rev int64) {
		t.Helper()
		v := s.View()
		defer v.Release()
		want, err := client.HashKV(ctx, client.Endpoints()[0], rev)
		if err != nil {
			t.Fatal(err)
		}
		sum, compactRev, hashRev, err := v.HashKV(rev)
		if err != nil || sum != want.Hash || compactRev != want.CompactRevision || hashRev != want.HashRevision || v.Rev() != want.Header.Revision {
			t.Fatalf("HashKV(%d) = %08x, %d, %d, %v at %d; etcd has %v", rev, sum, compactRev, hashRev, err, v.Rev(), want)
		}
	}
	index := uint64(0)
	for range 1500 {
		key := fmt.Sprint("key", rnd.IntN(30))
		tx := s.Begin()
		var err error
		switch n := rnd.IntN(100); {
		case n < 70:
			value := fmt.Sprint("value", rnd.Uint64())
			tx.Put([]byte(key), []byte(value), kv.NoLease)
			_, err = client.Put(ctx, key, value)
		case n < 90:
			end := clientv3.GetPrefixRangeEnd(key)
			tx.Delete(kv.Span{Key: []byte(key), End: []byte(end)}, nil, nil)
			_, err = client.Delete(ctx, key, clientv3.WithRange(end))
		case n < 91:
			tx.Delete(all, nil, nil)
			_, err = client.Delete(ctx, "\x00", clientv3.WithFromKey())
		}
		if err != nil {
			t.Fatal(err)
		}
		tx.End()
		if rnd.IntN(40) == 0 {
			if rev := s.Rev() - rnd.Int64N(min(s.Rev(), 30)); rev > s.compactRev {
				_, err := client.Compact(ctx, rev, clientv3.WithCompactPhysical())
				done, ourErr := s.Compact(rev)
				if err != nil || ourErr != nil {
					t.Fatalf("Compact(%d): %v; etcd: %v", rev, ourErr, err)
				}
				index++
				s.Publish(index, 1)
				if rnd.IntN(2) == 0 {
					<-done
				}
			}
		}
		index++
		s.Publish(index, 1)
		if rnd.IntN(5) == 0 {
			compare(s, 0)
			// Of exactly the compacted revision etcd tells what it was before (see HashKV).
			if rev := s.Rev() - rnd.Int64N(20); rev > s.compactRev {
				compare(s, rev)
			}
		}
	}
	v := s.View()
	sum, compactRev, _, _ := v.HashKV(0)
	v.Release()
	time.Sleep(300 * time.Millisecond) // etcd commits its file every 100 ms
	if err := etcd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = etcd.Wait() // it was killed
	theirs := mustOpen(t, filepath.Join(dir, "etcd", "member", "snap", "db"), Options{})
	waitCompacted(t, theirs)
	w := theirs.View()
	got, gotCompactRev, _, err := w.HashKV(0)
	if err != nil || got != sum || w.Rev() != s.Rev() || gotCompactRev != compactRev {
		t.Fatalf("etcd's file has %08x at %d, compacted at %d, %v; want %08x at %d, %d", got, w.Rev(), gotCompactRev, err, sum, s.Rev(), compactRev)
	}
	w.Release()
	t.Logf("etcd's file has storage version %s", theirs.StorageVersion())
	mustClose(t, theirs)
	mustClose(t, s)
}

func startEtcd(t *testing.T, binary, dir string) (*exec.Cmd, *clientv3.Client) {
	t.Helper()
	url := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return "http://" + l.Addr().String()
	}
	clients, peers := url(), url()
	etcd := exec.Command(binary, "--data-dir", filepath.Join(dir, "etcd"), "--listen-client-urls", clients,
		"--advertise-client-urls", clients, "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers,
		"--initial-cluster", "default="+peers, "--log-level", "error")
	if err := etcd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if etcd.ProcessState == nil {
			_ = etcd.Process.Kill()
			_ = etcd.Wait()
		}
	})
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{clients}, DialTimeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	return etcd, client
}
