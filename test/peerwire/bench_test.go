package peerwire

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// BenchmarkAppends sends appends of 64 entries of 330 bytes, with up to 64 under way,
// from each kind of member to the other and within a kind. cpu-us/op is the CPU time of
// both ends for one append.
func BenchmarkAppends(b *testing.B) {
	p := newPair(b)
	p.connect(b)
	for _, way := range []struct {
		name     string
		from, to uint64
		send     func([]*raftpb.Message)
		at       *sink
	}{
		{"etcd to quorate", etcd, quorate, p.etcd.Send, p.ours},
		{"quorate to etcd", quorate, etcd, p.quorate.Send, p.theirs},
	} {
		for _, entries := range []int{1, 64} {
			b.Run(fmt.Sprintf("%s/entries=%d", way.name, entries), func(b *testing.B) {
				index := uint64(1)
				data := make([]byte, 330)
				under := 0
				b.ReportAllocs()
				before := cpu()
				for b.Loop() {
					m := &raftpb.Message{Type: raftpb.MsgApp.Enum(), From: new(way.from), To: new(way.to), Term: new(uint64(7)), LogTerm: new(uint64(7)), Index: new(index)}
					for range entries {
						index++
						m.Entries = append(m.Entries, &raftpb.Entry{Term: new(uint64(7)), Index: new(index), Data: data})
					}
					way.send([]*raftpb.Message{m})
					if under++; under == 64 {
						way.at.next(b)
						under--
					}
				}
				for ; under > 0; under-- {
					way.at.next(b)
				}
				b.ReportMetric(float64((cpu()-before).Microseconds())/float64(b.N), "cpu-us/op")
			})
		}
	}
}

// cpu is the CPU time of the process so far.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
