package peer

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"quorate/internal/kv"
	"quorate/internal/membership"

	"go.etcd.io/raft/v3/raftpb"
)

// The test binary is a member of its own when told so, to be killed.
const childEnv = "QUORATE_PEER_CHILD"

func TestMain(m *testing.M) {
	if spec := os.Getenv(childEnv); spec != "" {
		if err := child(spec); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// child is member 2 at the first address of spec, with member 1 at the second. It ends
// with its standard input.
func child(spec string) error {
	own, other, _ := strings.Cut(spec, " ")
	l, err := net.Listen("tcp", own)
	if err != nil {
		return err
	}
	tr := New(Options{ServerVersion: "3.7.1"})
	tr.Open(2, testCluster, newMember())
	go http.Serve(l, tr.Handler())
	tr.Add(1, []string{other})
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func startChild(t *testing.T, own, other string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+own+" "+other)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("child: %q, %v", line, err)
	}
	return cmd
}

// freeAddr is an address that nothing listens at.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// A killed process is known to be gone within milliseconds; a stopped one is not taken
// for it.
func TestGone(t *testing.T) {
	a := start(t, 1, "", func(o *Options) { o.ReadTimeout = 500 * time.Millisecond })
	addr := freeAddr(t)
	a.Add(2, []string{"http://" + addr})
	two := &node{id: 2}
	var took []time.Duration
	for range 10 {
		cmd := startChild(t, addr, a.url)
		a.reaches(t, two)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		a.h.expect(t, "gone 2")
		took = append(took, time.Since(begin))
		cmd.Wait()
	}
	t.Log("gone after", took)

	cmd := startChild(t, addr, a.url)
	a.reaches(t, two)
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	a.h.never(t, "gone 2", 1500*time.Millisecond)
	if !a.ActiveSince(2).IsZero() {
		t.Error("a silent member counts as active")
	}
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	a.reaches(t, two)
	a.h.never(t, "gone 2", 50*time.Millisecond)
}

// proxy stands between two members and can be told to fall silent.
type proxy struct {
	l      net.Listener
	mu     sync.Mutex
	silent bool
	conns  []net.Conn
}

func newProxy(t *testing.T, to string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l}
	t.Cleanup(func() { l.Close(); p.cut() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, in, out)
			p.mu.Unlock()
			go p.copy(in, out)
			go p.copy(out, in)
		}
	}()
	return p
}

func (p *proxy) copy(to, from net.Conn) {
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		for p.isSilent() {
			time.Sleep(time.Millisecond)
		}
		if _, werr := to.Write(b[:n]); err != nil || werr != nil {
			to.Close()
			from.Close()
			return
		}
	}
}

func (p *proxy) isSilent() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.silent
}

func (p *proxy) silence(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent = yes
}

// cut closes all connections through the proxy.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

// Connections that break or fall silent are made again, and nobody is said to be gone.
func TestNetworkFaults(t *testing.T) {
	quick := func(o *Options) { o.ReadTimeout = 300 * time.Millisecond }
	a, b := start(t, 1, "", quick), start(t, 2, "", quick)
	toA, toB := newProxy(t, a.addr), newProxy(t, b.addr)
	a.Add(2, []string{"http://" + toB.l.Addr().String()})
	b.Add(1, []string{"http://" + toA.l.Addr().String()})
	a.reaches(t, b)
	b.reaches(t, a)
	for range 10 {
		toA.cut()
		toB.cut()
		a.h.expect(t, "connected 2")
		b.h.expect(t, "connected 1")
		a.reaches(t, b)
		b.reaches(t, a)
	}
	toA.silence(true)
	toB.silence(true)
	until(t, "silence goes unnoticed", func() bool { return a.ActiveSince(2).IsZero() && b.ActiveSince(1).IsZero() })
	toA.silence(false)
	toB.silence(false)
	a.reaches(t, b)
	b.reaches(t, a)
	a.h.never(t, "gone 2", 50*time.Millisecond)
	b.h.never(t, "gone 1", 50*time.Millisecond)
}

