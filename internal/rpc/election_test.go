package rpc

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"quorate/internal/kv"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/dynamicpb"
)

func (c lineClient) campaign(ctx context.Context, name string, lease int64, value string) (message, error) {
	return c.call(ctx, "Campaign", newMessage(electionpb, "CampaignRequest").setBytes("name", []byte(name)).setInt("lease", lease).setBytes("value", []byte(value)))
}

func leaderKey(name, key string, rev, lease int64) message {
	return newMessage(electionpb, "LeaderKey").setBytes("name", []byte(name)).setBytes("key", []byte(key)).setInt("rev", rev).setInt("lease", lease)
}

func (c lineClient) proclaim(ctx context.Context, leader message, value string) (message, error) {
	return c.call(ctx, "Proclaim", newMessage(electionpb, "ProclaimRequest").setMessage("leader", leader).setBytes("value", []byte(value)))
}

func (c lineClient) resign(ctx context.Context, leader message) (message, error) {
	return c.call(ctx, "Resign", newMessage(electionpb, "ResignRequest").setMessage("leader", leader))
}

func (c lineClient) leader(ctx context.Context, name string) (message, error) {
	return c.call(ctx, "Leader", newMessage(electionpb, "LeaderRequest").setBytes("name", []byte(name)))
}

// observe calls fn with each leader until ctx ends or fn returns false.
func (c lineClient) observe(ctx context.Context, name string, fn func(rev int64, leader *mvccpb.KeyValue) bool) error {
	stream, err := c.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/v3electionpb.Election/Observe")
	if err != nil {
		return err
	}
	if err := stream.SendMsg(newMessage(electionpb, "LeaderRequest").setBytes("name", []byte(name))); err != nil {
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		out := message{dynamicpb.NewMessage(electionpb.ByName("LeaderResponse"))}
		if err := stream.RecvMsg(out); err != nil {
			return err
		}
		if !fn(out.header().Revision, out.kv()) {
			return nil
		}
	}
}

func (m message) kv() *mvccpb.KeyValue {
	b, err := proto.Marshal(m.Get(m.field("kv")).Message().Interface())
	if err != nil {
		panic(err)
	}
	return decodeKeyValue(b)
}

