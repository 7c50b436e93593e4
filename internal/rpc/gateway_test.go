package rpc

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
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
		if r.StatusCode == http.StatusOK && r.Header.Get("Grpc-Metadata-Content-Type") != "application/grpc" {
			t.Errorf("%s: header %v", path, r.Header)
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

// startGateway serves gRPC and JSON on one port.
func startGateway(t *testing.T, change func(*Options)) (*Server, string) {
	var s atomic.Pointer[Server]
	srv, addr := start(t, newMember(t), change, func(l *Listener) {
		l.HTTP = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.Load().Gateway().ServeHTTP(w, r) })
	})
	s.Store(srv)
	return srv, addr
}

// postRaw sends the beginning of a POST whose body has size bytes, and does not go on.
func postRaw(t *testing.T, addr, path, body string, size int) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() }) // the server may have closed it
	if _, err := fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", path, size, body); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestGatewayRepliesNeverRead asks for more than the memory for replies on connections that
// do not read. What they hold, the JSON included, has its bound; others are answered; and
// nothing stays charged.
func TestGatewayRepliesNeverRead(t *testing.T) {
	const limit = 64 << 20
	s, addr := startGateway(t, func(o *Options) { o.ReplyMemory = 2 * limit })
	good := pb.NewKVClient(dial(t, addr))
	for i := range 4 {
		if _, err := good.Put(t.Context(), put(fmt.Sprintf("k%02d", i), strings.Repeat("v", 1<<20))); err != nil {
			t.Fatal(err)
		}
	}
	memory := s.services.otherJSON.memory
	held := func() int64 {
		memory.mu.Lock()
		defer memory.mu.Unlock()
		return memory.used
	}
	bodies := map[string]string{
		"/v3/kv/range": `{"key":"aw==","range_end":"bA=="}`,
		"/v3/kv/txn":   `{"success":[{"request_range":{"key":"aw==","range_end":"bA=="}}]}`,
	}
	var conns []net.Conn
	for path, body := range bodies {
		for range 20 {
			conns = append(conns, postRaw(t, addr, path, body, len(body)))
		}
	}
	var most int64
	for begin := time.Now(); time.Since(begin) < time.Second; time.Sleep(time.Millisecond) {
		most = max(most, held())
	}
	one := int64(1+jsonCopies) * 5 << 20
	if most < limit/2 || most > limit+one {
		t.Errorf("40 replies of 4 MiB hold %d MiB, the bound is %d", most>>20, limit>>20)
	}
	if _, err := good.Range(t.Context(), &pb.RangeRequest{Key: []byte("none")}); err != nil {
		t.Errorf("small range: %v", err)
	}
	for path, body := range bodies {
		r, err := http.Post("http://"+addr+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		all, err := io.ReadAll(r.Body)
		if err != nil || r.StatusCode != http.StatusOK || len(all) < 4<<20 {
			t.Errorf("%s beside them: %s, %d bytes, %v", path, r.Status, len(all), err)
		}
		_ = r.Body.Close() // all has been read
	}
	for _, c := range conns {
		_ = c.Close() // the server may have closed it
	}
	for begin := time.Now(); held() != 0; time.Sleep(10 * time.Millisecond) {
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("%d bytes are still charged", held())
		}
	}
}

