package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// link stands between a member and those who dial it. It takes its time, it can lose what is
// under way for good, as a link does whose return TCP has not noticed yet, and hold what is
// said, as a process does that is stopped.
type link struct {
	l     net.Listener
	delay time.Duration // each way

	mu    sync.Mutex
	away  bool // new connections are not taken, and old ones lost
	held  bool // nothing comes through, and nothing is lost
	over  bool // the test is
	conns map[net.Conn]bool
	lost  chan struct{} // closed when what stands is lost
	wg    sync.WaitGroup
}

func newLink(t *testing.T, to string, delay time.Duration) *link {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := &link{l: l, delay: delay, conns: map[net.Conn]bool{}, lost: make(chan struct{})}
	k.wg.Go(func() {
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
			k.mu.Lock()
			if k.over {
				k.mu.Unlock()
				in.Close()
				out.Close()
				return
			}
			k.conns[in], k.conns[out] = true, true
			lost := k.lost
			if k.away { // TCP would not even have connected them: nothing comes from here
				lost = make(chan struct{})
				close(lost)
			}
			k.mu.Unlock()
			k.wg.Go(func() { k.carry(in, out, lost) })
			k.wg.Go(func() { k.carry(out, in, lost) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		k.mu.Lock()
		k.over = true // one that was accepted just now is closed by who accepted it
		for c := range k.conns {
			c.Close()
		}
		k.mu.Unlock()
		k.hold(false)
		k.wg.Wait()
	})
	return k
}

// parcel is what was read at once, and when it arrives.
type parcel struct {
	data []byte
	due  time.Time
	err  error
}

func (k *link) carry(to, from net.Conn, lost chan struct{}) {
	parcels := make(chan parcel, 1<<16)
	k.wg.Go(func() {
		for p := range parcels {
			time.Sleep(time.Until(p.due))
			for k.isHeld() {
				time.Sleep(time.Millisecond)
			}
			select {
			case <-lost: // whoever is at either end hears nothing
				continue
			default:
			}
			if p.err != nil {
				to.Close()
			} else if _, err := to.Write(p.data); err != nil {
				from.Close()
			}
		}
	})
	defer close(parcels)
	for {
		b := make([]byte, 64<<10)
		n, err := from.Read(b)
		if n > 0 {
			parcels <- parcel{b[:n], time.Now().Add(k.delay), nil}
		}
		if err != nil {
			parcels <- parcel{nil, time.Now().Add(k.delay), err}
			return
		}
	}
}

func (k *link) isHeld() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.held
}

func (k *link) hold(yes bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held = yes
}

// goAway loses all that is under way and all that comes, until comeBack.
func (k *link) goAway() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.away = true
	close(k.lost)
}

func (k *link) comeBack() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.away, k.lost = false, make(chan struct{})
}

// linked are two members with links between them, with TLS or without.
func linked(t *testing.T, secure bool, delay time.Duration) (a, b *node, links [2]*link) {
	t.Helper()
	scheme := "http://"
	if secure {
		scheme = "https://"
		is := newIssuer(newAuthority(t))
		a, b = is.start(t, 1), is.start(t, 2)
	} else {
		a, b = start(t, 1, ""), start(t, 2, "")
	}
	links = [2]*link{newLink(t, a.addr, delay), newLink(t, b.addr, delay)}
	a.Add(2, []string{scheme + links[1].l.Addr().String()})
	b.Add(1, []string{scheme + links[0].l.Addr().String()})
	a.reaches(t, b)
	b.reaches(t, a)
	return a, b, links
}

// streams is how often a stream to the member came to stand since the last call.
func (h *member) streams(id string) (n int) {
	for {
		select {
		case e := <-h.events:
			if e == "connected "+id {
				n++
			}
		default:
			return n
		}
	}
}

