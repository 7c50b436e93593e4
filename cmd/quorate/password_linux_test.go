package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is a pseudoterminal with a client of the member at its other end.
type terminal struct {
	t             *testing.T
	master, slave *os.File
	cmd           *exec.Cmd
	out           strings.Builder // what the screen shows
}

func openTerminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no pseudoterminals here: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	raw, err := master.SyscallConn() // Fd would take the deadlines away
	if err != nil {
		t.Fatal(err)
	}
	var n int
	var unlock, number error
	if err := raw.Control(func(fd uintptr) {
		unlock = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0)
		n, number = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
	}); errors.Join(err, unlock, number) != nil {
		t.Fatal(err, unlock, number)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

// terminalPatience is for a busy machine: a password takes its time to be checked.
const terminalPatience = time.Minute

// onTerminal starts etcdctl as somebody does who sits at a terminal.
func onTerminal(t *testing.T, client string, args ...string) *terminal {
	t.Helper()
	p := &terminal{t: t}
	p.master, p.slave = openTerminal(t)
	patience := []string{"--endpoints", client, "--dial-timeout=" + terminalPatience.String(), "--command-timeout=" + terminalPatience.String()}
	p.cmd = commandAs(t, "etcdctl", append(patience, args...)...)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = p.slave, p.slave, p.slave
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.cmd.Process.Kill() }) // if the test has not ended it
	return p
}

// see waits until the screen shows text.
func (p *terminal) see(text string) {
	p.t.Helper()
	b := make([]byte, 1000)
	for end := time.Now().Add(terminalPatience); !strings.Contains(p.out.String(), text); {
		if err := p.master.SetReadDeadline(end); err != nil {
			p.t.Fatal(err)
		}
		n, err := p.master.Read(b)
		p.out.Write(b[:n])
		if err != nil {
			p.t.Fatalf("%q does not show: %v; the screen is %q", text, err, p.out.String())
		}
	}
}

// hidden waits until the terminal shows nothing of what is typed.
func (p *terminal) hidden() {
	p.t.Helper()
	for end := time.Now().Add(terminalPatience); p.echoes(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			p.t.Fatal("the terminal goes on showing what is typed")
		}
	}
}

func (p *terminal) echoes() bool {
	p.t.Helper()
	state, err := unix.IoctlGetTermios(int(p.slave.Fd()), unix.TCGETS)
	if err != nil {
		p.t.Fatal(err)
	}
	return state.Lflag&unix.ECHO != 0
}

func (p *terminal) enter(keys string) {
	p.t.Helper()
	if _, err := p.master.WriteString(keys); err != nil {
		p.t.Fatal(err)
	}
}

// exit waits for the end of the client and returns its status.
func (p *terminal) exit() int {
	p.t.Helper()
	var failed *exec.ExitError
	if err := p.cmd.Wait(); err != nil && !errors.As(err, &failed) {
		p.t.Fatal(err)
	}
	if !p.echoes() {
		p.t.Error("the terminal is left without echo")
	}
	return p.cmd.ProcessState.ExitCode()
}

// At a terminal a password is asked for and never shown, and the terminal is left as it was,
// whatever ends the question.
func TestPasswordAtTerminal(t *testing.T) {
	m := startMember(t, commandAs(t, "quorate", append([]string{"serve", "--data-dir=" + t.TempDir()}, serveArgs()...)...))
	const first, again = "Password of alice: ", "Type password of alice again for confirmation: "
	const secret = "open sesame"
	for _, tt := range []struct {
		name   string
		do     func(*terminal)
		status int
		want   string
	}{
		{"two that differ", func(p *terminal) {
			p.enter(secret + "\n")
			p.see(again)
			p.hidden()
			p.enter(secret + "!\n")
		}, 128, "given passwords are different"},
		{"nothing", func(p *terminal) { p.enter("\n") }, 128, "empty password"},
		{"ctrl-C", func(p *terminal) { p.enter(secret + "\x03") }, 255, ""},
		{"SIGTERM", func(p *terminal) {
			if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
		}, 255, ""},
		{"twice the same, mended while typing", func(p *terminal) {
			p.enter(secret + "x\x7f\n")
			p.see(again)
			p.hidden()
			p.enter(secret + "\n")
		}, 0, "User alice created"},
	} {
		p := onTerminal(t, m.client, "user", "add", "alice")
		p.see(first)
		p.hidden()
		tt.do(p)
		p.see(tt.want)
		if status := p.exit(); status != tt.status {
			t.Errorf("%s: status %d, want %d; the screen is %q", tt.name, status, tt.status, p.out.String())
		}
		if strings.Contains(p.out.String(), "sesame") {
			t.Errorf("%s: the password shows: %q", tt.name, p.out.String())
		}
	}

	// It is the one that was typed, and is asked for where only a name is given.
	for _, args := range [][]string{
		{"user", "add", "root:r"}, {"user", "grant-role", "root", "root"}, {"auth", "enable"},
	} {
		if status, _, stderr := result(t, commandAs(t, "etcdctl", append([]string{"--endpoints", m.client, "--command-timeout=" + terminalPatience.String()}, args...)...)); status != 0 {
			t.Fatalf("%q: %s", args, stderr)
		}
	}
	for _, tt := range []struct {
		typed  string
		status int
		want   string
	}{
		{secret, 1, "permission denied"}, // alice may do nothing, but is alice
		{"wrong", 2, "authentication failed, invalid user ID or password"},
	} {
		p := onTerminal(t, m.client, "--user", "alice", "get", "k")
		p.see("Password: ")
		p.hidden()
		p.enter(tt.typed + "\n")
		p.see(tt.want)
		if status := p.exit(); status != tt.status {
			t.Errorf("as alice with password %q: status %d, want %d", tt.typed, status, tt.status)
		}
	}
}
