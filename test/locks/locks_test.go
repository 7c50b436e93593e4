package locks

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"quorate/test/harness"
)

const durationDefault = 20 * time.Second

var (
	duration = flag.Duration("duration", durationDefault, "how long the random run goes on")
	seed     = flag.Uint64("seed", 0, "seed of the first episode, counted up for those that follow; without -duration, of the only one; 0 takes one from the clock")
	steps    = flag.Int("steps", 400, "steps of an episode")
)

func TestMain(m *testing.M) { harness.Main(m) }

// settleWithin bounds how long a server may take to answer what it can answer.
const settleWithin = 20 * time.Second

// pending is a call of Lock or Campaign on both servers.
type pending struct {
	what   string
	key    string // with which it stands in line
	line   string // prefix of the keys in its line
	value  string // that it campaigns with; "": it is a Lock
	cancel context.CancelFunc
	result [2]chan outcome
	got    [2]*outcome

	stood    bool // in line, when all had settled
	created  int64
	canceled bool
	lost     bool // its key, while it stood
}

// Where quorate does not do as etcd does, on purpose: whose key is gone hears of it at
// once. With etcd it waits until those before it are gone, too, and has then even won an
// election, with a key that is not there. So such a call is ended on etcd's side, if there
// are any.
var lostTexts = []string{"mutex: session is expired", "election: not leader"}

type outcome struct {
	answer
	err error
}

func (o *outcome) String() string {
	if o.err != nil {
		return fmt.Sprintf("%v %q", status.Code(o.err), status.Convert(o.err).Message())
	}
	return fmt.Sprintf("revision %d, %q", o.rev, o.rest)
}

func same(a, b *outcome) bool {
	return status.Code(a.err) == status.Code(b.err) && status.Convert(a.err).Message() == status.Convert(b.err).Message() &&
		a.rev == b.rev && bytes.Equal(a.rest, b.rest)
}

// episode is one run on two fresh servers.
type episode struct {
	*testing.T
	rng      *rand.Rand
	servers  [2]*harness.Server
	conns    [2]*grpc.ClientConn
	pending  []*pending
	calls    int
	observed [2]*observation
	last     [2]*mvccpb.KeyValue // observed
}

type observation struct {
	sync.Mutex
	list []outcome
}

func TestLocksAndElections(t *testing.T) {
	first := *seed
	again := first != 0 && *duration == durationDefault
	if first == 0 {
		first = uint64(time.Now().UnixNano())
	}
	end := time.Now().Add(*duration)
	calls := 0
	for s := first; ; s++ {
		ok := t.Run(fmt.Sprint("seed ", s), func(t *testing.T) {
			e := &episode{T: t, rng: rand.New(rand.NewPCG(s, 3))}
			defer func() { calls += e.calls }()
			e.run()
		})
		if !ok || time.Now().After(end) || again {
			t.Logf("%d calls agreed", calls)
			return
		}
	}
}

func (e *episode) run() {
	for i, kind := range []harness.Kind{harness.Etcd, harness.Quorate} {
		s := harness.Start(e, kind, e.TempDir()+"/data")
		conn, err := s.Conn()
		if err != nil {
			e.Fatal(err)
		}
		e.servers[i], e.conns[i] = s, conn
		e.observed[i] = &observation{}
		ctx, cancel := context.WithCancel(e.Context())
		done := make(chan struct{})
		go func() { defer close(done); e.observe(ctx, i) }()
		e.Cleanup(func() { cancel(); <-done })
	}
	for n := range *steps {
		what := e.step()
		e.settle(fmt.Sprintf("step %d, %s", n, what))
		if e.Failed() {
			return
		}
	}
	for _, p := range e.pending {
		p.cancel()
	}
}

// observed elections are those of this name.
const observedName = "e1"

