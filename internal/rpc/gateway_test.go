package rpc

import (
	"bufio"
	"encoding/json"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
)

// TestGateway calls the JSON form. The wanted answers are those of etcd 3.7.1 to the same
// requests, but for ids and times.
func TestGateway(t *testing.T) {
	m := newMember(t)
	s, _ := start(t, m, nil, nil)
	_, addr := start(t, m, nil, func(l *Listener) { l.HTTP = s.Gateway() })
	post := func(path, body string) (int, string) {
		t.Helper()
		r, err := http.Post("http://"+addr+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(b)
	}
	const head = `"header":{"cluster_id":"9223372036854775808","member_id":"77","raft_term":"4","revision":"`
	for _, tc := range []struct {
		path, body string
		code       int
		want       string
	}{
		{"/v3/kv/put", `{"key":"YQ==","value":"Yg=="}`, 200, `{` + head + `2"}}`},
		{"/v3beta/kv/range", `{"key":"YQ=="}`, 200, `{` + head + `2"},"kvs":[{"key":"YQ==","create_revision":"2","mod_revision":"2","version":"1","value":"Yg=="}],"count":"1"}`},
		{"/v3/kv/range", `{"key":"YQ==","count_only":true,"unknown":1}`, 200, `{` + head + `2"},"count":"1"}`},
		{"/v3/kv/range", `{}`, 400, `{"code":3,"message":"etcdserver: key is not provided"}`},
		{"/v3/kv/txn", `{"compare":[{"key":"YQ==","target":"MOD","mod_revision":"2"}],"success":[{"request_put":{"key":"YQ==","value":"Yw=="}}]}`,
			200, `{` + head + `3"},"succeeded":true,"responses":[{"response_put":{"header":{"revision":"3"}}}]}`},
		{"/v3/kv/deleterange", `{"key":"YQ==","prev_kv":true}`, 200, `{` + head + `4"},"deleted":"1","prev_kvs":[{"key":"YQ==","create_revision":"2","mod_revision":"3","version":"2","value":"Yw=="}]}`},
		{"/v3/kv/compaction", `{"revision":"9"}`, 400, `{"code":11,"message":"etcdserver: mvcc: required revision is a future revision"}`},
		{"/v3/auth/status", `{}`, 200, `{` + head + `4"},"authRevision":"1"}`},
		{"/v3/auth/enable", `{}`, 400, `{"code":9,"message":"etcdserver: root user does not exist"}`},
		{"/v3/lock/unlock", `{}`, 500, `{"code":2,"message":"etcdserver: key is not provided"}`},
	} {
		code, got := post(tc.path, tc.body)
		if code != tc.code || !sameJSON(got, tc.want) {
			t.Errorf("%s %s:\n got %d %s\nwant %d %s", tc.path, tc.body, code, got, tc.code, tc.want)
		}
	}

	r, err := http.Post("http://"+addr+"/v3/watch", "application/json", strings.NewReader(`{"create_request":{"key":"YQ==","start_revision":"2"}}`))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	lines := bufio.NewScanner(r.Body)
	if !lines.Scan() || !strings.Contains(lines.Text(), `"created":true`) || !strings.HasPrefix(lines.Text(), `{"result":`) {
		t.Errorf("watch: first line %s", lines.Text())
	}
	if !lines.Scan() || !strings.Contains(lines.Text(), `"type":"DELETE"`) {
		t.Errorf("watch: second line %s", lines.Text())
	}
}

func sameJSON(a, b string) bool {
	var x, y any
	return json.Unmarshal([]byte(a), &x) == nil && json.Unmarshal([]byte(b), &y) == nil && reflect.DeepEqual(x, y)
}
