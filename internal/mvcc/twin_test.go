package mvcc

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"hash/crc32"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"quorate/internal/kv"
)

var (
	twinTime = flag.Duration("twin", 3*time.Second, "how long the twin test runs")
	twinSeed = flag.Uint64("seed", 0, "seed of the twin test; 0: random")
)

// twin is the store as a list of all changes ever made. It is etcd's rules as plainly as
// they can be written down.
type twin struct {
	changes    []change
	rev        int64
	compactRev int64
}

type change struct {
	rev  kv.Revision
	dead bool
	kv   *mvccpb.KeyValue
}

func newTwin() *twin { return &twin{rev: 1, compactRev: -1} }

// clone is the twin as it is now; changes are only ever added.
func (t *twin) clone() *twin {
	c := *t
	c.changes = c.changes[:len(c.changes):len(c.changes)]
	return &c
}

// at returns each key's newest change at or below rev, by key.
func (t *twin) at(rev int64) map[string]change {
	m := make(map[string]change)
	for _, c := range t.changes {
		if c.rev.Main <= rev {
			m[string(c.kv.Key)] = c
		}
	}
	return m
}

// live returns the keys of span that are live at rev, in order.
func (t *twin) live(span kv.Span, rev int64) []*mvccpb.KeyValue {
	var list []*mvccpb.KeyValue
	for _, c := range t.at(rev) {
		if !c.dead && span.Contains(c.kv.Key) {
			list = append(list, c.kv)
		}
	}
	slices.SortFunc(list, func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) })
	return list
}

func (t *twin) put(rev kv.Revision, key, value string, lease int64) (old int64) {
	k := &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), Lease: lease, ModRevision: rev.Main, CreateRevision: rev.Main, Version: 1}
	if prev, ok := t.at(rev.Main)[key]; ok && !prev.dead {
		k.CreateRevision, k.Version = prev.kv.CreateRevision, prev.kv.Version+1
		old = prev.kv.Lease
	}
	t.changes = append(t.changes, change{rev: rev, kv: k})
	return old
}

// read is etcd's executeRange.
func (t *twin) read(r *kv.Range) (kvs []*mvccpb.KeyValue, found Found, err error) {
	rev := r.Revision
	if rev > t.rev {
		return nil, Found{}, kv.ErrFutureRevision
	}
	if rev <= 0 {
		rev = t.rev
	}
	if rev < t.compactRev {
		return nil, Found{}, kv.ErrCompacted
	}
	kvs = t.live(r.Span, rev)
	found.Count = int64(len(kvs))
	if r.CountOnly {
		return nil, found, nil
	}
	isDefault := r.SortOrder == kv.SortNone || r.SortTarget == kv.SortByKey && r.SortOrder == kv.SortAscend
	if fetch := r.Limit; fetch > 0 && isDefault && !r.Filtered() {
		if fetch < math.MaxInt64 {
			fetch++
		}
		kvs = kvs[:min(fetch, int64(len(kvs)))]
	}
	kvs = slices.DeleteFunc(slices.Clone(kvs), func(k *mvccpb.KeyValue) bool {
		return r.MaxMod != 0 && k.ModRevision > r.MaxMod || r.MinMod != 0 && k.ModRevision < r.MinMod ||
			r.MaxCreate != 0 && k.CreateRevision > r.MaxCreate || r.MinCreate != 0 && k.CreateRevision < r.MinCreate
	})
	order := r.SortOrder
	if r.SortTarget != kv.SortByKey && order == kv.SortNone {
		order = kv.SortAscend
	}
	by := &byField{kvs, map[kv.SortTarget]func(a, b *mvccpb.KeyValue) bool{
		kv.SortByKey:     func(a, b *mvccpb.KeyValue) bool { return bytes.Compare(a.Key, b.Key) < 0 },
		kv.SortByVersion: func(a, b *mvccpb.KeyValue) bool { return a.Version < b.Version },
		kv.SortByCreate:  func(a, b *mvccpb.KeyValue) bool { return a.CreateRevision < b.CreateRevision },
		kv.SortByMod:     func(a, b *mvccpb.KeyValue) bool { return a.ModRevision < b.ModRevision },
		kv.SortByValue:   func(a, b *mvccpb.KeyValue) bool { return bytes.Compare(a.Value, b.Value) < 0 },
	}[r.SortTarget]}
	switch order {
	case kv.SortAscend:
		sort.Sort(by)
	case kv.SortDescend:
		sort.Sort(sort.Reverse(by))
	}
	if r.Limit > 0 && int64(len(kvs)) > r.Limit {
		kvs, found.More = kvs[:r.Limit], true
	}
	if r.KeysOnly {
		for i := range kvs {
			kvs[i] = proto.Clone(kvs[i]).(*mvccpb.KeyValue)
			kvs[i].Value = nil
		}
	}
	return kvs, found, nil
}

