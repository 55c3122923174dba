package plain

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	goruntime "runtime"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/cgroup"
	"github.com/gantryd/gantry/shim/runtime"
)

// Runtime is the native runtime.
type Runtime struct{}

// New returns it.
func New() (runtime.Runtime, error) { return Runtime{}, nil }

// onThread runs fn on a thread of its own, which ends with it: namespaces that fn enters, it takes along.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		goruntime.LockOSThread() // never unlocked
		done <- fn()
	}()
	return <-done
}

// Create makes c. See runtime.Runtime.
func (Runtime) Create(ctx context.Context, c *runtime.Config) (_ runtime.Container, err error) {
	if err := check(c.Spec); err != nil {
		return nil, err
	}
	b := &builder{c: c, spec: c.Spec}
	defer b.close()
	if b.group, err = cgroup.Open(c.Spec.Linux.CgroupsPath); err != nil {
		return nil, err
	}
	if err := b.group.Create(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = b.group.Kill(context.WithoutCancel(ctx))
			_ = b.group.Remove(context.WithoutCancel(ctx))
		}
	}()
	if r := c.Spec.Linux.Resources; r != nil {
		if err := b.group.Limit(r); err != nil {
			return nil, err
		}
		if err := b.group.Devices(r.Devices); err != nil {
			return nil, err
		}
	}
	var init *process
	if err := onThread(func() (err error) { init, err = b.build(ctx); return err }); err != nil {
		return nil, err
	}
	return &container{group: b.group, spec: c.Spec, seccomp: c.Seccomp, init: init, keep: b.keep}, nil
}

// builder holds what Create needs until the child has it.
type builder struct {
	c     *runtime.Config
	spec  *specs.Spec
	group *cgroup.Group
	t     tree
	p     program
	fds   []int    // closed when Create returns
	keep  int      // the root filesystem: see container.keep
	tty   *os.File // the controlling side
	slave int      // the container's side, -1 without
	stdio [3]int
}

func (b *builder) own(fd int) int { b.fds = append(b.fds, fd); return fd }

func (b *builder) close() {
	for _, fd := range b.fds {
		_ = unix.Close(fd)
	}
}

// build runs on a thread of its own: it enters new namespaces, makes the root filesystem there with
// ordinary Go, and clones the child, which does the rest.
func (b *builder) build(ctx context.Context) (*process, error) {
	if err := b.namespaces(); err != nil {
		return nil, err
	}
	if err := b.rootfs(); err != nil {
		return nil, err
	}
	for _, m := range b.spec.Mounts {
		if m.Type == "proc" {
			if _, err := b.t.ensure(m.Destination, true); err != nil {
				return nil, fmt.Errorf("mount %s: %w", m.Destination, err)
			}
			continue
		}
		if err := b.t.mount(m, b.group); err != nil {
			return nil, err
		}
		if m.Destination == "/dev" && m.Type == "tmpfs" {
			if err := b.devices(); err != nil {
				return nil, err
			}
		}
	}
	if err := b.names(); err != nil {
		return nil, err
	}
	who, err := lookup(&b.t, b.c.User, b.spec.Process.User)
	if err != nil {
		return nil, err
	}
	if err := b.console(who); err != nil {
		return nil, err
	}
	if b.c.Init {
		if err := b.bindInit(); err != nil {
			return nil, err
		}
	}
	e, err := b.entrance()
	if err != nil {
		return nil, err
	}
	return b.clone(ctx, e, who)
}

// namespaces moves the thread into the container's namespaces, but for pid and cgroup, which begin with the child.
func (b *builder) namespaces() error {
	flags := unix.CLONE_NEWNS
	for _, n := range b.spec.Linux.Namespaces {
		switch n.Type {
		case specs.IPCNamespace:
			flags |= unix.CLONE_NEWIPC
		case specs.UTSNamespace:
			flags |= unix.CLONE_NEWUTS
		case specs.NetworkNamespace:
			if p := b.netns(n); p != "" {
				fd, err := unix.Open(p, unix.O_RDONLY|unix.O_CLOEXEC, 0)
				if err != nil {
					return fmt.Errorf("join network namespace: %w", &os.PathError{Op: "open", Path: p, Err: err})
				}
				err = unix.Setns(fd, unix.CLONE_NEWNET)
				_ = unix.Close(fd)
				if err != nil {
					return fmt.Errorf("join network namespace %s: %w", p, err)
				}
			} else {
				flags |= unix.CLONE_NEWNET
			}
		}
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("make namespaces: %w", err)
	}
	// Nothing that is mounted here reaches the host; what the host mounts later comes in only where asked.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return nil
}

func (b *builder) netns(n specs.LinuxNamespace) string {
	if b.c.NetNS != "" {
		return b.c.NetNS
	}
	return n.Path
}

// rootfs mounts the root filesystem on a directory of the host's, seen by this thread and the child alone.
func (b *builder) rootfs() error {
	at := b.spec.Root.Path
	if !path.IsAbs(at) {
		at = path.Join(b.c.Bundle, at)
	}
	mnt := -1
	var err error
	if len(b.c.Rootfs) == 0 {
		mnt, _, err = bind(at, options{recursive: true})
	} else {
		m := b.c.Rootfs[0]
		o := sortOut(m.Options)
		switch m.Type {
		case "bind":
			mnt, _, err = bind(m.Source, o)
		case "overlay":
			mnt, err = overlay(m.Source, o)
		default:
			mnt, err = filesystem(m.Type, m.Source, o)
		}
	}
	if err != nil {
		return fmt.Errorf("root filesystem: %w", err)
	}
	b.own(mnt)
	if err := os.MkdirAll(at, 0o700); err != nil {
		return fmt.Errorf("root filesystem: %w", err)
	}
	if err := unix.MoveMount(mnt, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("root filesystem: mount at %s: %w", at, err)
	}
	b.t = tree{root: mnt, warn: b.c.Warn}
	if b.keep, err = unix.FcntlInt(uintptr(mnt), unix.F_DUPFD_CLOEXEC, 3); err != nil {
		return fmt.Errorf("root filesystem: %w", err)
	}
	for _, m := range b.c.Rootfs[min(1, len(b.c.Rootfs)):] {
		if err := b.t.mount(specs.Mount{Destination: "/" + m.Target, Type: m.Type, Source: m.Source, Options: m.Options}, b.group); err != nil {
			return err
		}
	}
	return nil
}

