package mvcc

import (
	"context"
	"errors"
	"fmt"
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
)

// received writes the file of a member that has applied n entries, each of which set all
// keys to its number.
func received(t *testing.T, path string, entries int) {
	t.Helper()
	s := mustOpen(t, path, Options{NoSync: true})
	for i := range entries {
		putAll(s, i+1)
		s.Publish(uint64(i+1), 3)
	}
	mustClose(t, s)
}

const replaceKeys = 200

func putAll(s *Store, value int) {
	tx := s.Begin()
	for n := range replaceKeys {
		tx.Put(benchKey(n), fmt.Append(nil, "value", value), kv.LeaseID(n%2))
	}
	tx.End()
}

// checkAll checks that the view holds what putAll(value) wrote last.
func checkAll(t *testing.T, v *View, value int) {
	t.Helper()
	n := 0
	f, err := v.Range(&kv.Range{Span: all}, func(b []byte) {
		if !strings.Contains(string(b), fmt.Sprint("value", value)) {
			t.Errorf("key %d is %q, want value%d", n, b, value)
		}
		n++
	})
	if err != nil || n != replaceKeys || f.Count != replaceKeys || v.Rev() != int64(value)+1 {
		t.Errorf("%d keys, %+v, %v at revision %d; want value%d", n, f, err, v.Rev(), value)
	}
}

// TestReplaceCrash opens what is on disk after every step of Replace that changes it: it
// must be the old state or the new one.
func TestReplaceCrash(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path, from := filepath.Join(dir, "db"), filepath.Join(dir, "0000000000000009.snap.db")
	received(t, from, 9)
	var crashes, wants []string
	opts := Options{}
	opts.hooks.step = func(name string) { // by the flusher, which waits meanwhile
		at := filepath.Join(dir, fmt.Sprintf("crash-%d-%s", len(crashes), name))
		err := os.Mkdir(at, 0o700)
		if err == nil {
			err = copyFile(path, filepath.Join(at, "db"))
		}
		if err != nil {
			panic(err)
		}
		crashes, wants = append(crashes, at), append(wants, name)
	}
	s := mustOpen(t, path, opts)
	for i := range 5 {
		putAll(s, i+1)
		s.Publish(uint64(i+1), 3)
	}
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	putAll(s, 6) // not flushed, and in the new file
	s.Publish(6, 3)
	var leased int
	if err := s.Replace(from, func(kv.LeaseID, []byte) { leased++ }); err != nil {
		t.Fatal(err)
	}
	if leased != replaceKeys/2 {
		t.Errorf("OnLeasedKey for %d keys, want %d", leased, replaceKeys/2)
	}
	if _, err := os.Stat(from); !os.IsNotExist(err) {
		t.Errorf("the received file is still at its place: %v", err)
	}
	putAll(s, 10)
	s.Publish(10, 3)
	mustClose(t, s)

	replaced := false
	for i, at := range crashes {
		check(t, filepath.Join(at, "db"))
		c := mustOpen(t, filepath.Join(at, "db"), Options{})
		index, _ := c.Applied()
		want := func(index uint64) bool { return index <= 6 }
		switch {
		case wants[i] == "renamed":
			replaced = true
			fallthrough
		case replaced:
			want = func(index uint64) bool { return index == 9 || index == 10 }
		}
		if !want(index) {
			t.Errorf("%s: opened as the state after entry %d", at, index)
		}
		v := c.View()
		if index > 0 {
			checkAll(t, v, int(index))
		}
		v.Release()
		mustClose(t, c)
	}
	if !replaced || len(crashes) < 4 {
		t.Fatalf("steps %q", wants)
	}
	c := mustOpen(t, path, Options{})
	defer mustClose(t, c)
	v := c.View()
	defer v.Release()
	checkAll(t, v, 10)
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}

