package peer

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"sync/atomic"
	"time"
)

// TCP sends what got no answer again after ever longer waits, up to two minutes. So when a
// link comes back, the connections over it do not for as long again as it was away, while
// new ones work at once. The reader of a stream which has become quiet therefore doubts it:
// beside it, it asks the other member for a sign of life over a new connection. If there
// is one, and still nothing comes on the stream, a new stream takes its place.
//
// A link that is merely slow, and a process that was stopped for a while, are none of that:
// there, the stream is heard no later than the answer.

const (
	// beatEvery is how often something comes on quorate's streams, at least. They do not wait
	// for quiet: a process that was stopped speaks as soon as it goes on.
	beatEvery = 250 * time.Millisecond
	// quietLeast is the least time without a word that makes a reader doubt a stream; it is
	// twice the longest time that the stream should be without one, too.
	quietLeast = time.Second
	// doubtEvery is between two attempts to get a sign of life.
	doubtEvery = 250 * time.Millisecond
	// graceLeast is for how long a stream may be heard after a sign of life; it is twice the
	// time that the answer took, too.
	graceLeast = 100 * time.Millisecond
)

// beat is how often this member's streams say something, at least. Readers end them after the
// time-out, if it is the same for all members.
func (o *Options) beat() time.Duration { return min(beatEvery, o.ReadTimeout/8) }

// quiet is how long the stream that resp begins may say nothing before it is doubted.
// etcd says something every third of the time-out.
func (o *Options) quiet(resp *http.Response) time.Duration {
	most := o.ReadTimeout / 2
	pause, err := strconv.ParseUint(resp.Header.Get(headerPause), 10, 32)
	if err != nil {
		return most
	}
	return min(most, max(quietLeast, 2*time.Duration(pause)*time.Millisecond))
}

// listener is the connection of a stream that is read: it ends if nothing comes for limit,
// and is doubted if nothing comes for quiet. One goroutine reads.
type listener struct {
	net.Conn
	r            *remote
	u            *url.URL // where it was dialed
	quiet, limit time.Duration
	quorate      bool // who answered on it is one

	outdated atomic.Bool // it was closed because a new connection works and it does not
}

func (c *listener) Read(b []byte) (int, error) {
	n, err := c.readWithin(b, c.quiet)
	if n == 0 && errors.Is(err, os.ErrDeadlineExceeded) {
		n, err = c.readInDoubt(b)
	}
	if err != nil && c.outdated.Load() {
		err = errOutdated
	}
	return n, err
}

func (c *listener) readInDoubt(b []byte) (int, error) {
	ctx, heard := context.WithCancel(c.r.ctx)
	defer heard()
	if !c.r.t.run(func() { c.doubt(ctx) }) {
		return 0, errClosed
	}
	return c.readWithin(b, c.limit-c.quiet)
}

func (c *listener) readWithin(b []byte, limit time.Duration) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

func (c *listener) Write(b []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	return c.Conn.Write(b)
}

// doubt closes the connection if a new one works before ctx ends, which it does when
// something was heard on this one.
func (c *listener) doubt(ctx context.Context) {
	for {
		begin := time.Now()
		took, err := c.r.signOfLife(ctx, c.u)
		wait := doubtEvery - time.Since(begin)
		if err == nil {
			wait = max(2*took, graceLeast)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if err == nil && ctx.Err() == nil {
			c.outdated.Store(true)
			if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
				c.r.t.log.Debug("cannot close a stream", "remote-peer-id", c.r.idStr, "error", err)
			}
			return
		}
	}
}

// signOfLife has the process at u answer over a new connection, and returns how long it took
// to do so once there was one.
func (r *remote) signOfLife(ctx context.Context, u *url.URL) (took time.Duration, err error) {
	conn, err := r.t.dialer.dial(ctx, u)
	if err != nil {
		return 0, err
	}
	begin := time.Now()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer func() {
		if stop() {
			conn.Close() // all is said
		}
	}()
	target := url.URL{Scheme: u.Scheme, Host: u.Host, Path: pathProbing}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return 0, err
	}
	req.Close = true
	if err := conn.SetDeadline(begin.Add(r.t.o.DialTimeout)); err != nil {
		return 0, err
	}
	if err := req.Write(conn); err != nil {
		return 0, fmt.Errorf("ask for a sign of life: %w", err)
	}
	// Any answer will do, and its body ends with the connection.
	if _, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, headBytesMax)), req); err != nil {
		return 0, fmt.Errorf("wait for a sign of life: %w", err)
	}
	return time.Since(begin), nil
}

// reset ends the outbox's stream, if it is older than quiet, in a way that the other member
// sees as soon as the link is back. An etcd would listen to it until its time-out, for TCP
// may take as long to bring anything over. A quorate has found out by itself.
func (o *outbox) reset(quiet time.Duration) {
	o.mu.Lock()
	s := o.stream
	o.mu.Unlock()
	if s == nil || time.Since(s.begun) < quiet {
		return
	}
	// Closed like this, and under TLS, a connection says nothing but a reset.
	conn := s.conn
	for {
		under, ok := conn.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		conn = under.NetConn()
	}
	if c, ok := conn.(*net.TCPConn); ok {
		if err := errors.Join(c.SetLinger(0), c.Close()); err != nil {
			o.r.t.log.Debug("cannot reset a stream", "remote-peer-id", o.r.idStr, "error", err)
		}
	}
	s.end(errSilent)
}