func (e *episode) observe(ctx context.Context, side int) {
	stream, err := e.conns[side].NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, "/v3electionpb.Election/Observe", grpc.ForceCodecV2(raw{}))
	if err == nil {
		err = stream.SendMsg(leaderRequest(observedName))
	}
	if err == nil {
		err = stream.CloseSend()
	}
	for err == nil {
		var b []byte
		if err = stream.RecvMsg(&b); err != nil {
			break
		}
		a, perr := parse(b)
		o := e.observed[side]
		o.Lock()
		o.list = append(o.list, outcome{a, perr})
		o.Unlock()
	}
	if ctx.Err() == nil {
		e.Errorf("observer %d ended: %v", side, err)
	}
}

func (e *episode) invoke(ctx context.Context, side int, method string, in msg) outcome {
	var b []byte
	if err := e.conns[side].Invoke(ctx, method, in, &b, grpc.ForceCodecV2(raw{})); err != nil {
		return outcome{err: err}
	}
	a, err := parse(b)
	return outcome{a, err}
}

// both makes a call that does not wait, and compares the answers.
func (e *episode) both(method string, in msg) string {
	e.Helper()
	ctx, cancel := context.WithTimeout(e.Context(), settleWithin)
	defer cancel()
	a, b := e.invoke(ctx, 0, method, in), e.invoke(ctx, 1, method, in)
	what := fmt.Sprintf("%s %q", method, []byte(in))
	e.calls++
	if !same(&a, &b) {
		e.Errorf("%s:\netcd    %v\nquorate %v", what, &a, &b)
	}
	return what
}

// proto makes a call of the other services on both servers; it must not fail on one alone.
func (e *episode) proto(method string, in, out proto.Message) string {
	e.Helper()
	ctx, cancel := context.WithTimeout(e.Context(), settleWithin)
	defer cancel()
	a, b := e.conns[0].Invoke(ctx, method, in, out), e.conns[1].Invoke(ctx, method, in, proto.Clone(out))
	if status.Convert(a).Message() != status.Convert(b).Message() {
		e.Errorf("%s %v: etcd %v, quorate %v", method, in, a, b)
	}
	return fmt.Sprintf("%s %v", method, in)
}

// wait starts a call that may wait.
func (e *episode) wait(method, line string, lease int64, value string, in msg) string {
	ctx, cancel := context.WithCancel(e.Context())
	p := &pending{
		what: fmt.Sprintf("%s %q", method, []byte(in)), line: line + "/", key: fmt.Sprintf("%s/%x", line, lease), value: value, cancel: cancel,
	}
	// The stores do not show when it has come to a key that is there, but each log does.
	there := slices.ContainsFunc(e.pending, func(o *pending) bool { return o.key == p.key })
	before := [2]uint64{e.applied(0), e.applied(1)}
	for i := range p.result {
		result := make(chan outcome, 1)
		p.result[i] = result
		go func() { result <- e.invoke(ctx, i, method, in) }()
	}
	for i := range before {
		if there && !e.awaitApplied(i, before[i]) {
			e.Fatalf("server %d has not heard of %s", i, p.what)
		}
	}
	e.pending = append(e.pending, p)
	return p.what
}

// applied is the last entry of its log that a server has applied.
func (e *episode) applied(side int) uint64 {
	r, err := pb.NewMaintenanceClient(e.conns[side]).Status(e.Context(), &pb.StatusRequest{})
	if err != nil {
		e.Fatal(err)
	}
	return r.RaftAppliedIndex
}