func TestElection(t *testing.T) {
	m, conn := serveMember(t)
	c, ctx := lineClient{conn}, t.Context()
	grant(t, conn, 1, 2)
	wantStatus(t, "leader of nothing", second(c.leader(ctx, "e")), codes.Unknown, "election: no leader")
	r, err := c.campaign(ctx, "e", 1, "one")
	if err != nil {
		t.Fatal(err)
	}
	leader, ok := r.leader()
	if want := leaderKey("e", "e/1", 2, 1); !ok || !proto.Equal(leader, want) || r.header().Revision != 2 {
		t.Errorf("elected: %v, want %v", r, want)
	}
	if again, err := c.campaign(ctx, "e", 1, "one"); err != nil || !proto.Equal(again, r) {
		t.Errorf("campaign again: %v, %v", again, err)
	}
	// With another value it is proclaimed; the header is of before that.
	if again, err := c.campaign(ctx, "e", 1, "uno"); err != nil || !proto.Equal(again, r) {
		t.Errorf("campaign with another value: %v, %v", again, err)
	}
	now, err := c.leader(ctx, "e")
	want := &mvccpb.KeyValue{Key: []byte("e/1"), CreateRevision: 2, ModRevision: 3, Version: 2, Value: []byte("uno"), Lease: 1}
	if err != nil || now.header().Revision != 3 || !proto.Equal(now.kv(), want) {
		t.Errorf("leader: %v, %v, want %v", now, err, want)
	}
	if r, err := c.proclaim(ctx, leader, "eins"); err != nil || r.header().Revision != 4 {
		t.Errorf("proclaim: %v, %v", r, err)
	}

	waits := make(chan error, 1)
	go func() { waits <- second(c.campaign(ctx, "e", 2, "two")) }()
	m.awaitKeys(t, "e/1", "e/2")
	if _, err := c.proclaim(ctx, leaderKey("e", "e/2", 5, 2), "zwei"); err != nil {
		t.Errorf("etcd lets who waits proclaim as well: %v", err)
	}
	stillWaits(t, "the second", waits)
	if r, err := c.resign(ctx, leader); err != nil || r.header().Revision != 7 {
		t.Errorf("resign: %v, %v", r, err)
	}
	if err := ended(t, "the second", waits); err != nil {
		t.Error(err)
	}
	if r, err := c.resign(ctx, leader); err != nil || r.header().Revision != 7 {
		t.Errorf("resign again: %v, %v", r, err)
	}
	wantStatus(t, "proclaim of the resigned", second(c.proclaim(ctx, leader, "x")), codes.Unknown, "election: not leader")
	for name, in := range map[string]message{"Proclaim": newMessage(electionpb, "ProclaimRequest"), "Resign": newMessage(electionpb, "ResignRequest")} {
		wantStatus(t, name+" without a leader", second(c.call(ctx, name, in)), codes.Unknown, `"leader" field must be provided`)
	}
	nobody := newMessage(electionpb, "LeaderKey")
	wantStatus(t, "proclaim without a key", second(c.proclaim(ctx, nobody, "x")), codes.Unknown, "etcdserver: key is not provided")
	wantStatus(t, "resign without a key", second(c.resign(ctx, nobody)), codes.Unknown, "etcdserver: key is not provided")

	// Leaving and losing the lease, as with locks.
	grant(t, conn, 3, 4)
	impatient, cancel := context.WithCancel(ctx)
	go func() { waits <- second(c.campaign(impatient, "e", 3, "three")) }()
	m.awaitKeys(t, "e/2", "e/3")
	cancel()
	if err := ended(t, "the third", waits); status.Code(err) != codes.Canceled {
		t.Error(err)
	}
	m.awaitKeys(t, "e/2")
	go func() { waits <- second(c.campaign(ctx, "e", 4, "four")) }()
	m.awaitKeys(t, "e/2", "e/4")
	revoke(t, conn, 4)
	wantStatus(t, "the fourth", ended(t, "the fourth", waits), codes.Unknown, "election: not leader")
}

// TestObserve holds what an observer sees, at every revision, against what the store
// remembers of a random election.
func TestObserve(t *testing.T) {
	for seed := range uint64(20) {
		observeRandomly(t, seed)
	}
}

func observeRandomly(t *testing.T, seed uint64) {
	m, conn := serveMember(t)
	c, ctx := lineClient{conn}, t.Context()
	rng := rand.New(rand.NewPCG(8, seed))
	const last = "e/f" // who campaigns at the end
	type seen struct {
		rev    int64
		leader *mvccpb.KeyValue
	}
	var observed [2][]seen
	ends := make(chan error)
	observe := func(i int) {
		go func() {
			ends <- c.observe(ctx, "e", func(rev int64, leader *mvccpb.KeyValue) bool {
				observed[i] = append(observed[i], seen{rev, leader})
				return string(leader.Key) != last
			})
		}()
		for m.hub.Stats().Watchers != i+1 { // it waits, and has seen what there was
			time.Sleep(time.Millisecond)
		}
	}
	observe(0)
	grant(t, conn, 1, 2, 3, 4, 5, 15)
	store := pb.NewKVClient(conn)
	do := func(_ any, err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	second := rng.IntN(60)
	for n := range 60 {
		if n == second {
			observe(1)
		}
		key := fmt.Appendf(nil, "e/%x", 1+rng.IntN(5))
		switch rng.IntN(5) {
		case 0, 1:
			do(store.Put(ctx, &pb.PutRequest{Key: key, Value: fmt.Append(nil, n)}))
		case 2:
			do(store.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: key}))
		case 3:
			do(store.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("e/"), RangeEnd: key}))
		case 4: // several at one revision
			do(store.Txn(ctx, &pb.TxnRequest{Success: []*pb.RequestOp{
				deleteOp([]byte("e/1")), putOp([]byte("e/5"), key, kv.NoLease), putOp([]byte("e/2"), key, kv.NoLease), putOp([]byte("other"), nil, kv.NoLease),
			}}))
		}
	}
	do(store.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: []byte("e/"), RangeEnd: []byte("e0")}))
	do(c.campaign(ctx, "e", 15, "end"))
	for range observed {
		if err := <-ends; err != nil {
			t.Fatal(err)
		}
	}
	v := m.store.View()
	defer v.Release()
	for i, got := range observed {
		var want []seen
		from := int64(1)
		if i == 1 {
			from = got[0].rev
		}
		var before *mvccpb.KeyValue
		for rev := from; rev <= v.Rev(); rev++ {
			leader, err := firstInLine(v, lineOf([]byte("e")), rev)
			if err != nil {
				t.Fatal(err)
			}
			if leader != nil && !proto.Equal(leader, before) {
				want = append(want, seen{rev, leader})
			}
			before = leader
		}
		same := func(a, b seen) bool { return a.rev == b.rev && proto.Equal(a.leader, b.leader) }
		if !slices.EqualFunc(got, want, same) {
			t.Fatalf("seed %d, observer %d:\n got %v\nwant %v", seed, i, got, want)
		}
	}
}

