// Package fsm is the replicated state machine: it decodes committed entries and applies
// them to the store, the leases, the alarms and the membership. It is the only writer of
// state and deterministic: no clock, no randomness, no goroutine.
package fsm

// Result is what applying one request gave.
type Result struct {
	// Rev is the store's revision for the response header.
	Rev int64
	// Body is the response message in wire form without its header (field 1).
	Body []byte
	// Err is why the request was refused; nothing was changed then.
	Err error
	// Done, if not nil, is closed when a physical compaction has given its space back.
	Done <-chan struct{}
}
