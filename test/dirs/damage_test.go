package dirs

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/test/harness"
)

// Where things lie in a data directory.
func logDir(dir string) string { return filepath.Join(dir, "member", "wal") }
func dbFile(dir string) string { return filepath.Join(dir, "member", "snap", "db") }

// segments are the log's files, oldest first.
func segments(t testing.TB, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(logDir(dir), "*.wal"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatalf("no log in %s", dir)
	}
	slices.Sort(files)
	return files
}

// record is where a record lies in a segment: a frame of 8 bytes, then the data with its
// padding.
type record struct{ from, to int64 }

// records walks a segment.
func records(t testing.TB, file string) []record {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all []record
	for at := int64(0); at+8 <= int64(len(data)); {
		frame := binary.LittleEndian.Uint64(data[at:])
		if frame == 0 {
			break
		}
		// The low 56 bits say how long the record is, the top byte how much padding follows.
		size := int64(frame & (1<<56 - 1))
		if frame>>63 == 1 {
			size += int64(frame >> 56 & 0x7)
		}
		all = append(all, record{at, at + 8 + size})
		at += 8 + size
	}
	return all
}

// edit changes a file's bytes in place.
func edit(t testing.TB, file string, change func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, change(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

// flip changes one bit.
func flip(t testing.TB, file string, at int64) {
	edit(t, file, func(data []byte) []byte {
		data[at] ^= 0x10
		return data
	})
}

// template makes a directory of some history that each case damages a copy of. The last
// operation is a put of 20 KiB, so that a tear has sectors to fall between.
func template(t *testing.T, kind harness.Kind, flags ...string) (dir string, before, after portrait) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "data")
	s := harness.Start(t, kind, dir, flags...)
	w := &writer{Rand: random(t), clients: connect(t, s)}
	if err := w.write(context.Background(), 300); err != nil {
		t.Fatal(err)
	}
	// Beyond the time after which both write the store: a torn record is then the only thing
	// that the log has and the store has not.
	time.Sleep(1500 * time.Millisecond)
	before = depict(t, s)
	if _, err := w.kv.Put(context.Background(), &pb.PutRequest{Key: []byte("last"), Value: bytes.Repeat([]byte("last"), 5<<10)}); err != nil {
		t.Fatal(err)
	}
	s.Kill() // at once, so that the store does not have it yet
	own := filepath.Join(t.TempDir(), "data")
	copyDir(t, dir, own)
	s = harness.Start(t, kind, own)
	after = depict(t, s)
	s.Kill()
	return dir, before, after
}

// mustRefuse starts quorate on a directory that it cannot trust, and wants it to end by
// itself with an error that names what is wrong.
func mustRefuse(t *testing.T, dir string, names ...string) {
	t.Helper()
	s, err := harness.Launch(harness.Quorate, dir)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Kill()
	if harness.SelfTest() {
		// etcd takes some of these for a torn tail, or does not notice.
		exit, ended := s.WaitExit(2 * time.Second)
		t.Logf("etcd: ended: %v, %v", ended, exit)
		return
	}
	exit, ended := s.WaitExit(20 * time.Second)
	if !ended {
		t.Fatalf("it serves, or hangs, on a directory that it cannot trust\n%s", s.LogTail(20))
	}
	log := s.LogTail(40)
	if exit == nil {
		t.Fatalf("it ended with exit code 0\n%s", log)
	}
	for _, name := range names {
		if !strings.Contains(log, name) {
			t.Errorf("its error does not say %q\n%s", name, log)
		}
	}
	for _, bad := range []string{"goroutine ", "panic: ", "SIGBUS", "SIGSEGV"} {
		if strings.Contains(log, bad) {
			t.Errorf("it crashed rather than refused\n%s", log)
			break
		}
	}
	t.Logf("refused: %s", s.LogTail(1))
}