// A link that was away is used again soon, although the connections over it are not known
// to be lost.
func TestComesBack(t *testing.T) {
	for i, away := range []time.Duration{0, 1500 * time.Millisecond, 3 * time.Second, 1500 * time.Millisecond} {
		secure := i == 3
		t.Run(fmt.Sprint(away, secure), func(t *testing.T) {
			t.Parallel()
			a, b, links := linked(t, secure, 0)
			for _, k := range links {
				k.goAway()
			}
			time.Sleep(away)
			for _, k := range links {
				k.comeBack()
			}
			begin := time.Now()
			heard := heardAgain(t, a, b)
			took := time.Since(begin)
			heardAgain(t, b, a)
			t.Logf("away for %v: heard %v and %v after", away, heard, time.Since(begin))
			// Silence is noticed after a second, and the time-out is five.
			if took := max(took, time.Since(begin)); took > 3*time.Second {
				t.Errorf("heard again after %v", took)
			}
		})
	}
}

// heardAgain returns how long it takes until b hears from a.
func heardAgain(t *testing.T, a, b *node) time.Duration {
	t.Helper()
	begin := time.Now()
	for time.Since(begin) < 10*time.Second {
		a.Send([]*raftpb.Message{message(raftpb.MsgHeartbeat, a.id, b.id, 0)})
		select {
		case <-b.h.messages:
			return time.Since(begin)
		case <-time.After(10 * time.Millisecond):
		}
	}
	t.Fatal("never heard again")
	return 0
}

// A slow link, and one on which nothing at all comes for a while, keep their streams.
func TestSlowIsNotDoubted(t *testing.T) {
	t.Run("slow", func(t *testing.T) {
		t.Parallel()
		a, b, _ := linked(t, false, 500*time.Millisecond)
		a.h.streams("2")
		b.h.streams("1")
		for range 40 {
			a.Send([]*raftpb.Message{message(raftpb.MsgApp, 1, 2, 1, "x")})
			time.Sleep(100 * time.Millisecond)
		}
		if n, m := a.h.streams("2"), b.h.streams("1"); n+m > 0 {
			t.Errorf("%d and %d streams were made anew", n, m)
		}
	})
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprint("held ", secure), func(t *testing.T) {
			t.Parallel()
			a, b, links := linked(t, secure, time.Millisecond)
			a.h.streams("2")
			b.h.streams("1")
			for range 2 {
				for _, k := range links {
					k.hold(true)
				}
				time.Sleep(2500 * time.Millisecond)
				for _, k := range links {
					k.hold(false)
				}
				time.Sleep(500 * time.Millisecond)
			}
			if n, m := a.h.streams("2"), b.h.streams("1"); n+m > 0 {
				t.Errorf("%d and %d streams were made anew", n, m)
			}
		})
	}
}

// A stream says something every beat, whatever it has said before: when its process was
// stopped and goes on, it is heard before anybody who asks for a sign of life can take it
// for lost. And what was left to it by the stream before it, it says at once.
func TestBeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := New(Options{ServerVersion: "3.7.1"})
		defer tr.Close()
		r := newRemote(tr, 2, nil)
		o := &r.outboxes[streamMessage]
		near, far := net.Pipe()
		defer far.Close()
		o.attach(newStream(near))
		o.put(message(raftpb.MsgHeartbeat, 1, 2, 1))
		near, far = net.Pipe()
		defer far.Close()
		s := newStream(near)
		o.attach(s)
		begin := time.Now()
		var written sync.WaitGroup
		written.Go(func() {
			if _, err := o.write(s); !errors.Is(err, errClosed) {
				t.Error(err)
			}
		})
		b := make([]byte, 1<<10)
		for i, want := range []time.Duration{0, 50, 250, 500, 700, 750, 1000} {
			switch want *= time.Millisecond; want {
			case 50 * time.Millisecond, 700 * time.Millisecond:
				time.AfterFunc(want-time.Since(begin), func() { o.put(message(raftpb.MsgHeartbeat, 1, 2, 1)) })
			}
			if _, err := far.Read(b); err != nil {
				t.Fatal(err)
			}
			if at := time.Since(begin); at != want {
				t.Errorf("it says word %d after %v, not %v", i, at, want)
			}
		}
		s.end(errClosed)
		written.Wait()
	})
}