// Where a firewall lets only one of two members connect to the other, the streams that it
// made stand.
func TestOneWayToConnect(t *testing.T) {
	a, b := start(t, 1, "", func(o *Options) { o.DialTimeout = 100 * time.Millisecond }), start(t, 2, "")
	var tries atomic.Int32
	a.dialer.net.ControlContext = func(ctx context.Context, _, _ string, _ syscall.RawConn) error {
		tries.Add(1)
		<-ctx.Done()
		return ctx.Err()
	}
	a.Add(2, []string{b.url})
	b.Add(1, []string{a.url})
	a.reaches(t, b)
	for seen := tries.Load(); tries.Load() < seen+5; time.Sleep(time.Millisecond) {
		a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 1, 2, 0)})
	}
	for len(a.h.events) > 0 {
		if e := <-a.h.events; e == "lost 2" {
			t.Fatal("a stream broke because no connection can be made in the other direction")
		}
	}
}

// Who sends a part of a message, or of a snapshot, and then rests does not keep its place.
func TestBodyThatRests(t *testing.T) {
	a := start(t, 1, "", func(o *Options) { o.ReadTimeout = 100 * time.Millisecond })
	b := start(t, 2, "")
	for _, path := range []string{"/raft", "/raft/snapshot", "/leases"} {
		in, out := io.Pipe()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.url+path, in)
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = 1000
		b.setHeaders(req.Header)
		go out.Write([]byte{0})
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err == nil {
			if resp.StatusCode < 400 {
				t.Errorf("%s: %s", path, resp.Status)
			}
			err = resp.Body.Close()
		}
		t.Log(path, err)
		in.Close()
	}
}

// What a stranger says that it is called does not end up in the metrics.
func TestStrangersAreNotCountedByName(t *testing.T) {
	a := start(t, 1, "")
	for _, name := range []string{"\xff\xfe", "", strings.Repeat("x", 1000)} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, a.url+"/raft", strings.NewReader("nonsense"))
		if err != nil {
			t.Fatal(err)
		}
		a.setHeaders(req.Header)
		req.Header.Set(headerFrom, name)
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil || resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%q: %s, %v", name, resp.Status, err)
		}
	}
	if got := a.met.PeerReceivedFailures.With("unknown").Value(); got != 3 {
		t.Errorf("%v are counted", got)
	}
}

// Idle streams are kept alive by heartbeats of the link.
func TestIdle(t *testing.T) {
	quick := func(o *Options) { o.ReadTimeout = time.Second }
	a, b := start(t, 1, "", quick), start(t, 2, "", quick)
	connect(t, a, b)
	since := a.ActiveSince(2)
	time.Sleep(2500 * time.Millisecond)
	if got := a.ActiveSince(2); got != since {
		t.Errorf("active since %v, was %v", got, since)
	}
	for len(a.h.events) > 0 {
		if e := <-a.h.events; e == "lost 2" {
			t.Error("an idle stream broke")
		}
	}
}