type byField struct {
	kvs  []*mvccpb.KeyValue
	less func(a, b *mvccpb.KeyValue) bool
}

func (s *byField) Len() int           { return len(s.kvs) }
func (s *byField) Swap(i, j int)      { s.kvs[i], s.kvs[j] = s.kvs[j], s.kvs[i] }
func (s *byField) Less(i, j int) bool { return s.less(s.kvs[i], s.kvs[j]) }

// left are the changes that stay after compacting to the compacted revision.
func (t *twin) left() []change {
	newest := t.at(t.compactRev)
	return slices.DeleteFunc(slices.Clone(t.changes), func(c change) bool {
		if c.rev.Main > t.compactRev {
			return false
		}
		return newest[string(c.kv.Key)].rev != c.rev || c.dead && c.rev.Main < t.compactRev
	})
}

// hashKV is etcd's unsafeHashByRev over a file of which compaction has dropped all it can.
func (t *twin) hashKV(rev int64) uint32 {
	h := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	h.Write([]byte("key"))
	keep := make(map[kv.Revision]bool)
	for _, c := range t.at(rev) {
		if !c.dead {
			keep[c.rev] = true
		}
	}
	for _, c := range t.left() {
		switch {
		case c.rev.Main > rev:
		case c.rev.Main <= t.compactRev && len(keep) > 0 && !keep[c.rev]:
		case c.rev.Main == t.compactRev && c.dead:
		default:
			h.Write(appendRev(nil, c.rev, c.dead))
			h.Write(marshal(c.kv))
		}
	}
	return h.Sum32()
}

func marshal(k *mvccpb.KeyValue) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(k)
	if err != nil {
		panic(err)
	}
	return b
}

// ---- comparing ----

// pair is the store and its twin under the same random operations.
type pair struct {
	t     *testing.T
	rnd   *rand.Rand
	path  string
	opts  Options
	store *Store
	twin  *twin
	index uint64
	held  []heldView
	dones []<-chan struct{}
	ops   int
}

type heldView struct {
	view *View
	twin *twin
}

const keySpace = 40

func (p *pair) key() string {
	n := p.rnd.IntN(keySpace)
	if n%5 == 0 {
		return fmt.Sprintf("%c", 'a'+n)
	}
	return fmt.Sprintf("key/%02d", n)
}

func (p *pair) span() kv.Span {
	switch p.rnd.IntN(6) {
	case 0:
		return kv.Span{Key: []byte{0}, End: []byte{0}}
	case 1:
		return kv.Span{Key: []byte(p.key()), End: []byte{0}}
	case 2, 3:
		return kv.Span{Key: []byte(p.key())}
	default:
		return kv.Span{Key: []byte(p.key()), End: []byte(p.key())}
	}
}

func (p *pair) someRev(t *twin) int64 {
	switch p.rnd.IntN(8) {
	case 0, 1, 2, 3:
		return 0
	case 4:
		return t.compactRev + p.rnd.Int64N(3) - 1
	default:
		return t.rev + 2 - p.rnd.Int64N(min(t.rev+3, 60))
	}
}

func (p *pair) rangeOf(t *twin) *kv.Range {
	r := &kv.Range{Span: p.span(), Revision: p.someRev(t)}
	one := func(n int) bool { return p.rnd.IntN(n) == 0 }
	if one(2) {
		r.Limit = p.rnd.Int64N(12)
		if one(20) {
			r.Limit = -r.Limit
		}
		if one(30) {
			r.Limit = math.MaxInt64
		}
	}
	if one(3) {
		r.SortOrder, r.SortTarget = kv.SortOrder(p.rnd.IntN(3)), kv.SortTarget(p.rnd.IntN(5))
	}
	r.KeysOnly, r.CountOnly = one(5), one(8)
	for _, bound := range []*int64{&r.MinMod, &r.MaxMod, &r.MinCreate, &r.MaxCreate} {
		if one(10) {
			*bound = t.rev - p.rnd.Int64N(min(t.rev, 50))
		}
	}
	return r
}

