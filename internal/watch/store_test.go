package watch

import (
	"bytes"
	"fmt"
	"sync"

	"quorate/internal/kv"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// store is the naive twin of the store: all changes ever made, in a slice.
type store struct {
	mu      sync.Mutex
	changes []kv.Event
	rev     int64
	compact int64
	views   int    // not released
	reads   int    // changes that views have handed out
	during  func() // called while history is read, if not nil
}

func newStore() *store { return &store{rev: 1, compact: -1} }

// op is one change: a put of key, or a deletion.
type op struct {
	key    string
	value  string
	delete bool
}

// apply makes ops one revision and returns its events.
func (s *store) apply(ops ...op) []kv.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rev++
	var made []kv.Event
	for i, o := range ops {
		prev, had := s.at([]byte(o.key), s.rev-1)
		had = had && !prev.Tombstone
		k := wire.KeyValue{Key: []byte(o.key), Create: s.rev, Mod: s.rev, Version: 1, Value: []byte(o.value)}
		ev := kv.Event{Key: []byte(o.key)}
		ev.Rev = kv.Revision{Main: s.rev, Sub: int64(i)}
		if had {
			p, err := wire.DecodeKeyValue(prev.KV)
			if err != nil {
				panic(err)
			}
			k.Create, k.Version = p.Create, p.Version+1
			ev.Prev = prev.Rev
		}
		if o.delete {
			ev.Tombstone = true
			k = wire.KeyValue{Key: []byte(o.key)}
		}
		ev.KV = wire.AppendKeyValue(nil, &k)
		made = append(made, ev)
	}
	s.changes = append(s.changes, made...)
	return made
}

// at is the last change of key up to rev.
func (s *store) at(key []byte, rev int64) (kv.Record, bool) {
	for i := len(s.changes) - 1; i >= 0; i-- {
		if e := &s.changes[i]; e.Rev.Main <= rev && bytes.Equal(e.Key, key) {
			return e.Record, true
		}
	}
	return kv.Record{}, false
}

func (s *store) view() View {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.views++
	return &storeView{s: s, rev: s.rev, compact: s.compact, changes: s.changes}
}

type storeView struct {
	s            *store
	rev, compact int64
	changes      []kv.Event
}

func (v *storeView) Rev() int64        { return v.rev }
func (v *storeView) CompactRev() int64 { return v.compact }

func (v *storeView) Release() {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	v.s.views--
	v.changes = nil
}

func (v *storeView) Changes(lo, hi int64, fn func(kv.Event) bool) error {
	if lo < v.compact {
		return kv.ErrCompacted
	}
	if v.s.during != nil {
		v.s.during()
	}
	for _, e := range v.changes {
		if e.Rev.Main < lo || e.Rev.Main > hi {
			continue
		}
		v.s.mu.Lock()
		v.s.reads++
		v.s.mu.Unlock()
		e.Prev = kv.Revision{}
		if !fn(e) {
			break
		}
	}
	return nil
}

func (v *storeView) Record(key []byte, rev int64) (kv.Record, bool) {
	if rev < v.compact {
		panic(fmt.Sprintf("record at %d read below the compacted revision %d", rev, v.compact))
	}
	s := store{changes: v.changes}
	return s.at(key, rev)
}

func (s *store) options() Options {
	return Options{
		View: s.view,
		AppendHeader: func(b []byte, rev int64) []byte {
			return wire.AppendHeader(b, &wire.Header{ClusterID: 7, MemberID: 8, Revision: rev, Term: 9})
		},
		ProgressInterval: 1e9,
		FragmentBytes:    1 << 20,
	}
}

// decode is a response from its parts.
func decode(parts [][]byte) *pb.WatchResponse {
	r := new(pb.WatchResponse)
	if err := proto.Unmarshal(bytes.Join(parts, nil), r); err != nil {
		panic(err)
	}
	return r
}

func (s *store) revision() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rev
}
