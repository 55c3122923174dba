package native

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// child is a process that runs a program.
type child struct {
	pid   int
	pidfd int
}

// spawn clones a child that runs p. flags are those of clone3(2); cgroup is a descriptor of a v2
// cgroup to be born in, or -1.
//
//go:norace
//go:nocheckptr
func spawn(p *program, flags uint64, cgroup, control int) (child, error) {
	regs := new([registers]uintptr)
	regs[regControl] = uintptr(control)
	pidfd := new(int32)
	ca := &cloneArgs{flags: flags | unix.CLONE_PIDFD, pidfd: uint64(uintptr(unsafe.Pointer(pidfd))), exitSignal: uint64(unix.SIGCHLD)}
	if cgroup >= 0 {
		ca.flags |= unix.CLONE_INTO_CGROUP
		ca.cgroup = uint64(cgroup)
	}
	runtime.LockOSThread()
	// With every signal blocked no handler of the Go runtime runs in the child, which has none.
	all, old := ^uint64(0), uint64(0)
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	pid, errno := fork(ca, unsafe.Pointer(&p.ops[0]), len(p.ops), unsafe.Pointer(regs))
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
	runtime.UnlockOSThread()
	runtime.KeepAlive(p)
	runtime.KeepAlive(ca)
	if errno != 0 {
		return child{}, errno
	}
	return child{pid: int(pid), pidfd: int(*pidfd)}, nil
}

// fork is the one function that returns twice; in the child it does not return.
//
//go:norace
//go:nocheckptr
//go:nosplit
//go:noinline
func fork(ca *cloneArgs, ops unsafe.Pointer, n int, regs unsafe.Pointer) (uintptr, syscall.Errno) {
	pid, _, e := syscall.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(ca)), unsafe.Sizeof(*ca), 0)
	if e != 0 || pid != 0 {
		return pid, e
	}
	// Signals that the parent ignores would stay ignored in the container.
	var dfl [4]uintptr
	for s := uintptr(1); s < 65; s++ {
		if s != uintptr(unix.SIGKILL) && s != uintptr(unix.SIGSTOP) {
			syscall.RawSyscall6(unix.SYS_RT_SIGACTION, s, uintptr(unsafe.Pointer(&dfl)), 0, 8, 0, 0)
		}
	}
	run(ops, n, regs)
	return 0, 0
}

// reap waits for a child that is no one else's to wait for. Somebody who waits for any child may
// have been first.
func reap(c child) {
	for {
		err := unix.Waitid(unix.P_PIDFD, c.pidfd, nil, unix.WEXITED, nil)
		if err != unix.EINTR { //nolint:errorlint // a plain errno
			return
		}
	}
}

// destroy kills and reaps.
func (c child) destroy() {
	_ = unix.PidfdSendSignal(c.pidfd, unix.SIGKILL, nil, 0)
	reap(c)
	_ = unix.Close(c.pidfd)
}
