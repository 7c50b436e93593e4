// Package config is how a member is configured: one Config, its defaults and its rules,
// and the three sources that etcd's operators use for it — flags, ETCD_* environment
// variables and a YAML file — with etcd's names, precedence and error texts.
//
// A file shuts out the other two. Without one, flags win over the environment, which
// wins over the defaults. Parse reads all three and touches nothing else.
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"quorate/internal/logging"
	"quorate/internal/tlsconf"
)

// Config is everything an operator can say about one member. Default returns the
// defaults; a Config that was changed must pass Validate before it is used. Fields that
// are "accepted" exist because etcd has them: they are parsed, checked and without
// effect, because what they tune does not exist here or comes with clusters of several
// members.
type Config struct {
	Name    string // of this member, unique in the cluster
	DataDir string // "": Name + ".etcd"
	WALDir  string // "": below DataDir

	// Where to listen. ClientHTTP, if given, takes HTTP away from Client, which then
	// speaks gRPC alone. Metrics serve /metrics and the health checks only.
	ListenPeerURLs       URLs
	ListenClientURLs     URLs
	ListenClientHTTPURLs URLs
	ListenMetricsURLs    URLs
	// How others reach the member.
	AdvertisePeerURLs   URLs
	AdvertiseClientURLs URLs

	InitialCluster      string // name=peerURL,name=peerURL: the members of a new cluster
	InitialClusterToken string
	InitialClusterState string // new or existing
	StrictReconfigCheck bool   // refuse membership changes that would lose the quorum
	DiscoverySRV        string // DNS domain whose records name the members, in place of InitialCluster
	DiscoverySRVName    string // suffix of the records' service
	Discovery           Discovery

	HeartbeatInterval  time.Duration // whole milliseconds
	ElectionTimeout    time.Duration // whole milliseconds, at least 5 heartbeats
	InitialTickAdvance bool          // the first election need not wait a whole timeout
	PreVote            bool
	MaxLearners        int
	LearnerServeReads  bool // a learner answers linearizable reads and watches, too

	SnapshotCount          uint64 // entries between marks that bound the log
	SnapshotCatchUpEntries uint64 // entries kept behind a mark for slow followers
	MaxSnapshots           uint   // accepted
	MaxWALs                uint   // accepted
	QuotaBytes             int64  // of the backend; 0: 2 GiB, below 0: none
	MaxTxnOps              uint
	MaxRequestBytes        uint

	CompactionMode       string // periodic or revision
	CompactionRetention  string // see Compaction
	CompactionBatchLimit int    // accepted: steps are sized by time
	CompactionSleep      time.Duration

	// gRPC on the client port. MaxConcurrentStreams is per connection.
	MaxConcurrentStreams  uint32
	GRPCKeepAliveMinTime  time.Duration // least time between a client's pings
	GRPCKeepAliveInterval time.Duration // of the server's pings; 0: none
	GRPCKeepAliveTimeout  time.Duration // without an answer the connection is closed
	EnableGateway         bool          // JSON under /v3/

	// ProgressNotifyInterval is how often an idle watch that wants it is told the revision.
	ProgressNotifyInterval time.Duration
	WarnUnaryDuration      time.Duration // a request that takes longer is logged
	WarnApplyDuration      time.Duration // so is an apply that does

	ClientTLS     tlsconf.Files
	PeerTLS       tlsconf.Files
	ClientAutoTLS bool // make a certificate when none is given
	PeerAutoTLS   bool
	AutoTLSYears  uint // how long it is valid
	TLS           tlsconf.Protocol

	CORS          []string // origins; "*" or none: all
	HostWhitelist []string // Host headers taken without TLS; "*" or none: all

	AuthToken    string // simple, or jwt with options
	BcryptCost   uint
	AuthTokenTTL uint // seconds

	Metrics     string // basic or extensive
	EnablePprof bool

	Logger string // zap: the name stands for structured lines
	Log    logging.Options

	Features Features

	CorruptCheckTime     time.Duration // between comparisons of all members' data by the leader; 0: none
	CompactHashCheckTime time.Duration // accepted
	DowngradeCheckTime   time.Duration // accepted

	SocketReusePort    bool
	SocketReuseAddress bool

	MemoryMlock          bool          // accepted
	BackendFreelist      string        // accepted
	BackendBatchInterval time.Duration // accepted
	BackendBatchLimit    int           // accepted
	BootstrapDefragMB    uint          // accepted: space is given back without it
	RaftReadTimeout      time.Duration
	RaftWriteTimeout     time.Duration
	Tracing              Tracing
	V2Deprecation        string // accepted

	ForceNewCluster bool // go on alone on the data of a larger cluster
	UnsafeNoFsync   bool // lose data on a crash

	// Ours.
	ShutdownTimeout time.Duration // for calls in flight when the server is told to stop
}

