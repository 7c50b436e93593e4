package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	devMembersMax = 9

	// devPoll is how often the members are asked who leads, devAnswer how long they have for it.
	devPoll   = 200 * time.Millisecond
	devAnswer = time.Second
	// devStop is how long a member has to stop in order before it is killed.
	devStop = 10 * time.Second
)

// devOptions say which cluster quorate dev starts.
type devOptions struct {
	members  int
	basePort int      // the first member's client port; its peer port is the next, and so on
	dir      string   // "": a temporary one, removed in the end
	flags    []string // further flags of serve, for every member
}

func devCommand(group string) *cobra.Command {
	var o devOptions
	cmd := &cobra.Command{
		Use:     "dev [--members n] [-- flags of serve]",
		Short:   "Runs a cluster of members on this machine, for trying things out",
		GroupID: group,
		Long: `Starts members on this machine that find each other, says who leads and how to reach them, reports
when a member ends or the leader changes, and stops them all on ctrl-C. The members listen on 127.0.0.1
alone, without certificates, and die with this process.

What a cluster has in --data-dir it serves again when started with the same --members and --base-port.
Flags of serve after "--" go to every member.`,
		Example: `  quorate dev --members 3
  quorate dev --members 3 --data-dir /tmp/three -- --heartbeat-interval=50 --election-timeout=500`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if n := cmd.ArgsLenAtDash(); n > 0 || n < 0 && len(args) > 0 {
				return fmt.Errorf("%q is no argument of dev; flags for the members stand after --", args[0])
			}
			o.flags = args
			if err := o.validate(); err != nil {
				return err
			}
			cmd.SilenceUsage = true
			return runDev(cmd.OutOrStdout(), o)
		},
	}
	fs := cmd.Flags()
	fs.IntVar(&o.members, "members", 3, "how many members to start")
	fs.IntVar(&o.basePort, "base-port", 2379, "client port of the first member; each member takes two ports in a row")
	fs.StringVar(&o.dir, "data-dir", "", "directory for the members' data and logs (default: a temporary one, removed in the end)")
	return cmd
}

func (o devOptions) validate() error {
	if o.members < 1 || o.members > devMembersMax {
		return fmt.Errorf("--members must be from 1 to %d (set to %d)", devMembersMax, o.members)
	}
	if last := o.basePort + 2*o.members - 1; o.basePort < 1 || last > 65535 {
		return fmt.Errorf("--base-port must leave two ports for each member (set to %d)", o.basePort)
	}
	return nil
}

// sameAsBefore refuses a directory that has the data of a cluster with other members or ports: its
// members know each other by those. It writes down what a new one has.
func (o devOptions) sameAsBefore() error {
	name := filepath.Join(o.dir, "dev-flags")
	flags := fmt.Sprintf("--members=%d --base-port=%d\n", o.members, o.basePort)
	before, err := os.ReadFile(name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return os.WriteFile(name, []byte(flags), 0o600)
	case err != nil:
		return err
	case string(before) != flags:
		return fmt.Errorf("%s has the data of a cluster that was started with %s: use these flags, or another --data-dir",
			o.dir, strings.TrimSpace(string(before)))
	}
	return nil
}

// runDev runs the cluster until it is told to stop or the last member has ended by itself.
func runDev(out io.Writer, o devOptions) (err error) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)

	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	temporary := o.dir == ""
	if temporary {
		if o.dir, err = os.MkdirTemp("", "quorate-dev-"); err != nil {
			return fmt.Errorf("make a directory for data: %w", err)
		}
	} else if o.dir, err = filepath.Abs(o.dir); err == nil {
		err = os.MkdirAll(o.dir, 0o700)
	}
	if err != nil {
		return fmt.Errorf("make a directory for data: %w", err)
	}
	if err := o.sameAsBefore(); err != nil {
		return err
	}

	d := newDevCluster(out, o)
	defer func() {
		// Where something went wrong, the logs say what.
		if temporary && err == nil {
			err = os.RemoveAll(o.dir)
		}
	}()
	defer func() { err = errors.Join(err, d.close()) }()
	if err := d.start(exe, o); err != nil {
		d.stop(signals)
		return err
	}
	d.sayf("data and logs in %s%s\n", o.dir, map[bool]string{true: ", removed in the end"}[temporary])

	ctx, cancel := context.WithCancel(context.Background())
	leaders := make(chan string)
	var watching sync.WaitGroup
	watching.Go(func() { d.watchLeader(ctx, leaders) })
	defer watching.Wait()
	defer cancel()

	first := true
	for alive := len(d.members); ; {
		select {
		case s := <-signals:
			d.sayf("%v: stopping the members", s)
			return d.stop(signals)
		case m := <-d.ended:
			d.sayf("%s has ended: %s; its log is %s", m.name, m.how(), m.log)
			if m.state != nil && m.state.ExitCode() > 0 {
				d.sayf("%s", m.lastWords())
			}
			if alive--; alive == 0 {
				return errors.New("no member is left")
			}
		case who := <-leaders:
			d.sayf("%s", who)
			if first {
				first = false
				d.sayf("\n  export ETCDCTL_ENDPOINTS=%s\n\nctrl-C stops them all", strings.Join(d.endpoints(), ","))
			}
		}
	}
}

