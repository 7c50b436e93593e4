package differential

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"quorate/test/harness"
)

// run is one episode: two fresh servers and what is known of them.
type run struct {
	sides [2]*side // etcd, quorate

	rev       int64 // etcd's revision
	compacted int64 // etcd's compact revision, -1 before the first

	history  []*mvccpb.Event             // every event up to revision learned
	latest   map[string]*mvccpb.KeyValue // the keys at revision learned
	learned  int64
	watchers []*watcher

	journal   []string // what was done, for the report
	trace     bool     // keep the journal
	agreed    int      // calls that both sides answered alike
	overtaken int      // watchers that a compaction overtook on one side or both
}

// flags of both servers. Nothing is ever crashed here, so nothing needs to be synced.
var serverFlags = []string{
	"--unsafe-no-fsync",
	"--watch-progress-notify-interval=300ms",
	"--log-level=error",
}

// newRun starts two fresh servers under dir.
func newRun(dir string, flags ...string) (*run, error) {
	r := &run{rev: 1, compacted: -1, learned: 1, latest: map[string]*mvccpb.KeyValue{}}
	var wg sync.WaitGroup
	var errs [2]error
	for i := range r.sides {
		wg.Go(func() {
			kind := harness.Kind(i)
			s := &side{kind: kind, watches: map[int]*watchStream{}}
			s.server, errs[i] = harness.Launch(kind, filepath.Join(dir, kind.String()), append(slices.Clone(serverFlags), flags...)...)
			if errs[i] != nil {
				return
			}
			r.sides[i] = s
			if errs[i] = s.server.WaitReady(context.Background()); errs[i] != nil {
				errs[i] = fmt.Errorf("%v: %w\n%s", kind, errs[i], s.server.LogTail(20))
				return
			}
			s.conn, errs[i] = s.server.Conn()
		})
	}
	wg.Wait()
	err := errors.Join(errs[:]...)
	if err == nil {
		err = r.awaitVersion()
	}
	if err == nil {
		err = r.watchEverything()
	}
	if err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

// storageVersion is what both kinds write.
const storageVersion = "3.7.0"

// awaitVersion waits until both have settled the storage version, which a new member does some
// time after it is ready.
func (r *run) awaitVersion() error {
	for _, s := range r.sides {
		for deadline := time.Now().Add(watchWithin); ; time.Sleep(10 * time.Millisecond) {
			out, err := s.do(newCall(rpcStatus, &pb.StatusRequest{}))
			if err != nil {
				return err
			}
			if st, ok := out.reply.(*pb.StatusResponse); ok && st.StorageVersion == storageVersion {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%v: no storage version "+storageVersion+" within %v: %v", s.kind, watchWithin, out)
			}
		}
	}
	return nil
}

func (r *run) close() {
	for _, s := range r.sides {
		if s == nil {
			continue
		}
		for _, w := range s.watches {
			w.close()
		}
		if s.history != nil {
			s.history.close()
		}
		s.server.Kill()
	}
}

// watchEverything opens the watchers that history is learnt from.
func (r *run) watchEverything() error {
	for _, s := range r.sides {
		w, err := openWatch(s)
		if err != nil {
			return err
		}
		s.history = w
		// From now on, not from revision 1: a watcher that has to catch up may be overtaken by
		// a compaction.
		req := &pb.WatchCreateRequest{Key: []byte{0}, RangeEnd: []byte{0}, PrevKv: true}
		if err := w.stream.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: req}}); err != nil {
			return err
		}
		if err := w.await("the response that says created", func() bool { return len(w.created) > 0 }); err != nil {
			return err
		}
		w.created = nil
	}
	return nil
}

func (r *run) logf(format string, args ...any) {
	if r.trace {
		r.journal = append(r.journal, fmt.Sprintf(format, args...))
	}
}

// step performs step number i of the episode with that seed. An error is a difference, or a
// fault that ends the episode.
func (r *run) step(seed uint64, i int) error {
	g := &gen{Rand: rand.New(rand.NewPCG(seed, uint64(i))), rev: r.rev, compacted: r.compacted, compacts: seed%4 != 0}
	if g.one(16) {
		if err := r.watchStep(g); err != nil {
			return err
		}
	} else {
		for _, c := range g.changes() {
			// A compaction may come before watchers have read what it removes. That is left to
			// chance now and then only, because then either of two outcomes is right.
			if c.rpc == rpcCompact && !g.one(8) {
				if err := r.settle(); err != nil {
					return err
				}
			}
			if err := r.do(c); err != nil {
				return err
			}
		}
	}
	g.rev, g.compacted = r.rev, r.compacted
	if err := r.doAtOnce(g.reads()); err != nil {
		return err
	}
	if i%64 == 63 {
		if err := r.settle(); err != nil {
			return err
		}
		return r.do(newCall(rpcHashKV, &pb.HashKVRequest{Revision: r.rev}))
	}
	return nil
}

