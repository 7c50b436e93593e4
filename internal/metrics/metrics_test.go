package metrics

import (
	"bufio"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
)

// golden lists the families of a member of a cluster of etcd 3.7.1, started with
// --metrics=extensive and served each kind of request once, one a line: name, type,
// label names, buckets. To make it again:
//
//	go test ./internal/metrics -run Families -from http://HOST:PORT/metrics
const golden = "testdata/etcd-3.7.1.txt"

var from = flag.String("from", "", "URL of a real etcd's /metrics to rewrite the golden file from")

// leftOut are etcd's families that a member of ours does not have, by prefix, and why.
var leftOut = map[string]string{
	"etcd_grpc_proxy_": "counted by the gRPC proxy, which is another program",
}

// added are ours that the golden member did not show, and why.
var added = map[string]string{
	"etcd_debugging_server_alarms":              "etcd shows it while an alarm is raised",
	"etcd_network_server_stream_failures_total": "etcd shows it after the first broken stream",
	"etcd_server_learner_promote_failures":      "etcd shows it after the first refused promotion",

	"quorate_network_peer_received_dropped_total": "etcd drops such messages without counting them",

	"etcd_network_disconnected_peers_total":                shownWithPeers,
	"etcd_network_peer_received_failures_total":            shownWithPeers,
	"etcd_network_peer_sent_failures_total":                shownWithPeers,
	"etcd_network_snapshot_receive_failures":               shownWithPeers,
	"etcd_network_snapshot_receive_inflights_total":        shownWithPeers,
	"etcd_network_snapshot_receive_success":                shownWithPeers,
	"etcd_network_snapshot_receive_total_duration_seconds": shownWithPeers,
	"etcd_network_snapshot_send_failures":                  shownWithPeers,
	"etcd_network_snapshot_send_inflights_total":           shownWithPeers,
	"etcd_network_snapshot_send_success":                   shownWithPeers,
	"etcd_network_snapshot_send_total_duration_seconds":    shownWithPeers,
}

const shownWithPeers = "etcd shows it once something was lost, refused or caught up between members"

func TestFamiliesAreEtcds(t *testing.T) {
	if *from != "" {
		resp, err := http.Get(*from)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var b strings.Builder
		fams := families(t, bufio.NewScanner(resp.Body))
		for _, name := range slices.Sorted(maps.Keys(fams)) {
			fmt.Fprintf(&b, "%s %s\n", name, fams[name])
		}
		if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	want := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		want[name] = rest
	}
	got := families(t, bufio.NewScanner(strings.NewReader(scrape(t, touched()))))

	for _, name := range slices.Sorted(maps.Keys(want)) {
		if leftOutWhy(name) != "" {
			if _, ok := got[name]; ok {
				t.Errorf("%s is exported but listed as left out", name)
			}
			continue
		}
		if got[name] != want[name] {
			t.Errorf("%s:\n got  %q\n want %q", name, got[name], want[name])
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok && added[name] == "" {
			t.Errorf("%s is exported, but etcd has no such family", name)
		}
	}
}

func leftOutWhy(name string) string {
	for prefix, why := range leftOut {
		if strings.HasPrefix(name, prefix) {
			return why
		}
	}
	return ""
}

// touched is a Set of which every family has at least one child.
func touched() *Set {
	s := New(true)
	s.ServerVersion.Set("3.7.1")
	s.ServerID.Set("8e9e05c52164694d")
	s.ClusterVersion.Set("3.7")
	s.FeatureEnabled.With("InitialCorruptCheck", "ALPHA").Set(1)
	s.Alarms.With("8e9e05c52164694d", "NOSPACE").Set(1)
	s.KnownPeers.With("8e9e05c52164694d", "8e9e05c52164694d").Set(1)
	s.LearnerPromotesFailed.With("not ready").Inc()
	s.RequestSeconds.With("Put", "true").Observe(0.01)
	s.ApplySeconds.With("v3", "Put", "true").Observe(0.01)
	s.RangeSeconds.With("true").Observe(0.01)
	s.ClientRequests.With("unary", "3.7").Inc()
	s.StreamsFailed.With("receive", "watch").Inc()
	s.HealthCheck.With("readyz", "serializable_read").Set(1)
	s.HealthChecks.With("readyz", "serializable_read", "success").Inc()
	const other = "91bc3c398fb3c146"
	s.ActivePeers.With("8e9e05c52164694d", other).Set(1)
	for _, c := range []*CounterVec{
		&s.PeerSentBytes, &s.PeerReceivedBytes, &s.PeerSentFailures, &s.PeerReceivedFailures, &s.DisconnectedPeers,
		&s.SnapshotSends, &s.SnapshotSendFailures, &s.SnapshotReceives, &s.SnapshotReceiveFailures,
	} {
		c.With(other).Inc()
	}
	for _, g := range []*GaugeVec{&s.SnapshotSendsInFlight, &s.SnapshotReceivesInFlight} {
		g.With(other).Set(1)
	}
	for _, h := range []*HistogramVec{&s.PeerRTTSeconds, &s.SnapshotSendSeconds, &s.SnapshotReceiveSeconds} {
		h.With(other).Observe(0.01)
	}
	s.GRPC.Method("etcdserverpb.KV", "Put", "unary").Handled(codes.OK, 0.01)
	return s
}

func scrape(t *testing.T, s *Set) string {
	t.Helper()
	rec := httptest.NewRecorder()
	s.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if rec.Code != http.StatusOK {
		t.Fatalf("GET /metrics: %d\n%s", rec.Code, rec.Body)
	}
	return rec.Body.String()
}

// families reads Prometheus text into name → "type labels buckets".
func families(t *testing.T, sc *bufio.Scanner) map[string]string {
	t.Helper()
	type fam struct {
		kind            string
		labels, buckets map[string]bool
		order           []string
	}
	fams := make(map[string]*fam)
	var cur *fam
	for sc.Scan() {
		line := sc.Text()
		if f := strings.Fields(line); strings.HasPrefix(line, "# TYPE ") {
			cur = &fam{kind: f[3], labels: map[string]bool{}, buckets: map[string]bool{}}
			fams[f[2]] = cur
			continue
		}
		_, rest, ok := strings.Cut(line, "{")
		if strings.HasPrefix(line, "#") || !ok {
			continue
		}
		rest, _, _ = strings.Cut(rest, "}")
		for pair := range strings.SplitSeq(rest, ",") {
			name, value, _ := strings.Cut(pair, "=")
			switch {
			case name == "quantile":
			case name != "le":
				cur.labels[name] = true
			case !cur.buckets[value]:
				cur.buckets[value] = true
				cur.order = append(cur.order, strings.Trim(value, `"`))
			}
		}
	}
	if err := sc.Err(); err != nil {
		t.Fatal(err)
	}
	out := make(map[string]string)
	for name, f := range fams {
		s := f.kind
		if len(f.labels) > 0 {
			s += " " + strings.Join(slices.Sorted(maps.Keys(f.labels)), ",")
		}
		if len(f.order) > 0 {
			s += " " + strings.Join(f.order, " ")
		}
		out[name] = s
	}
	return out
}

func TestHistogram(t *testing.T) {
	s := New(false)
	for _, v := range []float64{0, 0.001, 0.0011, 0.5, 8.192, 100} {
		s.WALSyncSeconds.Observe(v)
	}
	text := scrape(t, s)
	for _, want := range []string{
		`etcd_disk_wal_fsync_duration_seconds_bucket{le="0.001"} 2`,
		`etcd_disk_wal_fsync_duration_seconds_bucket{le="0.002"} 3`,
		`etcd_disk_wal_fsync_duration_seconds_bucket{le="8.192"} 5`,
		`etcd_disk_wal_fsync_duration_seconds_bucket{le="+Inf"} 6`,
		`etcd_disk_wal_fsync_duration_seconds_sum 108.6941`,
		`etcd_disk_wal_fsync_duration_seconds_count 6`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("missing %q", want)
		}
	}
}

