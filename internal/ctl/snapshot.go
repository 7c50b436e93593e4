package ctl

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const snapshotExample = `  # Save a snapshot of the member at 127.0.0.1:2379
  snapshot save /backup/snapshot.db

  # Save one of another member, with certificates
  --endpoints=https://10.0.0.1:2379 --cacert=ca.crt --cert=client.crt --key=client.key snapshot save /backup/snapshot.db`

func snapshotVerb() verb {
	return verb{
		use:     "snapshot <subcommand>",
		short:   "Manages etcd node snapshots",
		example: snapshotExample,
		group:   groupCluster,
		sub: []verb{{
			use:     "save <filename>",
			short:   "Stores an etcd node backend snapshot to a given file",
			example: snapshotExample,
			run:     saveSnapshot,
		}},
	}
}

func saveSnapshot(c *call, args []string) error {
	if len(args) != 1 {
		return fail(exitBadArgs, errors.New("snapshot save expects one argument <filename>"))
	}
	spec, err := c.configure()
	if err != nil {
		return err
	}
	// A snapshot takes as long as its size asks for, unless a limit was asked for. A signal leaves
	// no half of it behind.
	ctx, stop := c.untilSignal()
	defer stop()
	if c.g.flags.Changed("command-timeout") {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.g.commandTimeout)
		defer cancel()
	}
	version, err := c.download(ctx, spec, args[0])
	if err != nil {
		return fail(exitInterrupted, err)
	}
	fmt.Fprintf(c.out, "Snapshot saved at %s\n", args[0])
	if version != "" {
		fmt.Fprintf(c.out, "Server version %s\n", version)
	}
	return nil
}

// download saves a snapshot of spec's one endpoint at path and returns the version of its storage,
// "" if the server does not tell.
//
// The file appears at path only when it is complete, on disk, and matches its checksum: until then
// it is path.part, which is removed on failure.
func (c *call) download(ctx context.Context, spec *clientv3.ConfigSpec, path string) (version string, err error) {
	if len(spec.Endpoints) != 1 {
		return "", fmt.Errorf("snapshot must be requested to one selected node, not multiple %v", spec.Endpoints)
	}
	if c.client, err = c.dial(spec); err != nil {
		return "", err
	}
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return "", fmt.Errorf("could not open %s (%w)", part, err)
	}
	saved := false
	defer func() {
		if cerr := f.Close(); err == nil && cerr != nil {
			err = fmt.Errorf("could not close %s: %w", part, cerr)
		}
		if !saved {
			err = errors.Join(err, os.Remove(part))
		}
	}()
	c.lg.Info("created temporary db file", zap.String("path", part))

	start := time.Now()
	resp, err := c.client.SnapshotWithVersion(ctx)
	if err != nil {
		return "", err
	}
	c.lg.Info("fetching snapshot", zap.String("endpoint", spec.Endpoints[0]))
	sum := newTrailerHash()
	size, err := io.Copy(io.MultiWriter(f, sum), resp.Snapshot)
	if cerr := resp.Snapshot.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return "", fmt.Errorf("could not write snapshot: %w", err)
	}
	if err := sum.check(size); err != nil {
		return "", err
	}
	if err := f.Sync(); err != nil {
		return "", fmt.Errorf("could not fsync snapshot: %w", err)
	}
	c.lg.Info("fetched snapshot", zap.String("endpoint", spec.Endpoints[0]), zap.String("size", byteSize(size)),
		zap.Duration("took", time.Since(start)), zap.String("etcd-version", resp.Version))
	if err := os.Rename(part, path); err != nil {
		return "", fmt.Errorf("could not rename %s to %s (%w)", part, path, err)
	}
	saved = true
	if err := syncDir(filepath.Dir(path)); err != nil {
		return "", fmt.Errorf("could not fsync snapshot: %w", err)
	}
	c.lg.Info("saved", zap.String("path", path))
	return resp.Version, nil
}

// syncDir makes the names in a directory durable.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// A trailerHash hashes all that is written but the last 32 bytes, which should be the SHA-256 of
// the rest: the form of an etcd snapshot.
type trailerHash struct {
	sum  hash.Hash
	tail []byte // the last bytes written, not yet hashed; at most sha256.Size
}

func newTrailerHash() *trailerHash { return &trailerHash{sum: sha256.New()} }

func (h *trailerHash) Write(p []byte) (int, error) {
	if len(p) >= sha256.Size {
		h.sum.Write(h.tail)
		h.sum.Write(p[:len(p)-sha256.Size])
		h.tail = append(h.tail[:0], p[len(p)-sha256.Size:]...)
		return len(p), nil
	}
	h.tail = append(h.tail, p...)
	if over := len(h.tail) - sha256.Size; over > 0 {
		h.sum.Write(h.tail[:over])
		h.tail = append(h.tail[:0], h.tail[over:]...)
	}
	return len(p), nil
}

// check tells whether the size bytes written end with the checksum of the rest.
func (h *trailerHash) check(size int64) error {
	// The rest is a database, whole pages of a multiple of 512 bytes.
	if size%512 != sha256.Size {
		return fmt.Errorf("sha256 checksum not found [bytes: %d]", size)
	}
	if !bytes.Equal(h.sum.Sum(nil), h.tail) {
		return fmt.Errorf("sha256 checksum does not match the snapshot [bytes: %d]", size)
	}
	return nil
}
