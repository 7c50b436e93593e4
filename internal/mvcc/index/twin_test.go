package index

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"testing"
	"time"

	"quorate/internal/kv"
)

var (
	twinSeed = flag.Uint64("index.seed", 0, "seed of the random test; 0 runs a few fixed ones")
	twinTime = flag.Duration("index.time", 0, "how long the random test runs, with ever new seeds")
)

// twin is what a Tree should be: all changes of each key, oldest first.
type twin map[string][]twinChange

type twinChange struct {
	rev             kv.Revision
	tombstone       bool
	create, version int64
}

func (t twin) clone() twin {
	c := make(twin, len(t))
	for k, v := range t {
		c[k] = v[:len(v):len(v)]
	}
	return c
}

func (t twin) at(key string, rev int64) (twinChange, bool) {
	changes := t[key]
	for i := len(changes) - 1; i >= 0; i-- {
		if changes[i].rev.Main <= rev {
			return changes[i], true
		}
	}
	return twinChange{}, false
}

func (t twin) get(key string) (twinChange, bool) {
	c, ok := t.at(key, 1<<62)
	return c, ok && !c.tombstone
}

func (t twin) change(key string, rev kv.Revision, tombstone bool) {
	c := twinChange{rev, tombstone, rev.Main, 1}
	if old, live := t.get(key); live && !tombstone {
		c.create, c.version = old.create, old.version+1
	}
	t[key] = append(t[key], c)
}

// compact follows etcd's words: generations whose tombstone is before rev go, and in the
// first that stays everything before its newest change at or below rev.
func (t twin) compact(key string, rev int64) {
	changes := t[key]
	for i, c := range slices.Backward(changes) {
		if c.tombstone && c.rev.Main < rev {
			changes = changes[i+1:]
			break
		}
	}
	for len(changes) > 1 && changes[1].rev.Main <= rev {
		changes = changes[1:]
	}
	if t[key] = changes; len(changes) == 0 {
		delete(t, key)
	}
}

