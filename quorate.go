// Package quorate runs a member inside a Go program:
//
//	cfg := quorate.DefaultConfig()
//	cfg.DataDir = dir
//	server, err := quorate.Start(ctx, cfg, nil)
//	if err != nil { ... }
//	defer server.Close()
//	// clients connect to server.Endpoints()
//
// The command quorate serve is this and a command line. A member speaks the etcd v3 API
// on its client URLs; see docs/ARCHITECTURE.md for how it works inside.
package quorate

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"quorate/internal/config"
	"quorate/internal/httpapi"
	"quorate/internal/logging"
	"quorate/internal/metrics"
	"quorate/internal/node"
	"quorate/internal/peer"
	"quorate/internal/rpc"
	"quorate/internal/tlsconf"
)

// Version is the release of etcd whose API and formats a member speaks, and which it
// gives as its own version to clients and other members.
const Version = node.Version

// Config is everything that can be said about a member. Start from DefaultConfig.
type Config = config.Config

// URLs is a list of URLs as Config has them.
type URLs = config.URLs

// DefaultConfig returns etcd's defaults: a single member on localhost, with its data in
// default.etcd.
func DefaultConfig() *Config { return config.Default() }

// ParseURLs reads a comma-separated list of URLs with the schemes http, https, unix and
// unixs. A port of 0 lets the system choose one; Endpoints then tells which.
func ParseURLs(list string) (URLs, error) { return config.ParseURLs(list) }

// Server is a running member.
type Server struct {
	cfg  *Config
	log  *slog.Logger
	logs io.Closer // files of a logger that Start made

	node    *node.Node
	peers   *peer.Transport
	asks    *peer.Client // what peers are asked beside messages
	rpc     *rpc.Server
	metrics *metrics.Set
	tls     struct{ client, peer *tlsconf.Source } // nil: no certificate

	clients []clientListener
	plain   []*plainServer // peer and metrics listeners

	checked  atomic.Bool    // checkAtStart is over; others may ask for our hash
	checking sync.WaitGroup // goroutines that read the node
	serving  sync.WaitGroup // goroutines that accept
	stopping chan struct{}
	failed   chan error // one error at most

	closeOnce sync.Once
	closeErr  error
}

// Start starts a member and returns once it serves clients. ctx bounds the start alone:
// when it ends before that, everything is undone. log may be nil; the member then logs as
// cfg.Log says. cfg is copied.
//
// Its errors are those of Config.Validate, of certificates and addresses that cannot be
// used, and of data that cannot be trusted, which say what to do.
func Start(ctx context.Context, cfg *Config, log *slog.Logger) (_ *Server, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{log: log, stopping: make(chan struct{}), failed: make(chan error, 1)}
	if log == nil {
		if s.log, s.logs, err = logging.New(cfg.Log); err != nil {
			return nil, err
		}
	}
	s.cfg = cfg.Finish(s.log)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	s.logStart()

	// Sockets and certificates first: what is wrong with them shows before data is touched.
	if err := s.listen(); err != nil {
		return nil, err
	}
	if err := s.discover(ctx); err != nil {
		return nil, err
	}
	if err := s.startNode(); err != nil {
		return nil, err
	}
	// Peers and probes are answered while the member finds its feet, clients after.
	for _, p := range s.plain {
		s.servePlain(p)
	}
	if s.cfg.Features.Enabled("InitialCorruptCheck") {
		if err := s.checkAtStart(ctx); err != nil {
			return nil, err
		}
	}
	s.checked.Store(true)
	select {
	case <-s.node.Ready():
	case <-s.node.Failed():
		return nil, s.node.Err()
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the member to be ready: %w", ctx.Err())
	}
	s.serving.Go(func() {
		select {
		case <-s.node.Failed():
			s.fail(s.node.Err())
		case <-s.stopping:
		}
	})
	if s.cfg.CorruptCheckTime > 0 {
		s.checking.Go(s.checkOften)
	}
	for _, l := range s.clients {
		s.serveClients(l)
	}
	return s, nil
}

// catchUpElections is for how many election timeouts a member that was cut off finds what it
// has missed without a snapshot, as far as that is not large. A snapshot would end what its
// clients wait for as timed out.
const catchUpElections = 10