// awaitApplied waits until a server has applied another entry than the one named.
func (e *episode) awaitApplied(side int, last uint64) bool {
	for deadline := time.Now().Add(settleWithin); e.applied(side) == last; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// giveUp ends etcd's call of one who has lost the place and waits behind others, and waits
// until etcd has deleted the key that it does not know to be gone: by then it may be another's.
func (e *episode) giveUp(p *pending) {
	before := e.applied(0)
	p.cancel()
	o := <-p.result[0]
	if p.got[0] = &o; !e.awaitApplied(0, before) {
		e.Fatalf("etcd does not give up %s, after %v", p.what, &o)
	}
}

const leases = 7 // of ids 1 to 6, and one that is never granted

func (e *episode) step() string {
	rng := e.rng
	name := fmt.Sprint("l", rng.IntN(2))
	election := fmt.Sprint("e", rng.IntN(2))
	lease := int64(1 + rng.IntN(leases))
	value := fmt.Sprint("v", rng.IntN(4))
	if rng.IntN(20) == 0 {
		name, election = "", ""
	}
	leader := func() msg {
		kvs := e.keys(0)
		if len(kvs) == 0 || rng.IntN(8) == 0 {
			return leaderKey(election, election+"/1", int64(rng.IntN(20)), lease)
		}
		kv := kvs[rng.IntN(len(kvs))]
		rev := kv.CreateRevision + int64(rng.IntN(8)/7)
		return leaderKey(election, string(kv.Key), rev, max(kv.Lease, 1))
	}
	switch rng.IntN(16) {
	case 0, 1, 2:
		return e.wait("/v3lockpb.Lock/Lock", name, lease, "", lockRequest(name, lease))
	case 3, 4, 5:
		return e.wait("/v3electionpb.Election/Campaign", election, lease, value, campaignRequest(election, lease, value))
	case 6, 7:
		key := ""
		if kvs := e.keys(0); len(kvs) > 0 && rng.IntN(10) != 0 {
			key = string(kvs[rng.IntN(len(kvs))].Key)
		}
		return e.both("/v3lockpb.Lock/Unlock", unlockRequest(key))
	case 8:
		if rng.IntN(10) == 0 {
			return e.both("/v3electionpb.Election/Resign", nil)
		}
		return e.both("/v3electionpb.Election/Resign", resignRequest(leader()))
	case 9, 10:
		if rng.IntN(10) == 0 {
			return e.both("/v3electionpb.Election/Proclaim", nil)
		}
		return e.both("/v3electionpb.Election/Proclaim", proclaimRequest(leader(), value))
	case 11:
		return e.both("/v3electionpb.Election/Leader", leaderRequest(election))
	case 12:
		if len(e.pending) > 0 {
			p := e.pending[rng.IntN(len(e.pending))]
			p.cancel()
			p.canceled = true
			return "cancel of " + p.what
		}
		fallthrough
	case 13:
		return e.proto("/etcdserverpb.Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: min(lease, leases-1), TTL: 3600}, &pb.LeaseGrantResponse{})
	case 14:
		return e.proto("/etcdserverpb.Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: lease}, &pb.LeaseRevokeResponse{})
	default:
		if rng.IntN(2) == 0 {
			return e.proto("/etcdserverpb.KV/DeleteRange", &pb.DeleteRangeRequest{Key: []byte(name + "/"), RangeEnd: []byte(name + "/4")}, &pb.DeleteRangeResponse{})
		}
		return e.proto("/etcdserverpb.KV/Put", &pb.PutRequest{Key: []byte(election + "/0"), Value: []byte(value)}, &pb.PutResponse{})
	}
}

// keys are all keys of a server by creation.
func (e *episode) keys(side int) []*mvccpb.KeyValue {
	r, err := pb.NewKVClient(e.conns[side]).Range(e.Context(), &pb.RangeRequest{
		Key: []byte{0}, RangeEnd: []byte{0}, SortTarget: pb.RangeRequest_CREATE, SortOrder: pb.RangeRequest_ASCEND,
	})
	if err != nil {
		e.Fatal(err)
	}
	return r.Kvs
}

// settle waits until both servers have answered what they can answer, and compares.
func (e *episode) settle(after string) {
	e.Helper()
	for deadline := time.Now().Add(settleWithin); ; time.Sleep(2 * time.Millisecond) {
		why := e.unsettled()
		if why == "" {
			break
		}
		if time.Now().After(deadline) {
			e.Fatalf("after %s: %s\n%s", after, why, e.servers[1].Stacks())
		}
	}
	kvs := e.keys(0)
	for _, p := range e.pending {
		i := slices.IndexFunc(kvs, func(kv *mvccpb.KeyValue) bool { return string(kv.Key) == p.key })
		if p.stood = i >= 0; p.stood {
			p.created = kvs[i].CreateRevision
		}
	}
	e.pending = slices.DeleteFunc(e.pending, func(p *pending) bool {
		if p.got[0] == nil || p.got[1] == nil {
			return false
		}
		e.calls++
		if p.lost {
			return true
		}
		if !same(p.got[0], p.got[1]) {
			e.Errorf("after %s, %s:\netcd    %v\nquorate %v", after, p.what, p.got[0], p.got[1])
		}
		return true
	})
	a, b := e.observed[0], e.observed[1]
	a.Lock()
	defer a.Unlock()
	b.Lock()
	defer b.Unlock()
	if !slices.EqualFunc(a.list, b.list, func(a, b outcome) bool { return same(&a, &b) }) {
		e.Errorf("after %s, observed:\netcd    %v\nquorate %v", after, tail(a.list), tail(b.list))
	}
	e.calls += len(a.list)
	a.list, b.list = a.list[len(a.list):], b.list[len(b.list):]
}

func tail(list []outcome) (s []string) {
	for i := range list {
		s = append(s, list[i].String())
	}
	return s
}

// unsettled says what has to come yet.
func (e *episode) unsettled() string {
	kvs := [2][]*mvccpb.KeyValue{e.keys(0), e.keys(1)}
	if !slices.EqualFunc(kvs[0], kvs[1], func(a, b *mvccpb.KeyValue) bool { return proto.Equal(a, b) }) {
		return fmt.Sprintf("the stores differ:\netcd    %v\nquorate %v", kvs[0], kvs[1])
	}
	news := false
	for _, p := range e.pending {
		for i := range p.result {
			select {
			case o := <-p.result[i]:
				p.got[i] = &o
				news = true
			default:
			}
		}
		before, there := false, false
		waits := slices.ContainsFunc(kvs[0], func(kv *mvccpb.KeyValue) bool {
			return strings.HasPrefix(string(kv.Key), p.line) && kv.CreateRevision < p.created
		})
		for _, kv := range kvs[0] {
			if string(kv.Key) == p.key {
				there = p.stood || p.value == "" || p.value == string(kv.Value) // else it has not come there yet
				break
			}
			before = before || strings.HasPrefix(string(kv.Key), p.line)
		}
		if p.stood && !there && !p.lost && p.got[1] != nil && slices.Contains(lostTexts, status.Convert(p.got[1].err).Message()) {
			p.lost = true
			if p.got[0] == nil && waits {
				e.giveUp(p)
			}
		}
		for i := range p.got {
			switch {
			case p.got[i] != nil:
			case !there || !before || p.canceled:
				return fmt.Sprintf("server %d has not answered %s", i, p.what)
			}
		}
		if p.canceled && there && p.stood {
			return "the key is still there of " + p.what
		}
	}
	if news {
		return "look again: the stores may be newer by now"
	}
	return e.unobserved(kvs[0])
}

func (e *episode) unobserved(kvs []*mvccpb.KeyValue) string {
	var leader *mvccpb.KeyValue
	for _, kv := range kvs {
		if strings.HasPrefix(string(kv.Key), observedName+"/") {
			leader = kv
			break
		}
	}
	for i, o := range e.observed {
		o.Lock()
		list := o.list
		o.Unlock()
		if len(list) > 0 {
			last := list[len(list)-1].kv()
			if leader != nil && !proto.Equal(last, leader) {
				return fmt.Sprintf("observer %d has seen %v, not %v", i, last, leader)
			}
			e.last[i] = last
		} else if leader != nil && !proto.Equal(e.last[i], leader) {
			return fmt.Sprintf("observer %d has not seen %v", i, leader)
		}
	}
	return ""
}
