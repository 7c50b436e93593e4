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
type pool struct{ conns []*grpc.ClientConn }

// dialPool opens n connections and waits until each is ready.
func dialPool(ctx context.Context, endpoints []string, n int, files TLSFiles) (*pool, error) {
	creds, err := files.credentials()
	if err != nil {
		return nil, err
	}
	p := &pool{}
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
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
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

// conn returns the connection of client i.
func (p *pool) conn(i int) *grpc.ClientConn { return p.conns[i%len(p.conns)] }

func (p *pool) close() error {
	var errs []error
	for _, c := range p.conns {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// A caller makes the calls of one client, one at a time, and reuses memory between them.
type caller struct {
	conn    *grpc.ClientConn
	timeout time.Duration
	req     []byte // the request that is built; dropped when a call failed, since gRPC may still hold it
	resp    []byte // the last response
}

// call sends c.req and leaves the answer in c.resp.
func (c *caller) call(ctx context.Context, method string) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	if err := c.conn.Invoke(ctx, method, c.req, &c.resp); err != nil {
		c.req = nil
		return err
	}
	return nil
}
