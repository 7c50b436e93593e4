package rpc

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"quorate/internal/mvcc"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

func TestMaintenance(t *testing.T) {
	m, conn := serveMember(t)
	c, ctx := pb.NewMaintenanceClient(conn), t.Context()
	for i := range 50 {
		if _, err := pb.NewKVClient(conn).Put(ctx, put(fmt.Sprint("k", i), strings.Repeat("v", 5000))); err != nil {
			t.Fatal(err)
		}
	}
	st, err := c.Status(ctx, &pb.StatusRequest{})
	if err != nil || st.Version != "3.7.1" || st.Leader != testMember || st.RaftIndex != 50 || st.Header.Revision != 51 || st.DbSize < st.DbSizeInUse || len(st.Errors) != 0 || st.DowngradeInfo.Enabled {
		t.Errorf("status: %v, %v", st, err)
	}
	m.leader.Store(0)
	if st, err := c.Status(ctx, &pb.StatusRequest{}); err != nil || len(st.Errors) != 1 || st.Errors[0] != "etcdserver: no leader" {
		t.Errorf("status without leader: %v, %v", st, err)
	}
	m.leader.Store(testMember)
	h1, err := c.HashKV(ctx, &pb.HashKVRequest{})
	if err != nil || h1.HashRevision != 51 || h1.CompactRevision != -1 {
		t.Errorf("hash: %v, %v", h1, err)
	}
	if _, err := c.Hash(ctx, &pb.HashRequest{}); err != nil {
		t.Error(err)
	}
	if _, err := c.Defragment(ctx, &pb.DefragmentRequest{}); err != nil {
		t.Error(err)
	}
	a, err := c.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: 5, Alarm: pb.AlarmType_NOSPACE})
	if err != nil || len(a.Alarms) != 1 || a.Header.Revision != 51 {
		t.Errorf("alarm: %v, %v", a, err)
	}
	if _, err := pb.NewKVClient(conn).Put(ctx, put("a", "")); status.Convert(err).Message() != "etcdserver: mvcc: database space exceeded" {
		t.Errorf("put under alarm: %v", err)
	}
	for _, tc := range []struct {
		err  error
		text string
	}{
		{second(c.HashKV(ctx, &pb.HashKVRequest{Revision: 1000})), "etcdserver: mvcc: required revision is a future revision"},
		{second(c.MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: 1})), "etcdserver: bad leader transferee"},
		{second(c.Downgrade(ctx, &pb.DowngradeRequest{Version: "3.6"})), ""},
		{second(c.Downgrade(ctx, &pb.DowngradeRequest{Version: "3.6.0", Action: pb.DowngradeRequest_ENABLE})), "etcdserver: not capable"},
		{second(c.Downgrade(ctx, &pb.DowngradeRequest{Version: "x"})), "etcdserver: wrong downgrade target version format"},
		{second(c.Downgrade(ctx, &pb.DowngradeRequest{Version: "3.5"})), "etcdserver: invalid downgrade target version"},
		{second(c.Downgrade(ctx, &pb.DowngradeRequest{Action: pb.DowngradeRequest_CANCEL})), ""},
		{second(c.Downgrade(ctx, &pb.DowngradeRequest{Action: 9})), "etcdserver: unknown method"},
	} {
		if got := status.Convert(tc.err).Message(); got != tc.text {
			t.Errorf("got %q, want %q", got, tc.text)
		}
	}
}

