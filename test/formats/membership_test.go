package formats

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"quorate/internal/membership"
	"quorate/internal/snapshot"
	"quorate/internal/vfs"

	"github.com/coreos/go-semver/semver"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver"
	etcdmembership "go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v2store"
	"go.uber.org/zap"
)

// randomCluster is an --initial-cluster of n members.
func randomCluster(rnd *rand.Rand, n int) string {
	s := ""
	for i := range n {
		for j := range 1 + rnd.IntN(3) {
			s += fmt.Sprintf("m%d=http%s://host-%d.example:%d,", i, []string{"", "s"}[rnd.IntN(2)], rnd.IntN(1000), 1000*i+10*j+2380)
		}
	}
	return s
}

func TestIDs(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 0))
		flags, token := randomCluster(rnd, 1+rnd.IntN(5)), fmt.Sprint("token", seed)
		urls, err := types.NewURLsMap(flags)
		if err != nil {
			t.Fatal(err)
		}
		want, err := etcdmembership.NewClusterFromURLsMap(zap.NewNop(), token, urls)
		if err != nil {
			t.Fatal(err)
		}
		ic, err := membership.ParseInitialCluster(flags)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ic.Members(token)
		if err != nil {
			t.Fatal(err)
		}
		if id := membership.ClusterID(got); uint64(id) != uint64(want.ID()) || id.String() != want.ID().String() {
			t.Fatalf("cluster id %s, etcd's is %s", id, want.ID())
		}
		if ic.String() != urls.String() {
			t.Fatalf("%s, etcd says %s", ic, urls)
		}
		for i, m := range want.Members() {
			wantJSON, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			if string(got[i].JSON()) != string(wantJSON) {
				t.Fatalf("member %s, etcd's is %s", got[i].JSON(), wantJSON)
			}
			ctx, err := json.Marshal(etcdmembership.ConfigChangeContext{Member: *m, IsPromote: true})
			if err != nil {
				t.Fatal(err)
			}
			if s := string(membership.Context{Member: got[i], IsPromote: true}.JSON()); s != string(ctx) {
				t.Fatalf("context %s, etcd's is %s", s, ctx)
			}
			now := time.Unix(rnd.Int64N(1<<40), rnd.Int64N(1e9))
			added := etcdmembership.NewMember("", urls[m.Name], token, &now)
			if id := membership.AddedMemberID(got[i].PeerURLs, token, now); uint64(id) != uint64(added.ID) {
				t.Fatalf("added member's id %s, etcd's is %s", id, added.ID)
			}
		}
	}
}

// What either refuses in --initial-cluster, the other does; quorate also says which member's
// URL it is, or that there is none.
func TestRefusedClusters(t *testing.T) {
	for _, s := range []string{"", "a", "a=", "a=b", "=http://a:1", "a=http://a", "a=http://a:1/", "a=http://a:1/p", "a=unix:///x", "a=unix://x:1",
		"a=http://[::1]:1", "a=http://a:1?x=y", "a=http://u@a:1", " a = http://a:1 ", "a=http://%:1", "a=HTTP://A:1", "a=http://a:99999", "a==http://a:1", "a=http://a:1,,b=http://b:1"} {
		urls, wantErr := types.NewURLsMap(s)
		ic, err := membership.ParseInitialCluster(s)
		if name, _, hasURL := strings.Cut(s, "="); wantErr != nil {
			want := fmt.Sprintf("member %q: %v", name, wantErr)
			if !hasURL {
				want = fmt.Sprintf("%q is not a name and a URL, name=URL", name)
			}
			if err == nil || err.Error() != want {
				t.Errorf("%q: %v, want %s", s, err, want)
			}
		} else if err != nil {
			t.Errorf("%q: %v, etcd takes it", s, err)
		} else if ic.String() != urls.String() {
			t.Errorf("%q: %q, etcd says %q", s, ic, urls)
		}
	}
}

