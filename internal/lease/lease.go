// Package lease keeps leases: which exist, which keys hang on them, and when they end.
package lease
