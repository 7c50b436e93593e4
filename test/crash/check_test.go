package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"go.etcd.io/etcd/api/v3/mvccpb"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// checker knows what must be in the store.
type checker struct {
	model  *model
	leases map[int64]bool
	rounds int

	acked, doubtful, happened int // operations; of the doubtful ones, those that took place
}

func (c *checker) leasesOf(writer int) []int64 {
	var ids []int64
	for id := range c.leases {
		if id>>32 == int64(writer+1) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// check holds a server that was started again against the record of what was asked of the
// one before it.
func (c *checker) check(conn *grpc.ClientConn, l *load, r *rand.Rand) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	kv := pb.NewKVClient(conn)
	resp, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte("canary")})
	if err != nil {
		return fmt.Errorf("read after the restart: %w", err)
	}
	rev := resp.Header.Revision
	for _, ops := range l.ops {
		for _, o := range ops {
			if o.fate == acked && max(o.rev, -o.rev) > rev {
				return fmt.Errorf("the revision went back: it is %d, but: %v", rev, o)
			}
		}
	}
	if n := len(l.watched); n > 0 && l.watched[n-1].Kv.ModRevision > rev {
		return fmt.Errorf("the revision went back: it is %d, but a watcher saw %d", rev, l.watched[n-1].Kv.ModRevision)
	}
	before := c.model.rev
	evs, err := history(ctx, conn, before+1, rev)
	if err != nil {
		return err
	}
	if err := c.replay(evs, l); err != nil {
		return err
	}
	if c.model.rev != rev {
		return fmt.Errorf("the server says revision %d, its history ends at %d", rev, c.model.rev)
	}
	if err := sameEvents(l.watched, evs[:min(len(evs), len(l.watched))]); err != nil {
		return fmt.Errorf("what a watcher saw before the crash is not what history says after it: %w", err)
	}
	if err := c.settleLeases(ctx, conn, l); err != nil {
		return err
	}
	if err := c.settleCompactions(ctx, kv, l); err != nil {
		return err
	}
	return c.compare(ctx, conn, r)
}