// A member that does not read holds up nobody else, what waits for it is bounded, and
// what is dropped is counted and told, once.
func TestSlowPeer(t *testing.T) {
	a := start(t, 1, "", func(o *Options) { o.QueueBytes = 1 << 20; o.QueueMessages = 100; o.ReadTimeout = time.Minute })
	b := start(t, 2, "")
	connect(t, a, b)
	// Member 3 asks for its streams and reads nothing.
	a.Add(3, []string{"http://" + freeAddr(t)})
	var conns []net.Conn
	for _, k := range []string{"message", "msgapp"} {
		conn, err := net.Dial("tcp", a.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		conns = append(conns, conn)
		req, _ := http.NewRequest("GET", a.url+"/raft/stream/"+k+"/3", nil)
		other := start(t, 3, "")
		other.setHeaders(req.Header)
		req.Header.Set(headerTo, "1")
		if err := req.Write(conn); err != nil {
			t.Fatal(err)
		}
	}
	a.reaches(t, &node{id: 3})
	big := strings.Repeat("x", 256<<10)
	const rounds = 200
	begin := time.Now()
	for i := range uint64(rounds) {
		a.Send([]*raftpb.Message{
			message(raftpb.MsgApp, 1, 3, i, big), message(raftpb.MsgProp, 1, 3, i, big),
			message(raftpb.MsgApp, 1, 2, i, "small"), message(raftpb.MsgHeartbeat, 1, 2, i),
		})
		for range 2 {
			b.h.next(t)
		}
	}
	t.Logf("%d rounds beside a member that reads nothing took %v", rounds, time.Since(begin))
	a.h.expect(t, "lost 3")
	// By now the kernel takes no more, so that it is one burst.
	a.h.never(t, "nothing", 10*time.Millisecond)
	for i := range uint64(rounds) {
		a.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 3, i, big)})
	}
	a.h.never(t, "lost 3", 10*time.Millisecond)
	r := a.remote(3)
	dropped := r.count.sentFailed.Value()
	if dropped < rounds {
		t.Errorf("%d messages were dropped of %d", dropped, 3*rounds)
	}
	for k := range r.outboxes {
		o := &r.outboxes[k]
		o.mu.Lock()
		if o.bytes > 1<<20 || len(o.bulk) > 100 {
			t.Errorf("%v: %d messages of %d bytes wait", kind(k), len(o.bulk), o.bytes)
		}
		o.mu.Unlock()
	}
	// It begins to read: what waited comes, and the rest is taken again.
	for _, c := range conns {
		go io.Copy(io.Discard, c)
	}
	until(t, "the queue is never empty", func() bool {
		o := &r.outboxes[streamAppend]
		o.mu.Lock()
		defer o.mu.Unlock()
		return len(o.bulk) == 0
	})
	before := r.count.sentFailed.Value()
	a.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 3, 1, big)})
	if after := r.count.sentFailed.Value(); after != before {
		t.Error("dropped after the queue was empty")
	}
}

// What carries no entries goes before what does.
func TestUrgentFirst(t *testing.T) {
	r := &remote{t: New(Options{ServerVersion: "3.7.1"})}
	defer r.t.Close()
	var o outbox
	o.init(r, streamMessage)
	one, two := net.Pipe()
	defer two.Close()
	s := newStream(one)
	o.attach(s)
	for i := range uint64(3) {
		o.put(message(raftpb.MsgProp, 1, 2, i, strings.Repeat("x", 100<<10)))
		o.put(message(raftpb.MsgHeartbeat, 1, 2, i))
	}
	var got []string
	for empty := false; !empty; {
		var ms []*raftpb.Message
		ms, empty = o.take(s, nil)
		for _, m := range ms {
			got = append(got, fmt.Sprintf("%v%d", m.GetType(), m.GetIndex()))
		}
		got = append(got, "|")
	}
	want := "MsgHeartbeat0 MsgHeartbeat1 MsgHeartbeat2 MsgProp0 MsgProp1 MsgProp2 |"
	if s := strings.Join(got, " "); s != want {
		t.Errorf("got %s, want %s", s, want)
	}
	if o.bytes != 0 {
		t.Errorf("%d bytes are left", o.bytes)
	}
}

// zeros is a file of n bytes that is nowhere.
type zeros struct {
	n      int64
	fail   error
	slow   time.Duration // of each read
	late   atomic.Bool   // it was closed under a read
	closed chan struct{}
}

func (z *zeros) Read(b []byte) (int, error) {
	time.Sleep(z.slow)
	select {
	case <-z.closed:
		z.late.Store(true)
	default:
	}
	if z.n == 0 {
		if z.fail != nil {
			return 0, z.fail
		}
		return 0, io.EOF
	}
	n := int(min(z.n, int64(len(b))))
	clear(b[:n])
	z.n -= int64(n)
	return n, nil
}

