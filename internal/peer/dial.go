package peer

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"quorate/internal/membership"
)

// dialer makes connections to the peer ports of other members.
type dialer struct {
	net     net.Dialer
	timeout time.Duration // of the TLS handshake, too
	tls     func() *tls.Config
}

func newDialer(localAddr string, timeout time.Duration, tls func() *tls.Config) dialer {
	d := dialer{timeout: timeout, tls: tls}
	d.net.Timeout = timeout
	if ip := net.ParseIP(localAddr); ip != nil {
		d.net.LocalAddr = &net.TCPAddr{IP: ip}
	}
	return d
}

// secure makes a connection with TLS.
func (d *dialer) secure(ctx context.Context, network, address string) (net.Conn, error) {
	raw, err := d.connect(ctx, network, address)
	if err != nil {
		return nil, err
	}
	var config *tls.Config
	if d.tls != nil {
		config = d.tls()
	}
	if config == nil {
		config = new(tls.Config)
	}
	config = config.Clone()
	config.NextProtos = []string{"http/1.1"}
	if config.ServerName == "" {
		host, _, err := net.SplitHostPort(address)
		if err != nil {
			return nil, errors.Join(err, raw.Close())
		}
		config.ServerName = host
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(err, raw.Close())
	}
	return conn, nil
}

// dialEvery is between the first and further attempts to make the same connection.
const dialEvery = 300 * time.Millisecond

// connect makes a connection without TLS. It does not rely on TCP's repeating of a first
// packet that is lost, which it does at ever longer intervals: it makes attempt after
// attempt, and the first that comes through counts. So a link that comes back is found soon.
func (d *dialer) connect(ctx context.Context, network, address string) (net.Conn, error) {
	type attempt struct {
		conn net.Conn
		err  error
	}
	most := int(d.timeout/dialEvery) + 1
	attempts := make(chan attempt, most)
	var wg sync.WaitGroup
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer func() {
		cancel()
		wg.Wait()
		close(attempts)
		for late := range attempts {
			if late.conn != nil {
				late.conn.Close() // nothing was said on it
			}
		}
	}()
	next := time.NewTicker(dialEvery)
	defer next.Stop()
	for made := 0; ; {
		if made < most {
			made++
			wg.Go(func() {
				conn, err := d.net.DialContext(ctx, network, address)
				attempts <- attempt{conn, err}
			})
		}
		select {
		case a := <-attempts:
			return a.conn, a.err
		case <-next.C:
		}
	}
}

// dial makes a connection to the host of u.
func (d *dialer) dial(ctx context.Context, u *url.URL) (net.Conn, error) {
	if u.Scheme == "https" {
		return d.secure(ctx, "tcp", address(u))
	}
	return d.connect(ctx, "tcp", address(u))
}

