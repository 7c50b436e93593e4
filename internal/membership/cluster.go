package membership

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"quorate/internal/kv"

	"go.etcd.io/raft/v3/raftpb"
)

// Why a configuration change is refused. The texts are etcd's; those that the state
// machine's vocabulary knows are also the kv error of the same meaning.
var (
	ErrIDRemoved       error = &refusal{"membership: ID removed", kv.ErrMemberNotFound}
	ErrIDExists        error = &refusal{"membership: ID exists", kv.ErrMemberExists}
	ErrIDNotFound      error = &refusal{"membership: ID not found", kv.ErrMemberNotFound}
	ErrPeerURLExists   error = &refusal{"membership: peerURL exists", kv.ErrPeerURLExists}
	ErrNotLearner      error = &refusal{"membership: can only promote a learner member", kv.ErrMemberNotLearner}
	ErrTooManyLearners error = &refusal{"membership: too many learner members in cluster", kv.ErrTooManyLearners}

	// ErrLastVoter is ours: with etcd a cluster whose last voter is removed ends in a panic.
	ErrLastVoter error = &refusal{"membership: the last voter cannot be removed", kv.ErrNotEnoughStarted}
)

// What must stop the process: the log or the database says what no server that follows
// the protocol can have written, or what only a newer one understands.
var (
	ErrMalformed = errors.New("membership: malformed")
	ErrNewer     = errors.New("membership: cluster version is newer than this server")
)

type refusal struct {
	text string
	kind error
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.kind }

// The buckets that hold the membership: hex id → JSON, hex id → "removed", and
// clusterVersion and downgrade.
const (
	BucketMembers = "members"
	BucketRemoved = "members_removed"
	BucketCluster = "cluster"

	keyVersion   = "clusterVersion"
	keyDowngrade = "downgrade"
)

// Buckets is where the membership is kept; mvcc.Store is one.
type Buckets interface {
	BucketReader
	PutBucket(bucket string, key, value []byte)
	DeleteBucket(bucket string, key []byte)
}

// BucketReader is what Read needs of Buckets.
type BucketReader interface {
	ReadBucket(bucket string, fn func(key, value []byte) error) error
}

// State is the membership at one moment. Nobody changes a State or what it holds.
type State struct {
	Members   []Member // by id
	Removed   []ID     // sorted; they can never come back
	Version   Version  // zero until the leader has decided it
	Downgrade Downgrade
}

// Cluster is the membership as the applied log says. Its methods that change it are for
// the applier; State is for everyone.
type Cluster struct {
	buckets     Buckets
	server      Version
	maxLearners int
	state       atomic.Pointer[State]
}

// Load reads the membership out of b. server is this server's version: a cluster of a
// later minor version is refused with ErrNewer. maxLearners bounds how many learners
// there may be at once; all members must be started with the same.
func Load(b Buckets, server Version, maxLearners int) (*Cluster, error) {
	c := &Cluster{buckets: b, server: server, maxLearners: maxLearners}
	if err := c.Reload(); err != nil {
		return nil, err
	}
	return c, nil
}

// Reload reads the membership again, after the store was replaced by a snapshot's.
func (c *Cluster) Reload() error {
	s, err := Read(c.buckets)
	if err != nil {
		return err
	}
	if err := c.checkVersion(s.Version); err != nil {
		return err
	}
	c.state.Store(s)
	return nil
}