// history reads every event from revision from to revision to.
func history(ctx context.Context, conn *grpc.ClientConn, from, to int64) ([]*mvccpb.Event, error) {
	if from > to {
		return nil, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := pb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(watchFrom(from)); err != nil {
		return nil, err
	}
	var evs []*mvccpb.Event
	for len(evs) == 0 || evs[len(evs)-1].Kv.ModRevision < to {
		resp, err := stream.Recv()
		if err != nil {
			return nil, fmt.Errorf("watch from %d to %d: %w", from, to, err)
		}
		if resp.Canceled {
			return nil, fmt.Errorf("watch from %d to %d was canceled: %v", from, to, resp)
		}
		evs = append(evs, resp.Events...)
	}
	return evs, nil
}

// replay takes new history over, revision by revision, finding for each the operation that
// made it.
func (c *checker) replay(evs []*mvccpb.Event, l *load) error {
	byRev := map[int64]*op{}
	var open []*op // in doubt, and revocations, which do not say whether they changed anything
	for _, ops := range l.ops {
		for _, o := range ops {
			switch {
			case o.fate == acked && o.rev > 0:
				if other := byRev[o.rev]; other != nil {
					return fmt.Errorf("two operations were told one revision:\n  %v\n  %v", other, o)
				}
				byRev[o.rev] = o
			case o.fate == doubt && o.wishes != nil:
				open = append(open, o)
			case o.fate == acked && o.rev < 0:
				open = append(open, o)
			}
		}
	}
	for len(evs) > 0 {
		rev, n := evs[0].Kv.ModRevision, 1
		for n < len(evs) && evs[n].Kv.ModRevision == rev {
			n++
		}
		if rev != c.model.rev+1 {
			return fmt.Errorf("revision %d follows %d in history", rev, c.model.rev)
		}
		o := byRev[rev]
		if o == nil {
			i := slices.IndexFunc(open, func(o *op) bool {
				return (o.rev == 0 || -o.rev >= rev) && c.made(o, rev, evs[:n]) == nil
			})
			if i < 0 {
				return fmt.Errorf("nobody asked for revision %d: %s\nopen operations:\n%s", rev, eventsText(evs[:n]), opsText(open))
			}
			o = open[i]
			open = slices.Delete(open, i, i+1)
		} else if err := c.made(o, rev, evs[:n]); err != nil {
			return err
		}
		o.found = true
		c.model.apply(rev, evs[:n])
		evs = evs[n:]
	}
	for rev, o := range byRev {
		if !o.found {
			return fmt.Errorf("lost: %v; history has no revision %d", o, rev)
		}
	}
	for _, ops := range l.ops {
		for _, o := range ops {
			switch {
			case o.fate == acked:
				c.acked++
			case o.fate == doubt:
				c.doubtful++
				if o.found {
					c.happened++
				}
			}
		}
	}
	return nil
}

// made says whether the operation, done at revision rev, makes these events.
func (c *checker) made(o *op, rev int64, evs []*mvccpb.Event) error {
	if o.guarded != "" {
		if mod := c.model.live[o.guarded].GetModRevision(); mod != o.guardMod {
			return fmt.Errorf("%v\nbut the key was last changed at %d", o, mod)
		}
	}
	if err := sameEvents(c.model.events(rev, o.wishes(c.model)), evs); err != nil {
		return fmt.Errorf("%v\nhistory says otherwise: %w", o, err)
	}
	return nil
}

func sameEvents(want, got []*mvccpb.Event) error {
	if len(want) != len(got) {
		return fmt.Errorf("%d events, want %d\n  is        %s\n  should be %s", len(got), len(want), eventsText(got), eventsText(want))
	}
	for i := range want {
		if want[i].Type != got[i].Type || !proto.Equal(want[i].Kv, got[i].Kv) {
			return fmt.Errorf("event %d\n  is        %.300s\n  should be %.300s", i, got[i].String(), want[i].String())
		}
	}
	return nil
}

// settleLeases follows grants and revocations, asks the server where the record leaves room,
// and compares.
func (c *checker) settleLeases(ctx context.Context, conn *grpc.ClientConn, l *load) error {
	client := pb.NewLeaseClient(conn)
	resp, err := client.LeaseLeases(ctx, &pb.LeaseLeasesRequest{})
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	there := map[int64]bool{}
	for _, s := range resp.Leases {
		there[s.ID] = true
	}
	for _, ops := range l.ops {
		for _, o := range ops {
			id := o.grant + o.revoke
			switch {
			case id == 0 || o.fate == refused:
			case o.fate == doubt:
				// It is the writer's last, so the server's word is what counts; but a revocation
				// that deleted keys did take place.
				if o.found && there[id] {
					return fmt.Errorf("%v\ndeleted keys, but the lease is there", o)
				}
				if there[id] {
					c.leases[id] = true
				} else {
					delete(c.leases, id)
				}
			case o.grant != 0:
				c.leases[id] = true
			default:
				delete(c.leases, id)
			}
		}
	}
	for id := range c.leases {
		if !there[id] {
			return fmt.Errorf("lost: lease %d", id)
		}
	}
	for id := range there {
		if !c.leases[id] {
			return fmt.Errorf("lease %d is there, which nobody granted or which was revoked", id)
		}
	}
	for id, keys := range c.model.attached {
		if len(keys) > 0 && !c.leases[id] {
			return fmt.Errorf("lease %d is gone, but %d keys are attached to it", id, len(keys))
		}
		if !c.leases[id] {
			continue
		}
		ttl, err := client.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: id, Keys: true})
		if err != nil {
			return fmt.Errorf("lease %d: %w", id, err)
		}
		if len(ttl.Keys) != len(keys) {
			return fmt.Errorf("lease %d has %d keys, should have %d", id, len(ttl.Keys), len(keys))
		}
		for _, key := range ttl.Keys {
			if !keys[string(key)] {
				return fmt.Errorf("lease %d has key %s, which is not attached to it", id, key)
			}
		}
		if ttl.GrantedTTL != 1_000_000 {
			return fmt.Errorf("lease %d has TTL %d", id, ttl.GrantedTTL)
		}
	}
	return nil
}

