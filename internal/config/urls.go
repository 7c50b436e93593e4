package config

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"quorate/internal/membership"
)

// URLs is a sorted list of URLs without repeats.
type URLs []url.URL

// ParseURLs reads a comma-separated list of URLs with the schemes http, https, unix and
// unixs.
func ParseURLs(text string) (URLs, error) {
	var us URLs
	for s := range strings.SplitSeq(text, ",") {
		u, err := membership.ParseURL(s)
		if err != nil {
			return nil, err
		}
		if (u.Scheme == "unix" || u.Scheme == "unixs") && Address(*u) == "" {
			return nil, fmt.Errorf("URL names no socket: %s", strings.TrimSpace(s))
		}
		us = append(us, *u)
	}
	if len(us) == 0 {
		return nil, errors.New("no valid URLs given")
	}
	slices.SortFunc(us, func(a, b url.URL) int { return strings.Compare(a.String(), b.String()) })
	return slices.CompactFunc(us, func(a, b url.URL) bool { return a.String() == b.String() }), nil
}

func mustURLs(text string) URLs {
	us, err := ParseURLs(text)
	if err != nil {
		panic(err)
	}
	return us
}

// Strings are the URLs one by one.
func (us URLs) Strings() []string {
	out := make([]string, len(us))
	for i, u := range us {
		out[i] = u.String()
	}
	return out
}

// String is the list as a flag has it.
func (us URLs) String() string { return strings.Join(us.Strings(), ",") }

// Set implements flag.Value. The empty text is no URL.
func (us *URLs) Set(text string) error {
	if text == "" {
		*us = nil
		return nil
	}
	parsed, err := ParseURLs(text)
	if err != nil {
		return err
	}
	*us = parsed
	return nil
}

// Unix reports whether u names a Unix socket.
func Unix(u url.URL) bool { return u.Scheme == "unix" || u.Scheme == "unixs" }

// Secure reports whether u wants TLS.
func Secure(u url.URL) bool { return u.Scheme == "https" || u.Scheme == "unixs" }

// Address is what to bind for u: host and port, or the path of the socket, for which
// unix://name, unix:name and unix:///name are all understood.
func Address(u url.URL) string {
	if !Unix(u) {
		return u.Host
	}
	if u.Opaque != "" {
		return u.Opaque
	}
	return u.Host + u.Path
}
