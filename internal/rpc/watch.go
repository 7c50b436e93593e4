package rpc

import (
	"context"
	"errors"
	"io"
	"time"

	"quorate/internal/auth"
	"quorate/internal/kv"
	"quorate/internal/watch"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// watchService is etcdserverpb.Watch: it carries a client's requests to a stream of the
// hub, and the stream's responses, which are in wire form already, to the client.
type watchService struct {
	pb.UnsafeWatchServer
	*services
}

func newWatch(s *services) pb.WatchServer { return &watchService{services: s} }

// Watch serves one call. It sends; a second goroutine receives, and ends when gRPC
// closes the stream after Watch has returned.
//
// A client that closes its sending side keeps its watches, as with etcd.
func (ws *watchService) Watch(call pb.Watch_WatchServer) error {
	ctx := call.Context()
	stream := ws.Backend.Watch().Stream()
	// Also lets go a request that waits for room among the answers.
	defer stream.Close()
	received := make(chan error, 1)
	go func() {
		if err := ws.receiveWatches(call, stream); err != nil {
			ws.countFailure(ctx, "receive", err)
			received <- err
			stream.Close() // ends Next
		}
	}()
	for ctx.Err() == nil {
		frame, err := stream.Next(ctx)
		if err != nil {
			return watchError(ctx, received, err)
		}
		start := time.Now()
		if err := call.SendMsg(Frame(frame)); err != nil {
			ws.countFailure(ctx, "send", err)
			return watchError(ctx, received, err)
		}
		ws.meter.watchSent(frame, time.Since(start))
	}
	return watchError(ctx, received, ctx.Err())
}

// countFailure counts a stream that broke, unless it was the client that ended it.
func (ws *watchService) countFailure(ctx context.Context, what string, err error) {
	if c := status.Code(err); ctx.Err() == nil && c != codes.Canceled && c != codes.DeadlineExceeded {
		ws.met.StreamsFailed.With(what, "watch").Inc()
	}
}

// watchError chooses what a call ended by err is answered with: what receiving failed
// with, if it was that, and etcd's word for a client that went away.
func watchError(ctx context.Context, received <-chan error, err error) error {
	select {
	case err = <-received:
	default:
	}
	if errors.Is(err, context.Canceled) || errors.Is(ctx.Err(), context.Canceled) {
		return rpctypes.ErrGRPCWatchCanceled
	}
	return err
}

// receiveWatches carries out the client's requests until it sends no more. A request of
// no known kind is passed over.
func (ws *watchService) receiveWatches(call pb.Watch_WatchServer, stream *watch.Stream) error {
	for {
		req, err := call.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		switch r := req.RequestUnion.(type) {
		case *pb.WatchRequest_CreateRequest:
			c := watchCreate(r.CreateRequest)
			if reason := ws.refusal(call.Context(), c); reason != "" {
				stream.Refuse(reason)
				continue
			}
			stream.Create(c)
		case *pb.WatchRequest_CancelRequest:
			stream.Cancel(r.CancelRequest.GetWatchId())
		case *pb.WatchRequest_ProgressRequest:
			stream.Progress()
		}
	}
}

// refusal is why the client may not watch what c says, "" if it may. A watch goes on when
// the right to it is taken away later, as with etcd.
func (ws *watchService) refusal(ctx context.Context, c watch.Create) string {
	if c.Start < 0 || !ws.Auth().Enabled() {
		return "" // the hub has a better reason, or there is none
	}
	if len(c.Key) == 0 {
		c.Key = []byte{0}
	}
	_, err := ws.permitRead(ctx, c.Span)
	switch {
	case err == nil:
		return ""
	case errors.Is(err, auth.ErrInvalidToken), errors.Is(err, auth.ErrOldRevision), errors.Is(err, auth.ErrUserEmpty):
		return toWire(err).Error()
	}
	return rpctypes.ErrGRPCPermissionDenied.Error()
}

// watchCreate is r in the hub's terms. Filters of no known kind are passed over.
func watchCreate(r *pb.WatchCreateRequest) watch.Create {
	c := watch.Create{
		Span:     kv.Span{Key: r.GetKey(), End: r.GetRangeEnd()},
		ID:       r.GetWatchId(),
		Start:    r.GetStartRevision(),
		PrevKV:   r.GetPrevKv(),
		Progress: r.GetProgressNotify(),
		Fragment: r.GetFragment(),
	}
	for _, f := range r.GetFilters() {
		switch f {
		case pb.WatchCreateRequest_NOPUT:
			c.NoPut = true
		case pb.WatchCreateRequest_NODELETE:
			c.NoDelete = true
		}
	}
	return c
}
