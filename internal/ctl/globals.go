package ctl

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"go.etcd.io/etcd/client/pkg/v3/logutil"
	"go.etcd.io/etcd/client/pkg/v3/srv"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc/grpclog"
)

// envPrefix starts the names of the variables that stand for global flags.
const envPrefix = "ETCDCTL_"

// The key and range end of watch may come from the environment although they are arguments.
const (
	envWatchKey      = envPrefix + "WATCH_KEY"
	envWatchRangeEnd = envPrefix + "WATCH_RANGE_END"
)

// globals holds the flags that every verb takes. They are constant once a verb runs, after fromEnv.
type globals struct {
	flags *pflag.FlagSet

	endpoints        []string
	dialTimeout      time.Duration
	commandTimeout   time.Duration
	keepAliveTime    time.Duration
	keepAliveTimeout time.Duration
	maxRequestBytes  int
	maxRecvBytes     int

	insecureTransport, insecureDiscovery, insecureSkipVerify bool
	cert, key, cacert                                        string
	user, password, token                                    string
	discoverySRV, discoveryName                              string

	writeOut   string
	hex, debug bool
}

// newGlobals registers the global flags, hidden from the help of verbs: "options" lists them.
func newGlobals() *globals {
	g := &globals{flags: pflag.NewFlagSet("global", pflag.ContinueOnError)}
	fs := g.flags
	fs.StringSliceVar(&g.endpoints, "endpoints", []string{"127.0.0.1:2379"}, "gRPC endpoints")
	fs.BoolVar(&g.debug, "debug", false, "enable client-side debug logging")
	fs.StringVarP(&g.writeOut, "write-out", "w", "simple", "set the output format (fields, json, protobuf, simple, table)")
	fs.BoolVar(&g.hex, "hex", false, "print byte strings as hex encoded strings")

	fs.DurationVar(&g.dialTimeout, "dial-timeout", 2*time.Second, "dial timeout for client connections")
	fs.DurationVar(&g.commandTimeout, "command-timeout", 5*time.Second, "timeout for short running command (excluding dial timeout)")
	fs.DurationVar(&g.keepAliveTime, "keepalive-time", 2*time.Second, "keepalive time for client connections")
	fs.DurationVar(&g.keepAliveTimeout, "keepalive-timeout", 6*time.Second, "keepalive timeout for client connections")
	fs.IntVar(&g.maxRequestBytes, "max-request-bytes", 0, "client-side request send limit in bytes (0: 2 MiB)")
	fs.IntVar(&g.maxRecvBytes, "max-recv-bytes", 0, "client-side response receive limit in bytes (0: no limit)")

	fs.BoolVar(&g.insecureTransport, "insecure-transport", true, "disable transport security for client connections")
	fs.BoolVar(&g.insecureDiscovery, "insecure-discovery", true, "accept insecure SRV records describing cluster endpoints")
	fs.BoolVar(&g.insecureSkipVerify, "insecure-skip-tls-verify", false, "skip server certificate verification (only for tests)")
	fs.StringVar(&g.cert, "cert", "", "identify secure client using this TLS certificate file")
	fs.StringVar(&g.key, "key", "", "identify secure client using this TLS key file")
	fs.StringVar(&g.cacert, "cacert", "", "verify certificates of TLS-enabled secure servers using this CA bundle")
	fs.StringVar(&g.token, "auth-jwt-token", "", "JWT token used for authentication (excludes --user and --password)")
	fs.StringVar(&g.user, "user", "", "username[:password] for authentication (prompts if no password is given)")
	fs.StringVar(&g.password, "password", "", "password for authentication (then --user holds the name only)")
	fs.StringVarP(&g.discoverySRV, "discovery-srv", "d", "", "domain name to query for SRV records describing cluster endpoints")
	fs.StringVar(&g.discoveryName, "discovery-srv-name", "", "service name to query when using DNS discovery")
	fs.VisitAll(func(f *pflag.Flag) { f.Hidden = true })
	return g
}

// envName returns the name of the variable that stands for a flag.
func envName(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// fromEnv sets the flags that were not given from their variables.
//
// A variable whose flag was given too is an error. A variable that stands for no flag, or whose
// value does not parse, is reported and ignored.
func (g *globals) fromEnv(lg *zap.Logger, environ []string) error {
	known := make(map[string]*pflag.Flag)
	g.flags.VisitAll(func(f *pflag.Flag) { known[envName(f.Name)] = f })
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, envPrefix) {
			continue
		}
		f, ok := known[name]
		switch {
		case ok && f.Changed:
			return fail(exitError, fmt.Errorf("conflicting environment variable %q is shadowed by corresponding command-line flag "+
				"(either unset environment variable or disable flag)", name))
		case ok && value != "":
			if err := f.Value.Set(value); err != nil {
				lg.Warn("ignored invalid environment variable", zap.String("environment-variable", kv), zap.Error(err))
			}
		case !ok && name != envWatchKey && name != envWatchRangeEnd && kv != envPrefix+"API=3":
			lg.Warn("unrecognized environment variable", zap.String("environment-variable", kv))
		}
	}
	return nil
}

