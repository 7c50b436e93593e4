package hostile

import (
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"
)

// TestRequestsWithoutEnd begins calls whose request never comes, or comes but for its end.
func TestRequestsWithoutEnd(t *testing.T) {
	for _, c := range []struct {
		name, method string
		begun        int // bytes of the message that come, of 1.9 MiB
	}{
		{"no byte of a put", "/etcdserverpb.KV/Put", 0},
		{"a put but for its end", "/etcdserverpb.KV/Put", 1 << 20},
		{"a lock but for its end", "/v3lockpb.Lock/Lock", 1 << 20},
		{"a user but for its end", "/etcdserverpb.Auth/UserAdd", 1 << 20},
		{"a watch but for its end", "/etcdserverpb.Watch/Watch", 1 << 20},
		{"a renewal but for its end", "/etcdserverpb.Lease/LeaseKeepAlive", 1 << 20},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := newVictim(t)
			junk := make([]byte, c.begun)
			toll := v.during(4*time.Second, func() {
				for range 2 {
					r := v.attacker(1 << 20)
					for range 600 * *strength {
						id, err := r.open(c.method)
						if err == nil && c.begun > 0 {
							err = r.send(id, append(announce(1900<<10), junk...), false)
						}
						if err != nil {
							t.Logf("the server ended the connection: %v", err)
							break
						}
					}
				}
			})
			v.bounds(toll, *notice, 900)
		})
	}
}

// TestHeaders sends as many header fields as fit, in few bytes, on streams that stay open.
func TestHeaders(t *testing.T) {
	v := newVictim(t)
	toll := v.during(time.Second, func() {
		r := v.attacker(1 << 20)
		many := make([]hpack.HeaderField, 300_000)
		for i := range many {
			many[i] = hpack.HeaderField{Name: "a", Value: "b"}
		}
		for range 20 * *strength {
			if _, err := r.open("/etcdserverpb.Watch/Watch", many...); err != nil {
				t.Logf("the server ended the connection: %v", err)
				return
			}
		}
	})
	v.bounds(toll, *notice, 300)
}
