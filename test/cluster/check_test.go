package cluster

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// findings collects what is wrong, a few of each kind.
type findings struct {
	byKind map[string]int
	list   []string
}

func (f *findings) add(kind, format string, args ...any) {
	if f.byKind == nil {
		f.byKind = map[string]int{}
	}
	f.byKind[kind]++
	if f.byKind[kind] <= 3 {
		f.list = append(f.list, kind+": "+fmt.Sprintf(format, args...))
	}
}

func (f *findings) err() error {
	if len(f.list) == 0 {
		return nil
	}
	for kind, n := range f.byKind {
		if n > 3 {
			f.list = append(f.list, fmt.Sprintf("%s: %d in all", kind, n))
		}
	}
	return errors.New(strings.Join(f.list, "\n"))
}

// check holds a round against everything promised. It returns what is wrong.
func check(r *record, strict bool) error {
	var f findings
	h := checkTapes(r, &f)
	checkHistory(h, &f)
	checkAnswers(r, h, &f)
	checkTime(r, h, &f)
	checkDoubts(r, h, &f)
	checkLeases(r, &f)
	if strict {
		checkErrors(r, &f)
	}
	checkRegisters(r, h, &f)
	return f.err()
}

// checkTapes compares the watches with each other and returns the history that they tell.
func checkTapes(r *record, f *findings) *history {
	whole := r.tapes[0]
	for _, t := range r.tapes {
		if t.err != nil {
			f.add("watch", "%s ended: %v", t.who, t.err)
		}
		if len(t.events) > len(whole.events) {
			whole = t
		}
	}
	h := newHistory(whole.events)
	for _, t := range slices.Concat(r.tapes, r.pieces) {
		want := whole.events[sort.Search(len(whole.events), func(i int) bool { return whole.events[i].kv.ModRevision >= t.from }):]
		if piece := slices.Index(r.tapes, t) < 0; piece && len(want) > len(t.events) {
			want = want[:len(t.events)]
		}
		for i, e := range t.events {
			if i >= len(want) || !e.same(want[i]) {
				instead := "nothing"
				if i < len(want) {
					instead = want[i].String()
				}
				f.add("watch", "%s from %d, event %d: got %v, want (of %s) %s", t.who, t.from, i, e, whole.who, instead)
				break
			}
		}
		if len(t.events) < len(want) {
			f.add("watch", "%s from %d stopped before %v (which %s has)", t.who, t.from, want[len(t.events)], whole.who)
		}
	}
	return h
}

// checkHistory plays the history on a model of one store: revisions grow by one, or stay for
// another key of the same transaction, and every field follows from what was before.
func checkHistory(h *history, f *findings) {
	live := map[string]*mvccpb.KeyValue{}
	last := int64(0)
	touched := map[string]bool{}
	for _, e := range h.events {
		key, rev := string(e.kv.Key), e.kv.ModRevision
		if rev < last {
			f.add("order", "%v came after revision %d", e, last)
		}
		if rev != last {
			clear(touched)
		}
		if touched[key] {
			f.add("order", "%v is the second change of its key at its revision", e)
		}
		touched[key], last = true, rev
		before := live[key]
		if e.delete {
			if before == nil {
				f.add("fields", "%v, which was not there", e)
			}
			delete(live, key)
			continue
		}
		created, version := rev, int64(1)
		if before != nil {
			created, version = before.CreateRevision, before.Version+1
		}
		if e.kv.CreateRevision != created || e.kv.Version != version {
			f.add("fields", "%v: want created %d, version %d", e, created, version)
		}
		live[key] = e.kv
	}
}

