package metrics

import (
	"net/http"
	"runtime"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Set is every family that one member exports. The metric tag is the family's name,
// labels are its label names, buckets are "first count": count upper bounds, each twice
// the one before.
//
// Fields that are easy to miss-measure say what they count; the others are named by
// their family.
type Set struct {
	registry *prometheus.Registry
	families []family

	// GRPC counts the calls of each method.
	GRPC GRPC

	// The member as a whole.
	ServerVersion    Info     `metric:"etcd_server_version" labels:"server_version" help:"1 for the version that runs."`
	GoVersion        Info     `metric:"etcd_server_go_version" labels:"server_go_version" help:"1 for the Go version the server was built with."`
	ServerID         Info     `metric:"etcd_server_id" labels:"server_id" help:"1 for this member's id in hexadecimal."`
	ClusterVersion   Info     `metric:"etcd_cluster_version" labels:"cluster_version" help:"1 for the cluster version in major.minor form."`
	FeatureEnabled   GaugeVec `metric:"etcd_server_feature_enabled" labels:"name,stage" help:"1 for a feature that is enabled, 0 for one that is not."`
	HasLeader        Gauge    `metric:"etcd_server_has_leader" help:"1 if the member knows a leader, else 0."`
	IsLeader         Gauge    `metric:"etcd_server_is_leader" help:"1 if this member leads, else 0."`
	IsLearner        Gauge    `metric:"etcd_server_is_learner" help:"1 if this member is a learner, else 0."`
	LeaderChanges    Counter  `metric:"etcd_server_leader_changes_seen_total" help:"Changes of leader that this member saw."`
	QuotaBytes       Gauge    `metric:"etcd_server_quota_backend_bytes" help:"Backend quota in bytes."`
	Alarms           GaugeVec `metric:"etcd_debugging_server_alarms" labels:"server_id,alarm_type" help:"1 for each alarm that is raised, by member."`
	AuthRevision     Gauge    `metric:"etcd_debugging_auth_revision" help:"Revision of the auth store."`
	KnownPeers       GaugeVec `metric:"etcd_network_known_peers" labels:"Local,Remote" help:"1 for each member that this one knows, itself included."`
	FDUsed           Gauge    `metric:"os_fd_used" help:"File descriptors in use."`
	FDLimit          Gauge    `metric:"os_fd_limit" help:"Limit of file descriptors."`
	HeartbeatsFailed Counter  `metric:"etcd_server_heartbeat_send_failures_total" help:"Leader heartbeats that could not be sent in time (likely a slow disk)."`

	// Proposals. Committed and applied are indexes of the log, as in etcd, although
	// their names say total. Pending counts proposals whose clients wait.
	ProposalsCommitted    Gauge      `metric:"etcd_server_proposals_committed_total" help:"Consensus proposals committed."`
	ProposalsApplied      Gauge      `metric:"etcd_server_proposals_applied_total" help:"Consensus proposals applied."`
	ProposalsPending      Gauge      `metric:"etcd_server_proposals_pending" help:"Proposals that wait to be committed."`
	ProposalsFailed       Counter    `metric:"etcd_server_proposals_failed_total" help:"Proposals that failed."`
	SlowApplies           Counter    `metric:"etcd_server_slow_apply_total" help:"Requests that took longer to apply than --warning-apply-duration."`
	SlowReadIndexes       Counter    `metric:"etcd_server_slow_read_indexes_total" help:"Read indexes that were not confirmed in time."`
	ReadIndexesFailed     Counter    `metric:"etcd_server_read_indexes_failed_total" help:"Read indexes that failed."`
	SnapshotApplies       Gauge      `metric:"etcd_server_snapshot_apply_in_progress_total" help:"1 while a snapshot from the leader is applied."`
	LearnerPromotions     Counter    `metric:"etcd_server_learner_promote_successes" help:"Learners promoted while this member led."`
	LearnerPromotesFailed CounterVec `metric:"etcd_server_learner_promote_failures" labels:"Reason" help:"Promotions of learners refused while this member led."`

	// RequestSeconds is from the proposal (or, for type Range and ReadonlyTxn, the call)
	// until its answer; ApplySeconds is the applying alone. Label type is the
	// request's field of InternalRaftRequest in Go's spelling: Put, LeaseGrant, ...
	RequestSeconds HistogramVec `metric:"etcd_server_request_duration_seconds" labels:"type,success" buckets:"0.001 14" help:"Time from a request to its response, by type."`
	ApplySeconds   HistogramVec `metric:"etcd_server_apply_duration_seconds" labels:"version,op,success" buckets:"0.0001 20" help:"Time that applying a request took, by operation; version is v3."`
	RangeSeconds   HistogramVec `metric:"etcd_server_range_duration_seconds" labels:"success" buckets:"0.0001 20" help:"Time that a range took, without waiting for its read index."`

	// The client port. ClientRequests' labels are unary or stream, and the client's API
	// version ("unknown" if it sent none). Bytes are those of messages, uncompressed.
	ClientRequests      CounterVec `metric:"etcd_server_client_requests_total" labels:"type,client_api_version" help:"Client requests, by the client's API version."`
	ClientBytesReceived Counter    `metric:"etcd_network_client_grpc_received_bytes_total" help:"Bytes received from gRPC clients."`
	ClientBytesSent     Counter    `metric:"etcd_network_client_grpc_sent_bytes_total" help:"Bytes sent to gRPC clients."`
	StreamsFailed       CounterVec `metric:"etcd_network_server_stream_failures_total" labels:"Type,API" help:"Streams that broke: Type is receive or send, API is watch or lease-keepalive."`
	HealthOK            Counter    `metric:"etcd_server_health_success" help:"Successful /health requests."`
	HealthFailed        Counter    `metric:"etcd_server_health_failures" help:"Failed /health requests."`
	HealthCheck         GaugeVec   `metric:"etcd_server_healthcheck" labels:"type,name" help:"Result of the last health check of each kind: 1 is good."`
	HealthChecks        CounterVec `metric:"etcd_server_healthchecks_total" labels:"type,name,status" help:"Health checks of each kind, by result."`

	// The peers. Each family has a child for every member that this one has met.
	ActivePeers              GaugeVec     `metric:"etcd_network_active_peers" labels:"Local,Remote" help:"1 while there is a stream to or from the peer."`
	DisconnectedPeers        CounterVec   `metric:"etcd_network_disconnected_peers_total" labels:"Local,Remote" help:"How often the last stream of the peer ended."`
	PeerSentBytes            CounterVec   `metric:"etcd_network_peer_sent_bytes_total" labels:"To" help:"Bytes sent to peers."`
	PeerReceivedBytes        CounterVec   `metric:"etcd_network_peer_received_bytes_total" labels:"From" help:"Bytes received from peers."`
	PeerSentFailures         CounterVec   `metric:"etcd_network_peer_sent_failures_total" labels:"To" help:"Messages to peers that were dropped."`
	PeerReceivedFailures     CounterVec   `metric:"etcd_network_peer_received_failures_total" labels:"From" help:"Messages from peers that were refused."`
	PeerReceivedDropped      CounterVec   `metric:"quorate_network_peer_received_dropped_total" labels:"From" help:"Messages from peers that were dropped because too many waited for the consensus loop. etcd has no such family."`
	PeerRTTSeconds           HistogramVec `metric:"etcd_network_peer_round_trip_time_seconds" labels:"To" buckets:"0.0001 16" help:"Round-trip times between peers."`
	SnapshotSends            CounterVec   `metric:"etcd_network_snapshot_send_success" labels:"To" help:"Snapshots sent to peers."`
	SnapshotSendsInFlight    GaugeVec     `metric:"etcd_network_snapshot_send_inflights_total" labels:"To" help:"Snapshots being sent to peers."`
	SnapshotSendFailures     CounterVec   `metric:"etcd_network_snapshot_send_failures" labels:"To" help:"Snapshots that could not be sent to peers."`
	SnapshotSendSeconds      HistogramVec `metric:"etcd_network_snapshot_send_total_duration_seconds" labels:"To" buckets:"0.1 10" help:"Time that sending snapshots to peers took."`
	SnapshotReceives         CounterVec   `metric:"etcd_network_snapshot_receive_success" labels:"From" help:"Snapshots received from peers."`
	SnapshotReceivesInFlight GaugeVec     `metric:"etcd_network_snapshot_receive_inflights_total" labels:"From" help:"Snapshots being received from peers."`
	SnapshotReceiveFailures  CounterVec   `metric:"etcd_network_snapshot_receive_failures" labels:"From" help:"Snapshots that could not be received from peers."`
	SnapshotReceiveSeconds   HistogramVec `metric:"etcd_network_snapshot_receive_total_duration_seconds" labels:"From" buckets:"0.1 10" help:"Time that receiving snapshots from peers took."`

	// The log.
	WALSyncSeconds  Histogram `metric:"etcd_disk_wal_fsync_duration_seconds" buckets:"0.001 14" help:"Time that syncs of the log took."`
	WALWriteSeconds Histogram `metric:"etcd_disk_wal_write_duration_seconds" buckets:"0.001 14" help:"Time that writes to the log took."`
	WALWriteBytes   Gauge     `metric:"etcd_disk_wal_write_bytes_total" help:"Bytes written to the log."`

	// The store. A commit is one flush of the tail into the B+tree file.
	CommitSeconds          Histogram `metric:"etcd_disk_backend_commit_duration_seconds" buckets:"0.001 14" help:"Time that commits to the backend took."`
	CommitRebalanceSeconds Histogram `metric:"etcd_debugging_disk_backend_commit_rebalance_duration_seconds" buckets:"0.001 14" help:"Time that rebalancing took in commits to the backend."`
	CommitSpillSeconds     Histogram `metric:"etcd_debugging_disk_backend_commit_spill_duration_seconds" buckets:"0.001 14" help:"Time that spilling took in commits to the backend."`
	CommitWriteSeconds     Histogram `metric:"etcd_debugging_disk_backend_commit_write_duration_seconds" buckets:"0.001 14" help:"Time that writing took in commits to the backend."`
	DefragSeconds          Histogram `metric:"etcd_disk_backend_defrag_duration_seconds" buckets:"0.1 13" help:"Time that defragmentations took."`
	DefragsInFlight        Gauge     `metric:"etcd_disk_defrag_inflight" help:"1 while a defragmentation runs."`
	SnapshotSeconds        Histogram `metric:"etcd_disk_backend_snapshot_duration_seconds" buckets:"0.01 17" help:"Time that sending snapshots of the backend took."`
	DBSize                 Gauge     `metric:"etcd_mvcc_db_total_size_in_bytes" help:"Length of the backend file in bytes."`
	DBInUse                Gauge     `metric:"etcd_mvcc_db_total_size_in_use_in_bytes" help:"Bytes of the backend file that are in use."`
	OpenReads              Gauge     `metric:"etcd_mvcc_db_open_read_transactions" help:"Read transactions that are open."`
	Ranges                 Counter   `metric:"etcd_mvcc_range_total" help:"Ranges seen by this member."`
	Puts                   Counter   `metric:"etcd_mvcc_put_total" help:"Puts seen by this member."`
	Deletes                Counter   `metric:"etcd_mvcc_delete_total" help:"Deletes seen by this member."`
	Txns                   Counter   `metric:"etcd_mvcc_txn_total" help:"Transactions of more than one operation seen by this member."`
	PutBytes               Gauge     `metric:"etcd_debugging_mvcc_total_put_size_in_bytes" help:"Bytes of keys and values that puts brought."`
	HashSeconds            Histogram `metric:"etcd_mvcc_hash_duration_seconds" buckets:"0.01 15" help:"Time that Hash took."`
	HashRevSeconds         Histogram `metric:"etcd_mvcc_hash_rev_duration_seconds" buckets:"0.01 15" help:"Time that HashKV took."`
	CurrentRevision        Gauge     `metric:"etcd_debugging_mvcc_current_revision" help:"Revision of the store."`
	CompactRevision        Gauge     `metric:"etcd_debugging_mvcc_compact_revision" help:"Revision of the last compaction."`
	Keys                   Gauge     `metric:"etcd_debugging_mvcc_keys_total" help:"Live keys."`

	// Compaction. The pauses are how long one step kept the flusher or the index.
	CompactedKeys         Counter   `metric:"etcd_debugging_mvcc_db_compaction_keys_total" help:"Revisions that compactions removed."`
	CompactionLast        Gauge     `metric:"etcd_debugging_mvcc_db_compaction_last" help:"Unix time of the last compaction's end, 0 before the first."`
	CompactionPauseMillis Histogram `metric:"etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds" buckets:"1 13" help:"Time that one step of a compaction took."`
	CompactionMillis      Histogram `metric:"etcd_debugging_mvcc_db_compaction_total_duration_milliseconds" buckets:"100 14" help:"Time that compactions took."`
	IndexPauseMillis      Histogram `metric:"etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds" buckets:"0.5 14" help:"Time that one step of an index compaction took."`

	// Watches. A slow watcher is one that reads history.
	WatchStreams             Gauge     `metric:"etcd_debugging_mvcc_watch_stream_total" help:"Watch streams."`
	Watchers                 Gauge     `metric:"etcd_debugging_mvcc_watcher_total" help:"Watchers."`
	SlowWatchers             Gauge     `metric:"etcd_debugging_mvcc_slow_watcher_total" help:"Watchers that have not caught up."`
	Events                   Counter   `metric:"etcd_debugging_mvcc_events_total" help:"Events sent to watchers."`
	PendingEvents            Gauge     `metric:"etcd_debugging_mvcc_pending_events_total" help:"Events that wait to be sent."`
	WatchSendSeconds         Histogram `metric:"etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds" buckets:"0.001 14" help:"Time that sending one response with events took."`
	WatchSendSecondsPerEvent Histogram `metric:"etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds" buckets:"0.001 14" help:"The same divided by the number of events."`
	WatchControlSeconds      Histogram `metric:"etcd_debugging_server_watch_send_loop_control_stream_duration_seconds" buckets:"0.001 14" help:"Time that sending one created or canceled response took."`
	WatchProgressSeconds     Histogram `metric:"etcd_debugging_server_watch_send_loop_progress_duration_seconds" buckets:"0.001 14" help:"Time that sending one progress notification took."`

	// Leases. LeaseTTL's unit is seconds of TTL.
	LeasesGranted Counter   `metric:"etcd_debugging_lease_granted_total" help:"Leases granted."`
	LeasesRenewed Counter   `metric:"etcd_debugging_lease_renewed_total" help:"Leases renewed while this member led."`
	LeasesRevoked Counter   `metric:"etcd_debugging_lease_revoked_total" help:"Leases revoked."`
	LeasesExpired Counter   `metric:"etcd_debugging_server_lease_expired_total" help:"Leases that ended by time."`
	LeaseTTL      Histogram `metric:"etcd_debugging_lease_ttl_total" buckets:"1 24" help:"TTLs of granted leases."`

	// Raft snapshots and their files.
	SnapSyncSeconds    Histogram `metric:"etcd_snap_fsync_duration_seconds" buckets:"0.001 14" help:"Time that syncing a .snap file took."`
	SnapDBSyncSeconds  Histogram `metric:"etcd_snap_db_fsync_duration_seconds" buckets:"0.001 14" help:"Time that syncing a received .snap.db file took."`
	SnapDBSaveSeconds  Histogram `metric:"etcd_snap_db_save_total_duration_seconds" buckets:"0.1 10" help:"Time that receiving a .snap.db file took."`
	SnapMarshalSeconds Histogram `metric:"etcd_debugging_snap_save_marshalling_duration_seconds" buckets:"0.001 14" help:"Time that encoding a snapshot took."`
	SnapSaveSeconds    Histogram `metric:"etcd_debugging_snap_save_total_duration_seconds" buckets:"0.001 14" help:"Time that saving a .snap file took."`

	// etcd still exports these of its removed v2 store; like there they stay 0.
	StoreExpires       Counter `metric:"etcd_debugging_store_expires_total" help:"Always 0: keys of the v2 store that expired."`
	StoreWatchRequests Counter `metric:"etcd_debugging_store_watch_requests_total" help:"Always 0: watch requests of the v2 store."`
	StoreWatchers      Gauge   `metric:"etcd_debugging_store_watchers" help:"Always 0: watchers of the v2 store."`
}

// New returns the Set of a new member. extensive adds grpc_server_handling_seconds
// (--metrics=extensive).
func New(extensive bool) *Set {
	s := &Set{registry: prometheus.NewRegistry()}
	s.families = describe(s)
	s.GRPC.extensive = extensive
	s.GoVersion.Set(runtime.Version())
	s.FDUsed.Read(fdUsed)
	s.FDLimit.Read(fdLimit)
	s.registry.MustRegister(
		s,
		&s.GRPC,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return s
}

// Registry is where the Set is registered, for collectors of a program that embeds the
// member.
func (s *Set) Registry() *prometheus.Registry { return s.registry }

// Handler serves the Set in Prometheus' format.
func (s *Set) Handler() http.Handler {
	return promhttp.InstrumentMetricHandler(s.registry, promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}))
}
