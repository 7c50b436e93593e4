// Package peerwire lets quorate's transport and etcd's own talk to each other in one
// process, and compares what they write byte by byte.
package peerwire

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"testing"
	"time"

	"quorate/internal/kv"
	"quorate/internal/membership"
	"quorate/internal/peer"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	stats "go.etcd.io/etcd/server/v3/etcdserver/api/v2stats"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

const (
	cluster = 0xc1a5
	quorate = 1 // the id of our member
	etcd    = 2 // and of etcd's
	third   = 3 // a member that the test plays itself
)

// sink is what a transport delivers to, for both kinds.
type sink struct {
	messages  chan *raftpb.Message
	snapshots chan snapshot
	sent      chan error
	events    chan string

	mu      sync.Mutex
	removed map[uint64]bool
}

type snapshot struct {
	m    *raftpb.Message
	sum  [sha256.Size]byte
	size int64
}

func newSink() *sink {
	return &sink{
		messages: make(chan *raftpb.Message, 1<<16), snapshots: make(chan snapshot, 4), sent: make(chan error, 4),
		events: make(chan string, 1<<10), removed: make(map[uint64]bool),
	}
}

func (s *sink) isRemoved(id uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.removed[id]
}

func (s *sink) remove(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.removed[id] = true
}

func (s *sink) event(e string) {
	select {
	case s.events <- e:
	default:
	}
}

