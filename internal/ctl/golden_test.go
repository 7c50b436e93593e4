package ctl

import (
	"bytes"
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
)

var rewrite = flag.Bool("rewrite", false, "write what is printed into testdata instead of comparing it")

// TestGolden runs the invocations in testdata/*.txt against a server in this process that gives
// fixed answers and shows what it was asked. A file holds blocks of an invocation, its standard
// input as lines beginning with "< ", and what it prints:
//
//	$ etcdctl put k v
//	server: put key:"k" value:"v"
//	stdout: OK
//	exit 0
func TestGolden(t *testing.T) {
	server := startCanned(t)
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no testdata: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for block := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n\n") {
				lines := strings.Split(block, "\n")
				got.WriteString(lines[0] + "\n")
				args, ok := strings.CutPrefix(lines[0], "$ etcdctl ")
				if !ok {
					t.Fatalf("%s: a block begins with %q", file, lines[0])
				}
				var stdin strings.Builder
				for _, l := range lines[1:] {
					if in, ok := strings.CutPrefix(l, "<"); ok {
						got.WriteString(l + "\n")
						stdin.WriteString(strings.TrimPrefix(in, " ") + "\n")
					}
				}
				got.WriteString(server.run(t, args, stdin.String()) + "\n")
			}
			out := strings.TrimRight(got.String(), "\n") + "\n"
			if *rewrite {
				if err := os.WriteFile(file, []byte(out), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if out != string(text) {
				t.Errorf("%s has changed: run go test -rewrite and look at the difference.\n%s", file, firstDifference(out, string(text)))
			}
		})
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range g {
		if i >= len(w) || g[i] != w[i] {
			return fmt.Sprintf("line %d: got %q, want %q", i+1, g[i], append(w, "", "")[min(i, len(w))])
		}
	}
	return fmt.Sprintf("line %d is missing: %q", len(g)+1, w[len(g)])
}

// run runs one invocation and returns what the server was asked and what was printed, a line each
// with its origin.
func (s *canned) run(t *testing.T, args, stdin string) string {
	t.Helper()
	s.asked = nil
	words, err := splitWords(args)
	if err != nil {
		t.Fatal(err)
	}
	root := Command()
	var out, errw bytes.Buffer
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&errw)
	root.SetArgs(append([]string{"--endpoints", s.addr}, words...))
	code := ExitCode(root.ExecuteContext(context.Background()))
	var b strings.Builder
	for _, a := range s.asked {
		fmt.Fprintf(&b, "server: %s\n", a)
	}
	for _, stream := range []struct{ name, text string }{{"stdout", out.String()}, {"stderr", errw.String()}} {
		text, _, _ := strings.Cut(stream.text, "\nUsage:")
		text = strings.ReplaceAll(reLog.ReplaceAllString(text, "log $1 $2\n"), s.addr, "SERVER")
		text = reDuration.ReplaceAllString(text, "DURATION")
		if text == "" {
			continue
		}
		// Binary output is one quoted line.
		if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == '\ufffd' }) {
			text = fmt.Sprintf("%q", text)
		}
		for line := range strings.SplitSeq(strings.TrimSuffix(text, "\n"), "\n") {
			fmt.Fprintf(&b, "%s: %s\n", stream.name, line)
		}
	}
	fmt.Fprintf(&b, "exit %d\n", code)
	return b.String()
}

// canned is a server that gives the same answers always, and notes what it was asked.
type canned struct {
	pb.UnimplementedKVServer
	pb.UnimplementedLeaseServer
	pb.UnimplementedWatchServer
	pb.UnimplementedMaintenanceServer
	pb.UnimplementedClusterServer
	addr  string
	asked []string
}

func startCanned(t *testing.T) *canned {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &canned{addr: l.Addr().String()}
	s := grpc.NewServer()
	pb.RegisterKVServer(s, c)
	pb.RegisterLeaseServer(s, c)
	pb.RegisterWatchServer(s, c)
	pb.RegisterMaintenanceServer(s, c)
	pb.RegisterClusterServer(s, c)
	pb.RegisterAuthServer(s, &cannedAuth{note: c.note})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *canned) note(verb string, m proto.Message) {
	// The text of protobuf has one or two spaces by chance.
	text := strings.Join(strings.Fields(prototext.MarshalOptions{}.Format(m)), " ")
	c.asked = append(c.asked, strings.TrimSpace(verb+" "+text))
}