var nodes = []struct {
	name         string
	major, minor uint32
}{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}}

// devices fills /dev, a fresh tmpfs in which nothing is anyone else's.
func (b *builder) devices() error {
	dev, err := b.t.open("/dev", unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(dev) //nolint:errcheck // O_PATH
	old := unix.Umask(0)
	defer unix.Umask(old)
	for _, n := range nodes {
		if err := unix.Mknodat(dev, n.name, unix.S_IFCHR|0o666, int(unix.Mkdev(n.major, n.minor))); err != nil {
			return fmt.Errorf("make /dev/%s: %w", n.name, err)
		}
	}
	for name, to := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2", "ptmx": "pts/ptmx", "core": "/proc/kcore",
	} {
		if err := unix.Symlinkat(to, dev, name); err != nil {
			return fmt.Errorf("make /dev/%s: %w", name, err)
		}
	}
	return nil
}

// names sets what the container's namespaces are called and tuned to.
func (b *builder) names() error {
	if h := b.spec.Hostname; h != "" {
		if err := unix.Sethostname([]byte(h)); err != nil {
			return fmt.Errorf("set hostname: %w", err)
		}
	}
	if d := b.spec.Domainname; d != "" {
		if err := unix.Setdomainname([]byte(d)); err != nil {
			return fmt.Errorf("set domainname: %w", err)
		}
	}
	for k, v := range b.spec.Linux.Sysctl {
		if err := writeProc("sys/"+strings.ReplaceAll(k, ".", "/"), v); err != nil {
			return fmt.Errorf("set sysctl %s: %w", k, err)
		}
	}
	return nil
}

// writeProc writes a file of procfs, and makes sure that it is one (CVE-2025-52881).
func writeProc(name, value string) error {
	proc, err := unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(proc) //nolint:errcheck // O_PATH
	fd, err := unix.Openat2(proc, name, &unix.OpenHow{Flags: unix.O_WRONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS})
	if err != nil {
		return &os.PathError{Op: "open", Path: "/proc/" + name, Err: err}
	}
	defer unix.Close(fd) //nolint:errcheck // the write tells
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil || st.Type != unix.PROC_SUPER_MAGIC {
		return fmt.Errorf("/proc/%s is no file of procfs", name)
	}
	_, err = unix.Write(fd, []byte(value))
	return err
}

// console opens a terminal in the container's own devpts, or takes the pipes.
func (b *builder) console(who identity) error {
	b.slave = -1
	if !b.spec.Process.Terminal {
		return b.pipes(b.c.Stdio)
	}
	master, slave, err := openTerminal(&b.t)
	if err != nil {
		return fmt.Errorf("make terminal: %w", err)
	}
	b.tty, b.slave = os.NewFile(uintptr(master), "terminal"), b.own(slave)
	_ = unix.Fchown(slave, int(who.uid), -1)
	if s := b.spec.Process.ConsoleSize; s != nil {
		_ = unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(s.Height), Col: uint16(s.Width)})
	}
	// /dev/console is the terminal: bound by descriptor, on a file that was just made.
	mnt, _, err := bindAt(slave, "terminal", options{})
	if err != nil {
		return fmt.Errorf("make /dev/console: %w", err)
	}
	return b.t.attach(mnt, "/dev/console", false)
}

func (b *builder) pipes(s runtime.Stdio) error {
	for i, f := range []*os.File{s.In, s.Out, s.Err} {
		if f == nil {
			fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			b.stdio[i] = b.own(fd)
			continue
		}
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3) // Fd makes it blocking, as a program expects
		if err != nil {
			return err
		}
		b.stdio[i] = b.own(fd)
	}
	return nil
}

// openTerminal opens a new terminal of the tree's /dev/pts. The paths may be the container's:
// what is opened is checked to be devpts's.
func openTerminal(t *tree) (master, slave int, err error) {
	o, err := t.open("/dev/pts/ptmx", unix.O_PATH|unix.O_NOFOLLOW)
	if err != nil {
		return -1, -1, err
	}
	defer unix.Close(o) //nolint:errcheck // O_PATH
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := unix.Fstatfs(o, &fs); err != nil {
		return -1, -1, err
	}
	if err := unix.Fstat(o, &st); err != nil {
		return -1, -1, err
	}
	if fs.Type != unix.DEVPTS_SUPER_MAGIC || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(5, 2) {
		return -1, -1, errors.New("/dev/pts/ptmx is not the kernel's")
	}
	if master, err = unix.Open(fmt.Sprintf("/proc/self/fd/%d", o), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0); err != nil {
		return -1, -1, err
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		_ = unix.Close(master)
		return -1, -1, err
	}
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		_ = unix.Close(master)
		return -1, -1, errno
	}
	return master, int(n), nil
}

func (b *builder) entrance() (*cgroup.Entrance, error) {
	e, err := b.group.Enter()
	if err != nil {
		return nil, err
	}
	for i, f := range e.Tasks { // the child's descriptors are cleared of 0, 1 and 2
		if f.Fd() < 3 {
			return nil, fmt.Errorf("enter cgroup: descriptor %d", i)
		}
	}
	return e, nil
}
