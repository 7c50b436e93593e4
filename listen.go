package quorate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"os"
	"sync"
	"syscall"
	"time"

	"quorate/internal/config"
	"quorate/internal/httpapi"
	"quorate/internal/rpc"
	"quorate/internal/tlsconf"

	"golang.org/x/sys/unix"
)

// fdReserve is how many file descriptors are kept back from client connections, for the
// data, the peers and the process itself.
const fdReserve = 150

// plainConnsMax is how many connections each of the peer and metrics ports may have.
const plainConnsMax = 512

// socket is a bound URL.
type socket struct {
	net.Listener
	url url.URL
}

// bound is the URL with the address that was really bound.
func (s socket) bound() string {
	u := s.url
	if !config.Unix(u) {
		u.Host = s.Addr().String()
	}
	return u.String()
}

// close closes the socket. It may be closed already by whoever served it.
func (s socket) close() error {
	if err := s.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

type clientListener struct {
	socket
	httpOnly bool
}

// Kinds of plain servers.
const (
	kindPeer    = "peer"
	kindMetrics = "metrics"
)

// plainServer serves HTTP alone: the peer port or the metrics port.
type plainServer struct {
	socket
	kind string
	tls  *tlsconf.Source // nil: plaintext
	http http.Server
}

func (p *plainServer) close(ctx context.Context) error {
	if err := p.http.Shutdown(ctx); err != nil { // ctx is done: probes that hang
		if err := p.http.Close(); err != nil {
			return err
		}
	}
	return p.socket.close() // if it was never served
}

// listen binds every URL and loads the certificates that they need.
func (s *Server) listen() (err error) {
	c := s.cfg
	if s.tls.peer, err = s.loadTLS(kindPeer, c.PeerTLS, c.PeerAutoTLS, c.ListenPeerURLs); err != nil {
		return err
	}
	clientURLs := append(c.ListenClientURLs[:len(c.ListenClientURLs):len(c.ListenClientURLs)], c.ListenClientHTTPURLs...)
	if s.tls.client, err = s.loadTLS("client", c.ClientTLS, c.ClientAutoTLS, clientURLs); err != nil {
		return err
	}
	clientSlots, peerSlots, metricsSlots, err := connSlots()
	if err != nil {
		return err
	}
	for i, u := range clientURLs {
		l, err := s.bind(u)
		if err != nil {
			return err
		}
		l.Listener = newLimited(l.Listener, clientSlots)
		s.clients = append(s.clients, clientListener{l, i >= len(c.ListenClientURLs)})
	}
	for _, group := range []struct {
		kind  string
		urls  URLs
		tls   *tlsconf.Source
		slots chan struct{}
	}{{kindPeer, c.ListenPeerURLs, s.tls.peer, peerSlots}, {kindMetrics, c.ListenMetricsURLs, s.tls.client, metricsSlots}} {
		for _, u := range group.urls {
			l, err := s.bind(u)
			if err != nil {
				return err
			}
			l.Listener = newLimited(l.Listener, group.slots)
			p := &plainServer{socket: l, kind: group.kind}
			if config.Secure(u) {
				p.tls = group.tls
			}
			s.plain = append(s.plain, p)
		}
	}
	return nil
}

// loadTLS returns the certificates of one side, nil if it has none, and says where a
// plaintext URL leaves them unused.
func (s *Server) loadTLS(side string, files tlsconf.Files, auto bool, urls URLs) (*tlsconf.Source, error) {
	if files.Empty() && auto {
		var hosts []string
		for _, u := range urls {
			hosts = append(hosts, u.Host)
		}
		made, err := tlsconf.SelfCert(s.cfg.FixturesDir(side), hosts, s.cfg.AutoTLSYears, s.log)
		if err != nil {
			return nil, fmt.Errorf("make a %s certificate: %w", side, err)
		}
		files.CertFile, files.KeyFile = made.CertFile, made.KeyFile
		files.ClientCertFile, files.ClientKeyFile = made.ClientCertFile, made.ClientKeyFile
		files.SelfMade = true
	}
	for _, u := range urls {
		if config.Secure(u) {
			continue
		}
		if !files.Empty() {
			s.log.Warn("scheme is http or unix while key and cert files are present; ignoring key and cert files", side+"-url", u.String())
		}
		if files.ClientCertAuth {
			s.log.Warn("scheme is http or unix while client certificates are required; ignoring client cert auth for this URL", side+"-url", u.String())
		}
	}
	if files.Empty() {
		return nil, nil
	}
	s.log.Info("starting with "+side+" TLS", "tls-info", files.String(), "cipher-suites", s.cfg.TLS.CipherSuites)
	return tlsconf.Load(files, s.cfg.TLS, s.log)
}

// bind binds one URL.
func (s *Server) bind(u url.URL) (socket, error) {
	address := config.Address(u)
	network := "tcp"
	if config.Unix(u) {
		network = "unix"
		// A socket that a killed process left behind would refuse the name for ever.
		if err := os.Remove(address); err != nil && !errors.Is(err, os.ErrNotExist) {
			return socket{}, fmt.Errorf("remove old socket of %s: %w", u.String(), err)
		}
	}
	lc := net.ListenConfig{Control: s.socketOptions}
	l, err := lc.Listen(context.Background(), network, address)
	if err != nil {
		return socket{}, err
	}
	return socket{l, u}, nil
}

func (s *Server) socketOptions(network, _ string, raw syscall.RawConn) error {
	var options []int
	if s.cfg.SocketReusePort {
		options = append(options, unix.SO_REUSEPORT)
	}
	if s.cfg.SocketReuseAddress {
		options = append(options, unix.SO_REUSEADDR)
	}
	if len(options) == 0 || network == "unix" {
		return nil
	}
	var failed error
	err := raw.Control(func(fd uintptr) {
		for _, o := range options {
			failed = errors.Join(failed, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, o, 1))
		}
	})
	return errors.Join(err, failed)
}

