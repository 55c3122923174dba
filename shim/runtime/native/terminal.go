package native

import (
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/insecure"
)

// devptsMagic is a devpts's filesystem type (statfs(2)).
const devptsMagic = 0x1cd1

// terminal opens a pair through a devpts's own ptmx, without resolving the name of the other side:
// what /dev/pts/0 is called inside, the container decides.
func terminal(ptmx int, size *specs.Box) (master *os.File, slave int, err error) {
	fail := func(err error) (*os.File, int, error) {
		_ = unix.Close(ptmx)
		return nil, -1, fmt.Errorf("open terminal: %w", err)
	}
	if err := isPtmx(ptmx); err != nil {
		return fail(err)
	}
	unlock := int32(0)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(ptmx), unix.TIOCSPTLCK, uintptr(unsafe.Pointer(&unlock))); errno != 0 {
		return fail(errno)
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(ptmx), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return fail(errno)
	}
	slave, err = unix.FcntlInt(peer, unix.F_DUPFD_CLOEXEC, low)
	_ = unix.Close(int(peer))
	if err != nil {
		return fail(err)
	}
	if size != nil {
		_ = unix.IoctlSetWinsize(ptmx, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(min(size.Height, 65535)), Col: uint16(min(size.Width, 65535))})
	}
	if err := unix.SetNonblock(ptmx, true); err != nil {
		_ = unix.Close(slave)
		return fail(err)
	}
	return os.NewFile(uintptr(ptmx), "terminal"), slave, nil
}

// terminal of the first process: in the devpts that the container will have.
func (b *builder) terminal(p *process) (*os.File, error) {
	ptmx, err := -1, error(nil)
	if b.devpts >= 0 {
		ptmx, err = openIn(b.devpts, "ptmx", unix.O_RDWR|unix.O_NOCTTY, unix.RESOLVE_NO_SYMLINKS)
	} else {
		var at place
		if at, err = b.find("/dev/pts/ptmx"); err == nil {
			ptmx, err = openPtmx(at.fd)
			at.close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open terminal: the container has no /dev/pts: %w", err)
	}
	master, slave, err := terminal(ptmx, p.spec.ConsoleSize)
	if err != nil {
		return nil, err
	}
	b.open.add(slave)
	p.stdio = [3]int{slave, slave, slave}
	return master, nil
}

func isPtmx(fd int) error {
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	if fs.Type != devptsMagic || st.Mode&unix.S_IFMT != unix.S_IFCHR || unix.Major(st.Rdev) != 5 || unix.Minor(st.Rdev) != 2 {
		return fmt.Errorf("the container's /dev/pts/ptmx is not one: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// openPtmx opens what an O_PATH descriptor stands for, if it is a devpts's ptmx: who brings a /dev of
// his own may have put a device there that does something when it is opened.
func openPtmx(fd int) (int, error) {
	if !insecure.Without(insecure.Ptmx) {
		if err := isPtmx(fd); err != nil {
			return -1, err
		}
	}
	return reopen(fd, unix.O_RDWR|unix.O_NOCTTY)
}

func reopen(fd, flags int) (int, error) {
	return unix.Open("/proc/self/fd/"+strconv.Itoa(fd), flags|unix.O_CLOEXEC, 0)
}

// console has the child bind the terminal over /dev/console, which was made, or is refused if it is a
// link (CVE-2021-30465, CVE-2025-52565: opened, checked, then mounted over, by descriptor).
func (b *builder) console(slave int) error {
	p, err := b.make("/dev/console", false)
	if err != nil {
		return fmt.Errorf("make /dev/console: %w", err)
	}
	p.close()
	b.say("mount terminal at /dev/console")
	const from = regFree
	b.add(unix.SYS_OPEN_TREE, uintptr(slave), b.str(""), unix.OPEN_TREE_CLONE|openTreeCloexec|unix.AT_EMPTY_PATH).into(from)
	b.attach(from, true, p.path)
	b.add(unix.SYS_CLOSE, from).ref(0)
	return nil
}

// session has the child lead a session of its own, at its terminal if it has one.
func (b *program) session(p *process) {
	b.say("make session")
	b.add(unix.SYS_SETSID)
	if p.tty {
		b.say("take terminal")
		b.add(unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	}
}
