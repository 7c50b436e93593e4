package mvcc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"quorate/internal/kv"
	"quorate/internal/wire"
)

func put(s *Store, key, value string) {
	tx := s.Begin()
	tx.Put([]byte(key), []byte(value), 0)
	tx.End()
}

func list(t *testing.T, v *View, r kv.Range) (out []string) {
	t.Helper()
	r.Span = all
	_, err := v.Range(&r, func(b []byte) { out = append(out, string(b)) })
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// check has bbolt look at every page of the file.
func check(t *testing.T, path string) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second, PreLoadFreelist: true})
	if err != nil {
		t.Fatal(err)
	}
	err = db.View(func(tx *bbolt.Tx) error {
		for err := range tx.Check() {
			t.Errorf("%s: %v", path, err)
		}
		return nil
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestCrash opens what is on disk after every step that changes it, as if the process had
// been killed there: it must be the state after the raft entry that it names.
func TestCrash(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	dir := t.TempDir()
	p := &pair{t: t, rnd: rand.New(rand.NewPCG(seed, 2)), twin: newTwin(), path: filepath.Join(dir, "db")}
	var mu sync.Mutex
	states := map[uint64]*twin{0: newTwin()} // by applied index
	var steps []string
	p.opts.NoSync = true
	p.opts.hooks.drops = 2
	p.opts.hooks.step = func(name string) { // by the flusher, which waits meanwhile
		mu.Lock()
		defer mu.Unlock()
		if name == "copied" {
			return // the caller of Defragment's, the flusher may be writing
		}
		to := filepath.Join(dir, fmt.Sprintf("crash-%04d-%s", len(steps), name))
		if err := os.Mkdir(to, 0o700); err != nil {
			panic(err)
		}
		b, err := os.ReadFile(p.path)
		if err == nil {
			err = os.WriteFile(filepath.Join(to, "db"), b, 0o600)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(to, "db.tmp.123"), b[:len(b)/2], 0o600)
		}
		if err != nil {
			panic(err)
		}
		steps = append(steps, to)
	}
	p.open()
	for i := range 600 {
		p.tx()
		if p.rnd.IntN(40) == 0 {
			p.compact()
		}
		if p.rnd.IntN(3) == 0 {
			p.index++
			mu.Lock()
			states[p.index] = p.twin.clone()
			mu.Unlock()
			p.store.Publish(p.index, 7)
		}
		if p.rnd.IntN(20) == 0 {
			if err := p.store.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if i%200 == 150 {
			if err := p.store.Defragment(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	mustClose(t, p.store)
	for _, step := range steps {
		path := filepath.Join(step, "db")
		check(t, path)
		func() {
			defer func() {
				if t.Failed() {
					t.Logf("seed %d, %s", seed, step)
				}
			}()
			s := mustOpen(t, path, Options{NoSync: true, hooks: hooks{drops: 40}})
			index, _ := s.Applied()
			state := states[index]
			if state == nil {
				t.Fatalf("opened as the state after entry %d, which was no boundary", index)
			}
			v := s.View()
			q := &pair{t: t, rnd: p.rnd, twin: state}
			for range 5 {
				q.compareView(v, state)
			}
			v.Release()
			// A compaction that was under way goes on: in the end just what is to stay is left.
			waitCompacted(t, s)
			mustClose(t, s)
			if got, want := records(t, path), len(state.left()); got != want {
				t.Fatalf("%d records after compaction, want %d", got, want)
			}
			if _, err := os.Stat(filepath.Join(step, "db.tmp.123")); !os.IsNotExist(err) {
				t.Fatalf("the unfinished copy is still there: %v", err)
			}
		}()
	}
	t.Logf("%d crashes", len(steps))
}

func waitCompacted(t *testing.T, s *Store) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		n := len(s.compactions)
		s.mu.Unlock()
		if n == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the compaction does not end")
		}
	}
}

// records counts the records in a file.
func records(t *testing.T, path string) (n int) {
	t.Helper()
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	err = db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketKey).ForEach(func(_, _ []byte) error { n++; return nil })
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestReadersShareAnImage has many readers in views old and new while the file is written,
// compacted and replaced. It says the most under the race detector.
func TestReadersShareAnImage(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	s := mustOpen(t, path, Options{NoSync: true})
	const keys = 3000
	fill(t, s, keys, 1)
	ctx, stop := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	var reads atomic.Int64
	for i := range 6 {
		readers.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 3))
			for ctx.Err() == nil {
				v := s.View()
				sum, _, _, err := v.HashKV(0)
				if err != nil {
					t.Error(err)
				}
				for range 20 {
					from := rnd.IntN(keys)
					n := 0
					f, err := v.Range(&kv.Range{Span: kv.Span{Key: benchKey(from), End: []byte{0}}, Limit: 50}, func(b []byte) {
						if !bytes.Contains(b, benchKey(from+n)) {
							t.Errorf("key %d is %q", from+n, b)
						}
						n++
					})
					if err != nil || f.Count != int64(keys-from) {
						t.Errorf("Range: %+v, %v", f, err)
					}
				}
				if again, _, _, _ := v.HashKV(0); again != sum {
					t.Errorf("the view changed: %08x, then %08x", sum, again)
				}
				v.Release()
				reads.Add(1)
			}
		})
	}
	var maintenance sync.WaitGroup
	maintenance.Go(func() {
		for ctx.Err() == nil {
			if err := s.Defragment(ctx); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
			sn, err := s.Snapshot(ctx)
			if err != nil {
				if ctx.Err() == nil {
					t.Error(err)
				}
				continue
			}
			if n, err := sn.WriteTo(io.Discard); err != nil || n != sn.Size {
				t.Errorf("snapshot of %d bytes: %d, %v", sn.Size, n, err)
			}
			if err := sn.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	index := uint64(keys)
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		for n := range 50 {
			tx := s.Begin()
			tx.Put(benchKey((int(index)*31+n)%keys), benchValue, 0)
			tx.End()
		}
		if index%100 == 0 {
			if _, err := s.Compact(s.Rev() - 20); err != nil {
				t.Fatal(err)
			}
		}
		index++
		s.Publish(index, 1)
	}
	stop()
	maintenance.Wait()
	readers.Wait()
	mustClose(t, s)
	check(t, path)
	t.Logf("%d reads, %d batches", reads.Load(), index-keys)
}

// saveTo writes a snapshot to a file, and closes it.
func saveTo(sn *Snapshot, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	n, err := sn.WriteTo(f)
	if err == nil && n != sn.Size {
		err = fmt.Errorf("WriteTo = %d, want %d", n, sn.Size)
	}
	return errors.Join(err, f.Close(), sn.Close(), sn.Close())
}

// TestSnapshotIsAStore opens a snapshot that was streamed while writes went on.
func TestSnapshotIsAStore(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := mustOpen(t, filepath.Join(dir, "db"), Options{NoSync: true})
	defer mustClose(t, s)
	s.PutBucket("members", []byte("m1"), []byte("one"))
	s.PutBucket("members", []byte("m2"), []byte("two"))
	fill(t, s, 2000, 1)
	v := s.View()
	sum, _, _, err := v.HashKV(0)
	v.Release()
	sn, err2 := s.Snapshot(t.Context())
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	s.DeleteBucket("members", []byte("m2"))
	fill(t, s, 2000, 7) // and flush, over the same keys
	if index, term := sn.Applied(); index != 2000 || term != 1 {
		t.Fatalf("snapshot is the state after %d.%d", term, index)
	}
	var members []string
	err = sn.ReadBucket("members", func(k, v []byte) error {
		members = append(members, string(k)+"="+string(v))
		return nil
	})
	if err != nil || !slices.Equal(members, []string{"m1=one", "m2=two"}) {
		t.Fatalf("members of the snapshot: %q, %v", members, err)
	}
	path := filepath.Join(dir, "snapshot")
	if err := saveTo(sn, path); err != nil {
		t.Fatal(err)
	}
	check(t, path)
	c := mustOpen(t, path, Options{})
	defer mustClose(t, c)
	w := c.View()
	defer w.Release()
	if got, _, _, err := w.HashKV(0); got != sum || err != nil {
		t.Fatalf("HashKV of the snapshot is %08x, %v; want %08x", got, err, sum)
	}
}

// TestDefragmentGivesSpaceBack compacts much away while an old view is held.
func TestDefragmentGivesSpaceBack(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	s := mustOpen(t, path, Options{NoSync: true})
	for range 5 {
		fill(t, s, 4000, 1)
	}
	s.PutBucket("lease", []byte("a lease"), []byte("value"))
	old := s.View()
	want := list(t, old, kv.Range{Revision: 100})
	done, err := s.Compact(s.Rev())
	if err != nil {
		t.Fatal(err)
	}
	s.Publish(5000, 1)
	<-done
	before, inUse := s.Size()
	if err := s.Defragment(t.Context()); err != nil {
		t.Fatal(err)
	}
	after, inUseAfter := s.Size()
	if after > before/3 || inUseAfter > inUse+inUse/10 || after-inUseAfter > after/10 {
		t.Fatalf("size %d, in use %d; before: %d, %d", after, inUseAfter, before, inUse)
	}
	if got := list(t, old, kv.Range{Revision: 100}); strings.Join(got, "") != strings.Join(want, "") {
		t.Fatal("the old view changed")
	}
	if _, err := s.View().Range(&kv.Range{Span: all, Revision: 100}, nil); err != kv.ErrCompacted {
		t.Fatalf("a read below the compacted revision: %v", err)
	}
	s.newest.Load().Release() // of the line above
	old.Release()
	put(s, "after", "")
	s.Publish(5001, 1)
	mustClose(t, s)
	check(t, path)
	s = mustOpen(t, path, Options{})
	defer mustClose(t, s)
	if index, term := s.Applied(); index != 5001 || term != 1 {
		t.Fatalf("opened as the state after %d.%d", term, index)
	}
	found := false
	err = s.ReadBucket("lease", func(k, v []byte) error {
		found = string(k) == "a lease" && string(v) == "value"
		return nil
	})
	if err != nil || !found {
		t.Fatalf("the lease is gone: %v", err)
	}
}

// TestRecordsLastUntilPublish: what a Tx returns stays readable after its End, whatever
// becomes of the file, until the next Publish.
func TestRecordsLastUntilPublish(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, filepath.Join(t.TempDir(), "db"), Options{NoSync: true})
	defer mustClose(t, s)
	fill(t, s, 1000, 1)
	put(s, "unflushed", "value")
	s.Publish(1001, 1)
	var got []kv.Record
	var want [][]byte
	keep := func(r kv.Record) {
		got = append(got, r)
		want = append(want, bytes.Clone(r.KV))
	}
	for n := range 50 {
		tx := s.Begin()
		r, ok := tx.Get(benchKey(n))
		if !ok {
			t.Fatalf("key %d is not there", n)
		}
		keep(r)
		if r, ok = tx.Get([]byte("unflushed")); !ok {
			t.Fatal("the unflushed key is not there")
		}
		keep(r)
		tx.Delete(kv.Span{Key: benchKey(n)}, keep, nil)
		tx.Put(benchKey(n+100), []byte("new"), 0)
		tx.End()
		if n%20 == 10 { // the file of the records so far gets another's place, and is closed
			if err := errors.Join(s.Flush(t.Context()), s.Defragment(t.Context())); err != nil {
				t.Fatal(err)
			}
		}
	}
	if s.OpenReads() != 3 { // of the first file and of each copy
		t.Errorf("%d states of the file are held", s.OpenReads())
	}
	time.Sleep(2 * dissolvePause)
	for i, r := range got {
		if !bytes.Equal(r.KV, want[i]) {
			t.Fatalf("record %v is now %q, was %q", r.Rev, r.KV, want[i])
		}
	}
	s.Publish(1002, 1)
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.OpenReads() != 1 {
		t.Errorf("%d states of the file are held after Publish", s.OpenReads())
	}
}

