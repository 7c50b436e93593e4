package snapshot

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
)

// TrailerBytes is the length of the SHA-256 that follows the database in a file that
// Maintenance.Snapshot gives. The database ends at a multiple of 512, so the length of
// the file tells whether the trailer is there.
const TrailerBytes = sha256.Size

// ErrNoTrailer means that a file's length says that it ends without a checksum.
var ErrNoTrailer = errors.New("snapshot file has no checksum at its end; it may be cut short")

// TrailerWriter passes what is written to another writer, and sums it up.
type TrailerWriter struct {
	w io.Writer
	h hash.Hash
}

// NewTrailerWriter begins at the beginning of a database.
func NewTrailerWriter(w io.Writer) *TrailerWriter { return &TrailerWriter{w: w, h: sha256.New()} }

// Write writes a part of the database.
func (t *TrailerWriter) Write(b []byte) (int, error) {
	n, err := t.w.Write(b)
	t.h.Write(b[:n]) // a hash never fails
	return n, err
}

// Finish writes the trailer after all of the database.
func (t *TrailerWriter) Finish() error {
	_, err := t.w.Write(t.h.Sum(nil))
	return err
}

// CheckTrailer reads a file of size bytes through and returns the length of the database
// in it: ErrNoTrailer if there is no checksum, ErrCorrupt if it is not the database's.
func CheckTrailer(r io.Reader, size int64) (int64, error) {
	if size%512 != TrailerBytes {
		return 0, ErrNoTrailer
	}
	h := sha256.New()
	if _, err := io.CopyN(h, r, size-TrailerBytes); err != nil {
		return 0, fmt.Errorf("read snapshot file: %w", err)
	}
	var want [TrailerBytes]byte
	if _, err := io.ReadFull(r, want[:]); err != nil {
		return 0, fmt.Errorf("read snapshot file: %w", err)
	}
	if [TrailerBytes]byte(h.Sum(nil)) != want {
		return 0, fmt.Errorf("check snapshot file: %w", ErrCorrupt)
	}
	return size - TrailerBytes, nil
}