// A devCluster is the members of quorate dev. runDev's goroutine owns it.
type devCluster struct {
	out     io.Writer
	members []*devMember
	ended   chan *devMember // each once; has room for all
}

// A devMember is one process.
type devMember struct {
	name         string
	client, peer string // host:port
	dir, log     string

	conn   *grpc.ClientConn
	status pb.MaintenanceClient

	process *os.Process   // nil: not started
	done    chan struct{} // closed when the process has ended
	state   *os.ProcessState
}

func newDevCluster(out io.Writer, o devOptions) *devCluster {
	d := &devCluster{out: out, ended: make(chan *devMember, o.members)}
	for i := range o.members {
		name := "m" + strconv.Itoa(i+1)
		port := func(n int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(o.basePort+2*i+n)) }
		d.members = append(d.members, &devMember{
			name: name, client: port(0), peer: port(1),
			dir: filepath.Join(o.dir, name), log: filepath.Join(o.dir, name+".log"),
			done: make(chan struct{}),
		})
	}
	return d
}

// sayf writes one line for the person who watches. That it cannot be written is no reason to stop.
func (d *devCluster) sayf(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

func (d *devCluster) endpoints() []string {
	var all []string
	for _, m := range d.members {
		all = append(all, "http://"+m.client)
	}
	return all
}

// start starts all members. After an error those that were started still run.
func (d *devCluster) start(exe string, o devOptions) error {
	var initial []string
	for _, m := range d.members {
		initial = append(initial, m.name+"=http://"+m.peer)
		// A member that finds its port taken ends with a line in its log; this is sooner and clearer.
		for _, addr := range []string{m.client, m.peer} {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				return fmt.Errorf("%w (choose others with --base-port)", err)
			}
			if err := l.Close(); err != nil {
				return err
			}
		}
	}
	for _, m := range d.members {
		// The flags of dev come last, so that they win.
		args := append([]string{"serve"}, o.flags...)
		args = append(args,
			"--name="+m.name, "--data-dir="+m.dir,
			"--listen-client-urls=http://"+m.client, "--advertise-client-urls=http://"+m.client,
			"--listen-peer-urls=http://"+m.peer, "--initial-advertise-peer-urls=http://"+m.peer,
			"--initial-cluster="+strings.Join(initial, ","), "--initial-cluster-token=quorate-dev",
		)
		if err := d.run(m, exe, args); err != nil {
			return fmt.Errorf("start %s: %w", m.name, err)
		}
		d.sayf("%s  clients http://%s  members http://%s  process %d  log %s", m.name, m.client, m.peer, m.process.Pid, m.log)
	}
	return nil
}

