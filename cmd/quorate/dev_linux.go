package main

import "syscall"

// devAttr lets a member die with quorate dev, however that ends, and keeps the terminal's ctrl-C from
// it, which is for quorate dev to act on.
func devAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
