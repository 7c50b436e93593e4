package config

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// sections are the nested keys of a configuration file, by the flag that each sets. Flags
// named here cannot be given at the top level; all others are, under their own names.
var sections = map[string]string{
	"client-transport-security.cert-file":        "cert-file",
	"client-transport-security.key-file":         "key-file",
	"client-transport-security.client-cert-file": "client-cert-file",
	"client-transport-security.client-key-file":  "client-key-file",
	"client-transport-security.client-cert-auth": "client-cert-auth",
	"client-transport-security.trusted-ca-file":  "trusted-ca-file",
	"client-transport-security.auto-tls":         "auto-tls",
	"client-transport-security.allowed-cn":       "client-cert-allowed-cn",
	"client-transport-security.allowed-hostname": "client-cert-allowed-hostname",
	"client-transport-security.crl-file":         "client-crl-file", // etcd has no key for it

	"peer-transport-security.cert-file":                    "peer-cert-file",
	"peer-transport-security.key-file":                     "peer-key-file",
	"peer-transport-security.client-cert-file":             "peer-client-cert-file",
	"peer-transport-security.client-key-file":              "peer-client-key-file",
	"peer-transport-security.client-cert-auth":             "peer-client-cert-auth",
	"peer-transport-security.trusted-ca-file":              "peer-trusted-ca-file",
	"peer-transport-security.auto-tls":                     "peer-auto-tls",
	"peer-transport-security.allowed-cn":                   "peer-cert-allowed-cn",
	"peer-transport-security.allowed-hostname":             "peer-cert-allowed-hostname",
	"peer-transport-security.skip-client-san-verification": "peer-skip-client-san-verification",
	"peer-transport-security.crl-file":                     "peer-crl-file", // etcd has no key for it

	"socket-options.reuse-port":    "socket-reuse-port",
	"socket-options.reuse-address": "socket-reuse-address",

	"discovery-config.token":                                  "discovery-token",
	"discovery-config.client.endpoints":                       "discovery-endpoints",
	"discovery-config.client.dial-timeout":                    "discovery-dial-timeout",
	"discovery-config.client.request-timeout":                 "discovery-request-timeout",
	"discovery-config.client.keepalive-time":                  "discovery-keepalive-time",
	"discovery-config.client.keepalive-timeout":               "discovery-keepalive-timeout",
	"discovery-config.client.secure.insecure-transport":       "discovery-insecure-transport",
	"discovery-config.client.secure.insecure-skip-tls-verify": "discovery-insecure-skip-tls-verify",
	"discovery-config.client.secure.cert":                     "discovery-cert",
	"discovery-config.client.secure.key":                      "discovery-key",
	"discovery-config.client.secure.cacert":                   "discovery-cacert",
	"discovery-config.client.auth.username":                   "discovery-user",
	"discovery-config.client.auth.password":                   "discovery-password",
}

// notInFile are flags that no key of a file sets: what is about reading it, and what etcd
// has only as a flag.
var notInFile = []string{"config-file", "version", "raft-read-timeout", "raft-write-timeout", "discovery-fallback"}

// readFile sets what the YAML file says. Keys are compared without case, as etcd does,
// and unknown ones are ignored, with a note.
func (t *table) readFile(name string) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	js, err := yaml.YAMLToJSON(data)
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	dec := json.NewDecoder(bytes.NewReader(js))
	dec.UseNumber() // nanoseconds do not fit a float64
	var doc any
	if err := dec.Decode(&doc); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	top, ok := doc.(map[string]any)
	if !ok && doc != nil { // an empty file says nothing
		return fmt.Errorf("read %s: it must consist of flags and their values, one \"name: value\" a line", name)
	}
	if err := t.setAll("", top, t.fileKeys()); err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	return nil
}

// setAll sets what a mapping says, in order of keys. flags are the flags by their keys, and
// prefix is what the mapping's own keys begin with there.
func (t *table) setAll(prefix string, doc map[string]any, flags map[string]string) error {
	for _, k := range slices.Sorted(maps.Keys(doc)) {
		key, value := prefix+strings.ToLower(k), doc[k]
		section, isMap := value.(map[string]any)
		name, isFlag := flags[key]
		var err error
		switch {
		case value == nil:
		case isFlag && isMap:
			err = errors.New("it must be a single value")
		case isFlag:
			err = t.setFromFile(name, value)
		case isMap:
			if err := t.setAll(key+".", section, flags); err != nil {
				return err
			}
		case isSection(key):
			err = errors.New("it must have keys and values of its own below it")
		default:
			t.notes.warn("unknown key in the configuration file is ignored", "key", key)
		}
		if err != nil {
			return fmt.Errorf("invalid value %v for %s: %w", value, key, err)
		}
	}
	return nil
}

// isSection reports whether a key has keys below it.
func isSection(key string) bool {
	for k := range sections {
		if strings.HasPrefix(k, key+".") {
			return true
		}
	}
	return false
}

// fileKeys are all keys of a file and the flags that they set.
func (t *table) fileKeys() map[string]string {
	keys := maps.Clone(sections)
	nested := make(map[string]bool)
	for _, flag := range sections {
		nested[flag] = true
	}
	for _, name := range slices.Concat(t.names(), slices.Collect(maps.Keys(experimental)), slices.Collect(maps.Keys(experimentalGates))) {
		if !nested[name] && !slices.Contains(notInFile, name) {
			keys[name] = name
		}
	}
	return keys
}

// setFromFile sets a flag from a value of JSON. A number for a duration is nanoseconds, as
// etcd has it; text as on the command line is understood too.
func (t *table) setFromFile(name string, value any) error {
	var text string
	switch v := value.(type) {
	case string:
		text = v
	case bool:
		text = fmt.Sprint(v)
	case json.Number:
		text = v.String()
		if t.isDuration(name) {
			n, err := v.Int64()
			if err != nil {
				return err
			}
			text = time.Duration(n).String()
		}
	case []any:
		switch t.fs.Lookup(name).Value.(type) {
		case *list, *origins, *URLs:
		default:
			return errors.New("unexpected list")
		}
		var items []string
		for _, item := range v {
			items = append(items, fmt.Sprint(item))
		}
		text = strings.Join(items, ",")
	default:
		return fmt.Errorf("unexpected %T", value)
	}
	if text == "" && !t.isText(name) {
		return nil // an empty key says nothing
	}
	return t.fs.Set(name, text)
}

func (t *table) isDuration(name string) bool {
	v := t.fs.Lookup(name).Value
	if r, ok := v.(*renamed); ok {
		v = r.Value
	}
	g, ok := v.(interface{ Get() any })
	if !ok {
		return false
	}
	_, ok = g.Get().(time.Duration)
	return ok
}

func (t *table) isText(name string) bool {
	g, ok := t.fs.Lookup(name).Value.(interface{ Get() any })
	if !ok {
		return false
	}
	_, ok = g.Get().(string)
	return ok
}
