package watch

import (
	"context"
	"fmt"
	"testing"

	"quorate/internal/kv"
	"quorate/internal/wire"
)

// still is a view of a store in which nothing moves but the revision.
type still struct{ rev *int64 }

func (v still) Rev() int64                                      { return *v.rev }
func (v still) CompactRev() int64                               { return -1 }
func (v still) Changes(_, _ int64, _ func(kv.Event) bool) error { return nil }
func (v still) Record([]byte, int64) (kv.Record, bool)          { return kv.Record{}, false }
func (v still) Release()                                        {}

// benchmarkPublish measures the whole way of an event of 256 bytes to its watchers:
// Publish, dispatch, and Next of each stream that it is for. It steps the hub itself, so
// that allocations are exact and no scheduler has a part in it.
func benchmarkPublish(b *testing.B, streams int, create func(i int) Create, readers int) {
	rev := int64(1)
	opts := newStore().options()
	opts.View = func() View { return still{&rev} }
	h := newHub(opts, defaultLimits)
	defer h.Close()
	ctx := context.Background()
	all := make([]*Stream, streams)
	for i := range all {
		all[i] = h.Stream()
		all[i].Create(create(i))
		if _, err := all[i].Next(ctx); err != nil {
			b.Fatal(err)
		}
	}
	value := make([]byte, 256)
	event := func(rev int64) kv.Event {
		key := []byte("/registry/pods/default/pod-0")
		k := wire.KeyValue{Key: key, Create: 2, Mod: rev, Version: 3, Value: value}
		e := kv.Event{Key: key}
		e.Rev.Main, e.KV = rev, wire.AppendKeyValue(nil, &k)
		return e
	}
	batch := make([]kv.Event, 1)
	b.ReportAllocs()
	for b.Loop() {
		rev++
		batch[0] = event(rev)
		h.Publish(batch, rev)
		h.dispatchPending()
		for _, s := range all[:readers] {
			if _, err := s.Next(ctx); err != nil {
				b.Fatal(err)
			}
		}
	}
}

func BenchmarkPublish(b *testing.B) {
	prefix := func(int) Create { return create("/registry/pods/", "/registry/pods0", 0) }
	prev := func(int) Create { c := prefix(0); c.PrevKV = true; return c }
	key := func(i int) Create { return create(fmt.Sprintf("/registry/pods/default/pod-%d", i), "", 0) }
	spans := func(i int) Create {
		return create(fmt.Sprintf("/registry/pods/default/pod-%d", i), fmt.Sprintf("/registry/pods/default/pod-%d\x00", i), 0)
	}
	for _, n := range []int{0, 1, 100, 1000} {
		b.Run(fmt.Sprintf("prefix/%d", n), func(b *testing.B) { benchmarkPublish(b, n, prefix, n) })
	}
	b.Run("prefix-prev/1000", func(b *testing.B) { benchmarkPublish(b, 1000, prev, 1000) })
	b.Run("one-of-keys/100000", func(b *testing.B) { benchmarkPublish(b, 100000, key, 1) })
	b.Run("one-of-spans/100000", func(b *testing.B) { benchmarkPublish(b, 100000, spans, 1) })
}

// BenchmarkCreate measures a watch's life on a stream that has n others.
func BenchmarkCreate(b *testing.B) {
	for _, n := range []int{1, 100000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			rev := int64(1)
			opts := newStore().options()
			opts.View = func() View { return still{&rev} }
			h := newHub(opts, defaultLimits)
			defer h.Close()
			s := h.Stream()
			cycle := func(id int64, cancel bool) {
				c := create(fmt.Sprintf("/registry/pods/default/pod-%d", id), "", 0)
				c.ID = id
				s.Create(c)
				if _, err := s.Next(context.Background()); err != nil {
					b.Fatal(err)
				}
				if cancel {
					s.Cancel(id)
					if _, err := s.Next(context.Background()); err != nil {
						b.Fatal(err)
					}
				}
			}
			for i := range n {
				cycle(int64(i)+1, false)
			}
			b.ReportAllocs()
			for b.Loop() {
				cycle(int64(n)+1, true)
			}
		})
	}
}