// connect reads the environment, chooses the printer and makes the client, which dials when it is
// first used. Only a user name makes connect wait for the server, to authenticate.
func (c *call) connect() error {
	spec, err := c.configure()
	if err != nil {
		return err
	}
	c.client, err = c.dial(spec)
	return err
}

// configure is connect without the client, for verbs that make their own.
func (c *call) configure() (*clientv3.ConfigSpec, error) {
	g := c.g
	c.lg = newLogger(c.cmd.ErrOrStderr())
	if err := g.fromEnv(c.lg, os.Environ()); err != nil {
		return nil, err
	}
	grpcLogOnce.Do(func() { grpclog.SetLoggerV2(newGRPCLog(g.debug)) })
	if g.debug {
		g.flags.VisitAll(func(f *pflag.Flag) { c.warnf("%s=%v", envName(f.Name), f.Value) })
	}

	for _, name := range []string{"cert", "key", "cacert"} {
		if f := g.flags.Lookup(name); f.Changed && f.Value.String() == "" {
			return nil, fail(exitBadArgs, fmt.Errorf("empty string is passed to --%s option", name))
		}
	}
	endpoints, err := g.discover(c.warnf)
	if err != nil {
		return nil, fail(exitError, err)
	}
	auth, err := c.auth()
	if err != nil {
		return nil, err
	}
	if err := c.choosePrinter(); err != nil {
		return nil, err
	}
	spec := &clientv3.ConfigSpec{
		Endpoints:          endpoints,
		DialTimeout:        g.dialTimeout,
		KeepAliveTime:      g.keepAliveTime,
		KeepAliveTimeout:   g.keepAliveTimeout,
		MaxCallSendMsgSize: g.maxRequestBytes,
		MaxCallRecvMsgSize: g.maxRecvBytes,
		Auth:               auth,
		Secure: &clientv3.SecureConfig{
			Cert: g.cert, Key: g.key, Cacert: g.cacert,
			InsecureTransport:  g.insecureTransport,
			InsecureSkipVerify: g.insecureSkipVerify,
		},
	}
	if !g.insecureDiscovery {
		spec.Secure.ServerName = g.discoverySRV
	}
	return spec, nil
}

// grpcLogOnce guards gRPC's logger, which is the process's and must not change once gRPC is in use: the
// first verb of a process sets it.
var grpcLogOnce sync.Once

// newGRPCLog returns a logger for gRPC: all that it tells, or no more than errors, since its warnings
// tell of every routine disconnect.
func newGRPCLog(debug bool) grpclog.LoggerV2 {
	if debug {
		return grpclog.NewLoggerV2WithVerbosity(os.Stderr, os.Stderr, os.Stderr, 4)
	}
	return grpclog.NewLoggerV2(io.Discard, io.Discard, os.Stderr)
}

// dial makes a client of spec.
func (c *call) dial(spec *clientv3.ConfigSpec) (*clientv3.Client, error) {
	cfg, err := clientv3.NewClientConfig(spec, c.lg)
	if err != nil {
		return nil, fail(exitBadArgs, err)
	}
	cfg.Context = c.base()
	cfg.Logger = c.lg.Named("etcd-client")
	client, err := clientv3.New(*cfg)
	if err != nil {
		return nil, fail(exitBadConnection, err)
	}
	return client, nil
}

// discover returns the endpoints: those that DNS names for --discovery-srv, else --endpoints.
func (g *globals) discover(warnf func(string, ...any)) ([]string, error) {
	var found []string
	if g.discoverySRV != "" {
		clients, err := srv.GetClient("etcd-client", g.discoverySRV, g.discoveryName)
		if err != nil {
			return nil, err
		}
		for _, ep := range clients.Endpoints {
			if !g.insecureDiscovery && strings.HasPrefix(ep, "http://") {
				warnf("ignoring discovered insecure endpoint %q", ep)
				continue
			}
			found = append(found, ep)
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	for _, ep := range g.endpoints {
		found = append(found, strings.TrimSpace(ep))
	}
	return found, nil
}

// auth returns the credentials of the flags, nil if there are none; it asks for a missing password.
func (c *call) auth() (*clientv3.AuthConfig, error) {
	g := c.g
	switch {
	case g.token != "":
		return &clientv3.AuthConfig{Token: g.token}, nil
	case g.user == "":
		return nil, nil
	case g.password != "":
		return &clientv3.AuthConfig{Username: g.user, Password: g.password}, nil
	}
	name, password, ok := strings.Cut(g.user, ":")
	if !ok {
		var err error
		if password, err = c.readPassword("Password: "); err != nil {
			return nil, fail(exitError, err)
		}
	}
	return &clientv3.AuthConfig{Username: name, Password: password}, nil
}

// newLogger returns a logger of etcdctl's form, JSON lines, that writes to w. ETCD_CLIENT_DEBUG sets
// its level.
func newLogger(w io.Writer) *zap.Logger {
	enc := zapcore.NewJSONEncoder(logutil.DefaultZapLoggerConfig.EncoderConfig)
	return zap.New(zapcore.NewCore(enc, zapcore.Lock(zapcore.AddSync(w)), clientv3.ClientLogLevel()), zap.AddCaller())
}
