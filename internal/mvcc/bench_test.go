package mvcc

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"quorate/internal/kv"
)

var benchKeys = flag.Int("benchkeys", 1_000_000, "size of the store in benchmarks that need a large one")

// benchKey has 32 bytes, as etcd's benchmark tool's.
func benchKey(n int) []byte { return fmt.Appendf(nil, "/registry/things/%015d", n) }

// cpuTime is the processor time that the process has used, in nanoseconds. The time that
// passes says little on a machine that does other things.
func cpuTime() int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}

var benchValue = make([]byte, 256)

func mustOpen(tb testing.TB, path string, opts Options) *Store {
	tb.Helper()
	if opts.OnFailure == nil {
		opts.OnFailure = func(err error) { panic(err) }
	}
	s, err := Open(path, opts)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func mustClose(tb testing.TB, s *Store) {
	tb.Helper()
	if err := s.Close(); err != nil {
		tb.Fatal(err)
	}
}

// fill puts keys 0..n-1, in the order of every stride-th.
func fill(tb testing.TB, s *Store, n, stride int) {
	tb.Helper()
	for i := range n {
		tx := s.Begin()
		tx.Put(benchKey(i*stride%n), benchValue, 0)
		tx.End()
		if i%100 == 99 || i == n-1 {
			s.Publish(uint64(i+1), 1)
		}
	}
	if err := s.Flush(tb.Context()); err != nil {
		tb.Fatal(err)
	}
}

func BenchmarkPut(b *testing.B) {
	for _, batch := range []int{1, 100} {
		for _, keys := range []int{100_000, 0} {
			name := fmt.Sprintf("batch=%d/new", batch)
			if keys > 0 {
				name = fmt.Sprintf("batch=%d/over", batch)
			}
			b.Run(name, func(b *testing.B) {
				s := mustOpen(b, filepath.Join(b.TempDir(), "db"), Options{NoSync: true})
				fill(b, s, max(keys, 100), 1)
				list := make([][]byte, 1<<17)
				for i := range list {
					n := i*7919 + 1000
					if keys > 0 {
						n = i * 7919 % keys
					}
					list[i] = benchKey(n)
				}
				b.ReportAllocs()
				n := 0
				used := cpuTime()
				for b.Loop() {
					key := list[n%len(list)]
					if keys == 0 && n >= len(list) {
						key = benchKey(n)
					}
					tx := s.Begin()
					tx.Put(key, benchValue, 0)
					tx.End()
					if n++; n%batch == 0 {
						s.Publish(uint64(n), 1)
					}
				}
				b.StopTimer()
				s.Publish(uint64(n), 1)
				mustClose(b, s)
				b.ReportMetric(float64(cpuTime()-used)/float64(b.N), "cpu-ns/op")
			})
		}
	}
}

// largeStore opens a store of benchKeys keys, made once.
func largeStore(b *testing.B, stride int) (*Store, string) {
	b.Helper()
	path := filepath.Join(os.TempDir(), fmt.Sprintf("quorate-bench-%d-%d", os.Getpid(), stride))
	if _, err := os.Stat(path); err != nil {
		s := mustOpen(b, path, Options{NoSync: true})
		fill(b, s, *benchKeys, stride)
		mustClose(b, s)
		benchFiles = append(benchFiles, path)
	}
	return mustOpen(b, path, Options{NoSync: true}), path
}

var benchFiles []string

func TestMain(m *testing.M) {
	code := m.Run()
	for _, f := range benchFiles {
		if err := os.Remove(f); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

func BenchmarkView(b *testing.B) {
	s := mustOpen(b, filepath.Join(b.TempDir(), "db"), Options{NoSync: true})
	defer mustClose(b, s)
	b.ReportAllocs()
	for b.Loop() {
		s.View().Release()
	}
}

func BenchmarkRead(b *testing.B) {
	for _, order := range []string{"inorder", "scattered"} {
		stride := 1
		if order == "scattered" {
			stride = 7919
		}
		b.Run(order, func(b *testing.B) {
			s, _ := largeStore(b, stride)
			defer mustClose(b, s)
			n := *benchKeys
			list := make([][]byte, 1<<14)
			for i := range list {
				list[i] = benchKey(i * 7919 % n)
			}
			var bytes int64
			emit := func(kv []byte) { bytes += int64(len(kv)) }
			run := func(name string, keys int, r kv.Range) {
				b.Run(name, func(b *testing.B) {
					b.ReportAllocs()
					used := cpuTime()
					i := 0
					for b.Loop() {
						r.Key = list[i%len(list)]
						i++
						v := s.View()
						if _, err := v.Range(&r, emit); err != nil {
							b.Fatal(err)
						}
						v.Release()
					}
					b.ReportMetric(float64(cpuTime()-used)/float64(b.N*keys), "cpu-ns/key")
				})
			}
			run("get", 1, kv.Range{})
			run("limit=500", 500, kv.Range{Span: kv.Span{End: []byte{0}}, Limit: 500})
			run("list=10000", 10_000, kv.Range{Span: kv.Span{End: []byte{0}}, Limit: 10_000})
			run("keysonly=10000", 10_000, kv.Range{Span: kv.Span{End: []byte{0}}, Limit: 10_000, KeysOnly: true})
			run("down/limit=1", 1, kv.Range{Span: kv.Span{End: []byte{0}}, Limit: 1, SortOrder: kv.SortDescend})
			run("down/limit=500", 500, kv.Range{Span: kv.Span{End: []byte{0}}, Limit: 500, SortOrder: kv.SortDescend})
			run("count", 1, kv.Range{Span: kv.Span{End: []byte{0}}, CountOnly: true})
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	for _, stride := range []int{1, 7919} {
		b.Run(fmt.Sprintf("stride=%d", stride), func(b *testing.B) {
			s, path := largeStore(b, stride)
			mustClose(b, s)
			var used int64
			for b.Loop() {
				used -= cpuTime()
				s := mustOpen(b, path, Options{NoSync: true})
				b.StopTimer()
				used += cpuTime()
				var m runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&m)
				b.ReportMetric(float64(m.HeapAlloc)/1e6, "MB-heap")
				mustClose(b, s)
				b.StartTimer()
			}
			b.ReportMetric(float64(used)/float64(b.N), "cpu-ns/op")
		})
	}
}
