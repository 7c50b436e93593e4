package peer

import "errors"

// ErrUnreachable means that none of the addresses that were tried gave an answer.
var ErrUnreachable = errors.New("peer: member cannot be reached")

var (
	errClosed       = errors.New("peer: transport is closed")
	errUnknown      = errors.New("peer: unknown member")
	errRemoved      = errors.New("the member has been permanently removed from the cluster")
	errReplaced     = errors.New("peer: a newer stream took its place")
	errNoConnection = errors.New("peer: no connection")
	errSilent       = errors.New("peer: the other member is silent")
	errOutdated     = errors.New("peer: a new connection works, and nothing comes on this one")
	errNotMine      = errors.New("peer: it is not for this member")
	errLocalMessage = errors.New("peer: it is not for the wire")
	errSnapshotBusy = errors.New("peer: another snapshot to the member is under way")

	// These texts are etcd's and go over the wire.
	errIncompatible    = errors.New("incompatible version")
	errClusterMismatch = errors.New("cluster ID mismatch")
	errTooLarge        = errors.New("rafthttp: error limit exceeded")
)