// A client chooses its API version, so it must not be able to grow a family for ever.
func TestLabelsAreBounded(t *testing.T) {
	s := New(false)
	for i := range 10 * childrenMax {
		s.ClientRequests.With("unary", fmt.Sprint("v", i)).Inc()
	}
	if n := len(s.ClientRequests.children); n > childrenMax+1 {
		t.Errorf("%d children, want at most %d", n, childrenMax+1)
	}
	if got, want := s.ClientRequests.With("unary", "unseen").Value(), uint64(9*childrenMax); got != want {
		t.Errorf("overflow counted %d, want %d", got, want)
	}
}

func TestGaugeReadsAtCollection(t *testing.T) {
	s := New(false)
	n := 7.0
	s.DBSize.Read(func() float64 { return n })
	n = 8
	if !strings.Contains(scrape(t, s), "\netcd_mvcc_db_total_size_in_bytes 8\n") {
		t.Error("gauge was not read at collection")
	}
}

func TestConcurrentUse(t *testing.T) {
	s := New(true)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 200 {
				s.Puts.Inc()
				s.ClientRequests.With("unary", fmt.Sprint(i)).Inc()
				s.WALSyncSeconds.Observe(0.5)
				s.GRPC.Method("s", fmt.Sprint(i%3), "unary").Handled(codes.Code(i), 1)
				s.Alarms.Clear()
			}
		})
	}
	for range 20 {
		scrape(t, s)
	}
	wg.Wait()
	text := scrape(t, s)
	for _, want := range []string{"etcd_mvcc_put_total 800", "etcd_disk_wal_fsync_duration_seconds_sum 400"} {
		if !strings.Contains(text, "\n"+want+"\n") {
			t.Errorf("missing %q", want)
		}
	}
}

func TestCountingAllocatesNothing(t *testing.T) {
	s := New(true)
	m := s.GRPC.Method("etcdserverpb.KV", "Put", "unary")
	n := testing.AllocsPerRun(100, func() {
		s.Puts.Inc()
		s.WALSyncSeconds.Observe(0.0001)
		s.ClientRequests.With("unary", "3.7").Inc()
		m.Started.Inc()
		m.Handled(codes.OK, 0.1)
	})
	if n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}

func BenchmarkObserve(b *testing.B) {
	s := New(true)
	for b.Loop() {
		s.WALSyncSeconds.Observe(0.0001)
	}
}
