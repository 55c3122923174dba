package native

import (
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/insecure"
	"github.com/gantryd/gantry/internal/seccomp"
)

// A process that is added can be seen from the moment it is in the container's process namespace. To
// most containers it shows nothing: it is not dumpable. One with CAP_SYS_PTRACE could take it over
// before it has given up what it has of the host's power, and keep that. For such a container the
// process that is not seen gives everything up, filter and all, and makes the one that is seen last. So
// does the first process of a container that joins another's: what that one's may do is not known.
// (Both count against a limit of processes for that moment.)

// tracing reports whether who has these can trace every process that it sees.
func (s capSets) tracing() bool { return s.bounding>>unix.CAP_SYS_PTRACE&1 != 0 }

// confinedFirst reports whether a process, added to others of which one may trace it, is to be confined before
// it is made.
func (p *process) confinedFirst(warn func(string, ...any)) bool {
	if insecure.Without(insecure.Unseen) {
		return false
	}
	if len(p.filter) == 0 || p.forks() {
		return true
	}
	warn("the container may trace processes, and its seccomp profile allows no clone: what is added can be traced before it is confined")
	return false
}

// forks reports whether p's filter allows what is left to do for it once it is confined.
func (p *process) forks() bool {
	for _, call := range [][]uint64{
		{unix.SYS_CLONE, cloneConfined}, {unix.SYS_SENDMSG}, {unix.SYS_EXIT_GROUP}, {unix.SYS_SETSID}, {unix.SYS_IOCTL, 0, unix.TIOCSCTTY},
	} {
		switch seccomp.Judge(p.filter, uintptr(call[0]), call[1:]...) & unix.SECCOMP_RET_ACTION_FULL {
		case unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_LOG:
		default:
			return false
		}
	}
	return true
}

// cloneConfined are the flags of clone(2) for it: filters let it pass that know no clone3(2).
const cloneConfined = unix.CLONE_PARENT | unix.CLONE_PIDFD
