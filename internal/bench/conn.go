package bench

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// Flow control windows: large and fixed, so that a long response does not wait for the client and
// no pings estimate the bandwidth.
const (
	streamWindow = 8 << 20
	connWindow   = 16 << 20
)

// connectTimeout bounds how long a server may take to accept the first connections.
const connectTimeout = 10 * time.Second

// TLSFiles name the files of a TLS client. The zero value is a connection without TLS.
type TLSFiles struct {
	CACert, Cert, Key  string
	InsecureSkipVerify bool
}

func (f TLSFiles) empty() bool { return f == TLSFiles{} }

// credentials reads the files.
func (f TLSFiles) credentials() (credentials.TransportCredentials, error) {
	if f.empty() {
		return insecure.NewCredentials(), nil
	}
	cfg := &tls.Config{InsecureSkipVerify: f.InsecureSkipVerify}
	if f.CACert != "" {
		pem, err := os.ReadFile(f.CACert)
		if err != nil {
			return nil, fmt.Errorf("read CA certificates: %w", err)
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("no certificate in %s", f.CACert)
		}
	}
	if f.Cert != "" || f.Key != "" {
		pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return nil, fmt.Errorf("load client certificate: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	return credentials.NewTLS(cfg), nil
}

// A pool is a fixed number of connections to a server, spread evenly over its endpoints.
type pool struct {
	lean  []*leanConn        // for single calls without TLS
	conns []*grpc.ClientConn // for streams, and for all calls with TLS
}

// dialPool opens n connections and waits until each is ready. Streams ask for gRPC's own client, as
// does TLS.
func dialPool(ctx context.Context, endpoints []string, n int, files TLSFiles, streams bool) (*pool, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	p := &pool{}
	if files.empty() {
		for i := range n {
			c := newLeanConn(hostPort(endpoints[i%len(endpoints)]))
			p.lean = append(p.lean, c)
			if _, err := c.get(ctx); err != nil {
				return nil, errors.Join(fmt.Errorf("connect to %s: %w", c.endpoint, err), p.close())
			}
		}
		if !streams {
			return p, nil
		}
	}
	creds, err := files.credentials()
	if err != nil {
		return nil, err
	}
	for i := range n {
		conn, err := grpc.NewClient("passthrough:///"+hostPort(endpoints[i%len(endpoints)]),
			grpc.WithTransportCredentials(creds),
			grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
			grpc.WithInitialWindowSize(streamWindow), grpc.WithInitialConnWindowSize(connWindow),
			grpc.WithReadBufferSize(64<<10), grpc.WithWriteBufferSize(64<<10),
			grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{}), grpc.MaxCallRecvMsgSize(math.MaxInt32)))
		if err != nil {
			return nil, errors.Join(err, p.close())
		}
		p.conns = append(p.conns, conn)
		conn.Connect()
	}
	for i, conn := range p.conns {
		for s := conn.GetState(); s != connectivity.Ready; s = conn.GetState() {
			if s == connectivity.Idle {
				conn.Connect()
			}
			if !conn.WaitForStateChange(ctx, s) {
				return nil, errors.Join(fmt.Errorf("connect to %s: %w", endpoints[i%len(endpoints)], ctx.Err()), p.close())
			}
		}
	}
	return p, nil
}

// hostPort takes the scheme off an endpoint.
func hostPort(endpoint string) string {
	if _, rest, ok := strings.Cut(endpoint, "://"); ok {
		return rest
	}
	return endpoint
}

// stream opens a stream for client i, on the connection that is its own.
func (p *pool) stream(ctx context.Context, i int, method string) (*stream, error) {
	return openStream(ctx, p.conns[i%len(p.conns)], method)
}

// caller returns the means of client i.
func (p *pool) caller(i int, timeout time.Duration) caller {
	c := caller{timeout: timeout}
	if len(p.lean) == 0 {
		c.grpc = p.conns[i%len(p.conns)]
		return c
	}
	c.lean = p.lean[i%len(p.lean)]
	c.state = &leanCall{done: make(chan struct{}, 1)}
	c.timer = time.NewTimer(timeout)
	c.timer.Stop()
	return c
}

func (p *pool) close() error {
	var errs []error
	for _, c := range p.lean {
		errs = append(errs, c.close())
	}
	for _, c := range p.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// A caller makes the calls of one client, one at a time, and reuses memory between them. It is
// copied before its first call only.
type caller struct {
	timeout time.Duration
	req     []byte // the request that is built; dropped when a call failed, since gRPC may still hold it
	resp    []byte // the last response

	grpc *grpc.ClientConn // nil: use lean

	lean  *leanConn
	state *leanCall
	timer *time.Timer
}

// call sends c.req and leaves the answer in c.resp.
func (c *caller) call(ctx context.Context, method string) error {
	if c.grpc == nil {
		return c.lean.call(ctx, c.state, method, c.req, &c.resp, c.timer, c.timeout)
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if err := c.grpc.Invoke(ctx, method, c.req, &c.resp); err != nil {
		c.req = nil
		return err
	}
	return nil
}