func (s *sink) expect(t testing.TB, event string) {
	t.Helper()
	for {
		select {
		case e := <-s.events:
			if e == event {
				return
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("no event %q", event)
		}
	}
}

func (s *sink) next(t testing.TB) *raftpb.Message {
	t.Helper()
	select {
	case m := <-s.messages:
		return m
	case <-time.After(20 * time.Second):
		t.Fatal("no message")
		return nil
	}
}

// ours is the sink as quorate's transport sees it.
type ours struct{ *sink }

func (o ours) Receive(m *raftpb.Message) { o.messages <- m }

func (o ours) ReceiveSnapshot(m *raftpb.Message, db io.Reader, _ int64) error {
	h := sha256.New()
	n, err := io.Copy(h, db)
	if err != nil {
		return err
	}
	o.snapshots <- snapshot{m, [sha256.Size]byte(h.Sum(nil)), n}
	return nil
}

func (o ours) Connected(id membership.ID) { o.event("connected " + id.String()) }
func (o ours) Lost(id membership.ID)      { o.event("lost " + id.String()) }
func (o ours) Gone(id membership.ID)      { o.event("gone " + id.String()) }
func (o ours) Removed()                   { o.event("removed") }

func (o ours) SnapshotSent(_ membership.ID, err error) { o.sent <- err }
func (o ours) IsRemoved(id membership.ID) bool         { return o.isRemoved(uint64(id)) }
func (o ours) Members() []membership.Member            { return nil }
func (o ours) Versions() (cluster, storage string)     { return "", "" }

func (o ours) Promote(context.Context, membership.ID, string) ([]membership.Member, error) {
	return nil, kv.ErrNotLeader
}
func (o ours) RenewLease(context.Context, kv.LeaseID) (int64, error) { return 0, kv.ErrNotLeader }
func (o ours) LeaseTimeToLive(context.Context, kv.LeaseID, bool) (*pb.LeaseTimeToLiveResponse, error) {
	return nil, kv.ErrNotLeader
}
func (o ours) HashKV(context.Context, int64) (*pb.HashKVResponse, error) { return nil, kv.ErrCompacted }
func (o ours) DowngradeEnabled(context.Context) (bool, error)            { return false, nil }

// theirs is the sink as etcd's transport sees it.
type theirs struct {
	*sink
	snapshotter *snap.Snapshotter
}

func (o theirs) Process(_ context.Context, m *raftpb.Message) error {
	if o.isRemoved(m.GetFrom()) {
		return forbidden("cannot process message from removed member")
	}
	if m.GetType() != raftpb.MsgSnap {
		o.messages <- m
		return nil
	}
	name, err := o.snapshotter.DBFilePath(m.Snapshot.Metadata.GetIndex())
	if err != nil {
		return err
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	o.snapshots <- snapshot{m, sha256.Sum256(data), int64(len(data))}
	return nil
}

// forbidden is how etcd's server refuses a message: 403 with a JSON body.
type forbidden string

func (f forbidden) Error() string { return string(f) }
func (f forbidden) WriteTo(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusForbidden)
	fmt.Fprintf(w, `{"message":%q}`, string(f))
}

func (o theirs) IsIDRemoved(id uint64) bool  { return o.isRemoved(id) }
func (o theirs) ReportUnreachable(id uint64) { o.event("unreachable") }
func (o theirs) ReportSnapshot(_ uint64, status raft.SnapshotStatus) {
	if status == raft.SnapshotFinish {
		o.sent <- nil
	} else {
		o.sent <- errors.New("failed")
	}
}

// pair is one member of each kind.
type pair struct {
	ours      *sink
	theirs    *sink
	quorate   *peer.Transport
	etcd      *rafthttp.Transport
	ourURL    string
	theirURL  string
	errors    chan error
	ourHTTP   *http.Server
	theirHTTP *http.Server
}

func newPair(t testing.TB) *pair {
	t.Helper()
	p := &pair{ours: newSink(), theirs: newSink(), errors: make(chan error, 1)}
	serve := func() (net.Listener, string) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l, "http://" + l.Addr().String()
	}
	ourPort, ourURL := serve()
	theirPort, theirURL := serve()
	p.ourURL, p.theirURL = ourURL, theirURL

	p.quorate = peer.New(peer.Options{ServerVersion: "3.7.1", PeerURLs: []string{ourURL}})
	p.quorate.Open(quorate, cluster, ours{p.ours})
	p.ourHTTP = &http.Server{Handler: p.quorate.Handler()}
	go p.ourHTTP.Serve(ourPort)

	snapshotter := snap.New(zap.NewNop(), t.TempDir())
	u, err := url.Parse(theirURL)
	if err != nil {
		t.Fatal(err)
	}
	p.etcd = &rafthttp.Transport{
		ID: etcd, ClusterID: cluster, URLs: types.URLs{*u}, Raft: theirs{p.theirs, snapshotter}, Snapshotter: snapshotter,
		ServerStats: stats.NewServerStats("etcd", "2"), LeaderStats: stats.NewLeaderStats(zap.NewNop(), "2"),
		Logger: zap.NewNop(), ErrorC: p.errors, DialTimeout: time.Second,
	}
	if err := p.etcd.Start(); err != nil {
		t.Fatal(err)
	}
	p.theirHTTP = &http.Server{Handler: p.etcd.Handler()}
	go p.theirHTTP.Serve(theirPort)
	t.Cleanup(func() {
		p.etcd.Stop()
		p.quorate.Close()
		p.ourHTTP.Close()
		p.theirHTTP.Close()
	})
	return p
}

// connect makes the two know each other and waits for all four streams.
func (p *pair) connect(t testing.TB) {
	t.Helper()
	p.quorate.Add(etcd, []string{p.theirURL})
	p.etcd.AddPeer(quorate, []string{p.ourURL})
	p.ours.expect(t, "connected 2")
	// etcd does not tell which streams stand; its own test waits as long.
	time.Sleep(300 * time.Millisecond)
	if p.quorate.ActiveSince(etcd).IsZero() || p.etcd.ActiveSince(quorate).IsZero() {
		t.Fatal("not active")
	}
	if p.quorate.IsQuorate(etcd) {
		t.Error("etcd is taken for a quorate")
	}
}