func TestSnapFile(t *testing.T) {
	for seed := range uint64(50) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		state := &membership.State{Version: membership.Version{Major: 3, Minor: 7}}
		cl := etcdmembership.NewCluster(zap.NewNop())
		if seed%5 != 0 {
			cl.SetVersion(semver.New("3.7.0"), func(*zap.Logger, *semver.Version) {}, etcdmembership.ApplyV2storeOnly)
		} else {
			state.Version = membership.Version{}
		}
		cl2 := []*etcdmembership.Member{}
		n := 1
		if seed > 20 {
			n += rnd.IntN(5)
		}
		for i := range n {
			m := membership.Member{ID: membership.ID(rnd.Uint64()), PeerURLs: []string{fmt.Sprintf("http://a&b:%d", i)}, IsLearner: rnd.IntN(3) == 0}
			if rnd.IntN(3) > 0 {
				m.Name, m.ClientURLs = fmt.Sprintf("n<%d>", i), []string{fmt.Sprint("http://c:", i)}
			}
			state.Members = append(state.Members, m)
			e := &etcdmembership.Member{}
			if err := json.Unmarshal(m.JSON(), e); err != nil {
				t.Fatal(err)
			}
			cl2 = append(cl2, e)
		}
		slices.SortFunc(state.Members, func(a, b membership.Member) int {
			if a.ID < b.ID {
				return -1
			}
			return 1
		})
		want := etcdmembership.NewClusterFromMembers(zap.NewNop(), 1, cl2)
		if v := cl.Version(); v != nil {
			want.SetVersion(v, func(*zap.Logger, *semver.Version) {}, etcdmembership.ApplyV2storeOnly)
		}
		if n == 1 { // etcd writes several members in no certain order
			if got, want := string(snapshot.V2Store(state)), string(etcdserver.GetMembershipInfoInV2Format(zap.NewNop(), want)); got != want {
				t.Fatalf("seed %d: got\n%s\nwant\n%s", seed, got, want)
			}
		} else {
			state.Removed = append(state.Removed, 1, 2)
		}

		dir := t.TempDir()
		if err := snapshot.Save(vfs.OS(), dir, 7+seed, 3, conf, state); err != nil {
			t.Fatal(err)
		}
		s, err := snap.New(zap.NewNop(), dir).Load()
		if err != nil {
			t.Fatal(err)
		}
		if s.Metadata.GetIndex() != 7+seed || s.Metadata.GetTerm() != 3 || s.Metadata.GetConfState().GetLearners()[0] != 3 {
			t.Fatal(s.Metadata)
		}
		st := v2store.New()
		if err := st.Recovery(s.Data); err != nil {
			t.Fatal(err)
		}
		if only, err := etcdmembership.IsMetaStoreOnly(st); !only || err != nil {
			t.Fatal("etcd finds data of etcd 2:", err)
		}
		members, removed := etcdmembership.MembersFromStore(zap.NewNop(), st)
		if len(members) != n || len(removed) != len(state.Removed) {
			t.Fatalf("etcd reads %d members, %d removed", len(members), len(removed))
		}
		for _, m := range state.Members {
			if m.ClientURLs == nil {
				m.Name = ""
			}
			got, err := json.Marshal(members[types.ID(m.ID)])
			if err != nil || string(got) != string(m.JSON()) {
				t.Fatalf("etcd reads %s, want %s (%v)", got, m.JSON(), err)
			}
		}
		if v, err := st.Get("/0/version", false, false); seed%5 != 0 && (err != nil || *v.Node.Value != "3.7.0") {
			t.Fatal(v, err)
		}
		// etcd writes the file with the same content, and we read it.
		other := t.TempDir()
		if err := snap.New(zap.NewNop(), other).SaveSnap(s); err != nil {
			t.Fatal(err)
		}
		id := snapshot.ID{Term: 3, Index: 7 + seed}
		back, err := snapshot.Read(vfs.OS(), other, id)
		if err != nil || string(back.Data) != string(s.Data) {
			t.Fatal(err)
		}
	}
}
