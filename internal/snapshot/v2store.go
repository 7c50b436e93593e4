package snapshot

import (
	"encoding/json"
	"fmt"
	"time"

	"quorate/internal/membership"
)

// The membership as etcd up to 3.6 reads it: the saved form of the tree of keys that
// etcd 2 stored, into which each member, removed member and the cluster version are
// written one by one, as etcd 3.7 does it. Nothing of the tree but /0 is in use any more.

type v2Node struct {
	Path          string
	CreatedIndex  uint64
	ModifiedIndex uint64
	ExpireTime    time.Time // zero: never
	Value         string
	Children      map[string]*v2Node // nil for a file
}

type v2Event struct {
	Action string      `json:"action"`
	Node   v2EventNode `json:"node"`
}

type v2EventNode struct {
	Key           string `json:"key"`
	Value         string `json:"value"`
	ModifiedIndex uint64 `json:"modifiedIndex"`
	CreatedIndex  uint64 `json:"createdIndex"`
}

// v2History is the last events; etcd takes its size from the length of Events.
type v2History struct {
	Queue struct {
		Events   []*v2Event
		Size     int
		Front    int
		Back     int
		Capacity int
	}
	StartIndex uint64
	LastIndex  uint64
}

type v2Stats struct {
	GetsSuccess             uint64 `json:"getsSuccess"`
	GetsFail                uint64 `json:"getsFail"`
	SetsSuccess             uint64 `json:"setsSuccess"`
	SetsFail                uint64 `json:"setsFail"`
	DeleteSuccess           uint64 `json:"deleteSuccess"`
	DeleteFail              uint64 `json:"deleteFail"`
	UpdateSuccess           uint64 `json:"updateSuccess"`
	UpdateFail              uint64 `json:"updateFail"`
	CreateSuccess           uint64 `json:"createSuccess"`
	CreateFail              uint64 `json:"createFail"`
	CompareAndSwapSuccess   uint64 `json:"compareAndSwapSuccess"`
	CompareAndSwapFail      uint64 `json:"compareAndSwapFail"`
	CompareAndDeleteSuccess uint64 `json:"compareAndDeleteSuccess"`
	CompareAndDeleteFail    uint64 `json:"compareAndDeleteFail"`
	ExpireCount             uint64 `json:"expireCount"`
	Watchers                uint64 `json:"watchers"`
}

type v2Tree struct {
	Root           *v2Node
	WatcherHub     struct{ EventHistory v2History }
	CurrentIndex   uint64
	Stats          v2Stats
	CurrentVersion int
}

const v2HistoryCapacity = 1000

// V2Store is the membership in the form that etcd up to 3.6 reads from a .snap file, and
// that a snapshot message to a peer carries.
func V2Store(s *membership.State) []byte {
	t := &v2Tree{Root: v2Dir("/", 0), CurrentVersion: 2}
	for _, name := range []string{"0", "1"} {
		t.Root.Children[name] = v2Dir("/"+name, 0)
	}
	t.WatcherHub.EventHistory.Queue.Events = make([]*v2Event, v2HistoryCapacity)
	t.WatcherHub.EventHistory.Queue.Capacity = v2HistoryCapacity
	t.Stats.GetsFail = 1 // etcd looks whether there are members first

	for i := range s.Members {
		m := &s.Members[i]
		t.write("create", v2JSON(struct {
			PeerURLs  []string `json:"peerURLs"`
			IsLearner bool     `json:"isLearner,omitempty"`
		}{m.PeerURLs, m.IsLearner}), "0", "members", m.ID.String(), "raftAttributes")
		if m.ClientURLs != nil {
			t.write("set", v2JSON(struct {
				Name       string   `json:"name,omitempty"`
				ClientURLs []string `json:"clientURLs,omitempty"`
			}{m.Name, m.ClientURLs}), "0", "members", m.ID.String(), "attributes")
		}
	}
	for _, id := range s.Removed {
		t.write("create", "", "0", "removed_members", id.String())
	}
	if !s.Version.IsZero() {
		t.write("set", s.Version.String(), "0", "version")
	}
	return []byte(v2JSON(t))
}

func v2Dir(path string, index uint64) *v2Node {
	return &v2Node{Path: path, CreatedIndex: index, ModifiedIndex: index, Children: map[string]*v2Node{}}
}

// write puts a file into the tree and its event into the history.
func (t *v2Tree) write(action, value string, path ...string) {
	t.CurrentIndex++
	index := t.CurrentIndex
	n := t.Root
	full := ""
	for i, name := range path {
		full += "/" + name
		child := n.Children[name]
		switch {
		case i == len(path)-1:
			child = &v2Node{Path: full, CreatedIndex: index, ModifiedIndex: index, Value: value}
		case child == nil:
			child = v2Dir(full, index)
		}
		n.Children[name] = child
		n = child
	}
	if action == "create" {
		t.Stats.CreateSuccess++
	} else {
		t.Stats.SetsSuccess++
	}
	t.WatcherHub.EventHistory.add(&v2Event{action, v2EventNode{full, value, index, index}})
}

// add keeps the newest events, in a ring.
func (h *v2History) add(e *v2Event) {
	q := &h.Queue
	if q.Size == q.Capacity {
		q.Front = (q.Front + 1) % q.Capacity
	} else {
		q.Size++
	}
	q.Events[q.Back] = e
	q.Back = (q.Back + 1) % q.Capacity
	h.LastIndex = e.Node.ModifiedIndex
	h.StartIndex = q.Events[q.Front].Node.ModifiedIndex
}

// v2JSON encodes one of the types above, none of which can fail.
func v2JSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("snapshot: encode %T: %v", v, err))
	}
	return string(b)
}
