package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// devRun is a running quorate dev, and what it says.
type devRun struct {
	cmd     *exec.Cmd
	lines   chan string
	members map[string]int // process ids by name
}

var (
	devMemberLine = regexp.MustCompile(`^(m\d)  clients http://\S+  members http://\S+  process (\d+)  log `)
	devLeaderLine = regexp.MustCompile(`^(m\d) leads \(term \d+\)$`)
)

func startDev(t *testing.T, args ...string) *devRun {
	t.Helper()
	cmd := commandAs(t, "quorate", append([]string{"dev"}, args...)...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	d := &devRun{cmd: cmd, lines: make(chan string, 100), members: make(map[string]int)}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // if the test has not ended it
		for range d.lines {
		}
	})
	go func() {
		defer close(d.lines)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			d.lines <- sc.Text()
		}
	}()
	return d
}

// await reads lines up to one that matches, and returns its first group.
func (d *devRun) await(t *testing.T, re *regexp.Regexp) string {
	t.Helper()
	deadline := time.After(60 * time.Second)
	for {
		select {
		case line, ok := <-d.lines:
			if !ok {
				t.Fatalf("it ended without a line that matches %v", re)
			}
			if m := devMemberLine.FindStringSubmatch(line); m != nil {
				pid, err := strconv.Atoi(m[2])
				if err != nil {
					t.Fatal(err)
				}
				d.members[m[1]] = pid
			}
			if m := re.FindStringSubmatch(line); m != nil {
				return m[len(m)-1]
			}
		case <-deadline:
			t.Fatalf("no line that matches %v", re)
		}
	}
}

// gone waits until no member's process is there.
func (d *devRun) gone(t *testing.T) {
	t.Helper()
	for name, pid := range d.members {
		for begin := time.Now(); syscall.Kill(pid, 0) == nil && !zombie(pid); time.Sleep(20 * time.Millisecond) {
			if time.Since(begin) > 20*time.Second {
				t.Fatalf("%s, process %d, is still there", name, pid)
			}
		}
	}
}

// zombie tells whether the process has ended and nobody has asked how, as happens where process 1 adopts
// it and cares for nothing.
func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(rest, "Z")
}

// devPorts returns a base port with n free ports from it.
func devPorts(t *testing.T, n int) int {
	t.Helper()
search:
	for base := 42000 + os.Getpid()%5000; base < 60000; base += n {
		for port := base; port < base+n; port++ {
			l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				continue search
			}
			l.Close()
		}
		return base
	}
	t.Fatal("no free ports")
	return 0
}