// wireMessage is a random message of a type that members send each other.
func wireMessage(rnd *rand.Rand, typ raftpb.MessageType, from, to, index uint64) *raftpb.Message {
	m := &raftpb.Message{Type: typ.Enum(), From: new(from), To: new(to), Index: new(index)}
	if rnd.IntN(2) == 0 {
		m.Term = new(rnd.Uint64N(300))
	}
	if rnd.IntN(2) == 0 {
		m.Commit = new(rnd.Uint64())
	}
	if rnd.IntN(2) == 0 {
		m.LogTerm = new(rnd.Uint64N(3))
	}
	if rnd.IntN(3) == 0 {
		m.Reject, m.RejectHint = new(rnd.IntN(2) == 0), new(rnd.Uint64N(300))
	}
	if rnd.IntN(3) == 0 {
		m.Context = []byte("context")
	}
	if rnd.IntN(3) == 0 {
		m.Vote = new(rnd.Uint64N(4))
	}
	if typ == raftpb.MsgProp || typ == raftpb.MsgReadIndex || typ == raftpb.MsgReadIndexResp {
		for range 1 + rnd.IntN(4) {
			m.Entries = append(m.Entries, &raftpb.Entry{Data: bytes.Repeat([]byte{7}, rnd.IntN(3000))})
		}
	}
	return m
}

// appends makes a sequence of appends as a leader of the given term sends them, most of
// them following on each other.
func appends(rnd *rand.Rand, from, to uint64, count int) []*raftpb.Message {
	var ms []*raftpb.Message
	term, index := uint64(2), uint64(10)
	for range count {
		switch rnd.IntN(10) {
		case 0:
			term++
		case 1:
			index -= rnd.Uint64N(index / 2)
		}
		m := &raftpb.Message{
			Type: raftpb.MsgApp.Enum(), From: new(from), To: new(to), Term: new(term), LogTerm: new(term - rnd.Uint64N(10)/9),
			Index: new(index), Commit: new(index),
		}
		for range rnd.IntN(5) {
			index++
			e := &raftpb.Entry{Term: new(term), Index: new(index), Data: make([]byte, rnd.IntN(9000))}
			if rnd.IntN(2) == 0 {
				e.Type = raftpb.EntryConfChange.Enum()
			}
			m.Entries = append(m.Entries, e)
		}
		ms = append(ms, m)
	}
	return ms
}

// wireTypes are all that Raft sends to other members, but appends and snapshots.
var wireTypes = []raftpb.MessageType{
	raftpb.MsgAppResp, raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp, raftpb.MsgProp,
	raftpb.MsgReadIndex, raftpb.MsgReadIndexResp, raftpb.MsgVote, raftpb.MsgVoteResp,
	raftpb.MsgPreVote, raftpb.MsgPreVoteResp, raftpb.MsgTimeoutNow, raftpb.MsgTransferLeader,
}

// Every type of message arrives as it was sent, from each kind of member at the other.
func TestMessages(t *testing.T) {
	for _, streams := range []bool{true, false} {
		t.Run(map[bool]string{true: "streams", false: "pipeline"}[streams], func(t *testing.T) {
			p := newPair(t)
			if streams {
				p.connect(t)
			} else {
				// Strangers to each other: a message is posted where no stream stands.
				p.etcd.AddRemote(quorate, []string{p.ourURL})
				ask := request(t, http.MethodGet, p.ourURL+"/raft/stream/message/2", etcd, quorate)
				ask.Header.Set("X-PeerURLs", p.theirURL)
				resp, err := http.DefaultClient.Do(ask)
				if err != nil {
					t.Fatal(err)
				}
				if resp.Body.Close(); resp.StatusCode != http.StatusNotFound {
					t.Fatal(resp.Status)
				}
			}
			for _, way := range []struct {
				name     string
				from, to uint64
				send     func([]*raftpb.Message)
				at       *sink
			}{
				{"to etcd", quorate, etcd, p.quorate.Send, p.theirs},
				{"to quorate", etcd, quorate, p.etcd.Send, p.ours},
			} {
				rnd := rand.New(rand.NewPCG(1, way.from))
				ms := appends(rnd, way.from, way.to, 500)
				for i := range 500 {
					ms = append(ms, wireMessage(rnd, wireTypes[i%len(wireTypes)], way.from, way.to, uint64(i)))
				}
				if !streams {
					ms = ms[400:600]
				}
				for _, m := range ms {
					way.send([]*raftpb.Message{m})
					if got := way.at.next(t); !proto.Equal(got, m) {
						t.Fatalf("%s:\n got  %v\n want %v", way.name, got, m)
					}
				}
			}
		})
	}
}

