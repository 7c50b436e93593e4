// Package watch sends every change to the watchers that asked for it: from any revision
// on, in order, without a gap or a repeat, however slow they read.
//
// The hub gets each batch of events once, from the applier, after the view that holds
// them was published. An event is encoded once for all watchers that see it. Each stream
// has a bounded queue; when it is full the stream's watchers leave the live set and read
// history from the store's views, at their client's pace, until they have caught up.
package watch

import (
	"context"
	"time"

	"quorate/internal/kv"
	"quorate/internal/mvcc"
)

// Options configure a Hub.
type Options struct {
	// View returns the store's newest view; the hub releases it.
	View func() *mvcc.View
	// AppendHeader appends the wire form of the ResponseHeader fields for revision rev.
	AppendHeader func(b []byte, rev int64) []byte
	// ProgressInterval is --watch-progress-notify-interval.
	ProgressInterval time.Duration
	// FragmentBytes is the size above which a response is split for a watcher that
	// allows it: max-request-bytes and overhead.
	FragmentBytes int
}

// Hub owns all watchers of a member.
type Hub struct{}

// New starts a hub; Close ends it and all its streams.
func New(opts Options) *Hub { panic("unbuilt") }
func (h *Hub) Close()       { panic("unbuilt") }

// Publish gives the hub the events of one applied batch, in revision order, and the
// store's revision after it. It does not block and does not keep the slice; the events'
// bytes it may keep as long as it needs them.
func (h *Hub) Publish(events []kv.Event, rev int64) { panic("unbuilt") }

// Create is a WatchCreateRequest.
type Create struct {
	kv.Span
	ID       int64 // 0: the stream picks one
	Start    int64 // first revision wanted; 0: from now on
	PrevKV   bool
	Progress bool
	Fragment bool
	NoPut    bool
	NoDelete bool
}

// Stream is one client's Watch call.
type Stream struct{}

// Stream opens a stream; Close ends it.
func (h *Hub) Stream() *Stream { panic("unbuilt") }
func (s *Stream) Close()       { panic("unbuilt") }

// Create, Cancel and Progress are the client's three requests; their answers come from Next.
func (s *Stream) Create(c Create) { panic("unbuilt") }
func (s *Stream) Cancel(id int64) { panic("unbuilt") }
func (s *Stream) Progress()       { panic("unbuilt") }

// Next returns the next WatchResponse in wire form, as parts to be sent one after the
// other as one message. The parts are shared and must not be changed.
func (s *Stream) Next(ctx context.Context) ([][]byte, error) { panic("unbuilt") }
