package ctl

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"golang.org/x/text/width"
)

// tablePrinter draws answers that are lists of members or endpoints.
type tablePrinter struct{ w io.Writer }

func (p *tablePrinter) print(answer any) error {
	header, rows, ok := tabulate(answer)
	if !ok {
		return errNoForm(formTable)
	}
	_, err := io.WriteString(p.w, drawTable(header, rows))
	return err
}

// tabulate returns the header and rows of answer, ok false if it is no list.
func tabulate(answer any) (header []string, rows [][]string, ok bool) {
	switch a := answer.(type) {
	case *pb.MemberListResponse:
		header = []string{"ID", "STATUS", "NAME", "PEER ADDRS", "CLIENT ADDRS", "IS LEARNER"}
		for _, m := range a.GetMembers() {
			status := "started"
			if m.GetName() == "" {
				status = "unstarted"
			}
			rows = append(rows, []string{fmt.Sprintf("%x", m.GetID()), status, m.GetName(),
				strings.Join(m.GetPeerURLs(), ","), strings.Join(m.GetClientURLs(), ","), strconv.FormatBool(m.GetIsLearner())})
		}
	case []endpointHealth:
		header = []string{"ENDPOINT", "HEALTH", "TOOK", "ERROR"}
		for _, h := range a {
			rows = append(rows, []string{h.Endpoint, strconv.FormatBool(h.Health), h.Took, h.Error})
		}
	case []endpointHash:
		header = []string{"ENDPOINT", "HASH", "HASH REVISION"}
		for _, h := range a {
			rows = append(rows, []string{h.Endpoint, fmt.Sprint(h.HashKV.GetHash()), fmt.Sprint(h.HashKV.GetHashRevision())})
		}
	case []endpointStatus:
		header = []string{"ENDPOINT", "ID", "VERSION", "STORAGE VERSION", "DB SIZE", "IN USE", "PERCENTAGE NOT IN USE", "QUOTA",
			"IS LEADER", "IS LEARNER", "RAFT TERM", "RAFT INDEX", "RAFT APPLIED INDEX", "ERRORS",
			"DOWNGRADE TARGET VERSION", "DOWNGRADE ENABLED"}
		for _, s := range a {
			rows = append(rows, statusRow(s))
		}
	default:
		return nil, nil, false
	}
	return header, rows, true
}

func statusRow(s endpointStatus) []string {
	r := s.Status
	unused := int64(0)
	if r.GetDbSize() > 0 {
		unused = 100 - r.GetDbSizeInUse()*100/r.GetDbSize()
	}
	return []string{
		s.Endpoint,
		fmt.Sprintf("%x", r.GetHeader().GetMemberId()),
		r.GetVersion(),
		r.GetStorageVersion(),
		byteSize(r.GetDbSize()),
		byteSize(r.GetDbSizeInUse()),
		fmt.Sprintf("%d%%", unused),
		byteSize(r.GetDbSizeQuota()),
		strconv.FormatBool(r.GetLeader() == r.GetHeader().GetMemberId()),
		strconv.FormatBool(r.GetIsLearner()),
		fmt.Sprint(r.GetRaftTerm()),
		fmt.Sprint(r.GetRaftIndex()),
		fmt.Sprint(r.GetRaftAppliedIndex()),
		strings.Join(r.GetErrors(), ", "),
		r.GetDowngradeInfo().GetTargetVersion(),
		strconv.FormatBool(r.GetDowngradeInfo().GetEnabled()),
	}
}

// byteSize writes n in decimal units with at most three digits: 20 kB, 2.1 GB.
func byteSize(n int64) string {
	if n < 0 {
		n = 0
	}
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n), 0
	for v >= 1000 && unit < 6 {
		v /= 1000
		unit++
	}
	// Rounded before it is known whether the digit after the point is shown, as etcdctl's sizes are.
	v = float64(int64(v*10+0.5)) / 10
	digits := 0
	if v < 10 {
		digits = 1
	}
	return fmt.Sprintf("%.*f %cB", digits, v, " kMGTPE"[unit])
}

// drawTable draws header, centred, above rows, aligned right.
func drawTable(header []string, rows [][]string) string {
	widths := make([]int, len(header))
	for _, row := range append([][]string{header}, rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], cells(cell))
		}
	}
	var b strings.Builder
	rule := func(left, mid, right string) {
		b.WriteString(left)
		for i, w := range widths {
			if i > 0 {
				b.WriteString(mid)
			}
			b.WriteString(strings.Repeat("─", w+2))
		}
		b.WriteString(right + "\n")
	}
	line := func(row []string, left func(gap int) int) {
		for i, cell := range row {
			gap := widths[i] - cells(cell)
			l := left(gap)
			fmt.Fprintf(&b, "│ %*s%s%*s ", l, "", cell, gap-l, "")
		}
		b.WriteString("│\n")
	}
	rule("┌", "┬", "┐")
	line(header, func(gap int) int { return gap / 2 })
	if len(rows) > 0 {
		rule("├", "┼", "┤")
	}
	for _, row := range rows {
		line(row, func(gap int) int { return gap })
	}
	rule("└", "┴", "┘")
	return b.String()
}

// cells returns how many columns of a terminal s takes.
func cells(s string) int {
	n := 0
	for _, r := range s {
		n++
		if k := width.LookupRune(r).Kind(); k == width.EastAsianWide || k == width.EastAsianFullwidth {
			n++
		}
	}
	return n
}
