package peer

import "errors"

// ErrUnreachable means that a member did not answer.
var ErrUnreachable = errors.New("member cannot be reached")
