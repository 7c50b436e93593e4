package crash

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"

	"google.golang.org/protobuf/proto"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// model is the whole store, simple: every change ever made, in order.
type model struct {
	rev       int64
	compacted int64 // -1: never
	changes   []change
	live      map[string]*mvccpb.KeyValue
	attached  map[int64]map[string]bool // keys by lease
}

// change is one record of the store.
type change struct {
	main, sub int64
	tombstone bool
	kv        *mvccpb.KeyValue // of a tombstone only the key
}

func newModel() *model {
	return &model{rev: 1, compacted: -1, live: map[string]*mvccpb.KeyValue{}, attached: map[int64]map[string]bool{}}
}

// wish is one change that an operation asks for.
type wish struct {
	key    string
	value  string
	lease  int64
	delete bool
}

// put returns what the key becomes when it is put at revision rev.
func (m *model) put(rev int64, w wish) *mvccpb.KeyValue {
	kv := &mvccpb.KeyValue{Key: []byte(w.key), Value: []byte(w.value), Lease: w.lease, ModRevision: rev, CreateRevision: rev, Version: 1}
	if old := m.live[w.key]; old != nil {
		kv.CreateRevision, kv.Version = old.CreateRevision, old.Version+1
	}
	return kv
}

// events returns what history would show for the wishes at revision rev: a deletion only of
// keys that exist.
func (m *model) events(rev int64, wishes []wish) []*mvccpb.Event {
	var evs []*mvccpb.Event
	for _, w := range wishes {
		switch {
		case !w.delete:
			evs = append(evs, &mvccpb.Event{Kv: m.put(rev, w)})
		case m.live[w.key] != nil:
			evs = append(evs, &mvccpb.Event{Type: mvccpb.Event_DELETE, Kv: &mvccpb.KeyValue{Key: []byte(w.key), ModRevision: rev}})
		}
	}
	return evs
}

// apply takes the events of one revision over.
func (m *model) apply(rev int64, evs []*mvccpb.Event) {
	for i, ev := range evs {
		key := string(ev.Kv.Key)
		if old := m.live[key]; old != nil && old.Lease != 0 {
			delete(m.attached[old.Lease], key)
		}
		c := change{main: rev, sub: int64(i), kv: ev.Kv}
		if ev.Type == mvccpb.Event_DELETE {
			c.tombstone, c.kv = true, &mvccpb.KeyValue{Key: ev.Kv.Key}
			delete(m.live, key)
		} else {
			m.live[key] = ev.Kv
			if id := ev.Kv.Lease; id != 0 {
				if m.attached[id] == nil {
					m.attached[id] = map[string]bool{}
				}
				m.attached[id][key] = true
			}
		}
		m.changes = append(m.changes, c)
	}
	m.rev = rev
}

// revoked returns the wishes of a revocation: every key of the lease, in order.
func (m *model) revoked(id int64) []wish {
	var wishes []wish
	for key := range m.attached[id] {
		wishes = append(wishes, wish{key: key, delete: true})
	}
	slices.SortFunc(wishes, func(a, b wish) int { return cmp.Compare(a.key, b.key) })
	return wishes
}

// at returns the keys as of a revision, in order.
func (m *model) at(rev int64) []*mvccpb.KeyValue {
	live := map[string]*mvccpb.KeyValue{}
	for _, c := range m.changes {
		if c.main > rev {
			break
		}
		if c.tombstone {
			delete(live, string(c.kv.Key))
		} else {
			live[string(c.kv.Key)] = c.kv
		}
	}
	kvs := make([]*mvccpb.KeyValue, 0, len(live))
	for _, kv := range live {
		kvs = append(kvs, kv)
	}
	slices.SortFunc(kvs, func(a, b *mvccpb.KeyValue) int { return bytes.Compare(a.Key, b.Key) })
	return kvs
}

// hash is HashKV at a revision, by etcd's rule: the CRC32C over the bucket's name and every
// record up to rev; of the records up to the compact revision only those that the keys of
// rev rest on. (Where no key exists at rev, etcd leaves out nothing; the load always leaves
// one.)
func (m *model) hash(rev int64) (uint32, error) {
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	sum.Write([]byte("key"))
	type place struct{ main, sub int64 }
	kept := map[string]place{}
	for _, c := range m.changes {
		if c.main > rev {
			break
		}
		if c.tombstone {
			delete(kept, string(c.kv.Key))
		} else {
			kept[string(c.kv.Key)] = place{c.main, c.sub}
		}
	}
	for _, c := range m.changes {
		if c.main > rev {
			break
		}
		if c.main <= m.compacted && kept[string(c.kv.Key)] != (place{c.main, c.sub}) {
			continue
		}
		key := binary.BigEndian.AppendUint64(nil, uint64(c.main))
		key = append(key, '_')
		key = binary.BigEndian.AppendUint64(key, uint64(c.sub))
		if c.tombstone {
			key = append(key, 't')
		}
		value, err := proto.Marshal(c.kv)
		if err != nil {
			return 0, fmt.Errorf("encode %v: %w", c.kv, err)
		}
		sum.Write(key)
		sum.Write(value)
	}
	return sum.Sum32(), nil
}

// trim forgets what the compaction to revision rev removes and no read or hash can see again.
func (m *model) trim(rev int64) {
	m.compacted = rev
	newest := map[string]int{}
	for i, c := range m.changes {
		if c.main > rev {
			break
		}
		newest[string(c.kv.Key)] = i
	}
	kept := m.changes[:0:0]
	for i, c := range m.changes {
		if c.main > rev || newest[string(c.kv.Key)] == i && !c.tombstone {
			kept = append(kept, c)
		}
	}
	m.changes = kept
}
