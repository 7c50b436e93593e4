package rpc

import (
	"bytes"
	"context"

	"quorate/internal/kv"
	"quorate/internal/watch"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// keysWatch is a watch of the services themselves: it delivers the changes of a span.
// Close ends it.
type keysWatch struct{ *watch.Stream }

// watchKeys watches span from revision start on.
func (s *services) watchKeys(span kv.Span, start int64) keysWatch {
	w := keysWatch{s.Backend.Watch().Stream()}
	w.Create(watch.Create{Span: span, Start: start, Own: true})
	return w
}

// next returns a response with events; or one without, if the revision that it would go on
// from was compacted. Its errors are why ctx ended, and kv.ErrStopped.
func (w keysWatch) next(ctx context.Context) (*pb.WatchResponse, error) {
	for {
		frame, err := w.Next(ctx)
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return nil, err
		}
		var r pb.WatchResponse
		if err := proto.Unmarshal(bytes.Join(frame, nil), &r); err != nil {
			return nil, err
		}
		if len(r.Events) > 0 || r.Canceled {
			return &r, nil
		}
	}
}
