package ctl

import "errors"

// Exit codes, with etcdctl's meanings.
const (
	exitOK            = 0
	exitError         = 1   // the server answered with an error, or flags were wrong
	exitBadConnection = 2   // no client could be made, or a lease call failed
	exitInvalidInput  = 3   // bad input to txn or to interactive watch
	exitBadFeature    = 4   // a known flag with a value that is not supported
	exitInterrupted   = 5   // a watch was cancelled, a snapshot was not saved
	exitIO            = 6   // the output could not be written
	exitBadArgs       = 128 // wrong arguments
	exitByPrompt      = 255 // a signal while a password was asked for
)

// errSilent ends a verb whose output has said everything.
var errSilent = errors.New("failed")

// An exitCodeError is an error with the exit code that it calls for.
type exitCodeError struct {
	code int
	err  error
}

func (e *exitCodeError) Error() string { return e.err.Error() }
func (e *exitCodeError) Unwrap() error { return e.err }

// fail gives err an exit code.
func fail(code int, err error) error { return &exitCodeError{code: code, err: err} }

// ExitCode returns the exit code that err, returned by a verb, calls for: 0 for nil, and 1 for an
// error that carries no code, such as cobra's for an unknown flag.
func ExitCode(err error) int {
	if err == nil {
		return exitOK
	}
	var e *exitCodeError
	if errors.As(err, &e) {
		return e.code
	}
	return exitError
}
