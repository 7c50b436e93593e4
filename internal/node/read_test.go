package node

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"quorate/internal/kv"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// TestAnsweredWriteIsVisible: a write is in every View that is taken after its answer. A
// member that is alone asks nobody before it reads, so nothing else would make up for it.
func TestAnsweredWriteIsVisible(t *testing.T) {
	n := run(t, testConfig(t.TempDir()))
	write := func(key, value string) error {
		body, err := proto.Marshal(&pb.PutRequest{Key: []byte(key), Value: []byte(value)})
		if err != nil {
			return err
		}
		res, err := n.Propose(context.Background(), wire.FieldPut, body)
		if err != nil {
			return err
		}
		if err := n.ReadIndex(context.Background()); err != nil {
			return err
		}
		v := n.View()
		defer v.Release()
		if v.Rev() < res.Rev {
			return fmt.Errorf("%s=%s was put at revision %d, and a read is of revision %d", key, value, res.Rev, v.Rev())
		}
		seen := ""
		_, err = v.Range(&kv.Range{Span: kv.Span{Key: []byte(key)}}, func(b []byte) { seen = string(b) })
		if err == nil && seen == "" {
			err = fmt.Errorf("%s was put and is not there", key)
		}
		return err
	}
	var clients sync.WaitGroup
	for c := range 64 {
		clients.Go(func() {
			for i := range 50 {
				if err := write(fmt.Sprint(c, "/", i), "x"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	clients.Wait()
}