// TestFullDisk has every write fail for a while.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	var full atomic.Bool
	var opts Options
	opts.hooks.commit = func() error {
		if full.Load() {
			return fmt.Errorf("file resize error: %s", syscall.ENOSPC) // as bbolt has it
		}
		return nil
	}
	s := mustOpen(t, path, opts)
	full.Store(true)
	for i := range 100 {
		put(s, fmt.Sprint("key", i), "value")
		s.Publish(uint64(i+1), 1)
	}
	if err := s.Flush(t.Context()); err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("Flush with a full disk: %v", err)
	}
	if s.Stalled() == nil || s.Flushed() != 0 || s.TailBytes() == 0 {
		t.Fatalf("stalled: %v, flushed %d", s.Stalled(), s.Flushed())
	}
	v := s.View()
	if n := len(list(t, v, kv.Range{})); n != 100 {
		t.Fatalf("%d keys, want 100", n)
	}
	v.Release()
	full.Store(false)
	for end := time.Now().Add(20 * time.Second); s.Flushed() != 100; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it does not go on when there is room")
		}
	}
	if s.Stalled() != nil || s.TailBytes() != 0 {
		t.Fatalf("still stalled: %v, %d bytes", s.Stalled(), s.TailBytes())
	}
	mustClose(t, s)
}