type ranger interface {
	Range(r *kv.Range, emit func([]byte)) (Found, error)
}

// compareRange checks one random Range.
func (p *pair) compareRange(of ranger, t *twin) {
	p.t.Helper()
	r := p.rangeOf(t)
	var got [][]byte
	found, err := of.Range(r, func(b []byte) { got = append(got, bytes.Clone(b)) })
	want, wantFound, wantErr := t.read(r)
	if err != wantErr || found != wantFound || len(got) != len(want) {
		p.t.Fatalf("Range(%+v) = %d keys, %+v, %v; want %d keys, %+v, %v", *r, len(got), found, err, len(want), wantFound, wantErr)
	}
	for i := range got {
		if b := marshal(want[i]); !bytes.Equal(got[i], b) {
			p.t.Fatalf("Range(%+v), key %d:\n got %q\nwant %q", *r, i, got[i], b)
		}
	}
}

// compareView checks everything that a View answers.
func (p *pair) compareView(v *View, t *twin) {
	p.t.Helper()
	if v.Rev() != t.rev || v.CompactRev() != t.compactRev {
		p.t.Fatalf("view is at %d, compacted at %d; want %d, %d", v.Rev(), v.CompactRev(), t.rev, t.compactRev)
	}
	for range 3 {
		p.compareRange(v, t)
	}
	// Record
	key, rev := p.key(), p.someRev(t)
	r, ok := v.Record([]byte(key), rev)
	want, wantOK := t.at(rev)[key]
	if rev < t.compactRev || rev > t.rev {
		wantOK = false
	}
	if want.dead && want.rev.Main < t.compactRev {
		wantOK = false
	}
	if ok != wantOK || ok && (r.Rev != want.rev || r.Tombstone != want.dead || !bytes.Equal(r.KV, marshal(want.kv))) {
		p.t.Fatalf("Record(%q, %d) = %v, %v; want %v, %v", key, rev, r, ok, want, wantOK)
	}
	p.compareChanges(v, t)
	if p.rnd.IntN(4) == 0 {
		p.compareHash(v, t)
	}
}

func (p *pair) compareChanges(v *View, t *twin) {
	p.t.Helper()
	lo := p.someRev(t)
	hi := lo + p.rnd.Int64N(40)
	var got []kv.Event
	err := v.Changes(lo, hi, func(e kv.Event) bool { got = append(got, e); return true })
	if (err == kv.ErrCompacted) != (lo < t.compactRev) {
		p.t.Fatalf("Changes(%d, %d): %v, compacted at %d", lo, hi, err, t.compactRev)
	}
	if err != nil {
		return
	}
	var want []change
	for _, c := range t.left() {
		if c.rev.Main >= lo && c.rev.Main <= hi {
			want = append(want, c)
		}
	}
	if len(got) != len(want) {
		p.t.Fatalf("Changes(%d, %d): %d, want %d", lo, hi, len(got), len(want))
	}
	for i, e := range got {
		c := want[i]
		if e.Rev != c.rev || e.Tombstone != c.dead || !bytes.Equal(e.Key, c.kv.Key) || !bytes.Equal(e.KV, marshal(c.kv)) {
			p.t.Fatalf("Changes(%d, %d)[%d] = %+v, want %+v", lo, hi, i, e, c)
		}
	}
}

func (p *pair) compareHash(v *View, t *twin) {
	p.t.Helper()
	rev := p.someRev(t)
	sum, compactRev, hashRev, err := v.HashKV(rev)
	switch {
	case rev > 0 && rev < t.compactRev:
		if err != kv.ErrCompacted {
			p.t.Fatalf("HashKV(%d) below %d: %v", rev, t.compactRev, err)
		}
		return
	case rev > t.rev:
		if err != kv.ErrFutureRevision {
			p.t.Fatalf("HashKV(%d) above %d: %v", rev, t.rev, err)
		}
		return
	case rev == 0:
		rev = t.rev
	}
	if want := t.hashKV(rev); err != nil || sum != want || compactRev != t.compactRev || hashRev != rev {
		p.t.Fatalf("HashKV(%d) = %08x, %d, %d, %v; want %08x, %d (store at %d)", rev, sum, compactRev, hashRev, err, want, t.compactRev, t.rev)
	}
}

