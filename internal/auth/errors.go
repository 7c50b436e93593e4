package auth

import "errors"

// What the state refuses. Where etcd has no code for an error, its text is what clients
// get; so the texts are etcd's.
var (
	ErrRootUserNotExist     = errors.New("auth: root user does not exist")
	ErrRootRoleNotExist     = errors.New("auth: root user does not have root role")
	ErrUserExists           = errors.New("auth: user already exists")
	ErrUserEmpty            = errors.New("auth: user name is empty")
	ErrUserNotFound         = errors.New("auth: user not found")
	ErrRoleExists           = errors.New("auth: role already exists")
	ErrRoleNotFound         = errors.New("auth: role not found")
	ErrRoleEmpty            = errors.New("auth: role name is empty")
	ErrPermissionNotGiven   = errors.New("auth: permission not given")
	ErrDenied               = errors.New("auth: permission denied")
	ErrRoleNotGranted       = errors.New("auth: role is not granted to the user")
	ErrPermissionNotGranted = errors.New("auth: permission is not granted to the role")
	ErrNotEnabled           = errors.New("auth: authentication is not enabled")
	ErrOldRevision          = errors.New("auth: revision in header is old")
	ErrInvalidMgmt          = errors.New("auth: invalid auth management")
)

// What is wrong with a client's proof of who it is.
var (
	ErrFailed         = errors.New("auth: authentication failed, invalid user ID or password")
	ErrNoPasswordUser = errors.New("auth: authentication failed, password was given for no password user")
	ErrInvalidToken   = errors.New("auth: invalid auth token")
	ErrVerifyOnly     = errors.New("auth: token signing attempted with verify-only key")
)

// What is wrong with --auth-token.
var (
	ErrInvalidOptions = errors.New("auth: invalid auth options")
	ErrInvalidMethod  = errors.New("auth: invalid auth signature method")
	ErrMissingKey     = errors.New("auth: missing key data")
	ErrKeyMismatch    = errors.New("auth: public and private keys don't match")
)
