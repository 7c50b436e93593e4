package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asCommand makes the test binary behave as the command: a process of its own is the only
// way to see exit statuses and signals.
const asCommand = "QUORATE_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		if len(os.Args) < 2 || os.Args[1] != "dev" { // whose members are the command, too
			os.Unsetenv(asCommand)
		}
		os.Exit(run(os.Args, os.Environ()))
	}
	os.Exit(m.Run())
}

// command prepares the command under a name of argv[0].
func commandAs(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Args[0] = name
	cmd.Dir = t.TempDir()
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "ETCD") && !strings.HasPrefix(v, "NOTIFY_SOCKET") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, asCommand+"=1")
	return cmd
}

// result runs the command to its end.
func result(t *testing.T, cmd *exec.Cmd) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if _, ok := err.(*exec.ExitError); err != nil && !ok {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

func TestExitStatus(t *testing.T) {
	for _, tt := range []struct {
		name   string
		args   []string
		status int
		stdout string
		stderr string
	}{
		{"quorate", []string{"serve", "--version"}, 0, "etcd Version: 3.7.1\nGit SHA: ", ""},
		{"/usr/local/bin/etcd", []string{"--version"}, 0, "etcd Version: 3.7.1\nGit SHA: ", ""},
		{"quorate", []string{"--version"}, 0, "etcd Version: 3.7.1\nGit SHA: ", ""},
		{"etcdctl", []string{"version"}, 0, "etcdctl version: 3.7.1\nAPI version: 3.7\n", ""},
		{"quorate", []string{"serve", "-h"}, 0, "Usage:\n", ""},
		{"quorate", []string{"help", "serve"}, 0, "Usage:\n", ""},
		{"etcd", []string{"--help"}, 0, "Usage:\n", ""},
		{"quorate", nil, 0, "quorate is a strongly consistent", ""},
		{"etcd", []string{"--nosuchflag"}, 2, "", "flag provided but not defined: -nosuchflag\n"},
		{"quorate", []string{"serve", "--name"}, 2, "", "flag needs an argument: -name\n"},
		{"etcd", []string{"--heartbeat-interval=0"}, 1, "", `"failed to verify flags","error":"--heartbeat-interval must be >0 (set to 0ms)"`},
		{"etcd", []string{"stray"}, 1, "", `"error":"\"stray\" is not a valid flag"`},
		{"etcd", []string{"--listen-client-urls=http://127.0.0.1:0"}, 1, "", `"advertise client URLs are not set"`},
		{"etcd", []string{"--log-level=loud"}, 1, "", `unrecognized level: \"loud\"`},
		{"etcd", []string{"--log-outputs=/nonexistent/dir/log"}, 1, "", `open /nonexistent/dir/log: no such file or directory`},
		{"etcd", []string{"--data-dir=/dev/null/x", "--listen-peer-urls=http://127.0.0.1:0", "--listen-client-urls=http://127.0.0.1:0", "--advertise-client-urls=http://127.0.0.1:2379"}, 1, "", `"level":"fatal"`},
		{"quorate", []string{"nosuchverb"}, 1, "", `unknown command "nosuchverb"`},
	} {
		status, stdout, stderr := result(t, commandAs(t, tt.name, tt.args...))
		if status != tt.status || !strings.HasPrefix(stdout, tt.stdout) || !strings.Contains(stderr, tt.stderr) {
			t.Errorf("%s %q: status %d, stdout %.200q, stderr %.600q", tt.name, tt.args, status, stdout, stderr)
		}
	}
}

// member is a running serve process, and what it logs.
type member struct {
	cmd    *exec.Cmd
	lines  chan map[string]any
	client string // address of its client port
}

// startMember starts the command and waits until it serves.
func startMember(t *testing.T, cmd *exec.Cmd) *member {
	t.Helper()
	pipe, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	m := &member{cmd: cmd, lines: make(chan map[string]any, 1000)}
	t.Cleanup(func() {
		cmd.Process.Kill() // if the test has not ended it
		for range m.lines {
		}
	})
	go func() {
		defer close(m.lines)
		sc := bufio.NewScanner(pipe)
		sc.Buffer(nil, 1<<20)
		for sc.Scan() {
			line := make(map[string]any)
			if err := json.Unmarshal(sc.Bytes(), &line); err != nil {
				line["msg"] = "not JSON: " + sc.Text()
			}
			m.lines <- line
		}
	}()
	for _, want := range []string{"Running: ", "starting an etcd server", "ready to serve client requests"} {
		m.await(t, want)
	}
	m.client, _ = m.await(t, "serving client traffic insecurely; this is strongly discouraged!")["address"].(string)
	return m
}

// await reads log lines up to one with that message.
func (m *member) await(t *testing.T, msg string) map[string]any {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		select {
		case line, ok := <-m.lines:
			if !ok {
				t.Fatalf("the log ended without %q", msg)
			}
			if text, _ := line["msg"].(string); strings.HasPrefix(text, "not JSON") {
				t.Error(text)
			}
			for _, key := range []string{"level", "ts", "caller", "msg"} {
				if _, ok := line[key]; !ok {
					t.Errorf("log line without %s: %v", key, line)
				}
			}
			if line["msg"] == msg {
				return line
			}
		case <-deadline:
			t.Fatalf("no log line %q", msg)
		}
	}
}

