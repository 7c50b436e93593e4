package quorate

import (
	"context"
	"errors"
	"fmt"

	"quorate/internal/kv"
	"quorate/internal/node"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// view is the member as the HTTP probes see it.
type view struct{ *node.Node }

func (v view) Alarms() []*pb.AlarmMember { return v.Status().Alarms }

func (v view) Versions() (cluster, storage string) {
	s := v.Status()
	return s.ClusterVersion, s.StorageVersion
}

// Read reads one key of the store, as etcd's probes do.
func (v view) Read(ctx context.Context, serializable bool) error {
	if !serializable {
		if err := v.ReadIndex(ctx); err != nil {
			return etcdError(err)
		}
	}
	state := v.View()
	defer state.Release()
	_, err := state.Range(&kv.Range{Span: kv.Span{Key: []byte{0}}, Limit: 1, KeysOnly: true}, func([]byte) {})
	return etcdError(err)
}

// keyCount is how many keys there are, at no more than the cost of a lookup.
func keyCount(n *node.Node) int64 {
	v := n.View()
	defer v.Release()
	found, err := v.Range(&kv.Range{Span: kv.Span{Key: []byte{0}, End: []byte{0}}, CountOnly: true}, func([]byte) {})
	if err != nil {
		return 0 // not of the newest revision
	}
	return found.Count
}

// etcdError gives an error of the member the prefix that etcd's have in probes.
func etcdError(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("etcdserver: %w", err)
}