// TestReplaceRefuses offers files that must not be taken. Each time the store goes on.
func TestReplaceRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "db")
	s := mustOpen(t, path, Options{NoSync: true})
	for i := range 5 {
		putAll(s, i+1)
		s.Publish(uint64(i+1), 3)
	}
	edit := func(fn func(tx *bbolt.Tx) error) func(string) error {
		return func(path string) error {
			db, err := bbolt.Open(path, 0o600, nil)
			if err != nil {
				return err
			}
			return errors.Join(db.Update(fn), db.Close())
		}
	}
	for _, c := range []struct {
		name    string
		entries int
		spoil   func(path string) error
		want    string
		checked bool // Check finds it, too
	}{
		{"missing", 9, os.Remove, "no such file", true},
		{"empty", 9, func(p string) error { return os.Truncate(p, 0) }, "it is empty", true},
		{"text", 9, func(p string) error { return os.WriteFile(p, []byte(strings.Repeat("no database\n", 5000)), 0o600) },
			"it is not a B+tree file", true},
		{"short", 9, func(p string) error { return os.Truncate(p, 16<<10) }, "it is cut off", true},
		{"foreign", 9, edit(func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketKey) }), "it has no bucket key", true},
		{"without meta", 9, edit(func(tx *bbolt.Tx) error { return tx.DeleteBucket(bucketMeta) }), "it has no bucket meta", true},
		{"newer version", 9, edit(func(tx *bbolt.Tx) error {
			return tx.Bucket(bucketMeta).Put(metaVersion, []byte("3.8.0"))
		}), "3.8.0", true},
		{"odd index", 9, edit(func(tx *bbolt.Tx) error {
			return tx.Bucket(bucketMeta).Put(metaIndex, []byte("nine"))
		}), "it is damaged", true},
		{"odd record", 9, edit(func(tx *bbolt.Tx) error {
			return tx.Bucket(bucketKey).Put(appendRev(nil, kv.Revision{Main: 3, Sub: 999}, false), []byte("\xff"))
		}), "it is damaged", false},
		{"zeros inside", 9, func(p string) error { return zero(p, 12<<10) }, "damaged", true},
		{"older", 4, func(string) error { return nil }, "it is older", false},
		{"lower index", 9, edit(func(tx *bbolt.Tx) error { return putApplied(tx, 4, 3) }), "it is older", false},
		{"lower revision", 4, edit(func(tx *bbolt.Tx) error { return putApplied(tx, 9, 3) }), "it is older", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			from := filepath.Join(dir, "received")
			received(t, from, c.entries)
			if err := c.spoil(from); err != nil {
				t.Fatal(err)
			}
			if _, _, err := Check(from); c.checked != (err != nil) || c.checked && !strings.Contains(err.Error(), c.want) {
				t.Errorf("Check: %v; want %q: %v", err, c.want, c.checked)
			}
			err := s.Replace(from, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), from) {
				t.Errorf("Replace: %v; want %q", err, c.want)
			}
			if err := os.Remove(from); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			if err := errors.Join(s.Flush(t.Context()), s.Defragment(t.Context())); err != nil {
				t.Fatal(err)
			}
			v := s.View()
			defer v.Release()
			checkAll(t, v, 5)
		})
	}
	mustClose(t, s)
	check(t, path)
}

// zero overwrites what is from offset on, but leaves the length.
func zero(path string, offset int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil {
		_, err = f.WriteAt(make([]byte, info.Size()-offset), offset)
	}
	return errors.Join(err, f.Close())
}

