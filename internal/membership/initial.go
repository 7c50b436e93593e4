package membership

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
)

// InitialCluster is what --initial-cluster says: the peer URLs of each name.
type InitialCluster map[string][]string

// ParseInitialCluster reads "name=url,name=url"; a name may occur several times, once
// for each of its URLs.
func ParseInitialCluster(s string) (InitialCluster, error) {
	ic := InitialCluster{}
	for pair := range strings.SplitSeq(s, ",") {
		if pair == "" {
			continue
		}
		name, u, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, fmt.Errorf("%q is not a name and a URL, name=URL", pair)
		}
		ic[name] = append(ic[name], u)
	}
	for name, urls := range ic {
		parsed, err := ParseURLs(urls)
		if err != nil {
			return nil, fmt.Errorf("member %q: %w", name, err)
		}
		ic[name] = parsed
	}
	return ic, nil
}

// String is the flag's value again, sorted.
func (ic InitialCluster) String() string {
	var pairs []string
	for name, urls := range ic {
		for _, u := range urls {
			pairs = append(pairs, name+"="+u)
		}
	}
	slices.Sort(pairs)
	return strings.Join(pairs, ",")
}

// Check refuses a cluster that does not name the local member, or that gives one URL to
// two members.
func (ic InitialCluster) Check(local string) error {
	if ic[local] == nil {
		return fmt.Errorf("couldn't find local name %q in the initial cluster configuration", local)
	}
	seen := map[string]bool{}
	for _, urls := range ic {
		for _, u := range urls {
			if seen[u] {
				return fmt.Errorf("initial cluster %s has duplicate url", ic)
			}
			seen[u] = true
		}
	}
	return nil
}

// CheckAdvertised refuses peer URLs of the local member that are not exactly those that
// the cluster is told of. Names are compared as written, not resolved.
func (ic InitialCluster) CheckAdvertised(local string, advertised []string) error {
	if missing := without(ic[local], advertised); len(missing) > 0 {
		return fmt.Errorf("--initial-cluster has %s but missing from --initial-advertise-peer-urls=%s",
			local+"="+strings.Join(missing, ","+local+"="), strings.Join(advertised, ","))
	}
	if missing := without(advertised, ic[local]); len(missing) > 0 {
		return fmt.Errorf("--initial-advertise-peer-urls has %s but missing from --initial-cluster=%s",
			strings.Join(missing, ","), ic)
	}
	return nil
}

// without is what a holds and b does not.
func without(a, b []string) []string {
	var only []string
	for _, s := range a {
		if !slices.Contains(b, s) {
			only = append(only, s)
		}
	}
	return only
}

// Members are the members of the new cluster, by id, none of them a learner.
func (ic InitialCluster) Members(token string) ([]Member, error) {
	var ms []Member
	for name, urls := range ic {
		m := Member{ID: InitialMemberID(urls, token), Name: name, PeerURLs: urls}
		if m.ID == 0 {
			return nil, errors.New("cannot use 0 as member id")
		}
		i, found := slices.BinarySearchFunc(ms, m.ID, byID)
		if found {
			return nil, fmt.Errorf("member exists with identical ID %s", m.ID)
		}
		ms = slices.Insert(ms, i, m)
	}
	return ms, nil
}

// ParseURLs reads each with ParseURL and returns them in their normal form, sorted.
func ParseURLs(urls []string) ([]string, error) {
	if len(urls) == 0 {
		return nil, errors.New("no valid URLs given")
	}
	out := make([]string, len(urls))
	for i, s := range urls {
		u, err := ParseURL(s)
		if err != nil {
			return nil, err
		}
		out[i] = u.String()
	}
	slices.Sort(out)
	return out, nil
}

// ParseURL reads the URL of a member: http or https with a port and no path, or unix or
// unixs. The errors are etcd's.
func ParseURL(s string) (*url.URL, error) {
	s = strings.TrimSpace(s)
	u, err := url.Parse(s)
	if err != nil {
		return nil, err
	}
	switch u.Scheme {
	case "http", "https":
		if _, _, err := net.SplitHostPort(u.Host); err != nil {
			return nil, fmt.Errorf(`URL address does not have the form "host:port": %s`, s)
		}
		if u.Path != "" {
			return nil, fmt.Errorf("URL must not contain a path: %s", s)
		}
	case "unix", "unixs":
	default:
		return nil, fmt.Errorf("URL scheme must be http, https, unix, or unixs: %s", s)
	}
	return u, nil
}
