package kv

import "errors"

// What a request may be refused with. The texts are for logs; package rpc maps each
// to etcd's code and text with errors.Is, so wrapping them is free.
var (
	// Reading and compacting.
	ErrCompacted      = errors.New("required revision has been compacted")
	ErrFutureRevision = errors.New("required revision is a future revision")

	// Writing.
	ErrEmptyKey      = errors.New("key is not provided")
	ErrKeyNotFound   = errors.New("key not found")
	ErrValueProvided = errors.New("value is provided")
	ErrLeaseProvided = errors.New("lease is provided")
	ErrTooManyOps    = errors.New("too many operations in txn request")
	ErrDuplicateKey  = errors.New("duplicate key given in txn request")
	ErrInvalidSort   = errors.New("invalid sort option")
	ErrTooLarge      = errors.New("request is too large")
	ErrNoSpace       = errors.New("database space exceeded")
	ErrCorrupt       = errors.New("corrupt cluster")

	// Leases.
	ErrLeaseNotFound    = errors.New("requested lease not found")
	ErrLeaseExists      = errors.New("lease already exists")
	ErrLeaseTTLTooLarge = errors.New("too large lease TTL")

	// The member as a whole.
	ErrNoLeader        = errors.New("no leader")
	ErrLeaderChanged   = errors.New("leader changed")
	ErrNotLeader       = errors.New("not leader")
	ErrStopped         = errors.New("server stopped")
	ErrTimeout         = errors.New("request timed out")
	ErrLeaderFailed    = errors.New("request timed out, possibly due to previous leader failure")
	ErrConnectionLost  = errors.New("request timed out, possibly due to connection lost")
	ErrTooManyRequests = errors.New("too many requests")
	ErrUnhealthy       = errors.New("unhealthy cluster")

	// Membership.
	ErrMemberNotFound = errors.New("member not found")
	ErrBadTransferee  = errors.New("bad leader transferee")
	ErrTransferSlow   = errors.New("request timed out, leader transfer took too long")
	ErrNotSupported   = errors.New("not capable")
	ErrMemberExists   = errors.New("member ID already exist")
	//lint:ignore ST1005 etcd's text
	ErrPeerURLExists    = errors.New("Peer URLs already exists")
	ErrMemberNotLearner = errors.New("can only promote a learner member")
	ErrLearnerNotReady  = errors.New("can only promote a learner member which is in sync with leader")
	ErrTooManyLearners  = errors.New("too many learner members in cluster")
	ErrNotEnoughStarted = errors.New("re-configuration failed due to not enough started members")
)