// serveClients lets clients in by l.
func (s *Server) serveClients(l clientListener) {
	served := rpc.Listener{Listener: l.Listener, NoGRPC: l.httpOnly}
	traffic := "grpc+http"
	switch {
	case l.httpOnly:
		traffic = "http"
	case s.cfg.SplitHTTP():
		traffic = "grpc"
	}
	if traffic != "grpc" {
		served.HTTP = s.Handler()
	}
	s.log.Info("ready to serve client requests")
	if config.Secure(l.url) {
		served.TLS = s.tls.client.ServerConfig()
		s.log.Info("serving client traffic securely", "traffic", traffic, "address", l.Addr().String())
	} else {
		s.log.Info("serving client traffic insecurely; this is strongly discouraged!", "traffic", traffic, "address", l.Addr().String())
	}
	s.serve(l.bound(), func() error { return s.rpc.Serve(served) })
}

// servePlain answers on the peer port or the metrics port.
func (s *Server) servePlain(p *plainServer) {
	// Who connects and says nothing must not keep a place from the members for long.
	p.http.ReadHeaderTimeout = 10 * time.Second
	p.http.IdleTimeout = 5 * time.Minute
	p.http.ErrorLog = log.New(io.Discard, "", 0) // clients' faults are not the operator's
	if p.kind == kindPeer {
		p.http.Handler = s.hashesWhenChecked(s.peers.Handler())
	} else {
		p.http.Handler = httpapi.Metrics(s.httpOptions())
	}
	s.log.Info("serving "+p.kind+" traffic", "address", p.Addr().String())
	s.serve(p.bound(), func() error {
		var err error
		if p.tls != nil {
			p.http.TLSConfig = p.tls.ServerConfig("http/1.1") // streams of peers need it
			err = p.http.ServeTLS(p.Listener, "", "")
		} else {
			err = p.http.Serve(p.Listener)
		}
		if errors.Is(err, http.ErrServerClosed) {
			return nil
		}
		return err
	})
}

// serve runs fn in the background. Its error ends the server, unless that is stopping.
func (s *Server) serve(what string, fn func() error) {
	s.serving.Go(func() {
		if err := fn(); err != nil {
			select {
			case <-s.stopping:
			default:
				s.fail(fmt.Errorf("serve %s: %w", what, err))
			}
		}
	})
}

// connSlots are how many connections may be open at a time, one slot each: of clients, on
// all client listeners together, on all peer listeners, and on all for metrics: who asks
// for those must not keep the members from each other. They follow from the limit of file
// descriptors. nil is no bound.
func connSlots() (client, peer, metrics chan struct{}, err error) {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil || l.Cur > 1<<30 {
		return nil, nil, nil, nil // unknown or unlimited
	}
	if l.Cur <= fdReserve {
		return nil, nil, nil, fmt.Errorf("file descriptor limit of etcd process is too low; please set higher (limit %d, recommended more than %d)", l.Cur, fdReserve)
	}
	n := int(l.Cur) - fdReserve
	plain := max(1, min(plainConnsMax, n/8))
	return make(chan struct{}, max(1, n-2*plain)), make(chan struct{}, plain), make(chan struct{}, plain), nil
}

// limited is a listener whose connections each hold a slot. Without a free one it keeps
// the next connection waiting, and the kernel those after it, so that the files of the
// data can always be opened.
type limited struct {
	net.Listener
	slots     chan struct{}
	done      chan struct{}
	closeOnce sync.Once
}

func newLimited(l net.Listener, slots chan struct{}) net.Listener {
	if slots == nil {
		return l
	}
	return &limited{Listener: l, slots: slots, done: make(chan struct{})}
}

func (l *limited) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	select {
	case l.slots <- struct{}{}:
		return &limitedConn{Conn: c, release: func() { <-l.slots }}, nil
	case <-l.done:
		return nil, errors.Join(net.ErrClosed, c.Close())
	}
}

func (l *limited) Close() error {
	l.closeOnce.Do(func() { close(l.done) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	once    sync.Once
	release func()
}

func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.release)
	return err
}
