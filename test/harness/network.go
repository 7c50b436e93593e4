package harness

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Network is a bridge with a host, in a network namespace of its own, for each member. The
// tests sit at the bridge and reach every host whatever is cut between hosts.
//
// A cut is one-way and silent: packets go to a hardware address that nobody has, as on a
// cable that is broken in one direction. Connections neither end nor are refused.
// Its methods are for one goroutine at a time.
type Network struct {
	serial int
	bridge string
	hosts  []*host
}

type host struct {
	ns  *os.File
	mac string
	cut map[int]bool // hosts that nothing is sent to
}

// networks counts them: each has a subnet of its own.
var networks atomic.Int32

// nobody is a hardware address that no host has.
const nobody = "02:71:ff:ff:ff:ff"

// newNetwork makes a network without hosts, or nil where this process cannot.
func newNetwork() (*Network, error) {
	if !inNamespaces {
		return nil, nil
	}
	serial := int(networks.Add(1))
	if serial > 250 {
		return nil, errors.New("too many networks in one process")
	}
	n := &Network{serial: serial, bridge: fmt.Sprintf("q%d", serial)}
	for _, args := range [][]string{
		{"link", "add", n.bridge, "type", "bridge"},
		{"addr", "add", fmt.Sprintf("10.77.%d.1/24", serial), "dev", n.bridge},
		{"link", "set", n.bridge, "up"},
	} {
		if err := ip(args...); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func (n *Network) addr(i int) string { return fmt.Sprintf("10.77.%d.%d", n.serial, 10+i) }

// addHost adds the next host.
func (n *Network) addHost() error {
	i := len(n.hosts)
	h := &host{mac: fmt.Sprintf("02:71:00:00:%02x:%02x", n.serial, i), cut: map[int]bool{}}
	var err error
	if h.ns, err = newNamespace(); err != nil {
		return fmt.Errorf("make a network namespace: %w", err)
	}
	n.hosts = append(n.hosts, h)
	near := fmt.Sprintf("q%dh%d", n.serial, i)
	into := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), h.ns.Fd())
	for _, args := range [][]string{
		{"link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", into, "address", h.mac},
		{"link", "set", near, "master", n.bridge, "up"},
	} {
		if err := ip(args...); err != nil {
			return err
		}
	}
	return h.within(func() error {
		for _, args := range [][]string{
			{"link", "set", "lo", "up"},
			{"addr", "add", n.addr(i) + "/24", "dev", "eth0"},
			{"link", "set", "eth0", "up"},
		} {
			if err := ip(args...); err != nil {
				return err
			}
		}
		return nil
	})
}

// Cut drops everything that member from sends to member to, until Join.
func (n *Network) Cut(from, to int) error { return n.set(from, to, true) }

// Join undoes Cut.
func (n *Network) Join(from, to int) error { return n.set(from, to, false) }

func (n *Network) set(from, to int, cut bool) error {
	h := n.hosts[from]
	if h.cut[to] == cut {
		return nil
	}
	mac := n.hosts[to].mac
	if cut {
		mac = nobody
	}
	h.cut[to] = cut
	return h.within(func() error {
		return ip("neigh", "replace", n.addr(to), "lladdr", mac, "nud", "permanent", "dev", "eth0")
	})
}

// Isolate cuts a member off from all others, both ways.
func (n *Network) Isolate(member int) error {
	for other := range n.hosts {
		if other == member {
			continue
		}
		if err := errors.Join(n.Cut(member, other), n.Cut(other, member)); err != nil {
			return err
		}
	}
	return nil
}

// Heal undoes every Cut.
func (n *Network) Heal() error {
	for from, h := range n.hosts {
		for to := range h.cut {
			if err := n.Join(from, to); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *Network) close() error {
	var errs []error
	for _, h := range n.hosts {
		errs = append(errs, h.ns.Close())
	}
	return errors.Join(append(errs, ip("link", "del", n.bridge))...)
}

// newNamespace makes a network namespace, which lives as long as the file is open or a
// process is in it.
func newNamespace() (*os.File, error) {
	var ns *os.File
	err := elsewhere(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() (err error) {
		ns, err = os.Open(ownNamespace)
		return err
	})
	return ns, err
}

// within runs f, and starts the processes that f starts, on the host.
func (h *host) within(f func() error) error {
	return elsewhere(func() error { return unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET) }, f)
}

const ownNamespace = "/proc/thread-self/ns/net"

// elsewhere runs f on a thread that enter has taken to another network namespace.
func elsewhere(enter, f func() error) error {
	runtime.LockOSThread()
	home, err := os.Open(ownNamespace)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	if err := enter(); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err = f()
	if back := unix.Setns(int(home.Fd()), syscall.CLONE_NEWNET); back != nil {
		// Nothing else may run on a thread that is in the wrong network.
		panic(fmt.Sprintf("harness: return to the own network namespace: %v", back))
	}
	runtime.UnlockOSThread()
	return err
}
