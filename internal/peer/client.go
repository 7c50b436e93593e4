package peer

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"time"

	"quorate/internal/kv"
	"quorate/internal/membership"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// Client asks other members what they alone know, at their peer URLs, which it tries in
// turn until one answers. It may be used by any goroutine, and before there is a
// Transport. How long it waits is up to the context. Its methods return ErrUnreachable
// if nobody answers; what the member refuses comes back as the error of package kv that
// it stands for.
type Client struct {
	transport *http.Transport
}

// askConnsMax is how many questions one other member is asked at a time; more wait.
const askConnsMax = 32

// NewClient returns a Client. config is asked for each new connection; it may be nil, or
// return nil, as in Options. localAddr is as there.
func NewClient(config func() *tls.Config, localAddr string) *Client {
	d := newDialer(localAddr, 2*time.Second, config)
	t := d.transport(5 * time.Second)
	// Renewals of leases come many at a time: they keep their connections, and wait for
	// one rather than open thousands.
	t.MaxConnsPerHost, t.MaxIdleConnsPerHost = askConnsMax, askConnsMax
	return &Client{t}
}

// Close ends connections that are kept for later requests.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// Members returns the cluster and its members as the asked one knows them.
func (c *Client) Members(ctx context.Context, urls []string) (cluster membership.ID, ms []membership.Member, err error) {
	resp, data, err := c.ask(ctx, urls, http.MethodGet, pathMembers, nil, nil)
	if err != nil {
		return 0, nil, err
	}
	if err := unexpected(resp, data); err != nil {
		return 0, nil, err
	}
	if cluster, err = membership.ParseID(resp.Header.Get(headerCluster)); err != nil {
		return 0, nil, err
	}
	if err := json.Unmarshal(data, &ms); err != nil {
		return 0, nil, fmt.Errorf("read the list of members: %w", err)
	}
	return cluster, ms, nil
}

// Versions returns the version of the member and that of its cluster, "not_decided" at first.
func (c *Client) Versions(ctx context.Context, urls []string) (server, cluster string, err error) {
	resp, data, err := c.ask(ctx, urls, http.MethodGet, pathVersion, nil, nil)
	if err != nil {
		return "", "", err
	}
	var v versions
	if err := errors.Join(unexpected(resp, data), json.Unmarshal(data, &v)); err != nil {
		return "", "", err
	}
	return v.Server, v.Cluster, nil
}

// Promote asks the leader to make a learner a voter, on behalf of a client with a token (or
// without, ""), and returns the members. Where it is not known what became of the request,
// also for a leader that is stopping, the error is ErrUnreachable.
func (c *Client) Promote(ctx context.Context, urls []string, id membership.ID, token string) ([]membership.Member, error) {
	header := http.Header{}
	if token != "" {
		header.Set("Authorization", token)
	}
	resp, data, err := c.ask(ctx, urls, http.MethodPost, pathPromote+strconv.FormatUint(uint64(id), 10), header, nil)
	if err != nil {
		return nil, err
	}
	switch resp.StatusCode {
	case http.StatusRequestTimeout:
		return nil, kv.ErrTimeout
	case http.StatusNotFound:
		return nil, kv.ErrMemberNotFound
	case http.StatusPreconditionFailed:
		// The one text begins as the other.
		if strings.Contains(string(data), textNotReady) {
			return nil, kv.ErrLearnerNotReady
		}
		if strings.Contains(string(data), textNotLearner) {
			return nil, kv.ErrMemberNotLearner
		}
	}
	switch err := unexpected(resp, data); {
	case errors.Is(err, kv.ErrStopped):
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	case err != nil:
		return nil, err
	}
	var ms []membership.Member
	if err := json.Unmarshal(data, &ms); err != nil {
		return nil, fmt.Errorf("read the list of members: %w", err)
	}
	return ms, nil
}

const typeProto = "application/protobuf"

// RenewLease asks the leader to keep a lease alive, and returns its time to live in seconds.
// Its errors are kv.ErrLeaseNotFound, kv.ErrNotLeader, and else ErrUnreachable, also for one
// who answers, but cannot tell: a leader that is stopping, or does not know yet whether it
// leads. One may ask again, as etcd does.
func (c *Client) RenewLease(ctx context.Context, urls []string, id kv.LeaseID) (ttl int64, err error) {
	q, err := proto.Marshal(&pb.LeaseKeepAliveRequest{ID: int64(id)})
	if err != nil {
		return 0, err
	}
	resp, data, err := c.ask(ctx, urls, http.MethodPost, pathLeases, content(typeProto), q)
	if err != nil {
		return 0, err
	}
	if err := leaseRefusal(resp, data); err != nil {
		return 0, err
	}
	var r pb.LeaseKeepAliveResponse
	if err := proto.Unmarshal(data, &r); err != nil {
		return 0, fmt.Errorf("read the answer about a lease: %w", err)
	}
	if r.ID != int64(id) {
		return 0, errors.New("peer: the answer is about another lease")
	}
	return r.TTL, nil
}