var (
	cannedHeader = &pb.ResponseHeader{ClusterId: 0xc1, MemberId: 0xa1, Revision: 42, RaftTerm: 3}
	cannedKV     = &mvccpb.KeyValue{Key: []byte("k"), Value: []byte("v\xff"), CreateRevision: 40, ModRevision: 42, Version: 2, Lease: 0x1234}
	cannedOther  = &mvccpb.KeyValue{Key: []byte("k2"), Value: []byte("<x>"), CreateRevision: 41, ModRevision: 41, Version: 1}
)

func (c *canned) Range(_ context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	c.note("range", r)
	switch {
	case string(r.Key) == "gone":
		return nil, rpctypes.ErrGRPCCompacted
	case r.CountOnly:
		return &pb.RangeResponse{Header: cannedHeader, Count: 2}, nil
	case len(r.RangeEnd) == 0:
		return &pb.RangeResponse{Header: cannedHeader, Kvs: []*mvccpb.KeyValue{cannedKV}, Count: 1}, nil
	}
	return &pb.RangeResponse{Header: cannedHeader, Kvs: []*mvccpb.KeyValue{cannedKV, cannedOther}, Count: 3, More: true}, nil
}

func (c *canned) Put(_ context.Context, r *pb.PutRequest) (*pb.PutResponse, error) {
	c.note("put", r)
	resp := &pb.PutResponse{Header: cannedHeader}
	if r.PrevKv {
		resp.PrevKv = cannedOther
	}
	return resp, nil
}

func (c *canned) DeleteRange(_ context.Context, r *pb.DeleteRangeRequest) (*pb.DeleteRangeResponse, error) {
	c.note("delete", r)
	resp := &pb.DeleteRangeResponse{Header: cannedHeader, Deleted: 2}
	if r.PrevKv {
		resp.PrevKvs = []*mvccpb.KeyValue{cannedKV, cannedOther}
	}
	return resp, nil
}

func (c *canned) Txn(_ context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	c.note("txn", r)
	h := &pb.ResponseHeader{Revision: 42}
	return &pb.TxnResponse{Header: cannedHeader, Succeeded: true, Responses: []*pb.ResponseOp{
		{Response: &pb.ResponseOp_ResponseRange{ResponseRange: &pb.RangeResponse{Header: h, Kvs: []*mvccpb.KeyValue{cannedKV}, Count: 1}}},
		{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{Header: h, PrevKv: cannedOther}}},
		{Response: &pb.ResponseOp_ResponseDeleteRange{ResponseDeleteRange: &pb.DeleteRangeResponse{Header: h, Deleted: 1}}},
		{Response: &pb.ResponseOp_ResponseTxn{ResponseTxn: &pb.TxnResponse{Header: h, Responses: []*pb.ResponseOp{
			{Response: &pb.ResponseOp_ResponsePut{ResponsePut: &pb.PutResponse{Header: h}}}}}}},
	}}, nil
}

func (c *canned) Compact(_ context.Context, r *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	c.note("compact", r)
	return &pb.CompactionResponse{Header: cannedHeader}, nil
}

func (c *canned) LeaseGrant(_ context.Context, r *pb.LeaseGrantRequest) (*pb.LeaseGrantResponse, error) {
	c.note("lease grant", r)
	return &pb.LeaseGrantResponse{Header: cannedHeader, ID: 0x1234, TTL: r.TTL}, nil
}

func (c *canned) LeaseRevoke(_ context.Context, r *pb.LeaseRevokeRequest) (*pb.LeaseRevokeResponse, error) {
	c.note("lease revoke", r)
	if r.ID != 0x1234 {
		return nil, rpctypes.ErrGRPCLeaseNotFound
	}
	return &pb.LeaseRevokeResponse{Header: cannedHeader}, nil
}

