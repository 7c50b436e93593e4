package tlsconf

import (
	"os"
	"syscall"
)

// stamp tells one state of a file from another. A file that is replaced by a rename or
// behind a symbolic link (as Kubernetes mounts secrets) has another inode even if its
// time and size are the same.
type stamp struct {
	modified int64 // in nanoseconds
	size     int64
	inode    uint64
}

// stamps are those of all files of a Source: certificate, key, client pair, CA, CRL.
type stamps [6]stamp

func (f Files) stamps() (s stamps) {
	for i, name := range [...]string{f.CertFile, f.KeyFile, f.ClientCertFile, f.ClientKeyFile, f.TrustedCAFile, f.CRLFile} {
		if name == "" {
			continue
		}
		fi, err := os.Stat(name)
		if err != nil {
			continue // the zero stamp: it differs from the one that was read
		}
		s[i] = stamp{modified: fi.ModTime().UnixNano(), size: fi.Size()}
		if sys, ok := fi.Sys().(*syscall.Stat_t); ok {
			s[i].inode = sys.Ino
		}
	}
	return s
}
