package quorate

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"quorate/internal/membership"
	"quorate/internal/vfs"
	"quorate/internal/wal"

	"go.etcd.io/etcd/client/pkg/v3/srv"
	"go.etcd.io/etcd/client/pkg/v3/types"
)

// discover makes what DNS names for --discovery-srv the initial cluster, as etcd does: all records of
// the services etcd-server-ssl and etcd-server. A member that has data knows its cluster from that.
func (s *Server) discover(ctx context.Context) error {
	c := s.cfg
	if c.DiscoverySRV == "" {
		return nil
	}
	walDir := c.WALDir
	if walDir == "" {
		walDir = filepath.Join(c.DataDir, "member", "wal")
	}
	if exists, err := wal.Exists(vfs.OS(), walDir); err != nil || exists {
		return err
	}
	var found []string
	var failed error
	for _, scheme := range []string{"https", "http"} {
		service := srv.GetSRVService("etcd-server", c.DiscoverySRVName, scheme)
		members, err := s.lookup(ctx, scheme, service)
		s.log.Info("get cluster for "+service+" SRV", "discovery-srv", c.DiscoverySRV, "server-name", c.Name,
			"advertise-peer-urls", c.AdvertisePeerURLs.Strings(), "found-cluster", members, "error", err)
		found, failed = append(found, members...), errors.Join(failed, err)
	}
	if len(found) == 0 {
		return fmt.Errorf("error setting up initial cluster: --discovery-srv=%s names no member: %w", c.DiscoverySRV, failed)
	}
	c.InitialCluster = strings.Join(found, ",")
	ic, err := membership.ParseInitialCluster(c.InitialCluster)
	if err != nil {
		return fmt.Errorf("error setting up initial cluster: --discovery-srv=%s: %w", c.DiscoverySRV, err)
	}
	if len(ic[c.Name]) == 0 {
		return fmt.Errorf("error setting up initial cluster: cannot find local etcd member %q in SRV records: none of %s has the address of --initial-advertise-peer-urls=%s",
			c.Name, c.InitialCluster, c.AdvertisePeerURLs)
	}
	return nil
}

// lookup is srv.GetCluster, which takes no context: a resolver that does not answer goes on
// in the background until it is given up there.
func (s *Server) lookup(ctx context.Context, scheme, service string) (members []string, err error) {
	type answer struct {
		members []string
		err     error
	}
	c := s.cfg
	name, domain, own := c.Name, c.DiscoverySRV, types.URLs(c.AdvertisePeerURLs)
	got := make(chan answer, 1)
	go func() {
		ms, err := srv.GetCluster(scheme, service, name, domain, own)
		got <- answer{ms, err}
	}()
	select {
	case a := <-got:
		return a.members, a.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
