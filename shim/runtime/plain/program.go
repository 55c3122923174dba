// Package plain makes processes with system calls of our own.
package plain

import (
	"fmt"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A program is a list of system calls that the parent prepares with ordinary Go and that a cloned
// child runs with raw system calls only: the child shares nothing with the Go runtime but a copy of
// its memory, so it must not allocate, lock or grow its stack.
//
// A call may keep its result in a register, and take an argument from one: that is how a
// descriptor that the child opens gets to the calls that use it.
type program struct {
	ops   []op
	names []string // for the sentence, should a call fail
	keep  []any    // what arguments point at
}

// op is one system call.
type op struct {
	nr     uintptr
	a      [6]uintptr
	refs   uint8 // bit n: argument n is the number of a register
	save   int8  // register for the result; -1 none
	kind   uint8
	ignore syscall.Errno // this error is none
}

// Kinds of op that are more than a call.
const (
	kindCall   = iota
	kindReady  // tell the parent that everything before went well, and wait for its word
	kindInside // the result of the call before, a path at a[0], must begin with '/'
)

const maxRegs = 8

func reg(n int) uintptr { return uintptr(n) }

// str keeps a C string alive and returns its address.
func (p *program) str(s string) uintptr {
	b, err := syscall.ByteSliceFromString(s)
	if err != nil {
		b = []byte{0} // NULs are refused before this
	}
	p.keep = append(p.keep, b)
	return uintptr(unsafe.Pointer(&b[0]))
}

func (p *program) ptr(v any, at unsafe.Pointer) uintptr {
	p.keep = append(p.keep, v)
	return uintptr(at)
}

// call adds a system call; name is what the sentence says when it fails.
func (p *program) call(name string, nr uintptr, a ...uintptr) *op {
	o := op{nr: nr, save: -1}
	copy(o.a[:], a)
	p.ops = append(p.ops, o)
	p.names = append(p.names, name)
	return &p.ops[len(p.ops)-1]
}

func (p *program) special(name string, kind uint8, a ...uintptr) {
	p.call(name, 0, a...).kind = kind
}

// failure is what a child writes when a call fails: which, and why.
type failure struct{ index, errno int64 }

func (p *program) sentence(f failure) error {
	if f.index < 0 || int(f.index) >= len(p.names) {
		return fmt.Errorf("start process: garbled report (%d, %d)", f.index, f.errno)
	}
	return fmt.Errorf("%s: %w", p.names[f.index], syscall.Errno(f.errno))
}

// child is everything that the child's code needs, in one place that does not move.
type child struct {
	ops       *op
	n         int
	regs      [maxRegs]uintptr
	report    uintptr // descriptor: failures, and the word that it is ready
	wait      uintptr // descriptor: a byte lets it go on
	sigaction [4]uint64
	mask      uint64
	word      failure
	byte1     [8]byte
}

// run is the child. It never returns.
//
//go:norace
//go:nosplit
func (c *child) run() {
	for s := uintptr(1); s <= 64; s++ { // Go's handlers are not the container's
		if s != 9 && s != 19 {
			syscall.RawSyscall6(unix.SYS_RT_SIGACTION, s, uintptr(unsafe.Pointer(&c.sigaction)), 0, 8, 0, 0)
		}
	}
	c.mask = 0
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, 2, uintptr(unsafe.Pointer(&c.mask)), 0, 8, 0, 0)
	for i := 0; i < c.n; i++ {
		o := (*op)(unsafe.Add(unsafe.Pointer(c.ops), uintptr(i)*unsafe.Sizeof(op{})))
		switch o.kind {
		case kindReady:
			c.word.index, c.word.errno = -1, 0
			syscall.RawSyscall(unix.SYS_WRITE, c.report, uintptr(unsafe.Pointer(&c.word)), 16)
			for {
				n, _, e := syscall.RawSyscall(unix.SYS_READ, c.wait, uintptr(unsafe.Pointer(&c.byte1)), 1)
				if e == syscall.EINTR {
					continue
				}
				if e != 0 || n != 1 { // the shim is gone, or does not want it any more
					syscall.RawSyscall(unix.SYS_EXIT_GROUP, 125, 0, 0)
				}
				break
			}
			continue
		case kindInside:
			if *(*byte)(unsafe.Add(nil, o.a[0])) != '/' { // it points into what keep holds
				c.fail(i, syscall.ENOENT)
			}
			continue
		}
		a := o.a
		for n := 0; n < 6; n++ {
			if o.refs&(1<<n) != 0 {
				a[n] = c.regs[o.a[n]]
			}
		}
		r, _, e := syscall.RawSyscall6(o.nr, a[0], a[1], a[2], a[3], a[4], a[5])
		if e != 0 {
			if o.ignore == e {
				continue
			}
			c.fail(i, e)
		}
		if o.save >= 0 {
			c.regs[o.save] = r
		}
	}
	syscall.RawSyscall(unix.SYS_EXIT_GROUP, 125, 0, 0)
}

//go:norace
//go:nosplit
func (c *child) fail(i int, e syscall.Errno) {
	c.word.index, c.word.errno = int64(i), int64(e)
	syscall.RawSyscall(unix.SYS_WRITE, c.report, uintptr(unsafe.Pointer(&c.word)), 16)
	syscall.RawSyscall(unix.SYS_EXIT_GROUP, 125, 0, 0)
}

// cloneArgs is struct clone_args of clone3(2).
type cloneArgs struct {
	Flags, Pidfd, ChildTid, ParentTid, ExitSignal, Stack, StackSize, TLS, SetTid, SetTidSize, Cgroup uint64
}

// clone runs p in a child of the calling thread. cgroup is a descriptor for CLONE_INTO_CGROUP, or -1.
func (p *program) clone(flags uint64, cgroup, report, wait int) (pid, pidfd int, err error) {
	c := &child{ops: &p.ops[0], n: len(p.ops), report: uintptr(report), wait: uintptr(wait)}
	fd := int32(-1)
	args := &cloneArgs{Flags: flags | unix.CLONE_PIDFD, Pidfd: uint64(uintptr(unsafe.Pointer(&fd))), ExitSignal: uint64(syscall.SIGCHLD)}
	if cgroup >= 0 {
		args.Flags |= unix.CLONE_INTO_CGROUP
		args.Cgroup = uint64(cgroup)
	}
	all, old := ^uint64(0), uint64(0)
	syscall.ForkLock.Lock()
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, 2, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	n, errno := doClone(args, c)
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, 2, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
	syscall.ForkLock.Unlock()
	runtime.KeepAlive(p)
	runtime.KeepAlive(c)
	if errno != 0 {
		return 0, -1, fmt.Errorf("clone: %w", errno)
	}
	return int(n), int(fd), nil
}

//go:norace
//go:nosplit
//go:noinline
func doClone(args *cloneArgs, c *child) (uintptr, syscall.Errno) {
	pid, _, e := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(args)), unsafe.Sizeof(*args), 0)
	if e != 0 || pid != 0 {
		return pid, e
	}
	c.run()
	return 0, 0
}