// wait returns how the process ended.
func (m *member) wait(t *testing.T) syscall.WaitStatus {
	t.Helper()
	for range m.lines { // Wait closes the pipe, so all must be read before
	}
	err := m.cmd.Wait()
	if _, ok := err.(*exec.ExitError); err != nil && !ok {
		t.Fatal(err)
	}
	return m.cmd.ProcessState.Sys().(syscall.WaitStatus)
}

func serveArgs(extra ...string) []string {
	return append([]string{
		"--listen-client-urls=http://127.0.0.1:0", "--advertise-client-urls=http://127.0.0.1:2379", "--listen-peer-urls=http://127.0.0.1:0",
	}, extra...)
}

// Each of the two signals ends the member in order, and the process as the signal would
// have; under systemd it says when it is ready and when it stops.
func TestSignals(t *testing.T) {
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		notify := notifySocket(t)
		cmd := commandAs(t, "etcd", serveArgs("--name=m0")...)
		cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+notify.LocalAddr().String())
		m := startMember(t, cmd)
		if got := readNotify(t, notify); got != "READY=1" {
			t.Errorf("systemd was told %q", got)
		}
		if err := cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		if got := readNotify(t, notify); got != "STOPPING=1" {
			t.Errorf("systemd was told %q", got)
		}
		m.await(t, "closed etcd server")
		if ws := m.wait(t); !ws.Signaled() || ws.Signal() != s {
			t.Errorf("%v: ended with %v", s, ws)
		}
		if _, err := os.Stat(filepath.Join(cmd.Dir, "m0.etcd", "member", "snap", "db")); err != nil {
			t.Errorf("the data is not in the default directory: %v", err)
		}
	}
}

func notifySocket(t *testing.T) *net.UnixConn {
	t.Helper()
	dir, err := os.MkdirTemp("", "n") // t.TempDir's names are too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func readNotify(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 100)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// A second signal ends a stop that takes long, unless it comes so soon that it is the same one.
func TestSecondSignal(t *testing.T) {
	cmd := commandAs(t, "quorate", append([]string{"serve", "--shutdown-timeout=1m"}, serveArgs()...)...)
	m := startMember(t, cmd)
	// A request that never ends keeps the server from stopping in order.
	c, err := net.Dial("tcp", m.client)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "POST /v3/kv/range HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond) // until the server has it
	begin := time.Now()
	for _, wait := range []time.Duration{0, 0, sameSignal + 100*time.Millisecond} {
		time.Sleep(wait)
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
	}
	if ws := m.wait(t); ws.ExitStatus() != 1 || time.Since(begin) < sameSignal {
		t.Errorf("ended with %v after %v", ws, time.Since(begin))
	}
}

// A snapshot that is given up leaves no file.
func TestSnapshotInterrupted(t *testing.T) {
	server := commandAs(t, "quorate", append([]string{"serve"}, serveArgs()...)...)
	m := startMember(t, server)
	if err := server.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "s.db")
	save := commandAs(t, "etcdctl", "--endpoints", m.client, "snapshot", "save", file)
	if err := save.Start(); err != nil {
		t.Fatal(err)
	}
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(file + ".part"); err == nil {
			break
		}
		if time.Since(begin) > 20*time.Second {
			t.Fatal("it does not begin")
		}
	}
	if err := save.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if err := save.Wait(); save.ProcessState.ExitCode() != 5 {
		t.Errorf("ended with %v", err)
	}
	if left, err := os.ReadDir(filepath.Dir(file)); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// The client verbs of the same binary work on the member, under both names; a file
// configures it.
func TestVerbs(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "conf.yml")
	conf := fmt.Sprintf("name: f\ndata-dir: %s\nlisten-client-urls: http://127.0.0.1:0\nlisten-peer-urls: http://127.0.0.1:0\n", filepath.Join(dir, "d"))
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := commandAs(t, "quorate", "serve", "--config-file", file)
	m := startMember(t, cmd)
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"quorate", []string{"put", "greeting", "hello"}, "OK\n"},
		{"etcdctl", []string{"get", "greeting"}, "greeting\nhello\n"},
		{"etcdctl", []string{"member", "list"}, ", started, f, "},
	} {
		c := commandAs(t, tt.name, tt.args...)
		c.Env = append(c.Env, "ETCDCTL_ENDPOINTS="+m.client)
		if status, stdout, stderr := result(t, c); status != 0 || !strings.Contains(stdout, tt.want) {
			t.Errorf("%s %q: status %d, %q, %q", tt.name, tt.args, status, stdout, stderr)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	m.wait(t)
}
