package config

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Feature is one of etcd's feature gates.
type Feature struct {
	Name    string
	Stage   string // ALPHA or BETA
	Default bool
}

// features are the gates of etcd 3.7, by name. All of them are accepted. InitialCorruptCheck
// does what it does in etcd. What others do is always done here (FastLeaseKeepAlive,
// LeaseCheckpointPersist) or concerns an inner working that does not exist here
// (TxnModeWriteWithSharedBuffer, StopGRPCServiceOnDefrag, PriorityRequest); CompactHashCheck
// is taken and without effect: --corrupt-check-time finds the same.
var features = []Feature{
	{"AllAlpha", "ALPHA", false},
	{"AllBeta", "BETA", false},
	{"CompactHashCheck", "ALPHA", false},
	{"FastLeaseKeepAlive", "BETA", true},
	{"InitialCorruptCheck", "ALPHA", false},
	{"LeaseCheckpoint", "ALPHA", false},
	{"LeaseCheckpointPersist", "ALPHA", false},
	{"PriorityRequest", "ALPHA", false},
	{"SetMemberLocalAddr", "ALPHA", false},
	{"StopGRPCServiceOnDefrag", "ALPHA", false},
	{"TxnModeWriteWithSharedBuffer", "BETA", true},
}

// Features are the feature gates that were set. The zero value has every default.
type Features struct{ set map[string]bool }

// AllFeatures lists every gate by name.
func AllFeatures() []Feature { return slices.Clone(features) }

// Enabled reports whether the gate of that name is on. AllAlpha and AllBeta move the
// gates of their stage that were not set by name.
func (f Features) Enabled(name string) bool {
	if on, ok := f.set[name]; ok {
		return on
	}
	i := slices.IndexFunc(features, func(g Feature) bool { return g.Name == name })
	if i < 0 {
		return false
	}
	all := map[string]string{"ALPHA": "AllAlpha", "BETA": "AllBeta"}[features[i].Stage]
	if on, ok := f.set[all]; ok {
		return on
	}
	return features[i].Default
}

// Set implements flag.Value: "A=true,B=false", on top of what was set before.
func (f *Features) Set(text string) error {
	set := maps.Clone(f.set)
	if set == nil {
		set = make(map[string]bool)
	}
	for pair := range strings.SplitSeq(text, ",") {
		if pair == "" {
			continue
		}
		name, value, ok := strings.Cut(pair, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if !ok {
			return fmt.Errorf("missing bool value for %s", name)
		}
		on, err := strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("invalid value of %s=%s, err: %w", name, value, err)
		}
		if !slices.ContainsFunc(features, func(g Feature) bool { return g.Name == name }) {
			return fmt.Errorf("unrecognized feature gate: %s", name)
		}
		set[name] = on
	}
	f.set = set
	return nil
}

// String is what was set, sorted, as the flag has it.
func (f Features) String() string {
	var pairs []string
	for _, name := range slices.Sorted(maps.Keys(f.set)) {
		pairs = append(pairs, fmt.Sprintf("%s=%t", name, f.set[name]))
	}
	return strings.Join(pairs, ",")
}
