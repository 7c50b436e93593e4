package wire

import "quorate/internal/kv"

// KeyValue is mvccpb.KeyValue.
type KeyValue struct {
	Key     []byte
	Create  int64
	Mod     int64
	Version int64
	Value   []byte
	Lease   kv.LeaseID
}

const (
	kvKey     = 1<<3 | lenPfx
	kvCreate  = 2<<3 | varint
	kvMod     = 3<<3 | varint
	kvVersion = 4<<3 | varint
	kvValue   = 5<<3 | lenPfx
	kvLease   = 6<<3 | varint
)

// DecodeKeyValue decodes b. Key and Value point into it.
func DecodeKeyValue(b []byte) (KeyValue, error) {
	var k KeyValue
	r := reader{b: b}
	for r.next() {
		switch r.tag {
		case kvKey:
			k.Key = r.data
		case kvCreate:
			k.Create = int64(r.v)
		case kvMod:
			k.Mod = int64(r.v)
		case kvVersion:
			k.Version = int64(r.v)
		case kvValue:
			k.Value = r.data
		case kvLease:
			k.Lease = kv.LeaseID(r.v)
		}
	}
	return k, r.err()
}

// Size is the length of what AppendKeyValue appends.
func (k *KeyValue) Size() int {
	return sizeBytes(len(k.Key)) + sizeNumber(uint64(k.Create)) + sizeNumber(uint64(k.Mod)) +
		sizeNumber(uint64(k.Version)) + sizeBytes(len(k.Value)) + sizeNumber(uint64(k.Lease))
}

// AppendKeyValue appends k in wire form.
func AppendKeyValue(b []byte, k *KeyValue) []byte {
	b = appendBytes(b, 1, k.Key)
	b = appendNumber(b, 2, uint64(k.Create))
	b = appendNumber(b, 3, uint64(k.Mod))
	b = appendNumber(b, 4, uint64(k.Version))
	b = appendBytes(b, 5, k.Value)
	return appendNumber(b, 6, uint64(k.Lease))
}

// KeyOf is the key of a KeyValue in wire form, nil if it has none. It relies on the key
// being the first field, as this package and protobuf-go write it.
func KeyOf(keyValue []byte) []byte {
	r := reader{b: keyValue}
	if !r.next() || r.tag != kvKey {
		return nil
	}
	return r.data
}

// LeaseOf is the lease of a KeyValue in wire form.
func LeaseOf(keyValue []byte) kv.LeaseID {
	k, err := DecodeKeyValue(keyValue)
	if err != nil {
		return kv.NoLease
	}
	return k.Lease
}

// AppendWithoutValue appends keyValue, a KeyValue in wire form, without its value: what
// a Range with keys_only returns. All other fields stay as they are.
func AppendWithoutValue(b, keyValue []byte) []byte {
	r := reader{b: keyValue}
	start := 0 // of what is yet to be copied
	for pos := 0; r.next(); pos = len(keyValue) - len(r.b) {
		if r.tag == kvValue {
			b = append(b, keyValue[start:pos]...)
			start = len(keyValue) - len(r.b)
		}
	}
	return append(b, keyValue[start:]...)
}