// TestReplaceWhileDiskIsFull: a received file frees the store of what it could not write.
// Whoever waits is answered, and OnFlush does not tell of the old file any more.
func TestReplaceWhileDiskIsFull(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	from := filepath.Join(dir, "received")
	received(t, from, 9)
	var full atomic.Bool
	var mu sync.Mutex
	var flushes []uint64
	opts := Options{OnFlush: func(index, _ uint64) {
		mu.Lock()
		defer mu.Unlock()
		flushes = append(flushes, index)
	}}
	opts.hooks.commit = func() error {
		if full.Load() {
			return syscall.ENOSPC
		}
		return nil
	}
	s := mustOpen(t, filepath.Join(dir, "db"), opts)
	defer mustClose(t, s)
	putAll(s, 1)
	s.Publish(1, 3)
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	full.Store(true)
	putAll(s, 2)
	putAll(s, 3)
	s.Publish(3, 3)
	done, err := s.Compact(s.Rev())
	if err != nil {
		t.Fatal(err)
	}
	s.Publish(4, 3)
	unpublished, err := s.Compact(s.Rev())
	if err != kv.ErrCompacted {
		t.Fatalf("%v, %v", unpublished, err)
	}
	putAll(s, 4)
	if unpublished, err = s.Compact(s.Rev()); err != nil {
		t.Fatal(err)
	}
	s.PutBucket("lease", []byte("7"), []byte("lease"))
	if err := s.Flush(t.Context()); err == nil {
		t.Fatal("Flush with a full disk")
	}
	if err := s.Replace(from, nil); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Stalled(), s.Flush(t.Context())); err != nil {
		t.Fatal(err)
	}
	<-done // the file knows nothing of these compactions
	<-unpublished
	if total, inUse := s.Size(); s.TailBytes() != 0 || s.Flushed() != 9 || total < inUse || inUse == 0 {
		t.Fatalf("%d bytes of tail, flushed %d, size %d, %d in use", s.TailBytes(), s.Flushed(), total, inUse)
	}
	err = s.ReadBucket("lease", func(k, _ []byte) error { return fmt.Errorf("lease %s", k) })
	if err != nil {
		t.Fatal(err)
	}
	v := s.View()
	checkAll(t, v, 9)
	v.Release()
	full.Store(false)
	putAll(s, 10)
	s.Publish(10, 3)
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Flush may return a moment before OnFlush is called.
	seen := func() []uint64 {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(flushes)
	}
	for deadline := time.Now().Add(10 * time.Second); len(seen()) < 2 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if got := seen(); !slices.Equal(got, []uint64{1, 10}) {
		t.Fatalf("OnFlush with %v", got)
	}
}

// TestReplaceGoesOnWithCompaction: the received file has a compaction that its member had
// not finished. Who waited for it in the old file waits for it in the new one.
func TestReplaceGoesOnWithCompaction(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	from := filepath.Join(dir, "received")
	received(t, from, 9)
	db, err := bbolt.Open(from, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket(bucketMeta).Put(metaScheduled, appendRev(nil, kv.Revision{Main: 6}, false))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "db")
	s := mustOpen(t, path, Options{NoSync: true})
	for i := range 6 {
		putAll(s, i+1)
		s.Publish(uint64(i+1), 3)
	}
	s.suspended(true) // so that it is under way
	done, err := s.Compact(6)
	if err != nil {
		t.Fatal(err)
	}
	s.Publish(7, 3)
	if err := s.Replace(from, nil); err != nil {
		t.Fatal(err)
	}
	<-done
	waitCompacted(t, s)
	v := s.View()
	if v.CompactRev() != 6 {
		t.Errorf("compacted at %d", v.CompactRev())
	}
	checkAll(t, v, 9)
	v.Release()
	mustClose(t, s)
	check(t, path)
	if got := records(t, path); got != 5*replaceKeys { // revisions 6 to 10
		t.Errorf("%d records, want %d", got, 5*replaceKeys)
	}
}