func request(t *testing.T, method, target string, from, to uint64) *http.Request {
	t.Helper()
	req, err := http.NewRequest(method, target, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"X-Server-From": types.ID(from).String(), "X-Server-Version": "3.7.1", "X-Min-Cluster-Version": "3.0.0",
		"X-Etcd-Cluster-ID": types.ID(cluster).String(), "X-Raft-To": types.ID(to).String(),
		"X-PeerURLs": "http://127.0.0.1:1",
	} {
		req.Header.Set(name, value)
	}
	return req
}

// What both write to the third member is the same, byte by byte.
func TestSameBytes(t *testing.T) {
	for _, stream := range []string{"msgapp", "message"} {
		t.Run(stream, func(t *testing.T) {
			p := newPair(t)
			unused := "http://127.0.0.1:1"
			p.quorate.Add(third, []string{unused})
			p.etcd.AddPeer(third, []string{unused})
			rnd := rand.New(rand.NewPCG(3, 4))
			ms := appends(rnd, 9, third, 300)
			if stream == "message" {
				for i := range 300 {
					ms[i] = wireMessage(rnd, wireTypes[i%len(wireTypes)], 9, third, uint64(i))
				}
			}
			var written [2][]byte
			for i, side := range []struct {
				url  string
				id   uint64
				send func([]*raftpb.Message)
			}{{p.ourURL, quorate, p.quorate.Send}, {p.theirURL, etcd, p.etcd.Send}} {
				resp, err := http.DefaultClient.Do(request(t, http.MethodGet, side.url+"/raft/stream/"+stream+"/3", third, side.id))
				if err != nil || resp.StatusCode != http.StatusOK {
					t.Fatal(resp, err)
				}
				time.Sleep(100 * time.Millisecond) // until the stream is taken by etcd's writer
				for _, m := range ms {
					side.send([]*raftpb.Message{m})
					if i == 0 && stream == "message" {
						time.Sleep(time.Millisecond / 2) // else ours lets those without entries overtake
					}
				}
				written[i] = untilQuiet(stream, resp.Body)
				resp.Body.Close()
			}
			if !bytes.Equal(written[0], written[1]) {
				at := 0
				for at < min(len(written[0]), len(written[1])) && written[0][at] == written[1][at] {
					at++
				}
				t.Fatalf("%d bytes and %d bytes, different from %d on", len(written[0]), len(written[1]), at)
			}
			if len(written[0]) < 10000 {
				t.Fatalf("only %d bytes", len(written[0]))
			}
		})
	}
}

// untilQuiet is what a stream brings before it brings nothing for half a second, but for
// the heartbeats of the link, which come by the clock.
func untilQuiet(stream string, body io.Reader) (written []byte) {
	messages := make(chan []byte)
	over := make(chan struct{})
	defer close(over)
	go func() {
		defer close(messages)
		r := bufio.NewReader(body)
		for {
			m, heartbeat, err := readMessage(stream, r)
			if err != nil {
				return // the body was closed, or the stream ended too early, which the bytes show
			}
			if heartbeat {
				continue
			}
			select {
			case messages <- m:
			case <-over:
				return
			}
		}
	}()
	for {
		select {
		case m, ok := <-messages:
			if !ok {
				return written
			}
			written = append(written, m...)
		case <-time.After(500 * time.Millisecond):
			return written
		}
	}
}

// readMessage reads one message of a stream as it was written, and says whether it is a
// heartbeat of the link.
func readMessage(stream string, r *bufio.Reader) (m []byte, heartbeat bool, err error) {
	take := func(n int) {
		if err != nil {
			return
		}
		at := len(m)
		m = append(m, make([]byte, n)...)
		_, err = io.ReadFull(r, m[at:])
	}
	// counted takes a count or a length.
	counted := func() int {
		if take(8); err != nil {
			return 0
		}
		return int(binary.BigEndian.Uint64(m[len(m)-8:]))
	}
	if stream == "message" {
		take(counted())
		return m, len(m) == 10 && m[8] == 8 && m[9] == 8, err
	}
	if take(1); err != nil {
		return m, false, err
	}
	switch m[0] {
	case 1: // entries, and the commit index
		for range counted() {
			take(counted())
		}
		take(8)
	case 2:
		take(counted())
	case 0:
		heartbeat = true
	default:
		err = fmt.Errorf("a message of type %d", m[0])
	}
	return m, heartbeat, err
}