func address(u *url.URL) string {
	if u.Port() != "" {
		return u.Host
	}
	return net.JoinHostPort(u.Hostname(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
}

// idleMax is for how long a connection for single requests is kept without one. etcd's
// members close theirs after 5 s.
const idleMax = 4500 * time.Millisecond

// transport makes single requests by connections of this dialer. A read or write may
// make no progress for stall.
func (d *dialer) transport(stall time.Duration) *http.Transport {
	limit := func(dial func(context.Context, string, string) (net.Conn, error)) func(context.Context, string, string) (net.Conn, error) {
		return func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dial(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return deadlineConn{Conn: conn, write: stall}, nil
		}
	}
	return &http.Transport{
		DialContext:         limit(d.connect),
		DialTLSContext:      limit(d.secure),
		IdleConnTimeout:     idleMax,
		MaxIdleConnsPerHost: 2 * pipelineWorkers,
		DisableCompression:  true,
	}
}

// parseURLs reads the peer URLs of a member.
func parseURLs(raw []string) ([]*url.URL, error) {
	if len(raw) == 0 {
		return nil, errors.New("peer: a member without peer URLs")
	}
	urls := make([]*url.URL, len(raw))
	for i, s := range raw {
		u, err := url.Parse(strings.TrimSpace(s))
		if err != nil {
			return nil, err
		}
		if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
			return nil, fmt.Errorf("peer: URL %q is not of the form http(s)://host:port", s)
		}
		urls[i] = u
	}
	return urls, nil
}

func joinURLs(urls []string) string { return strings.Join(urls, ",") }

// Waits between two tries to connect grow from backoffMin by half, up to backoffMax, until
// a stream has stood for steady. One that breaks sooner is not tried again at once either:
// two members with the same id would take it from each other without end.
const (
	backoffMin = time.Millisecond
	backoffMax = 500 * time.Millisecond
	steady     = time.Second
)

// sayEvery is how often a trouble that lasts is logged.
const sayEvery = 30 * time.Second

// read keeps a stream of kind k from the member, and gives what comes to the Handler.
func (r *remote) read(k kind) {
	log := r.t.log.With("remote-peer-id", r.idStr, "stream", k.String())
	backoff := backoffMin
	var said time.Time
	for r.ctx.Err() == nil {
		tried := time.Now()
		body, conn, err := r.dialStream(k)
		begin := time.Now()
		if err == nil {
			r.stood(conn.quorate)
			log.Info("established a stream from a peer")
			err = r.receive(k, body, conn)
			r.ended(err)
			said = time.Time{}
		}
		stood := time.Since(begin)
		if r.ctx.Err() != nil {
			return
		}
		if time.Since(said) > sayEvery {
			log.Warn("no stream from a peer", "error", err)
			said = time.Now()
		}
		var n net.Error
		switch {
		case errors.Is(err, errRemoved):
			r.t.h.Removed()
		case errors.Is(err, errNoConnection):
			// The member's own connections to here may work all the same.
		case errors.As(err, &n) && n.Timeout():
			// What is written to a member that has nothing to say does not reach it.
			r.outboxes[k].breakOff(errSilent)
		case errors.Is(err, errOutdated) && (conn == nil || !conn.quorate):
			r.outboxes[k].reset(r.t.o.ReadTimeout / 2)
		}
		if stood > steady {
			backoff = backoffMin
			continue
		}
		wait := min(backoff/2+rand.N(backoff), backoffMax) - begin.Sub(tried)
		backoff = min(backoff+backoff/2, backoffMax)
		select {
		case <-time.After(wait):
		case <-r.kick[k]:
		case <-r.ctx.Done():
		}
	}
}

// dialStream asks for a stream at each URL in turn.
func (r *remote) dialStream(k kind) (body io.Reader, conn *listener, err error) {
	refused := 0
	urls := r.pick()
	var last error
	for _, u := range urls {
		raw, err := r.t.dialer.dial(r.ctx, u)
		if err == nil {
			body, conn, err := r.request(k, u, raw)
			if err == nil {
				return body, conn, nil
			}
			last = errors.Join(err, raw.Close())
		} else {
			last = fmt.Errorf("%w: %w", errNoConnection, err)
		}
		if errors.Is(last, syscall.ECONNREFUSED) {
			refused++
		}
		r.unreachable(u)
		if r.ctx.Err() != nil {
			return nil, nil, last
		}
	}
	if refused == len(urls) {
		r.refused()
	}
	return nil, nil, last
}

const (
	// readBuffer is how much is read from a connection at a time.
	readBuffer = 64 << 10
	// headBytesMax bounds the head of an answer.
	headBytesMax = 64 << 10
)

// request asks at the other end of raw, which was dialed at u, for the stream of kind k. It
// returns what the stream brings, and raw as what it is read by.
func (r *remote) request(k kind, u *url.URL, raw net.Conn) (io.Reader, *listener, error) {
	stop := context.AfterFunc(r.ctx, func() { raw.Close() })
	defer stop()
	target := &url.URL{Scheme: u.Scheme, Host: u.Host, Path: pathStream + k.path() + "/" + r.t.self.String()}
	req, err := http.NewRequestWithContext(r.ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return nil, nil, err
	}
	r.t.setHeaders(req.Header)
	req.Header.Set(headerTo, r.idStr)
	c := &listener{Conn: raw, r: r, u: u, quiet: r.t.o.ReadTimeout / 2, limit: r.t.o.ReadTimeout}
	if err := req.Write(c); err != nil {
		return nil, nil, fmt.Errorf("ask for a stream: %w", err)
	}
	bounded := &io.LimitedReader{R: c, N: headBytesMax}
	resp, err := http.ReadResponse(bufio.NewReaderSize(bounded, readBuffer), req)
	if err != nil {
		return nil, nil, fmt.Errorf("ask for a stream: %w", err)
	}
	bounded.N = math.MaxInt64
	if resp.StatusCode != http.StatusOK {
		return nil, nil, refusal(resp)
	}
	c.quorate = resp.Header.Get(headerQuorate) != ""
	c.quiet = r.t.o.quiet(resp)
	return resp.Body, c, nil
}

// refusal is what an answer to a stream, a message or a snapshot means that is not
// success.
func refusal(resp *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err != nil {
		return fmt.Errorf("read the answer %q: %w", resp.Status, err)
	}
	body := strings.TrimSpace(string(text))
	switch {
	case resp.StatusCode == http.StatusGone,
		resp.StatusCode == http.StatusForbidden && strings.Contains(body, textRemoved):
		return errRemoved
	case resp.StatusCode == http.StatusPreconditionFailed && body == errClusterMismatch.Error():
		return fmt.Errorf("%w: it is of cluster %s", errClusterMismatch, resp.Header.Get(headerCluster))
	case resp.StatusCode == http.StatusPreconditionFailed && body == errIncompatible.Error():
		return fmt.Errorf("%w: it is %s", errIncompatible, resp.Header.Get(headerVersion))
	}
	return fmt.Errorf("peer: the answer is %q: %s", resp.Status, body)
}

// receive reads messages until the stream ends, and returns why.
func (r *remote) receive(k kind, body io.Reader, conn net.Conn) (err error) {
	stop := context.AfterFunc(r.ctx, func() { conn.Close() })
	defer func() {
		if stop() {
			if closing := conn.Close(); closing != nil {
				err = errors.Join(err, closing)
			}
		}
	}()
	d := decoder{r: bufio.NewReader(body), kind: k, local: r.t.self, remote: r.id}
	for {
		m, n, err := d.next()
		if err != nil {
			return err
		}
		r.count.receivedBytes.Add(uint64(n))
		if m == nil {
			continue
		}
		if err := r.t.acceptable(m); err != nil {
			r.count.receivedFailed.Inc()
			r.t.log.Debug("refused a message", "type", m.GetType().String(), "from", membership.ID(m.GetFrom()).String(), "error", err)
			continue
		}
		r.t.h.Receive(m)
	}
}
