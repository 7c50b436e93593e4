package node

import "sync"

// mailbox is a queue between two owners: many put, one takes all that is there. Its bound
// is its senders': a proposal needs a place in proposals first, Raft limits what it has
// given out to be appended and applied.
type mailbox[T any] struct {
	mu    sync.Mutex
	items []T
	spare []T // the last batch taken, empty
	// wake holds a token while there may be items.
	wake chan struct{}
}

func newMailbox[T any]() mailbox[T] { return mailbox[T]{wake: make(chan struct{}, 1)} }

// put adds an item and wakes the owner.
func (m *mailbox[T]) put(item T) {
	m.mu.Lock()
	m.items = append(m.items, item)
	m.mu.Unlock()
	m.signal()
}

func (m *mailbox[T]) signal() {
	select {
	case m.wake <- struct{}{}:
	default: // a token is there already
	}
}

// take returns what has come since the last take, in order. The slice is the caller's
// until the next take.
func (m *mailbox[T]) take() []T {
	m.mu.Lock()
	defer m.mu.Unlock()
	taken := m.items
	m.items = m.spare[:0]
	clear(taken[len(taken):cap(taken)])
	m.spare = taken
	return taken
}