// do makes one call on both sides.
func (r *run) do(c *call) error {
	return r.doAtOnce([]*call{c})
}

// doAtOnce makes calls on both sides, all at the same time, and compares the answers.
func (r *run) doAtOnce(calls []*call) error {
	type result struct {
		out outcome
		err error
	}
	results := make([][2]result, len(calls))
	var wg sync.WaitGroup
	for i, c := range calls {
		for k, s := range r.sides {
			wg.Go(func() {
				out, err := s.do(c)
				results[i][k] = result{out, err}
			})
		}
	}
	wg.Wait()
	for i, c := range calls {
		a, b := results[i][0], results[i][1]
		r.logf("%v\n    %v", c, a.out)
		if err := errors.Join(a.err, b.err); err != nil {
			return err
		}
		if d := r.compare(c, a.out, b.out); d != "" {
			if len(calls) == 1 || *gather == 0 {
				return errors.New(d)
			}
			if err := gathered.add(c, d); err != nil {
				return err
			}
			continue
		}
		r.agreed++
		r.follow(c, a.out)
	}
	return nil
}

// gathered are differences that the run went on after, one of each kind.
var gathered differences

type differences map[string]string

// add notes a difference, unless one of its kind is known: one of the same method that ends
// in the same words.
func (d *differences) add(c *call, text string) error {
	if *d == nil {
		*d = differences{}
	}
	kind := c.rpc.method + text[strings.LastIndexByte(text, '\n'):]
	kind = strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, kind)
	(*d)[kind] = text
	if len(*d) < *gather {
		return nil
	}
	return errors.New(d.String())
}

func (d differences) String() string {
	var all []string
	for _, text := range d {
		all = append(all, text)
	}
	slices.Sort(all)
	return strings.Join(all, "\n")
}

// follow keeps rev and compacted up to date with what etcd answered.
func (r *run) follow(c *call, o outcome) {
	if h, ok := o.reply.(interface{ GetHeader() *pb.ResponseHeader }); ok && h.GetHeader() != nil {
		r.rev = max(r.rev, h.GetHeader().Revision)
	}
	if c.rpc == rpcCompact && o.reply != nil {
		r.compacted = c.req.(*pb.CompactionRequest).Revision
	}
}

// failure is an episode that showed a difference.
type failure struct {
	seed    uint64
	steps   []int // what was performed, the last one being where the difference showed
	err     error
	journal []string
}

// perform runs the given steps of an episode on fresh servers. It returns nil when the two
// sides agreed all the way.
func perform(dir string, seed uint64, steps []int, trace bool, until time.Time) (*run, *failure, error) {
	r, err := newRun(dir)
	if err != nil {
		return nil, nil, err
	}
	defer r.close()
	r.trace = trace
	for n, i := range steps {
		if time.Now().After(until) {
			break
		}
		r.logf("-- step %d", i)
		if err := r.step(seed, i); err != nil {
			for _, s := range r.sides {
				if s.gone() {
					err = fmt.Errorf("%w\n%v has ended; its log ends:\n%.3000s", err, s.kind, s.server.LogTail(4))
				}
			}
			return r, &failure{seed, steps[:n+1], err, r.journal}, nil
		}
	}
	if err := r.settle(); err != nil {
		return r, &failure{seed, steps, err, r.journal}, nil
	}
	return r, nil, nil
}

