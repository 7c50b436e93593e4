package peer

import (
	"fmt"
	"strings"
	"testing"

	"go.etcd.io/raft/v3/raftpb"
)

// BenchmarkStream sends appends of 1 and 64 entries from one Transport to another, with
// up to 64 under way.
func BenchmarkStream(b *testing.B) {
	for _, entries := range []int{1, 64} {
		b.Run(fmt.Sprintf("entries=%d", entries), func(b *testing.B) {
			x, y := start(b, 1, ""), start(b, 2, "")
			connect(b, x, y)
			data := make([]string, entries)
			for i := range data {
				data[i] = strings.Repeat("x", 330)
			}
			index := uint64(1)
			b.ReportAllocs()
			b.SetBytes(int64(entries * 330))
			under := 0
			for b.Loop() {
				m := &raftpb.Message{Type: raftpb.MsgApp.Enum(), From: new(uint64(1)), To: new(uint64(2)), Term: new(uint64(7)), LogTerm: new(uint64(7)), Index: new(index)}
				for _, d := range data {
					index++
					m.Entries = append(m.Entries, &raftpb.Entry{Term: new(uint64(7)), Index: new(index), Data: []byte(d)})
				}
				x.Send([]*raftpb.Message{m})
				if under++; under == 64 {
					y.h.next(b)
					under--
				}
			}
			for ; under > 0; under-- {
				y.h.next(b)
			}
		})
	}
}