// TestTailIsBounded fills the tail while nothing can be written: Publish blocks, and goes
// on when there is room, or at the latest when the store is closed.
func TestTailIsBounded(t *testing.T) {
	t.Parallel()
	var full atomic.Bool
	full.Store(true)
	var opts Options
	opts.hooks.commit = func() error {
		if full.Load() {
			return syscall.ENOSPC
		}
		return nil
	}
	for _, closing := range []bool{false, true} {
		full.Store(true)
		s := mustOpen(t, filepath.Join(t.TempDir(), "db"), opts)
		published := make(chan int)
		go func() {
			n := 0
			for ; n < 100; n++ {
				put(s, "key", strings.Repeat("x", 1<<20))
				s.Publish(uint64(n+1), 1)
				if n == 70 {
					break
				}
			}
			published <- n
		}()
		for end := time.Now().Add(20 * time.Second); s.TailBytes() <= tailBytesMax; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("the tail does not fill")
			}
		}
		select {
		case <-published:
			t.Fatal("Publish does not block")
		case <-time.After(50 * time.Millisecond):
		}
		if s.TailBytes() > tailBytesMax+2<<20 {
			t.Fatalf("the tail has %d bytes", s.TailBytes())
		}
		if closing {
			// The one that is blocked returns; the applier must then end by itself.
			s.mu.Lock()
			s.closing = true
			s.room.Broadcast()
			s.mu.Unlock()
			<-published
			if err := s.Close(); !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("Close with a full disk: %v", err)
			}
			continue
		}
		full.Store(false)
		<-published
		mustClose(t, s)
	}
}

