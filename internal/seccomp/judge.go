package seccomp

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Judge is what a filter answers a call of this machine's own kind with (seccomp(2), SECCOMP_RET_*). A
// program that the kernel would not take kills.
func Judge(filter []unix.SockFilter, nr uintptr, args ...uint64) uint32 {
	const wrong = unix.SECCOMP_RET_KILL_PROCESS
	d := callOf(nr, args)
	var a uint32
	for pc := 0; pc < len(filter); pc++ {
		i := filter[pc]
		take := func(yes bool) {
			if yes {
				pc += int(i.Jt)
			} else {
				pc += int(i.Jf)
			}
		}
		switch i.Code {
		case load:
			if i.K%4 != 0 || int(i.K/4) >= len(d) {
				return wrong
			}
			a = d[i.K/4]
		case and:
			a &= i.K
		case jump:
			pc += int(i.K)
		case ifEq:
			take(a == i.K)
		case ifGt:
			take(a > i.K)
		case ifGe:
			take(a >= i.K)
		case leave:
			return i.K
		default:
			return wrong
		}
	}
	return wrong
}

// callOf is struct seccomp_data in words, little-endian as both machines are; where the call came from
// is 0.
func callOf(nr uintptr, args []uint64) [16]uint32 {
	arch := audit[x8664]
	if runtime.GOARCH == "arm64" {
		arch = audit[arm64]
	}
	d := [16]uint32{dataNumber / 4: uint32(nr), dataArch / 4: arch}
	for i, v := range args[:min(len(args), 6)] {
		d[dataArgs/4+2*i], d[dataArgs/4+2*i+1] = uint32(v), uint32(v>>32)
	}
	return d
}
