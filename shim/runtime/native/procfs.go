package native

import (
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A container may join a process namespace that others are in already, and one of those may have the
// right to look into every process that it sees. So nobody of the new container's is in it before its
// root, its descriptors and its directory are the container's own: the child makes its last step there,
// as a process that is added does (forkInto). Its procfs, which shows the namespace of whoever mounts
// it, comes from elsewhere.

// oldProcfs is set once the kernel has shown that it does not take a process namespace by descriptor
// (before 6.17).
var oldProcfs atomic.Bool

// procfsOf mounts the procfs that shows a process namespace.
func procfsOf(pidns int) func(kind, source string, o options) (int, error) {
	return func(_, source string, o options) (int, error) {
		if !oldProcfs.Load() {
			fd, err := procfsByName(pidns, source, o)
			if !errors.Is(err, unix.EINVAL) {
				return fd, err
			}
			oldProcfs.Store(true)
		}
		fd, err := procfsFromInside(pidns, o)
		if err != nil {
			return -1, fmt.Errorf("mount procfs of a process namespace: %w", err)
		}
		return fd, nil
	}
}

func procfsByName(pidns int, source string, o options) (int, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs) //nolint:errcheck // a context holds nothing
	if err := unix.FsconfigSetFd(fs, "pidns", pidns); err != nil {
		return -1, err
	}
	return filled(fs, source, o)
}

// procfsFromInside has a process mount it that is in the namespace for a moment: with an empty directory
// as its root, in a mount namespace in which there is nothing else, and no descriptor but the socket to
// this process. Its maker, whom nobody there can see, keeps what it has made.
func procfsFromInside(pidns int, o options) (int, error) {
	ctl, theirs, err := newControl()
	if err != nil {
		return -1, err
	}
	defer ctl.close()
	b := &builder{program: program{controlFD: theirs}}
	defer b.closeControl()
	b.say("join process namespace")
	b.add(unix.SYS_SETNS, uintptr(pidns), unix.CLONE_NEWPID)
	b.say("close descriptors")
	const control, made = 3, 1
	b.add(unix.SYS_DUP3, uintptr(theirs), control, unix.O_CLOEXEC)
	b.addKind(kindTell, control)
	b.add(unix.SYS_CLOSE_RANGE, control+1, uintptr(^uint32(0)), 0)
	b.add(unix.SYS_CLOSE_RANGE, 0, control-1, 0)
	b.emptyRoot()
	b.say("fork")
	b.add(unix.SYS_CLONE, uintptr(unix.SIGCHLD)|unix.CLONE_FILES, 0, 0, 0, 0).into(regFork)
	b.addKind(kindZero, regFork).ref(0)
	inside := b.here() - 1
	b.say("wait")
	status := new(uint32)
	addr := hold(&b.program, status)
	b.add(unix.SYS_WAIT4, regFork, addr, 0, 0).ref(0)
	b.addKind(kindEqual, addr, uintptr(^uint32(0)), 0, uintptr(unix.ECHILD))
	b.addKind(kindReady)
	b.ops[inside].to = b.here()
	b.say("mount procfs")
	b.newMount("proc", o, regFree) // the first two descriptors, of which the first is closed
	b.add(unix.SYS_EXIT_GROUP, 0)
	c, err := b.spawn(unix.CLONE_NEWNS, -1)
	b.closeControl()
	if err != nil {
		return -1, fmt.Errorf("clone: %w", err)
	}
	defer c.destroy()
	rec, _, err := ctl.read()
	switch {
	case err != nil:
		return -1, err
	case rec.index != ready:
		return -1, b.failed(rec)
	}
	return unix.PidfdGetfd(c.pidfd, made, 0)
}

// emptyRoot has a child in a mount namespace of its own have nothing but an empty directory in it.
func (b *builder) emptyRoot() {
	b.say("make empty root")
	dot := b.str(".")
	b.add(unix.SYS_MOUNT, 0, b.str("/"), 0, unix.MS_PRIVATE|unix.MS_REC, 0)
	b.newMount("tmpfs", options{set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}, regFree)
	b.add(unix.SYS_OPENAT, at, b.str("/"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0).into(regRoot)
	b.add(unix.SYS_MOVE_MOUNT, regFree, b.str(""), regRoot, b.str(""), unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH).ref(0, 2)
	b.add(unix.SYS_FCHDIR, regFree).ref(0)
	b.add(unix.SYS_PIVOT_ROOT, dot, dot)
	b.add(unix.SYS_FCHDIR, regRoot).ref(0)
	b.add(unix.SYS_UMOUNT2, dot, unix.MNT_DETACH)
	b.add(unix.SYS_CHDIR, b.str("/"))
	b.add(unix.SYS_CLOSE, regRoot).ref(0)
	b.add(unix.SYS_CLOSE, regFree).ref(0)
}