// ---- the random operations ----

func (p *pair) tx() {
	t, tx := p.twin, p.store.Begin()
	rev := kv.Revision{Main: t.rev + 1}
	from := len(t.changes)
	for range p.rnd.IntN(4) {
		switch p.rnd.IntN(10) {
		case 0, 1:
			span := p.span()
			if p.rnd.IntN(4) > 0 {
				span.End = nil
			}
			p.deleteSpan(tx, span, &rev)
		case 2:
			now := t.clone()
			if rev.Sub > 0 {
				now.rev = rev.Main
			}
			if tx.Rev() != now.rev {
				p.t.Fatalf("Tx.Rev is %d, want %d", tx.Rev(), now.rev)
			}
			p.compareRange(tx, now)
		default:
			p.putKey(tx, &rev)
		}
	}
	got, events := tx.End()
	if len(t.changes) > from {
		t.rev++
	}
	if got != t.rev || len(events) != len(t.changes)-from {
		p.t.Fatalf("End = %d with %d events, want %d with %d", got, len(events), t.rev, len(t.changes)-from)
	}
	for i, e := range events {
		if c := t.changes[from+i]; e.Rev != c.rev || e.Tombstone != c.dead || !bytes.Equal(e.KV, marshal(c.kv)) || !bytes.Equal(e.Key, c.kv.Key) {
			p.t.Fatalf("event %d is %+v, want %+v", i, e, c)
		}
	}
}

func (p *pair) putKey(tx *Tx, rev *kv.Revision) {
	key := p.key()
	if i := len(p.twin.changes); i > 0 && p.twin.at(math.MaxInt64)[key].rev.Main == rev.Main {
		return // etcd refuses to change a key twice in one request
	}
	value := fmt.Sprintf("%d.%d %s", rev.Main, rev.Sub, bytes.Repeat([]byte("x"), p.rnd.IntN(200)))
	if p.rnd.IntN(500) == 0 {
		value += string(bytes.Repeat([]byte("large"), 40<<10))
	}
	if p.rnd.IntN(10) == 0 {
		value = ""
	}
	lease := max(0, p.rnd.Int64N(8)-4)
	wantRec, wantOK := p.twin.at(math.MaxInt64)[key]
	if r, ok := tx.Get([]byte(key)); ok != (wantOK && !wantRec.dead) || ok && !bytes.Equal(r.KV, marshal(wantRec.kv)) {
		p.t.Fatalf("Get(%q) = %q, %v; want %v", key, r.KV, ok, wantRec)
	}
	old := tx.Put([]byte(key), []byte(value), kv.LeaseID(lease))
	if want := p.twin.put(*rev, key, value, lease); int64(old) != want {
		p.t.Fatalf("Put(%q) detaches lease %d, want %d", key, old, want)
	}
	rev.Sub++
}

func (p *pair) deleteSpan(tx *Tx, span kv.Span, rev *kv.Revision) {
	for _, c := range p.twin.changes {
		if c.rev.Main == rev.Main && span.Contains(c.kv.Key) {
			return // etcd refuses
		}
	}
	want := p.twin.live(span, math.MaxInt64)
	var i, detached int
	n := tx.Delete(span, func(prev kv.Record) {
		if !bytes.Equal(prev.KV, marshal(want[i])) {
			p.t.Fatalf("Delete: key %d was %q, want %v", i, prev.KV, want[i])
		}
		i++
	}, func(id kv.LeaseID, key []byte) {
		k := want[i-1]
		if k.Lease != int64(id) || !bytes.Equal(k.Key, key) {
			p.t.Fatalf("Delete detaches %q from %d, want %v", key, id, k)
		}
		detached++
	})
	leased := 0
	for _, k := range want {
		p.twin.changes = append(p.twin.changes, change{rev: *rev, dead: true, kv: &mvccpb.KeyValue{Key: k.Key}})
		rev.Sub++
		if k.Lease != 0 {
			leased++
		}
	}
	if n != int64(len(want)) || i != len(want) || detached != leased {
		p.t.Fatalf("Delete = %d, %d records, %d leases; want %d, %d leases", n, i, detached, len(want), leased)
	}
}

