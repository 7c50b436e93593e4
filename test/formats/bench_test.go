package formats

import (
	"fmt"
	"path/filepath"
	"testing"

	"quorate/internal/vfs"
	"quorate/internal/wal"

	etcdwal "go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// BenchmarkAppend compares one append, synced, of entries of 300 bytes.
func BenchmarkAppend(b *testing.B) {
	defer func(n int64) { etcdwal.SegmentSizeBytes = n }(etcdwal.SegmentSizeBytes)
	etcdwal.SegmentSizeBytes = 64 * 1000 * 1000
	for _, batch := range []int{1, 16, 256} {
		for _, who := range []string{"quorate", "etcd"} {
			b.Run(fmt.Sprintf("batch=%d/%s", batch, who), func(b *testing.B) {
				dir := filepath.Join(b.TempDir(), "wal")
				var l log
				if who == "etcd" {
					md, err := proto.Marshal(etcdMetadata)
					if err != nil {
						b.Fatal(err)
					}
					w, err := etcdwal.Create(zap.NewNop(), dir, md)
					if err != nil {
						b.Fatal(err)
					}
					l = etcds{w}
				} else {
					o, err := wal.Create(dir, metadata, wal.Options{FS: vfs.OS()})
					if err != nil {
						b.Fatal(err)
					}
					l = ours{o}
				}
				es := make([]*raftpb.Entry, batch)
				for i := range es {
					es[i] = &raftpb.Entry{Index: new(uint64), Term: proto.Uint64(1), Data: make([]byte, 300)}
				}
				h := &history{term: 1, vote: 1}
				b.ReportAllocs()
				for b.Loop() {
					for _, e := range es {
						h.commit++
						*e.Index = h.commit
					}
					if err := l.save(es, h.hard()); err != nil {
						b.Fatal(err)
					}
				}
				if err := l.close(); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}