func TestFailure(t *testing.T) {
	t.Parallel()
	fault := errors.New("input/output error")
	failed := make(chan error, 2)
	opts := Options{OnFailure: func(err error) { failed <- err }}
	opts.hooks.commit = func() error { return fault }
	s := mustOpen(t, filepath.Join(t.TempDir(), "db"), opts)
	put(s, "key", "value")
	s.Publish(1, 1)
	if err := s.Flush(t.Context()); !errors.Is(err, fault) {
		t.Fatalf("Flush: %v", err)
	}
	if err := <-failed; !errors.Is(err, fault) || !strings.Contains(err.Error(), s.path) {
		t.Fatalf("OnFailure(%v)", err)
	}
	if err := s.Defragment(t.Context()); !errors.Is(err, fault) {
		t.Fatalf("Defragment: %v", err)
	}
	if err := s.Close(); !errors.Is(err, fault) {
		t.Fatalf("Close: %v", err)
	}
	if len(failed) > 0 {
		t.Fatal("OnFailure twice")
	}
}

// TestBumpedRevision opens what etcdutl snapshot restore --bump-revision leaves: a record
// without a key, far above the others, and a compaction to it that is yet to be done.
func TestBumpedRevision(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	s := mustOpen(t, path, Options{})
	fill(t, s, 100, 1)
	mustClose(t, s)
	db, err := bbolt.Open(path, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	bumped := appendRev(nil, kv.Revision{Main: 5000}, false)
	err = db.Update(func(tx *bbolt.Tx) error {
		return errors.Join(tx.Bucket(bucketKey).Put(bumped, nil), tx.Bucket(bucketMeta).Put(metaScheduled, bumped))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s = mustOpen(t, path, Options{})
		v := s.View()
		if v.Rev() < 5000 || v.CompactRev() != 5000 {
			t.Errorf("revision %d, compacted %d", v.Rev(), v.CompactRev())
		}
		found, err := v.Range(&kv.Range{Span: kv.Span{Key: []byte{0}, End: []byte{0}}}, func([]byte) {})
		if err != nil || found.Count != 100 {
			t.Errorf("%d keys, %v", found.Count, err)
		}
		if _, err := v.Range(&kv.Range{Span: kv.Span{Key: []byte{0}}, Revision: 50}, nil); !errors.Is(err, kv.ErrCompacted) {
			t.Errorf("an older revision: %v", err)
		}
		v.Release()
		fill(t, s, 100, 1)
		mustClose(t, s)
	}
}

// TestBadFiles opens what is no store, or not any more.
func TestBadFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	s := mustOpen(t, good, Options{})
	fill(t, s, 3000, 1)
	mustClose(t, s)
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	update := func(fn func(tx *bbolt.Tx) error) func(string) {
		return func(path string) {
			db, err := bbolt.Open(path, 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(db.Update(fn), db.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		name string
		file []byte
		then func(path string)
		want string
	}{
		{"text", bytes.Repeat([]byte("no database\n"), 1000), nil, "not a B+tree file"},
		{"short", []byte("x"), nil, "not a B+tree file"},
		{"less than two pages", whole[:os.Getpagesize()*3/2], nil, "restore the member from a snapshot"},
		{"cut", whole[:len(whole)/16], nil, "cut off"},
		{"newer", whole, update(func(tx *bbolt.Tx) error {
			return tx.Bucket(bucketMeta).Put(metaVersion, []byte("3.8.0"))
		}), "storage version 3.8.0"},
		{"index", whole, update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(metaIndex, []byte("1")) }), "consistent_index"},
		{"mark", whole, update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketMeta).Put(metaFinished, []byte("1")) }), "finishedCompactRev"},
		{"key", whole, update(func(tx *bbolt.Tx) error { return tx.Bucket(bucketKey).Put([]byte("abc"), nil) }), "bucket key has key"},
		{"order", bytes.Replace(whole, appendRev(nil, kv.Revision{Main: 2000}, false), appendRev(nil, kv.Revision{Main: 20}, false), 2),
			nil, "revision 20.0 follows 1999.0"},
		{"record", whole, update(func(tx *bbolt.Tx) error {
			return tx.Bucket(bucketKey).Put(appendRev(nil, kv.Revision{Main: 5000}, false), []byte{0xff})
		}), "record of revision 5000.0"},
	} {
		path := filepath.Join(dir, c.name)
		if err := os.WriteFile(path, c.file, 0o600); err != nil {
			t.Fatal(err)
		}
		if c.then != nil {
			c.then(path)
		}
		s, err := Open(path, Options{})
		if err == nil {
			mustClose(t, s)
		}
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	// Pages overwritten at random: an error or a store, but never a crash.
	rnd := rand.New(rand.NewPCG(rand.Uint64(), 4))
	refused := 0
	for i := range 30 {
		bad := bytes.Clone(whole)
		for range 1 + rnd.IntN(5) {
			page := bad[4096*(2+rnd.IntN(len(bad)/8192)):][:4096]
			for j := range page {
				page[j] = byte(rnd.Uint32())
			}
		}
		path := filepath.Join(dir, fmt.Sprint("random", i))
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := loadFile(path, nil); err != nil {
			refused++
		}
	}
	if refused == 0 {
		t.Error("none of 30 damaged files was refused")
	}
}

