package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/test/harness"
)

// smallDisk mounts a file system of that size in memory, which takes a superuser.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "quorate-disk-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
			t.Skipf("a disk that can be filled has to be mounted, and that is not permitted: %v", err)
		}
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// fill takes all room that is left, and returns how to give it back.
func fill(t *testing.T, disk string) (free func()) {
	t.Helper()
	name := filepath.Join(disk, "ballast")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size > 0; {
		if _, err := f.Write(make([]byte, size)); errors.Is(err, syscall.ENOSPC) {
			size /= 2
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

// stock is what was written and acknowledged.
type stock struct {
	values map[string][]byte
	next   int
}

// put writes one more key and says whether it was acknowledged.
func (s *stock) put(kv pb.KVClient, size int) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	key := fmt.Sprintf("key%05d", s.next)
	value := bytes.Repeat([]byte{byte(s.next)}, size)
	s.next++
	_, err := kv.Put(ctx, &pb.PutRequest{Key: []byte(key), Value: value})
	if err == nil {
		s.values[key] = value
	}
	return err
}

// check reads everything. Keys beyond the acknowledged ones may be there if their answer left
// it open, so only the acknowledged ones are looked for.
func (s *stock) check(t *testing.T, kv pb.KVClient, when string) {
	t.Helper()
	for _, serializable := range []bool{false, true} {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		resp, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte("key"), RangeEnd: []byte("kez"), Serializable: serializable})
		cancel()
		if err != nil {
			t.Fatalf("%s: read (serializable %v): %v", when, serializable, err)
		}
		there := map[string][]byte{}
		for _, kv := range resp.Kvs {
			there[string(kv.Key)] = kv.Value
		}
		for key, value := range s.values {
			if !bytes.Equal(there[key], value) {
				t.Fatalf("%s: %s was acknowledged with %d bytes, has %d", when, key, len(value), len(there[key]))
			}
		}
	}
}

// TestFullDisk fills the disk under a server: writes are refused, reads go on, nothing is
// lost, and once there is room again writes are taken without anybody's help.
func TestFullDisk(t *testing.T) {
	if harness.SelfTest() {
		t.Skip("etcd ends when its disk is full")
	}
	harness.QuorateBinary(t)
	disk := smallDisk(t, "400m")
	dir := filepath.Join(disk, "data")
	server := harness.Start(t, harness.Quorate, dir)
	connect := func() pb.KVClient {
		conn, err := server.Conn()
		if err != nil {
			t.Fatal(err)
		}
		return pb.NewKVClient(conn)
	}
	kv := connect()
	s := &stock{values: map[string][]byte{}}
	for range 50 {
		if err := s.put(kv, 10_000); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 3 {
		free := fill(t, disk)
		// What was prepared before is still written to; then comes the refusal.
		var refusal error
		for written := 0; refusal == nil; written++ {
			if written > 3000 {
				t.Fatalf("round %d: %d puts of 100 kB on a full disk", round, written)
			}
			refusal = s.put(kv, 100_000)
		}
		t.Logf("round %d: refused after %d keys: %v", round, len(s.values), refusal)
		switch status.Code(refusal) {
		case codes.ResourceExhausted, codes.Unavailable:
		default:
			t.Errorf("round %d: refused with %v", round, refusal)
		}
		for range 5 {
			if err := s.put(kv, 100_000); err == nil {
				t.Logf("round %d: one that fits", round)
			}
		}
		s.check(t, kv, "while the disk is full")
		if round == 1 {
			// A crash while the disk is full: it may refuse to start, but not lose anything.
			server.Kill()
			again, err := harness.Launch(harness.Quorate, dir)
			if err != nil {
				t.Fatal(err)
			}
			if err := again.WaitReady(context.Background()); err != nil {
				t.Logf("it does not start on the full disk: %v\n%s", err, again.LogTail(1))
				again.Kill()
				free()
				free = func() {}
				server = harness.Start(t, harness.Quorate, dir)
			} else {
				t.Log("it starts on the full disk")
				t.Cleanup(again.Kill)
				server = again
			}
			kv = connect()
			s.check(t, kv, "after a crash on the full disk")
		}
		free()
		freed := time.Now()
		for {
			err := s.put(kv, 1000)
			if err == nil {
				break
			}
			if time.Since(freed) > 30*time.Second {
				t.Fatalf("round %d: no write 30 s after there is room again: %v\n%s", round, err, server.LogTail(10))
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Logf("round %d: writes resumed %v after there was room", round, time.Since(freed).Round(10*time.Millisecond))
		s.check(t, kv, "when there is room again")
		select {
		case <-server.Exited():
			t.Fatalf("the server ended\n%s", server.LogTail(20))
		default:
		}
	}
	server.Kill()
	server = harness.Start(t, harness.Quorate, dir)
	s.check(t, connect(), "after a restart")
}
