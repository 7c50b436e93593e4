package tlsconf

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// SelfCert returns files with a self-signed certificate for hosts ("host:port" each),
// kept in dir as cert.pem and key.pem: --auto-tls and --peer-auto-tls. A pair that is
// there already is used as long as it is valid; one that has expired is replaced.
func SelfCert(dir string, hosts []string, years uint, log *slog.Logger) (Files, error) {
	if years == 0 {
		return Files{}, errors.New("selfSignedCertValidity is invalid,it should be greater than 0")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Files{}, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Files{}, fmt.Errorf("create certificate directory: %w", err)
	}
	cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	f := Files{CertFile: cert, KeyFile: key, ClientCertFile: cert, ClientKeyFile: key}
	if c, err := pair(cert, key); err == nil && time.Now().Before(c.Leaf.NotAfter) {
		return f, nil
	}

	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 128))
	if err != nil {
		return Files{}, err
	}
	now := time.Now()
	tmpl := x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"etcd"}},
		NotBefore:             now,
		NotAfter:              now.Add(time.Duration(years) * 365 * 24 * time.Hour),
		KeyUsage:              x509.KeyUsageKeyEncipherment | x509.KeyUsageDigitalSignature | x509.KeyUsageCRLSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	for _, hostport := range hosts {
		host, _, err := net.SplitHostPort(hostport)
		if err != nil {
			host = hostport // the path of a socket
		}
		if ip := net.ParseIP(host); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else if host != "" {
			tmpl.DNSNames = append(tmpl.DNSNames, host)
		}
	}
	log.Warn("automatically generate certificates", "certificate-validity-bound-not-after", tmpl.NotAfter)
	priv, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		return Files{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &tmpl, &tmpl, &priv.PublicKey, priv)
	if err != nil {
		return Files{}, err
	}
	keyDER, err := x509.MarshalECPrivateKey(priv)
	if err != nil {
		return Files{}, err
	}
	if err := writePEM(key, "EC PRIVATE KEY", keyDER, 0o600); err != nil {
		return Files{}, err
	}
	if err := writePEM(cert, "CERTIFICATE", der, 0o644); err != nil {
		return Files{}, err
	}
	log.Info("created certificate and key", "cert-file", cert, "key-file", key)
	return f, nil
}

// writePEM replaces name in one step, so that a crash leaves no half of it.
func writePEM(name, kind string, der []byte, mode os.FileMode) error {
	tmp := name + ".tmp"
	if err := os.WriteFile(tmp, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}
