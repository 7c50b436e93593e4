package metrics

import (
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

// codesMax is one more than the highest gRPC status code.
const codesMax = int(codes.Unauthenticated) + 1

// handlingBounds are the default buckets of Prometheus, which gRPC dashboards expect.
var handlingBounds = prometheus.DefBuckets

// GRPC counts calls by method, under the names that gRPC's Prometheus middleware gave
// them. Methods are made known once, before serving; counting a call is then atomic adds
// on the Method alone.
type GRPC struct {
	extensive bool

	mu      sync.Mutex
	methods []*Method
}

// Method counts the calls of one method.
type Method struct {
	labels   []string // type, service, method
	handling *Histogram

	Started          Counter
	MessagesReceived Counter
	MessagesSent     Counter
	handled          [codesMax]atomic.Uint64
}

// Handled counts a call that ended with code after so many seconds.
func (m *Method) Handled(code codes.Code, seconds float64) {
	if int(code) >= codesMax {
		code = codes.Unknown
	}
	m.handled[code].Add(1)
	if m.handling != nil {
		m.handling.Observe(seconds)
	}
}

// Method makes a method known and returns its counters. kind is unary, client_stream,
// server_stream or bidi_stream. Several servers of one member share the counters of a
// method.
func (g *GRPC) Method(service, method, kind string) *Method {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, m := range g.methods {
		if m.labels[1] == service && m.labels[2] == method {
			return m
		}
	}
	m := &Method{labels: []string{kind, service, method}}
	if g.extensive {
		m.handling = newHistogram(handlingBounds)
	}
	g.methods = append(g.methods, m)
	return m
}

var (
	grpcLabels   = []string{"grpc_type", "grpc_service", "grpc_method"}
	grpcStarted  = prometheus.NewDesc("grpc_server_started_total", "RPCs started.", grpcLabels, nil)
	grpcHandled  = prometheus.NewDesc("grpc_server_handled_total", "RPCs that ended, by status code.", append(grpcLabels[:3:3], "grpc_code"), nil)
	grpcReceived = prometheus.NewDesc("grpc_server_msg_received_total", "Messages received.", grpcLabels, nil)
	grpcSent     = prometheus.NewDesc("grpc_server_msg_sent_total", "Messages sent.", grpcLabels, nil)
	grpcHandling = prometheus.NewDesc("grpc_server_handling_seconds", "Time that RPCs took.", grpcLabels, nil)
)

// Describe implements prometheus.Collector.
func (g *GRPC) Describe(ch chan<- *prometheus.Desc) {
	ch <- grpcStarted
	ch <- grpcHandled
	ch <- grpcReceived
	ch <- grpcSent
	ch <- grpcHandling
}

// Collect implements prometheus.Collector.
func (g *GRPC) Collect(ch chan<- prometheus.Metric) {
	g.mu.Lock()
	methods := g.methods[:len(g.methods):len(g.methods)]
	g.mu.Unlock()
	for _, m := range methods {
		ch <- number(grpcStarted, prometheus.CounterValue, float64(m.Started.Value()), m.labels...)
		ch <- number(grpcReceived, prometheus.CounterValue, float64(m.MessagesReceived.Value()), m.labels...)
		ch <- number(grpcSent, prometheus.CounterValue, float64(m.MessagesSent.Value()), m.labels...)
		for code := range m.handled {
			n := m.handled[code].Load()
			ch <- number(grpcHandled, prometheus.CounterValue, float64(n), append(m.labels[:3:3], codes.Code(code).String())...)
		}
		if m.handling != nil {
			ch <- m.handling.metric(grpcHandling, m.labels...)
		}
	}
}
