package kv

// SortOrder and SortTarget are the API's enumerations by number.
type (
	SortOrder  int32
	SortTarget int32
)

const (
	SortNone SortOrder = iota
	SortAscend
	SortDescend
)

const (
	SortByKey SortTarget = iota
	SortByVersion
	SortByCreate
	SortByMod
	SortByValue
)

// Range asks for the keys of a Span as they are at Revision (0 or less: now).
type Range struct {
	Span
	Limit        int64 // 0: no limit
	Revision     int64
	SortOrder    SortOrder
	SortTarget   SortTarget
	Serializable bool
	KeysOnly     bool
	CountOnly    bool
	// Bounds on the mod and create revision of returned keys; 0: no bound.
	MinMod, MaxMod       int64
	MinCreate, MaxCreate int64
}

// Filtered reports whether r bounds revisions, so that a walk cannot stop at Limit.
func (r *Range) Filtered() bool {
	return r.MinMod != 0 || r.MaxMod != 0 || r.MinCreate != 0 || r.MaxCreate != 0
}

// Sorted reports whether r wants an order other than ascending by key.
func (r *Range) Sorted() bool {
	return r.SortOrder == SortDescend || r.SortTarget != SortByKey
}

// Put sets Key. A zero Lease detaches the key from the lease it had.
type Put struct {
	Key         []byte
	Value       []byte
	Lease       LeaseID
	PrevKV      bool
	IgnoreValue bool // keep the current value; Value must be empty
	IgnoreLease bool // keep the current lease; Lease must be zero
}

// Delete deletes every key of a Span.
type Delete struct {
	Span
	PrevKV bool
}

// Compact drops every change before Revision that a later one has superseded.
type Compact struct {
	Revision int64
	Physical bool // wait until the space is given back
}

// CompareResult and CompareTarget are the API's enumerations by number.
type (
	CompareResult int32
	CompareTarget int32
)

const (
	CompareEqual CompareResult = iota
	CompareGreater
	CompareLess
	CompareNotEqual
)

const (
	CompareVersion CompareTarget = iota
	CompareCreate
	CompareMod
	CompareValue
	CompareLease
)

// Compare is one condition of a Txn; it must hold for every key of its Span.
// Number is what version, create and mod revision or lease are compared with.
type Compare struct {
	Span
	Result CompareResult
	Target CompareTarget
	Number int64
	Value  []byte
}

// Op is one operation of a Txn: exactly one field is set. All nil is an operation
// that the client left empty, which the API answers with ErrKeyNotFound.
type Op struct {
	Range  *Range
	Put    *Put
	Delete *Delete
	Txn    *Txn
}

// Txn runs Success if all Compares hold, else Failure, as one change.
type Txn struct {
	Compares []Compare
	Success  []Op
	Failure  []Op
}

// Puts reports whether t, or a transaction in it, holds a put.
func (t *Txn) Puts() bool {
	for _, ops := range [][]Op{t.Success, t.Failure} {
		for _, op := range ops {
			if op.Put != nil || op.Txn != nil && op.Txn.Puts() {
				return true
			}
		}
	}
	return false
}