// TestReplaceDuringCompaction replaces the file while a compaction of the old one is under
// way: nothing of it may be applied to the new one.
func TestReplaceDuringCompaction(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	from := filepath.Join(dir, "received")
	c := mustOpen(t, from, Options{NoSync: true})
	for i := range 9 {
		putAll(c, i+1)
		if i == 6 { // at revision 8
			done, err := c.Compact(7)
			if err != nil {
				t.Fatal(err)
			}
			c.Publish(uint64(i+1), 3)
			<-done
			continue
		}
		c.Publish(uint64(i+1), 3)
	}
	mustClose(t, c)
	path := filepath.Join(dir, "db")
	s := mustOpen(t, path, Options{NoSync: true, hooks: hooks{drops: 1}})
	for i := range 7 {
		putAll(s, i+1)
		s.Publish(uint64(i+1), 3)
	}
	done, err := s.Compact(7)
	if err != nil {
		t.Fatal(err)
	}
	s.Publish(7, 3)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		begun := !s.superseded.due(7) && len(s.compactions) > 0
		s.mu.Unlock()
		if begun {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the compaction does not begin")
		}
	}
	if err := s.Replace(from, nil); err != nil {
		t.Fatal(err)
	}
	<-done
	s.opts.hooks.drops = 0 // the flusher rests
	if done, err = s.Compact(s.Rev()); err != nil {
		t.Fatal(err)
	}
	s.Publish(10, 3)
	<-done
	v := s.View()
	checkAll(t, v, 9)
	v.Release()
	mustClose(t, s)
	if got := records(t, path); got != replaceKeys {
		t.Errorf("%d records, want %d", got, replaceKeys)
	}
}

// TestReplaceStopsOthers: while a file is read in, nothing is flushed, and a Defragment
// gives way; it begins anew afterwards.
func TestReplaceStopsOthers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	from := filepath.Join(dir, "received")
	received(t, from, 9)
	var opts Options
	var copies atomic.Int64
	copied, goOn := make(chan struct{}), make(chan struct{})
	opts.hooks.step = func(name string) {
		if name == "copied" && copies.Add(1) == 1 {
			close(copied)
			<-goOn
		}
	}
	s := mustOpen(t, filepath.Join(dir, "db"), opts)
	putAll(s, 1)
	s.Publish(1, 3)
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	answers := make(chan error, 2)
	go func() { answers <- s.Defragment(t.Context()) }()
	<-copied
	putAll(s, 2)
	s.Publish(2, 3)
	go func() {
		for !s.isReplacing() {
			time.Sleep(time.Millisecond)
		}
		close(goOn)
	}()
	first := true
	err := s.Replace(from, func(kv.LeaseID, []byte) {
		if !first {
			return
		}
		first = false
		go func() { answers <- s.Flush(t.Context()) }()
		time.Sleep(50 * time.Millisecond)
		if s.Flushed() != 1 || len(answers) > 0 {
			t.Errorf("flushed %d, %d answers while the file is read", s.Flushed(), len(answers))
		}
	})
	if err := errors.Join(err, <-answers, <-answers); err != nil {
		t.Fatal(err)
	}
	if copies.Load() != 2 {
		t.Errorf("Defragment copied %d times, want 2", copies.Load())
	}
	v := s.View()
	checkAll(t, v, 9)
	v.Release()
	mustClose(t, s)
}

func (s *Store) isReplacing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.replacing
}

// TestReplaceLetsGo: the old file is closed, and its space given back, as soon as nobody
// reads it any more.
func TestReplaceLetsGo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	from := filepath.Join(dir, "received")
	received(t, from, 9)
	s := mustOpen(t, filepath.Join(dir, "db"), Options{NoSync: true})
	defer mustClose(t, s)
	putAll(s, 1)
	s.Publish(1, 3)
	if err := s.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	tx := s.Begin() // holds what it returns until the next Publish, or this
	tx.Get(benchKey(1))
	tx.End()
	v := s.View()
	old := s.flusher.file
	if err := s.Replace(from, nil); err != nil {
		t.Fatal(err)
	}
	select {
	case <-old.closed:
		t.Fatal("the old file is closed under a reader")
	case <-time.After(20 * time.Millisecond):
	}
	checkAll(t, v, 1)
	v.Release()
	select {
	case <-old.closed:
	case <-time.After(20 * time.Second):
		t.Fatal("somebody still holds the old file")
	}
	if old.err != nil {
		t.Fatal(old.err)
	}
}

