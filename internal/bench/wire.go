package bench

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// The calls that are measured.
const (
	methodRange       = "/etcdserverpb.KV/Range"
	methodPut         = "/etcdserverpb.KV/Put"
	methodTxn         = "/etcdserverpb.KV/Txn"
	methodLeaseGrant  = "/etcdserverpb.Lease/LeaseGrant"
	methodLeaseRevoke = "/etcdserverpb.Lease/LeaseRevoke"
	methodKeepAlive   = "/etcdserverpb.Lease/LeaseKeepAlive"
	methodWatch       = "/etcdserverpb.Watch/Watch"
)

// rawCodec passes messages through as bytes: requests are encoded once, by hand, and of responses
// only what a workload needs is looked at.
type rawCodec struct{}

var _ encoding.CodecV2 = rawCodec{}

// Name says proto, since that is what the bytes are.
func (rawCodec) Name() string { return "proto" }

// Marshal takes a []byte, which the caller must leave alone until the call has succeeded.
func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	b, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("bench: cannot send a %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(b)}, nil
}

// Unmarshal takes a *[]byte and reuses its memory; nil discards the message.
func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	b, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("bench: cannot receive a %T", v)
	}
	if b == nil {
		return nil
	}
	*b = (*b)[:0]
	for _, part := range data {
		*b = append(*b, part.ReadOnlyData()...)
	}
	return nil
}

// Encoders append a field to a message; like proto3, they leave out what is empty.

func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendBytes(b, v)
}

func appendInt(b []byte, field protowire.Number, v int64) []byte {
	if v == 0 {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.VarintType)
	return protowire.AppendVarint(b, uint64(v))
}

func appendBool(b []byte, field protowire.Number, v bool) []byte {
	return appendInt(b, field, int64(protowire.EncodeBool(v)))
}

// appendMessage appends a message in a message, also an empty one.
func appendMessage(b []byte, field protowire.Number, m []byte) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendBytes(b, m)
}

// appendPut appends a PutRequest.
func appendPut(b, key, value []byte, lease int64) []byte {
	b = appendBytes(b, 1, key)
	b = appendBytes(b, 2, value)
	return appendInt(b, 3, lease)
}

// rangeFlags are the fields of a RangeRequest that flags set.
type rangeFlags struct {
	limit                             int64
	serializable, keysOnly, countOnly bool
}

// appendRange appends a RangeRequest.
func appendRange(b, key, end []byte, f rangeFlags) []byte {
	b = appendBytes(b, 1, key)
	b = appendBytes(b, 2, end)
	b = appendInt(b, 3, f.limit)
	b = appendBool(b, 7, f.serializable)
	b = appendBool(b, 8, f.keysOnly)
	return appendBool(b, 9, f.countOnly)
}

// errTruncated is returned for a response that is no message.
var errTruncated = errors.New("malformed response")

// fields calls f with each field of message m: v of a varint field, or b, not nil, of a field of
// bytes. Fields of other kinds are passed over.
func fields(m []byte, f func(field protowire.Number, v uint64, b []byte) error) error {
	for len(m) > 0 {
		num, kind, n := protowire.ConsumeTag(m)
		if n < 0 {
			return errTruncated
		}
		m = m[n:]
		var (
			v   uint64
			sub []byte
		)
		switch kind {
		case protowire.VarintType:
			v, n = protowire.ConsumeVarint(m)
		case protowire.BytesType:
			sub, n = protowire.ConsumeBytes(m)
		default:
			n = protowire.ConsumeFieldValue(num, kind, m)
		}
		if n < 0 {
			return errTruncated
		}
		m = m[n:]
		if kind != protowire.VarintType && kind != protowire.BytesType {
			continue
		}
		if err := f(num, v, sub); err != nil {
			return err
		}
	}
	return nil
}

// rangeCounts returns how many keys a RangeResponse brought and how many it counted.
func rangeCounts(m []byte) (kvs, count int64, err error) {
	err = fields(m, func(field protowire.Number, v uint64, b []byte) error {
		switch {
		case field == 2 && b != nil:
			kvs++
		case field == 4 && b == nil:
			count = int64(v)
		}
		return nil
	})
	return kvs, count, err
}

// headerRevision returns the revision of the ResponseHeader in field 1 of m.
func headerRevision(m []byte) (rev int64, err error) {
	err = fields(m, func(field protowire.Number, _ uint64, b []byte) error {
		if field != 1 {
			return nil
		}
		return fields(b, func(field protowire.Number, v uint64, _ []byte) error {
			if field == 3 {
				rev = int64(v)
			}
			return nil
		})
	})
	return rev, err
}

// intField returns the value of a varint field of m, 0 if it is absent.
func intField(m []byte, want protowire.Number) (value int64, err error) {
	err = fields(m, func(field protowire.Number, v uint64, _ []byte) error {
		if field == want {
			value = int64(v)
		}
		return nil
	})
	return value, err
}

// stampSize is the length of a time in a value.
const stampSize = 8

// appendStamp puts a time into the first bytes of value, which must be at least stampSize long.
func putStamp(value []byte, t time.Duration) {
	for i := range stampSize {
		value[i] = byte(t >> (8 * i))
	}
}

// stamp returns the time that putStamp put into value, false if value is too short.
func stamp(value []byte) (time.Duration, bool) {
	if len(value) < stampSize {
		return 0, false
	}
	var t time.Duration
	for i := range stampSize {
		t |= time.Duration(value[i]) << (8 * i)
	}
	return t, true
}

// appendVarint appends a number without a tag.
func appendVarint(b []byte, v int64) []byte { return protowire.AppendVarint(b, uint64(v)) }

// seenRevision returns the mod revision of the key that the range in the failure branch of a
// transaction read, 0 if there is none.
func seenRevision(m []byte) (rev int64, err error) {
	in := func(want protowire.Number, f func(b []byte) error) func(protowire.Number, uint64, []byte) error {
		return func(field protowire.Number, _ uint64, b []byte) error {
			if field != want {
				return nil
			}
			return f(b)
		}
	}
	// TxnResponse.responses(3) > ResponseOp.response_range(1) > RangeResponse.kvs(2) > KeyValue.mod_revision(3)
	err = fields(m, in(3, func(op []byte) error {
		return fields(op, in(1, func(resp []byte) error {
			return fields(resp, in(2, func(kv []byte) error {
				rev, err = intField(kv, 3)
				return err
			}))
		}))
	}))
	return rev, err
}
