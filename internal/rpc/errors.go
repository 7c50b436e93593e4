package rpc

import (
	"context"
	"errors"

	"quorate/internal/auth"
	"quorate/internal/kv"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errorTable says how each error of packages kv and auth looks to clients: etcd's code and text.
//
// Two of etcd's own entries are the client library's errors instead of gRPC's, by
// mistake: on the wire they have code Unknown and the right text. clientv3 goes by the
// text, so the code matters to other clients alone, which may have been written against
// the servers there are; quorate answers as those do.
var errorTable = []struct {
	err  error
	wire error
}{
	{kv.ErrCompacted, rpctypes.ErrGRPCCompacted},
	{kv.ErrFutureRevision, rpctypes.ErrGRPCFutureRev},

	{kv.ErrEmptyKey, rpctypes.ErrGRPCEmptyKey},
	{kv.ErrKeyNotFound, rpctypes.ErrGRPCKeyNotFound},
	{kv.ErrValueProvided, rpctypes.ErrGRPCValueProvided},
	{kv.ErrLeaseProvided, rpctypes.ErrGRPCLeaseProvided},
	{kv.ErrTooManyOps, rpctypes.ErrGRPCTooManyOps},
	{kv.ErrDuplicateKey, rpctypes.ErrGRPCDuplicateKey},
	{kv.ErrInvalidSort, rpctypes.ErrGRPCInvalidSortOption},
	{kv.ErrTooLarge, rpctypes.ErrGRPCRequestTooLarge},
	{kv.ErrNoSpace, rpctypes.ErrGRPCNoSpace},
	{kv.ErrCorrupt, rpctypes.ErrGRPCCorrupt},

	{kv.ErrLeaseNotFound, rpctypes.ErrGRPCLeaseNotFound},
	{kv.ErrLeaseExists, rpctypes.ErrGRPCLeaseExist},
	{kv.ErrLeaseTTLTooLarge, rpctypes.ErrGRPCLeaseTTLTooLarge},

	{kv.ErrNoLeader, rpctypes.ErrGRPCNoLeader},
	{kv.ErrLeaderChanged, rpctypes.ErrGRPCLeaderChanged},
	{kv.ErrNotLeader, rpctypes.ErrGRPCNotLeader},
	{kv.ErrStopped, rpctypes.ErrGRPCStopped},
	{kv.ErrTimeout, rpctypes.ErrGRPCTimeout},
	{kv.ErrLeaderFailed, rpctypes.ErrGRPCTimeoutDueToLeaderFail},
	{kv.ErrConnectionLost, rpctypes.ErrGRPCTimeoutDueToConnectionLost},
	{kv.ErrTooManyRequests, errTooManyRequests},
	{kv.ErrUnhealthy, rpctypes.ErrGRPCUnhealthy},

	{kv.ErrMemberNotFound, rpctypes.ErrGRPCMemberNotFound},
	{kv.ErrBadTransferee, rpctypes.ErrGRPCBadLeaderTransferee},
	{kv.ErrTransferSlow, errTransferSlow},
	{kv.ErrNotSupported, rpctypes.ErrGRPCNotCapable},
	{kv.ErrMemberExists, rpctypes.ErrGRPCMemberExist},
	{kv.ErrPeerURLExists, rpctypes.ErrGRPCPeerURLExist},
	{kv.ErrMemberNotLearner, rpctypes.ErrGRPCMemberNotLearner},
	{kv.ErrLearnerNotReady, rpctypes.ErrGRPCLearnerNotReady},
	{kv.ErrTooManyLearners, rpctypes.ErrGRPCTooManyLearners},
	{kv.ErrNotEnoughStarted, errNotEnoughStarted},

	{auth.ErrRootUserNotExist, rpctypes.ErrGRPCRootUserNotExist},
	{auth.ErrRootRoleNotExist, rpctypes.ErrGRPCRootRoleNotExist},
	{auth.ErrUserExists, rpctypes.ErrGRPCUserAlreadyExist},
	{auth.ErrUserEmpty, rpctypes.ErrGRPCUserEmpty},
	{auth.ErrUserNotFound, rpctypes.ErrGRPCUserNotFound},
	{auth.ErrRoleExists, rpctypes.ErrGRPCRoleAlreadyExist},
	{auth.ErrRoleNotFound, rpctypes.ErrGRPCRoleNotFound},
	{auth.ErrRoleEmpty, rpctypes.ErrGRPCRoleEmpty},
	{auth.ErrFailed, rpctypes.ErrGRPCAuthFailed},
	{auth.ErrPermissionNotGiven, rpctypes.ErrGRPCPermissionNotGiven},
	{auth.ErrDenied, rpctypes.ErrGRPCPermissionDenied},
	{auth.ErrRoleNotGranted, rpctypes.ErrGRPCRoleNotGranted},
	{auth.ErrPermissionNotGranted, rpctypes.ErrGRPCPermissionNotGranted},
	{auth.ErrNotEnabled, rpctypes.ErrGRPCAuthNotEnabled},
	{auth.ErrInvalidToken, rpctypes.ErrGRPCInvalidAuthToken},
	{auth.ErrInvalidMgmt, rpctypes.ErrGRPCInvalidAuthMgmt},
	{auth.ErrOldRevision, rpctypes.ErrGRPCAuthOldRevision},
}

// The two with the wrong code, see errorTable, and one that etcd has no code for.
var (
	errTooManyRequests  = status.Error(codes.Unknown, rpctypes.ErrTooManyRequests.Error())
	errNotEnoughStarted = status.Error(codes.Unknown, rpctypes.ErrMemberNotEnoughStarted.Error())
	errTransferSlow     = status.Error(codes.Unknown, "etcdserver: request timed out, leader transfer took too long")
)

// toWire turns an error from below into the gRPC status that clients get. Errors that
// are a status already pass. An error that is in no table is Unknown with its own text,
// as with etcd.
func toWire(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.Canceled):
		return status.FromContextError(context.Canceled).Err()
	case errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(context.DeadlineExceeded).Err()
	}
	for i := range errorTable {
		if errors.Is(err, errorTable[i].err) {
			return errorTable[i].wire
		}
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unknown, err.Error())
}