func TestInUse(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	s := mustOpen(t, path, Options{})
	defer mustClose(t, s)
	if _, err := Open(path, Options{}); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Fatalf("second Open: %v", err)
	}
}

// TestCompactEdges are etcd's answers at the edges.
func TestCompactEdges(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	s := mustOpen(t, path, Options{})
	for _, c := range []struct {
		rev  int64
		want error
	}{{-1, kv.ErrCompacted}, {0, nil}, {0, kv.ErrCompacted}, {2, kv.ErrFutureRevision}, {1, nil}, {1, kv.ErrCompacted}} {
		if _, err := s.Compact(c.rev); err != c.want {
			t.Fatalf("Compact(%d) = %v, want %v", c.rev, err, c.want)
		}
	}
	// The newest revision is a tombstone, and all that is left of it is the mark.
	put(s, "a", "")
	tx := s.Begin()
	tx.Delete(all, nil, nil)
	tx.End()
	tx = s.Begin() // changes nothing: no revision
	if n := tx.Delete(all, nil, nil); n != 0 {
		t.Fatalf("deleted %d", n)
	}
	if rev, events := tx.End(); rev != 3 || len(events) > 0 {
		t.Fatalf("End = %d, %v", rev, events)
	}
	done, err := s.Compact(3)
	if err != nil {
		t.Fatal(err)
	}
	s.Publish(1, 1)
	<-done
	mustClose(t, s)
	if n := records(t, path); n != 1 {
		t.Fatalf("%d records, want the tombstone alone", n)
	}
	s = mustOpen(t, path, Options{})
	defer mustClose(t, s)
	v := s.View()
	defer v.Release()
	if v.Rev() != 3 || v.CompactRev() != 3 {
		t.Fatalf("opened at %d, compacted at %d", v.Rev(), v.CompactRev())
	}
}