func (z *zeros) Close() error {
	close(z.closed)
	return nil
}

func snapMessage(to membership.ID) *raftpb.Message {
	return &raftpb.Message{Type: raftpb.MsgSnap.Enum(), From: new(uint64(1)), To: new(uint64(to)), Term: new(uint64(7)), Snapshot: &raftpb.Snapshot{
		Metadata: &raftpb.SnapshotMetadata{Index: new(uint64(9)), Term: new(uint64(7))},
	}}
}

func TestSnapshot(t *testing.T) {
	a, b := start(t, 1, ""), start(t, 2, "")
	connect(t, a, b)
	for _, size := range []int64{100 << 20, -1} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		z := &zeros{n: 100 << 20, closed: make(chan struct{})}
		a.SendSnapshot(snapMessage(2), z, size)
		a.h.expect(t, "snapshot 2 <nil>")
		<-z.closed
		got := <-b.h.snapshots
		if got.n != 100<<20 || got.size != size || got.m.GetSnapshot().GetMetadata().GetIndex() != 9 {
			t.Errorf("received %+v", got)
		}
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; took > 4<<20 {
			t.Errorf("100 MB took %d bytes of memory", took)
		}
	}
	if n := a.met.SnapshotSends.With("2").Value(); n != 2 {
		t.Errorf("%d snapshots are counted as sent", n)
	}
	if n := b.met.SnapshotReceives.With("1").Value(); n != 2 {
		t.Errorf("%d snapshots are counted as received", n)
	}
}

func TestSnapshotFails(t *testing.T) {
	a, b := start(t, 1, ""), start(t, 2, "")
	connect(t, a, b)
	send := func(to membership.ID, size int64, z *zeros) (err string) {
		t.Helper()
		z.closed = make(chan struct{})
		a.SendSnapshot(snapMessage(to), z, size)
		<-z.closed
		for e := range a.h.events {
			if rest, ok := strings.CutPrefix(e, fmt.Sprintf("snapshot %s ", to)); ok {
				return rest
			}
		}
		return ""
	}
	if got := send(5, 10, &zeros{n: 10}); got != errUnknown.Error() {
		t.Error("to an unknown member:", got)
	}
	if got := send(2, 10<<20, &zeros{n: 5 << 20}); got == "<nil>" {
		t.Error("a file that is shorter than said")
	} else if r := <-b.h.snapshots; r.err == nil {
		t.Error("a file that is shorter than said was taken")
	}
	if got := send(2, -1, &zeros{n: 5 << 20, fail: errors.New("disk")}); !strings.Contains(got, "disk") {
		t.Error("a file that cannot be read:", got)
	} else if r := <-b.h.snapshots; r.err == nil {
		t.Error("a file that cannot be read was taken")
	}

	// One at a time.
	b.h.hold = make(chan struct{})
	first := &zeros{n: 1 << 20, closed: make(chan struct{})}
	a.SendSnapshot(snapMessage(2), first, 1<<20)
	until(t, "the first is not under way", func() bool { return a.remote(2).snapshots.Load() })
	if got := send(2, 1<<20, &zeros{n: 1 << 20}); got != errSnapshotBusy.Error() {
		t.Error("a second one at a time:", got)
	}
	close(b.h.hold)
	a.h.expect(t, "snapshot 2 <nil>")
	<-b.h.snapshots

	// This one is closed in the middle.
	inFlight := b.met.SnapshotReceivesInFlight.With("1")
	until(t, "the others are under way", func() bool { return inFlight.Value() == 0 })
	b.h.hold = nil
	z := &zeros{n: 1 << 40, slow: 10 * time.Millisecond, closed: make(chan struct{})}
	a.SendSnapshot(snapMessage(2), z, 1<<40)
	until(t, "it is not under way", func() bool { return inFlight.Value() == 1 })
	a.Close()
	<-z.closed
	if r := <-b.h.snapshots; r.err == nil {
		t.Errorf("a part of a file was taken: %+v", r)
	}
	time.Sleep(20 * time.Millisecond)
	if z.late.Load() {
		t.Error("the file was closed under a read")
	}
}