func TestDifferential(t *testing.T) {
	harness.Peer(t, "etcd")
	harness.QuorateBinary(t)
	if *only != "" {
		list, err := parseSteps(*only)
		if err != nil {
			t.Fatal(err)
		}
		_, f, err := perform(t.TempDir(), *seed, list, true, time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		if f != nil {
			t.Fatal(f)
		}
		t.Logf("seed %d, steps %s: agreed", *seed, *only)
		return
	}
	next := *seed
	if next == 0 {
		next = uint64(time.Now().UnixNano()) % 1_000_000_000
	}
	until := time.Now().Add(*duration)
	agreed, overtaken, revisions, episodes := 0, 0, int64(0), 0
	for ; time.Now().Before(until); next++ {
		list := make([]int, *steps)
		for i := range list {
			list[i] = i
		}
		dir, err := os.MkdirTemp("", "quorate-differential-")
		if err != nil {
			t.Fatal(err)
		}
		r, f, err := perform(dir, next, list, false, until)
		if err != nil {
			t.Fatalf("seed %d: %v", next, err)
		}
		if f != nil {
			t.Logf("seed %d, step %d: the two differ:\n%v", next, f.steps[len(f.steps)-1], f.err)
			logs := filepath.Join(dir, "*.log")
			if small := shrink(t, f); small != nil {
				f = small
			}
			t.Fatalf("%v\nthe servers' directories and logs are kept: %s", f, logs)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		agreed, overtaken, revisions, episodes = agreed+r.agreed, overtaken+r.overtaken, revisions+r.rev, episodes+1
	}
	t.Logf("%d operations agreed, in %d episodes with %d revisions; %d watchers were overtaken by a compaction", agreed, episodes, revisions, overtaken)
	if len(gathered) > 0 {
		t.Fatalf("%d kinds of difference\n%v", len(gathered), gathered)
	}
	if agreed == 0 {
		t.Fatal("no operation was performed")
	}
}

// shrink looks for a smaller list of steps that shows a difference too, by leaving out parts
// of the list, each time half as large (delta debugging), and performs the smallest once
// more to record it. It returns nil when the failure does not show again.
func shrink(t *testing.T, f *failure) *failure {
	deadline := time.Now().Add(*minimize)
	attempt := func(steps []int, trace bool) *failure {
		dir := t.TempDir()
		_, again, err := perform(dir, f.seed, steps, trace, time.Now().Add(time.Minute))
		if err != nil {
			t.Logf("while looking for a smaller run: %v", err)
			return nil
		}
		return again
	}
	if *minimize <= 0 {
		return nil
	}
	best := f
	for size := len(best.steps) / 2; size > 0 && time.Now().Before(deadline); {
		smaller := false
		// The last step is where it shows; what comes before it is what may be left out.
		for from := 0; from < len(best.steps)-1 && time.Now().Before(deadline); {
			to := min(from+size, len(best.steps)-1)
			steps := slices.Concat(best.steps[:from], best.steps[to:])
			if again := attempt(steps, false); again != nil {
				best, smaller = again, true
			} else {
				from = to
			}
		}
		if size == 1 && !smaller {
			break
		}
		size = max(size/2, 1)
	}
	if again := attempt(best.steps, true); again != nil {
		return again
	}
	t.Log("the difference does not show every time; these are the steps of a run that showed it")
	return best
}

func (f *failure) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "seed %d: %d steps lead to a difference; to see it again:\n", f.seed, len(f.steps))
	fmt.Fprintf(&b, "  go test ./differential -run TestDifferential$ -args -seed %d -only %s\n", f.seed, stepsText(f.steps))
	for _, line := range f.journal {
		b.WriteString("  " + line + "\n")
	}
	fmt.Fprintf(&b, "%v", f.err)
	return b.String()
}

// stepsText and parseSteps write and read lists such as 3,9-12.
func stepsText(steps []int) string {
	var parts []string
	for i := 0; i < len(steps); {
		j := i
		for j+1 < len(steps) && steps[j+1] == steps[j]+1 {
			j++
		}
		if i == j {
			parts = append(parts, strconv.Itoa(steps[i]))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", steps[i], steps[j]))
		}
		i = j + 1
	}
	return strings.Join(parts, ",")
}

func parseSteps(s string) ([]int, error) {
	var steps []int
	for part := range strings.SplitSeq(s, ",") {
		from, to, both := strings.Cut(part, "-")
		a, err := strconv.Atoi(from)
		if err != nil {
			return nil, fmt.Errorf("steps %q: %w", s, err)
		}
		b := a
		if both {
			if b, err = strconv.Atoi(to); err != nil {
				return nil, fmt.Errorf("steps %q: %w", s, err)
			}
		}
		for ; a <= b; a++ {
			steps = append(steps, a)
		}
	}
	return steps, nil
}

func TestStepsText(t *testing.T) {
	list := []int{0, 1, 2, 5, 7, 8, 100}
	if got := stepsText(list); got != "0-2,5,7-8,100" {
		t.Fatalf("stepsText(%v) = %q", list, got)
	}
	if got, err := parseSteps(stepsText(list)); err != nil || !slices.Equal(got, list) {
		t.Fatalf("parseSteps: %v, %v; want %v", got, err, list)
	}
}