// TestReplaceWithoutDirectory: where the name may not survive, the store has failed. It
// says so and can be closed; Replace and Defragment return.
func TestReplaceWithoutDirectory(t *testing.T) {
	t.Parallel()
	for _, act := range []string{"Replace", "Defragment"} {
		dir := filepath.Join(t.TempDir(), "snap")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		from := filepath.Join(dir, "received")
		received(t, from, 9)
		failed := make(chan error, 1)
		opts := Options{OnFailure: func(err error) { failed <- err }}
		opts.hooks.step = func(name string) {
			if name == "renamed" {
				if err := os.Rename(dir, dir+".gone"); err != nil {
					panic(err)
				}
			}
		}
		s := mustOpen(t, filepath.Join(dir, "db"), opts)
		var err error
		if act == "Replace" {
			err = s.Replace(from, nil)
		} else {
			err = s.Defragment(t.Context())
		}
		if !errors.Is(err, os.ErrNotExist) || !errors.Is(<-failed, os.ErrNotExist) {
			t.Errorf("%s: %v", act, err)
		}
		if err := s.Close(); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("Close after %s: %v", act, err)
		}
	}
}

// TestReplaceAfterClose: it is refused, and does not wait for what will not come.
func TestReplaceAfterClose(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	from := filepath.Join(dir, "received")
	received(t, from, 9)
	s := mustOpen(t, filepath.Join(dir, "db"), Options{})
	mustClose(t, s)
	if err := s.Replace(from, nil); !errors.Is(err, errClosed) {
		t.Fatalf("Replace: %v", err)
	}
}

// A call that must not be made does not wait for ever for a view that will never be.
func TestViewAfterCloseIsRefused(t *testing.T) {
	t.Parallel()
	s := mustOpen(t, filepath.Join(t.TempDir(), "db"), Options{})
	mustClose(t, s)
	defer func() {
		if recover() == nil {
			t.Error("there is a view of a closed store")
		}
	}()
	s.View()
}

// TestReplaceUnderReaders replaces the file again and again under readers, snapshots,
// flushes and defragmentations. It says the most under the race detector.
func TestReplaceUnderReaders(t *testing.T) {
	t.Parallel()
	const rounds = 6
	dir := t.TempDir()
	for i := range rounds {
		received(t, filepath.Join(dir, fmt.Sprint("received", i)), 10*(i+1))
	}
	path := filepath.Join(dir, "db")
	s := mustOpen(t, path, Options{NoSync: true})
	putAll(s, 1)
	s.Publish(1, 3)
	ctx, stop := context.WithCancel(t.Context())
	var others sync.WaitGroup
	var reads, snapshots, defrags atomic.Int64
	for range 3 {
		others.Go(func() {
			last := int64(0)
			for ctx.Err() == nil {
				v := s.View()
				if v.Rev() < last {
					t.Errorf("revision %d after %d", v.Rev(), last)
				}
				last = v.Rev()
				checkAll(t, v, int(last-1))
				time.Sleep(time.Duration(rand.IntN(2000)) * time.Microsecond)
				checkAll(t, v, int(last-1))
				v.Release()
				reads.Add(1)
			}
		})
	}
	loop := func(count *atomic.Int64, fn func() error) {
		others.Go(func() {
			for ctx.Err() == nil {
				if err := fn(); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
				count.Add(1)
			}
		})
	}
	loop(&defrags, func() error { return s.Defragment(ctx) })
	loop(&defrags, func() error { return s.Defragment(ctx) })
	var name atomic.Int64
	loop(&snapshots, func() error {
		sn, err := s.Snapshot(ctx)
		if err != nil {
			return err
		}
		index, _ := sn.Applied()
		at := filepath.Join(dir, fmt.Sprint("snapshot", name.Add(1)))
		if err := saveTo(sn, at); err != nil {
			return err
		}
		check(t, at)
		if got, _, err := Check(at); got != index || err != nil {
			return fmt.Errorf("a snapshot of entry %d is one of %d: %w", index, got, err)
		}
		return os.Remove(at)
	})
	for i := range rounds {
		for n := 10*i + 2; n < 10*i+6; n++ {
			putAll(s, n)
			s.Publish(uint64(n), 3)
			time.Sleep(time.Millisecond)
		}
		if i%3 == 2 {
			if _, err := s.Compact(s.Rev() - 1); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Replace(filepath.Join(dir, fmt.Sprint("received", i)), nil); err != nil {
			t.Fatal(err)
		}
		if i < rounds-1 {
			putAll(s, 10*(i+1)+1)
			s.Publish(uint64(10*(i+1)+1), 3)
		}
	}
	for end := time.Now().Add(time.Minute); defrags.Load() == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond) // those that were interrupted end after all
	}
	stop()
	others.Wait()
	v := s.View()
	checkAll(t, v, 10*rounds)
	v.Release()
	mustClose(t, s)
	check(t, path)
	if left, err := filepath.Glob(filepath.Join(dir, "db.tmp.*")); err != nil || len(left) > 0 {
		t.Errorf("left: %q, %v", left, err)
	}
	t.Logf("%d reads, %d snapshots, %d defragmentations", reads.Load(), snapshots.Load(), defrags.Load())
}

