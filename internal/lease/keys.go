package lease

import (
	"encoding/binary"
	"slices"
	"sort"

	"quorate/internal/kv"
)

// Most leases have no key or one, some have very many. A few keys are packed into one
// string; more are a keyList.
const (
	fewMax      = 8
	fewBytesMax = 1 << 10
)

// fewKeys is a sorted set of keys in one piece, each behind its length as a varint.
type fewKeys string

// next returns the first key and the rest.
func (k fewKeys) next() (key string, rest fewKeys) {
	n, shift := 0, 0
	for k[0] >= 0x80 {
		n |= int(k[0]&0x7f) << shift
		k, shift = k[1:], shift+7
	}
	n |= int(k[0]) << shift
	return string(k[1 : 1+n]), k[1+n:]
}

func (k fewKeys) all() []string {
	var all []string
	for k != "" {
		var key string
		key, k = k.next()
		all = append(all, key)
	}
	return all
}

// pack makes fewKeys of sorted keys.
func pack(keys []string) fewKeys {
	var b []byte
	for _, key := range keys {
		b = binary.AppendUvarint(b, uint64(len(key)))
		b = append(b, key...)
	}
	return fewKeys(b)
}

// keyList is a sorted set of many keys, in parts so that adding one moves few.
type keyList struct {
	parts [][]string // none empty
}

const partMax = 512

// find returns key's part and its place there, and whether it is there.
func (k *keyList) find(key string) (part, i int, found bool) {
	part = max(0, sort.Search(len(k.parts), func(p int) bool { return k.parts[p][0] > key })-1)
	if len(k.parts) > 0 {
		i, found = slices.BinarySearch(k.parts[part], key)
	}
	return part, i, found
}

func (k *keyList) add(key string) {
	if len(k.parts) == 0 {
		k.parts = [][]string{{key}}
		return
	}
	part, i, found := k.find(key)
	if found {
		return
	}
	p := slices.Insert(k.parts[part], i, key)
	k.parts[part] = p
	if len(p) <= partMax {
		return
	}
	// Keys that come in order leave full parts behind.
	mid := len(p) / 2
	if i == len(p)-1 && part == len(k.parts)-1 {
		mid = i
	}
	right := slices.Clone(p[mid:])
	clear(p[mid:])
	k.parts[part] = p[:mid]
	k.parts = slices.Insert(k.parts, part+1, right)
}

// remove takes key out and reports whether none is left.
func (k *keyList) remove(key string) (empty bool) {
	part, i, found := k.find(key)
	if found {
		k.parts[part] = slices.Delete(k.parts[part], i, i+1)
		if len(k.parts[part]) == 0 {
			k.parts = slices.Delete(k.parts, part, part+1)
		}
	}
	return len(k.parts) == 0
}

func (k *keyList) all() []string { return slices.Concat(k.parts...) }

// keysLocked returns the keys of slot s, in order.
func (l *Lessor) keysLocked(s slot) []string {
	if list := l.many[s]; list != nil {
		return list.all()
	}
	return l.slab.at(s).few.all()
}

func (l *Lessor) attachLocked(s slot, key string) {
	if list := l.many[s]; list != nil {
		list.add(key)
		return
	}
	e := l.slab.at(s)
	few := e.few.all()
	i, found := slices.BinarySearch(few, key)
	if found {
		return
	}
	few = slices.Insert(few, i, key)
	if len(few) <= fewMax && len(e.few)+len(key) <= fewBytesMax {
		e.few = pack(few)
		return
	}
	list := &keyList{}
	for _, k := range few {
		list.add(k)
	}
	l.many[s], e.few = list, ""
}

func (l *Lessor) detachLocked(s slot, key string) {
	if list := l.many[s]; list != nil {
		if list.remove(key) {
			delete(l.many, s)
		}
		return
	}
	e := l.slab.at(s)
	few := e.few.all()
	if i, found := slices.BinarySearch(few, key); found {
		e.few = pack(slices.Delete(few, i, i+1))
	}
}

// Keys are the keys that hang on lease id, in order; none if there is no such lease.
func (l *Lessor) Keys(id kv.LeaseID) [][]byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, ok := l.byID[id]
	if !ok {
		return nil
	}
	return toBytes(l.keysLocked(s))
}

// toBytes copies keys into one piece of memory.
func toBytes(keys []string) [][]byte {
	if len(keys) == 0 {
		return nil
	}
	size := 0
	for _, k := range keys {
		size += len(k)
	}
	b := make([]byte, 0, size)
	all := make([][]byte, len(keys))
	for i, k := range keys {
		from := len(b)
		b = append(b, k...)
		all[i] = b[from:len(b):len(b)]
	}
	return all
}
