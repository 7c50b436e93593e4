package rpc

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"time"

	"quorate/internal/kv"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// maintenance is etcdserverpb.Maintenance.
type maintenance struct {
	*services
	pb.UnsafeMaintenanceServer // a new method of the API must not go unnoticed
}

func (m maintenance) Status(ctx context.Context, _ *pb.StatusRequest) (*pb.StatusResponse, error) {
	if err := m.permitKnown(ctx); err != nil {
		return nil, err
	}
	st := m.opts.Status()
	total, inUse := m.Store().Size()
	r := &pb.StatusResponse{
		Header:           m.pbHeader(0),
		Version:          m.opts.Version,
		DbSize:           total,
		DbSizeInUse:      inUse,
		DbSizeQuota:      st.QuotaBytes,
		Leader:           st.Leader,
		RaftIndex:        st.Index,
		RaftAppliedIndex: st.Applied,
		RaftTerm:         st.Term,
		IsLearner:        st.IsLearner,
		StorageVersion:   st.StorageVersion,
		DowngradeInfo:    &pb.DowngradeInfo{},
	}
	if st.Leader == 0 {
		r.Errors = append(r.Errors, rpctypes.ErrNoLeader.Error())
	}
	for _, a := range st.Alarms {
		r.Errors = append(r.Errors, a.String())
	}
	return r, nil
}

func (m maintenance) Hash(ctx context.Context, _ *pb.HashRequest) (*pb.HashResponse, error) {
	if err := m.permitAdmin(ctx); err != nil {
		return nil, err
	}
	start := time.Now()
	h := m.pbHeader(0)
	sum, err := m.Store().Hash(ctx)
	if err != nil {
		return nil, err
	}
	m.met.HashSeconds.Since(start)
	return &pb.HashResponse{Header: h, Hash: sum}, nil
}

func (m maintenance) HashKV(ctx context.Context, r *pb.HashKVRequest) (*pb.HashKVResponse, error) {
	if err := m.permitAdmin(ctx); err != nil {
		return nil, err
	}
	start := time.Now()
	v := m.View()
	defer v.Release()
	sum, compacted, rev, err := v.HashKV(r.Revision)
	if err != nil {
		return nil, err
	}
	m.met.HashRevSeconds.Since(start)
	return &pb.HashKVResponse{Header: m.pbHeader(v.Rev()), Hash: sum, CompactRevision: compacted, HashRevision: rev}, nil
}

// Defragment's answer has no header, nor has MoveLeader's: etcd leaves them out.
func (m maintenance) Defragment(ctx context.Context, _ *pb.DefragmentRequest) (*pb.DefragmentResponse, error) {
	if err := m.permitAdmin(ctx); err != nil {
		return nil, err
	}
	start := time.Now()
	m.log.Info("starting defragment")
	m.met.DefragsInFlight.Add(1)
	defer m.met.DefragsInFlight.Add(-1)
	if err := m.Store().Defragment(ctx); err != nil {
		m.log.Warn("failed to defragment", "error", err)
		return nil, err
	}
	m.met.DefragSeconds.Since(start)
	m.log.Info("finished defragment", "took", time.Since(start).String())
	return &pb.DefragmentResponse{}, nil
}

// Alarm goes through the log whatever it asks, as with etcd.
func (m maintenance) Alarm(ctx context.Context, r *pb.AlarmRequest) (*pb.AlarmResponse, error) {
	permit := m.permitAdmin
	if r.Action == pb.AlarmRequest_GET {
		permit = m.permitKnown
	}
	if err := permit(ctx); err != nil {
		return nil, err
	}
	body, err := proto.Marshal(r)
	if err != nil {
		return nil, err
	}
	res, err := m.Propose(ctx, wire.FieldAlarm, body)
	if err = errors.Join(err, res.Err); err != nil {
		return nil, err
	}
	out := &pb.AlarmResponse{}
	if err := proto.Unmarshal(res.Body, out); err != nil {
		return nil, err
	}
	out.Header = m.pbHeader(res.Rev)
	return out, nil
}

func (m maintenance) MoveLeader(ctx context.Context, r *pb.MoveLeaderRequest) (*pb.MoveLeaderResponse, error) {
	if err := m.permitAdmin(ctx); err != nil {
		return nil, err
	}
	if m.MemberID() != m.Leader() {
		return nil, kv.ErrNotLeader
	}
	if err := m.Backend.MoveLeader(ctx, r.TargetID); err != nil {
		return nil, err
	}
	return &pb.MoveLeaderResponse{}, nil
}

// Downgrade validates as etcd does. To enable one is refused as not supported: no part
// of the member would carry it out yet. To cancel one when there is none is etcd's
// silent success.
func (m maintenance) Downgrade(ctx context.Context, r *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	if err := m.permitAdmin(ctx); err != nil {
		return nil, err
	}
	at := m.opts.Status().ClusterVersion
	switch r.Action {
	case pb.DowngradeRequest_VALIDATE, pb.DowngradeRequest_ENABLE:
		target, err := parseTarget(r.Version)
		if err != nil {
			return nil, err
		}
		now, err := membership.ParseVersion(at)
		if err != nil {
			return nil, rpctypes.ErrGRPCClusterVersionUnavailable
		}
		if err := m.ReadIndex(ctx); err != nil {
			return nil, err
		}
		if target.Major != now.Major || target.Minor != now.Minor-1 {
			return nil, rpctypes.ErrGRPCInvalidDowngradeTargetVersion
		}
		if r.Action == pb.DowngradeRequest_ENABLE {
			return nil, kv.ErrNotSupported
		}
	case pb.DowngradeRequest_CANCEL:
	default:
		return nil, errUnknownMethod
	}
	return &pb.DowngradeResponse{Header: m.pbHeader(0), Version: clusterVersion(at)}, nil
}

