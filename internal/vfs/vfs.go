// Package vfs is the file interface of the log and of small state files, so that tests
// can run them on a disk in memory that loses unsynced writes, tears them, fills up,
// fails or slows down.
package vfs

// FS is a file system.
type FS interface{}
