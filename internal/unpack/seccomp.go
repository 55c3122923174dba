package unpack

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// allowed is every system call that unpacking and Go's runtime make, the frequent ones first. Everything else answers
// EPERM: no mounting, no namespaces, no sockets, no programs, no other processes, no handles, no keys, no bpf.
var allowed = []uintptr{
	unix.SYS_WRITE, unix.SYS_READ, unix.SYS_FUTEX, unix.SYS_OPENAT, unix.SYS_CLOSE,
	unix.SYS_FCHOWN, unix.SYS_FCHMOD, unix.SYS_UTIMENSAT, unix.SYS_OPENAT2, unix.SYS_NEWFSTATAT,
	unix.SYS_FCHOWNAT, unix.SYS_SYMLINKAT, unix.SYS_MKDIRAT, unix.SYS_LINKAT, unix.SYS_FSTAT,
	unix.SYS_UNLINKAT, unix.SYS_FCHMODAT, unix.SYS_MKNODAT, unix.SYS_FSETXATTR, unix.SYS_LSETXATTR,
	unix.SYS_FREMOVEXATTR, unix.SYS_FCHDIR, unix.SYS_LSEEK, unix.SYS_FTRUNCATE, unix.SYS_GETDENTS64,
	// Go's runtime
	unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_SCHED_YIELD, unix.SYS_MADVISE, unix.SYS_MMAP, unix.SYS_MUNMAP,
	unix.SYS_MPROTECT, unix.SYS_BRK, unix.SYS_MINCORE, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGRETURN,
	unix.SYS_SIGALTSTACK, unix.SYS_RESTART_SYSCALL, unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_TGKILL,
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2, unix.SYS_FCNTL,
	unix.SYS_CLOCK_GETTIME, unix.SYS_GETTIMEOFDAY, unix.SYS_GETRANDOM, unix.SYS_SCHED_GETAFFINITY,
	unix.SYS_SETITIMER, unix.SYS_TIMER_CREATE, unix.SYS_TIMER_SETTIME, unix.SYS_TIMER_DELETE,
	unix.SYS_PRCTL, unix.SYS_PRLIMIT64, unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ, unix.SYS_MEMBARRIER,
	unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
}

// The fields of struct seccomp_data (seccomp(2)), little-endian on both.
const (
	dataNr   = 0
	dataArch = 4
	dataArg0 = 16
)

var auditArch = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// filter is the program: the right architecture, then one comparison per call. New threads are allowed, new processes are not.
func filter() ([]unix.SockFilter, error) {
	arch, ok := auditArch[runtime.GOARCH]
	if !ok {
		return nil, fmt.Errorf("no filter for %s", runtime.GOARCH)
	}
	const (
		load = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		eq   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		set  = unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K
		ret  = unix.BPF_RET | unix.BPF_K
		deny = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
	)
	p := []unix.SockFilter{
		{Code: load, K: dataArch},
		{Code: eq, K: arch, Jt: 1},
		{Code: ret, K: unix.SECCOMP_RET_KILL_PROCESS},
		{Code: load, K: dataNr},
	}
	for _, nr := range allowed {
		p = append(p, unix.SockFilter{Code: eq, K: uint32(nr), Jf: 1}, unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW})
	}
	return append(p,
		// A C library asks for clone3 first, whose flags no filter can see, and takes ENOSYS for an old kernel.
		unix.SockFilter{Code: eq, K: unix.SYS_CLONE3, Jf: 1},
		unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		unix.SockFilter{Code: eq, K: unix.SYS_CLONE, Jf: 3},
		unix.SockFilter{Code: load, K: dataArg0},
		unix.SockFilter{Code: set, K: unix.CLONE_THREAD, Jf: 1},
		unix.SockFilter{Code: ret, K: unix.SECCOMP_RET_ALLOW},
		unix.SockFilter{Code: ret, K: deny},
	), nil
}

// lock applies the filter to all threads.
func lock() error {
	p, err := filter()
	if err != nil {
		return fmt.Errorf("lock in: %w", err)
	}
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	stray, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_TSYNC|unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(p)
	if errno != 0 {
		return fmt.Errorf("lock in: seccomp: %w", errno)
	}
	if stray != 0 {
		return fmt.Errorf("lock in: seccomp: thread %d did not take the filter", stray)
	}
	return nil
}