// Discovery is etcd's v3 discovery service: accepted as flags, refused by Validate when used.
type Discovery struct {
	Token                 string
	Endpoints             []string
	DialTimeout           time.Duration
	RequestTimeout        time.Duration
	KeepAliveTime         time.Duration
	KeepAliveTimeout      time.Duration
	InsecureTransport     bool
	InsecureSkipTLSVerify bool
	Cert, Key, CA         string
	User, Password        string
	Fallback              string
}

// Tracing is etcd's OpenTelemetry export: accepted.
type Tracing struct {
	Enabled      bool
	Address      string
	ServiceName  string
	InstanceID   string
	SamplingRate int // per million
}

// Values of InitialClusterState and CompactionMode.
const (
	StateNew      = "new"
	StateExisting = "existing"

	CompactPeriodic = "periodic"
	CompactRevision = "revision"
)

const (
	defaultName       = "default"
	defaultPeerURL    = "http://localhost:2380"
	defaultClientURL  = "http://localhost:2379"
	defaultCluster    = defaultName + "=" + defaultPeerURL
	electionMax       = 50 * time.Second
	quotaWarnBytes    = 8 << 30
	warnUnaryDefault  = 300 * time.Millisecond
	progressDefault   = 10 * time.Minute
	raftTimeoutLeast  = 5 * time.Second
	requestOverhead   = 512 << 10
	requestWarnBytes  = 10 << 20
	defaultFreelist   = "map"
	metricsBasic      = "basic"
	metricsExtensive  = "extensive"
	loggerName        = "zap"
	discoveryFallback = "exit"

	bcryptCostMin, bcryptCostMax, bcryptCostDefault = 4, 31, 10
)

// ErrAdvertiseUnset is the mistake that etcd's operators make most.
var ErrAdvertiseUnset = errors.New("--advertise-client-urls is required when --listen-client-urls is set explicitly")

var errBootstrapConflict = errors.New("multiple discovery or bootstrap flags are set. " +
	`Choose one of "initial-cluster", "discovery-endpoints" or "discovery-srv"`)

// Default returns etcd's defaults: a single member on localhost.
func Default() *Config {
	return &Config{
		Name:                   defaultName,
		ListenPeerURLs:         mustURLs(defaultPeerURL),
		ListenClientURLs:       mustURLs(defaultClientURL),
		AdvertisePeerURLs:      mustURLs(defaultPeerURL),
		AdvertiseClientURLs:    mustURLs(defaultClientURL),
		InitialCluster:         defaultCluster,
		InitialClusterToken:    "etcd-cluster",
		InitialClusterState:    StateNew,
		StrictReconfigCheck:    true,
		HeartbeatInterval:      100 * time.Millisecond,
		ElectionTimeout:        time.Second,
		InitialTickAdvance:     true,
		PreVote:                true,
		MaxLearners:            1,
		SnapshotCount:          10000,
		SnapshotCatchUpEntries: 5000,
		MaxSnapshots:           5,
		MaxWALs:                5,
		MaxTxnOps:              128,
		MaxRequestBytes:        1536 << 10,
		CompactionMode:         CompactPeriodic,
		CompactionRetention:    "0",
		CompactionBatchLimit:   1000,
		CompactionSleep:        10 * time.Millisecond,
		MaxConcurrentStreams:   math.MaxUint32,
		GRPCKeepAliveMinTime:   5 * time.Second,
		GRPCKeepAliveInterval:  2 * time.Hour,
		GRPCKeepAliveTimeout:   20 * time.Second,
		EnableGateway:          true,
		ProgressNotifyInterval: progressDefault,
		WarnUnaryDuration:      warnUnaryDefault,
		WarnApplyDuration:      100 * time.Millisecond,
		AutoTLSYears:           1,
		TLS:                    tlsconf.Protocol{MinVersion: "TLS1.2"},
		CORS:                   []string{"*"},
		HostWhitelist:          []string{"*"},
		AuthToken:              "simple",
		BcryptCost:             bcryptCostDefault,
		AuthTokenTTL:           300,
		Metrics:                metricsBasic,
		Logger:                 loggerName,
		Log: logging.Options{
			Level: "info", Format: "json", Outputs: []string{logging.OutputDefault}, Rotation: logging.DefaultRotation,
		},
		CompactHashCheckTime: time.Minute,
		DowngradeCheckTime:   5 * time.Second,
		BackendFreelist:      defaultFreelist,
		RaftReadTimeout:      raftTimeoutLeast,
		RaftWriteTimeout:     raftTimeoutLeast,
		V2Deprecation:        "write-only",
		Discovery: Discovery{
			DialTimeout: 2 * time.Second, RequestTimeout: 5 * time.Second,
			KeepAliveTime: 2 * time.Second, KeepAliveTimeout: 6 * time.Second,
			InsecureTransport: true, Fallback: discoveryFallback,
		},
		Tracing:         Tracing{Address: "localhost:4317", ServiceName: "etcd"},
		ShutdownTimeout: 7 * time.Second,
	}
}