// checkAnswers holds every acknowledged answer against the history at its revision.
func checkAnswers(r *record, h *history, f *findings) {
	state := func(o *op, key string) {
		want := h.at(key, o.rev)
		var got *mvccpb.KeyValue
		for _, kv := range o.kvs {
			if string(kv.Key) == key {
				got = kv
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) {
			f.add("answer", "%v\n\tat its revision there was %v", o, want)
		}
	}
	wrote := func(o *op) {
		for i, key := range o.keys {
			e, ok := h.change(key, o.rev)
			if !ok || e.delete || string(e.kv.Value) != o.values[i] {
				f.add("lost", "%v\n\tat its revision history has %v", o, h.byRev[o.rev])
			}
		}
	}
	for _, o := range r.ops {
		if !o.acked() {
			continue
		}
		switch o.action {
		case put, putTwo:
			wrote(o)
		case swap:
			if !o.hit {
				state(o, o.keys[0])
				if v := h.at(o.keys[0], o.rev); valueOf(v) == o.old {
					f.add("answer", "%v\n\tthe value was the one expected", o)
				}
				continue
			}
			wrote(o)
			if v := h.at(o.keys[0], o.rev-1); valueOf(v) != o.old {
				f.add("answer", "%v\n\tbefore it there was %v", o, v)
			}
		case remove:
			e, ok := h.change(o.keys[0], o.rev)
			if o.hit && !(ok && e.delete) {
				f.add("lost", "%v\n\tat its revision history has %v", o, h.byRev[o.rev])
			}
			if !o.hit && h.at(o.keys[0], o.rev) != nil {
				f.add("answer", "%v\n\tat its revision there was %v", o, h.at(o.keys[0], o.rev))
			}
		case get:
			state(o, o.keys[0])
		case list:
			n := 0
			for _, key := range h.keys(o.keys[0]) {
				state(o, key)
				if h.at(key, o.rev) != nil {
					n++
				}
			}
			if n != len(o.kvs) {
				f.add("answer", "%v\n\tat its revision there were %d keys", o, n)
			}
		}
	}
}

func valueOf(kv *mvccpb.KeyValue) string {
	if kv == nil {
		return ""
	}
	return string(kv.Value)
}

// checkTime looks that revisions follow real time: what was called after another had returned
// is not before it, and a write is after it. Serializable reads promise neither.
func checkTime(r *record, h *history, f *findings) {
	type reached struct {
		at moment
		op *op
	}
	var returned []reached // by time, of growing revision
	byReturn := slices.Clone(r.ops)
	slices.SortFunc(byReturn, func(a, b *op) int { return int(a.ret - b.ret) })
	for _, o := range byReturn {
		if o.acked() && !o.serializable && (len(returned) == 0 || o.rev > returned[len(returned)-1].op.rev) {
			returned = append(returned, reached{o.ret, o})
		}
	}
	for _, o := range r.ops {
		rev, changed := o.rev, o.hit || o.action == put || o.action == putTwo
		if !o.acked() {
			if len(o.values) == 0 {
				continue
			}
			es := h.byValue[o.values[0]]
			if len(es) == 0 {
				continue
			}
			rev, changed = es[0].kv.ModRevision, true
		}
		if o.serializable {
			continue
		}
		i := sort.Search(len(returned), func(i int) bool { return returned[i].at >= o.call })
		if i == 0 {
			continue
		}
		if before := returned[i-1].op; rev < before.rev || changed && rev == before.rev {
			f.add("time", "%v\n\tis at revision %d, but was called after this had returned:\n\t%v", o, rev, before)
		}
	}
}

// checkDoubts looks that each change in the history was asked for and took place once.
func checkDoubts(r *record, h *history, f *findings) {
	asked := map[string]bool{}
	deletes := map[string]int{} // those that may have happened
	for _, o := range r.ops {
		for _, v := range o.values {
			asked[v] = true
			if es := h.byValue[v]; len(es) > 1 {
				f.add("twice", "%v\n\ttook place %d times: %v", o, len(es), es)
			} else if o.acked() && o.action == swap && !o.hit && len(es) > 0 {
				f.add("refused", "%v\n\ttook place all the same: %v", o, es)
			}
		}
		if o.action == putTwo && len(h.byValue[o.values[0]]) != len(h.byValue[o.values[1]]) {
			f.add("half", "%v\n\ttook place by half", o)
		}
		if o.action == remove && (o.hit || !o.acked()) {
			deletes[o.keys[0]]++
		}
	}
	for v, es := range h.byValue {
		if !asked[v] && !strings.HasPrefix(v, untracked) {
			f.add("nobody", "%v was asked for by nobody", es)
		}
	}
	for key, n := range h.deletes {
		if strings.Contains(key, "/k") && n > deletes[key] {
			f.add("twice", "%s was deleted %d times, asked for %d times", key, n, deletes[key])
		}
	}
}

// untracked begins the values that no op stands for.
const untracked = "-"

// checkLeases looks when the keys of leases went away.
func checkLeases(r *record, f *findings) {
	// An etcd that led goes by its own clock and its own leases for a moment after others have
	// replaced it: when it continues after a pause, and for the second that it runs on after
	// it was removed. It renews what the next leader does not hear of, revokes what was renewed
	// there, and does not know what was granted there.
	stale := slices.ContainsFunc(r.faults, func(x *fault) bool { return x.etcd && (x.name == "pause" || x.name == "rejoin") })
	for _, l := range r.leases {
		gone := moment(-1)
		for _, t := range r.tapes {
			for _, e := range t.events {
				if e.delete && string(e.kv.Key) == l.key && (gone < 0 || e.at < gone) {
					gone = e.at
				}
			}
		}
		switch {
		case l.missed != "" && !stale:
			f.add("lease", "%s", l.missed)
		case gone < 0 && l.missed == "":
			f.add("lease", "%x never ended: %s is still there", l.id, l.key)
		case stale:
		case gone < l.until && !(l.revoked && l.revoke <= gone):
			f.add("lease", "%x ended at %v, %v before its time", l.id, gone, l.until-gone)
		}
	}
}

// checkErrors looks that no client saw an error whose member no fault had touched, as long as
// a majority was left.
func checkErrors(r *record, f *findings) {
	for _, o := range r.ops {
		if !o.acked() && !r.excused(o) {
			f.add("error", "%v\n\tno fault of its member explains it; faults meanwhile: %v", o, during(r.faults, o))
		}
	}
}

// excused says that a fault may be the reason for an error.
func (r *record) excused(o *op) bool {
	return slices.ContainsFunc(r.faults, func(x *fault) bool { return x.excuses(o.member, o.call, o.ret) })
}

func during(faults []*fault, o *op) []*fault {
	var list []*fault
	for _, x := range faults {
		if x.begin <= o.ret && o.call <= x.end {
			list = append(list, x)
		}
	}
	return list
}

// ---- porcupine ----

// input and output are an operation on one key, as porcupine's model takes it.
type input struct {
	action     action
	value, old string
}

type output struct {
	unknown bool
	hit     bool
	value   string // what was read
}

// register is one key. Its state is the value, "" for none.
var register = porcupine.Model{
	Init: func() any { return "" },
	Step: func(state, in, out any) (bool, any) {
		value, i, o := state.(string), in.(input), out.(output)
		switch i.action {
		case put:
			return true, i.value
		case remove:
			return o.unknown || o.hit == (value != ""), ""
		case swap:
			made := value == i.old
			if made {
				return o.unknown || o.hit, i.value
			}
			return o.unknown || !o.hit && o.value == value, value
		}
		return o.value == value, value
	},
	Equal: func(a, b any) bool { return a == b },
	DescribeOperation: func(in, out any) string {
		return fmt.Sprintf("%v %+v -> %+v", in.(input).action, in, out)
	},
}

const forever = moment(1 << 60)

// operations are what happened to a key. An operation in doubt whose change is in the history
// ends at the latest when a watch told of it; without a trace there it had no effect. A
// deletion in doubt leaves no value to find; it ends never, unless every deletion of the key
// is known to be another's.
func operations(key string, r *record, h *history) []porcupine.Operation {
	known := 0
	for _, o := range r.ops {
		if o.action == remove && o.keys[0] == key && o.acked() && o.hit {
			known++
		}
	}
	var ops []porcupine.Operation
	for _, o := range r.ops {
		i := slices.Index(o.keys, key)
		if i < 0 || o.action == list || o.serializable {
			continue
		}
		in, out, ret := input{action: o.action, old: o.old}, output{hit: o.hit}, o.ret
		if in.action == putTwo {
			in.action = put
		}
		if o.values != nil {
			in.value = o.values[i]
		}
		if len(o.kvs) > 0 {
			out.value = string(o.kvs[0].Value)
		}
		if !o.acked() {
			out.unknown = true
			switch es := h.byValue[in.value]; {
			case o.action == remove && h.deletes[key] > known:
				ret = forever
			case o.writes() && o.action != remove && len(es) > 0:
				ret = max(es[0].at, o.call)
			default:
				continue
			}
		}
		ops = append(ops, porcupine.Operation{ClientId: o.client, Input: in, Output: out, Call: int64(o.call), Return: int64(ret)})
	}
	return ops
}

func checkRegisters(r *record, h *history, f *findings) {
	keys := map[string]bool{}
	for _, o := range r.ops {
		if o.action != list {
			for _, k := range o.keys {
				keys[k] = true
			}
		}
	}
	for key := range keys {
		ops := operations(key, r, h)
		result, info := porcupine.CheckOperationsVerbose(register, ops, time.Minute)
		switch result {
		case porcupine.Unknown:
			f.add("undecided", "porcupine found no answer for %s (%d operations) within a minute", key, len(ops))
		case porcupine.Illegal:
			where := "?"
			if file, err := visualize(info); err == nil {
				where = file
			}
			f.add("linearizability", "%s is no register: see %s", key, where)
		}
	}
}
