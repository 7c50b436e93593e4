package cluster

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// sound is a small history that has nothing wrong with it, for tests that spoil it.
func sound() *record {
	const ms = time.Millisecond
	put1 := event{kv: &mvccpb.KeyValue{Key: []byte("r/k1"), Value: []byte("a"), CreateRevision: 10, ModRevision: 10, Version: 1}, at: 5 * ms}
	put2 := event{kv: &mvccpb.KeyValue{Key: []byte("r/k1"), Value: []byte("b"), CreateRevision: 10, ModRevision: 11, Version: 2}, at: 15 * ms}
	lease := event{kv: &mvccpb.KeyValue{Key: []byte("r/lease/0"), Value: []byte("-l"), CreateRevision: 12, ModRevision: 12, Version: 1, Lease: 7}, at: 20 * ms}
	del := event{kv: &mvccpb.KeyValue{Key: []byte("r/k1"), ModRevision: 13}, delete: true, at: 35 * ms}
	end := event{kv: &mvccpb.KeyValue{Key: []byte("r/lease/0"), ModRevision: 14}, delete: true, at: 50 * ms}
	doubt := event{kv: &mvccpb.KeyValue{Key: []byte("r/k1"), Value: []byte("d"), CreateRevision: 15, ModRevision: 15, Version: 1}, at: 60 * ms}
	all := []event{put1, put2, lease, del, end, doubt}
	b := proto.CloneOf(put2.kv)
	return &record{
		ops: []*op{
			{client: 1, action: put, keys: []string{"r/k1"}, values: []string{"a"}, call: 0, ret: 6 * ms, rev: 10},
			{client: 2, member: 1, action: swap, keys: []string{"r/k1"}, values: []string{"b"}, old: "a", call: 10 * ms, ret: 16 * ms, rev: 11, hit: true},
			{client: 1, action: get, keys: []string{"r/k1"}, call: 17 * ms, ret: 19 * ms, rev: 11, kvs: []*mvccpb.KeyValue{b}},
			{client: 2, action: swap, keys: []string{"r/k1"}, values: []string{"c"}, old: "a", call: 18 * ms, ret: 19 * ms, rev: 11, kvs: []*mvccpb.KeyValue{b}},
			{client: 1, action: remove, keys: []string{"r/k1"}, call: 30 * ms, ret: 36 * ms, rev: 13, hit: true},
			{client: 1, action: list, keys: []string{"r/k"}, call: 37 * ms, ret: 38 * ms, rev: 13},
			{client: 2, action: put, keys: []string{"r/k1"}, values: []string{"d"}, call: 40 * ms, ret: 45 * ms, err: errors.New("timed out")},
		},
		leases: []*tenancy{{key: "r/lease/0", id: 7, until: 45 * ms}},
		faults: []*fault{{name: "kill", members: []int{0}, majority: true, begin: 39 * ms, end: 46 * ms}},
		tapes:  []*tape{{who: "t0", from: 10, events: all}, {who: "t1", from: 10, events: append([]event(nil), all...)}},
		pieces: []*tape{{who: "p", from: 11, events: all[1:3]}},
	}
}