// Close does not wait for a snapshot whose sender has fallen asleep.
func TestCloseWhileReceiving(t *testing.T) {
	a, b := start(t, 1, ""), start(t, 2, "")
	connect(t, a, b)
	a.SendSnapshot(snapMessage(2), &zeros{n: 1 << 40, slow: 3 * time.Second, closed: make(chan struct{})}, -1)
	until(t, "it is not under way", func() bool { return b.met.SnapshotReceivesInFlight.With("1").Value() == 1 })
	begin := time.Now()
	b.Close()
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("Close took %v", took)
	}
	if r := <-b.h.snapshots; r.err == nil {
		t.Error("a part of a file was taken")
	}
}

// Close ends every goroutine, whatever is under way.
func TestClose(t *testing.T) {
	before := runtime.NumGoroutine()
	for range 5 {
		a, b := start(t, 1, ""), start(t, 2, "")
		connect(t, a, b)
		a.Add(3, []string{"http://" + freeAddr(t)})
		b.h.hold = make(chan struct{})
		a.SendSnapshot(snapMessage(2), &zeros{n: 1 << 40, closed: make(chan struct{})}, -1)
		for i := range uint64(100) {
			a.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, i, "x"), message(raftpb.MsgApp, 1, 3, i, "x")})
		}
		time.AfterFunc(time.Millisecond, func() { close(b.h.hold) })
		a.Close()
		b.end()
		a.end()
		a.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, 1)})
		a.Add(2, []string{b.url})
		a.Close()
	}
	until(t, "goroutines are left", func() bool { return runtime.NumGoroutine() <= before+2 })
}

func TestMismatch(t *testing.T) {
	a := start(t, 1, "")
	b := listen(t, 2, "")
	// Before Open everything is refused, and nothing is dialed.
	for _, path := range []string{"/version", "/members", "/raft/probing", "/raft/stream/message/1"} {
		resp, err := http.Get(b.url + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable {
			t.Errorf("%s before Open: %s", path, resp.Status)
		}
	}
	a.Add(2, []string{b.url})
	b.Open(2, 0x77, b.h)
	b.Add(1, []string{a.url})
	a.h.never(t, "connected 2", 100*time.Millisecond)
	if !a.ActiveSince(2).IsZero() {
		t.Error("connected to a member of another cluster")
	}

	old := start(t, 3, "", func(o *Options) { o.ServerVersion = "2.9.0" })
	a.Add(3, []string{old.url})
	old.Add(1, []string{a.url})
	a.h.never(t, "connected 3", 100*time.Millisecond)
}

func TestRemoved(t *testing.T) {
	a, b := start(t, 1, ""), start(t, 2, "")
	connect(t, a, b)
	a.h.remove(2)
	// Over streams that still stand, nothing of it is taken any more.
	b.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, 2, 1, 1)})
	until(t, "a removed member's message is not refused", func() bool { return a.remote(2).count.receivedFailed.Value() == 1 })
	a.Remove(2)
	b.h.expect(t, "removed")
	if len(a.h.messages) > 0 {
		t.Error("a removed member's message was taken")
	}
	if !a.ActiveSince(2).IsZero() {
		t.Error("a removed member is active")
	}
}

