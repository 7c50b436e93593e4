package auth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/status"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// watchWithin bounds the wait for what a watch is about to tell.
const watchWithin = 10 * time.Second

// never is longer than any wait.
const never = time.Hour

// streamEnded begins the answer of a stream that is no more.
const streamEnded = "the stream has ended: "

// watchesMax bounds the streams of watches that are open at a time.
const watchesMax = 4

// A watchStream is an open stream of one server and what it has told.
type watchStream struct {
	stream pb.Watch_WatchClient
	cancel context.CancelFunc
	told   chan *pb.WatchResponse
	end    error // set when told is closed

	live   int      // watches that have been created and not cancelled
	events []string // not yet compared
}

// openWatch opens a stream in the name of a session.
func (s *side) openWatch(as *session) (*watchStream, error) {
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := pb.NewWatchClient(s.conn).Watch(s.with(ctx, as))
	if err != nil {
		cancel()
		return nil, err
	}
	w := &watchStream{stream: stream, cancel: cancel, told: make(chan *pb.WatchResponse)}
	go func() {
		defer close(w.told)
		for {
			resp, err := stream.Recv()
			if err != nil {
				w.end = err
				return
			}
			select {
			case w.told <- resp:
			case <-ctx.Done():
				w.end = ctx.Err()
				return
			}
		}
	}()
	return w, nil
}

// close ends the stream and waits until its reader is gone.
func (w *watchStream) close() {
	w.cancel()
	for range w.told {
	}
}

// ask sends a request, again and again unless that is never, and returns the first answer that wanted
// accepts, or how the stream ended. Events on the way are kept.
func (w *watchStream) ask(req *pb.WatchRequest, again time.Duration, wanted func(*pb.WatchResponse) bool) (string, error) {
	ticker := time.NewTicker(again)
	defer ticker.Stop()
	if err := w.stream.Send(req); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	timeout := time.After(watchWithin)
	for {
		select {
		case resp, ok := <-w.told:
			switch {
			case !ok:
				st := status.Convert(w.end)
				return fmt.Sprintf(streamEnded+"%v %q", st.Code(), st.Message()), nil
			case wanted(resp):
				if resp.Created && !resp.Canceled {
					w.live++
				}
				return text(resp), nil
			}
			for _, e := range resp.Events {
				w.events = append(w.events, fmt.Sprintf("watch %d: %s", resp.WatchId, text(e)))
			}
			if resp.Canceled {
				w.events = append(w.events, "cancelled: "+text(resp))
				if w.live--; w.live == 0 && again != never {
					return "no watch is left", nil // and so nobody to tell of progress
				}
			}
		case <-ticker.C:
			_ = w.stream.Send(req) // if the stream has ended, told says so
		case <-timeout:
			return "", fmt.Errorf("no answer to %v within %v", text(req), watchWithin)
		}
	}
}

// onWatches does the same with a stream of either side, and compares the answers.
func (r *run) onWatches(what string, i int, do func(w *watchStream) (string, error)) (string, error) {
	var answers [2]string
	for k, s := range r.sides {
		var err error
		if answers[k], err = do(s.watch[i]); err != nil {
			return "", fmt.Errorf("%v: %s: %w", s.server.Kind, what, err)
		}
	}
	r.logf("%s\n    %s", what, answers[0])
	if answers[0] != answers[1] {
		return "", fmt.Errorf("%w%s\n  want %s\n  got  %s", errDiffer, what, answers[0], answers[1])
	}
	r.agreed++
	return answers[0], nil
}

// watchStep opens a stream, or asks an open one for a watch more, for what it has seen, or for an end.
func (r *run) watchStep(g *gen) error {
	n := len(r.sides[0].watch)
	if n == 0 || n < watchesMax && g.one(3) {
		as := g.somebody(2)
		for _, s := range r.sides {
			w, err := s.openWatch(as)
			if err != nil {
				return fmt.Errorf("%v: open a watch: %w", s.server.Kind, err)
			}
			s.watch = append(s.watch, w)
		}
		r.logf("%v: opens watch stream %d", as, n)
		return r.createWatch(g, n)
	}
	i := g.IntN(n)
	switch g.IntN(4) {
	case 0:
		return r.createWatch(g, i)
	case 1:
		return r.dropWatch(i)
	}
	return r.catchUp(i)
}

func (r *run) createWatch(g *gen, i int) error {
	key, end := g.keyRange()
	create := &pb.WatchCreateRequest{Key: key, RangeEnd: end, PrevKv: g.one(2)}
	if g.one(3) {
		// An etcd tells no progress on a stream on which a watch was cancelled for a compaction.
		create.StartRevision = max(1, r.compacted+1, r.rev-int64(g.IntN(10)))
	}
	req := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}
	answer, err := r.onWatches(fmt.Sprintf("watch stream %d: %s", i, text(req)), i, func(w *watchStream) (string, error) {
		return w.ask(req, never, func(resp *pb.WatchResponse) bool { return resp.Created })
	})
	if err == nil && strings.HasPrefix(answer, streamEnded) {
		return r.dropWatch(i)
	}
	return err
}

// catchUp waits until both sides have told all up to now, and compares it.
func (r *run) catchUp(i int) error {
	if r.sides[0].watch[i].live == 0 {
		return nil
	}
	_, err := r.onWatches(fmt.Sprintf("watch stream %d catches up", i), i, func(w *watchStream) (string, error) {
		// Progress that cannot be told at once, since a watch has not caught up, is not told later either.
		req := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
		answer, err := w.ask(req, 100*time.Millisecond, func(resp *pb.WatchResponse) bool {
			return resp.WatchId == -1 && resp.Header.GetRevision() >= r.rev
		})
		if err == nil && w.live > 0 && !strings.HasPrefix(answer, streamEnded) {
			answer = "progress"
		}
		slices.Sort(w.events)
		return fmt.Sprintf("%s\n    %q", answer, w.events), err
	})
	for _, s := range r.sides {
		s.watch[i].events = nil
	}
	return err
}

// dropWatch closes a stream.
func (r *run) dropWatch(i int) error {
	for _, s := range r.sides {
		s.watch[i].close()
		s.watch = slices.Delete(s.watch, i, i+1)
	}
	r.logf("watch stream %d is closed", i)
	return nil
}
