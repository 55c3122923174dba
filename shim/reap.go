package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reaper reaps those whose parents died: a shim is the subreaper of its container. Processes of the
// runtime's it leaves to those who wait for them.
type reaper struct {
	mu      sync.Mutex
	known   map[int]bool
	making  map[uint64]bool // those who make processes that are not yet known, by when they began
	began   uint64
	suspect struct { // a zombie that nobody knows, and who may have made it: those who had begun when it was seen first
		pid   int
		until uint64
	}

	poke chan os.Signal
}

func newReaper() *reaper {
	return &reaper{known: map[int]bool{}, making: map[uint64]bool{}, poke: make(chan os.Signal, 1)}
}

// guard runs a function that makes, and waits for, a child; it may be called by such a function.
func (r *reaper) guard(run func()) { r.make(func() int { run(); return 0 }) }

// make runs a function that makes a process, and returns its pid, or 0.
func (r *reaper) make(fn func() int) {
	r.mu.Lock()
	r.began++
	me := r.began
	r.making[me] = true
	r.mu.Unlock()
	pid := fn()
	r.mu.Lock()
	if pid != 0 {
		r.known[pid] = true
	}
	delete(r.making, me)
	r.mu.Unlock()
	r.again()
}

// forget says that a process was waited for.
func (r *reaper) forget(pid int) {
	r.mu.Lock()
	delete(r.known, pid)
	r.mu.Unlock()
	r.again()
}

// again has it look again: somebody may stand behind one who was waited for.
func (r *reaper) again() {
	select {
	case r.poke <- unix.SIGCHLD:
	default:
	}
}

// run reaps until the process ends.
func (r *reaper) run() {
	signal.Notify(r.poke, unix.SIGCHLD)
	for range r.poke {
		for r.one() {
		}
	}
}

// one reaps one orphan. The kernel shows the same zombie until somebody takes it: one that is known
// has its waiter, who pokes us after it; one that is not may be about to be known, until all who made
// processes when it was seen have done so.
func (r *reaper) one() bool {
	pid := peek()
	r.mu.Lock()
	defer r.mu.Unlock()
	if pid <= 0 || r.known[pid] {
		r.suspect.pid = 0
		return false
	}
	if r.suspect.pid != pid {
		r.suspect.pid, r.suspect.until = pid, r.began
	}
	for began := range r.making {
		if began <= r.suspect.until {
			return false
		}
	}
	r.suspect.pid = 0
	_, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
	return err == nil || errors.Is(err, unix.ECHILD)
}

// childInfo is siginfo_t as waitid(2) fills it in for a child.
type childInfo struct {
	signo, errno, code int32
	_                  int32
	pid                int32
	uid                uint32
	status             int32
	_                  [100]byte
}

func waitid(kind, id int, info *childInfo, options int) error {
	for {
		_, _, errno := unix.Syscall6(unix.SYS_WAITID, uintptr(kind), uintptr(id), uintptr(unsafe.Pointer(info)), uintptr(options), 0, 0) //nolint:gosec // small numbers
		if errno == 0 {
			return nil
		}
		if errno != unix.EINTR {
			return errno
		}
	}
}

// peek returns a zombie child's pid, 0 if there is none, and leaves it a zombie.
func peek() int {
	var info childInfo
	if waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT) != nil {
		return 0
	}
	return int(info.pid)
}

// The si_code of a child that was killed (waitid(2)).
const (
	cldKilled = 2
	cldDumped = 3
)

// await waits until the process that pidfd stands for has ended, and reaps it. No thread waits with
// it: the descriptor is readable then.
func await(pidfd *os.File) (unix.WaitStatus, error) {
	f, err := shared(pidfd)
	if err != nil {
		return 0, err
	}
	defer f.Close() //nolint:errcheck // a copy
	rc, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var info childInfo
	var werr error
	err = rc.Read(func(fd uintptr) bool {
		werr = waitid(unix.P_PIDFD, int(fd), &info, unix.WEXITED|unix.WNOHANG) //nolint:gosec // a descriptor
		return werr != nil && !errors.Is(werr, unix.EAGAIN) || info.pid != 0
	})
	if err := errors.Join(err, werr); err != nil {
		return 0, fmt.Errorf("wait for a process: %w", err)
	}
	if info.code == cldKilled || info.code == cldDumped {
		return unix.WaitStatus(info.status & 0x7f), nil //nolint:gosec // a signal
	}
	return unix.WaitStatus(info.status&0xff) << 8, nil //nolint:gosec // eight bits
}

// shared returns a copy of f that Go's poller waits for; f stays.
func shared(f *os.File) (*os.File, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, derr := -1, error(nil)
	if err := rc.Control(func(old uintptr) { fd, derr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) }); err != nil {
		return nil, err
	}
	if derr != nil {
		return nil, derr
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), f.Name()), nil //nolint:gosec // a descriptor
}