func (p *pair) compact() {
	rev := p.someRev(p.twin)
	if rev < p.twin.rev-10 && p.rnd.IntN(4) > 0 {
		return // keep some history
	}
	done, err := p.store.Compact(rev)
	var want error
	switch {
	case rev <= p.twin.compactRev:
		want = kv.ErrCompacted
	case rev > p.twin.rev:
		want = kv.ErrFutureRevision
	default:
		p.twin.compactRev = rev
		p.dones = append(p.dones, done)
	}
	if err != want {
		p.t.Fatalf("Compact(%d) = %v, want %v (at %d, compacted at %d)", rev, err, want, p.twin.rev, p.twin.compactRev)
	}
}

func (p *pair) publish() {
	p.index++
	p.store.Publish(p.index, 7)
	v := p.store.View()
	if v.Applied() != p.index {
		p.t.Fatalf("view is the state after %d, want %d", v.Applied(), p.index)
	}
	p.compareView(v, p.twin)
	if p.rnd.IntN(20) == 0 && len(p.held) < 8 {
		p.held = append(p.held, heldView{v, p.twin.clone()})
	} else {
		v.Release()
	}
	if len(p.held) > 0 {
		i := p.rnd.IntN(len(p.held))
		h := p.held[i]
		p.compareView(h.view, h.twin)
		if p.rnd.IntN(30) == 0 {
			h.view.Release()
			p.held = slices.Delete(p.held, i, i+1)
		}
	}
}

func (p *pair) releaseAll() {
	for _, h := range p.held {
		p.compareView(h.view, h.twin)
		h.view.Release()
	}
	p.held = nil
}

func (p *pair) open() {
	leased := make(map[string]int64)
	opts := p.opts
	opts.OnLeasedKey = func(id kv.LeaseID, key []byte) { leased[string(key)] = int64(id) }
	opts.OnFailure = func(err error) { panic(err) }
	s, err := Open(p.path, opts)
	if err != nil {
		p.t.Fatal(err)
	}
	p.store = s
	p.compareLeased(leased)
}

// compareLeased checks what was told through OnLeasedKey.
func (p *pair) compareLeased(leased map[string]int64) {
	p.t.Helper()
	for _, k := range p.twin.live(all, math.MaxInt64) {
		if k.Lease != leased[string(k.Key)] {
			p.t.Fatalf("key %q: OnLeasedKey says %d, want %d", k.Key, leased[string(k.Key)], k.Lease)
		}
		delete(leased, string(k.Key))
	}
	if len(leased) > 0 {
		p.t.Fatalf("OnLeasedKey for %v", leased)
	}
}

func (p *pair) step(ctx context.Context) {
	p.ops++
	switch n := p.rnd.IntN(1000); {
	case n < 700:
		p.tx()
	case n < 900:
		p.publish()
	case n < 920:
		p.compact()
	case n < 960:
		p.publish()
		if err := p.store.Flush(ctx); err != nil {
			p.t.Fatal(err)
		}
	case n < 964:
		p.publish()
		p.releaseAll()
		if err := p.store.Close(); err != nil {
			p.t.Fatal(err)
		}
		for _, done := range p.dones {
			<-done
		}
		p.dones = nil
		p.open()
		if i, term := p.store.Applied(); i != p.index || term != 7 && p.index > 0 {
			p.t.Fatalf("opened at %d.%d, want %d", term, i, p.index)
		}
		v := p.store.View()
		p.compareView(v, p.twin)
		v.Release()
	case n < 966:
		p.publish()
		if err := p.store.Defragment(ctx); err != nil {
			p.t.Fatal(err)
		}
	case n < 975:
		p.publish()
		for _, done := range p.dones {
			<-done
		}
		p.dones = nil
	case n < 977:
		p.replace(ctx)
	}
}

