package rpc

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"path"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"quorate/internal/kv"
	"quorate/internal/mvcc"
	"quorate/internal/watch"
	"quorate/internal/wire"
)

var lineSeeds = flag.Uint64("line.seeds", 40, "how many seeds TestLineWatchRandomly runs, from -line.from on, and a third of it TestFrontRandomly")
var lineFrom = flag.Uint64("line.from", 120, "the first of them")

// yield lets others run for a moment of random length, rarely for long.
func yield() {
	n := max(0, rand.IntN(24)-12)
	if rand.IntN(16) == 0 {
		n = 300
	}
	for range n {
		runtime.Gosched()
	}
}

// yielding is a member whose views are a little old when they are had, and around which
// others run.
type yielding struct{ *member }

func (y yielding) View() *mvcc.View {
	yield()
	defer yield()
	return y.member.View()
}

// lineWorld is lines under random changes, the calls that wait in them, and their naive twin:
// who stood in line at each revision.
type lineWorld struct {
	*testing.T
	rng   *rand.Rand
	m     *member
	s     *services
	index uint64
	stood []map[string]int64 // by revision: the creation of each key, in all lines
	calls []*lineCall
	count lineCounts
}

type lineCounts struct{ turns, losses, canceled, waiting, compacted, reloads int }

// lineCall is a call that waits, or did.
type lineCall struct {
	place
	cancel   context.CancelFunc
	canceled bool
	result   atomic.Pointer[error] // of await
}

func (c *lineCall) short() string { return string(c.key[:1]) + path.Base(string(c.key)) }

const lineKeys = 7 // in each of the lines

// lineNames are of two lines. Of the second, a front has no room for all keys.
var lineNames = []string{"a", strings.Repeat("b", 1500)}

func (w *lineWorld) key() string {
	return fmt.Sprintf("%s/%x", lineNames[w.rng.IntN(len(lineNames))], w.rng.IntN(lineKeys))
}

// apply makes a few random transactions, publishes them, and tells the hub of them later; or
// has it read them from history, as after a snapshot.
func (w *lineWorld) apply() {
	var events []kv.Event
	var born []*lineCall
	for range 1 + w.rng.IntN(3) {
		tx := w.m.store.Begin()
		stand := map[string]int64{}
		for k, created := range w.stood[len(w.stood)-1] {
			stand[k] = created
		}
		touched := map[string]bool{}
		for range 1 + w.rng.IntN(3) {
			key := w.key()
			if touched[key] {
				continue // as in a transaction
			}
			touched[key] = true
			if _, there := stand[key]; there && w.rng.IntN(4) > 0 {
				tx.Delete(kv.Span{Key: []byte(key)}, func(kv.Record) {}, func(kv.LeaseID, []byte) {})
				delete(stand, key)
				continue
			}
			tx.Put([]byte(key), nil, 0)
			if _, there := stand[key]; !there {
				stand[key] = -1
			}
		}
		rev, changes := tx.End()
		if len(changes) == 0 {
			continue
		}
		for k, created := range stand {
			if created < 0 {
				stand[k] = rev
				born = append(born, w.newCall(k, rev))
			}
		}
		w.stood = append(w.stood, stand)
		if int64(len(w.stood)) != rev+1 {
			w.Fatalf("revision %d, but %d are known", rev, len(w.stood)-1)
		}
		events = append(events, changes...)
	}
	w.index++
	w.m.store.Publish(w.index, testTerm)
	begin := func() {
		for _, c := range born {
			for range 1 + w.rng.IntN(6)/5 { // the same lease may be asked for twice
				w.begin(c.key, c.rev)
			}
		}
	}
	early := w.rng.IntN(2) == 0
	if early {
		begin()
	}
	yield()
	if w.rng.IntN(12) == 0 {
		w.m.hub.Reload(w.m.store.Rev())
		w.count.reloads++
	} else {
		w.m.hub.Publish(events, w.m.store.Rev())
	}
	if !early {
		begin()
	}
}

func (w *lineWorld) newCall(key string, rev int64) *lineCall {
	return &lineCall{place: place{services: w.s, line: lineOf([]byte(path.Dir(key))), key: []byte(key), rev: rev}}
}

// begin has a call wait for the turn of the key that was created at rev.
func (w *lineWorld) begin(key []byte, rev int64) {
	c := w.newCall(string(key), rev)
	ctx, cancel := context.WithCancel(context.Background())
	c.cancel = cancel
	w.calls = append(w.calls, c)
	look := w.rng.IntN(2) == 0
	go func() {
		var err error
		ahead := true
		if look {
			ahead, _, err = c.look()
		}
		if err == nil && ahead {
			err = c.await(ctx)
		}
		c.result.Store(&err)
	}()
}

