package index

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"quorate/internal/kv"

	"golang.org/x/sys/unix"
)

const million = 1 << 20

// key32 is the i-th of many keys of 32 bytes in no order.
func key32(b []byte, i uint64) []byte {
	i *= 0x9e3779b97f4a7c15
	b = b[:32]
	for j := range 4 {
		i ^= i >> 31
		i *= 0xbf58476d1ce4e5b9
		binary.BigEndian.PutUint64(b[8*j:], i)
	}
	return b
}

// registryKey is one as Kubernetes has them.
func registryKey(b []byte, i uint64) []byte {
	return fmt.Appendf(b[:0], "/registry/pods/namespace-%03d/deployment-%04x-%08x", i%500, i*7919%3000, uint32(i*0x9e3779b1))
}

func grown(n int, key func([]byte, uint64) []byte) Tree {
	w := Tree{}.Edit()
	b := make([]byte, 128)
	for i := range n {
		w.Put(key(b, uint64(i)), kv.Revision{Main: int64(i) + 2})
		if i%64 == 0 {
			w.Tree()
		}
	}
	return w.Tree()
}

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkMemory reports what a key costs in a tree of a million.
func BenchmarkMemory(b *testing.B) {
	for _, c := range []struct {
		name string
		make func() Tree
	}{
		{"random", func() Tree { return grown(million, key32) }},
		{"registry", func() Tree { return grown(million, registryKey) }},
		{"updated", func() Tree {
			t := grown(million, key32)
			w := t.Edit()
			k := make([]byte, 32)
			for i := range million {
				w.Put(key32(k, uint64(i*7919%million)), kv.Revision{Main: million + 2 + int64(i)})
			}
			return w.Tree()
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			for range b.N {
				before := heap()
				t := c.make()
				held := heap() - before
				b.ReportMetric(float64(held)/million, "heap-B/key")
				b.ReportMetric(float64(t.Bytes())/million, "Bytes-B/key")
				runtime.KeepAlive(t)
			}
		})
	}
}

var shared Tree

func sharedTree() Tree {
	if shared.root == nil {
		shared = grown(million, key32)
	}
	return shared
}

func BenchmarkPut(b *testing.B) {
	for _, batch := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("update/batch=%d", batch), func(b *testing.B) {
			w := grown(million, key32).Edit() // its own: trees form a line
			benchPut(b, w, batch, func(k []byte, _ int) []byte { return key32(k, rand.Uint64N(million)) })
		})
		b.Run(fmt.Sprintf("insert/batch=%d", batch), func(b *testing.B) {
			w := sharedTree().Edit()
			benchPut(b, w, batch, func(k []byte, i int) []byte { return key32(k, uint64(million+i)) })
		})
		b.Run(fmt.Sprintf("sequential/batch=%d", batch), func(b *testing.B) {
			w := Tree{}.Edit()
			benchPut(b, w, batch, func(k []byte, i int) []byte {
				binary.BigEndian.PutUint64(k[24:], uint64(i))
				return k
			})
		})
		b.Run(fmt.Sprintf("one/batch=%d", batch), func(b *testing.B) {
			w := Tree{}.Edit()
			benchPut(b, w, batch, func(k []byte, i int) []byte { return k })
		})
	}
}

// cpu is the time that the process has used, which tells more than the clock where the
// machine has other work.
func cpu(b *testing.B) time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		b.Fatal(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func benchPut(b *testing.B, w *Writer, batch int, key func([]byte, int) []byte) {
	k := make([]byte, 32)
	rev := w.Last().Main
	b.ReportAllocs()
	b.ResetTimer()
	before := cpu(b)
	defer func() { b.ReportMetric(float64((cpu(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/op") }()
	for i := range b.N {
		rev++
		w.Put(key(k, i), kv.Revision{Main: rev})
		if i%batch == 0 {
			w.Tree()
		}
	}
}

func BenchmarkGet(b *testing.B) {
	t := sharedTree()
	k := make([]byte, 32)
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := t.Get(key32(k, rand.Uint64N(million))); !ok {
			b.Fatal("not found")
		}
	}
}

func BenchmarkCount(b *testing.B) {
	t := sharedTree()
	k, end := make([]byte, 32), make([]byte, 32)
	for b.Loop() {
		t.Count(kv.Span{Key: key32(k, rand.Uint64N(million)), End: key32(end, rand.Uint64N(million))})
	}
}

func BenchmarkAscend500(b *testing.B) {
	t := sharedTree()
	k := make([]byte, 32)
	b.Run("keys", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			n := 0
			t.Ascend(kv.Span{Key: key32(k, rand.Uint64N(million)), End: []byte{0}}, func(Entry) bool { n++; return n < 500 })
		}
	})
	b.Run("revisions", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			n := 0
			t.Revisions(kv.Span{Key: key32(k, rand.Uint64N(million)), End: []byte{0}}, 1<<62, func(kv.Revision) bool { n++; return n < 500 })
		}
	})
}

func BenchmarkBuild(b *testing.B) {
	var keys [][]byte
	t := sharedTree()
	t.Ascend(kv.Span{End: []byte{0}}, func(e Entry) bool { keys = append(keys, e.Key); return true })
	b.ResetTimer()
	for b.Loop() {
		var bld Builder
		for i, k := range keys {
			if err := bld.Add(k, kv.Revision{Main: int64(i)}, false, int64(i), 1); err != nil {
				b.Fatal(err)
			}
		}
		bld.Tree()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/million, "ns/key")
}
