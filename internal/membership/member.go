// Package membership knows who belongs to the cluster: members and their ids, who was
// removed for ever, the cluster's version, and which changes are allowed.
//
// Ids, JSON forms and rules are etcd's, so that members of both kinds agree on them
// entry by entry. The package is deterministic: it has no clock, no I/O and no
// goroutine. Cluster is changed by the applier alone; everyone reads the immutable
// State that it publishes.
package membership

import (
	"crypto/sha1"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ID names a member or a cluster. It is written in hex without leading zeros in logs,
// headers and bucket keys, in decimal in JSON. 0 is nobody.
type ID uint64

// String is the id in hex.
func (id ID) String() string { return strconv.FormatUint(uint64(id), 16) }

// ParseID reads what String writes.
func ParseID(s string) (ID, error) {
	v, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		return 0, fmt.Errorf("parse id %q: %w", s, err)
	}
	return ID(v), nil
}

// Member is one server of the cluster. Its JSON form is the value in the members bucket,
// an element of the list that GET /members of the peer port gives, and, with
// Context.IsPromote beside it, the context of a configuration change.
type Member struct {
	ID        ID       `json:"id"`
	PeerURLs  []string `json:"peerURLs"`
	IsLearner bool     `json:"isLearner,omitempty"`
	// Name and ClientURLs are empty until the member has started and published them.
	Name       string   `json:"name,omitempty"`
	ClientURLs []string `json:"clientURLs,omitempty"`
}

// Context is what a configuration change that adds or promotes a member carries.
type Context struct {
	Member
	// IsPromote tells the promotion of a learner from the addition of a voter.
	IsPromote bool `json:"isPromote"`
}

// Started reports whether the member has ever published its name.
func (m *Member) Started() bool { return m.Name != "" }

// Clone is a copy that shares nothing with m.
func (m Member) Clone() Member {
	m.PeerURLs = slices.Clone(m.PeerURLs)
	m.ClientURLs = slices.Clone(m.ClientURLs)
	return m
}

// JSON is m as the members bucket and an update's context hold it.
func (m Member) JSON() []byte { return mustJSON(m) }

// JSON is c as the context of a configuration change.
func (c Context) JSON() []byte { return mustJSON(c) }

// mustJSON encodes one of this package's own types, none of which can fail.
func mustJSON(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("membership: encode %T: %v", v, err))
	}
	return b
}

// InitialMemberID is the id of a member that the flags of a new cluster name: the start
// of the SHA-1 of its peer URLs, sorted and joined, and the cluster's token.
func InitialMemberID(peerURLs []string, token string) ID {
	return memberID(peerURLs, token, "")
}

// AddedMemberID is the id of a member that is added to a running cluster at time now
// (in seconds), so that adding the same URLs again later gives another id.
func AddedMemberID(peerURLs []string, token string, now time.Time) ID {
	return memberID(peerURLs, token, strconv.FormatInt(now.Unix(), 10))
}

func memberID(peerURLs []string, token, seconds string) ID {
	urls := slices.Sorted(slices.Values(peerURLs))
	return firstOfSHA1([]byte(strings.Join(urls, "") + token + seconds))
}

// ClusterID is the id of the cluster that starts with exactly these members.
func ClusterID(members []Member) ID {
	ids := make([]ID, len(members))
	for i := range members {
		ids[i] = members[i].ID
	}
	slices.Sort(ids)
	b := make([]byte, 0, 8*len(ids))
	for _, id := range ids {
		b = binary.BigEndian.AppendUint64(b, uint64(id))
	}
	return firstOfSHA1(b)
}

func firstOfSHA1(b []byte) ID {
	sum := sha1.Sum(b)
	return ID(binary.BigEndian.Uint64(sum[:8]))
}
