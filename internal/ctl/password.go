package ctl

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/term"
)

// readPassword asks on standard output and reads a line of standard input: from a terminal without echo,
// from a script as it stands. White space around the password is taken off.
func (c *call) readPassword(prompt string) (string, error) {
	fmt.Fprint(c.out, prompt)
	if err := c.flush(); err != nil {
		return "", err
	}
	var line string
	var err error
	if f, ok := c.in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		line, err = readHidden(int(f.Fd()))
	} else {
		line, err = readLine(c.in)
	}
	fmt.Fprintln(c.out)
	if err != nil {
		return "", fmt.Errorf("failed during password entry: %w", err)
	}
	return strings.TrimSpace(line), nil
}

// readHidden reads a line of the terminal fd without echo. A signal that ends the process meanwhile finds
// the terminal as it was.
func readHidden(fd int) (string, error) {
	before, err := term.GetState(fd)
	if err != nil {
		return "", err
	}
	signals, read := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-signals:
			_ = term.Restore(fd, before) // nothing else can be done about it
			os.Exit(exitByPrompt)
		case <-read:
		}
	}()
	b, err := term.ReadPassword(fd)
	signal.Stop(signals)
	close(read)
	<-watched
	return string(b), err
}

// readLine reads up to the end of a line or of r, and no byte beyond.
func readLine(r io.Reader) (string, error) {
	var line []byte
	for b := make([]byte, 1); ; {
		n, err := r.Read(b)
		if n > 0 && b[0] != '\n' {
			line = append(line, b[0])
		}
		switch {
		case n > 0 && b[0] == '\n', errors.Is(err, io.EOF):
			return strings.TrimSuffix(string(line), "\r"), nil
		case err != nil:
			return "", err
		case len(line) > passwordBytesMax:
			return "", fmt.Errorf("more than %d bytes", passwordBytesMax)
		}
	}
}

// passwordBytesMax bounds what is read as a password: no server takes so long a request.
const passwordBytesMax = 1 << 20

// newPassword returns a new password for a user: asked for twice, or else the first word of standard
// input, which may be missing.
func (c *call) newPassword(user string, interactive bool) (string, error) {
	if !interactive {
		line, err := readLine(c.in)
		if err != nil {
			return "", fail(exitError, fmt.Errorf("read password: %w", err))
		}
		words := append(strings.Fields(line), "")
		return words[0], nil
	}
	password, err := c.readPassword(fmt.Sprintf("Password of %s: ", user))
	if err != nil {
		return "", fail(exitBadArgs, fmt.Errorf("failed to ask password: %w", err))
	}
	if password == "" {
		return "", fail(exitBadArgs, errors.New("empty password"))
	}
	again, err := c.readPassword(fmt.Sprintf("Type password of %s again for confirmation: ", user))
	if err != nil {
		return "", fail(exitBadArgs, fmt.Errorf("failed to ask password: %w", err))
	}
	if again != password {
		return "", fail(exitBadArgs, errors.New("given passwords are different"))
	}
	return password, nil
}
