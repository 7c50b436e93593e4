package index

import (
	"bytes"
	"encoding/binary"
)

// block is a sorted list of distinct keys in one piece of memory: their common prefix
// once, then what is left of each.
//
//	end of prefix, end of suffix 0, ... end of suffix n-1   (n+1 offsets of 2 or 4 bytes)
//	prefix, suffix 0, ... suffix n-1
//
// Offsets count from the prefix on; they have 2 bytes unless the text is longer than
// 65535. A block is immutable. The zero block is empty.
type block struct {
	b    []byte
	n    int32
	wide bool // 4-byte offsets
}

const narrowMax = 1<<16 - 1

// newBlock makes a block with room for n keys and text bytes; the caller fills it.
func newBlock(n, text int) block {
	k := block{n: int32(n), wide: text > narrowMax}
	k.b = make([]byte, (n+1)*k.width()+text)
	return k
}

// packKeys makes a block of n keys, in order; key(i) is valid until the next call.
func packKeys(n int, key func(i int) []byte) block {
	if n == 0 {
		return block{}
	}
	// Sorted keys share what the first and the last share.
	prefix := append([]byte(nil), key(0)...)
	prefix = prefix[:common(prefix, key(n-1))]
	text := len(prefix)
	for i := range n {
		text += len(key(i)) - len(prefix)
	}
	k := newBlock(n, text)
	to := k.text()
	end := copy(to, prefix)
	k.setEnd(0, end)
	for i := range n {
		end += copy(to[end:], key(i)[len(prefix):])
		k.setEnd(i+1, end)
	}
	return k
}

// common is the length of the common prefix of a and b.
func common(a, b []byte) int {
	n := min(len(a), len(b))
	i := 0
	for ; i+8 <= n; i += 8 {
		if binary.LittleEndian.Uint64(a[i:]) != binary.LittleEndian.Uint64(b[i:]) {
			break
		}
	}
	for i < n && a[i] == b[i] {
		i++
	}
	return i
}

func (k *block) width() int {
	if k.wide {
		return 4
	}
	return 2
}

func (k *block) len() int { return int(k.n) }

// text is the part behind the offsets.
func (k *block) text() []byte { return k.b[(int(k.n)+1)*k.width():] }

func (k *block) end(i int) int {
	if k.wide {
		return int(binary.LittleEndian.Uint32(k.b[4*i:]))
	}
	return int(binary.LittleEndian.Uint16(k.b[2*i:]))
}

func (k *block) setEnd(i, end int) {
	if k.wide {
		binary.LittleEndian.PutUint32(k.b[4*i:], uint32(end))
	} else {
		binary.LittleEndian.PutUint16(k.b[2*i:], uint16(end))
	}
}

func (k *block) prefix() []byte {
	if k.n == 0 {
		return nil
	}
	n := k.end(0)
	return k.text()[:n:n]
}

func (k *block) suffix(i int) []byte {
	from, to := k.end(i), k.end(i+1)
	return k.text()[from:to:to]
}

// appendKey appends key i to b.
func (k *block) appendKey(b []byte, i int) []byte {
	return append(append(b, k.prefix()...), k.suffix(i)...)
}

// find returns the place of the first key that is not before key, and whether it is key.
func (k *block) find(key []byte) (pos int, found bool) {
	if k.n == 0 {
		return 0, false
	}
	text := k.text()
	if p := k.end(0); p > 0 {
		if len(key) < p || !bytes.Equal(key[:p], text[:p]) {
			if bytes.Compare(key, text[:p]) < 0 {
				return 0, false
			}
			return int(k.n), false
		}
		key = key[p:]
	}
	lo, hi := 0, int(k.n)
	for lo < hi {
		mid := int(uint(lo+hi) / 2)
		switch c := bytes.Compare(text[k.end(mid):k.end(mid+1)], key); {
		case c < 0:
			lo = mid + 1
		case c > 0:
			hi = mid
		default:
			return mid, true
		}
	}
	return lo, false
}

// insert returns a block with key put in at pos, where find says it belongs. ok is false
// if that changes the common prefix or the width of offsets: then the block must be
// packed anew.
func (k *block) insert(pos int, key []byte) (next block, ok bool) {
	n, p := k.len(), k.end(0)
	// A new key in the middle always shares the prefix; one at an end may not.
	if len(key) < p || !bytes.Equal(key[:p], k.prefix()) {
		return block{}, false
	}
	// A longer prefix for two or more keys is left to the next packing.
	from, at, suffix := k.text(), k.end(pos), key[p:]
	if !k.wide && len(from)+len(suffix) > narrowMax {
		return block{}, false
	}
	next = block{n: k.n + 1, wide: k.wide}
	next.b = make([]byte, len(k.b)+k.width()+len(suffix))
	copy(next.b, k.b[:(pos+1)*k.width()])
	for i := pos; i <= n; i++ {
		next.setEnd(i+1, k.end(i)+len(suffix))
	}
	to := next.text()
	copy(to, from[:at])
	copy(to[at:], suffix)
	copy(to[at+len(suffix):], from[at:])
	return next, true
}

// with returns a block with key put in at pos, packed anew.
func (k *block) with(pos int, key []byte) block {
	var scratch []byte
	return packKeys(k.len()+1, func(i int) []byte {
		switch {
		case i == pos:
			return key
		case i > pos:
			i--
		}
		scratch = k.appendKey(scratch[:0], i)
		return scratch
	})
}

// slice returns a block of the keys from i to j.
func (k *block) slice(i, j int) block {
	var scratch []byte
	return packKeys(j-i, func(at int) []byte {
		scratch = k.appendKey(scratch[:0], i+at)
		return scratch
	})
}

// middle is the place, neither 0 nor n, that parts the text most evenly.
func (k *block) middle() int {
	half := (k.end(0) + k.end(k.len())) / 2
	mid := 1
	for mid < k.len()-1 && k.end(mid) < half {
		mid++
	}
	return mid
}