// TestGatewayRepliesReadInPart: JSON is charged as long as it is there, however much of it
// has been read.
func TestGatewayRepliesReadInPart(t *testing.T) {
	s, addr := startGateway(t, nil)
	good := pb.NewKVClient(dial(t, addr))
	for i := range 20 {
		if _, err := good.Put(t.Context(), put(fmt.Sprintf("k%02d", i), strings.Repeat("v", 1<<20))); err != nil {
			t.Fatal(err)
		}
	}
	const size = 20 << 20 * 4 / 3
	for path, body := range map[string]string{
		"/v3/kv/range": `{"key":"aw==","range_end":"bA=="}`,
		"/v3/kv/txn":   `{"success":[{"request_range":{"key":"aw==","range_end":"bA=="}}]}`,
	} {
		c := postRaw(t, addr, path, body, len(body))
		if _, err := io.CopyN(io.Discard, c, size*3/4); err != nil {
			t.Fatal(err)
		}
		memory := s.services.otherJSON.memory
		memory.mu.Lock()
		if memory.used < size || memory.used > 2*size {
			t.Errorf("%s: %d bytes are charged, the JSON has %d", path, memory.used, size)
		}
		memory.mu.Unlock()
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "all to be given back", func() bool {
			memory.mu.Lock()
			defer memory.mu.Unlock()
			return memory.used == 0
		})
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for begin := time.Now(); !ok(); time.Sleep(time.Millisecond) {
		if time.Since(begin) > 10*time.Second {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// TestGatewayBodiesThatDoNotCome: requests that do not come whole, whether anything of them
// comes or not, are charged, do not keep others out, and give all back when they end.
func TestGatewayBodiesThatDoNotCome(t *testing.T) {
	s, addr := startGateway(t, func(o *Options) { o.RequestMemory = 32 << 20 })
	used := s.services.requests.used.Load
	var conns []net.Conn
	for range 40 {
		conns = append(conns, postRaw(t, addr, "/v3/kv/put", `{"key":"`+strings.Repeat("A", 1<<20), 2<<20))
	}
	eventually(t, "the bodies to be charged", func() bool { return used() >= 30<<20 })
	stop := make(chan struct{})
	var dripping sync.WaitGroup
	dripping.Go(func() {
		for {
			for _, c := range conns {
				_, _ = c.Write([]byte("A")) // the server may have closed it
			}
			select {
			case <-time.After(50 * time.Millisecond):
			case <-stop:
				return
			}
		}
	})
	for range 3 {
		begin := time.Now()
		if _, err := pb.NewKVClient(dial(t, addr)).Put(t.Context(), put("k", "v")); err != nil {
			t.Errorf("a put beside them: %v after %v", err, time.Since(begin))
		}
	}
	close(stop)
	dripping.Wait()
	for _, c := range conns {
		_ = c.Close() // the server may have closed it
	}
	eventually(t, "all to be given back", func() bool { return used() == 0 })
	// One that is too large is told so.
	r, err := http.Post("http://"+addr+"/v3/kv/put", "application/json", strings.NewReader(`{"key":"`+strings.Repeat("A", 9<<20)+`"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusTooManyRequests {
		t.Errorf("9 MiB: %s", r.Status)
	}
}

// TestGatewayBodyCharge: a body is charged for the message that is read from it, and
// nothing is kept of it while a call waits for another client.
func TestGatewayBodyCharge(t *testing.T) {
	s, addr := startGateway(t, nil)
	used := s.services.requests.used.Load
	const objects = 10_000
	b := &jsonBody{s: s.services, from: io.NopCloser(strings.NewReader(`{"compare":[{}` + strings.Repeat(",{}", objects-1) + `]}`))}
	if err := b.receive(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := used(); n < objects*jsonObjectBytes {
		t.Errorf("%d bytes are charged for %d objects", n, objects)
	}
	b.give()
	if n := used(); n != 0 {
		t.Errorf("%d bytes are charged after the end", n)
	}

	padded := `{"name":"bA=="` + strings.Repeat(" ", 3<<20) + `}`
	first, err := http.Post("http://"+addr+"/v3/lock/lock", "application/json", strings.NewReader(padded))
	if err != nil || first.StatusCode != http.StatusOK {
		t.Fatalf("the first lock: %v, %v", first, err)
	}
	defer first.Body.Close()
	postRaw(t, addr, "/v3/lock/lock", padded, len(padded))
	eventually(t, "the second to wait in line", func() bool { return s.services.inLine.used.Load() > 0 })
	if n := used(); n > 1<<20 {
		t.Errorf("%d bytes are charged for a call that waits", n)
	}
}

// TestGatewayLongStream: what is bounded of a stream's body is each message, not all of them.
func TestGatewayLongStream(t *testing.T) {
	s, addr := startGateway(t, nil)
	const messages = 10
	if limit := (&jsonBody{s: s.services}).limit(); messages<<20 < 2*limit {
		t.Fatalf("%d MiB are no more than the limit of %d bytes", messages, limit)
	}
	body, w := io.Pipe()
	go func() {
		for range messages {
			_, _ = io.WriteString(w, `{"ID":"77"`+strings.Repeat(" ", 1<<20)+`}`) // the reader tells
		}
		_ = w.Close() // never fails
	}()
	r, err := http.Post("http://"+addr+"/v3/lease/keepalive", "application/json", body)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	all, err := io.ReadAll(r.Body)
	if n := strings.Count(string(all), `"ID":"77"`); err != nil || n != messages {
		t.Errorf("%d answers to %d messages: %v, %.200s", n, messages, err, all)
	}
}

// TestGatewayShutdown: a call that waits for another client is ended with the member.
func TestGatewayShutdown(t *testing.T) {
	s, addr := startGateway(t, nil)
	lock := func() (*http.Response, error) {
		return http.Post("http://"+addr+"/v3/lock/lock", "application/json", strings.NewReader(`{"name":"bA=="}`))
	}
	first, err := lock()
	if err != nil || first.StatusCode != http.StatusOK {
		t.Fatalf("the first lock: %v, %v", first, err)
	}
	defer first.Body.Close()
	second := make(chan string)
	go func() {
		r, err := lock()
		if err != nil {
			second <- err.Error()
			return
		}
		defer r.Body.Close()
		second <- r.Status
	}()
	select {
	case how := <-second:
		t.Fatalf("a lock that is taken: %s", how)
	case <-time.After(100 * time.Millisecond):
	}
	s.Shutdown(canceled())
	t.Log(<-second)
}
