package membership

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Version is a release, as semver.org orders them. The zero Version means that none is
// known or decided yet.
type Version struct {
	Major, Minor, Patch int64
	Pre                 string // "rc.1"; empty for a release
}

// ParseVersion reads "3.7.1" or "3.8.0-rc.1"; what follows a plus sign is left out.
func ParseVersion(s string) (Version, error) {
	bad := fmt.Errorf("%q is not a version like 3.7.0", s)
	core, _, _ := strings.Cut(s, "+")
	core, pre, _ := strings.Cut(core, "-")
	parts := strings.Split(core, ".")
	if len(parts) != 3 {
		return Version{}, bad
	}
	var n [3]int64
	for i, p := range parts {
		v, err := strconv.ParseUint(p, 10, 31)
		if err != nil {
			return Version{}, bad
		}
		n[i] = int64(v)
	}
	return Version{n[0], n[1], n[2], pre}, nil
}

// String is "3.7.1".
func (v Version) String() string {
	s := fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch)
	if v.Pre != "" {
		s += "-" + v.Pre
	}
	return s
}

// Short is "3.7".
func (v Version) Short() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }

// MinorOnly is v with its patch and pre-release left out, the form that cluster and
// storage versions have.
func (v Version) MinorOnly() Version { return Version{Major: v.Major, Minor: v.Minor} }

// IsZero reports whether no version is known.
func (v Version) IsZero() bool { return v == Version{} }

// Less reports whether v comes before o.
func (v Version) Less(o Version) bool { return v.Compare(o) < 0 }

// Compare is negative if v comes before o, positive if after.
func (v Version) Compare(o Version) int {
	return cmp.Or(cmp.Compare(v.Major, o.Major), cmp.Compare(v.Minor, o.Minor),
		cmp.Compare(v.Patch, o.Patch), comparePre(v.Pre, o.Pre))
}

// comparePre orders pre-releases: none comes last; numbers before words.
func comparePre(a, b string) int {
	if a == "" || b == "" {
		return cmp.Compare(len(b), len(a)) // at most one is not empty
	}
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range min(len(as), len(bs)) {
		an, aerr := strconv.ParseUint(as[i], 10, 63)
		bn, berr := strconv.ParseUint(bs[i], 10, 63)
		var c int
		switch {
		case aerr == nil && berr == nil:
			c = cmp.Compare(an, bn)
		case aerr == nil:
			c = -1
		case berr == nil:
			c = 1
		default:
			c = strings.Compare(as[i], bs[i])
		}
		if c != 0 {
			return c
		}
	}
	return cmp.Compare(len(as), len(bs))
}

// MayBecome reports whether a cluster of version v may change to version to: any later
// minor of the same major, or exactly one minor down.
func (v Version) MayBecome(to Version) bool {
	v, to = v.MinorOnly(), to.MinorOnly()
	down := to == Version{Major: v.Major, Minor: v.Minor - 1}
	return down || v.Major == to.Major && v.Less(to)
}

// Downgrade is the cluster's plan to go one minor version down.
type Downgrade struct {
	Target  string `json:"target-version"` // empty when not enabled
	Enabled bool   `json:"enabled"`
}