// Only what is meant for members, and for this one, is taken.
func TestRefused(t *testing.T) {
	a, b := start(t, 1, ""), start(t, 2, "")
	connect(t, a, b)
	refused := uint64(0)
	for typ := range raftpb.MessageType_name {
		m := message(raftpb.MessageType(typ), 1, 2, 1)
		switch m.GetType() {
		case raftpb.MsgApp, raftpb.MsgAppResp, raftpb.MsgHeartbeat, raftpb.MsgHeartbeatResp, raftpb.MsgProp,
			raftpb.MsgReadIndex, raftpb.MsgReadIndexResp, raftpb.MsgVote, raftpb.MsgVoteResp,
			raftpb.MsgPreVote, raftpb.MsgPreVoteResp, raftpb.MsgTimeoutNow, raftpb.MsgTransferLeader:
			a.Send([]*raftpb.Message{m})
			b.h.next(t)
		default:
			a.Send([]*raftpb.Message{m})
			refused++
		}
	}
	m := message(raftpb.MsgHeartbeat, 1, 3, 1)
	a.remote(2).send([]*raftpb.Message{m}) // to another one
	refused++
	until(t, "not all were refused", func() bool { return b.remote(1).count.receivedFailed.Value() == refused })
	if len(b.h.messages) > 0 {
		t.Error("one was taken")
	}
}