func (c *canned) LeaseTimeToLive(_ context.Context, r *pb.LeaseTimeToLiveRequest) (*pb.LeaseTimeToLiveResponse, error) {
	c.note("lease timetolive", r)
	if r.ID != 0x1234 {
		return &pb.LeaseTimeToLiveResponse{Header: cannedHeader, ID: r.ID, TTL: -1}, nil
	}
	resp := &pb.LeaseTimeToLiveResponse{Header: cannedHeader, ID: r.ID, TTL: 59, GrantedTTL: 60}
	if r.Keys {
		resp.Keys = [][]byte{[]byte("k"), []byte("k2")}
	}
	return resp, nil
}

func (c *canned) LeaseLeases(_ context.Context, r *pb.LeaseLeasesRequest) (*pb.LeaseLeasesResponse, error) {
	c.note("lease list", r)
	return &pb.LeaseLeasesResponse{Header: cannedHeader, Leases: []*pb.LeaseStatus{{ID: 0x1234}, {ID: 0x5678}}}, nil
}

func (c *canned) LeaseKeepAlive(s pb.Lease_LeaseKeepAliveServer) error {
	r, err := s.Recv()
	if err != nil {
		return err
	}
	c.note("lease keep-alive", r)
	ttl := int64(60)
	if r.ID != 0x1234 {
		ttl = 0
	}
	if err := s.Send(&pb.LeaseKeepAliveResponse{Header: cannedHeader, ID: r.ID, TTL: ttl}); err != nil {
		return err
	}
	<-s.Context().Done()
	return nil
}

func (c *canned) Watch(s pb.Watch_WatchServer) error {
	r, err := s.Recv()
	if err != nil {
		return err
	}
	create := r.GetCreateRequest()
	c.note("watch", create)
	// Three responses, then the watch is cancelled, so that a client ends.
	for _, resp := range []*pb.WatchResponse{
		{Header: cannedHeader, WatchId: create.WatchId, Created: true},
		{Header: cannedHeader, WatchId: create.WatchId, Events: []*mvccpb.Event{
			{Type: mvccpb.Event_PUT, Kv: cannedKV, PrevKv: cannedOther},
			{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte("k2"), ModRevision: 42}}}},
		{Header: cannedHeader, WatchId: create.WatchId, Canceled: true, CompactRevision: 30, CancelReason: "etcdserver: mvcc: required revision has been compacted"},
	} {
		if err := s.Send(resp); err != nil {
			return err
		}
	}
	<-s.Context().Done()
	return nil
}

func (c *canned) Alarm(_ context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	c.note("alarm", r)
	return &pb.AlarmResponse{Header: cannedHeader, Alarms: []*pb.AlarmMember{{MemberID: 0xa1, Alarm: pb.AlarmType_NOSPACE}, {MemberID: 0xa2, Alarm: pb.AlarmType_CORRUPT}}}, nil
}

func (c *canned) Status(_ context.Context, r *pb.StatusRequest) (*pb.StatusResponse, error) {
	c.note("status", r)
	return &pb.StatusResponse{Header: cannedHeader, Version: "3.7.1", DbSize: 12_345_678, DbSizeInUse: 9_999_000, DbSizeQuota: 2 << 30, Leader: 0xa1, RaftIndex: 99,
		RaftTerm: 3, RaftAppliedIndex: 98, StorageVersion: "3.7.0", Errors: []string{"etcdserver: no leader"}, IsLearner: true,
		DowngradeInfo: &pb.DowngradeInfo{Enabled: true, TargetVersion: "3.6.0"}}, nil
}

func (c *canned) HashKV(_ context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	c.note("hashkv", r)
	return &pb.HashKVResponse{Header: cannedHeader, Hash: 4242, HashRevision: 41, CompactRevision: 30}, nil
}

func (c *canned) Defragment(_ context.Context, r *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	c.note("defragment", r)
	return &pb.DefragmentResponse{}, nil
}