// settleCompactions follows the one writer that compacts.
func (c *checker) settleCompactions(ctx context.Context, kv pb.KVClient, l *load) error {
	compacted := c.model.compacted
	for _, o := range l.ops[0] {
		if o.compact == 0 || o.fate == refused {
			continue
		}
		_, err := kv.Range(ctx, &pb.RangeRequest{Key: []byte("canary"), Revision: o.compact - 1})
		gone := status.Code(err) == codes.OutOfRange
		if err != nil && !gone {
			return err
		}
		if o.fate == acked && !gone {
			return fmt.Errorf("lost: %v: revision %d can be read", o, o.compact-1)
		}
		if gone {
			compacted = max(compacted, o.compact)
		}
	}
	if compacted > c.model.compacted {
		c.model.trim(compacted)
	}
	return nil
}

// compare holds the whole store against the model, now and at some older revisions.
func (c *checker) compare(ctx context.Context, conn *grpc.ClientConn, r *rand.Rand) error {
	m := c.model
	revs := []int64{m.rev, max(m.compacted, 1)}
	for range 3 {
		revs = append(revs, max(m.compacted, 1)+r.Int64N(m.rev-max(m.compacted, 1)+1))
	}
	for _, rev := range revs {
		resp, err := pb.NewKVClient(conn).Range(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: rev})
		if err != nil {
			return fmt.Errorf("read everything at revision %d (compacted %d, now %d): %w", rev, m.compacted, m.rev, err)
		}
		want := m.at(rev)
		if len(resp.Kvs) != len(want) {
			return fmt.Errorf("%d keys at revision %d, should be %d", len(resp.Kvs), rev, len(want))
		}
		for i, kv := range resp.Kvs {
			if !proto.Equal(kv, want[i]) {
				return fmt.Errorf("at revision %d\n  is        %.300s\n  should be %.300s", rev, kv.String(), want[i].String())
			}
		}
		hash, err := pb.NewMaintenanceClient(conn).HashKV(ctx, &pb.HashKVRequest{Revision: rev})
		if err != nil {
			return fmt.Errorf("HashKV at revision %d: %w", rev, err)
		}
		if rev == m.compacted {
			continue // may be answered by the compaction before: see the differential test
		}
		sum, err := m.hash(rev)
		if err != nil {
			return err
		}
		if compacted := max(m.compacted, hash.CompactRevision); sum != hash.Hash || compacted != m.compacted {
			return fmt.Errorf("HashKV at revision %d is %d (compact revision %d), should be %d (compact revision %d)", rev, hash.Hash, hash.CompactRevision, sum, m.compacted)
		}
	}
	// The same history, seen from an older revision.
	from := max(m.compacted, 0) + 1 + r.Int64N(m.rev-max(m.compacted, 0))
	evs, err := history(ctx, conn, from, m.rev)
	if err != nil {
		return err
	}
	var want []*mvccpb.Event
	for _, ch := range m.changes {
		if ch.main < from {
			continue
		}
		ev := &mvccpb.Event{Kv: ch.kv}
		if ch.tombstone {
			ev.Type, ev.Kv = mvccpb.Event_DELETE, &mvccpb.KeyValue{Key: ch.kv.Key, ModRevision: ch.main}
		}
		want = append(want, ev)
	}
	if err := sameEvents(want, evs); err != nil {
		return fmt.Errorf("history from revision %d: %w", from, err)
	}
	if m.live["canary"] == nil {
		return errors.New("the model has lost its canary")
	}
	return nil
}

func eventsText(evs []*mvccpb.Event) string {
	var b strings.Builder
	for i, ev := range evs {
		if i == 6 {
			fmt.Fprintf(&b, "… %d in all", len(evs))
			break
		}
		fmt.Fprintf(&b, "%v %s@%d %.16q lease %d; ", ev.Type, ev.Kv.Key, ev.Kv.ModRevision, ev.Kv.Value, ev.Kv.Lease)
	}
	return b.String()
}

func opsText(ops []*op) string {
	var b strings.Builder
	for _, o := range ops {
		fmt.Fprintf(&b, "  %v\n", o)
	}
	return b.String()
}
