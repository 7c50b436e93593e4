package rpc

import (
	"bytes"
	"context"

	"quorate/internal/kv"
	"quorate/internal/watch"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// watchSpan is what the services themselves watch: the changes of a span from revision
// start on, or only the deletions.
type watchSpan struct {
	span        kv.Span
	start       int64
	onlyDeletes bool
}

// keysWatch delivers the changes of some spans. Close ends it.
type keysWatch struct{ *watch.Stream }

func (s *services) watchKeys(spans ...watchSpan) keysWatch {
	w := keysWatch{s.Backend.Watch().Stream()}
	for _, sp := range spans {
		w.Create(watch.Create{Span: sp.span, Start: sp.start, NoPut: sp.onlyDeletes})
	}
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