// ElectionTicks is the election timeout in heartbeats.
func (c *Config) ElectionTicks() int { return int(c.ElectionTimeout / c.HeartbeatInterval) }

// Compaction is automatic compaction as CompactionMode and CompactionRetention say: in
// periodic mode the age in time beyond which revisions go, in revision mode how many
// revisions stay. Zero of both: none.
func (c *Config) Compaction() (age time.Duration, revisions int64, err error) {
	text := c.CompactionRetention
	if text == "" {
		text = "0"
	}
	n, err := strconv.Atoi(text)
	switch {
	case err == nil && n >= 0 && c.CompactionMode == CompactRevision:
		return 0, int64(n), nil
	case err == nil && n >= 0:
		if n > int(math.MaxInt64/time.Hour) {
			return 0, 0, fmt.Errorf("error parsing CompactionRetention: %s hours is too long", text)
		}
		return time.Duration(n) * time.Hour, 0, nil // a bare number is hours
	}
	age, err = time.ParseDuration(text)
	if err != nil {
		return 0, 0, fmt.Errorf("error parsing CompactionRetention: %w", err)
	}
	if c.CompactionMode == CompactRevision {
		return 0, int64(age), nil // as etcd reads it: a duration is its nanoseconds
	}
	return age, 0, nil
}

// MaxMessageBytes bounds one gRPC message from a client: a request of MaxRequestBytes
// and what frames it.
func (c *Config) MaxMessageBytes() int { return int(c.MaxRequestBytes) + requestOverhead }

// SplitHTTP reports whether HTTP has listeners of its own.
func (c *Config) SplitHTTP() bool { return len(c.ListenClientHTTPURLs) > 0 }

// FixturesDir is where generated certificates of one side (client, peer) are kept.
func (c *Config) FixturesDir(side string) string { return filepath.Join(c.DataDir, "fixtures", side) }

// Finish returns a copy of c whose derived fields are set, as Parse does it for an
// operator's configuration, and notes on log what it chose.
func (c *Config) Finish(log *slog.Logger) *Config {
	var chosen notes
	done := *c
	done.finish(&chosen)
	chosen.log(log)
	return &done
}

// finish gives derived fields the values that etcd derives, after all sources were read:
// the cluster's first member from name and peer URL, an advertised address of this host
// where the member listens on all of them, the data directory from the name.
//
// Doing it again changes nothing.
func (c *Config) finish(notes *notes) {
	if len(c.ListenPeerURLs) > 0 && c.ListenPeerURLs[0].Hostname() == "0.0.0.0" && c.AdvertisePeerURLs.String() == defaultPeerURL {
		host, err := defaultHost()
		if err != nil {
			notes.info("failed to detect default host", "error", err)
		} else {
			u := c.AdvertisePeerURLs[0]
			u.Host = host + ":" + c.ListenPeerURLs[0].Port()
			c.AdvertisePeerURLs = URLs{u}
			notes.info("detected default host for advertise", "host", host)
		}
	}
	if c.Name != defaultName && c.InitialCluster == defaultCluster {
		var members []string
		for _, u := range c.AdvertisePeerURLs {
			members = append(members, c.Name+"="+u.String())
		}
		c.InitialCluster = strings.Join(members, ",")
	}
	if c.DataDir == "" {
		c.DataDir = c.Name + ".etcd"
		notes.warn("'data-dir' was empty; using default", "data-dir", c.DataDir)
	}
	if c.BcryptCost < bcryptCostMin || c.BcryptCost > bcryptCostMax {
		notes.warn("use default bcrypt cost instead of the invalid given cost", "min-cost", bcryptCostMin,
			"max-cost", bcryptCostMax, "default-cost", bcryptCostDefault, "given-cost", c.BcryptCost)
		c.BcryptCost = bcryptCostDefault
	}
	if c.AutoTLSYears == 0 {
		c.AutoTLSYears = 1
	}
	if c.WarnUnaryDuration == 0 {
		c.WarnUnaryDuration = warnUnaryDefault
	}
	if c.ProgressNotifyInterval <= 0 {
		c.ProgressNotifyInterval = progressDefault
	}
	for _, t := range []struct {
		name string
		d    *time.Duration
	}{{"raft-read-timeout", &c.RaftReadTimeout}, {"raft-write-timeout", &c.RaftWriteTimeout}} {
		if *t.d < raftTimeoutLeast {
			*t.d = raftTimeoutLeast
			notes.info(fmt.Sprintf("%s increased to minimum value: %v", t.name, raftTimeoutLeast))
		}
	}
}