// TestObserveSlowly: a client that does not read costs no memory, and gets the newest once
// what it has not read is compacted.
func TestObserveSlowly(t *testing.T) {
	m := newMember(t)
	_, addr := start(t, m, nil, nil)
	writer, reader := dial(t, addr), dial(t, addr, grpc.WithInitialWindowSize(64<<10), grpc.WithInitialConnWindowSize(64<<10))
	grant(t, writer, 1)
	c := lineClient{writer}
	r, err := c.campaign(t.Context(), "e", 1, "first")
	if err != nil {
		t.Fatal(err)
	}
	leader, _ := r.leader()
	go1, got := make(chan struct{}), make(chan string, 1000)
	done := make(chan error, 1)
	go func() {
		done <- lineClient{reader}.observe(t.Context(), "e", func(_ int64, leader *mvccpb.KeyValue) bool {
			<-go1
			value, _, _ := strings.Cut(string(leader.Value), " ")
			got <- value
			return value != "last"
		})
	}()
	for m.hub.Stats().Watchers != 1 {
		time.Sleep(time.Millisecond)
	}
	for i := range 300 {
		if _, err := c.proclaim(t.Context(), leader, fmt.Sprint(i, " ", strings.Repeat("v", 64<<10))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := pb.NewKVClient(writer).Compact(t.Context(), &pb.CompactionRequest{Revision: m.store.Rev()}); err != nil {
		t.Fatal(err)
	}
	close(go1)
	for want := ""; want != "299"; want = <-got { // it goes on until the newest
	}
	if _, err := c.proclaim(t.Context(), leader, "last"); err != nil {
		t.Fatal(err)
	}
	if err := ended(t, "the observer", done); err != nil {
		t.Error(err)
	}
}

// TestObserveEnds with its client, and with the member.
func TestObserveEnds(t *testing.T) {
	m := newMember(t)
	s, addr := start(t, m, nil, nil)
	c := lineClient{dial(t, addr)}
	ctx, cancel := context.WithCancel(t.Context())
	gone, stopped := make(chan error, 1), make(chan error, 1)
	never := func(int64, *mvccpb.KeyValue) bool { t.Error("somebody leads"); return false }
	go func() { gone <- c.observe(ctx, "e", never) }()
	go func() { stopped <- c.observe(t.Context(), "e", never) }()
	awaitStreams := func(n int) {
		for deadline := time.Now().Add(10 * time.Second); m.hub.Stats().Streams != n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%+v, want %d streams", m.hub.Stats(), n)
			}
		}
	}
	awaitStreams(2)
	cancel()
	if err := <-gone; status.Code(err) != codes.Canceled {
		t.Error(err)
	}
	awaitStreams(1)
	down, stop := context.WithTimeout(t.Context(), 5*time.Second)
	defer stop()
	s.Shutdown(down)
	wantStatus(t, "observer of a member that stops", <-stopped, codes.Unavailable, "etcdserver: server stopped")
	awaitStreams(0)
}

