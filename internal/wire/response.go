package wire

import (
	"encoding/binary"

	"quorate/internal/kv"
)

// Header is etcdserverpb.ResponseHeader.
type Header struct {
	ClusterID uint64
	MemberID  uint64
	Revision  int64
	Term      uint64
}

// Append appends the fields of h: what a message's header field contains.
func (h *Header) Append(b []byte) []byte {
	b = appendNumber(b, 1, h.ClusterID)
	b = appendNumber(b, 2, h.MemberID)
	b = appendNumber(b, 3, uint64(h.Revision))
	return appendNumber(b, 4, h.Term)
}

// AppendHeader appends h as field 1, which it is in every response.
func AppendHeader(b []byte, h *Header) []byte {
	// Four varints of at most ten bytes: the length always fits one byte.
	b = append(b, 1<<3|byte(lenPfx), 0)
	n := len(b)
	b = h.Append(b)
	b[n-1] = byte(len(b) - n)
	return b
}

// Responses are built from parts, in the order of their field numbers. Each part
// appends one field.

// AppendRangeKV appends a found KeyValue in wire form to a RangeResponse.
func AppendRangeKV(b, keyValue []byte) []byte { return appendMessage(b, 2, keyValue) }

// AppendRangeEnd appends what comes after the KeyValues of a RangeResponse.
func AppendRangeEnd(b []byte, more bool, count int64) []byte {
	return appendNumber(appendBool(b, 3, more), 4, uint64(count))
}

// AppendPutPrev appends the KeyValue that a put replaced to a PutResponse.
func AppendPutPrev(b, keyValue []byte) []byte { return appendMessage(b, 2, keyValue) }

// AppendDeleted appends how many keys a DeleteRange deleted to its response.
func AppendDeleted(b []byte, n int64) []byte { return appendNumber(b, 2, uint64(n)) }

// AppendDeletedPrev appends a deleted KeyValue to a DeleteRangeResponse.
func AppendDeletedPrev(b, keyValue []byte) []byte { return appendMessage(b, 3, keyValue) }

// AppendSucceeded appends to a TxnResponse whether its compares held.
func AppendSucceeded(b []byte, ok bool) []byte { return appendBool(b, 2, ok) }

// OpenResult starts the result of one operation in a TxnResponse, a ResponseOp; what
// is appended until CloseResult is the response message of that operation, header and all.
func OpenResult(b []byte, op *kv.Op) ([]byte, Result) {
	num := 0
	switch {
	case op.Range != nil:
		num = 1
	case op.Put != nil:
		num = 2
	case op.Delete != nil:
		num = 3
	case op.Txn != nil:
		num = 4
	}
	var r Result
	b, r.outer = Open(b, 3)
	if num != 0 {
		b, r.inner = Open(b, num)
	}
	return b, r
}

// Result is an open ResponseOp, see OpenResult.
type Result struct{ outer, inner Mark }

// CloseResult ends the result that r opened.
func CloseResult(b []byte, r Result) []byte {
	if r.inner != 0 {
		b = Close(b, r.inner)
	}
	return Close(b, r.outer)
}

// AppendEvent appends an mvccpb.Event. keyValue is the change and prev the KeyValue
// before it, nil if it is not wanted or there was none, both in wire form.
func AppendEvent(b []byte, tombstone bool, keyValue, prev []byte) []byte {
	b = appendBool(b, 1, tombstone) // DELETE is 1
	b = appendMessage(b, 2, keyValue)
	if prev != nil {
		b = appendMessage(b, 3, prev)
	}
	return b
}

// eventSize is the length of what AppendEvent appends.
func eventSize(tombstone bool, keyValue, prev []byte) int {
	n := 1 + sizeVarint(uint64(len(keyValue))) + len(keyValue)
	if tombstone {
		n += 2
	}
	if prev != nil {
		n += 1 + sizeVarint(uint64(len(prev))) + len(prev)
	}
	return n
}

// WatchEventSize is the length of what AppendWatchEvent appends.
func WatchEventSize(tombstone bool, keyValue, prev []byte) int {
	n := eventSize(tombstone, keyValue, prev)
	return 1 + sizeVarint(uint64(n)) + n
}

// AppendWatchEvent appends an event as it stands in a WatchResponse, whose events come
// last: the same bytes serve every watcher that sees the event.
func AppendWatchEvent(b []byte, tombstone bool, keyValue, prev []byte) []byte {
	b = append(b, 11<<3|byte(lenPfx))
	b = binary.AppendUvarint(b, uint64(eventSize(tombstone, keyValue, prev)))
	return AppendEvent(b, tombstone, keyValue, prev)
}

// WatchHead is what a WatchResponse holds before its events.
type WatchHead struct {
	WatchID      int64
	Created      bool
	Canceled     bool
	CompactRev   int64
	CancelReason string
	Fragment     bool
}

// AppendWatchHead appends w, which follows the header.
func AppendWatchHead(b []byte, w *WatchHead) []byte {
	b = appendNumber(b, 2, uint64(w.WatchID))
	b = appendBool(b, 3, w.Created)
	b = appendBool(b, 4, w.Canceled)
	b = appendNumber(b, 5, uint64(w.CompactRev))
	if w.CancelReason != "" {
		b = append(b, 6<<3|byte(lenPfx))
		b = binary.AppendUvarint(b, uint64(len(w.CancelReason)))
		b = append(b, w.CancelReason...)
	}
	return appendBool(b, 7, w.Fragment)
}