// A snapshot with its file goes both ways.
func TestSnapshots(t *testing.T) {
	p := newPair(t)
	p.connect(t)
	file := make([]byte, 20<<20+123)
	rand.NewChaCha8([32]byte{1}).Read(file)
	sum := sha256.Sum256(file)
	message := func(from, to uint64) *raftpb.Message {
		return &raftpb.Message{Type: raftpb.MsgSnap.Enum(), From: new(from), To: new(to), Term: new(uint64(4)), Snapshot: &raftpb.Snapshot{
			Data:     []byte(`{"members":[]}`),
			Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(1000)), Term: new(uint64(3)), ConfState: &raftpb.ConfState{Voters: []uint64{quorate, etcd}}},
		}}
	}
	check := func(way string, sent, got *sink, want *raftpb.Message) {
		t.Helper()
		select {
		case s := <-got.snapshots:
			if !proto.Equal(s.m, want) || s.sum != sum || s.size != int64(len(file)) {
				t.Errorf("%s: %v and %d bytes", way, s.m, s.size)
			}
		case <-time.After(30 * time.Second):
			t.Fatal(way + ": no snapshot")
		}
		select {
		case err := <-sent.sent:
			if err != nil {
				t.Errorf("%s: %v", way, err)
			}
		case <-time.After(30 * time.Second):
			t.Fatal(way + ": no word about it")
		}
	}
	m := message(quorate, etcd)
	p.quorate.SendSnapshot(m, io.NopCloser(bytes.NewReader(file)), int64(len(file)))
	check("to etcd", p.ours, p.theirs, m)

	m = message(etcd, quorate)
	p.etcd.SendSnapshot(snap.NewMessage(m, io.NopCloser(bytes.NewReader(file)), int64(len(file))))
	check("to quorate", p.theirs, p.ours, m)
}