// save writes a snapshot of the store to a file.
func (p *pair) save(ctx context.Context, path string) {
	p.t.Helper()
	sn, err := p.store.Snapshot(ctx)
	if err != nil {
		p.t.Fatal(err)
	}
	if i, term := sn.Applied(); i != p.index || term != 7 && i > 0 {
		p.t.Fatalf("snapshot is the state after %d.%d, want %d", term, i, p.index)
	}
	if err := saveTo(sn, path); err != nil {
		p.t.Fatal(err)
	}
}

// replace goes some way back, then a different way, and there replaces the store by what it
// was before: as a member that fell behind and is sent a snapshot.
func (p *pair) replace(ctx context.Context) {
	some := func(n int) {
		for range p.rnd.IntN(n) {
			p.tx()
			switch p.rnd.IntN(8) {
			case 0, 1:
				p.publish()
			case 2:
				p.compact()
			}
		}
	}
	p.publish()
	past, pastIndex := p.twin.clone(), p.index
	base := filepath.Join(filepath.Dir(p.path), fmt.Sprint("at", p.ops))
	p.save(ctx, base+".past")
	some(60)
	p.publish()
	p.save(ctx, base+".received")
	p.releaseAll()
	if err := p.store.Close(); err != nil {
		p.t.Fatal(err)
	}
	p.dones = nil

	future, futureIndex := p.twin, p.index
	p.twin, p.index, p.path = past, pastIndex, base+".past"
	p.open()
	some(40)
	wait := make(chan error, 2)
	if p.rnd.IntN(2) == 0 {
		// With neither view nor lock: the one that is under way when it is replaced.
		go func() { wait <- p.store.Defragment(ctx) }()
	} else {
		wait <- nil
	}
	go func() { wait <- p.store.Flush(ctx) }()
	for range p.rnd.IntN(3) {
		time.Sleep(time.Millisecond)
	}
	old := heldView{p.store.View(), nil}
	want := list(p.t, old.view, kv.Range{})
	leased := make(map[string]int64)
	err := p.store.Replace(base+".received", func(id kv.LeaseID, key []byte) { leased[string(key)] = int64(id) })
	if fits := p.index <= futureIndex && old.view.Rev() <= future.rev; fits != (err == nil) {
		p.t.Fatalf("Replace at entry %d, revision %d by the state after %d, revision %d: %v", p.index, old.view.Rev(), futureIndex, future.rev, err)
	}
	if err == nil {
		p.twin, p.index = future, futureIndex
		p.compareLeased(leased)
	} else if err := os.Remove(base + ".received"); err != nil {
		p.t.Fatal(err)
	}
	for range 2 {
		if err := <-wait; err != nil {
			p.t.Fatal(err)
		}
	}
	if got := list(p.t, old.view, kv.Range{}); !slices.Equal(got, want) {
		p.t.Fatal("an old view changed")
	}
	old.view.Release()
	if err != nil {
		return
	}
	if i, term := p.store.Applied(); i != p.index || term != 7 {
		p.t.Fatalf("replaced by %d.%d, want %d", term, i, p.index)
	}
	if p.store.Flushed() != p.index || p.store.TailBytes() != 0 || p.store.Rev() != p.twin.rev {
		p.t.Fatalf("flushed %d, want %d; %d bytes of tail, at revision %d", p.store.Flushed(), p.index, p.store.TailBytes(), p.store.Rev())
	}
	v := p.store.View()
	defer v.Release()
	if v.Applied() != p.index {
		p.t.Fatalf("view is the state after %d, want %d", v.Applied(), p.index)
	}
	p.compareView(v, p.twin)
}

func TestTwin(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	end := time.Now().Add(*twinTime)
	seed := *twinSeed
	ops := 0
	for round := 0; round == 0 || time.Now().Before(end); round++ {
		if *twinSeed == 0 {
			seed = rand.Uint64()
		}
		func() {
			p := &pair{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), twin: newTwin(), path: filepath.Join(t.TempDir(), "db")}
			p.opts.NoSync = true
			p.opts.hooks.drops = []int{0, 2, 20}[round%3]
			defer func() {
				if t.Failed() {
					t.Logf("seed %d, after %d operations", seed, p.ops)
				}
			}()
			p.open()
			for range 1500 {
				p.step(ctx)
			}
			p.publish()
			p.releaseAll()
			if err := p.store.Close(); err != nil {
				t.Fatal(err)
			}
			ops += p.ops
		}()
	}
	t.Logf("%d operations", ops)
}
