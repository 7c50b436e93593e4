// Package snapshot reads and writes the small files that stand for the state at a log
// index, in etcd's formats (docs/formats/snap.md): the .snap files beside the database,
// which hold the membership for etcd up to 3.6, and the checksum that ends a database
// file that a client saves.
package snapshot

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"quorate/internal/membership"
	"quorate/internal/vfs"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// ID names a .snap file: the state after applying the entry at Index, which has Term.
type ID struct {
	Term  uint64
	Index uint64
}

const (
	suffix = ".snap"
	// keep is how many .snap files stay, as etcd's --max-snapshots.
	keep = 5
)

// String is the name of the file.
func (id ID) String() string { return fmt.Sprintf("%016x-%016x%s", id.Term, id.Index, suffix) }

func parseID(name string) (id ID, ok bool) {
	n, err := fmt.Sscanf(name, "%016x-%016x"+suffix, &id.Term, &id.Index)
	return id, err == nil && n == 2 && name == id.String()
}

// ErrCorrupt means that a .snap file is not what was written.
var ErrCorrupt = errors.New("snapshot file is corrupt")

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Save writes the .snap file for index into dir in one step, and deletes all but the
// newest five. It is on disk when Save returns.
func Save(fsys vfs.FS, dir string, index, term uint64, conf *raftpb.ConfState, state *membership.State) error {
	id := ID{Term: term, Index: index}
	data, err := proto.Marshal(&raftpb.Snapshot{
		Data:     V2Store(state),
		Metadata: &raftpb.SnapshotMetadata{ConfState: conf, Index: &index, Term: &term},
	})
	if err != nil {
		return fmt.Errorf("encode snapshot %s: %w", id, err)
	}
	if err := vfs.WriteFile(fsys, filepath.Join(dir, id.String()), envelope(data)); err != nil {
		return err
	}
	return deleteOld(fsys, dir)
}

// envelope is the content of a .snap file: in protobuf, 1 the CRC-32C of data, 2 data.
func envelope(data []byte) []byte {
	b := append(make([]byte, 0, len(data)+16), 0x08)
	b = binary.AppendUvarint(b, uint64(crc32.Checksum(data, castagnoli)))
	b = append(b, 0x12)
	b = binary.AppendUvarint(b, uint64(len(data)))
	return append(b, data...)
}

// open is the data of an envelope.
func open(b []byte) ([]byte, error) {
	if len(b) == 0 || b[0] != 0x08 {
		return nil, ErrCorrupt
	}
	crc, n := binary.Uvarint(b[1:])
	if n <= 0 || crc>>32 != 0 {
		return nil, ErrCorrupt
	}
	b = b[1+n:]
	if len(b) == 0 || b[0] != 0x12 {
		return nil, ErrCorrupt
	}
	size, n := binary.Uvarint(b[1:])
	if n <= 0 || size != uint64(len(b)-1-n) {
		return nil, ErrCorrupt
	}
	if b = b[1+n:]; crc32.Checksum(b, castagnoli) != uint32(crc) {
		return nil, ErrCorrupt
	}
	return b, nil
}

// Read is the content of a .snap file; its Data is what V2Store gives. ErrCorrupt means
// that the file cannot be trusted, fs.ErrNotExist that there is none.
func Read(fsys vfs.FS, dir string, id ID) (*raftpb.Snapshot, error) {
	name := filepath.Join(dir, id.String())
	b, err := vfs.ReadFile(fsys, name)
	if err != nil {
		return nil, err
	}
	data, err := open(b)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	s := new(raftpb.Snapshot)
	if err := proto.Unmarshal(data, s); err != nil {
		return nil, fmt.Errorf("read %s: %w: %w", name, ErrCorrupt, err)
	}
	if got := (ID{Term: s.GetMetadata().GetTerm(), Index: s.GetMetadata().GetIndex()}); got != id {
		return nil, fmt.Errorf("read %s: %w: it is about %s", name, ErrCorrupt, got)
	}
	return s, nil
}

// List is the .snap files in dir, newest first.
func List(fsys vfs.FS, dir string) ([]ID, error) {
	names, err := fsys.List(dir)
	if err != nil {
		return nil, err
	}
	var ids []ID
	for _, name := range names {
		if id, ok := parseID(name); ok {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b ID) int {
		return cmp.Or(cmp.Compare(b.Term, a.Term), cmp.Compare(b.Index, a.Index))
	})
	return ids, nil
}

func deleteOld(fsys vfs.FS, dir string) error {
	ids, err := List(fsys, dir)
	if err != nil {
		return err
	}
	for i := keep; i < len(ids); i++ {
		if err := fsys.Remove(filepath.Join(dir, ids[i].String())); err != nil {
			return fmt.Errorf("delete old snapshot: %w", err)
		}
	}
	return nil
}

// Clean removes what a crash left unfinished in dir: .snap files that were being written,
// and databases that were being defragmented or received. Whole databases that were
// received (.snap.db) stay.
func Clean(fsys vfs.FS, dir string) error {
	names, err := fsys.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, "db.tmp") || strings.HasPrefix(name, "tmp") ||
			strings.HasSuffix(name, suffix+".tmp") {
			if err := fsys.Remove(filepath.Join(dir, name)); err != nil {
				return fmt.Errorf("remove leftover: %w", err)
			}
		}
	}
	return nil
}