// A removed member hears of it, and is not listened to.
func TestRemoved(t *testing.T) {
	t.Run("quorate", func(t *testing.T) {
		p := newPair(t)
		p.theirs.remove(quorate)
		p.quorate.Add(etcd, []string{p.theirURL})
		p.ours.expect(t, "removed")
	})
	t.Run("quorate by message", func(t *testing.T) {
		p := newPair(t)
		p.connect(t)
		p.theirs.remove(quorate)
		p.etcd.RemovePeer(quorate)
		p.ours.expect(t, "removed")
	})
	t.Run("etcd", func(t *testing.T) {
		p := newPair(t)
		p.ours.remove(etcd)
		p.etcd.AddPeer(quorate, []string{p.ourURL})
		select {
		case err := <-p.errors:
			if err.Error() != "the member has been permanently removed from the cluster" {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("etcd does not know that it was removed")
		}
	})
	t.Run("etcd by message", func(t *testing.T) {
		p := newPair(t)
		p.ours.remove(etcd)
		p.etcd.AddRemote(quorate, []string{p.ourURL})
		p.etcd.Send([]*raftpb.Message{{Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(etcd)), To: new(uint64(quorate)), Term: new(uint64(1))}})
		select {
		case err := <-p.errors:
			if err.Error() != "the member has been permanently removed from the cluster" {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("etcd does not know that it was removed")
		}
	})
}

// Both answer the same to requests that they refuse.
func TestSameRefusals(t *testing.T) {
	p := newPair(t)
	p.ours.remove(7)
	p.theirs.remove(7)
	var want, got []string
	for _, side := range []struct {
		url  string
		self uint64
		into *[]string
	}{{p.theirURL, etcd, &want}, {p.ourURL, quorate, &got}} {
		snapshotBody := func(m *raftpb.Message) []byte {
			b, err := proto.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			return append([]byte{0, 0, 0, 0, 0, 0, 0, byte(len(b))}, b...)
		}
		heartbeat, err := proto.Marshal(&raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(9)), To: new(side.self)})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name, method, path string
			header             [2]string
			body               []byte
		}{
			{"method of the pipeline", "GET", "/raft", [2]string{}, nil},
			{"method of a stream", "POST", "/raft/stream/message/9", [2]string{}, nil},
			{"method of a snapshot", "GET", "/raft/snapshot", [2]string{}, nil},
			{"another cluster's message", "POST", "/raft", [2]string{"X-Etcd-Cluster-ID", "77"}, heartbeat},
			{"another cluster's stream", "GET", "/raft/stream/message/9", [2]string{"X-Etcd-Cluster-ID", "77"}, nil},
			{"another cluster's snapshot", "POST", "/raft/snapshot", [2]string{"X-Etcd-Cluster-ID", "77"}, nil},
			{"too old", "POST", "/raft", [2]string{"X-Server-Version", "2.3.0"}, heartbeat},
			{"too new", "POST", "/raft", [2]string{"X-Min-Cluster-Version", "3.8.0"}, heartbeat},
			{"newer but willing", "POST", "/raft", [2]string{"X-Server-Version", "4.0.0"}, heartbeat},
			{"without a version", "GET", "/raft/stream/message/9", [2]string{"X-Server-Version", ""}, nil},
			{"unknown stream", "GET", "/raft/stream/nothing/9", [2]string{}, nil},
			{"no stream", "GET", "/raft/stream/", [2]string{}, nil},
			{"stream of no id", "GET", "/raft/stream/message/xyz", [2]string{}, nil},
			{"stream of a removed member", "GET", "/raft/stream/message/7", [2]string{}, nil},
			{"stream of a stranger", "GET", "/raft/stream/msgapp/99", [2]string{}, nil},
			{"message that is none", "POST", "/raft", [2]string{}, []byte("none")},
			{"a good message", "POST", "/raft", [2]string{}, heartbeat},
			{"snapshot that is none", "POST", "/raft/snapshot", [2]string{}, []byte("none")},
			{"snapshot of another type", "POST", "/raft/snapshot", [2]string{}, snapshotBody(&raftpb.Message{Type: raftpb.MsgApp.Enum(), To: new(side.self)})},
			{"snapshot message too long", "POST", "/raft/snapshot", [2]string{}, []byte{0, 0, 0, 0, 5, 0, 0, 0}},
			{"unknown path", "GET", "/raft/nothing", [2]string{}, nil},
		} {
			req := request(t, c.method, side.url+c.path, 9, side.self)
			req.Body = io.NopCloser(bytes.NewReader(c.body))
			req.Header.Del("X-PeerURLs")
			if c.header[0] != "" {
				req.Header.Set(c.header[0], c.header[1])
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			*side.into = append(*side.into, fmt.Sprintf("%s: %d %q, allow %q, cluster %q", c.name, resp.StatusCode, body, resp.Header.Get("Allow"), resp.Header.Get("X-Etcd-Cluster-ID")))
		}
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got  %s\nwant %s", got[i], want[i])
		}
	}
}

// A member of either kind that ends and comes back is found again.
func TestBackAgain(t *testing.T) {
	p := newPair(t)
	p.connect(t)
	p.theirHTTP.Close()
	p.etcd.Stop()
	p.ours.expect(t, "gone 2")
	l, err := net.Listen("tcp", p.theirURL[len("http://"):])
	if err != nil {
		t.Fatal(err)
	}
	if err := p.etcd.Start(); err != nil {
		t.Fatal(err)
	}
	p.theirHTTP = &http.Server{Handler: p.etcd.Handler()}
	go p.theirHTTP.Serve(l)
	p.etcd.AddPeer(quorate, []string{p.ourURL})
	p.ours.expect(t, "connected 2")
	m := &raftpb.Message{Type: raftpb.MsgHeartbeat.Enum(), From: new(uint64(quorate)), To: new(uint64(etcd)), Term: new(uint64(1))}
	p.quorate.Send([]*raftpb.Message{m})
	if got := p.theirs.next(t); !proto.Equal(got, m) {
		t.Error(got)
	}
}