// Who removes a member, or closes, while its streams are in doubt, waits for nobody, and
// nothing is left.
func TestRemovedInDoubt(t *testing.T) {
	a, _, links := linked(t, false, 0)
	for _, k := range links {
		k.goAway()
	}
	time.Sleep(1500 * time.Millisecond) // there is doubt after a second
	begin := time.Now()
	a.Remove(2)
	a.tasks.Wait()
	a.end()
	if took := time.Since(begin); took > time.Second {
		t.Errorf("it took %v", took)
	}
}

// A stream is doubted at the address that it was dialed at, of several, and of any family.
func TestSignOfLifeByIPv6(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skip(err)
	}
	addr := l.Addr().String()
	l.Close()
	a, b := start(t, 1, ""), start(t, 2, addr)
	a.Add(2, []string{"http://" + freeAddr(t), b.url})
	b.Add(1, []string{a.url})
	a.reaches(t, b)
	b.reaches(t, a)
	r := a.remote(2)
	u := r.pick()[0]
	if u.Host != addr {
		t.Errorf("%s is the first to try, not %s", u.Host, addr)
	}
	if took, err := r.signOfLife(t.Context(), u); err != nil || took <= 0 {
		t.Error(took, err)
	}
	if _, err := r.signOfLife(t.Context(), &url.URL{Scheme: "http", Host: freeAddr(t)}); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(err)
	}
}

// An answer that never ends takes neither memory nor time.
func TestEndlessHead(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n")
				for err == nil {
					_, err = io.WriteString(c, "X: "+strings.Repeat("x", 100)+"\r\n")
				}
			}()
		}
	}()
	a := start(t, 1, "")
	r := newRemote(a.Transport, 2, nil)
	u := &url.URL{Scheme: "http", Host: l.Addr().String()}
	begin := time.Now()
	if _, err := r.signOfLife(t.Context(), u); err == nil {
		t.Error("an endless head is a sign of life")
	}
	conn, err := a.dialer.dial(t.Context(), u)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, _, err := r.request(streamMessage, u, conn); err == nil {
		t.Error("an endless head begins a stream")
	}
	if took := time.Since(begin); took > a.o.DialTimeout {
		t.Errorf("it took %v", took)
	}
}

// What etcd listens to is reset, so that it listens anew, unless it does already.
func TestReset(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprint("TLS ", secure), func(t *testing.T) { testReset(t, secure) })
	}
}

func testReset(t *testing.T, secure bool) {
	a, b, _ := linked(t, secure, 0)
	r := a.remote(2)
	for k := range r.outboxes {
		r.outboxes[k].reset(time.Hour)
	}
	a.h.streams("2")
	time.Sleep(50 * time.Millisecond)
	if n := a.h.streams("2"); n > 0 {
		t.Errorf("%d streams were made anew that were younger than the silence", n)
	}
	for k := range r.outboxes {
		r.outboxes[k].reset(0)
	}
	a.h.expect(t, "connected 2")
	a.reaches(t, b)
}

// An attempt to connect that gets no answer does not delay the next ones: TCP would repeat
// itself after one second and after three.
func TestConnectTriesAgain(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	// One connection fits into a backlog of 0. No other comes about until it is taken.
	if cerr := raw.Control(func(fd uintptr) { err = syscall.Listen(int(fd), 0) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	d := newDialer("", 2*time.Second, nil)
	first, err := d.connect(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	begin := time.Now()
	room := time.AfterFunc(1100*time.Millisecond, func() {
		if c, err := l.Accept(); err == nil {
			c.Close()
		}
	})
	defer room.Stop()
	second, err := d.connect(t.Context(), "tcp", l.Addr().String())
	took := time.Since(begin)
	if err != nil {
		t.Fatalf("after %v: %v", took, err)
	}
	second.Close()
	if took < 1100*time.Millisecond {
		t.Skipf("connected after %v, although there was no room", took)
	}
	t.Log("connected after", took)
}

// What cannot be connected to is told at once, and nothing is left of an attempt that is
// given up.
func TestConnectFails(t *testing.T) {
	d := newDialer("", 2*time.Second, nil)
	begin := time.Now()
	if _, err := d.connect(t.Context(), "tcp", freeAddr(t)); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Error(err)
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("refused after %v", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.connect(ctx, "tcp", freeAddr(t)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
