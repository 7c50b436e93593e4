package main

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// A member that was removed from its cluster ends as one that has done what it was asked: with status 0. On
// its directory it does not start again, and says what to do.
func TestRemovedMember(t *testing.T) {
	a, b := "http://"+freeAddr(t), "http://"+freeAddr(t)
	args := func(name, peer, initial string, more ...string) []string {
		return append([]string{"--name=" + name, "--listen-client-urls=http://127.0.0.1:0", "--advertise-client-urls=http://127.0.0.1:2379",
			"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=" + initial}, more...)
	}
	stays := startMember(t, commandAs(t, "etcd", args("a", a, "a="+a)...))
	go func() { // its log is not looked at any more, and must not stand in its way
		for range stays.lines {
		}
	}()
	client := func(words ...string) string {
		// A change is refused until all members have been connected for a while.
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
			status, stdout, stderr := result(t, commandAs(t, "etcdctl", append([]string{"--endpoints=" + stays.client}, words...)...))
			if status == 0 {
				return stdout
			}
			if time.Now().After(deadline) {
				t.Fatalf("etcdctl %q: status %d, %s", words, status, stderr)
			}
		}
	}
	client("member", "add", "b", "--peer-urls="+b)
	start := commandAs(t, "etcd", args("b", b, "a="+a+",b="+b, "--initial-cluster-state=existing")...)
	goes := startMember(t, start)
	id := ""
	for line := range strings.Lines(client("member", "list")) {
		if strings.Contains(line, ", b, ") {
			id, _, _ = strings.Cut(line, ",")
		}
	}
	client("member", "remove", id)
	if line := goes.await(t, "server error"); line["error"] != "the member has been permanently removed from the cluster" {
		t.Errorf("the removed member logs %v", line)
	}
	goes.await(t, "data-dir used by this member must be removed")
	goes.await(t, "closed etcd server")
	if ws := goes.wait(t); !ws.Exited() || ws.ExitStatus() != 0 {
		t.Errorf("the removed member ended with %v", ws)
	}

	again := commandAs(t, "etcd", start.Args[1:]...)
	again.Dir = start.Dir
	status, _, stderr := result(t, again)
	want := fmt.Sprintf(`"msg":"failed to start","error":"the member has been permanently removed from the cluster: delete %s`, "b.etcd")
	if status != exitFailed || !strings.Contains(stderr, want) {
		t.Errorf("started again: status %d, %s", status, stderr)
	}
	client("put", "k", "v")
}

// freeAddr returns an address of 127.0.0.1 that nothing listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
