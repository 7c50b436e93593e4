package membership

import (
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"quorate/internal/kv"

	"go.etcd.io/raft/v3/raftpb"
)

// buckets is a store in memory.
type buckets map[string]map[string]string

func (b buckets) PutBucket(bucket string, key, value []byte) {
	if b[bucket] == nil {
		b[bucket] = map[string]string{}
	}
	b[bucket][string(key)] = string(value)
}

func (b buckets) DeleteBucket(bucket string, key []byte) { delete(b[bucket], string(key)) }

func (b buckets) ReadBucket(bucket string, fn func(key, value []byte) error) error {
	for _, k := range slices.Sorted(maps.Keys(b[bucket])) {
		if err := fn([]byte(k), []byte(b[bucket][k])); err != nil {
			return err
		}
	}
	return nil
}

var v37 = Version{3, 7, 1, ""}

func mustLoad(t *testing.T, b buckets) *Cluster {
	t.Helper()
	c, err := Load(b, v37, 1)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func change(typ raftpb.ConfChangeType, id ID, ctx []byte) *raftpb.ConfChange {
	n := uint64(id)
	return &raftpb.ConfChange{Type: &typ, NodeId: &n, Context: ctx}
}

func add(m Member) *raftpb.ConfChange {
	typ := raftpb.ConfChangeAddNode
	if m.IsLearner {
		typ = raftpb.ConfChangeAddLearnerNode
	}
	return change(typ, m.ID, Context{Member: m}.JSON())
}

// The ids were printed by etcd 3.7.1 started with these flags.
func TestIDsAreEtcds(t *testing.T) {
	ic, err := ParseInitialCluster("default=http://localhost:2380")
	if err != nil {
		t.Fatal(err)
	}
	ms, err := ic.Members("etcd-cluster")
	if err != nil {
		t.Fatal(err)
	}
	if got := ms[0].ID.String(); got != "8e9e05c52164694d" {
		t.Errorf("member id is %s", got)
	}
	if got := ClusterID(ms).String(); got != "cdf818194e3a8c32" {
		t.Errorf("cluster id is %s", got)
	}
	a := AddedMemberID([]string{"http://localhost:2380"}, "etcd-cluster", time.Unix(1, 5))
	b := AddedMemberID([]string{"http://localhost:2380"}, "etcd-cluster", time.Unix(2, 0))
	if a == b || a == ms[0].ID {
		t.Errorf("ids of added members do not depend on time: %s %s", a, b)
	}
}

func TestJSONForms(t *testing.T) {
	m := Member{ID: 0x8e9e05c52164694d, PeerURLs: []string{"http://a:1"}, Name: "n", ClientURLs: []string{"http://a:2"}}
	for _, c := range []struct{ name, got, want string }{
		{"full", string(m.JSON()), `{"id":10276657743932975437,"peerURLs":["http://a:1"],"name":"n","clientURLs":["http://a:2"]}`},
		{"learner", string(Member{ID: 1, PeerURLs: []string{}, IsLearner: true}.JSON()), `{"id":1,"peerURLs":[],"isLearner":true}`},
		{"no urls", string(Member{ID: 1}.JSON()), `{"id":1,"peerURLs":null}`},
		{"context", string(Context{Member{ID: 1}, true}.JSON()), `{"id":1,"peerURLs":null,"isPromote":true}`},
	} {
		if c.got != c.want {
			t.Errorf("%s: got %s want %s", c.name, c.got, c.want)
		}
	}
}

func TestParseInitialCluster(t *testing.T) {
	for _, c := range []struct{ in, want, err string }{
		{"a=http://b:1,c=http://d:2", "a=http://b:1,c=http://d:2", ""},
		{"a=http://b:2,a=http://b:1", "a=http://b:1,a=http://b:2", ""},
		{",a=http://b:1,,", "a=http://b:1", ""},
		{"a= http://b:1", "a=http://b:1", ""},
		{"", "", ""},
		{"a", "", `"a" is not a name and a URL, name=URL`},
		{"a=http://b", "", `does not have the form "host:port"`},
		{"a=http://b:1/x", "", "must not contain a path"},
		{"a=ftp://b:1", "", `member "a": URL scheme must be`},
		{"a=http://b:x", "", "invalid port"},
		{"a=unix://x", "a=unix://x", ""},
	} {
		ic, err := ParseInitialCluster(c.in)
		if err == nil && c.err != "" || err != nil && (c.err == "" || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%q: error %v, want %q", c.in, err, c.err)
		}
		if err == nil && ic.String() != c.want {
			t.Errorf("%q: got %q want %q", c.in, ic, c.want)
		}
	}
	ic := InitialCluster{"a": {"http://x:1"}, "b": {"http://x:1"}}
	if err := ic.Check("c"); err == nil || !strings.Contains(err.Error(), `couldn't find local name "c"`) {
		t.Error(err)
	}
	if err := ic.Check("a"); err == nil || !strings.Contains(err.Error(), "duplicate url") {
		t.Error(err)
	}
	if _, err := ic.Members("t"); err == nil || !strings.Contains(err.Error(), "identical ID") {
		t.Error(err)
	}
	if err := ic.CheckAdvertised("a", []string{"http://x:1"}); err != nil {
		t.Error(err)
	}
	if err := ic.CheckAdvertised("a", []string{"http://x:2"}); err == nil {
		t.Error("advertised URL that differs was taken")
	}
}

func TestVersions(t *testing.T) {
	order := []string{"3.6.0", "3.7.0-alpha.1", "3.7.0-alpha.2", "3.7.0-alpha.10", "3.7.0-alpha.x", "3.7.0-alpha.x.1", "3.7.0-rc", "3.7.0", "3.7.1", "3.10.0", "4.0.0"}
	for i, a := range order {
		va, err := ParseVersion(a)
		if err != nil || va.String() != a {
			t.Fatalf("parse %s: %v %v", a, va, err)
		}
		for j, b := range order {
			vb, _ := ParseVersion(b)
			if va.Less(vb) != (i < j) {
				t.Errorf("%s < %s is %v", a, b, va.Less(vb))
			}
		}
	}
	for _, s := range []string{"", "3", "3.7", "3.7.x", "3.7.-1", "3.7.+1", "3.7.1.0", "v3.7.0"} {
		if v, err := ParseVersion(s); err == nil {
			t.Errorf("%q was taken for %v", s, v)
		}
	}
	for _, c := range []struct {
		from, to Version
		want     bool
	}{
		{Version{Major: 3}, v37, true},
		{v37, Version{3, 6, 0, ""}, true},
		{v37, Version{3, 5, 0, ""}, false},
		{v37, Version{3, 7, 9, ""}, false},
		{v37, Version{4, 0, 0, ""}, false},
	} {
		if got := c.from.MayBecome(c.to); got != c.want {
			t.Errorf("%s to %s: %v", c.from, c.to, got)
		}
	}
}

func TestConfChanges(t *testing.T) {
	b := buckets{}
	c := mustLoad(t, b)
	m1 := Member{ID: 1, PeerURLs: []string{"http://a:1"}, Name: "one"}
	m2 := Member{ID: 2, PeerURLs: []string{"http://b:1"}}
	l3 := Member{ID: 3, PeerURLs: []string{"http://c:1"}, IsLearner: true}
	l4 := Member{ID: 4, PeerURLs: []string{"http://d:1"}, IsLearner: true}
	promote := func(id ID) *raftpb.ConfChange {
		return change(raftpb.ConfChangeAddNode, id, Context{Member{ID: id}, true}.JSON())
	}
	update := func(id ID, urls ...string) *raftpb.ConfChange {
		return change(raftpb.ConfChangeUpdateNode, id, Member{ID: id, PeerURLs: urls}.JSON())
	}
	remove := func(id ID) *raftpb.ConfChange { return change(raftpb.ConfChangeRemoveNode, id, nil) }

	for i, step := range []struct {
		cc   *raftpb.ConfChange
		err  error
		kind error
	}{
		{add(m1), nil, nil},
		{add(m1), ErrIDExists, kv.ErrMemberExists},
		{add(Member{ID: 9, PeerURLs: []string{"http://z:1", "http://a:1"}}), ErrPeerURLExists, kv.ErrPeerURLExists},
		{add(m2), nil, nil},
		{add(l3), nil, nil},
		{add(l4), ErrTooManyLearners, nil},
		{promote(4), ErrIDNotFound, kv.ErrMemberNotFound},
		{promote(2), ErrNotLearner, kv.ErrMemberNotLearner},
		{promote(3), nil, nil},
		{promote(3), ErrNotLearner, nil},
		{add(l4), nil, nil},
		{update(9, "http://q:1"), ErrIDNotFound, nil},
		{update(2, "http://a:1"), ErrPeerURLExists, nil},
		{update(2, "http://b:1", "http://b:2"), nil, nil},
		{remove(9), ErrIDNotFound, nil},
		{remove(2), nil, nil},
		{remove(2), ErrIDRemoved, kv.ErrMemberNotFound},
		{add(m2), ErrIDRemoved, nil},
		{remove(3), nil, nil},
		{remove(1), ErrLastVoter, kv.ErrNotEnoughStarted}, // 4 is a learner
		{change(raftpb.ConfChangeAddNode, 7, []byte("{")), ErrMalformed, nil},
		{change(raftpb.ConfChangeAddNode, 7, Context{Member: Member{ID: 8}}.JSON()), ErrMalformed, nil},
		{change(77, 7, nil), ErrMalformed, nil},
	} {
		before := c.State()
		text := string(mustJSON(before))
		if err := c.Check(step.cc); !errors.Is(err, step.err) {
			t.Fatalf("step %d: check says %v, want %v", i, err, step.err)
		}
		_, err := c.Apply(step.cc)
		if !errors.Is(err, step.err) || step.kind != nil && !errors.Is(err, step.kind) {
			t.Fatalf("step %d: got %v, want %v", i, err, step.err)
		}
		if err != nil && c.State() != before {
			t.Fatalf("step %d: refused, but changed something", i)
		}
		if string(mustJSON(before)) != text {
			t.Fatalf("step %d: changed a published state", i)
		}
		// What was written is what is held.
		if got, want := string(mustJSON(mustLoad(t, b).State())), string(mustJSON(c.State())); got != want {
			t.Fatalf("step %d: read back\n%s\nwant\n%s", i, got, want)
		}
	}
	want := `{"Members":[{"id":1,"peerURLs":["http://a:1"],"name":"one"},` +
		`{"id":4,"peerURLs":["http://d:1"],"isLearner":true}],"Removed":[2,3],` +
		`"Version":{"Major":0,"Minor":0,"Patch":0,"Pre":""},"Downgrade":{"target-version":"","enabled":false}}`
	if got, err := json.Marshal(c.State()); err != nil || string(got) != want {
		t.Errorf("got  %s\nwant %s (%v)", got, want, err)
	}
}

func TestAttributesAndVersion(t *testing.T) {
	b := buckets{}
	c := mustLoad(t, b)
	for id, url := range map[ID]string{1: "http://a:1", 3: "http://b:1"} {
		if _, err := c.Apply(add(Member{ID: id, PeerURLs: []string{url}})); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.SetAttributes(1, "n", []string{"http://c:1"}); err != nil {
		t.Fatal(err)
	}
	if err := c.SetAttributes(2, "n", nil); !errors.Is(err, ErrMalformed) {
		t.Errorf("attributes of an unknown member: %v", err)
	}
	if got, want := b[BucketMembers]["1"], `{"id":1,"peerURLs":["http://a:1"],"name":"n","clientURLs":["http://c:1"]}`; got != want {
		t.Errorf("got %s want %s", got, want)
	}
	if _, err := c.Apply(change(raftpb.ConfChangeRemoveNode, 1, nil)); err != nil {
		t.Fatal(err)
	}
	if err := c.SetAttributes(1, "n", nil); err != nil {
		t.Errorf("attributes of a removed member: %v", err)
	}

	for _, s := range []struct {
		v    string
		down bool
		err  error
	}{{"3.0.0", false, nil}, {"3.7.0", false, nil}, {"3.6.0", true, nil}, {"3.8.0", false, ErrNewer}, {"x", false, ErrMalformed}} {
		down, err := c.SetVersion(s.v)
		if down != s.down || !errors.Is(err, s.err) {
			t.Errorf("%s: %v %v", s.v, down, err)
		}
	}
	c.SetDowngrade(Downgrade{Target: "3.6.0", Enabled: true})
	if got := b[BucketCluster]["downgrade"]; got != `{"target-version":"3.6.0","enabled":true}` {
		t.Error(got)
	}
	if got := mustLoad(t, b).State(); got.Version.String() != "3.6.0" || !got.Downgrade.Enabled {
		t.Error(got)
	}
	c.SetDowngrade(Downgrade{Target: "3.6.0"})
	if got := b[BucketCluster]["downgrade"]; got != `{"target-version":"","enabled":false}` {
		t.Error(got)
	}

	b.PutBucket(BucketCluster, []byte("clusterVersion"), []byte("3.8.0"))
	if _, err := Load(b, v37, 1); !errors.Is(err, ErrNewer) {
		t.Errorf("newer cluster: %v", err)
	}
	b.PutBucket(BucketCluster, []byte("clusterVersion"), []byte("3.7.0"))
	b.PutBucket(BucketMembers, []byte("xyz"), []byte("{}"))
	if _, err := Load(b, v37, 1); !errors.Is(err, ErrMalformed) {
		t.Errorf("bad key: %v", err)
	}
}

func TestReconfigurationRules(t *testing.T) {
	state := func(started, waiting, learners int) *State {
		s := &State{}
		for i := range started + waiting + learners {
			m := Member{ID: ID(i + 1)}
			if i < started {
				m.Name = "x"
			}
			m.IsLearner = i >= started+waiting
			s.Members = append(s.Members, m)
		}
		return s
	}
	for _, c := range []struct {
		started, waiting, learners int
		add, remove1, promote      bool
	}{
		{1, 0, 0, true, false, true},
		{1, 1, 0, false, false, true},
		{2, 0, 0, true, true, true},
		{2, 1, 0, false, false, true},
		{3, 0, 1, true, true, true},
		{3, 1, 0, true, true, true},
		{3, 2, 0, false, false, true},
		{2, 2, 0, false, false, true},
		{2, 3, 0, false, false, false},
		{0, 0, 1, false, false, true},
	} {
		s := state(c.started, c.waiting, c.learners)
		if got := s.MayAddVoter(); got != c.add {
			t.Errorf("%+v: add %v", c, got)
		}
		if got := s.MayRemoveVoter(1); got != c.remove1 {
			t.Errorf("%+v: remove %v", c, got)
		}
		if got := s.MayPromote(); got != c.promote {
			t.Errorf("%+v: promote %v", c, got)
		}
	}
}