// run starts the process of m and sees to its end.
func (d *devCluster) run(m *devMember, exe string, args []string) (err error) {
	m.conn, err = grpc.NewClient(m.client, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: devPoll, Multiplier: 1, MaxDelay: devPoll},
			MinConnectTimeout: devAnswer,
		}))
	if err != nil {
		return err
	}
	m.status = pb.NewMaintenanceClient(m.conn)
	log, err := os.OpenFile(m.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	cmd := exec.Command(exe, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = devAttr()
	for _, v := range os.Environ() {
		// They are meant for one member, or for one under systemd.
		if !strings.HasPrefix(v, "ETCD_") && !strings.HasPrefix(v, "NOTIFY_SOCKET=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	started := make(chan error)
	go func() {
		// The kernel ends the process when the thread ends that started it: hold on to that.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := errors.Join(cmd.Start(), log.Close())
		m.process = cmd.Process
		started <- err
		if m.process == nil {
			return
		}
		_ = cmd.Wait() // the state tells more than the error
		m.state = cmd.ProcessState
		close(m.done)
		d.ended <- m
	}()
	return <-started
}

// how tells how the process ended.
func (m *devMember) how() string {
	if m.state == nil {
		return "unknown"
	}
	return m.state.String()
}

// lastWords are the last two lines of the log, indented, where a member that ends by itself says why.
func (m *devMember) lastWords() string {
	text, err := os.ReadFile(m.log)
	if err != nil {
		return "  " + err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	return "  " + strings.Join(lines[max(0, len(lines)-2):], "\n  ")
}

// stop stops the members in order, one after the other, with the leader last so that leadership moves
// at most once. A member that takes too long is killed, and a further signal kills all. An error names
// the members that had to be killed.
func (d *devCluster) stop(signals <-chan os.Signal) error {
	order := make([]*devMember, 0, len(d.members))
	lead := d.ask(context.Background()).leader
	for _, m := range d.members {
		if m != lead {
			order = append(order, m)
		}
	}
	if lead != nil {
		order = append(order, lead)
	}
	var killed []string
	begin, hurry := time.Now(), false
	for _, m := range order {
		if m.process == nil {
			continue
		}
		if !hurry {
			_ = m.process.Signal(syscall.SIGTERM) // fails if the process has ended, which done tells
			_ = m.process.Signal(syscall.SIGCONT) // it may have been paused
			hurry = !m.endsWithin(devStop, signals, begin)
		}
		select {
		case <-m.done:
		default:
			killed = append(killed, m.name)
			_ = m.process.Kill()
			<-m.done
		}
	}
	if len(killed) > 0 {
		return fmt.Errorf("killed, because they did not stop in time: %s", strings.Join(killed, ", "))
	}
	return nil
}

// endsWithin waits for the end of the process. It returns false when a signal came meanwhile that calls
// for haste; those that come soon after begin do not, see sameSignal.
func (m *devMember) endsWithin(d time.Duration, signals <-chan os.Signal, begin time.Time) bool {
	timeout := time.NewTimer(d)
	defer timeout.Stop()
	for {
		select {
		case <-m.done:
			return true
		case <-timeout.C:
			return true // it is late alone
		case <-signals:
			if time.Since(begin) >= sameSignal {
				return false
			}
		}
	}
}

// close ends the connections to the members.
func (d *devCluster) close() error {
	var err error
	for _, m := range d.members {
		if m.conn != nil {
			err = errors.Join(err, m.conn.Close())
		}
	}
	return err
}

// A devView is what the members that answer say of the leader.
type devView struct {
	answered bool
	leader   *devMember // nil: nobody leads, or one that does not answer
	known    bool       // somebody names a leader
	term     uint64
}

// ask asks all members at the same time, and believes the one of the highest term.
func (d *devCluster) ask(ctx context.Context) devView {
	ctx, cancel := context.WithTimeout(ctx, devAnswer)
	defer cancel()
	answers := make([]*pb.StatusResponse, len(d.members))
	var asking sync.WaitGroup
	for i, m := range d.members {
		if m.status == nil {
			continue
		}
		asking.Go(func() {
			if r, err := m.status.Status(ctx, &pb.StatusRequest{}); err == nil {
				answers[i] = r
			}
		})
	}
	asking.Wait()
	var v devView
	var id uint64
	for _, r := range answers {
		if r == nil {
			continue
		}
		v.answered = true
		if r.GetLeader() != 0 && r.GetRaftTerm() >= v.term {
			v.known, v.term, id = true, r.GetRaftTerm(), r.GetLeader()
		}
	}
	for i, r := range answers {
		if v.known && r.GetHeader().GetMemberId() == id {
			v.leader = d.members[i]
		}
	}
	return v
}

// watchLeader sends a line whenever another member leads, or none does any more, until ctx ends.
func (d *devCluster) watchLeader(ctx context.Context, say chan<- string) {
	tick := time.NewTicker(devPoll)
	defer tick.Stop()
	last := ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		v := d.ask(ctx)
		line := ""
		switch {
		case v.leader != nil:
			line = fmt.Sprintf("%s leads (term %d)", v.leader.name, v.term)
		case v.answered && !v.known && last != "":
			line = "no member leads"
		default:
			continue // not up yet, or the leader named does not answer
		}
		if line == last {
			continue
		}
		select {
		case say <- line:
			last = line
		case <-ctx.Done():
			return
		}
	}
}
