package rpc

import (
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
)

// One port speaks gRPC and HTTP/1. A plaintext connection shows by its first bytes which
// it is; a TLS connection by the protocols that the client offers: gRPC clients offer
// HTTP/2 alone, while curl and browsers offer HTTP/1.1 as well. Both kinds are passed on
// to the server that speaks them natively. Only who offers both and is given HTTP/2 goes
// through net/http, which sorts gRPC calls from others one by one.

// handshakeTimeout is how long a new connection may take to say what it speaks.
const handshakeTimeout = 2 * time.Minute

// http2Preface begins every HTTP/2 connection; no HTTP/1 request begins with its first
// four bytes.
const (
	http2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	prefaceProbe = 4
	// helloBytes is the least that a client of gRPC has sent once it is one: the preface
	// and an empty settings frame.
	helloBytes = int64(len(http2Preface) + 9)
)

// conn is a client's connection.
type conn struct {
	net.Conn
	all      *conns
	own      bool    // the server's to itself
	account  account // of replies
	json     account // of replies that the gateway makes JSON of
	arrivals arrivals
	addr     clientAddr
	read     atomic.Int64 // bytes that came

	head    []byte   // read while finding out what the client speaks, not yet read again
	offered []string // protocols that the client offers in its TLS hello

	closeOnce sync.Once
}

// clientAddr is the remote address of a conn. It is how a call finds its connection:
// gRPC hands the address on to every call.
type clientAddr struct {
	net.Addr
	conn *conn
}

// conns are the connections that are open.
type conns struct {
	replies  *replyMemory
	json     *replyMemory
	arriving int // requests of one connection that may be awaited at a time

	mu   sync.Mutex // before replyMemory's
	open map[*conn]struct{}
}

// add makes c one of them until it is closed. own says that it is the server's to itself.
func (cs *conns) add(c net.Conn, own bool) *conn {
	wrapped := &conn{
		Conn: c, all: cs, own: own, arrivals: newArrivals(cs.arriving),
		account: account{memory: cs.replies}, json: account{memory: cs.json, copies: jsonCopies},
	}
	wrapped.addr = clientAddr{c.RemoteAddr(), wrapped}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.open[wrapped] = struct{}{}
	return wrapped
}

// close closes those of which at most read bytes have come.
func (cs *conns) close(read int64) {
	cs.mu.Lock()
	var list []*conn
	for c := range cs.open {
		if c.read.Load() <= read {
			list = append(list, c)
		}
	}
	cs.mu.Unlock()
	for _, c := range list {
		_ = c.Close() // the client was not served; nobody waits for the error
	}
}

func (c *conn) RemoteAddr() net.Addr { return &c.addr }

// Read is called by one goroutine at a time.
func (c *conn) Read(b []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(b, c.head)
		if c.head = c.head[n:]; len(c.head) == 0 {
			c.head = nil
		}
		return n, nil
	}
	n, err := c.Conn.Read(b)
	c.read.Add(int64(n))
	return n, err
}

// Close gives back what the connection's replies held.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.closeOnce.Do(func() {
		c.account.close()
		c.json.close()
		c.all.mu.Lock()
		defer c.all.mu.Unlock()
		delete(c.all.open, c)
	})
	return err
}