func TestSnapshot(t *testing.T) {
	_, conn := serveMember(t)
	for i := range 50 {
		if _, err := pb.NewKVClient(conn).Put(t.Context(), put(fmt.Sprint("k", i), strings.Repeat("v", 5000))); err != nil {
			t.Fatal(err)
		}
	}
	s, err := pb.NewMaintenanceClient(conn).Snapshot(t.Context(), &pb.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var blobs [][]byte
	var left []uint64
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if r.Version != "3.7.0" || len(r.Blob) > snapshotBlob {
			t.Errorf("version %q, %d bytes", r.Version, len(r.Blob))
		}
		blobs, left = append(blobs, r.Blob), append(left, r.RemainingBytes)
	}
	file, trailer := bytes.Join(blobs[:len(blobs)-1], nil), blobs[len(blobs)-1]
	if sum := sha256.Sum256(file); !bytes.Equal(sum[:], trailer) {
		t.Errorf("trailer %x, want %x", trailer, sum)
	}
	rest := uint64(len(file))
	for i, b := range blobs[:len(blobs)-1] {
		if rest -= uint64(len(b)); left[i] != rest {
			t.Errorf("message %d: %d bytes remain, says %d", i, rest, left[i])
		}
	}
	path := filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	store, err := mvcc.Open(path, mvcc.Options{})
	if err != nil {
		t.Fatal(err)
	}
	v := store.View()
	if v.Rev() != 51 {
		t.Errorf("the snapshot is at revision %d", v.Rev())
	}
	v.Release()
	if err := store.Close(); err != nil {
		t.Error(err)
	}
}

func TestAuth(t *testing.T) {
	_, conn := serveMember(t)
	a, ctx := pb.NewAuthClient(conn), t.Context()
	for i, tc := range []struct {
		err  error
		text string
	}{
		{second(a.AuthEnable(ctx, &pb.AuthEnableRequest{})), "etcdserver: root user does not exist"},
		{second(a.AuthDisable(ctx, &pb.AuthDisableRequest{})), ""},
		{second(a.Authenticate(ctx, &pb.AuthenticateRequest{Name: "u"})), "etcdserver: authentication is not enabled"},
		{second(a.UserAdd(ctx, &pb.AuthUserAddRequest{})), "etcdserver: user name is empty"},
		{second(a.UserAdd(ctx, &pb.AuthUserAddRequest{Name: "u", Password: "p"})), ""},
		{second(a.UserGet(ctx, &pb.AuthUserGetRequest{Name: "v"})), "etcdserver: user name not found"},
		{second(a.UserList(ctx, &pb.AuthUserListRequest{})), ""},
		{second(a.RoleAdd(ctx, &pb.AuthRoleAddRequest{})), "etcdserver: role name is empty"},
		{second(a.RoleAdd(ctx, &pb.AuthRoleAddRequest{Name: "r"})), ""},
		{second(a.RoleGet(ctx, &pb.AuthRoleGetRequest{Role: "s"})), "etcdserver: role name not found"},
		{second(a.RoleGrantPermission(ctx, &pb.AuthRoleGrantPermissionRequest{Name: "r"})), "etcdserver: permission not given"},
	} {
		if got := status.Convert(tc.err).Message(); got != tc.text {
			t.Errorf("%d: got %q, want %q", i, got, tc.text)
		}
	}
	if s, err := a.AuthStatus(ctx, &pb.AuthStatusRequest{}); err != nil || s.Enabled || s.AuthRevision != 3 {
		t.Errorf("auth status: %v, %v", s, err)
	}
}

// TestSnapshotNotRead: who does not read a snapshot does not keep it for ever.
func TestSnapshotNotRead(t *testing.T) {
	m := newMember(t)
	s, addr := start(t, m, nil, nil)
	s.services.snapshotPace = 50 * time.Millisecond
	conn := dial(t, addr, grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10))
	for i := range 8 {
		if _, err := pb.NewKVClient(conn).Put(t.Context(), put(fmt.Sprint(i), strings.Repeat("v", 1<<20))); err != nil {
			t.Fatal(err)
		}
	}
	stream, err := pb.NewMaintenanceClient(conn).Snapshot(t.Context(), &pb.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	for err == nil {
		_, err = stream.Recv()
	}
	if want := rpctypes.ErrGRPCTimeout; status.Convert(err).Message() != status.Convert(want).Message() {
		t.Errorf("%v, want %v", err, want)
	}
}