// TestCompactUnflushed compacts what the file does not hold yet: more than one flush takes.
func TestCompactUnflushed(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	s := mustOpen(t, path, Options{NoSync: true})
	value := strings.Repeat("x", 200<<10)
	for i := range 100 { // 20 MB
		put(s, "key", value)
		s.Publish(uint64(i+1), 1)
	}
	done, err := s.Compact(s.Rev())
	if err != nil {
		t.Fatal(err)
	}
	s.Publish(101, 1)
	<-done
	mustClose(t, s)
	if n := records(t, path); n != 1 {
		t.Fatalf("%d records are left, want 1", n)
	}
}

// After each step of a compaction the file holds of every key a later part of its history,
// whole: the oldest revisions go first, tombstones in their places.
func TestCompactionTakesTheOldestOfAKeyFirst(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	history := map[string][]kv.Revision{} // of each key, all of it
	var s *Store
	left := func() map[string][]kv.Revision {
		found := map[string][]kv.Revision{}
		err := s.flusher.file.db.View(func(tx *bbolt.Tx) error {
			return tx.Bucket(bucketKey).ForEach(func(k, v []byte) error {
				rev, _, ok := parseRev(k)
				if !ok {
					return fmt.Errorf("key %x", k)
				}
				key := string(wire.KeyOf(v))
				found[key] = append(found[key], rev)
				return nil
			})
		})
		if err != nil {
			t.Error(err)
		}
		return found
	}
	compacting := false
	steps := 0
	s = mustOpen(t, filepath.Join(t.TempDir(), "db"), Options{NoSync: true, hooks: hooks{drops: 5, step: func(name string) {
		if name != "commit" || !compacting {
			return
		}
		steps++
		for key, revs := range left() {
			whole := history[key]
			if !slices.Equal(revs, whole[len(whole)-len(revs):]) {
				t.Errorf("step %d: of key %s, whose history is %v, %v is left", steps, key, whole, revs)
			}
		}
	}}})
	defer mustClose(t, s)
	for i := range 300 {
		tx := s.Begin()
		key := fmt.Sprint("k", rnd.IntN(12))
		if rnd.IntN(3) == 0 {
			tx.Delete(kv.Span{Key: []byte(key)}, nil, func(kv.LeaseID, []byte) {})
		} else {
			tx.Put([]byte(key), []byte("v"), 0)
		}
		_, events := tx.End()
		for _, e := range events {
			history[key] = append(history[key], e.Rev)
		}
		s.Publish(uint64(i+1), 1)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	compacting = true
	if _, err := s.Compact(s.Rev() - 10); err != nil {
		t.Fatal(err)
	}
	s.Publish(301, 1)
	waitCompacted(t, s)
	if steps < 10 {
		t.Errorf("only %d steps were looked at", steps)
	}
}