// TestDamage damages directories in ways that lose what was acknowledged, all of which have
// to be refused.
func TestDamage(t *testing.T) {
	harness.Peer(t, "etcd")
	harness.QuorateBinary(t)
	for _, kind := range kinds {
		t.Run("left by "+kind.String(), func(t *testing.T) {
			dir, _, _ := template(t, kind)
			snapped, _, _ := template(t, kind, "--snapshot-count=50", "--snapshot-catchup-entries=10")
			cases := []struct {
				name   string
				from   string
				damage func(t *testing.T, dir string) (names []string)
			}{
				{"a bit in the middle of the log", dir, func(t *testing.T, dir string) []string {
					file := segments(t, dir)[0]
					all := records(t, file)
					r := all[len(all)/2]
					flip(t, file, (r.from+8+r.to)/2)
					return []string{filepath.Base(file)}
				}},
				{"a bit in a record that valid ones follow", dir, func(t *testing.T, dir string) []string {
					file := segments(t, dir)[0]
					all := records(t, file)
					r := all[len(all)-6]
					flip(t, file, r.to-9)
					return []string{filepath.Base(file)}
				}},
				{"a length in the middle of the log", dir, func(t *testing.T, dir string) []string {
					file := segments(t, dir)[0]
					all := records(t, file)
					edit(t, file, func(data []byte) []byte {
						binary.LittleEndian.PutUint64(data[all[len(all)/2].from:], 1<<40)
						return data
					})
					return []string{filepath.Base(file)}
				}},
				{"a sector of zeros in the middle of the log", dir, func(t *testing.T, dir string) []string {
					file := segments(t, dir)[0]
					all := records(t, file)
					at := all[len(all)/2].from &^ 511
					edit(t, file, func(data []byte) []byte {
						clear(data[at : at+512])
						return data
					})
					return []string{filepath.Base(file)}
				}},
				{"no log", dir, func(t *testing.T, dir string) []string {
					if err := os.RemoveAll(logDir(dir)); err != nil {
						t.Fatal(err)
					}
					return []string{"wal"}
				}},
				{"the log of another cluster", dir, func(t *testing.T, dir string) []string {
					other := filepath.Join(t.TempDir(), "other")
					s := harness.Start(t, kind, other, "--initial-cluster-token=another")
					s.Kill()
					if err := os.RemoveAll(logDir(dir)); err != nil {
						t.Fatal(err)
					}
					copyDir(t, logDir(other), logDir(dir))
					return []string{"wal"}
				}},
				{"both meta pages of the db", dir, func(t *testing.T, dir string) []string {
					edit(t, dbFile(dir), func(data []byte) []byte {
						for _, at := range []int{16, 4096 + 16} {
							copy(data[at:], "damaged damaged damaged damaged")
						}
						return data
					})
					return []string{dbFile(dir)}
				}},
				{"half of the db", dir, func(t *testing.T, dir string) []string {
					// Half of what is in use: the file may be larger, with nothing in its end.
					used := highWater(t, dbFile(dir))
					edit(t, dbFile(dir), func(data []byte) []byte { return data[:used/2/4096*4096] })
					return []string{dbFile(dir)}
				}},
				{"an empty page in the db", dir, func(t *testing.T, dir string) []string {
					page := keyPage(t, dbFile(dir))
					edit(t, dbFile(dir), func(data []byte) []byte {
						clear(data[page*4096 : (page+1)*4096])
						return data
					})
					return []string{dbFile(dir)}
				}},
				{"a db that is not one", dir, func(t *testing.T, dir string) []string {
					edit(t, dbFile(dir), func([]byte) []byte { return []byte("this is not a database") })
					return []string{dbFile(dir)}
				}},
				{"no db, and a log that begins at a snapshot", snapped, func(t *testing.T, dir string) []string {
					if err := os.Remove(dbFile(dir)); err != nil {
						t.Fatal(err)
					}
					return []string{"db"}
				}},
				{"a newer storage version", dir, func(t *testing.T, dir string) []string {
					setMeta(t, dbFile(dir), "storageVersion", []byte("3.8.0"))
					return []string{dbFile(dir), "3.8.0"}
				}},
				{"a much newer storage version", dir, func(t *testing.T, dir string) []string {
					setMeta(t, dbFile(dir), "storageVersion", []byte("4.0.0"))
					return []string{dbFile(dir), "4.0.0"}
				}},
				{"a db ahead of the log", dir, func(t *testing.T, dir string) []string {
					setMeta(t, dbFile(dir), "consistent_index", binary.BigEndian.AppendUint64(nil, 1<<30))
					return []string{"db"}
				}},
			}
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) {
					own := filepath.Join(t.TempDir(), "data")
					copyDir(t, c.from, own)
					names := c.damage(t, own)
					mustRefuse(t, own, names...)
				})
			}
			t.Run("a segment missing", func(t *testing.T) {
				own := filepath.Join(t.TempDir(), "data")
				s := harness.Start(t, kind, own, "--unsafe-no-fsync")
				c := connect(t, s)
				for i := range 150 { // three segments of 64 MB
					req := &pb.PutRequest{Key: fmt.Appendf(nil, "big%d", i), Value: make([]byte, 1<<20)}
					if _, err := c.kv.Put(context.Background(), req); err != nil {
						t.Fatal(err)
					}
				}
				s.Kill()
				all := segments(t, own)
				if len(all) < 3 {
					t.Fatalf("only %d segments", len(all))
				}
				if err := os.Remove(all[1]); err != nil {
					t.Fatal(err)
				}
				mustRefuse(t, own, "wal")
			})
		})
	}
}