// Read is the membership that b holds.
func Read(b BucketReader) (*State, error) {
	var s State
	err := b.ReadBucket(BucketMembers, func(key, value []byte) error {
		id, err := ParseID(string(key))
		if err != nil {
			return fmt.Errorf("%w bucket %s: %w", ErrMalformed, BucketMembers, err)
		}
		m := Member{ID: id}
		if err := json.Unmarshal(value, &m); err != nil {
			return fmt.Errorf("%w bucket %s, member %s: %w", ErrMalformed, BucketMembers, id, err)
		}
		s.Members = append(s.Members, m)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(s.Members, func(a, b Member) int { return cmp.Compare(a.ID, b.ID) })

	err = b.ReadBucket(BucketRemoved, func(key, _ []byte) error {
		id, err := ParseID(string(key))
		if err != nil {
			return fmt.Errorf("%w bucket %s: %w", ErrMalformed, BucketRemoved, err)
		}
		s.Removed = append(s.Removed, id)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(s.Removed)

	err = b.ReadBucket(BucketCluster, func(key, value []byte) error {
		var err error
		switch string(key) {
		case keyVersion:
			s.Version, err = ParseVersion(string(value))
		case keyDowngrade:
			err = json.Unmarshal(value, &s.Downgrade)
			if err == nil && s.Downgrade.Enabled {
				_, err = ParseVersion(s.Downgrade.Target)
			}
		}
		if err != nil {
			return fmt.Errorf("%w bucket %s, key %s: %w", ErrMalformed, BucketCluster, key, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &s, nil
}

// State is the membership now.
func (c *Cluster) State() *State { return c.state.Load() }

// Change is what a configuration change did, for those who keep connections to members.
type Change struct {
	Type     raftpb.ConfChangeType
	Member   Member // as it is now; only ID when it was removed
	Promoted bool   // a learner became a voter
}

// Check says whether cc may be applied now: nil, one of the refusals above, or
// ErrMalformed. Every member checks a committed change again when it applies it, and all
// come to the same answer; a refused change must reach raft with node id 0.
func (c *Cluster) Check(cc *raftpb.ConfChange) error {
	_, err := c.State().decide(cc, c.maxLearners)
	return err
}

// Apply checks cc and carries it out in memory and in the buckets. After an error
// nothing has changed.
func (c *Cluster) Apply(cc *raftpb.ConfChange) (Change, error) {
	s := c.State()
	ch, err := s.decide(cc, c.maxLearners)
	if err != nil {
		return Change{}, err
	}
	key := []byte(ch.Member.ID.String())
	next := *s
	if ch.Type == raftpb.ConfChangeRemoveNode {
		next.Members = slices.DeleteFunc(slices.Clone(s.Members), func(m Member) bool { return m.ID == ch.Member.ID })
		next.Removed = append(slices.Clone(s.Removed), ch.Member.ID)
		slices.Sort(next.Removed)
		c.buckets.DeleteBucket(BucketMembers, key)
		c.buckets.PutBucket(BucketRemoved, key, []byte("removed"))
	} else {
		next.Members = with(s.Members, ch.Member)
		c.buckets.PutBucket(BucketMembers, key, ch.Member.JSON())
	}
	c.state.Store(&next)
	return ch, nil
}

// decide says what cc does to s, or why it may not.
func (s *State) decide(cc *raftpb.ConfChange, maxLearners int) (Change, error) {
	id := ID(cc.GetNodeId())
	if s.IsRemoved(id) {
		return Change{}, ErrIDRemoved
	}
	old, known := s.Member(id)
	ch := Change{Type: cc.GetType()}

	switch cc.GetType() {
	case raftpb.ConfChangeAddNode, raftpb.ConfChangeAddLearnerNode:
		var ctx Context
		if err := decodeContext(cc, &ctx, &ctx.ID); err != nil {
			return Change{}, err
		}
		if ctx.IsPromote {
			if !known {
				return Change{}, ErrIDNotFound
			}
			if !old.IsLearner {
				return Change{}, ErrNotLearner
			}
			ch.Member, ch.Promoted = old, true
			ch.Member.IsLearner = false
			return ch, nil
		}
		if known {
			return Change{}, ErrIDExists
		}
		if s.anyHasPeerURL(ctx.PeerURLs, id) {
			return Change{}, ErrPeerURLExists
		}
		if ctx.IsLearner && cc.GetType() == raftpb.ConfChangeAddLearnerNode && s.learners()+1 > maxLearners {
			return Change{}, ErrTooManyLearners
		}
		ch.Member = ctx.Member

	case raftpb.ConfChangeRemoveNode:
		if !known {
			return Change{}, ErrIDNotFound
		}
		if voters, _ := s.countVoters(id); voters == 0 {
			return Change{}, ErrLastVoter
		}
		ch.Member = Member{ID: id}

	case raftpb.ConfChangeUpdateNode:
		if !known {
			return Change{}, ErrIDNotFound
		}
		var m Member
		if err := decodeContext(cc, &m, &m.ID); err != nil {
			return Change{}, err
		}
		if s.anyHasPeerURL(m.PeerURLs, id) {
			return Change{}, ErrPeerURLExists
		}
		ch.Member = old
		ch.Member.PeerURLs = m.PeerURLs

	default:
		return Change{}, fmt.Errorf("%w configuration change: type %d is unknown", ErrMalformed, cc.GetType())
	}
	return ch, nil
}

// decodeContext reads cc's context into v, whose member id must be the one that raft is
// told of.
func decodeContext(cc *raftpb.ConfChange, v any, id *ID) error {
	if err := json.Unmarshal(cc.GetContext(), v); err != nil {
		return fmt.Errorf("%w configuration change of member %s: %w", ErrMalformed, ID(cc.GetNodeId()), err)
	}
	if *id != ID(cc.GetNodeId()) {
		return fmt.Errorf("%w configuration change: it is for member %s and its context for %s",
			ErrMalformed, ID(cc.GetNodeId()), *id)
	}
	return nil
}

// SetAttributes records the name and client URLs that a member has published. Those of
// a removed member are ignored; a member that was never known is ErrMalformed.
func (c *Cluster) SetAttributes(id ID, name string, clientURLs []string) error {
	s := c.State()
	m, ok := s.Member(id)
	if !ok {
		if s.IsRemoved(id) {
			return nil
		}
		return fmt.Errorf("%w attributes: member %s was never added", ErrMalformed, id)
	}
	m.Name, m.ClientURLs = name, clientURLs
	next := *s
	next.Members = with(s.Members, m)
	c.buckets.PutBucket(BucketMembers, []byte(id.String()), m.JSON())
	c.state.Store(&next)
	return nil
}

// SetVersion records the version that the leader has decided on. ErrNewer means that
// this server is too old to go on. down tells that the version went down: a database
// and log that older servers understand must be written out.
func (c *Cluster) SetVersion(text string) (down bool, err error) {
	v, err := ParseVersion(text)
	if err != nil {
		return false, fmt.Errorf("%w cluster version: %w", ErrMalformed, err)
	}
	if err := c.checkVersion(v); err != nil {
		return false, err
	}
	next := *c.State()
	down = !next.Version.IsZero() && v.Less(next.Version)
	next.Version = v
	c.buckets.PutBucket(BucketCluster, []byte(keyVersion), []byte(v.String()))
	c.state.Store(&next)
	return down, nil
}

func (c *Cluster) checkVersion(v Version) error {
	if c.server.MinorOnly().Less(v) {
		return fmt.Errorf("%w: the cluster is at %s, this server is %s", ErrNewer, v.Short(), c.server)
	}
	return nil
}

// SetDowngrade records the plan to go down to a version, or that there is none.
func (c *Cluster) SetDowngrade(d Downgrade) {
	if !d.Enabled {
		d.Target = ""
	}
	next := *c.State()
	next.Downgrade = d
	c.buckets.PutBucket(BucketCluster, []byte(keyDowngrade), mustJSON(d))
	c.state.Store(&next)
}

// Member is the member with that id; the copy shares its slices with the State.
func (s *State) Member(id ID) (Member, bool) {
	i, ok := slices.BinarySearchFunc(s.Members, id, byID)
	if !ok {
		return Member{}, false
	}
	return s.Members[i], true
}

// IsRemoved reports whether id was a member once and was removed.
func (s *State) IsRemoved(id ID) bool {
	_, ok := slices.BinarySearch(s.Removed, id)
	return ok
}

// Voters are the members that are not learners, by id.
func (s *State) Voters() []Member {
	return slices.DeleteFunc(slices.Clone(s.Members), func(m Member) bool { return m.IsLearner })
}

// MayAddVoter reports whether enough voters have started to form a quorum once another,
// not yet started one is added. A single started voter may always get a second one.
func (s *State) MayAddVoter() bool {
	voters, started := s.countVoters(0)
	if started == 1 && voters == 1 {
		return true
	}
	return started >= (voters+1)/2+1
}

// MayRemoveVoter reports whether those that stay, without id, have started in
// sufficient number to form a quorum.
func (s *State) MayRemoveVoter(id ID) bool {
	voters, started := s.countVoters(id)
	return started >= voters/2+1
}

// MayPromote reports whether the voters that have started, with a promoted learner among
// them, form a quorum.
func (s *State) MayPromote() bool {
	voters, started := s.countVoters(0)
	return started+1 >= (voters+1)/2+1
}

// countVoters counts voters and started voters, except one.
func (s *State) countVoters(except ID) (voters, started int) {
	for i := range s.Members {
		m := &s.Members[i]
		if m.IsLearner || m.ID == except {
			continue
		}
		voters++
		if m.Started() {
			started++
		}
	}
	return voters, started
}

func (s *State) learners() (n int) {
	for i := range s.Members {
		if s.Members[i].IsLearner {
			n++
		}
	}
	return n
}

// anyHasPeerURL reports whether a member other than except has one of urls.
func (s *State) anyHasPeerURL(urls []string, except ID) bool {
	for i := range s.Members {
		if s.Members[i].ID == except {
			continue
		}
		for _, u := range urls {
			if slices.Contains(s.Members[i].PeerURLs, u) {
				return true
			}
		}
	}
	return false
}

func byID(m Member, id ID) int { return cmp.Compare(m.ID, id) }

// with is ms, which is sorted by id and stays as it is, with m in it.
func with(ms []Member, m Member) []Member {
	i, found := slices.BinarySearchFunc(ms, m.ID, byID)
	ms = slices.Clone(ms)
	if found {
		ms[i] = m
		return ms
	}
	return slices.Insert(ms, i, m)
}
