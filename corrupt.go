package quorate

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"time"

	"quorate/internal/kv"
	"quorate/internal/peer"
	"quorate/internal/wire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// A contentHash is what the keys and values of one member come to at a revision. Two of the same
// revision after the same compaction are equal, or one of the members has been damaged.
type contentHash struct {
	sum               uint32
	revision, compact int64
}

// ownHash is the hash of this member now.
func (s *Server) ownHash() (h contentHash, err error) {
	v := s.node.View()
	defer v.Release()
	h.sum, h.compact, h.revision, err = v.HashKV(0)
	return h, err
}

// A peerHash is the hash of another member, or why there is none.
type peerHash struct {
	id uint64
	contentHash
	newest int64 // revision of the member when it was asked
	err    error
}

// requestBound is etcd's bound on a request.
func (s *Server) requestBound() time.Duration { return 5*time.Second + 2*s.cfg.ElectionTimeout }

// peerHashes asks all other members for their hash at a revision, at the same time.
func (s *Server) peerHashes(ctx context.Context, revision int64) []peerHash {
	ctx, cancel := context.WithTimeout(ctx, s.requestBound())
	defer cancel()
	members := s.node.Members()
	hashes := make([]peerHash, 0, len(members)) // with room for all, so that none moves
	var asking sync.WaitGroup
	for _, m := range members {
		if m.ID == s.node.MemberID() {
			continue
		}
		hashes = append(hashes, peerHash{id: m.ID})
		h := &hashes[len(hashes)-1]
		asking.Go(func() {
			var r *pb.HashKVResponse
			if r, h.err = s.asks.HashKV(ctx, m.PeerURLs, revision); h.err == nil {
				h.contentHash = contentHash{r.Hash, revision, r.CompactRevision}
				h.newest = r.GetHeader().GetRevision()
			}
		})
	}
	asking.Wait()
	return hashes
}

// checkAtStart is the feature InitialCorruptCheck: it refuses to serve clients from data that
// differs from another member's. A member that cannot be asked, or that has not the revision, says
// nothing.
func (s *Server) checkAtStart(ctx context.Context) error {
	own, err := s.ownHash()
	if err != nil {
		return fmt.Errorf("hash the data for the check at the start: %w", err)
	}
	if own.revision <= 1 {
		return nil // nothing has been written
	}
	for _, h := range s.peerHashes(ctx, own.revision) {
		id := strconv.FormatUint(h.id, 16)
		switch {
		case h.err != nil:
			s.log.Warn("cannot compare the data with a member", "remote-peer-id", id, "local-member-revision", own.revision, "error", h.err)
		case h.compact != own.compact:
			s.log.Warn("cannot compare the data with a member: it was compacted at another revision", "remote-peer-id", id,
				"local-member-compact-revision", own.compact, "remote-peer-compact-revision", h.compact)
		case h.sum != own.sum:
			return fmt.Errorf("%x found data inconsistency with peers: at revision %d its data in %s has hash %d, that of member %s has hash %d; "+
				"restore the member that is wrong from a snapshot, or remove it and add it again with an empty data directory",
				s.node.MemberID(), own.revision, s.cfg.DataDir, own.sum, id, h.sum)
		}
	}
	s.log.Info("initial corruption checking passed; no corruption")
	return nil
}

// hashesWhenChecked keeps our hash from the others until checkAtStart is over: a member that will
// refuse to serve must not make the leader end writing.
func (s *Server) hashesWhenChecked(peers http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == peer.PathHashKV && !s.checked.Load() {
			http.Error(w, "the member compares its data with the others' first", http.StatusServiceUnavailable)
			return
		}
		peers.ServeHTTP(w, r)
	})
}

// checkOften is --corrupt-check-time: while this member leads, it compares the others' data with
// its own, and raises the alarm CORRUPT when some differ, which ends writing. It returns when the
// server stops.
func (s *Server) checkOften() {
	ctx, cancel := context.WithCancel(context.Background())
	s.serving.Go(func() {
		defer cancel()
		<-s.stopping
	})
	tick := time.NewTicker(s.cfg.CorruptCheckTime)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if s.node.Leader() != s.node.MemberID() {
			continue
		}
		if err := s.checkNow(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("failed to check whether all members have the same data", "error", err)
		}
	}
}

// checkNow compares the others with this member, which leads.
func (s *Server) checkNow(ctx context.Context) error {
	before, err := s.ownHash()
	if err != nil {
		return err
	}
	hashes := s.peerHashes(ctx, before.revision)
	// What others had when they were asked this member has after this.
	read, cancel := context.WithTimeout(ctx, s.requestBound())
	defer cancel()
	if err := s.node.ReadIndex(read); err != nil {
		return err
	}
	now, err := s.ownHash()
	if err != nil {
		return err
	}
	if now.revision == before.revision && now.compact == before.compact && now.sum != before.sum {
		s.log.Error("the data of this member changed without a write", "revision", now.revision, "hash-1", before.sum, "hash-2", now.sum)
		return s.alarmCorrupt(ctx, s.node.MemberID())
	}
	checked := 0
	for _, h := range hashes {
		if h.err != nil {
			if !errors.Is(h.err, kv.ErrFutureRevision) { // it is behind
				s.log.Warn("a member does not tell its hash", "remote-peer-id", strconv.FormatUint(h.id, 16), "error", h.err)
			}
			continue
		}
		checked++
		why := ""
		switch {
		case h.newest > now.revision:
			why = "it has a revision that its leader does not have"
		case h.compact > now.compact:
			why = "it is compacted at a revision at which its leader is not"
		case h.compact == before.compact && h.sum != before.sum:
			why = "its hash is another"
		default:
			continue
		}
		s.log.Error("a member's data differs from the leader's", "remote-peer-id", strconv.FormatUint(h.id, 16), "why", why, "revision", before.revision,
			"leader-revision", now.revision, "leader-compact-revision", now.compact, "leader-hash", before.sum,
			"follower-revision", h.newest, "follower-compact-revision", h.compact, "follower-hash", h.sum)
		return s.alarmCorrupt(ctx, h.id)
	}
	s.log.Info("finished peer corruption check", "number-of-peers-checked", checked)
	return nil
}

// alarmCorrupt raises the alarm CORRUPT for a member, unless it is raised.
func (s *Server) alarmCorrupt(ctx context.Context, id uint64) error {
	for _, a := range s.node.Status().Alarms {
		if a.MemberID == id && a.Alarm == pb.AlarmType_CORRUPT {
			return nil
		}
	}
	body, err := proto.Marshal(&pb.AlarmRequest{Action: pb.AlarmRequest_ACTIVATE, MemberID: id, Alarm: pb.AlarmType_CORRUPT})
	if err != nil {
		return err
	}
	res, err := s.node.Propose(ctx, wire.FieldAlarm, body)
	return errors.Join(err, res.Err)
}
