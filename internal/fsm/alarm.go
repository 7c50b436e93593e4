package fsm

import (
	"cmp"
	"fmt"
	"slices"
	"sync"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// Alarms are the alarms that are raised, by member and kind. Only the applier changes
// them; anyone may look.
type Alarms struct {
	mu  sync.RWMutex
	set map[alarmKey]*pb.AlarmMember
}

type alarmKey struct {
	member uint64
	kind   pb.AlarmType
}

// buckets is the applier's access to the file's small buckets.
type buckets interface {
	PutBucket(bucket string, key, value []byte)
	DeleteBucket(bucket string, key []byte)
	ReadBucket(bucket string, fn func(key, value []byte) error) error
}

// LoadAlarms reads the alarm bucket: an AlarmMember as key, nothing as value.
func LoadAlarms(from buckets) (*Alarms, error) {
	a := &Alarms{}
	return a, a.Reload(from)
}

// Reload reads the alarm bucket again, after the store was replaced by a snapshot's.
func (a *Alarms) Reload(from buckets) error {
	set := make(map[alarmKey]*pb.AlarmMember)
	err := from.ReadBucket("alarm", func(key, _ []byte) error {
		m := &pb.AlarmMember{}
		if err := proto.Unmarshal(key, m); err != nil {
			return fmt.Errorf("alarm bucket: %w", err)
		}
		set[alarmKey{m.MemberID, m.Alarm}] = m
		return nil
	})
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.set = set
	return nil
}

// List returns the alarms of a kind, or all for NONE, by member and kind.
func (a *Alarms) List(kind pb.AlarmType) []*pb.AlarmMember {
	a.mu.RLock()
	defer a.mu.RUnlock()
	var list []*pb.AlarmMember
	for _, m := range a.set {
		if kind == pb.AlarmType_NONE || m.Alarm == kind {
			list = append(list, m)
		}
	}
	slices.SortFunc(list, func(x, y *pb.AlarmMember) int {
		return cmp.Or(cmp.Compare(x.MemberID, y.MemberID), cmp.Compare(x.Alarm, y.Alarm))
	})
	return list
}

// NoSpace and Corrupt report whether any member has raised the alarm.
func (a *Alarms) NoSpace() bool { return a.raised(pb.AlarmType_NOSPACE) }
func (a *Alarms) Corrupt() bool { return a.raised(pb.AlarmType_CORRUPT) }

func (a *Alarms) raised(kind pb.AlarmType) bool {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for k := range a.set {
		if k.kind == kind {
			return true
		}
	}
	return false
}

// alarm raises, lowers or lists alarms.
func (m *Machine) alarm(r *pb.AlarmRequest) Result {
	var list []*pb.AlarmMember
	am := &pb.AlarmMember{MemberID: r.MemberID, Alarm: r.Alarm}
	switch r.Action {
	case pb.AlarmRequest_GET:
		list = m.alarms.List(r.Alarm)
	case pb.AlarmRequest_ACTIVATE:
		if r.Alarm != pb.AlarmType_NONE {
			list = m.alarms.change(m.store, am, true)
		}
	case pb.AlarmRequest_DEACTIVATE:
		list = m.alarms.change(m.store, am, false)
	}
	body, err := proto.Marshal(&pb.AlarmResponse{Alarms: list})
	if err != nil {
		panic("fsm: encode alarms: " + err.Error()) // numbers alone; cannot fail
	}
	return Result{Body: body}
}

// change raises or lowers one alarm and returns it; none if it was not raised. Raising
// one that is raised already returns it too.
func (a *Alarms) change(to buckets, am *pb.AlarmMember, raise bool) []*pb.AlarmMember {
	key, err := proto.Marshal(am)
	if err != nil {
		panic("fsm: encode alarm: " + err.Error())
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	k := alarmKey{am.MemberID, am.Alarm}
	old, had := a.set[k]
	switch {
	case raise && had:
		return []*pb.AlarmMember{old}
	case raise:
		a.set[k] = am
		to.PutBucket("alarm", key, nil)
	case had:
		delete(a.set, k)
		to.DeleteBucket("alarm", key)
	default:
		return nil
	}
	return []*pb.AlarmMember{am}
}