// startNode builds the member and the services in front of it.
func (s *Server) startNode() error {
	c := s.cfg
	s.metrics = metrics.New(c.Metrics == "extensive")
	age, revisions, err := c.Compaction()
	if err != nil {
		return err
	}
	var peerTLS func() *tls.Config
	if s.tls.peer != nil {
		peerTLS = s.tls.peer.ClientConfig
	}
	s.peers = peer.New(peer.Options{
		ServerVersion: Version,
		PeerURLs:      c.AdvertisePeerURLs.Strings(),
		ClientTLS:     peerTLS,
		Metrics:       s.metrics,
		Logger:        s.log,
	})
	s.asks = peer.NewClient(peerTLS, "")
	s.node, err = node.Start(node.Config{
		Name:                c.Name,
		DataDir:             c.DataDir,
		WALDir:              c.WALDir,
		PeerURLs:            c.AdvertisePeerURLs.Strings(),
		ClientURLs:          c.AdvertiseClientURLs.Strings(),
		InitialCluster:      c.InitialCluster,
		InitialClusterToken: c.InitialClusterToken,
		NewCluster:          c.InitialClusterState != "existing",
		MaxLearners:         int(c.MaxLearners),
		ForceNewCluster:     c.ForceNewCluster,
		Tick:                c.HeartbeatInterval,
		ElectionTicks:       c.ElectionTicks(),
		PreVote:             c.PreVote,
		SnapshotCount:       c.SnapshotCount,
		QuotaBytes:          c.QuotaBytes,
		MaxRequestBytes:     int(c.MaxRequestBytes),
		NoSync:              c.UnsafeNoFsync,
		ProgressInterval:    c.ProgressNotifyInterval,
		FragmentBytes:       c.MaxMessageBytes(),
		Compaction:          node.Compaction{Every: age, Keep: revisions},
		SlowApply:           c.WarnApplyDuration,
		StrictReconfigCheck: c.StrictReconfigCheck,
		TickAdvance:         c.InitialTickAdvance,
		CatchUpEntries:      int(c.SnapshotCatchUpEntries),
		CatchUpTicks:        catchUpElections * c.ElectionTicks(),
		AuthToken:           c.AuthToken,
		AuthTokenTTL:        time.Duration(c.AuthTokenTTL) * time.Second,
		BcryptCost:          int(c.BcryptCost),
		Network:             s.peers,
		Peers:               s.asks,
		Metrics:             s.metrics,
		Logger:              s.log,
	})
	if err != nil {
		return err
	}
	s.measure(s.node)
	s.rpc, err = rpc.New(rpc.Options{
		Backend:              s.node,
		Status:               func() rpc.Status { return rpc.Status(s.node.Status()) },
		Metrics:              s.metrics,
		Logger:               s.log,
		Version:              Version,
		ElectionTimeout:      c.ElectionTimeout,
		MaxRequestBytes:      int(c.MaxRequestBytes),
		MaxTxnOps:            int(c.MaxTxnOps),
		MaxConcurrentStreams: c.MaxConcurrentStreams,
		KeepaliveMinTime:     c.GRPCKeepAliveMinTime,
		KeepaliveInterval:    c.GRPCKeepAliveInterval,
		KeepaliveTimeout:     c.GRPCKeepAliveTimeout,
		SlowRequest:          c.WarnUnaryDuration,
		LearnerReads:         c.LearnerServeReads,
		CertificateUsers:     c.ClientTLS.ClientCertAuth,
	})
	return err
}

// httpOptions are those of every HTTP handler.
func (s *Server) httpOptions() httpapi.Options {
	o := httpapi.Options{
		Member: view{s.node}, Metrics: s.metrics, Logger: s.log, ServerVersion: Version,
		ReadTimeout: s.requestBound(),
		Pprof:       s.cfg.EnablePprof || s.cfg.Log.Level == "debug",
		CORS:        s.cfg.CORS, Hosts: s.cfg.HostWhitelist,
	}
	if s.cfg.EnableGateway {
		o.Gateway = s.rpc.Gateway()
		if s.cfg.ClientTLS.ClientCertAuth {
			o.GatewayUnnamed = func() bool { return s.node.Auth().Enabled() }
		}
	}
	return o
}

// Endpoints are the URLs that clients can connect to, with the ports that were bound.
func (s *Server) Endpoints() []string {
	var urls []string
	for _, l := range s.clients {
		if !l.httpOnly {
			urls = append(urls, l.bound())
		}
	}
	return urls
}

