package peer

import (
	"bufio"
	"bytes"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"go.etcd.io/raft/v3/raftpb"
)

// randomMessage is a message in which every field is set, or not, by chance.
func randomMessage(rnd *rand.Rand) *raftpb.Message {
	num := func() *uint64 {
		switch rnd.IntN(4) {
		case 0:
			return nil
		case 1:
			return new(rnd.Uint64() >> rnd.IntN(64))
		}
		return new(rnd.Uint64N(300))
	}
	data := func() []byte {
		if rnd.IntN(4) == 0 {
			return nil
		}
		b := make([]byte, rnd.IntN(300)*rnd.IntN(20)) // sometimes empty
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		return b
	}
	m := &raftpb.Message{To: num(), From: num(), Term: num(), LogTerm: num(), Index: num(), Commit: num(), Vote: num(), RejectHint: num(), Context: data()}
	if rnd.IntN(8) > 0 {
		m.Type = raftpb.MessageType(rnd.IntN(26) - 1).Enum()
	}
	if rnd.IntN(2) == 0 {
		m.Reject = new(rnd.IntN(2) == 0)
	}
	for range rnd.IntN(5) * rnd.IntN(3) {
		e := &raftpb.Entry{Term: num(), Index: num(), Data: data()}
		if rnd.IntN(2) == 0 {
			e.Type = raftpb.EntryType(rnd.IntN(4)).Enum()
		}
		m.Entries = append(m.Entries, e)
	}
	if rnd.IntN(8) == 0 {
		m.Snapshot = &raftpb.Snapshot{Data: data(), Metadata: &raftpb.SnapshotMetadata{Index: num(), Term: num(), ConfState: &raftpb.ConfState{Voters: []uint64{1, 2}}}}
	}
	if rnd.IntN(8) == 0 {
		m.Responses = append(m.Responses, &raftpb.Message{To: num()})
	}
	return m
}

// The bytes are protobuf's, and so is what is read from them.
func TestMessageIsProtobufs(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range 4000 {
		m := randomMessage(rnd)
		want, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := appendMessage([]byte("x"), m)
		if err != nil || !bytes.Equal(got[1:], want) {
			t.Fatalf("message %d %v:\n got  %x (%v)\n want %x", i, m, got[1:], err, want)
		}
		checkDecode(t, want)
		// Damage must be seen as protobuf sees it.
		bad := slices.Clone(want)
		if len(bad) > 0 {
			switch rnd.IntN(3) {
			case 0:
				bad = bad[:rnd.IntN(len(bad))]
			case 1:
				bad[rnd.IntN(len(bad))] ^= 1 << rnd.IntN(8)
			case 2:
				at := rnd.IntN(len(bad))
				bad = slices.Insert(bad, at, byte(rnd.Uint32()))
			}
		}
		checkDecode(t, bad)
	}
}

// checkDecode compares decodeMessage with protobuf-go.
func checkDecode(t *testing.T, b []byte) {
	t.Helper()
	var want raftpb.Message
	wantErr := proto.Unmarshal(b, &want)
	got, err := decodeMessage(slices.Clone(b))
	if (err == nil) != (wantErr == nil) {
		t.Fatalf("decode %x: %v, protobuf says %v", b, err, wantErr)
	}
	if err != nil {
		return
	}
	if !proto.Equal(got, &want) {
		t.Fatalf("decode %x:\n got  %v\n want %v", b, got, &want)
	}
	again, err := appendMessage(nil, got)
	if err != nil {
		t.Fatal(err)
	}
	var twice raftpb.Message
	if err := proto.Unmarshal(again, &twice); err != nil || len(got.ProtoReflect().GetUnknown()) == 0 && !proto.Equal(&twice, withoutUnknown(&want)) {
		t.Fatalf("%x is not read as it was written (%v)", b, err)
	}
}

// withoutUnknown is m without what appendMessage does not write: unknown fields of entries,
// unless it leaves the whole message to protobuf-go.
func withoutUnknown(m *raftpb.Message) *raftpb.Message {
	m = proto.CloneOf(m)
	if len(m.Responses) > 0 {
		return m
	}
	for _, e := range m.Entries {
		e.ProtoReflect().SetUnknown(nil)
	}
	return m
}

