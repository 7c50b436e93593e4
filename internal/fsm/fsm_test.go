package fsm

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"quorate/internal/auth"
	"quorate/internal/kv"
	"quorate/internal/lease"
	"quorate/internal/membership"
	"quorate/internal/mvcc"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// machine is a Machine on a store of its own, with entries numbered as they come.
type machine struct {
	*Machine
	t      testing.TB
	store  *mvcc.Store
	leases *lease.Lessor
	index  uint64
}

func newMachine(t testing.TB) *machine {
	t.Helper()
	store, err := mvcc.Open(filepath.Join(t.TempDir(), "db"), mvcc.Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	cluster, err := membership.Load(store, membership.Version{Major: 3, Minor: 7, Patch: 1}, 1)
	if err != nil {
		t.Fatal(err)
	}
	alarms, err := LoadAlarms(store)
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := auth.NewTokens("simple", 0)
	if err != nil {
		t.Fatal(err)
	}
	users, err := auth.Load(store, tokens, 4)
	if err != nil {
		t.Fatal(err)
	}
	leases := lease.New(2)
	leases.Promote(time.Unix(900, 0), time.Second)
	return &machine{New(store, func() *lease.Lessor { return leases }, cluster, alarms, users), t, store, leases, 0}
}

func (m *machine) entry(field wire.Field, msg proto.Message) *raftpb.Entry {
	m.t.Helper()
	body, err := proto.Marshal(msg)
	if err != nil {
		m.t.Fatal(err)
	}
	m.index++
	return &raftpb.Entry{
		Type: raftpb.EntryNormal.Enum(), Index: new(m.index), Term: new(uint64(1)),
		Data: wire.AppendRaftRequest(nil, &wire.RequestHeader{ID: m.index + 100}, field, body),
	}
}

// do applies one request and publishes it.
func (m *machine) do(field wire.Field, msg proto.Message) Result {
	m.t.Helper()
	id, res, err := m.Apply(m.entry(field, msg), time.Unix(1000, 0))
	if err != nil {
		m.t.Fatal(err)
	}
	if id != m.index+100 {
		m.t.Errorf("id %d, want %d", id, m.index+100)
	}
	m.store.Publish(m.index, 1)
	return res
}

func (m *machine) put(key, value string) Result {
	return m.do(wire.FieldPut, &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
}

func putOp(key, value string, lease int64) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(key), Value: []byte(value), Lease: lease}}}
}

func txnOp(t *pb.TxnRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: t}}
}

func rangeOp(key, end string, rev int64) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(key), RangeEnd: []byte(end), Revision: rev}}}
}

func version(key string, result pb.Compare_CompareResult, v int64) *pb.Compare {
	return &pb.Compare{Key: []byte(key), Target: pb.Compare_VERSION, Result: result, TargetUnion: &pb.Compare_Version{Version: v}}
}

func (m *machine) txn(t *pb.TxnRequest) (*pb.TxnResponse, error) {
	m.t.Helper()
	res := m.do(wire.FieldTxn, t)
	if res.Err != nil {
		return nil, res.Err
	}
	resp := &pb.TxnResponse{}
	if err := proto.Unmarshal(res.Body, resp); err != nil {
		m.t.Fatal(err)
	}
	return resp, nil
}

func TestRefusedTxnLeavesNoTrace(t *testing.T) {
	m := newMachine(t)
	rev := m.put("a", "1").Rev
	for name, op := range map[string]*pb.RequestOp{
		"lease that does not exist":       putOp("b", "2", 99),
		"key that does not exist":         {Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("none"), IgnoreValue: true}}},
		"revision that does not exist":    rangeOp("a", "", 1000),
		"the same, nested":                txnOp(&pb.TxnRequest{Success: []*pb.RequestOp{rangeOp("a", "", 1000)}}),
		"the same, nested behind another": txnOp(&pb.TxnRequest{Success: []*pb.RequestOp{txnOp(&pb.TxnRequest{}), rangeOp("a", "", 1000)}}),
	} {
		if _, err := m.txn(&pb.TxnRequest{Success: []*pb.RequestOp{putOp("c", "3", 0), op}}); err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
	v := m.store.View()
	defer v.Release()
	if v.Rev() != rev {
		t.Errorf("revision %d after refusals, want %d", v.Rev(), rev)
	}
	if events := m.TakeEvents(); len(events) != 1 {
		t.Errorf("%d events, want that of the first put", len(events))
	}
}

