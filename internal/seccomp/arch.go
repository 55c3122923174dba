package seccomp

import (
	"cmp"
	"fmt"
	"runtime"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

//go:generate go run gentable.go -o table.go

// abi is one table of system calls.
type abi int

const (
	x8664 abi = iota
	x86
	x32
	arm64
	arm
	abis
)

// x32Bit is set in the number of every x32 call (asm/unistd.h, __X32_SYSCALL_BIT): the audit
// architecture is the same as x86-64's.
const x32Bit = 0x40000000

// armPrivate is where ARM's own calls begin (asm/unistd.h, __ARM_NR_BASE).
const armPrivate = 0x0f0000

var audit = [abis]uint32{
	x8664: unix.AUDIT_ARCH_X86_64, x86: unix.AUDIT_ARCH_I386, x32: unix.AUDIT_ARCH_X86_64,
	arm64: unix.AUDIT_ARCH_AARCH64, arm: unix.AUDIT_ARCH_ARM,
}

var archs = [abis]specs.Arch{
	x8664: specs.ArchX86_64, x86: specs.ArchX86, x32: specs.ArchX32, arm64: specs.ArchAARCH64, arm: specs.ArchARM,
}

// foreign architectures are in the specification, and no program of theirs runs on the machines that
// gantry is built for: naming them changes nothing.
var foreign = [...]specs.Arch{
	specs.ArchMIPS, specs.ArchMIPS64, specs.ArchMIPS64N32, specs.ArchMIPSEL, specs.ArchMIPSEL64, specs.ArchMIPSEL64N32,
	specs.ArchPPC, specs.ArchPPC64, specs.ArchPPC64LE, specs.ArchS390, specs.ArchS390X, specs.ArchPARISC, specs.ArchPARISC64,
	specs.ArchRISCV64, specs.ArchLOONGARCH64, specs.ArchM68K, specs.ArchSH, specs.ArchSHEB,
}

// narrow says that only the low half of an argument counts: registers, or with x32 what a program keeps
// in them, are 32 bits wide.
func (a abi) narrow() bool { return a == x86 || a == x32 || a == arm }

// base is a table's first number.
func (a abi) base() uint32 {
	if a == x32 {
		return x32Bit
	}
	return 0
}

// private says that nr is outside the row in which Linux numbers its calls.
func (a abi) private(nr uint32) bool { return a == arm && nr >= armPrivate }

// runnable is the tables of programs that a machine's kernel can run, its own first.
func runnable(goarch string) ([]abi, error) {
	switch goarch {
	case "amd64":
		return []abi{x8664, x86, x32}, nil
	case "arm64":
		return []abi{arm64, arm}, nil
	}
	return nil, fmt.Errorf("seccomp profile: system calls of %s are not known: %w", goarch, errdefs.ErrNotImplemented)
}

// wanted is the tables that a profile covers, the native one first. Calls of any other kill the process.
func wanted(names []specs.Arch) ([]abi, error) {
	return wantedOn(runtime.GOARCH, names)
}

func wantedOn(goarch string, names []specs.Arch) ([]abi, error) {
	possible, err := runnable(goarch)
	if err != nil {
		return nil, err
	}
	out := possible[:1:1]
	for _, n := range names {
		a := abi(slices.Index(archs[:], n))
		if a < 0 && !slices.Contains(foreign[:], n) {
			return nil, invalid("architecture %q is unknown", n)
		}
		if slices.Contains(possible, a) && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out, nil
}

// call is a system call by its name, with its number in each table; -1: it has none there.
type call struct {
	name   string
	number [abis]int32
}

// number is a call's number in a table.
func number(a abi, name string) (uint32, bool) {
	i, ok := slices.BinarySearchFunc(calls, name, func(c call, n string) int { return cmp.Compare(c.name, n) })
	if !ok || calls[i].number[a] < 0 {
		return 0, false
	}
	return uint32(calls[i].number[a]), true
}

// 32-bit x86 reaches the same calls by a number in the first argument of socketcall(2) and ipc(2)
// (linux/net.h, SYS_…; linux/ipc.h).
var (
	socketcalls = [...]string{
		1: "socket", "bind", "connect", "listen", "accept", "getsockname", "getpeername", "socketpair", "send", "recv",
		"sendto", "recvfrom", "shutdown", "setsockopt", "getsockopt", "sendmsg", "recvmsg", "accept4", "recvmmsg", "sendmmsg",
	}
	ipcs = [...]string{
		1: "semop", "semget", "semctl", "semtimedop", 11: "msgsnd", "msgrcv", "msgget", "msgctl",
		21: "shmat", "shmdt", "shmget", "shmctl",
	}
)

// multiplexed is through which call, and as which number in its first argument, a call is also reached.
func multiplexed(a abi, name string) (through string, nr uint64, ok bool) {
	if a != x86 || name == "" {
		return "", 0, false
	}
	if i := slices.Index(socketcalls[:], name); i > 0 {
		return "socketcall", uint64(i), true
	}
	if i := slices.Index(ipcs[:], name); i > 0 {
		return "ipc", uint64(i), true
	}
	return "", 0, false
}
