package rpc

import (
	"bytes"
	"cmp"
	"slices"

	"quorate/internal/kv"
	"quorate/internal/mvcc"
	"quorate/internal/wire"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

// front is the beginning of a line: of its keys those that were created first, as they were
// at a revision. It is read from the store once, and then goes along with the line's
// changes, at the cost of a few steps each. What has joined behind is not held, but only
// that there is something: when all whom it holds have gone, it is read again. So a line
// of n costs n/frontKeys steps for one that goes, and memory that does not depend on n.
//
// What it holds stays useful where nobody goes along with the changes: see leader.
type front struct {
	line  kv.Span
	limit frontLimit
	rev   int64      // at which the line was so
	first []standing // by creation; who is not among them was created later, or together with the last
	bytes int        // of the keys in first
	whole bool       // nobody is behind first
}

// standing is a key that stands in line.
type standing struct {
	key     string
	created int64
}

// frontLimit bounds what a front holds, but for one key, whatever its size. Together they
// are less than waiterBytes, which whoever needs a front has been charged.
type frontLimit struct{ keys, bytes int }

var defaultFrontLimit = frontLimit{keys: 64, bytes: 4 << 10}

// load reads the line as it was at revision rev (0: as it is in v).
func (f *front) load(v *mvcc.View, rev int64) error {
	f.rev, f.first, f.bytes, f.whole = cmp.Or(rev, v.Rev()), f.first[:0], 0, true
	_, err := v.Range(&kv.Range{Span: f.line, Revision: rev}, func(keyValue []byte) {
		k := mustDecode(keyValue)
		if n := len(f.first); !f.whole && k.Create >= f.first[n-1].created {
			return
		}
		f.insert(standing{string(k.Key), k.Create})
	})
	return err
}

// insert puts s where it belongs: those of one transaction stand in the order of their keys.
func (f *front) insert(s standing) {
	at, _ := slices.BinarySearchFunc(f.first, s, func(a, b standing) int {
		return cmp.Or(cmp.Compare(a.created, b.created), cmp.Compare(a.key, b.key))
	})
	f.first = slices.Insert(f.first, at, s)
	f.bytes += len(s.key)
	f.cut()
}

// cut forgets the last ones if they are too many.
func (f *front) cut() {
	for n := len(f.first); n > 1 && (n > f.limit.keys || f.bytes > f.limit.bytes); n = len(f.first) {
		f.bytes -= len(f.first[n-1].key)
		f.first[n-1] = standing{}
		f.first, f.whole = f.first[:n-1], false
	}
}

// change takes in the next change of the line, in the order of the store. One that was
// there when the front was read is passed over. The front's revision is the caller's to
// set, when it has had all changes of a revision.
func (f *front) change(e *mvccpb.Event) {
	created := e.Type == mvccpb.Event_PUT && e.Kv.CreateRevision == e.Kv.ModRevision
	switch {
	case e.Kv.ModRevision <= f.rev:
	case created && !f.whole: // it stands behind
	case created:
		f.insert(standing{string(e.Kv.Key), e.Kv.CreateRevision})
	case e.Type == mvccpb.Event_DELETE:
		if i := slices.IndexFunc(f.first, func(s standing) bool { return s.key == string(e.Kv.Key) }); i >= 0 {
			f.remove(i)
		}
	}
}

func (f *front) remove(i int) {
	f.bytes -= len(f.first[i].key)
	f.first = slices.Delete(f.first, i, i+1)
}

// leader is the key that had the turn at revision rev (0: now), nil if there was none. rev is
// not below that of any call before, nor the front's. The front need not have gone along with
// the line's changes, and does not afterwards: of those whom it holds, the first who is still
// there has the turn, for nobody takes a place before another. So one read in frontKeys is
// of the line, and the others are of a key.
func (f *front) leader(v *mvcc.View, rev int64) (*mvccpb.KeyValue, error) {
	for loaded := false; ; loaded = true {
		for len(f.first) > 0 {
			s, found := f.first[0], (*mvccpb.KeyValue)(nil)
			_, err := v.Range(&kv.Range{Span: kv.Span{Key: []byte(s.key)}, Revision: rev}, func(keyValue []byte) { found = decodeKeyValue(keyValue) })
			if err != nil || found != nil && found.CreateRevision == s.created {
				return found, err
			}
			f.remove(0)
		}
		if loaded {
			return nil, nil
		}
		if err := f.load(v, rev); err != nil {
			return nil, err
		}
	}
}

// unknown says that the front must be read again, because nobody is left of those whom it
// held and there are others.
func (f *front) unknown() bool { return len(f.first) == 0 && !f.whole }

// aheadPage is how many keys someoneAhead reads at once.
const aheadPage = 16

// someoneAhead reports whether a key of the line was created before revision created.
//
// Who has just come finds one among the first few keys of the line that it looks at:
// nearly all are. Only who is the first reads them all.
func someoneAhead(v *mvcc.View, line kv.Span, created int64) (bool, error) {
	for from := line.Key; ; {
		found, n, last := false, 0, []byte(nil)
		_, err := v.Range(&kv.Range{Span: kv.Span{Key: from, End: line.End}, Limit: aheadPage}, func(keyValue []byte) {
			k := mustDecode(keyValue)
			found, n, last = found || k.Create < created, n+1, k.Key
		})
		if err != nil || found || n < aheadPage {
			return found, err
		}
		from = append(bytes.Clone(last), 0)
	}
}

// mustDecode decodes what the store holds, which is well-formed.
func mustDecode(keyValue []byte) wire.KeyValue {
	k, err := wire.DecodeKeyValue(keyValue)
	if err != nil {
		panic("the store holds a malformed KeyValue: " + err.Error())
	}
	return k
}