func (t twin) keys(span kv.Span) []string {
	var keys []string
	for k := range t {
		if span.Contains([]byte(k)) {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	return keys
}

// compare checks everything that can be read from tree against t.
func (t twin) compare(tree Tree, rng *rand.Rand, newKey func() string) error {
	if err := check(tree); err != nil {
		return err
	}
	for range 8 {
		key := newKey()
		e, ok := tree.Get([]byte(key))
		want, live := t.get(key)
		if ok != live || ok && (e.Mod != want.rev || e.Create != want.create || e.Version != want.version || string(e.Key) != key) {
			return fmt.Errorf("Get(%q) = %v %v, want %v %v", key, e, ok, want, live)
		}
		rev := rng.Int64N(tree.Last().Main + 3)
		mod, tombstone, ok := tree.At([]byte(key), rev)
		want, live = t.at(key, rev)
		if ok != live || ok && (mod != want.rev || tombstone != want.tombstone) {
			return fmt.Errorf("At(%q, %d) = %v %v %v, want %v %v", key, rev, mod, tombstone, ok, want, live)
		}
		mod, _, ok = tree.Survivor([]byte(key), rev)
		c := t.clone()
		c.compact(key, rev)
		want, live = c.at(key, rev)
		if ok != live || ok && mod != want.rev {
			return fmt.Errorf("Survivor(%q, %d) = %v %v, want %v %v", key, rev, mod, ok, want, live)
		}
	}
	for range 3 {
		span := kv.Span{Key: []byte(newKey())}
		switch rng.IntN(6) {
		case 0: // single
		case 1:
			span.End = []byte{0}
		case 2:
			span = kv.Span{Key: []byte{0}, End: []byte{0}}
		default: // may be empty or upside down
			span.End = []byte(newKey())
		}
		if err := t.compareSpan(tree, span, rng); err != nil {
			return err
		}
	}
	return nil
}

func (t twin) compareSpan(tree Tree, span kv.Span, rng *rand.Rand) error {
	rev := rng.Int64N(tree.Last().Main + 3)
	limit := 1 << 30
	if rng.IntN(2) == 0 {
		limit = 1 + rng.IntN(20)
	}
	var now, then []string
	var mods []kv.Revision // of then
	for _, k := range t.keys(span) {
		if c, live := t.get(k); live {
			now = append(now, fmt.Sprint(k, c.rev, c.create, c.version))
		}
		if c, ok := t.at(k, rev); ok && !c.tombstone {
			then = append(then, fmt.Sprint(k, c.rev))
			mods = append(mods, c.rev)
		}
	}
	if bytes := tree.Bytes(); (bytes == 0) != (tree.root == nil) {
		return fmt.Errorf("Bytes() = %d", bytes)
	}
	if got, want := tree.Len(), t.live(); got != want {
		return fmt.Errorf("Len() = %d, want %d", got, want)
	}
	if got := tree.Count(span); got != int64(len(now)) {
		return fmt.Errorf("Count(%q) = %d, want %d", span, got, len(now))
	}
	now, then = now[:min(limit, len(now))], then[:min(limit, len(then))]
	var got []string
	tree.Ascend(span, func(e Entry) bool {
		got = append(got, fmt.Sprint(string(e.Key), e.Mod, e.Create, e.Version))
		return len(got) < limit
	})
	if !slices.Equal(got, now) {
		return fmt.Errorf("Ascend(%q) = %q, want %q", span, got, now)
	}
	var keys []string
	got = nil
	tree.AscendAt(span, rev, func(key []byte, mod kv.Revision) bool {
		keys = append(keys, string(key))
		got = append(got, fmt.Sprint(string(key), mod))
		return len(got) < limit
	})
	if !slices.Equal(got, then) {
		return fmt.Errorf("AscendAt(%q, %d) = %q, want %q", span, rev, got, then)
	}
	got = nil
	tree.Revisions(span, rev, func(mod kv.Revision) bool {
		got = append(got, fmt.Sprint(keys[len(got)], mod))
		return len(got) < limit
	})
	if !slices.Equal(got, then) {
		return fmt.Errorf("Revisions(%q, %d) = %q, want %q", span, rev, got, then)
	}
	slices.Reverse(mods)
	mods = mods[:min(limit, len(mods))]
	var down []kv.Revision
	tree.RevisionsDown(span, rev, func(mod kv.Revision) bool {
		down = append(down, mod)
		return len(down) < limit
	})
	if !slices.Equal(down, mods) {
		return fmt.Errorf("RevisionsDown(%q, %d) = %v, want %v", span, rev, down, mods)
	}
	return nil
}

// check tells what is wrong with the shape of a tree.
func check(t Tree) error {
	if t.root == nil {
		return nil
	}
	depth := -1
	var walk func(n *inner, d int, from, to []byte) error
	walk = func(n *inner, d int, from, to []byte) error {
		kids := n.len()
		if kids == 0 || kids > innerMax || n.seps.len() != kids-1 || (n.leaves == nil) == (n.inners == nil) ||
			len(n.leaves)+len(n.inners) != kids {
			return fmt.Errorf("inner node of %d children, %d separators", kids, n.seps.len())
		}
		if d == 0 && n.inners != nil && kids == 1 {
			return fmt.Errorf("root of one inner child")
		}
		if n.dirty&^below(kids) != 0 {
			return fmt.Errorf("dirty mark without a child")
		}
		for i := range kids {
			kidFrom, kidTo := from, to
			if i > 0 {
				kidFrom = n.seps.appendKey(nil, i-1)
			}
			if i < kids-1 {
				kidTo = n.seps.appendKey(nil, i)
			}
			var live int64
			var dirty bool
			if n.inners != nil {
				if err := walk(n.inners[i], d+1, kidFrom, kidTo); err != nil {
					return err
				}
				live, dirty = n.inners[i].total(), n.inners[i].dirty != 0
			} else {
				if depth < 0 {
					depth = d
				}
				if d != depth {
					return fmt.Errorf("leaves at depths %d and %d", depth, d)
				}
				if err := checkLeaf(n.leaves[i], kidFrom, kidTo); err != nil {
					return err
				}
				live, dirty = n.leaves[i].live(), n.leaves[i].dirty()
			}
			if live != n.live[i] || dirty != (n.dirty>>i&1 != 0) {
				return fmt.Errorf("child has %d live keys, dirty %v; node says %d, %b", live, dirty, n.live[i], n.dirty)
			}
		}
		return nil
	}
	return walk(t.root, 0, nil, nil)
}

func checkLeaf(l *leaf, from, to []byte) error {
	n := l.len()
	if n == 0 || n > leafMax {
		return fmt.Errorf("leaf of %d keys", n)
	}
	if len(l.rows) != n*l.shape.stride()+rowPad {
		return fmt.Errorf("%d bytes of rows for %d of %d", len(l.rows), n, l.shape.stride())
	}
	if l.dead&^below(n) != 0 || l.has&^below(n) != 0 || len(l.hist) != onesCount(l.has) {
		return fmt.Errorf("masks %x, %x with %d histories for %d keys", l.dead, l.has, len(l.hist), n)
	}
	var before []byte
	for i := range n {
		key := l.keys.appendKey(nil, i)
		if i > 0 && bytes.Compare(before, key) >= 0 || bytes.Compare(key, from) < 0 || to != nil && bytes.Compare(key, to) >= 0 {
			return fmt.Errorf("key %q after %q in a leaf from %q to %q", key, before, from, to)
		}
		before = key
		if h := l.history(i); h != nil {
			all := h.all()
			if len(all) == 0 || len(all) != h.len() {
				return fmt.Errorf("history of %d, counted as %d", len(all), h.len())
			}
			for j, c := range all[1:] {
				if !all[j].rev().Less(c.rev()) {
					return fmt.Errorf("history %v", all)
				}
			}
		}
	}
	return nil
}

func onesCount(v uint64) (n int) {
	for ; v != 0; v &= v - 1 {
		n++
	}
	return n
}

func (h *history) all() []change {
	var all []change
	if h.older != nil {
		for _, c := range *h.older {
			all = append(all, c...)
		}
	}
	return append(all, h.tail[:h.n.Load()]...)
}

// TestTwin makes random changes to a tree and its twin and compares them, and old trees
// with old twins.
func TestTwin(t *testing.T) {
	run := func(seed uint64, steps int) {
		t.Helper()
		if err := twinRun(seed, steps); err != nil {
			t.Fatalf("-index.seed=%d: %v", seed, err)
		}
	}
	if *twinSeed != 0 {
		run(*twinSeed, 20000)
		return
	}
	for seed := range uint64(12) {
		run(seed+1, 3000)
	}
	for start := time.Now(); time.Since(start) < *twinTime; {
		run(rand.Uint64(), 20000)
	}
}

func twinRun(seed uint64, steps int) error {
	rng := rand.New(rand.NewPCG(seed, 1))
	newKey := keyMakers[rng.IntN(len(keyMakers))](rng)
	type old struct {
		Tree
		twin
	}
	var olds []old
	w, tw := Tree{}.Edit(), twin{}
	rev := kv.Revision{Main: 1}
	if rng.IntN(3) == 0 {
		rev.Main = 1 << rng.IntN(62)
	}
	var compacted int64
	putShare := 1 + rng.IntN(9)
	for step := range steps {
		if rng.IntN(1000) == 0 {
			putShare = rng.IntN(11) // times of growth, times of decay
		}
		if rng.IntN(4) == 0 && rev.Main > 1 {
			rev.Sub += 1 + rng.Int64N(1<<rng.IntN(12))
		} else {
			rev = kv.Revision{Main: rev.Main + 1 + rng.Int64N(1<<rng.IntN(8))}
		}
		key := newKey()
		// etcd changes a key once per main revision at most.
		if c, ok := tw.at(key, 1<<62); ok && c.rev.Main == rev.Main {
			rev = kv.Revision{Main: rev.Main + 1}
		}
		want, live := tw.get(key)
		switch op := rng.IntN(12); {
		case op < putShare:
			var prev Entry
			var ok bool
			if rng.IntN(3) == 0 {
				var next Tree
				next, prev, ok = w.Tree().Put([]byte(key), rev)
				w = next.Edit()
			} else {
				prev, ok = w.Put([]byte(key), rev)
			}
			if ok != live || ok && (prev.Mod != want.rev || prev.Create != want.create || prev.Version != want.version) {
				return fmt.Errorf("step %d: Put(%q) replaced %v %v, want %v %v", step, key, prev, ok, want, live)
			}
			tw.change(key, rev, false)
		case op < 10:
			var prev Entry
			var ok bool
			if rng.IntN(3) == 0 {
				var next Tree
				next, prev, ok = w.Tree().Delete([]byte(key), rev)
				w = next.Edit()
			} else {
				prev, ok = w.Delete([]byte(key), rev)
			}
			if ok != live || ok && (prev.Mod != want.rev || prev.Create != want.create || prev.Version != want.version) {
				return fmt.Errorf("step %d: Delete(%q) replaced %v %v, want %v %v", step, key, prev, ok, want, live)
			}
			if live {
				tw.change(key, rev, true)
			}
		case op == 10:
			at := w.Last().Main - rng.Int64N(1<<rng.IntN(12))
			if rng.IntN(3) == 0 {
				w = w.Tree().Compact([]byte(key), at).Edit()
			} else {
				w.Compact([]byte(key), at)
			}
			tw.compact(key, at)
		case rng.IntN(30) == 0:
			compacted = max(compacted, w.Last().Main-rng.Int64N(1<<rng.IntN(12)))
			for from, more := []byte(nil), true; more; {
				from, more = w.Sweep(from, compacted, 1+rng.IntN(5))
			}
			for _, k := range tw.keys(kv.Span{End: []byte{0}}) {
				tw.compact(k, compacted)
			}
			// All that Sweep must not step over.
			if got, want := total(w.tree), tw.total(); got != want {
				return fmt.Errorf("step %d: %d changes after a sweep, want %d", step, got, want)
			}
		}
		switch rng.IntN(100) {
		case 0, 1, 2:
			if err := tw.compare(w.tree, rng, newKey); err != nil {
				return fmt.Errorf("step %d: %w", step, err)
			}
		case 3:
			olds = append(olds, old{w.Tree(), tw.clone()})
		case 4:
			if len(olds) > 0 {
				i := rng.IntN(len(olds))
				if err := olds[i].compare(olds[i].Tree, rng, newKey); err != nil {
					return fmt.Errorf("step %d: old tree: %w", step, err)
				}
				olds = slices.Delete(olds, i, i+1)
			}
		case 5:
			built, err := tw.build()
			if err != nil {
				return err
			}
			if err := tw.compare(built, rng, newKey); err != nil {
				return fmt.Errorf("step %d: built: %w", step, err)
			}
			if rng.IntN(10) == 0 && built.Last() == w.Last() {
				w = built.Edit()
			}
		}
	}
	for _, o := range olds {
		if err := o.compare(o.Tree, rng, newKey); err != nil {
			return fmt.Errorf("old tree at the end: %w", err)
		}
	}
	return tw.compare(w.Tree(), rng, newKey)
}

func (t twin) build() (Tree, error) {
	var b Builder
	for _, k := range t.keys(kv.Span{End: []byte{0}}) {
		for _, c := range t[k] {
			if err := b.Add([]byte(k), c.rev, c.tombstone, c.create, c.version); err != nil {
				return Tree{}, err
			}
		}
	}
	return b.Tree(), nil
}

func (t twin) live() (n int64) {
	for k := range t {
		if _, ok := t.get(k); ok {
			n++
		}
	}
	return n
}

func (t twin) total() (n int) {
	for _, c := range t {
		n += len(c)
	}
	return n
}

func total(t Tree) (n int) {
	t.walk(kv.Span{End: []byte{0}}, walk{fn: func(l *leaf, i, j int) bool {
		for ; i < j; i++ {
			n++
			if h := l.history(i); h != nil {
				n += h.len()
			}
		}
		return true
	}})
	return n
}

// TestDecay takes a tree of many leaves down to nothing, in different orders.
func TestDecay(t *testing.T) {
	const n = 20000
	rng := rand.New(rand.NewPCG(1, 2))
	for name, order := range map[string][]int{
		"forward": rng.Perm(n), "random": rng.Perm(n), "backward": rng.Perm(n),
	} {
		switch name {
		case "forward":
			sort.Ints(order)
		case "backward":
			sort.Sort(sort.Reverse(sort.IntSlice(order)))
		}
		w, rev := Tree{}.Edit(), int64(1)
		for _, i := range order {
			rev++
			w.Put(fmt.Appendf(nil, "%05d", i), kv.Revision{Main: rev})
		}
		if name == "forward" {
			if got := leaves(w.tree); got > n/leafMax+1 {
				t.Errorf("%d leaves for %d keys put in order", got, n)
			}
		}
		for left := n - 1; left >= 0; left-- {
			rev++
			key := fmt.Appendf(nil, "%05d", order[n-1-left])
			if _, live := w.Delete(key, kv.Revision{Main: rev}); !live {
				t.Fatalf("%s: %s is not live", name, key)
			}
			w.Compact(key, rev+1)
			if got := w.Len(); got != int64(left) {
				t.Fatalf("%s: %d keys, want %d", name, got, left)
			}
			if left%500 == 0 {
				if err := check(w.tree); err != nil {
					t.Fatalf("%s: %d left: %v", name, left, err)
				}
			}
			// Merging keeps leaves a quarter full on the whole.
			if got, most := leaves(w.tree), 8+left/(leafMax/8); left%500 == 0 && got > most {
				t.Errorf("%s: %d leaves for %d keys", name, got, left)
			}
		}
		if w.root != nil || w.Bytes() != 0 {
			t.Errorf("%s: something is left of an empty tree: %d bytes", name, w.Bytes())
		}
	}
}

func leaves(t Tree) (n int) {
	t.walk(kv.Span{End: []byte{0}}, walk{fn: func(*leaf, int, int) bool { n++; return true }})
	return n
}

// keyMakers make keys of different shapes.
var keyMakers = []func(*rand.Rand) func() string{
	func(rng *rand.Rand) func() string { // few
		return func() string { return fmt.Sprint("k", rng.IntN(20)) }
	},
	func(rng *rand.Rand) func() string { // many
		return func() string { return fmt.Sprintf("key-%05d", rng.IntN(3000)) }
	},
	func(rng *rand.Rand) func() string { // mostly in order
		n := 0
		return func() string {
			n++
			return fmt.Sprintf("%08d", max(0, n-rng.IntN(1<<rng.IntN(11))))
		}
	},
	func(rng *rand.Rand) func() string { // any bytes of any length, prefixes of each other
		return func() string {
			b := make([]byte, rng.IntN(6))
			for i := range b {
				b[i] = "\x00\x00\xffab"[rng.IntN(5)]
			}
			return string(b)
		}
	},
	func(rng *rand.Rand) func() string { // a few directories
		return func() string {
			return fmt.Sprintf("/registry/%s/namespace-%d/%x", []string{"pods", "leases", "services/specs"}[rng.IntN(3)], rng.IntN(5), rng.IntN(200))
		}
	},
	func(rng *rand.Rand) func() string { // long ones among short ones
		long := bytes.Repeat([]byte("x"), 70000)
		return func() string {
			k := fmt.Sprintf("%03d", rng.IntN(300))
			if rng.IntN(20) == 0 {
				return string(long[:rng.IntN(len(long))]) + k
			}
			return k
		}
	},
}