// TestUnknownFieldBesideResponse: what the decoder does not know it does not mistake, and
// it is written again where protobuf-go does the writing.
func TestUnknownFieldBesideResponse(t *testing.T) {
	e := &raftpb.Entry{Index: new(uint64(1))}
	e.ProtoReflect().SetUnknown([]byte{15<<3 | wireVarint, 1})
	m := &raftpb.Message{Entries: []*raftpb.Entry{e}, Responses: []*raftpb.Message{{}}}
	for range 2 {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		checkDecode(t, b)
		m.Responses = nil
	}
}

func FuzzDecodeMessage(f *testing.F) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for range 50 {
		b, err := proto.Marshal(randomMessage(rnd))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { checkDecode(t, b) })
}

// appends is a sequence of appends as a leader sends them: mostly one after the other.
func appends(rnd *rand.Rand, count int) []*raftpb.Message {
	term, index := uint64(1), uint64(0)
	var ms []*raftpb.Message
	for range count {
		switch rnd.IntN(12) {
		case 0:
			term++
		case 1:
			index = rnd.Uint64N(1 << 20)
		}
		logTerm := term
		if rnd.IntN(10) == 0 {
			logTerm--
		}
		m := &raftpb.Message{
			Type: raftpb.MsgApp.Enum(), From: new(uint64(2)), To: new(uint64(1)),
			Term: new(term), LogTerm: new(logTerm), Index: new(index), Commit: new(rnd.Uint64N(1 << 30)),
		}
		for range rnd.IntN(6) {
			index++
			e := &raftpb.Entry{Type: raftpb.EntryNormal.Enum(), Term: new(term), Index: new(index)}
			if rnd.IntN(5) > 0 {
				e.Data = make([]byte, rnd.IntN(100)*rnd.IntN(100))
			}
			m.Entries = append(m.Entries, e)
		}
		ms = append(ms, m)
	}
	return ms
}

func TestStreamsReadWhatIsWritten(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 6))
	for _, k := range []kind{streamMessage, streamAppend} {
		ms := appends(rnd, 3000)
		enc := encoder{kind: k}
		var wire []byte
		var err error
		var ends []int
		for i, m := range ms {
			if i%7 == 0 {
				wire = enc.heartbeat(wire)
				ends = append(ends, len(wire))
			}
			if wire, err = enc.append(wire, m); err != nil {
				t.Fatal(err)
			}
			ends = append(ends, len(wire))
		}
		dec := decoder{r: bufio.NewReader(bytes.NewReader(wire)), kind: k, local: 1, remote: 2}
		at := 0
		for i, m := range ms {
			if i%7 == 0 {
				if got, n, err := dec.next(); got != nil || n != ends[0]-at || err != nil {
					t.Fatalf("%v: heartbeat is %v, %d, %v", k, got, n, err)
				}
				at, ends = ends[0], ends[1:]
			}
			got, n, err := dec.next()
			if err != nil || !proto.Equal(got, m) {
				t.Fatalf("%v %d: %v\n got  %v\n want %v", k, i, err, got, m)
			}
			if n != ends[0]-at {
				t.Fatalf("%v %d: %d bytes, want %d", k, i, n, ends[0]-at)
			}
			at, ends = ends[0], ends[1:]
		}
		if _, _, err := dec.next(); err != io.EOF {
			t.Fatalf("%v: after the last message: %v", k, err)
		}
		for range 300 { // a stream that breaks in the middle
			cut := rnd.IntN(len(wire) / 20)
			dec := decoder{r: bufio.NewReader(bytes.NewReader(wire[:cut])), kind: k, local: 1, remote: 2}
			var err error
			for err == nil {
				_, _, err = dec.next()
			}
			if err != io.EOF && err != io.ErrUnexpectedEOF {
				t.Fatalf("%v: cut at %d: %v", k, cut, err)
			}
		}
	}
}

