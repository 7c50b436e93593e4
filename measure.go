package quorate

import (
	"strings"

	"quorate/internal/config"
	"quorate/internal/node"
)

// measure makes the gauges that are read off the member's parts when somebody asks. What
// the parts count while they work they count themselves.
func (s *Server) measure(n *node.Node) {
	m := s.metrics
	for _, f := range config.AllFeatures() {
		var on int64
		if s.cfg.Features.Enabled(f.Name) {
			on = 1
		}
		m.FeatureEnabled.With(f.Name, f.Stage).Set(on)
	}
	m.ClusterVersion.Read(func() string {
		// Major and minor alone, as etcd has it.
		major, rest, _ := strings.Cut(n.Status().ClusterVersion, ".")
		minor, _, ok := strings.Cut(rest, ".")
		if !ok {
			return ""
		}
		return major + "." + minor
	})
	m.CurrentRevision.Read(func() float64 {
		v := n.View()
		defer v.Release()
		return float64(v.Rev())
	})
	m.CompactRevision.Read(func() float64 {
		v := n.View()
		defer v.Release()
		return float64(max(v.CompactRev(), 0))
	})
	m.Keys.Read(func() float64 { return float64(keyCount(n)) })

	watch := n.Watch()
	m.WatchStreams.Read(func() float64 { return float64(watch.Stats().Streams) })
	m.Watchers.Read(func() float64 { return float64(watch.Stats().Watchers) })
	m.SlowWatchers.Read(func() float64 { return float64(watch.Stats().Behind) })
	m.PendingEvents.Read(func() float64 { return float64(watch.Stats().Pending) })
	m.Events.Read(func() uint64 { return uint64(watch.Stats().Events) })
}
