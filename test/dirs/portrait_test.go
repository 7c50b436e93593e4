package dirs

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/test/harness"
)

// portrait is all that a client can see of a store, line by line, so that two are compared
// by their text and a difference reads well.
type portrait []string

// depict draws the portrait of what a server holds. Revisions are those to look back at: the
// ones that were readable when a first portrait was drawn.
func depict(t testing.TB, s *harness.Server) portrait {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c := connect(t, s)
	var p portrait
	add := func(format string, args ...any) { p = append(p, fmt.Sprintf(format, args...)) }
	must := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%v: %s: %v\n%s\n%s", s.Kind, what, err, s.LogTail(20), s.Stacks())
		}
	}

	all := &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}
	now, err := c.kv.Range(ctx, all)
	must("read everything", err)
	rev := now.Header.Revision
	add("cluster %x, member %x, revision %d", now.Header.ClusterId, now.Header.MemberId, rev)

	// Where compaction stands: the lowest revision that can be read.
	low, high := int64(1), rev
	for low < high {
		mid := low + (high-low)/2
		_, err := c.kv.Range(ctx, &pb.RangeRequest{Key: []byte("k"), Revision: mid})
		switch status.Code(err) {
		case codes.OK:
			high = mid
		case codes.OutOfRange:
			low = mid + 1
		default:
			must("read an old revision", err)
		}
	}
	add("readable from revision %d", low)

	step := max((rev-low)/8, 1)
	for at := low; at <= rev; at += step {
		describe(t, ctx, c, &p, at, low)
	}
	describe(t, ctx, c, &p, rev, low)

	leases, err := c.lease.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
	must("list leases", err)
	slices.SortFunc(leases.Leases, func(a, b *pb.LeaseStatus) int { return cmp.Compare(a.ID, b.ID) })
	for _, l := range leases.Leases {
		ttl, err := c.lease.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: l.ID, Keys: true})
		must("look at a lease", err)
		keys := make([]string, len(ttl.Keys))
		for i, k := range ttl.Keys {
			keys[i] = string(k)
		}
		slices.Sort(keys)
		add("lease %d granted %d keys %s", l.ID, ttl.GrantedTTL, strings.Join(keys, " "))
	}

	members, err := c.clus.MemberList(ctx, &pb.MemberListRequest{Linearizable: true})
	must("list members", err)
	for _, m := range members.Members {
		add("member %x %s peers %v clients %v learner %v", m.ID, m.Name, m.PeerURLs, m.ClientURLs, m.IsLearner)
	}
	alarms, err := c.maint.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_GET})
	must("list alarms", err)
	for _, a := range alarms.Alarms {
		add("alarm %v of member %x", a.Alarm, a.MemberID)
	}
	add("storage version %s", settledVersion(t, ctx, c))
	return p
}

// settledVersion is the storage version that a member alone comes to: its own, which it
// decides on and writes some time after its start (etcd looks every 5 s).
func settledVersion(t testing.TB, ctx context.Context, c clients) string {
	t.Helper()
	for {
		st, err := c.maint.Status(ctx, &pb.StatusRequest{})
		if err != nil {
			t.Fatalf("the storage version never followed the member's: %v", err)
		}
		own, has := strings.Split(st.Version, "."), strings.Split(st.StorageVersion, ".")
		if len(own) == 3 && len(has) == 3 && slices.Equal(own[:2], has[:2]) {
			return st.StorageVersion
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// describe adds what a server shows of one revision.
func describe(t testing.TB, ctx context.Context, c clients, p *portrait, rev, compacted int64) {
	t.Helper()
	resp, err := c.kv.Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: rev})
	if err != nil {
		t.Fatalf("read everything at revision %d: %v", rev, err)
	}
	sum := uint32(0)
	for _, kv := range resp.Kvs {
		data, err := proto.Marshal(kv)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range data {
			sum = sum*16777619 ^ uint32(b)
		}
	}
	line := fmt.Sprintf("at revision %d: %d keys, sum %08x", rev, len(resp.Kvs), sum)
	// At the compacted revision itself etcd may answer by the compaction before it, from
	// memory that a restart empties.
	if rev > compacted && len(resp.Kvs) > 0 {
		hash, err := c.maint.HashKV(ctx, &pb.HashKVRequest{Revision: rev})
		if err != nil {
			t.Fatalf("HashKV at revision %d: %v", rev, err)
		}
		line += fmt.Sprintf(", HashKV %d by compact revision %d", hash.Hash, max(hash.CompactRevision, 1))
	}
	*p = append(*p, line)
}

// diff returns the lines in which two portraits differ.
func (p portrait) diff(q portrait) string {
	var b strings.Builder
	for i := range max(len(p), len(q)) {
		var x, y string
		if i < len(p) {
			x = p[i]
		}
		if i < len(q) {
			y = q[i]
		}
		if x != y {
			fmt.Fprintf(&b, "  was %s\n  is  %s\n", x, y)
		}
	}
	return b.String()
}

func (p portrait) mustEqual(t testing.TB, q portrait, format string, args ...any) {
	t.Helper()
	if d := p.diff(q); d != "" {
		t.Fatalf("%s:\n%s", fmt.Sprintf(format, args...), d)
	}
}