// Every comparison, also those of nested transactions, is evaluated before anything is
// done, so a put does not change which branch a later nested transaction takes.
func TestBranchesAreChosenByTheStateBefore(t *testing.T) {
	m := newMachine(t)
	resp, err := m.txn(&pb.TxnRequest{
		Compare: []*pb.Compare{version("a", pb.Compare_EQUAL, 0)},
		Success: []*pb.RequestOp{
			putOp("a", "1", 0),
			txnOp(&pb.TxnRequest{
				Compare: []*pb.Compare{version("a", pb.Compare_GREATER, 0)},
				Success: []*pb.RequestOp{putOp("seen", "1", 0)},
				Failure: []*pb.RequestOp{putOp("unseen", "1", 0), txnOp(&pb.TxnRequest{
					Compare: []*pb.Compare{version("seen", pb.Compare_EQUAL, 1)},
					Failure: []*pb.RequestOp{putOp("deep", "1", 0)},
				})},
			}),
			rangeOp("\x00", "\x00", 0), // sees all the puts before it
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if !resp.Succeeded || resp.Responses[1].GetResponseTxn().GetSucceeded() {
		t.Errorf("branches: %v", resp)
	}
	var keys []string
	for _, kv := range resp.Responses[2].GetResponseRange().Kvs {
		keys = append(keys, fmt.Sprintf("%s@%d", kv.Key, kv.ModRevision))
	}
	if got := fmt.Sprint(keys); got != "[a@2 deep@2 unseen@2]" {
		t.Errorf("keys %s", got)
	}
}

func TestComparesOfRanges(t *testing.T) {
	m := newMachine(t)
	m.put("k1", "x")
	m.put("k2", "x")
	m.put("k2", "y")
	for _, tc := range []struct {
		name    string
		compare *pb.Compare
		want    bool
	}{
		{"all versions above 0", &pb.Compare{Key: []byte("k"), RangeEnd: []byte("l"), Target: pb.Compare_VERSION, Result: pb.Compare_GREATER}, true},
		{"not all versions are 1", &pb.Compare{Key: []byte("k"), RangeEnd: []byte("l"), Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{Version: 1}}, false},
		{"no key: version 0", version("none", pb.Compare_EQUAL, 0), true},
		{"no key: a value is never equal", &pb.Compare{Key: []byte("none"), Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{}}, false},
		{"no key: nor different", &pb.Compare{Key: []byte("none"), Target: pb.Compare_VALUE, Result: pb.Compare_NOT_EQUAL, TargetUnion: &pb.Compare_Value{Value: []byte("x")}}, false},
		{"value", &pb.Compare{Key: []byte("k2"), Target: pb.Compare_VALUE, TargetUnion: &pb.Compare_Value{Value: []byte("y")}}, true},
		{"mod", &pb.Compare{Key: []byte("k2"), Target: pb.Compare_MOD, TargetUnion: &pb.Compare_ModRevision{ModRevision: 4}}, true},
		{"create", &pb.Compare{Key: []byte("k2"), Target: pb.Compare_CREATE, Result: pb.Compare_LESS, TargetUnion: &pb.Compare_CreateRevision{CreateRevision: 4}}, true},
		{"lease", &pb.Compare{Key: []byte("k2"), Target: pb.Compare_LEASE, TargetUnion: &pb.Compare_Lease{}}, true},
	} {
		resp, err := m.txn(&pb.TxnRequest{Compare: []*pb.Compare{tc.compare}})
		if err != nil || resp.Succeeded != tc.want {
			t.Errorf("%s: %v, %v", tc.name, resp.GetSucceeded(), err)
		}
	}
}

func TestPutMovesAKeyBetweenLeases(t *testing.T) {
	m := newMachine(t)
	for id := int64(1); id <= 2; id++ {
		if res := m.do(wire.FieldLeaseGrant, &pb.LeaseGrantRequest{ID: id, TTL: 60}); res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	keysOf := func() string {
		var s string
		for id := kv.LeaseID(1); id <= 2; id++ {
			info, err := m.leases.Lookup(id, true, time.Unix(1000, 0))
			s += fmt.Sprintf("%q %v;", info.Keys, err)
		}
		return s
	}
	for _, step := range []struct {
		put  *pb.PutRequest
		want string
	}{
		{&pb.PutRequest{Key: []byte("a"), Lease: 1}, `["a"] <nil>;[] <nil>;`},
		{&pb.PutRequest{Key: []byte("a"), Lease: 2}, `[] <nil>;["a"] <nil>;`},
		{&pb.PutRequest{Key: []byte("a"), Value: []byte("v"), IgnoreLease: true}, `[] <nil>;["a"] <nil>;`},
		{&pb.PutRequest{Key: []byte("a"), Lease: 1, IgnoreValue: true}, `["a"] <nil>;[] <nil>;`},
		{&pb.PutRequest{Key: []byte("a")}, `[] <nil>;[] <nil>;`},
	} {
		if res := m.do(wire.FieldPut, step.put); res.Err != nil {
			t.Fatal(res.Err)
		}
		if got := keysOf(); got != step.want {
			t.Errorf("after %v: %s, want %s", step.put, got, step.want)
		}
	}
	m.do(wire.FieldPut, &pb.PutRequest{Key: []byte("a"), Lease: 1})
	m.do(wire.FieldPut, &pb.PutRequest{Key: []byte("b"), Lease: 1})
	m.do(wire.FieldDelete, &pb.DeleteRangeRequest{Key: []byte("a")})
	if got := keysOf(); got != `["b"] <nil>;[] <nil>;` {
		t.Errorf("after a delete: %s", got)
	}
	rev := m.store.Rev()
	if res := m.do(wire.FieldLeaseRevoke, &pb.LeaseRevokeRequest{ID: 1}); res.Err != nil || res.Rev != rev+1 {
		t.Errorf("revoke: %+v, revision before %d", res, rev)
	}
	if res := m.do(wire.FieldLeaseRevoke, &pb.LeaseRevokeRequest{ID: 2}); res.Err != nil || res.Rev != rev+1 {
		t.Errorf("revoke of a lease without keys: %+v", res)
	}
}

func TestAlarmsRefuseWhatTheySay(t *testing.T) {
	m := newMachine(t)
	m.put("a", "1")
	alarm := func(action pb.AlarmRequest_AlarmAction, kind pb.AlarmType) int {
		res := m.do(wire.FieldAlarm, &pb.AlarmRequest{Action: action, MemberID: 5, Alarm: kind})
		resp := &pb.AlarmResponse{}
		if err := proto.Unmarshal(res.Body, resp); err != nil {
			t.Fatal(err)
		}
		return len(resp.Alarms)
	}
	remove := &pb.TxnRequest{Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("b")}}}}}
	refusals := func() (s string) {
		for _, r := range []Result{
			m.put("a", "2"),
			m.do(wire.FieldTxn, &pb.TxnRequest{Failure: []*pb.RequestOp{txnOp(&pb.TxnRequest{Success: []*pb.RequestOp{putOp("b", "", 0)}})}}),
			m.do(wire.FieldTxn, remove),
			m.do(wire.FieldLeaseGrant, &pb.LeaseGrantRequest{ID: int64(m.index), TTL: 9}),
			m.do(wire.FieldDelete, &pb.DeleteRangeRequest{Key: []byte("b")}),
		} {
			switch {
			case errors.Is(r.Err, kv.ErrNoSpace):
				s += "n"
			case errors.Is(r.Err, kv.ErrCorrupt):
				s += "c"
			case r.Err == nil:
				s += "."
			default:
				s += "?"
			}
		}
		return s
	}
	if got := refusals(); got != "....." {
		t.Errorf("no alarm: %s", got)
	}
	if n := alarm(pb.AlarmRequest_ACTIVATE, pb.AlarmType_NOSPACE); n != 1 {
		t.Errorf("activate: %d alarms", n)
	}
	if got := refusals(); got != "nn.n." {
		t.Errorf("NOSPACE: %s", got)
	}
	alarm(pb.AlarmRequest_ACTIVATE, pb.AlarmType_CORRUPT)
	if got := refusals(); got != "ccccc" {
		t.Errorf("CORRUPT: %s", got)
	}
	if n := alarm(pb.AlarmRequest_GET, pb.AlarmType_NONE); n != 2 {
		t.Errorf("get: %d alarms", n)
	}
	reloaded, err := LoadAlarms(m.store)
	if err != nil || !reloaded.NoSpace() || !reloaded.Corrupt() {
		t.Errorf("alarms in the store: %v, %v", reloaded.List(pb.AlarmType_NONE), err)
	}
	alarm(pb.AlarmRequest_DEACTIVATE, pb.AlarmType_CORRUPT)
	alarm(pb.AlarmRequest_DEACTIVATE, pb.AlarmType_NOSPACE)
	if n := alarm(pb.AlarmRequest_DEACTIVATE, pb.AlarmType_NOSPACE); n != 0 {
		t.Errorf("deactivating what is not raised: %d alarms", n)
	}
	if got := refusals(); got != "....." {
		t.Errorf("no alarm again: %s", got)
	}
}

