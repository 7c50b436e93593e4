package tlsconf

import (
	"crypto/tls"
	"log/slog"
	"testing"
)

// Members that make their own certificates cannot know each other's, and talk all the same.
func TestMembersWithSelfMadeCertificatesReachEachOther(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	member := func(selfMade bool) *Source {
		t.Helper()
		files, err := SelfCert(t.TempDir(), []string{"127.0.0.1:0"}, 1, log)
		if err != nil {
			t.Fatal(err)
		}
		files.SelfMade = selfMade
		s, err := Load(files, Protocol{}, log)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	dial := func(from, to *Source) error {
		l, err := tls.Listen("tcp", "127.0.0.1:0", to.ServerConfig("http/1.1"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			if c, err := l.Accept(); err == nil {
				_ = c.(*tls.Conn).Handshake() // the dialer's side is what counts
				c.Close()
			}
		}()
		c, err := tls.Dial("tcp", l.Addr().String(), from.ClientConfig())
		if err != nil {
			return err
		}
		return c.Close()
	}
	if err := dial(member(true), member(true)); err != nil {
		t.Error(err)
	}
	if dial(member(false), member(true)) == nil {
		t.Error("a certificate that nobody signed was taken without --peer-auto-tls")
	}
}