// TestCheckers spoils a sound history in every way that a check is there for.
func TestCheckers(t *testing.T) {
	if err := check(sound(), true); err != nil {
		t.Fatalf("a sound history: %v", err)
	}
	pictures = t.TempDir()
	t.Cleanup(func() { pictures = os.TempDir() })
	const ms = time.Millisecond
	change := func(r *record, i int, do func(e *event)) { // in every watch
		for _, t := range append(append([]*tape(nil), r.tapes...), r.pieces...) {
			for j := range t.events {
				if t.events[j].kv.ModRevision == int64(10+i) {
					t.events[j].kv = proto.CloneOf(t.events[j].kv)
					do(&t.events[j])
				}
			}
		}
	}
	drop := func(r *record, i int) {
		for _, t := range r.tapes {
			t.events = append(append([]event(nil), t.events[:i]...), t.events[i+1:]...)
		}
		r.pieces = nil
	}
	for _, test := range []struct {
		name, want string
		spoil      func(r *record)
	}{
		{"a watch with a gap", "watch:", func(r *record) { r.tapes[1].events = append(r.tapes[1].events[:2:2], r.tapes[1].events[3:]...) }},
		{"a watch that repeats", "watch:", func(r *record) { r.tapes[1].events = append(r.tapes[1].events[:2:2], r.tapes[1].events[1:]...) }},
		{"a watch that stops early", "watch:", func(r *record) { r.tapes[1].events = r.tapes[1].events[:4] }},
		{"a short watch with a gap", "watch:", func(r *record) { r.pieces[0].events = r.pieces[0].events[1:] }},
		{"a short watch that begins too early", "watch:", func(r *record) { r.pieces[0].from = 12 }},
		{"a watch that ended", "watch:", func(r *record) { r.tapes[0].err = errors.New("closed") }},
		{"an acknowledged write is lost", "lost:", func(r *record) { drop(r, 0) }},
		{"it has another value", "lost:", func(r *record) { change(r, 0, func(e *event) { e.kv.Value = []byte("x") }) }},
		{"nobody asked for it", "nobody:", func(r *record) { change(r, 0, func(e *event) { e.kv.Value = []byte("x") }) }},
		{"a wrong version", "fields:", func(r *record) { change(r, 1, func(e *event) { e.kv.Version = 3 }) }},
		{"a wrong revision of creation", "fields:", func(r *record) { change(r, 1, func(e *event) { e.kv.CreateRevision = 11 }) }},
		{"a deletion of nothing", "fields:", func(r *record) { drop(r, 0); drop(r, 0) }},
		{"a write in doubt happens twice", "twice:", func(r *record) {
			change(r, 1, func(e *event) { e.kv.Value = []byte("d") })
		}},
		{"a refused write happens", "refused:", func(r *record) { change(r, 5, func(e *event) { e.kv.Value = []byte("c") }) }},
		{"deleted more often than asked", "twice:", func(r *record) { r.ops[4].hit = false }},
		{"a stale read", "time:", func(r *record) { r.ops[2].rev, r.ops[2].kvs = 10, []*mvccpb.KeyValue{r.tapes[0].events[0].kv} }},
		{"a stale read that claims to be fresh", "answer:", func(r *record) { r.ops[2].kvs = []*mvccpb.KeyValue{r.tapes[0].events[0].kv} }},
		{"a stale read, as porcupine sees it", "linearizability:", func(r *record) { r.ops[2].kvs = []*mvccpb.KeyValue{r.tapes[0].events[0].kv} }},
		{"a swap of another value", "answer:", func(r *record) { r.ops[1].old = "z" }},
		{"the same for porcupine", "linearizability:", func(r *record) { r.ops[1].old = "z" }},
		{"a list with too much", "answer:", func(r *record) { r.ops[5].kvs = []*mvccpb.KeyValue{r.tapes[0].events[1].kv} }},
		{"a write before it was asked for", "time:", func(r *record) {
			r.ops[6].call, r.ops[6].ret = 70*ms, 71*ms
			r.ops[4].call, r.ops[4].ret, r.ops[4].rev = 62*ms, 63*ms, 16
			for _, t := range r.tapes {
				t.events[3].kv = &mvccpb.KeyValue{Key: []byte("r/k1"), ModRevision: 16}
			}
		}},
		{"a lease that ends early", "lease:", func(r *record) { r.leases[0].until = 60 * ms }},
		{"a lease that an answer does not know", "lease:", func(r *record) { r.leases[0].missed = "not found" }},
		{"the same, and a quorate was paused", "lease:", func(r *record) {
			r.faults = append(r.faults, &fault{name: "pause", majority: true, begin: 1 * ms, end: 2 * ms})
			r.leases[0].missed = "not found"
		}},
		{"a lease that never ends, though an etcd was paused", "lease:", func(r *record) {
			r.faults = append(r.faults, &fault{name: "pause", etcd: true, majority: true, begin: 1 * ms, end: 2 * ms})
			drop(r, 4)
		}},
		{"a lease that never ends", "lease:", func(r *record) { drop(r, 4) }},
		{"an error without a fault", "error:", func(r *record) { r.faults = nil }},
		{"an error at another member", "error:", func(r *record) { r.faults[0].members = []int{1} }},
		{"an error after the fault", "error:", func(r *record) { r.faults[0].end = 39 * ms }},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := sound()
			test.spoil(r)
			err := check(r, true)
			if err == nil || !strings.Contains("\n"+err.Error(), "\n"+test.want) {
				t.Errorf("want a finding %q, got:\n%v", test.want, err)
			}
		})
	}
	t.Run("a majority that is lost excuses everybody", func(t *testing.T) {
		r := sound()
		r.faults[0].members, r.faults[0].majority = []int{1}, false
		if err := check(r, true); err != nil {
			t.Error(err)
		}
	})
	t.Run("a revoked lease may end early", func(t *testing.T) {
		r := sound()
		r.leases[0].until, r.leases[0].revoked, r.leases[0].revoke = 90*ms, true, 40*ms
		if err := check(r, true); err != nil {
			t.Error(err)
		}
	})
	for _, name := range []string{"pause", "rejoin"} {
		t.Run("a lease may end early after the "+name+" of an etcd", func(t *testing.T) {
			r := sound()
			r.faults = append(r.faults, &fault{name: name, etcd: true, majority: true, begin: 1 * ms, end: 2 * ms})
			r.leases[0].until, r.leases[0].missed = 90*ms, "not found"
			if err := check(r, true); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("a write in doubt that never happened", func(t *testing.T) {
		r := sound()
		drop(r, 5)
		if err := check(r, true); err != nil {
			t.Error(err)
		}
	})
}