// Members that only they themselves know of are answered, and there is a bound on them.
func TestStrangers(t *testing.T) {
	a := start(t, 1, "")
	b := start(t, 2, "")
	b.Add(1, []string{a.url}) // a does not know b
	until(t, "the stranger is not met", func() bool { return a.remote(2) != nil })
	a.Send([]*raftpb.Message{message(raftpb.MsgAppResp, 1, 2, 1)})
	if m := b.h.next(t); m.GetType() != raftpb.MsgAppResp {
		t.Error(m)
	}
	for i := range uint64(100) {
		req, _ := http.NewRequest("GET", a.url+"/raft/stream/message/"+membership.ID(100+i).String(), nil)
		b.setHeaders(req.Header)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	a.mu.RLock()
	n := len(a.remotes)
	a.mu.RUnlock()
	if n > strangersMax {
		t.Errorf("%d strangers", n)
	}
	// Known at last.
	a.Add(2, []string{b.url})
	a.reaches(t, b)
	b.reaches(t, a)
}

func TestUpdate(t *testing.T) {
	a := start(t, 1, "")
	a.Add(2, []string{"http://" + freeAddr(t)})
	a.h.never(t, "gone 2", 20*time.Millisecond) // nobody has been there
	b := start(t, 2, "")
	b.Add(1, []string{a.url})
	a.reaches(t, b) // b dials a
	a.Update(2, []string{"http://" + freeAddr(t), b.url})
	b.reaches(t, a)
	a.Update(2, []string{"nonsense"})
	a.Update(3, []string{b.url})
}

func TestAsk(t *testing.T) {
	a := start(t, 1, "")
	c := NewClient(nil, "")
	defer c.Close()
	ctx := t.Context()
	urls := []string{"http://" + freeAddr(t), a.url}

	cluster, ms, err := c.Members(ctx, urls)
	if err != nil || cluster != testCluster || len(ms) != 1 || ms[0].Name != "one" {
		t.Error("Members:", cluster, ms, err)
	}
	server, version, err := c.Versions(ctx, urls)
	if err != nil || server != "3.7.1" || version != "3.7.0" {
		t.Error("Versions:", server, version, err)
	}
	for id, want := range map[membership.ID]error{1: nil, 2: kv.ErrMemberNotLearner, 3: kv.ErrLearnerNotReady, 4: kv.ErrNotLeader, 5: kv.ErrUnhealthy, 6: kv.ErrMemberNotFound, 7: ErrUnreachable} {
		if ms, err := c.Promote(ctx, urls, id, ""); !errors.Is(err, want) || want == nil && len(ms) != 1 {
			t.Errorf("Promote %d: %v, %v, want %v", id, ms, err, want)
		}
	}
	for _, token := range []string{"", "abc.7"} {
		if ms, err := c.Promote(ctx, urls, 0, token); err != nil || ms[0].Name != token {
			t.Errorf("Promote with token %q: %v, %v", token, ms, err)
		}
	}
	for id, want := range map[kv.LeaseID]error{1: nil, 2: kv.ErrNotLeader, 3: ErrUnreachable, 4: kv.ErrLeaseNotFound, 5: ErrUnreachable} {
		if ttl, err := c.RenewLease(ctx, urls, id); !errors.Is(err, want) || want == nil && ttl != 60 {
			t.Errorf("RenewLease %d: %d, %v, want %v", id, ttl, err, want)
		}
		r, err := c.LeaseTimeToLive(ctx, urls, id, true)
		if !errors.Is(err, want) || want == nil && (r.TTL != 41 || r.GrantedTTL != 60 || len(r.Keys) != 2 || r.Header == nil) {
			t.Errorf("LeaseTimeToLive %d: %v, %v, want %v", id, r, err, want)
		}
	}
	for rev, want := range map[int64]error{1: kv.ErrCompacted, 5: nil, 9: kv.ErrFutureRevision} {
		if h, err := c.HashKV(ctx, urls, rev); !errors.Is(err, want) || want == nil && (h.Hash != 77 || h.HashRevision != 5 || h.CompactRevision != 2 || h.Header.Revision != 5) {
			t.Errorf("HashKV %d: %v, %v, want %v", rev, h, err, want)
		}
	}
	if enabled, err := c.DowngradeEnabled(ctx, urls); err != nil || !enabled {
		t.Error("DowngradeEnabled:", enabled, err)
	}
	if _, _, err := c.Members(ctx, urls[:1]); !errors.Is(err, ErrUnreachable) {
		t.Error("nobody there:", err)
	}
	short, cancel := context.WithTimeout(ctx, time.Nanosecond)
	defer cancel()
	if _, err := c.RenewLease(short, urls, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Error("out of time:", err)
	}

	for _, q := range []struct {
		method, path, body string
		code               int
		answer             string
	}{
		{"GET", "/version", "", 200, `{"etcdserver":"3.7.1","etcdcluster":"3.7.0","storage":"unknown"}`},
		{"GET", "/members", "", 200, `[{"id":1,"peerURLs":["http://127.0.0.1:1"],"name":"one"}]` + "\n"},
		{"POST", "/version", "", 405, "Method Not Allowed\n"},
		{"POST", "/members/promote/x", "", 404, "member x not found in cluster\n"},
		{"POST", "/leases", strings.Repeat("x", 64<<10+1), 413, "request body too large\n"},
		{"POST", "/leases", "x", 400, "error unmarshalling request\n"},
		{"POST", "/leases/internal", "x", 400, "error unmarshalling request\n"},
		{"POST", "/leases/internal", "", 400, "error unmarshalling request\n"},
		{"GET", "/members/hashkv", "x", 400, "error unmarshalling request\n"},
		{"GET", "/downgrade/enabled", "", 200, "true"},
		{"GET", "/", "", 404, "404 page not found\n"},
	} {
		req, _ := http.NewRequest(q.method, a.url+q.path, bytes.NewReader([]byte(q.body)))
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != q.code || string(got) != q.answer {
			t.Errorf("%s %s: %d %q, want %d %q", q.method, q.path, resp.StatusCode, got, q.code, q.answer)
		}
	}
}

func TestProbe(t *testing.T) {
	a, b := start(t, 1, ""), start(t, 2, "")
	connect(t, a, b)
	took, diff, err := a.remote(2).probeOnce()
	if err != nil || took <= 0 || took > 5*time.Second || diff.Abs() > time.Second {
		t.Error(took, diff, err)
	}
}

// Two members that say they are the same one take streams from each other, but not
// without pause.
func TestSameID(t *testing.T) {
	a, b, c := start(t, 1, ""), start(t, 2, ""), start(t, 2, "")
	a.Add(2, []string{b.url})
	b.Add(1, []string{a.url})
	c.Add(1, []string{a.url})
	time.Sleep(1500 * time.Millisecond)
	n := 0
	for len(a.h.events) > 0 {
		if <-a.h.events == "connected 2" {
			n++
		}
	}
	if n < 3 || n > 60 {
		t.Errorf("%d streams in 1.5 s", n)
	}
}
