package node

import (
	"time"

	"quorate/internal/fsm"
	"quorate/internal/membership"
	"quorate/internal/metrics"
	"quorate/internal/mvcc"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// requestNames are the requests under the names that etcd's metrics have for them.
var requestNames = map[wire.Field]string{
	wire.FieldPut:                "Put",
	wire.FieldDelete:             "DeleteRange",
	wire.FieldTxn:                "Txn",
	wire.FieldCompact:            "Compaction",
	wire.FieldLeaseGrant:         "LeaseGrant",
	wire.FieldLeaseRevoke:        "LeaseRevoke",
	wire.FieldLeaseCheckpoint:    "LeaseCheckpoint",
	wire.FieldAlarm:              "Alarm",
	wire.FieldAuthEnable:         "AuthEnable",
	wire.FieldAuthDisable:        "AuthDisable",
	wire.FieldAuthenticate:       "Authenticate",
	wire.FieldUserAdd:            "AuthUserAdd",
	wire.FieldUserDelete:         "AuthUserDelete",
	wire.FieldUserChangePassword: "AuthUserChangePassword",
	wire.FieldUserGrantRole:      "AuthUserGrantRole",
	wire.FieldUserRevokeRole:     "AuthUserRevokeRole",
	wire.FieldRoleAdd:            "AuthRoleAdd",
	wire.FieldRoleDelete:         "AuthRoleDelete",
	wire.FieldRoleGrant:          "AuthRoleGrantPermission",
	wire.FieldRoleRevoke:         "AuthRoleRevokePermission",
	wire.FieldClusterVersion:     "ClusterVersionSet",
	wire.FieldMemberAttributes:   "ClusterMemberAttrSet",
	wire.FieldDowngradeInfo:      "DowngradeInfoSet",
}

// meter counts what the write path does. Its maps are constant, so that a request costs
// a look-up and no lock.
type meter struct {
	met      *metrics.Set
	requests map[wire.Field]*timings
}

// timings are one request's histograms, for failure and for success.
type timings struct {
	request, apply [2]*metrics.Histogram
}

func newMeter(met *metrics.Set) meter {
	m := meter{met: met, requests: make(map[wire.Field]*timings)}
	for field, name := range requestNames {
		m.requests[field] = &timings{
			request: [2]*metrics.Histogram{met.RequestSeconds.With(name, "false"), met.RequestSeconds.With(name, "true")},
			apply:   [2]*metrics.Histogram{met.ApplySeconds.With("v3", name, "false"), met.ApplySeconds.With("v3", name, "true")},
		}
	}
	return m
}

func outcome(ok bool) int {
	if ok {
		return 1
	}
	return 0
}

// proposed and applied note how long a request took, from its proposal to its answer and
// in the applier alone.
func (m *meter) proposed(field wire.Field, ok bool, took time.Duration) {
	if t := m.requests[field]; t != nil {
		t.request[outcome(ok)].Observe(took.Seconds())
	}
}

func (m *meter) applied(field wire.Field, ok bool, took time.Duration) {
	if t := m.requests[field]; t != nil {
		t.apply[outcome(ok)].Observe(took.Seconds())
	}
}

// counted adds what the state machine has done.
func (m *meter) counted(c fsm.Counts) {
	m.met.Puts.Add(c.Puts)
	m.met.Deletes.Add(c.Deletes)
	m.met.Ranges.Add(c.Ranges)
	m.met.Txns.Add(c.Txns)
	m.met.PutBytes.Add(c.PutBytes)
}

// wrote notes a write to the log.
func (m *meter) wrote(bytes int, seconds float64) {
	m.met.WALWriteBytes.Add(int64(bytes))
	m.met.WALWriteSeconds.Observe(seconds)
}

// store is what the store's flusher tells.
func (m *meter) store() mvcc.Meters {
	millis := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	return mvcc.Meters{
		Commit: func(took, rebalance, spill, write time.Duration) {
			m.met.CommitSeconds.Observe(took.Seconds())
			m.met.CommitRebalanceSeconds.Observe(rebalance.Seconds())
			m.met.CommitSpillSeconds.Observe(spill.Seconds())
			m.met.CommitWriteSeconds.Observe(write.Seconds())
		},
		Dropped: func(records int, took time.Duration) {
			m.met.CompactedKeys.Add(uint64(records))
			m.met.CompactionPauseMillis.Observe(millis(took))
		},
		IndexStep: func(took time.Duration) { m.met.IndexPauseMillis.Observe(millis(took)) },
		Compacted: func(took time.Duration) {
			m.met.CompactionMillis.Observe(millis(took))
			m.met.CompactionLast.Set(time.Now().Unix())
		},
	}
}

// measure connects the gauges that are read when somebody asks.
func (n *Node) measure() {
	flag := func(b bool) float64 { return float64(outcome(b)) }
	m := n.met
	m.ServerVersion.Set(Version)
	m.ServerID.Set(membership.ID(n.id).String())
	m.HasLeader.Read(func() float64 { return flag(n.leader.Load() != 0) })
	m.IsLeader.Read(func() float64 { return flag(n.leader.Load() == n.id) })
	m.IsLearner.Read(func() float64 { return flag(n.learner.Load()) })
	m.AuthRevision.Read(func() float64 { return float64(n.Auth().Revision()) })
	m.QuotaBytes.Read(func() float64 { return float64(n.cfg.quota()) })
	m.ProposalsCommitted.Read(func() float64 { return float64(n.committed.Load()) })
	m.ProposalsApplied.Read(func() float64 { return float64(n.Status().Applied) })
	m.ProposalsPending.Read(func() float64 { return float64(n.proposals.count()) })
	m.DBSize.Read(func() float64 { total, _ := n.store.Size(); return float64(total) })
	m.OpenReads.Read(func() float64 { return float64(n.store.OpenReads()) })
	m.DBInUse.Read(func() float64 { _, inUse := n.store.Size(); return float64(inUse) })
}

// showAlarms sets the gauge of each alarm that is or was raised. The applier calls it.
func (n *Node) showAlarms() {
	for _, g := range n.alarmGauges {
		g.Set(0)
	}
	n.alarmGauges = n.alarmGauges[:0]
	for _, a := range n.alarms.List(pb.AlarmType_NONE) {
		g := n.met.Alarms.With(membership.ID(a.MemberID).String(), a.Alarm.String())
		g.Set(1)
		n.alarmGauges = append(n.alarmGauges, g)
	}
}