func TestUnknownRequestStopsTheMember(t *testing.T) {
	m := newMachine(t)
	for name, e := range map[string]*raftpb.Entry{
		"unknown": m.entry(4242, &pb.PutRequest{Key: []byte("a")}),
	} {
		if _, _, err := m.Apply(e, time.Time{}); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	e := m.entry(wire.FieldPut, &pb.PutRequest{Key: []byte("a")})
	e.Data = e.Data[:len(e.Data)-1]
	if _, _, err := m.Apply(e, time.Time{}); err == nil {
		t.Error("a damaged entry was applied")
	}
}

// FuzzApply holds the machine to its promise that no entry, whatever its bytes, crashes
// it or leaves a transaction open.
func FuzzApply(f *testing.F) {
	for field, msg := range map[wire.Field]proto.Message{
		wire.FieldPut:              &pb.PutRequest{Key: []byte("a"), Value: []byte("b"), PrevKv: true},
		wire.FieldDelete:           &pb.DeleteRangeRequest{Key: []byte("a"), RangeEnd: []byte{0}, PrevKv: true},
		wire.FieldTxn:              &pb.TxnRequest{Compare: []*pb.Compare{version("a", pb.Compare_EQUAL, 1)}, Success: []*pb.RequestOp{putOp("a", "b", 0)}, Failure: []*pb.RequestOp{txnOp(&pb.TxnRequest{Success: []*pb.RequestOp{rangeOp("a", "", 0)}})}},
		wire.FieldCompact:          &pb.CompactionRequest{Revision: 2},
		wire.FieldLeaseGrant:       &pb.LeaseGrantRequest{ID: 1, TTL: 2},
		wire.FieldLeaseRevoke:      &pb.LeaseRevokeRequest{ID: 1},
		wire.FieldLeaseCheckpoint:  &pb.LeaseCheckpointRequest{Checkpoints: []*pb.LeaseCheckpoint{{ID: 1, Remaining_TTL: 1}}},
		wire.FieldAlarm:            &pb.AlarmRequest{Action: 1, Alarm: 1},
		wire.FieldMemberAttributes: &pb.PutRequest{},
	} {
		body, err := proto.Marshal(msg)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(int32(field), body)
	}
	f.Fuzz(func(t *testing.T, field int32, body []byte) {
		m := newMachine(t)
		m.put("a", "1")
		for range 2 {
			m.index++
			_, _, err := m.Apply(&raftpb.Entry{Index: new(m.index), Term: new(uint64(1)),
				Data: wire.AppendRaftRequest(nil, &wire.RequestHeader{ID: 1}, wire.Field(field), body)}, time.Unix(1000, 0))
			if err != nil {
				return
			}
			m.store.Publish(m.index, 1)
		}
		m.put("a", "2")
	})
}