var errUnknownMethod = errors.New("etcdserver: unknown method")

// parseTarget reads "3.6" or "3.6.0".
func parseTarget(s string) (membership.Version, error) {
	if strings.Count(s, ".") == 1 {
		s += ".0"
	}
	v, err := membership.ParseVersion(s)
	if err != nil {
		return v, rpctypes.ErrGRPCWrongDowngradeVersionFormat
	}
	return v.MinorOnly(), nil
}

// clusterVersion is a cluster version as etcd shows it: major and minor.
func clusterVersion(s string) string {
	v, err := membership.ParseVersion(s)
	if err != nil {
		return s
	}
	return v.Short()
}

// snapshotBlob is how much of the file one message of a Snapshot holds, in bytes.
// Clients expect the trailer in a message of its own.
const snapshotBlob = 32 << 10

// Snapshot sends the file as it is now, and the SHA-256 of all that was sent.
func (m maintenance) Snapshot(_ *pb.SnapshotRequest, stream grpc.ServerStreamingServer[pb.SnapshotResponse]) error {
	start := time.Now()
	ctx := stream.Context()
	if err := m.permitAdmin(ctx); err != nil {
		return err
	}
	snap, err := m.Store().Snapshot(ctx)
	if err != nil {
		return err
	}
	w := &snapshotWriter{stream: stream, pace: m.snapshotPace, version: m.opts.Status().StorageVersion, left: snap.Size}
	w.reply.account = accountOf(ctx, m.otherAccount)
	m.log.Info("sending database snapshot to client", "total-bytes", snap.Size, "storage-version", w.version)
	if err := w.sendAtPace(snap); err != nil {
		return err
	}
	m.met.SnapshotSeconds.Since(start)
	m.log.Info("successfully sent database snapshot to client", "total-bytes", snap.Size, "took", time.Since(start).String())
	return nil
}

// snapshotWriter cuts what is written to it into messages.
type snapshotWriter struct {
	stream  grpc.ServerStream
	version string
	left    int64 // bytes of the file yet to be sent
	reply   reply
	blob    []byte       // of the next message
	sent    atomic.Int64 // bytes

	pace time.Duration // how often snapshotPaceBytes must have been read
}

// While a snapshot is sent the file cannot reuse pages that are replaced, and grows. So a
// client has to read some of it all the time.
const (
	snapshotPaceEvery = time.Minute
	snapshotPaceBytes = 1 << 20
)

// sendAtPace is send, but ends with kv.ErrTimeout when the client reads too slowly. Then
// the goroutine that sends ends with the stream, when the handler has returned.
func (w *snapshotWriter) sendAtPace(snap *mvcc.Snapshot) error {
	ended := make(chan error, 1)
	go func() {
		err := w.send(snap)
		ended <- errors.Join(err, snap.Close())
	}()
	pace := time.NewTicker(w.pace)
	defer pace.Stop()
	for before := int64(0); ; {
		select {
		case err := <-ended:
			return err
		case <-w.stream.Context().Done():
			return w.stream.Context().Err()
		case <-pace.C:
		}
		now := w.sent.Load()
		if now-before < snapshotPaceBytes {
			return kv.ErrTimeout
		}
		before = now
	}
}

// send sends all of snap and the trailer.
func (w *snapshotWriter) send(snap io.WriterTo) error {
	sum := sha256.New()
	if _, err := snap.WriteTo(io.MultiWriter(sum, w)); err != nil {
		return err
	}
	if err := w.flush(); err != nil {
		return err
	}
	if w.left != 0 {
		return fmt.Errorf("snapshot ended %d bytes early", w.left)
	}
	w.blob = sum.Sum(nil)
	w.left = int64(len(w.blob)) // the trailer does not count
	return w.flush()
}

// Write implements io.Writer; it blocks while the client does not read.
func (w *snapshotWriter) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		if w.blob == nil {
			w.blob = make([]byte, 0, snapshotBlob)
		}
		k := min(len(b), snapshotBlob-len(w.blob))
		w.blob = append(w.blob, b[:k]...)
		b = b[k:]
		n += k
		if len(w.blob) == snapshotBlob {
			if err := w.flush(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// flush sends the blob, if there is one, in a SnapshotResponse.
func (w *snapshotWriter) flush() error {
	if len(w.blob) == 0 {
		return nil
	}
	w.left -= int64(len(w.blob))
	w.sent.Add(int64(len(w.blob)))
	r := &w.reply
	r.reset(w.stream.Context(), r.account)
	b := r.room(headerMax + len(w.version))
	// The blob comes last, so that it need not be copied.
	if w.left > 0 {
		b = binary.AppendUvarint(append(b, 2<<3), uint64(w.left))
	}
	b = binary.AppendUvarint(append(b, 4<<3|2), uint64(len(w.version)))
	b = append(b, w.version...)
	b = binary.AppendUvarint(append(b, 3<<3|2), uint64(len(w.blob)))
	r.cur = b
	r.body(w.blob)
	w.blob = nil
	if r.err != nil {
		return r.err
	}
	return w.stream.SendMsg(r)
}