func (w *lineWorld) step() {
	switch w.rng.IntN(10) {
	case 0:
		if len(w.calls) > 0 {
			c := w.calls[w.rng.IntN(len(w.calls))]
			c.canceled = true
			c.cancel()
		}
	case 1:
		if rev := w.m.store.Rev(); w.rng.IntN(3) == 0 && rev > 1 {
			// What the watches have not got yet is compacted, too.
			if _, err := w.m.store.Compact(rev - int64(w.rng.IntN(2))); err == nil {
				w.index++
				w.m.store.Publish(w.index, testTerm)
				w.count.compacted++
			} else if !errors.Is(err, kv.ErrCompacted) {
				w.Error(err)
			}
		}
	case 2:
		if all := w.stood[len(w.stood)-1]; len(all) > 0 { // who has stood for a while is asked for once more
			key := w.key()
			if rev, ok := all[key]; ok {
				w.begin([]byte(key), rev)
			}
		}
	default:
		w.apply()
	}
}

// fate is what the twin says about a call: whether it was its turn at any time, whether it
// has lost its place, and whether it must wait.
func (w *lineWorld) fate(c *lineCall) (turn, lost, waits bool) {
	for rev := c.rev; rev < int64(len(w.stood)); rev++ {
		stand := w.stood[rev]
		if stand[string(c.key)] != c.rev {
			return turn, true, false
		}
		ahead := false
		for k, created := range stand {
			ahead = ahead || c.line.Contains([]byte(k)) && created < c.rev
		}
		turn = turn || !ahead
		waits = ahead
	}
	return turn, false, waits
}

// check holds every call against the twin. Nothing moves any more.
func (w *lineWorld) check() {
	left := w.calls[:0]
	for _, c := range w.calls {
		turn, lost, waits := w.fate(c)
		result := c.result.Load()
		switch {
		case result == nil && !waits:
			w.Errorf("the wake-up of %s (%d) is lost: its turn came: %v, it was lost: %v", c.short(), c.rev, turn, lost)
		case result == nil && c.canceled:
			w.Errorf("%s (%d) was canceled, and waits", c.short(), c.rev)
		case result == nil:
			w.count.waiting++
			left = append(left, c)
		case *result == nil && turn:
			w.count.turns++
		case errors.Is(*result, errPlaceLost) && lost:
			w.count.losses++
		case errors.Is(*result, context.Canceled) && c.canceled:
			w.count.canceled++
		default:
			w.Errorf("%s (%d) ends with %v: its turn came: %v, it was lost: %v, it is canceled: %v", c.short(), c.rev, *result, turn, lost, c.canceled)
		}
		if result != nil {
			c.cancel()
		}
	}
	clear(w.calls[len(left):])
	w.calls = left
}

// TestLineWatchRandomly changes lines at random while calls wait in them, come and are
// canceled, with history that is compacted and a store that is replaced, and holds each call
// against the naive twin whenever nothing moves any more: then nobody may wait whose turn it
// is, or who has lost the place.
func TestLineWatchRandomly(t *testing.T) {
	var total lineCounts
	for seed := *lineFrom; seed < *lineFrom+*lineSeeds && !t.Failed(); seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { total.add(lineRun(t, seed)) })
		})
	}
	t.Logf("%+v", total)
}

func (c *lineCounts) add(o lineCounts) {
	c.turns += o.turns
	c.losses += o.losses
	c.canceled += o.canceled
	c.waiting += o.waiting
	c.compacted += o.compacted
	c.reloads += o.reloads
}

func lineRun(t *testing.T, seed uint64) lineCounts {
	m := newMember(t)
	m.hub.Close()
	m.hub = watch.New(watch.Options{
		View:             func() watch.View { yield(); return m.store.View() },
		AppendHeader:     func(b []byte, rev int64) []byte { return wire.AppendHeader(b, &wire.Header{Revision: rev}) },
		ProgressInterval: time.Hour,
		FragmentBytes:    2 << 20,
	})
	w := &lineWorld{
		T: t, rng: rand.New(rand.NewPCG(seed, 11)), m: m, s: &services{Backend: yielding{m}},
		stood: []map[string]int64{{}, {}}, // an empty store is at revision 1
	}
	for range 150 {
		for range 1 + w.rng.IntN(4) {
			w.step()
			yield()
		}
		if w.rng.IntN(3) == 0 {
			synctest.Wait()
			w.check()
		}
		if t.Failed() {
			break
		}
	}
	for _, c := range w.calls {
		c.canceled = true
		c.cancel()
	}
	synctest.Wait()
	w.check()
	w.s.lineWatches.Lock()
	defer w.s.lineWatches.Unlock()
	if n := m.hub.Stats().Streams; n != 0 || len(w.s.lineWatches.byLine) != 0 {
		t.Errorf("left behind: %d watches, %d lines", n, len(w.s.lineWatches.byLine))
	}
	return w.count
}