// speaksHTTP2 reads enough to tell; what it read is read again.
func (c *conn) speaksHTTP2() (bool, error) {
	head := make([]byte, prefaceProbe)
	for n := 0; n < len(head); {
		m, err := c.Read(head[n:])
		n += m
		if string(head[:n]) != http2Preface[:n] {
			c.head = head[:n]
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	c.head = head
	return true, nil
}

// queue is a net.Listener whose connections are pushed into it.
type queue struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newQueue(addr net.Addr) *queue {
	return &queue{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// push hands c to Accept, or closes it if the queue is closed.
func (q *queue) push(c net.Conn) {
	select {
	case q.conns <- c:
	case <-q.done:
		_ = c.Close() // nobody is left to tell
	}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *queue) Addr() net.Addr { return q.addr }

func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

// muxer accepts connections and sorts them into queues.
type muxer struct {
	listener net.Listener
	tls      *tls.Config // nil: plaintext
	grpc     *queue      // nil: no gRPC here
	http     *queue      // nil: no HTTP here
	conns    *conns
	rejected *rejected

	wg      sync.WaitGroup // the connections being sorted
	closing atomic.Bool
}

// errBacklog is how long Accept waits after an error that passes, such as too many open
// files.
const errBacklog = 20 * time.Millisecond

// run accepts until the listener is closed. It returns nil after close.
func (m *muxer) run() error {
	defer m.wg.Wait()
	for {
		c, err := m.listener.Accept()
		if err != nil {
			if m.closing.Load() || errors.Is(err, net.ErrClosed) {
				return nil
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() || isTemporary(err) {
				time.Sleep(errBacklog)
				continue
			}
			return err
		}
		m.wg.Go(func() { m.sort(m.conns.add(c, false)) })
	}
}

// isTemporary reports whether the next Accept may succeed.
func isTemporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}

// close stops accepting. Connections that have not said yet what they speak keep run
// waiting until conns.close drops them.
func (m *muxer) close() {
	m.closing.Store(true)
	_ = m.listener.Close() // run sees the error
}

// sort finds out what c speaks and passes it on.
func (m *muxer) sort(c *conn) {
	to, speaker, err := m.speak(c)
	if err != nil || to == nil {
		_ = c.Close() // it never was a client
		return
	}
	to.push(speaker)
}

// speak returns the queue that c belongs to, and c as it goes there.
func (m *muxer) speak(c *conn) (*queue, net.Conn, error) {
	if m.tls == nil && m.http == nil {
		return m.grpc, c, nil
	}
	if m.tls == nil && m.grpc == nil {
		return m.http, c, nil
	}
	if err := c.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return nil, nil, err
	}
	to, speaker, err := m.negotiate(c)
	if err != nil {
		return nil, nil, err
	}
	return to, speaker, c.SetDeadline(time.Time{})
}

func (m *muxer) negotiate(c *conn) (*queue, net.Conn, error) {
	if m.tls == nil {
		http2, err := c.speaksHTTP2()
		if http2 {
			return m.grpc, c, err
		}
		return m.http, c, err
	}
	t := tls.Server(c, m.tls)
	if err := t.Handshake(); err != nil {
		if !m.closing.Load() { // else it may have been broken off here
			m.rejected.note(c.RemoteAddr(), t.ConnectionState(), err)
		}
		return nil, nil, err
	}
	state := t.ConnectionState()
	if m.http == nil || m.grpc != nil && state.NegotiatedProtocol == "h2" && !slices.Contains(c.offered, "http/1.1") {
		return m.grpc, &tlsConn{Conn: t, state: state}, nil
	}
	return m.http, t, nil
}

// portTLS is the caller's TLS configuration made to offer protocols and to note in the
// conn what the client offers.
func portTLS(base *tls.Config, protocols []string) *tls.Config {
	base = base.Clone()
	base.NextProtos = protocols
	inner := base.GetConfigForClient
	// Configurations that inner returns are kept for many handshakes; so is our copy of
	// the last one, with the session keys that are made in it.
	var last atomic.Pointer[struct{ from, to *tls.Config }]
	base.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if c, ok := hello.Conn.(*conn); ok {
			c.offered = hello.SupportedProtos
		}
		if inner == nil {
			return nil, nil
		}
		from, err := inner(hello)
		if err != nil || from == nil {
			return nil, err
		}
		if l := last.Load(); l != nil && l.from == from {
			return l.to, nil
		}
		to := from.Clone()
		to.NextProtos = protocols
		last.Store(&struct{ from, to *tls.Config }{from, to})
		return to, nil
	}
	return base
}

// tlsConn is a connection whose TLS handshake is done.
type tlsConn struct {
	*tls.Conn
	state tls.ConnectionState
}

// handshaken are gRPC's credentials for connections that come from a muxer.
type handshaken struct {
	credentials.TransportCredentials
}

// ServerHandshake tells gRPC what the muxer found out.
func (handshaken) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	t, ok := c.(*tlsConn)
	if !ok {
		return c, nil, nil
	}
	return t, credentials.TLSInfo{
		State:          t.state,
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

func (handshaken) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (h handshaken) Clone() credentials.TransportCredentials { return h }