// Three members find each other and serve; one that is killed is reported, and so is its heir; ctrl-C
// stops the others. What was written is there at the next start.
func TestDev(t *testing.T) {
	base, dir := devPorts(t, 6), t.TempDir()
	args := []string{"--members=3", "--data-dir=" + dir, "--base-port=" + strconv.Itoa(base)}
	endpoints := fmt.Sprintf("ETCDCTL_ENDPOINTS=http://127.0.0.1:%d,http://127.0.0.1:%d,http://127.0.0.1:%d", base, base+2, base+4)
	verb := func(want string, args ...string) {
		t.Helper()
		c := commandAs(t, "etcdctl", args...)
		c.Env = append(c.Env, endpoints)
		if status, stdout, stderr := result(t, c); status != 0 || stdout != want {
			t.Errorf("%q: status %d, %q, %q", args, status, stdout, stderr)
		}
	}

	d := startDev(t, args...)
	leader := d.await(t, devLeaderLine)
	if got := d.await(t, regexp.MustCompile(`^  export (\S+)$`)); got != endpoints {
		t.Errorf("told to use %s, want %s", got, endpoints)
	}
	if len(d.members) != 3 {
		t.Fatalf("members %v", d.members)
	}
	verb("OK\n", "put", "greeting", "hello")
	if err := syscall.Kill(d.members[leader], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.await(t, regexp.MustCompile("^"+leader+" has ended: signal: killed; its log is .*$"))
	if heir := d.await(t, devLeaderLine); heir == leader {
		t.Errorf("%s leads after its end", heir)
	}
	verb("greeting\nhello\n", "get", "greeting")
	if err := d.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	d.await(t, regexp.MustCompile("^interrupt: stopping the members$"))
	for range d.lines {
	}
	if err := d.cmd.Wait(); err != nil {
		t.Errorf("after ctrl-C: %v", err)
	}
	d.gone(t)

	// With other members or ports they would not find each other.
	for _, flag := range []string{"--members=1", "--base-port=" + strconv.Itoa(base+1)} {
		if status, _, stderr := result(t, commandAs(t, "quorate", append(append([]string{"dev"}, args...), flag)...)); status != 1 ||
			!strings.Contains(stderr, fmt.Sprintf("started with --members=3 --base-port=%d: use these flags", base)) {
			t.Errorf("with %s on the same data: status %d, %s", flag, status, stderr)
		}
	}

	d = startDev(t, args...)
	d.await(t, devLeaderLine)
	verb("greeting\nhello\n", "get", "greeting")
	// Members die with it, also when it cannot say so.
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for range d.lines {
	}
	_ = d.cmd.Wait() // killed
	d.gone(t)
}

// One member does, too, and takes further flags; a temporary directory is removed in the end; a second
// cluster on the same ports is refused.
func TestDevAlone(t *testing.T) {
	base := strconv.Itoa(devPorts(t, 2))
	d := startDev(t, "--members=1", "--base-port="+base, "--", "--log-level=warn")
	dir := d.await(t, regexp.MustCompile(`^data and logs in (\S+), removed in the end$`))
	d.await(t, devLeaderLine)
	if text, err := os.ReadFile(filepath.Join(dir, "m1.log")); err != nil || strings.Contains(string(text), `"level":"info","ts"`) && strings.Contains(string(text), "ready to serve") {
		t.Errorf("the log, of level warn: %v, %s", err, text)
	}
	if status, _, stderr := result(t, commandAs(t, "quorate", "dev", "--members=1", "--base-port="+base)); status != 1 || !strings.Contains(stderr, "choose others with --base-port") {
		t.Errorf("on the same ports: status %d, %s", status, stderr)
	}
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	for range d.lines {
	}
	if err := d.cmd.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v", err)
	}
	d.gone(t)
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("the temporary directory is left: %v", err)
	}
}

// Who starts members with a flag that they refuse reads that at once.
func TestDevMembersRefuse(t *testing.T) {
	status, stdout, stderr := result(t, commandAs(t, "quorate", "dev", "--members=1", "--data-dir="+t.TempDir(),
		"--base-port="+strconv.Itoa(devPorts(t, 2)), "--", "--nosuch"))
	if status != 1 || !strings.Contains(stdout, "m1 has ended: exit status 2;") || !strings.Contains(stdout, "\n  flag provided but not defined: -nosuch\n") ||
		!strings.Contains(stderr, "no member is left") {
		t.Errorf("status %d, %s%s", status, stdout, stderr)
	}
}

func TestDevRefuses(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--members=0"}, "--members must be from 1 to 9"},
		{[]string{"--members=10"}, "--members must be from 1 to 9"},
		{[]string{"--base-port=0"}, "--base-port must leave two ports for each member"},
		{[]string{"--base-port=65531"}, "--base-port must leave two ports for each member"},
		{[]string{"three"}, `"three" is no argument of dev`},
		{[]string{"--data-dir=/dev/null/x"}, "make a directory for data"},
	} {
		if status, _, stderr := result(t, commandAs(t, "quorate", append([]string{"dev"}, tt.args...)...)); status != 1 || !strings.Contains(stderr, tt.want) {
			t.Errorf("%q: status %d, %s", tt.args, status, stderr)
		}
	}
}