// A length that no message can have is refused before room is made for it.
func TestLengths(t *testing.T) {
	huge := func(prefix ...byte) []byte {
		return append(append(prefix, 0, 0, 0, 0, 0x40, 0, 0, 0), 1, 2, 3)
	}
	for _, c := range []struct {
		name string
		kind kind
		wire []byte
		want error
	}{
		{"message", streamMessage, huge(), errTooLarge},
		{"message within the limit", streamMessage, []byte{0, 0, 0, 0, 0x10, 0, 0, 0, 1}, io.ErrUnexpectedEOF},
		{"append", streamAppend, huge(recordMessage), errTooLarge},
		{"count", streamAppend, huge(recordEntries), errTooLarge},
		{"entry", streamAppend, huge(recordEntries, 0, 0, 0, 0, 0, 0, 0, 1), errTooLarge},
		{"entry within the limit", streamAppend, []byte{recordEntries, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x10, 0, 0, 0, 1}, io.ErrUnexpectedEOF},
		{"negative", streamAppend, append([]byte{recordEntries, 0, 0, 0, 0, 0, 0, 0, 1}, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff), errTooLarge},
	} {
		var err error
		allocs := testing.AllocsPerRun(1, func() {
			dec := decoder{r: bufio.NewReader(bytes.NewReader(c.wire)), kind: c.kind}
			_, _, err = dec.next()
		})
		if err != c.want {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		if allocs > 20 {
			t.Errorf("%s: %v allocations", c.name, allocs)
		}
	}
}

func FuzzStream(f *testing.F) {
	rnd := rand.New(rand.NewPCG(7, 8))
	for _, k := range []kind{streamMessage, streamAppend} {
		enc := encoder{kind: k}
		var wire []byte
		for _, m := range appends(rnd, 10) {
			var err error
			if wire, err = enc.append(enc.heartbeat(wire), m); err != nil {
				f.Fatal(err)
			}
		}
		f.Add(k == streamAppend, wire)
	}
	f.Fuzz(func(t *testing.T, isAppend bool, wire []byte) {
		dec := decoder{r: bufio.NewReader(bytes.NewReader(wire)), local: 1, remote: 2}
		if isAppend {
			dec.kind = streamAppend
		}
		total := 0
		for {
			m, n, err := dec.next()
			if err != nil {
				break
			}
			if n <= 0 || m == nil && n > 64<<10 {
				t.Fatalf("a message of %d bytes", n)
			}
			total += n
		}
		if total > len(wire) {
			t.Fatalf("%d bytes were read of %d", total, len(wire))
		}
	})
}

func BenchmarkEncode(b *testing.B) {
	m := message(raftpb.MsgApp, 1, 2, 100)
	for i := range uint64(64) {
		m.Entries = append(m.Entries, &raftpb.Entry{Type: raftpb.EntryNormal.Enum(), Term: new(uint64(7)), Index: new(i + 101), Data: make([]byte, 330)})
	}
	b.Run("here", func(b *testing.B) {
		b.ReportAllocs()
		var buf []byte
		for b.Loop() {
			enc := encoder{kind: streamAppend, term: 7, index: m.GetIndex()}
			buf, _ = enc.append(buf[:0], m)
		}
		b.SetBytes(int64(len(buf)))
	})
	b.Run("protobuf", func(b *testing.B) {
		b.ReportAllocs()
		var buf []byte
		for b.Loop() {
			buf, _ = proto.MarshalOptions{}.MarshalAppend(buf[:0], m)
		}
		b.SetBytes(int64(len(buf)))
	})
}

func BenchmarkDecode(b *testing.B) {
	m := message(raftpb.MsgApp, 1, 2, 100)
	for i := range uint64(64) {
		m.Entries = append(m.Entries, &raftpb.Entry{Type: raftpb.EntryNormal.Enum(), Term: new(uint64(7)), Index: new(i + 101), Data: make([]byte, 330)})
	}
	enc := encoder{kind: streamAppend, term: 7, index: m.GetIndex()}
	wire, err := enc.append(nil, m)
	if err != nil {
		b.Fatal(err)
	}
	body, err := proto.Marshal(m)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("here", func(b *testing.B) {
		b.ReportAllocs()
		r := bytes.NewReader(wire)
		dec := decoder{r: bufio.NewReaderSize(r, 64<<10), kind: streamAppend, term: 7}
		for b.Loop() {
			r.Reset(wire)
			dec.r.Reset(r)
			dec.index = 100
			if _, _, err := dec.next(); err != nil {
				b.Fatal(err)
			}
		}
		b.SetBytes(int64(len(wire)))
	})
	b.Run("message", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := decodeMessage(body); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("protobuf", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var m raftpb.Message
			if err := proto.Unmarshal(body, &m); err != nil {
				b.Fatal(err)
			}
		}
	})
}