// TestReplaceByDamaged overwrites each page of a file in turn. Replace refuses it, or the
// store can be read and written afterwards: nothing that another member sends may end the
// process.
func TestReplaceByDamaged(t *testing.T) {
	t.Parallel()
	const pageLen, headerLen = 4096, 16
	dir := t.TempDir()
	path, from := filepath.Join(dir, "db"), filepath.Join(dir, "received")
	whole := damageable(t, from)
	rnd := rand.New(rand.NewPCG(rand.Uint64(), 5))
	refused, taken := 0, 0
	s := mustOpen(t, path, Options{NoSync: true})
	for at := 0; at < len(whole); at += pageLen {
		bad := slices.Clone(whole)
		page := bad[at:][:pageLen]
		switch rnd.IntN(4) {
		case 0:
			clear(page)
		case 1:
			copy(page, whole[rnd.IntN(len(whole)/pageLen)*pageLen:])
		case 2:
			page = page[headerLen:]
			fallthrough
		default:
			for i := range page {
				page[i] = byte(rnd.Uint32())
			}
		}
		if err := os.WriteFile(from, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.Replace(from, nil); err != nil {
			refused++
			continue
		}
		taken++
		v := s.View()
		list(t, v, kv.Range{})
		v.Release()
		for _, name := range allBuckets[1:] {
			if err := s.ReadBucket(name, func(_, _ []byte) error { return nil }); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Hash(t.Context()); err != nil {
			t.Fatal(err)
		}
		mustClose(t, s)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		s = mustOpen(t, path, Options{NoSync: true})
	}
	mustClose(t, s)
	if refused == 0 || taken == 0 {
		t.Fatalf("%d files refused, %d taken", refused, taken)
	}
	t.Logf("%d files refused, %d taken", refused, taken)
}

// damageable returns the bytes of a file with pages of every kind.
func damageable(t *testing.T, path string) []byte {
	s := mustOpen(t, path, Options{NoSync: true})
	for i := range 300 {
		for _, bucket := range []string{"lease", "members"} {
			s.PutBucket(bucket, fmt.Appendf(nil, "%08d", i), make([]byte, 40))
		}
	}
	for i := range 6 {
		putAll(s, i+1)
		s.Publish(uint64(i+1), 3)
	}
	if _, err := s.Compact(s.Rev() - 2); err != nil {
		t.Fatal(err)
	}
	s.Publish(7, 3)
	waitCompacted(t, s)
	mustClose(t, s)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
