package sim

import (
	"strings"
	"testing"

	"quorate/internal/kv"
	qwire "quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// plant is a fault in what the members rely on, or in a member. The checkers have to find
// each.
type plant struct {
	lyingDisk   bool // syncs that do nothing
	deafToSync  bool // members do not hear that a sync failed
	fullForEver bool // a full disk never has room again
	lostChanges bool // members are not told that they were removed
	alwaysTold  bool // members are told that they were removed when they were not
	unknownEtcd bool // members take an etcd for one of their own
	staleReads  bool // reads that ask nobody
	tooLarge    bool // members refuse all requests but the smallest
	otherState  bool // a member changes its state by itself
	lostEvents  bool // watchers lose a response now and then
	twiceEvents bool // watchers get a response twice now and then
	soonDone    bool // watchers are told that they have got more than they have
	tamper      func(m *raftpb.Message) []*raftpb.Message
}

func (p *plant) tampered(m *raftpb.Message) []*raftpb.Message {
	if p.tamper == nil {
		return []*raftpb.Message{m}
	}
	return p.tamper(m)
}

// delivered is what a watcher gets to see of what has come.
func (p *plant) delivered(got []*pb.WatchResponse) []*pb.WatchResponse {
	for i, r := range got {
		if p.soonDone && len(r.Events) == 0 && !r.Created {
			r.Header.Revision++
		}
		if len(r.Events) == 0 || r.Header.Revision%5 != 0 {
			continue
		}
		if p.lostEvents {
			return append(got[:i:i], got[i+1:]...)
		}
		if p.twiceEvents {
			return append(got[:i+1:i+1], got[i:]...)
		}
	}
	return got
}

// changeState has the third member write what nobody has asked for.
func (p *plant) changeState(w *world) {
	if !p.otherState {
		return
	}
	m := w.members[2]
	w.later(w.plan.active/2, func() {
		if m.n != nil && !m.apply.running {
			tx := m.n.Store().Begin()
			tx.Put([]byte("k0"), []byte("planted"), kv.NoLease)
			tx.End()
		}
	})
}

func clone(m *raftpb.Message) *raftpb.Message { return proto.Clone(m).(*raftpb.Message) }

// unnumbered sends proposals twice, the second time as etcd would: without term and number.
func unnumbered(m *raftpb.Message) []*raftpb.Message {
	if m.GetType() != raftpb.MsgProp {
		return []*raftpb.Message{m}
	}
	again := clone(m)
	again.Term, again.Index, again.LogTerm = nil, nil, nil
	return []*raftpb.Message{m, again}
}

// revoking ends each lease that is granted through a follower right after its grant.
func revoking(m *raftpb.Message) []*raftpb.Message {
	ms := []*raftpb.Message{m}
	if m.GetType() != raftpb.MsgProp {
		return ms
	}
	for _, e := range m.Entries {
		req, err := qwire.DecodeRaftRequest(e.Data)
		var g pb.LeaseGrantRequest
		if err != nil || req.Field != qwire.FieldLeaseGrant || proto.Unmarshal(req.Body, &g) != nil {
			continue
		}
		body, err := proto.Marshal(&pb.LeaseRevokeRequest{ID: g.ID})
		if err != nil {
			continue
		}
		ms = append(ms, &raftpb.Message{
			Type: raftpb.MsgProp.Enum(), From: m.From, To: m.To,
			Entries: []*raftpb.Entry{{Data: qwire.AppendRaftRequest(nil, &qwire.RequestHeader{ID: 1}, qwire.FieldLeaseRevoke, body)}},
		})
	}
	return ms
}

// generous turns every refused vote into one that is given.
func generous(m *raftpb.Message) []*raftpb.Message {
	if t := m.GetType(); t == raftpb.MsgVoteResp || t == raftpb.MsgPreVoteResp {
		m = clone(m)
		m.Reject = nil
	}
	return []*raftpb.Message{m}
}

// garbled changes a byte of what one member is sent to append.
func garbled(m *raftpb.Message) []*raftpb.Message {
	if m.GetType() == raftpb.MsgApp && m.GetTo()%2 == 0 {
		m = clone(m)
		for _, e := range m.Entries {
			if len(e.Data) > 0 {
				e.Data[len(e.Data)-1] ^= 1
			}
		}
	}
	return []*raftpb.Message{m}
}

// dropped lets no proposal through.
func dropped(m *raftpb.Message) []*raftpb.Message {
	if m.GetType() == raftpb.MsgProp {
		return nil
	}
	return []*raftpb.Message{m}
}

// TestPlantedFaults shows that each checker can fail: a fault that it is there for is
// found within a few seeds.
func TestPlantedFaults(t *testing.T) {
	tests := []struct {
		name  string
		plant plant
		find  string // in the violation
	}{
		{"disk that lies about syncs", plant{lyingDisk: true}, ""},
		{"reads that ask nobody", plant{staleReads: true}, "revisions do not follow time"},
		{"proposals twice", plant{tamper: unnumbered}, "was applied 2 times"},
		{"leases revoked early", plant{tamper: revoking}, "it was promised for"},
		{"votes for everybody", plant{tamper: generous}, "two leaders in term"},
		{"entries garbled on the way", plant{tamper: garbled}, "logs do not match"},
		{"proposals never arrive", plant{tamper: dropped}, "has not settled"},
		{"a state of its own", plant{otherState: true}, "the state after entry"},
		{"requests refused", plant{tooLarge: true}, "failed for no good reason"},
		{"failed syncs unheard", plant{deafToSync: true}, ""},
		{"no room any more", plant{fullForEver: true}, ""},
		{"removed without knowing", plant{lostChanges: true}, "has not settled"},
		{"stopped without removal", plant{alwaysTold: true}, "as if it had been removed"},
		{"etcd taken for quorate", plant{unknownEtcd: true}, "was applied 2 times"},
		{"events lost", plant{lostEvents: true}, "watcher"},
		{"events twice", plant{twiceEvents: true}, "watcher"},
		{"progress too soon", plant{soonDone: true}, "that it has got everything"},
	}
	const seedsMax = 100
	for _, tt := range tests {
		t.Run(strings.ReplaceAll(tt.name, " ", "-"), func(t *testing.T) {
			for seed := range uint64(seedsMax) {
				out := simulate(t, seed, false, func(p *plan) {
					p.plant = tt.plant
					if p.plant.fullForEver {
						p.only, p.segmentBytes = []string{"full"}, 2<<10
					}
					if p.plant.unknownEtcd {
						p.etcd, p.loss = int(seed)%p.members, 0.03
					}
				})
				if len(out.violations) == 0 {
					continue
				}
				for _, v := range out.violations {
					if strings.Contains(v, tt.find) {
						t.Logf("seed %d: %.300s", seed, v)
						return
					}
				}
				t.Logf("seed %d found something else: %.300s", seed, out.violations[0])
			}
			t.Errorf("not found in %d seeds", seedsMax)
		})
	}
}

// TestStaleReadsAreNotLinearizable shows that the search for an order finds what order
// alone does not have to.
func TestStaleReadsAreNotLinearizable(t *testing.T) {
	w := &world{}
	c := newChecker(w)
	m := &member{}
	c.ops = []*op{
		{kind: put, key: "k", value: "a", call: 1, ret: 2, on: m},
		{kind: put, key: "k", value: "b", found: "a", call: 3, ret: 4, on: m},
		{kind: get, key: "k", found: "a", call: 5, ret: 6, on: m},
	}
	c.ops[2].on.cfg.Name = "m0"
	c.linear()
	if len(c.violations) != 1 {
		t.Errorf("violations %v", c.violations)
	}
}
