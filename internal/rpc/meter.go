package rpc

import (
	"bytes"
	"time"

	"quorate/internal/kv"
	"quorate/internal/metrics"
	"quorate/internal/wire"

	"google.golang.org/protobuf/encoding/protowire"
)

// meter counts reads and the responses of watches. Its histograms are looked up once, so
// that to observe is a few atomic adds.
type meter struct {
	met           *metrics.Set
	rangeRequests outcomes // calls of Range, with the wait for their read index
	readTxns      outcomes // calls of Txn that only read, likewise
	ranges        outcomes // the reading of a Range, or of one piece of a RangeStream
}

func newMeter(met *metrics.Set) meter {
	return meter{
		met:           met,
		rangeRequests: outcomes{met.RequestSeconds.With("Range", "true"), met.RequestSeconds.With("Range", "false")},
		readTxns:      outcomes{met.RequestSeconds.With("ReadonlyTxn", "true"), met.RequestSeconds.With("ReadonlyTxn", "false")},
		ranges:        outcomes{met.RangeSeconds.With("true"), met.RangeSeconds.With("false")},
	}
}

// outcomes are the histograms of one thing that may fail.
type outcomes struct{ good, bad *metrics.Histogram }

// observe notes what began at start and ended with err now.
func (o outcomes) observe(start time.Time, err error) {
	if err != nil {
		o.bad.Since(start)
		return
	}
	o.good.Since(start)
}

// ranged notes a range read outside of transactions. Like etcd it counts those that fail
// as well.
func (m *meter) ranged(start time.Time, err error) {
	m.met.Ranges.Inc()
	m.ranges.observe(start, err)
}

// succeeded begins the body of the answer to a transaction whose comparisons hold.
var succeeded = wire.AppendSucceeded(nil, true)

// readTxn notes a call of t, which only reads: body is what came of it, if err is nil.
func (m *meter) readTxn(t *kv.Txn, body []byte, start time.Time, err error) {
	m.readTxns.observe(start, err)
	if err != nil {
		return
	}
	ranges := len(t.Failure)
	if bytes.HasPrefix(body, succeeded) {
		ranges = len(t.Success)
	}
	m.met.Ranges.Add(uint64(ranges))
	if ranges > 1 {
		m.met.Txns.Inc()
	}
}

// Fields of WatchResponse that tell what a response is.
const (
	watchCreated  = 3
	watchCanceled = 4
	watchEvents   = 11
)

// watchSent notes that sending a response took so long. Which kind it is of is read from
// its wire form. etcd counts progress and compacted watches among the responses with
// events, dividing by none of them; here each kind stands for itself.
func (m *meter) watchSent(frame [][]byte, took time.Duration) {
	seconds := took.Seconds()
	events, control := inspectWatch(frame)
	switch {
	case events > 0:
		m.met.WatchSendSeconds.Observe(seconds)
		m.met.WatchSendSecondsPerEvent.Observe(seconds / float64(events))
	case control:
		m.met.WatchControlSeconds.Observe(seconds)
	default:
		m.met.WatchProgressSeconds.Observe(seconds)
	}
}

// inspectWatch counts the events of a WatchResponse, no field of which lies across two
// parts, and says whether it creates or cancels a watch.
func inspectWatch(frame [][]byte) (events int, control bool) {
	for _, b := range frame {
		for len(b) > 0 {
			field, kind, n := protowire.ConsumeTag(b)
			if n < 0 {
				break
			}
			size := protowire.ConsumeFieldValue(field, kind, b[n:])
			if size < 0 {
				break
			}
			b = b[n+size:]
			switch field {
			case watchCreated, watchCanceled:
				control = true
			case watchEvents:
				events++
			}
		}
	}
	return events, control
}