// MetricsURLs are the bound URLs of cfg.ListenMetricsURLs.
func (s *Server) MetricsURLs() []string {
	var urls []string
	for _, p := range s.plain {
		if p.kind == kindMetrics {
			urls = append(urls, p.bound())
		}
	}
	return urls
}

// Err delivers the error that ended the member, if one does: a disk that does not take
// what it must, a listener that broke. The member serves nobody any more then and wants
// to be closed; the process should end.
func (s *Server) Err() <-chan error { return s.failed }

func (s *Server) fail(err error) {
	select {
	case s.failed <- err:
	default: // one is enough
	}
}

// Close ends the member in order: no new clients, an answer to the calls under way (for
// at most cfg.ShutdownTimeout), what was applied flushed to disk. It returns once every
// goroutine is gone. What was acknowledged is safe without it.
func (s *Server) Close() error {
	s.closeOnce.Do(func() { s.closeErr = s.close() })
	return s.closeErr
}

func (s *Server) close() error {
	close(s.stopping)
	s.log.Info("closing etcd server", "name", s.cfg.Name, "data-dir", s.cfg.DataDir)
	ctx, cancel := context.WithTimeout(context.Background(), s.cfg.ShutdownTimeout)
	defer cancel()

	// Leadership first, so that others go on at once and the calls under way end under
	// the new leader. The services before the member, which has to answer those; the
	// probes after the services, so that they can tell of the stop. The member ends its
	// streams to peers, without which the peer port would wait for them.
	if s.node != nil {
		s.node.HandOver(ctx)
	}
	if s.rpc != nil {
		s.rpc.Shutdown(ctx)
	}
	for _, l := range s.clients {
		l.close()
	}
	s.checking.Wait()
	errs := s.closePlain(ctx, kindMetrics)
	if s.node != nil {
		errs = append(errs, s.node.Close())
	}
	errs = append(errs, s.closePlain(ctx, kindPeer)...)
	s.serving.Wait()
	s.log.Info("closed etcd server", "name", s.cfg.Name, "data-dir", s.cfg.DataDir)
	if s.logs != nil {
		errs = append(errs, s.logs.Close())
	}
	return errors.Join(errs...)
}

func (s *Server) closePlain(ctx context.Context, kind string) (errs []error) {
	for _, p := range s.plain {
		if p.kind == kind {
			errs = append(errs, p.close(ctx))
		}
	}
	return errs
}

// logStart writes down what the member was started with.
func (s *Server) logStart() {
	c := s.cfg
	s.log.Info("starting an etcd server",
		"etcd-version", Version, "go-version", runtime.Version(), "go-os", runtime.GOOS, "go-arch", runtime.GOARCH,
		"max-cpu-set", runtime.GOMAXPROCS(0), "max-cpu-available", runtime.NumCPU(),
		"name", c.Name, "data-dir", c.DataDir, "wal-dir", c.WALDir,
		"heartbeat-interval", c.HeartbeatInterval, "election-timeout", c.ElectionTimeout,
		"snapshot-count", c.SnapshotCount, "quota-backend-bytes", c.QuotaBytes,
		"max-request-bytes", c.MaxRequestBytes, "max-txn-ops", c.MaxTxnOps, "max-concurrent-streams", c.MaxConcurrentStreams,
		"initial-advertise-peer-urls", c.AdvertisePeerURLs.Strings(), "listen-peer-urls", c.ListenPeerURLs.Strings(),
		"advertise-client-urls", c.AdvertiseClientURLs.Strings(), "listen-client-urls", c.ListenClientURLs.Strings(),
		"listen-client-http-urls", c.ListenClientHTTPURLs.Strings(), "listen-metrics-urls", c.ListenMetricsURLs.Strings(),
		"initial-cluster", c.InitialCluster, "initial-cluster-state", c.InitialClusterState, "initial-cluster-token", c.InitialClusterToken,
		"cors", c.CORS, "host-whitelist", c.HostWhitelist, "feature-gates", c.Features.String(), "pre-vote", c.PreVote,
		"auto-compaction-mode", c.CompactionMode, "auto-compaction-retention", c.CompactionRetention,
		"force-new-cluster", c.ForceNewCluster, "unsafe-no-fsync", c.UnsafeNoFsync,
	)
}

// Handler serves what the member's client port serves over HTTP, for programs that have
// a server of their own.
func (s *Server) Handler() http.Handler { return httpapi.Client(s.httpOptions()) }