func (c *canned) members() []*pb.Member {
	return []*pb.Member{
		{ID: 0xa1, Name: "infra1", PeerURLs: []string{"http://10.0.0.1:2380", "http://10.1.0.1:2380"}, ClientURLs: []string{"http://" + c.addr}},
		{ID: 0xa2, PeerURLs: []string{"http://10.0.0.2:2380"}, IsLearner: true},
		{ID: 0xa3, Name: "名前", PeerURLs: []string{"http://10.0.0.3:2380"}},
	}
}

func (c *canned) MemberList(_ context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	c.note("member list", r)
	return &pb.MemberListResponse{Header: cannedHeader, Members: c.members()}, nil
}

func (c *canned) MemberAdd(_ context.Context, r *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	c.note("member add", r)
	added := &pb.Member{ID: 0xfedcba9876543210, PeerURLs: r.PeerURLs, IsLearner: r.IsLearner}
	return &pb.MemberAddResponse{Header: cannedHeader, Member: added, Members: append(c.members(), added)}, nil
}

func (c *canned) MemberRemove(_ context.Context, r *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	c.note("member remove", r)
	if r.ID != 0xa3 {
		return nil, rpctypes.ErrGRPCMemberNotFound
	}
	return &pb.MemberRemoveResponse{Header: cannedHeader, Members: c.members()[:2]}, nil
}

func (c *canned) MemberUpdate(_ context.Context, r *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	c.note("member update", r)
	return &pb.MemberUpdateResponse{Header: cannedHeader, Members: c.members()}, nil
}

func (c *canned) MemberPromote(_ context.Context, r *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	c.note("member promote", r)
	return &pb.MemberPromoteResponse{Header: cannedHeader, Members: c.members()}, nil
}

func (c *canned) MoveLeader(_ context.Context, r *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	c.note("move leader", r)
	if r.TargetID != 0xa3 {
		return nil, rpctypes.ErrGRPCBadLeaderTransferee
	}
	return &pb.MoveLeaderResponse{Header: cannedHeader}, nil
}

// Snapshot sends a database of 1024 bytes and its checksum.
func (c *canned) Snapshot(r *pb.SnapshotRequest, s pb.Maintenance_SnapshotServer) error {
	c.note("snapshot", r)
	db := bytes.Repeat([]byte("snap"), 256)
	sum := sha256.Sum256(db)
	for _, blob := range [][]byte{db[:1000], db[1000:], sum[:]} {
		if err := s.Send(&pb.SnapshotResponse{Header: cannedHeader, Blob: blob, Version: "3.7.0"}); err != nil {
			return err
		}
	}
	return nil
}

func TestSnapshotSave(t *testing.T) {
	c := startCanned(t)
	path := filepath.Join(t.TempDir(), "snap.db")
	if got := c.run(t, "snapshot save "+path, ""); !strings.Contains(got, "stdout: Server version 3.7.0\n") || !strings.HasSuffix(got, "exit 0\n") {
		t.Error(got)
	}
	b, err := os.ReadFile(path)
	if err != nil || len(b) != 1024+sha256.Size {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	if _, err := os.Stat(path + ".part"); err == nil {
		t.Error("the temporary file is still there")
	}
}

func TestTrailerHash(t *testing.T) {
	db := bytes.Repeat([]byte{7}, 512*3)
	sum := sha256.Sum256(db)
	whole := append(bytes.Clone(db), sum[:]...)
	for _, chunk := range []int{1, 5, 31, 32, 33, 64, 512, 4096} {
		h := newTrailerHash()
		for rest := whole; len(rest) > 0; {
			n := min(chunk, len(rest))
			if _, err := h.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := h.check(int64(len(whole))); err != nil {
			t.Errorf("in parts of %d: %v", chunk, err)
		}
	}
	for name, bad := range map[string][]byte{"no checksum": db, "flipped": append([]byte{8}, whole[1:]...), "empty": nil, "short": whole[:100]} {
		h := newTrailerHash()
		if _, err := io.Copy(h, bytes.NewReader(bad)); err != nil {
			t.Fatal(err)
		}
		if h.check(int64(len(bad))) == nil {
			t.Errorf("%s is taken for a snapshot", name)
		}
	}
}
