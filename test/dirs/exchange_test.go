package dirs

import (
	"context"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/test/harness"
)

// end stops or kills a server, at random.
func end(t *testing.T, r *rand.Rand, s *harness.Server) string {
	t.Helper()
	if r.IntN(2) == 0 {
		s.Kill()
		return "killed"
	}
	if err := s.Stop(); err != nil {
		t.Fatalf("stop: %v\n%s", err, s.LogTail(20))
	}
	return "stopped"
}

// TestExchange hands one directory to and fro; each server adds to its history.
func TestExchange(t *testing.T) {
	harness.Peer(t, "etcd")
	r := random(t)
	for _, first := range kinds {
		t.Run("from "+first.String(), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "data")
			var last portrait
			how := ""
			w := &writer{Rand: r}
			for turn := range *turns {
				kind := first
				if turn%2 == 1 {
					kind = first.Other()
				}
				var flags []string
				if r.IntN(2) == 0 {
					flags = append(flags, "--snapshot-count=60") // so that the log begins at a snapshot
				}
				s := harness.Start(t, kind, dir, flags...)
				w.clients = connect(t, s)
				ctx := context.Background()
				if turn > 0 {
					last.mustEqual(t, depict(t, s), "turn %d: %v sees something else than %v, which was %s, left", turn, kind, kind.Other(), how)
					disarm(t, w.clients)
				}
				if err := w.write(ctx, 50+r.IntN(400)); err != nil {
					t.Fatalf("turn %d: %v: %v\n%s", turn, kind, err, s.LogTail(20))
				}
				if r.IntN(3) == 0 {
					// The last thing done, since it refuses writes.
					req := &pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, Alarm: pb.AlarmType_CORRUPT, MemberID: 12345}
					if _, err := w.maint.Alarm(ctx, req); err != nil {
						t.Fatal(err)
					}
				}
				if r.IntN(3) == 0 {
					time.Sleep(300 * time.Millisecond) // past the commit interval of both
				}
				last = depict(t, s)
				how = end(t, r, s)
			}
		})
	}
}

func disarm(t *testing.T, c clients) {
	t.Helper()
	ctx := context.Background()
	resp, err := c.maint.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_GET})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range resp.Alarms {
		if _, err := c.maint.Alarm(ctx, &pb.AlarmRequest{Action: pb.AlarmRequest_DEACTIVATE, Alarm: a.Alarm, MemberID: a.MemberID}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBothSeeTheSame kills a server amid concurrent writes and starts both kinds on copies
// of what it left.
func TestBothSeeTheSame(t *testing.T) {
	harness.Peer(t, "etcd")
	r := random(t)
	for _, kind := range kinds {
		t.Run("left by "+kind.String(), func(t *testing.T) {
			for range 4 {
				parent := t.TempDir()
				dir := filepath.Join(parent, "data")
				var flags []string
				if r.IntN(2) == 0 {
					flags = append(flags, "--snapshot-count=200")
				}
				for range 1 + r.IntN(2) { // an old directory or a new one
					writeUntilKilled(t, r, harness.Start(t, kind, dir, flags...))
				}
				var seen []portrait
				for _, reader := range kinds {
					own := filepath.Join(parent, "copy for "+reader.String())
					copyDir(t, dir, own)
					s := harness.Start(t, reader, own)
					seen = append(seen, depict(t, s))
					end(t, r, s)
				}
				seen[0].mustEqual(t, seen[1], "etcd (was) and quorate (is) see different things in what a killed %v left", kind)
			}
		})
	}
}

// copyDir copies a directory tree.
func copyDir(t testing.TB, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(to, strings.TrimPrefix(path, from))
		if d.IsDir() {
			return os.MkdirAll(target, 0o700)
		}
		return copyFile(path, target)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// TestSnapshot takes a snapshot from each kind, has etcdutl restore it and starts both kinds
// on what comes of it.
func TestSnapshot(t *testing.T) {
	etcdctl, etcdutl := harness.Peer(t, "etcdctl"), harness.Peer(t, "etcdutl")
	r := random(t)
	for _, kind := range kinds {
		t.Run("of "+kind.String(), func(t *testing.T) {
			parent := t.TempDir()
			s := harness.Start(t, kind, filepath.Join(parent, "data"))
			w := &writer{Rand: r, clients: connect(t, s)}
			if err := w.write(context.Background(), 600); err != nil {
				t.Fatal(err)
			}
			want := depict(t, s)
			file := filepath.Join(parent, "snapshot")
			client := etcdctl
			if kind == harness.Quorate && !harness.SelfTest() {
				client = harness.QuorateBinary(t)
			}
			run(t, client, "--endpoints="+s.Addr, "snapshot", "save", file)
			s.Kill()
			t.Log(run(t, etcdutl, "snapshot", "status", file, "-w", "json"))
			for _, bump := range []bool{false, true} {
				restored := filepath.Join(parent, "restored")
				args := []string{"snapshot", "restore", file, "--data-dir", restored, "--name", harness.Name,
					"--initial-cluster", harness.Name + "=" + harness.AdvertisedPeerURL,
					"--initial-advertise-peer-urls", harness.AdvertisedPeerURL}
				if bump {
					args = append(args, "--bump-revision", "1000", "--mark-compacted")
				}
				run(t, etcdutl, args...)
				var seen []portrait
				for _, reader := range kinds {
					own := restored + " for " + reader.String()
					copyDir(t, restored, own)
					s := harness.Start(t, reader, own)
					seen = append(seen, depict(t, s))
					// It goes on from there, and the other takes over.
					w.clients = connect(t, s)
					if err := w.write(context.Background(), 100); err != nil {
						t.Fatal(err)
					}
					left := depict(t, s)
					end(t, r, s)
					s = harness.Start(t, reader.Other(), own)
					left.mustEqual(t, depict(t, s), "%v took over from %v after a restore", reader.Other(), reader)
					s.Kill()
				}
				seen[0].mustEqual(t, seen[1], "etcd (was) and quorate (is) see different things in a restored snapshot of %v, bumped: %v", kind, bump)
				if !bump {
					want.mustEqual(t, seen[0], "the snapshot of %v is not what it was taken of", kind)
				}
				if err := os.RemoveAll(restored); err != nil {
					t.Fatal(err)
				}
				for _, reader := range kinds {
					if err := os.RemoveAll(restored + " for " + reader.String()); err != nil {
						t.Fatal(err)
					}
				}
			}
		})
	}
}

// run runs a command and returns what it printed.
func run(t testing.TB, bin string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, bin, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", filepath.Base(bin), strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}