// TestLineGateway calls the JSON form.
func TestLineGateway(t *testing.T) {
	m := newMember(t)
	s, _ := start(t, m, nil, nil)
	_, addr := start(t, m, nil, func(l *Listener) { l.HTTP = s.Gateway() })
	conn := dial(t, addr)
	grant(t, conn, 1, 2)
	post := func(ctx context.Context, path, body string) (*http.Response, *bufio.Scanner) {
		t.Helper()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Body.Close() })
		return r, bufio.NewScanner(r.Body)
	}
	const head = `"header":{"cluster_id":"9223372036854775808","member_id":"77","raft_term":"4","revision":"`
	for _, tc := range []struct {
		path, body string
		code       int
		want       string
	}{
		{"/v3/lock/lock", `{"name":"bA==","lease":"1"}`, 200, `{` + head + `2"},"key":"bC8x"}`},
		{"/v3beta/lock/unlock", `{"key":"bC8x"}`, 200, `{` + head + `3"}}`},
		{"/v3/lock/lock", `{"name":"bA==","lease":"9"}`, 500, `{"code":2,"message":"etcdserver: requested lease not found"}`},
		{"/v3/lock/lock", `[`, 400, ``},
		{"/v3/election/campaign", `{"name":"ZQ==","lease":1,"value":"dg=="}`, 200, `{` + head + `4"},"leader":{"name":"ZQ==","key":"ZS8x","rev":"4","lease":"1"}}`},
		{"/v3/election/leader", `{"name":"ZQ=="}`, 200, `{` + head + `4"},"kv":{"key":"ZS8x","create_revision":"4","mod_revision":"4","version":"1","value":"dg==","lease":"1"}}`},
		{"/v3/election/proclaim", `{"leader":{"name":"ZQ==","key":"ZS8x","rev":"4","lease":"1"},"value":"dw=="}`, 200, `{` + head + `5"}}`},
		{"/v3/election/proclaim", `{}`, 500, `{"code":2,"message":"\"leader\" field must be provided"}`},
		{"/v3/election/leader", ``, 500, `{"code":2,"message":"election: no leader"}`},
	} {
		r, lines := post(t.Context(), tc.path, tc.body)
		lines.Scan()
		if r.StatusCode != tc.code || tc.want != "" && !sameJSON(lines.Text(), tc.want) {
			t.Errorf("%s %s:\n got %d %s\nwant %d %s", tc.path, tc.body, r.StatusCode, lines.Text(), tc.code, tc.want)
		}
	}
	_, lines := post(t.Context(), "/v3/election/observe", `{"name":"ZQ=="}`)
	if !lines.Scan() || !sameJSON(lines.Text(), `{"result":{`+head+`5"},"kv":{"key":"ZS8x","create_revision":"4","mod_revision":"5","version":"2","value":"dw==","lease":"1"}}}`) {
		t.Errorf("observe: %s", lines.Text())
	}
	// A client that goes leaves the line.
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+addr+"/v3/election/campaign", strings.NewReader(`{"name":"ZQ==","lease":"2"}`))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for !slices.Contains(m.keys(t), "e/2") && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	if r, err := http.DefaultClient.Do(req); err == nil {
		t.Errorf("campaign: %v", r.Status)
		_ = r.Body.Close()
	}
	m.awaitKeys(t, "e/1")
	if r, _ := post(t.Context(), "/v3/election/resign", `{"leader":{"key":"ZS8x","rev":"4"}}`); r.StatusCode != 200 {
		t.Errorf("resign: %s", r.Status)
	}
	m.awaitKeys(t)
	r, err := http.Get("http://" + addr + "/v3/lock/lock")
	if err != nil || r.StatusCode != http.StatusNotImplemented {
		t.Errorf("GET: %v, %v", r.Status, err)
	}
	_ = r.Body.Close()
}