// keyPage is a leaf page of the key bucket.
func keyPage(t testing.TB, file string) int {
	t.Helper()
	db, err := bolt.Open(file, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	page := 0
	err = db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("key"))
		page = int(b.Root())
		return nil
	})
	if err != nil || page == 0 {
		t.Fatalf("find a page of the key bucket: %v", err)
	}
	return page
}

// highWater is up to where pages have been used, in bytes.
func highWater(t testing.TB, file string) int64 {
	t.Helper()
	db, err := bolt.Open(file, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var size int64
	if err := db.View(func(tx *bolt.Tx) error { size = tx.Size(); return nil }); err != nil {
		t.Fatal(err)
	}
	return size
}

// setMeta writes a value of the meta bucket.
func setMeta(t testing.TB, file, key string, value []byte) {
	t.Helper()
	db, err := bolt.Open(file, 0o600, &bolt.Options{Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte("meta")).Put([]byte(key), value)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestTorn tears the last entry's record where a crash in the midst of its write could have:
// at a sector, with zeros after it. Both kinds cut it off and go on.
func TestTorn(t *testing.T) {
	harness.Peer(t, "etcd")
	r := random(t)
	for _, kind := range kinds {
		t.Run("left by "+kind.String(), func(t *testing.T) {
			// etcd writes the store every 100 ms unless told otherwise, and a log that ends before
			// what the store has is not torn but damaged.
			dir, before, after := template(t, kind, "--backend-batch-interval=1m")
			file := segments(t, dir)[0]
			all := records(t, file)
			// The put of 20 KiB; records of the commit index may follow it.
			i := len(all) - 1
			for all[i].to-all[i].from < 20<<10 {
				i--
			}
			for try := range *tears {
				cut := tearAt(r, all[i])
				t.Run(fmt.Sprintf("at %d of %d", cut-all[i].from, all[i].to-all[i].from), func(t *testing.T) {
					var seen []portrait
					for _, reader := range kinds {
						own := filepath.Join(t.TempDir(), "data")
						copyDir(t, dir, own)
						edit(t, segments(t, own)[0], func(data []byte) []byte {
							clear(data[cut:])
							return data
						})
						s := harness.Start(t, reader, own)
						seen = append(seen, depict(t, s))
						w := &writer{Rand: rand.New(rand.NewPCG(uint64(try), 5)), clients: connect(t, s)}
						if err := w.write(context.Background(), 50); err != nil {
							t.Fatal(err)
						}
						left := depict(t, s)
						s.Kill()
						// What was written after the cut is there for the other.
						s = harness.Start(t, reader.Other(), own)
						left.mustEqual(t, depict(t, s), "%v took over from %v after a tear", reader.Other(), reader)
						s.Kill()
					}
					seen[0].mustEqual(t, seen[1], "etcd (was) and quorate (is) see different things in a torn log")
					// The record is lost, unless the store had it already.
					got := seen[0]
					if d := before.diff(got); d != "" && after.diff(got) != "" {
						t.Fatalf("neither with nor without the last put:\n%s", d)
					}
				})
			}
		})
	}
}

// tearAt is a sector's start within a record.
func tearAt(r *rand.Rand, rec record) int64 {
	first := (rec.from + 511) &^ 511
	n := (rec.to - first) / 512
	return first + 512*r.Int64N(max(n, 1))
}

// TestWithoutDB removes the store where the log has everything since the beginning: it is
// made again.
func TestWithoutDB(t *testing.T) {
	harness.Peer(t, "etcd")
	for _, kind := range kinds {
		t.Run("left by "+kind.String(), func(t *testing.T) {
			dir, _, after := template(t, kind)
			if err := os.Remove(dbFile(dir)); err != nil {
				t.Fatal(err)
			}
			s := harness.Start(t, harness.Quorate, dir)
			after.mustEqual(t, depict(t, s), "quorate sees something else without the db")
		})
	}
}

// TestInUse starts a second process on a directory that a first one serves from.
func TestInUse(t *testing.T) {
	harness.Peer(t, "etcd")
	for _, kind := range kinds {
		t.Run("by "+kind.String(), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			first := harness.Start(t, kind, dir)
			c := connect(t, first)
			if _, err := c.kv.Put(context.Background(), &pb.PutRequest{Key: []byte("k")}); err != nil {
				t.Fatal(err)
			}
			if harness.SelfTest() {
				t.Skip("etcd waits for the lock for ever")
			}
			mustRefuse(t, dir, dir)
			if _, err := c.kv.Put(context.Background(), &pb.PutRequest{Key: []byte("k")}); err != nil {
				t.Fatalf("the first process suffered from the second: %v", err)
			}
		})
	}
}
