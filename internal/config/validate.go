package config

import (
	"errors"
	"fmt"
	"net"
	"time"

	"quorate/internal/logging"
)

// Validate reports the first thing that is wrong with c, with etcd's text where etcd has
// the rule.
func (c *Config) Validate() error {
	for _, check := range []func() error{
		c.validateLog, c.validateURLs, c.validateCluster, c.validateTimes, c.validateLimits, c.validateFeatures, c.TLS.Check,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) validateLog() error {
	switch c.Logger {
	case loggerName:
	case "capnslog":
		return errors.New("--logger=capnslog is removed in v3.5")
	default:
		return fmt.Errorf("unknown logger option %q", c.Logger)
	}
	if _, err := logging.ParseLevel(c.Log.Level); err != nil {
		return fmt.Errorf("--log-level: %w", err)
	}
	return logging.Check(c.Log)
}

func (c *Config) validateURLs() error {
	for _, urls := range []URLs{c.ListenPeerURLs, c.ListenClientURLs, c.ListenClientHTTPURLs, c.ListenMetricsURLs} {
		if err := urls.checkBind(); err != nil {
			return err
		}
	}
	if err := c.AdvertisePeerURLs.checkHost(); err != nil {
		return fmt.Errorf(`--initial-advertise-peer-urls %q must be "host:port" (%w)`, c.AdvertisePeerURLs, err)
	}
	if err := c.AdvertiseClientURLs.checkHost(); err != nil {
		return fmt.Errorf(`--advertise-client-urls %q must be in the format "host:port", "unix:/path/to/socket" or "unixs:/path/to/socket" (%w)`, c.AdvertiseClientURLs, err)
	}
	if len(c.AdvertiseClientURLs) == 0 {
		return ErrAdvertiseUnset
	}
	if len(c.ListenClientURLs) == 0 {
		return errors.New("--listen-client-urls must name at least one URL")
	}
	if len(c.ListenPeerURLs) == 0 {
		return errors.New("--listen-peer-urls must name at least one URL")
	}
	taken := make(map[string]bool)
	for _, u := range c.ListenClientURLs {
		taken[u.Host+u.Path] = true
	}
	for _, u := range c.ListenClientHTTPURLs {
		if taken[u.Host+u.Path] && u.Port() != "0" { // port 0 is another one each time
			return fmt.Errorf("cannot bind both --listen-client-urls and --listen-client-http-urls on the same url %s", u.String())
		}
	}
	for _, u := range append(c.ListenClientURLs[:len(c.ListenClientURLs):len(c.ListenClientURLs)], c.ListenClientHTTPURLs...) {
		if Secure(u) && c.ClientTLS.Empty() && !c.ClientAutoTLS {
			return fmt.Errorf("TLS key/cert (--cert-file, --key-file) must be provided for client url %s with HTTPS scheme", u.String())
		}
	}
	for _, u := range c.ListenPeerURLs {
		if Secure(u) && c.PeerTLS.Empty() && !c.PeerAutoTLS {
			return fmt.Errorf("cannot listen on TLS for %s: KeyFile and CertFile are not presented", u.Host)
		}
	}
	for _, u := range c.ListenMetricsURLs {
		if Secure(u) && c.ClientTLS.Empty() && !c.ClientAutoTLS {
			return errors.New("client TLS key/cert (--cert-file, --key-file) must be provided for metrics secure url")
		}
	}
	return nil
}

func (c *Config) validateCluster() error {
	if c.InitialClusterState != StateNew && c.InitialClusterState != StateExisting {
		return fmt.Errorf("unexpected clusterState %q", c.InitialClusterState)
	}
	set := 0
	for _, is := range []bool{c.InitialCluster != "", c.DiscoverySRV != "", len(c.Discovery.Endpoints) > 0} {
		if is {
			set++
		}
	}
	if set > 1 {
		return errBootstrapConflict
	}
	if (c.Discovery.Token != "") != (len(c.Discovery.Endpoints) > 0) {
		return errors.New("both --discovery-token and --discovery-endpoints must be set")
	}
	if c.Discovery.Fallback != discoveryFallback {
		return fmt.Errorf("v2 proxy is deprecated, and --discovery-fallback can't be configured as %q", c.Discovery.Fallback)
	}
	if len(c.Discovery.Endpoints) > 0 {
		return errors.New("members cannot be discovered by --discovery-endpoints; name them with --initial-cluster or --discovery-srv")
	}
	return nil
}

func (c *Config) validateTimes() error {
	tick, election := c.HeartbeatInterval, c.ElectionTimeout
	ms := func(d time.Duration) int64 { return d.Milliseconds() }
	switch {
	case tick < time.Millisecond:
		return fmt.Errorf("--heartbeat-interval must be >0 (set to %dms)", ms(tick))
	case election < time.Millisecond:
		return fmt.Errorf("--election-timeout must be >0 (set to %dms)", ms(election))
	case 5*tick > election:
		return fmt.Errorf("--election-timeout[%vms] should be at least as 5 times as --heartbeat-interval[%vms]", ms(election), ms(tick))
	case election > electionMax:
		return fmt.Errorf("--election-timeout[%vms] is too long, and should be set less than %vms", ms(election), ms(electionMax))
	case c.CompactHashCheckTime <= 0:
		return fmt.Errorf("--compact-hash-check-time must be >0 (set to %v)", c.CompactHashCheckTime)
	}
	return nil
}

func (c *Config) validateLimits() error {
	switch c.CompactionMode {
	case CompactPeriodic, CompactRevision:
	case "":
		return errors.New("undefined auto-compaction-mode")
	default:
		return fmt.Errorf("unknown auto-compaction-mode %q", c.CompactionMode)
	}
	if _, _, err := c.Compaction(); err != nil {
		return err
	}
	if c.Tracing.Enabled && (c.Tracing.SamplingRate < 0 || c.Tracing.SamplingRate > 1_000_000) {
		return errors.New("distributed tracing configurition is not valid: (--distributed-tracing-sampling-rate must be between 0 and 1000000)")
	}
	if c.MaxLearners < 0 {
		return fmt.Errorf("--max-learners must be >=0 (set to %d)", c.MaxLearners)
	}
	if c.MaxRequestBytes == 0 || c.MaxRequestBytes > 1<<30 {
		return fmt.Errorf("--max-request-bytes %d must be between 1 and %d", c.MaxRequestBytes, 1<<30)
	}
	return nil
}

func (c *Config) validateFeatures() error {
	if c.Features.Enabled("LeaseCheckpointPersist") && !c.Features.Enabled("LeaseCheckpoint") {
		return errors.New("enabling feature gate LeaseCheckpointPersist requires enabling feature gate LeaseCheckpoint")
	}
	return nil
}

// warnings are what a valid configuration still should be told about.
func (c *Config) warnings(notes *notes) {
	if !c.SplitHTTP() {
		notes.warn("Running http and grpc server on single port. This is not recommended for production.")
	}
	if c.Name == defaultName {
		notes.warn("it isn't recommended to use default name, please set a value for --name. "+
			"Note that etcd might run into issue when multiple members have the same default name", "name", c.Name)
	}
	if c.QuotaBytes > quotaWarnBytes {
		notes.warn("quota exceeds the maximum value", "given-quota-bytes", c.QuotaBytes, "max-quota-bytes", int64(quotaWarnBytes))
	}
	if c.MaxRequestBytes > requestWarnBytes {
		notes.warn("exceeded recommended request limit", "max-request-bytes", c.MaxRequestBytes, "recommended-request-bytes", requestWarnBytes)
	}
	if c.Features.Enabled("LeaseCheckpoint") && !c.Features.Enabled("LeaseCheckpointPersist") {
		notes.warn("Detected that checkpointing is enabled without persistence. Consider enabling feature gate LeaseCheckpointPersist")
	}
	if c.Metrics != metricsBasic && c.Metrics != metricsExtensive {
		notes.warn("unknown level of metrics; using basic", "metrics", c.Metrics)
	}
	if c.UnsafeNoFsync {
		notes.warn("--unsafe-no-fsync is set: a crash of this machine loses acknowledged writes")
	}
	for _, side := range []struct {
		flag  string
		files bool
		auto  bool
	}{{"auto-tls", !c.ClientTLS.Empty(), c.ClientAutoTLS}, {"peer-auto-tls", !c.PeerTLS.Empty(), c.PeerAutoTLS}} {
		if side.files && side.auto {
			notes.warn("certificates are given, so --" + side.flag + " is ignored")
		}
	}
}

// checkBind refuses URLs that a socket cannot be bound to: the host must be an address.
func (us URLs) checkBind() error {
	for _, u := range us {
		if Unix(u) {
			continue
		}
		host, _, err := net.SplitHostPort(u.Host)
		if err != nil {
			return err
		}
		if host != "localhost" && net.ParseIP(host) == nil {
			return fmt.Errorf("expected IP in URL for binding (%s)", u.String())
		}
	}
	return nil
}

// checkHost refuses URLs that nobody could dial.
func (us URLs) checkHost() error {
	for _, u := range us {
		if Unix(u) {
			continue
		}
		host, _, err := net.SplitHostPort(u.Host)
		if err != nil {
			return err
		}
		if host == "" {
			return fmt.Errorf("unexpected empty host (%s)", u.String())
		}
	}
	return nil
}
