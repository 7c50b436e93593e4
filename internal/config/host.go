package config

import (
	"bufio"
	"errors"
	"net"
	"os"
	"strings"
)

var errNoDefaultHost = errors.New("could not find default host")

// defaultHost is the address of the interface that the default route leaves by, for a
// member that listens on all addresses but was not told which one to advertise.
func defaultHost() (string, error) {
	f, err := os.Open("/proc/net/route")
	if err != nil {
		return "", errNoDefaultHost // no Linux: the operator must say it
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		// Interface, destination and gateway, in hexadecimal; 0 is the default route.
		col := strings.Fields(sc.Text())
		if len(col) < 3 || col[1] != "00000000" {
			continue
		}
		in, err := net.InterfaceByName(col[0])
		if err != nil {
			return "", err
		}
		addrs, err := in.Addrs()
		if err != nil {
			return "", err
		}
		for _, a := range addrs {
			if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && ip.IP.IsGlobalUnicast() {
				return ip.IP.String(), nil
			}
		}
	}
	if err := sc.Err(); err != nil {
		return "", err
	}
	return "", errNoDefaultHost
}
