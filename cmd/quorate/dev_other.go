//go:build !linux

package main

import "syscall"

// devAttr keeps the terminal's ctrl-C from a member. Only Linux can let it die with quorate dev.
func devAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