// LeaseTimeToLive asks the leader about a lease; errors are as of RenewLease.
func (c *Client) LeaseTimeToLive(ctx context.Context, urls []string, id kv.LeaseID, keys bool) (*pb.LeaseTimeToLiveResponse, error) {
	q, err := wrapInternal(&pb.LeaseTimeToLiveRequest{ID: int64(id), Keys: keys})
	if err != nil {
		return nil, err
	}
	resp, data, err := c.ask(ctx, urls, http.MethodPost, pathLeasesIn, content(typeProto), q)
	if err != nil {
		return nil, err
	}
	if err := leaseRefusal(resp, data); err != nil {
		return nil, err
	}
	r := new(pb.LeaseTimeToLiveResponse)
	if err := openInternal(data, r); err != nil {
		return nil, fmt.Errorf("read the answer about a lease: %w", err)
	}
	if r.ID != int64(id) {
		return nil, errors.New("peer: the answer is about another lease")
	}
	return r, nil
}

func leaseRefusal(resp *http.Response, data []byte) error {
	err := unexpected(resp, data)
	switch {
	case err == nil:
		return nil
	case resp.StatusCode == http.StatusNotFound:
		return kv.ErrLeaseNotFound
	case strings.Contains(string(data), textNotPrimary):
		return kv.ErrNotLeader
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}

// HashKV returns the member's hash at a revision, 0 is its newest: kv.ErrCompacted,
// kv.ErrFutureRevision.
func (c *Client) HashKV(ctx context.Context, urls []string, rev int64) (*pb.HashKVResponse, error) {
	q := fmt.Appendf(nil, `{"revision":%d}`, rev)
	resp, data, err := c.ask(ctx, urls, http.MethodGet, PathHashKV, content("application/json"), q)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusBadRequest {
		if strings.Contains(string(data), textCompacted) {
			return nil, kv.ErrCompacted
		}
		if strings.Contains(string(data), textFutureRevision) {
			return nil, kv.ErrFutureRevision
		}
	}
	if err := unexpected(resp, data); err != nil {
		return nil, err
	}
	r := new(pb.HashKVResponse)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("read a hash: %w", err)
	}
	return r, nil
}

// DowngradeEnabled reports whether a downgrade of the cluster is under way.
func (c *Client) DowngradeEnabled(ctx context.Context, urls []string) (bool, error) {
	resp, data, err := c.ask(ctx, urls, http.MethodGet, pathDowngrad, nil, nil)
	if err != nil {
		return false, err
	}
	if err := unexpected(resp, data); err != nil {
		return false, err
	}
	return strconv.ParseBool(string(data))
}

// ask returns the answer of the first URL that gives one, whatever it is.
func (c *Client) ask(ctx context.Context, urls []string, method, path string, header http.Header, body []byte) (*http.Response, []byte, error) {
	err := ErrUnreachable
	for _, u := range urls {
		resp, data, failed := c.askURL(ctx, strings.TrimSuffix(u, "/")+path, method, header, body)
		if failed == nil {
			return resp, data, nil
		}
		err = fmt.Errorf("%w: %w", err, failed)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, nil, err
}

// content is the header of a question in one of the types.
func content(contentType string) http.Header { return http.Header{"Content-Type": {contentType}} }

func (c *Client) askURL(ctx context.Context, target, method string, header http.Header, body []byte) (*http.Response, []byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	maps.Copy(req.Header, header)
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return nil, nil, err
	}
	data, err := readAnswer(resp, answerBytesMax)
	if err == nil && resp.StatusCode == http.StatusServiceUnavailable {
		err = errors.New(resp.Status) // it is starting or stopping
	}
	return resp, data, err
}

// readAnswer reads and closes the body of an answer.
func readAnswer(resp *http.Response, limit int64) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = errTooLarge
	}
	return data, errors.Join(err, resp.Body.Close())
}

// unexpected is the error of an answer that is not 200.
func unexpected(resp *http.Response, data []byte) error {
	if resp.StatusCode == http.StatusOK {
		return nil
	}
	if err := toldError(resp.Header); err != nil {
		return err
	}
	return fmt.Errorf("peer: the answer is %q: %s", resp.Status, bytes.TrimSpace(data[:min(len(data), 1<<10)]))
}

// readJSON reads an answer into v.
func readJSON(resp *http.Response, limit int64, v any) error {
	data, err := readAnswer(resp, limit)
	if err != nil {
		return err
	}
	if err := unexpected(resp, data); err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}

func be64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }
