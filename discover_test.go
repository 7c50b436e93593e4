package quorate

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// dnsServer is where the process's resolver asks, nil for what the system says.
var dnsServer atomic.Pointer[net.UDPAddr]

// The resolver is replaced once, before anything can look up a name: a lookup that was given
// up goes on in the background and reads it.
func init() {
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if a := dnsServer.Load(); a != nil {
			network, address = "udp", a.String()
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
}

// serveDNS makes the process's resolver answer from records: hosts are all at 127.0.0.1, services have
// the ports of each host.
func serveDNS(t *testing.T, services map[string]map[string]uint16) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1000)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return // the end of the test
			}
			if answer, err := answerDNS(b[:n], services); err == nil {
				_, _ = conn.WriteTo(answer, from) // the resolver asks again
			}
		}
	}()
	dnsServer.Store(conn.LocalAddr().(*net.UDPAddr))
	t.Cleanup(func() {
		dnsServer.Store(nil)
		conn.Close()
		<-done
	})
}

func answerDNS(question []byte, services map[string]map[string]uint16) ([]byte, error) {
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil {
		return nil, err
	}
	m.Response, m.Authoritative, m.Additionals = true, true, nil
	q := m.Questions[0]
	name := strings.TrimSuffix(q.Name.String(), ".")
	header := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1}
	m.RCode = dnsmessage.RCodeNameError
	for service, hosts := range services {
		if name == service {
			m.RCode = dnsmessage.RCodeSuccess
		}
		for host, port := range hosts {
			switch {
			case name == service && q.Type == dnsmessage.TypeSRV:
				target, err := dnsmessage.NewName(host + ".")
				if err != nil {
					return nil, err
				}
				m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.SRVResource{Target: target, Port: port}})
			case name == host:
				m.RCode = dnsmessage.RCodeSuccess
				if q.Type == dnsmessage.TypeA && len(m.Answers) == 0 {
					m.Answers = append(m.Answers, dnsmessage.Resource{Header: header, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}})
				}
			}
		}
	}
	return m.Pack()
}

// Members find each other by SRV records, and without them once they have data.
func TestDiscoverySRV(t *testing.T) {
	cfgs := threeConfigs(t)
	hosts := make(map[string]uint16)
	for _, c := range cfgs {
		u := c.ListenPeerURLs[0]
		addr, err := net.ResolveTCPAddr("tcp", u.Host)
		if err != nil {
			t.Fatal(err)
		}
		host := c.Name + ".quorate.test"
		hosts[host] = uint16(addr.Port)
		c.AdvertisePeerURLs = urls(t, "http://"+host+":"+u.Port())
		c.InitialCluster, c.DiscoverySRV, c.DiscoverySRVName = "", "quorate.test", "x"
	}
	serveDNS(t, map[string]map[string]uint16{"_etcd-server-x._tcp.quorate.test": hosts})

	for name, change := range map[string]func(*Config){
		`--discovery-srv=nowhere.test names no member: error querying DNS SRV records for _etcd-server-ssl-x lookup _etcd-server-ssl-x._tcp.nowhere.test`: func(c *Config) {
			c.DiscoverySRV = "nowhere.test"
		},
		`cannot find local etcd member "m0" in SRV records: none of 0=http://`: func(c *Config) {
			c.AdvertisePeerURLs = urls(t, "http://127.0.0.1:1")
		},
	} {
		c := *cfgs[0]
		change(&c)
		if s, err := Start(t.Context(), &c, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%v, want %s", err, name)
			if err == nil {
				s.Close()
			}
		}
	}

	servers := startAll(t, cfgs, slog.New(slog.DiscardHandler))
	putGet(t, client(t, servers[0].Endpoints()[0], nil), "k", "v")
	r, err := client(t, servers[1].Endpoints()[0], nil).MemberList(t.Context())
	if err != nil || len(r.Members) != 3 {
		t.Fatalf("members %v, %v", r, err)
	}
	for _, m := range r.Members {
		if want := "http://" + m.Name + ".quorate.test:"; len(m.PeerURLs) != 1 || !strings.HasPrefix(m.PeerURLs[0], want) {
			t.Errorf("member %s is at %v", m.Name, m.PeerURLs)
		}
	}
	if err := servers[2].Close(); err != nil {
		t.Fatal(err)
	}
	cfgs[2].DiscoverySRV = "nowhere.test"
	s, err := Start(t.Context(), cfgs[2], slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("start with data: %v", err)
	}
	putGet(t, client(t, s.Endpoints()[0], nil), "k", "w")
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// A start that waits for DNS can be given up.
func TestDiscoveryGivenUp(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dnsServer.Store(silent.LocalAddr().(*net.UDPAddr))
	t.Cleanup(func() {
		dnsServer.Store(nil)
		silent.Close()
	})
	c := threeConfigs(t)[0]
	c.InitialCluster, c.DiscoverySRV = "", "quorate.test"
	ctx, cancel := context.WithCancelCause(t.Context())
	asked := errors.New("asked to stop")
	go func() {
		// The resolver has asked, and waits.
		_, _, err := silent.ReadFrom(make([]byte, 1000))
		cancel(errors.Join(asked, err))
	}()
	if s, err := Start(ctx, c, slog.New(slog.DiscardHandler)); !errors.Is(err, asked) {
		t.Errorf("start: %v", err)
		if err == nil {
			s.Close()
		}
	}
}
