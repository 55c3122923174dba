package native

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"unsafe"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/insecure"
	"github.com/gantryd/gantry/shim/runtime"
)

// namespaces is what config.json says about them.
type namespaces struct {
	clone uint64 // new ones, as flags of clone3
	joins []join
	has   map[specs.LinuxNamespaceType]bool // not the host's
	user  int                               // the user namespace to join, or -1
	ids   *idmap                            // of the user namespace, new or joined; nil: the host's
	// The cgroup namespace is made by the child itself: the one that clone makes begins at the
	// cgroup that the parent is in. So is the time namespace, whose clocks must be set before
	// anybody is in it.
	newCgroup, newTime bool
	newNet             bool
	net                int // the network namespace to join, or -1
	offsets            []byte
}

type join struct {
	kind uint64
	path string
	fd   int
}

var namespaceFlags = map[specs.LinuxNamespaceType]uint64{
	specs.PIDNamespace: unix.CLONE_NEWPID, specs.NetworkNamespace: unix.CLONE_NEWNET, specs.MountNamespace: unix.CLONE_NEWNS,
	specs.IPCNamespace: unix.CLONE_NEWIPC, specs.UTSNamespace: unix.CLONE_NEWUTS, specs.CgroupNamespace: unix.CLONE_NEWCGROUP,
	specs.UserNamespace: unix.CLONE_NEWUSER, specs.TimeNamespace: unix.CLONE_NEWTIME,
}

// readNamespaces sorts them and opens those to join.
func readNamespaces(c *runtime.Config, open *files) (*namespaces, error) {
	n := &namespaces{has: map[specs.LinuxNamespaceType]bool{}, user: -1, net: -1}
	for _, ns := range c.Spec.Linux.Namespaces {
		flag, ok := namespaceFlags[ns.Type]
		if !ok {
			return nil, fmt.Errorf("linux.namespaces: a %s namespace is not supported: %w", ns.Type, errdefs.ErrNotImplemented)
		}
		if n.has[ns.Type] {
			return nil, invalid("linux.namespaces: two of type %s", ns.Type)
		}
		n.has[ns.Type] = true
		where := ns.Path
		if ns.Type == specs.NetworkNamespace && c.NetNS != "" {
			where = c.NetNS
		}
		if where != "" {
			if err := n.join(ns.Type, flag, where, open); err != nil {
				return nil, err
			}
			continue
		}
		switch ns.Type {
		case specs.CgroupNamespace:
			n.newCgroup = true
			continue
		case specs.TimeNamespace:
			n.newTime = true
			continue
		case specs.NetworkNamespace:
			n.newNet = true
		}
		n.clone |= flag
	}
	if c.NetNS != "" && !n.has[specs.NetworkNamespace] {
		return nil, invalid("linux.namespaces: a network namespace is given, and config.json shares the host's")
	}
	if n.clone&unix.CLONE_NEWNS == 0 {
		return nil, fmt.Errorf("linux.namespaces: a container without a mount namespace of its own is not supported: %w", errdefs.ErrNotImplemented)
	}
	if err := n.clocks(c.Spec.Linux.TimeOffsets); err != nil {
		return nil, err
	}
	return n, n.users(c.Spec.Linux)
}

func (n *namespaces) join(kind specs.LinuxNamespaceType, flag uint64, where string, open *files) error {
	if flag == unix.CLONE_NEWNS {
		return fmt.Errorf("linux.namespaces: to join a %s namespace is not supported: %w", kind, errdefs.ErrNotImplemented)
	}
	fd, err := openNamespace(kind, flag, where)
	if err != nil {
		return err
	}
	open.add(fd)
	switch kind {
	case specs.UserNamespace:
		n.user = fd
		return nil
	case specs.NetworkNamespace:
		n.net = fd
	}
	n.joins = append(n.joins, join{flag, where, fd})
	return nil
}

func openNamespace(kind specs.LinuxNamespaceType, flag uint64, where string) (int, error) {
	fd, err := unix.Open(where, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s namespace %s: %w", kind, where, err)
	}
	if is, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || uint64(is) != flag {
		_ = unix.Close(fd)
		return -1, invalid("%s is not a %s namespace", where, kind)
	}
	return fd, nil
}

// clocks reads linux.timeOffsets.
func (n *namespaces) clocks(offsets map[string]specs.LinuxTimeOffset) error {
	if len(offsets) > 0 && !n.newTime {
		return invalid("linux.timeOffsets: the container has no new time namespace")
	}
	for _, clock := range sorted(offsets) {
		o := offsets[clock]
		if clock != "monotonic" && clock != "boottime" {
			return invalid("linux.timeOffsets: clock %q: monotonic and boottime are known", clock)
		}
		if o.Nanosecs > 999_999_999 {
			return invalid("linux.timeOffsets.%s.nanosecs: %d is a second or more", clock, o.Nanosecs)
		}
		n.offsets = fmt.Appendf(n.offsets, "%s %d %d\n", clock, o.Secs, o.Nanosecs)
	}
	return nil
}

// users reads whose ids the container's are.
func (n *namespaces) users(l *specs.Linux) (err error) {
	switch {
	case n.user >= 0:
		// What config.json says about a namespace that is there already is for whoever made it.
		if n.ids, err = mapsOf(n.user); err != nil {
			return err
		}
	case n.has[specs.UserNamespace]:
		if n.ids, err = newIDMap("linux", l.UIDMappings, l.GIDMappings); err != nil {
			return err
		}
		for kind, name := range map[uint64]string{unix.CLONE_NEWTIME: "time", unix.CLONE_NEWPID: "pid"} {
			if n.joined(kind) {
				return fmt.Errorf("linux.namespaces: to join a %s namespace from a new user namespace, which has no power over it, is not supported: join that one's user namespace too: %w", name, errdefs.ErrNotImplemented)
			}
		}
	case len(l.UIDMappings)+len(l.GIDMappings) > 0:
		return invalid("linux.uidMappings: the container has no user namespace")
	default:
		return nil
	}
	if _, err = n.ids.uid(0); err == nil {
		_, err = n.ids.gid(0)
	}
	return err
}

// newUser reports whether a user namespace is made. What else there is to join is then joined by the
// thread that clones: from inside nothing of the host's can be.
func (n *namespaces) newUser() bool { return n.clone&unix.CLONE_NEWUSER != 0 }

// early reports whether the child must make another at once to be in its process namespace, late whether
// it must do so at the end, because there are others in it (procfs.go).
func (n *namespaces) early() bool {
	return n.user >= 0 && n.clone&unix.CLONE_NEWPID != 0 || insecure.Without(insecure.Early) && n.late()
}
func (n *namespaces) late() bool  { return n.joined(unix.CLONE_NEWPID) }
func (n *namespaces) forks() bool { return n.early() || n.late() }

func (n *namespaces) joined(kind uint64) bool {
	return slices.ContainsFunc(n.joins, func(j join) bool { return j.kind == kind })
}

// cloned are the flags for clone3: a user namespace that is joined must be joined before the others
// are made, or they would not be its own.
func (n *namespaces) cloned() uint64 {
	if n.user >= 0 {
		return 0
	}
	return n.clone
}

// entered are the flags of setns(2) for a process that is added to the container.
func (n *namespaces) entered() uint64 {
	f := uint64(unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP)
	if n.has[specs.UserNamespace] {
		f |= unix.CLONE_NEWUSER
	}
	if n.has[specs.TimeNamespace] {
		f |= unix.CLONE_NEWTIME
	}
	return f
}

func (b *builder) join(ns *namespaces) {
	if ns.newUser() {
		b.newUser(ns)
	} else {
		for _, j := range ns.joins {
			b.say("join namespace %s", j.path)
			b.add(unix.SYS_SETNS, uintptr(j.fd), uintptr(j.kind))
		}
	}
	if ns.user >= 0 {
		b.say("join user namespace")
		b.add(unix.SYS_SETNS, uintptr(ns.user), unix.CLONE_NEWUSER)
		b.say("make namespaces")
		b.add(unix.SYS_UNSHARE, uintptr(ns.clone))
		b.beRoot()
	}
	if ns.newCgroup {
		b.say("make cgroup namespace")
		b.add(unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	}
	if ns.newTime {
		b.newTime(ns.offsets)
	}
	if ns.newNet {
		b.say("bring lo up")
		req := new([40]byte) // struct ifreq (netdevice(7))
		copy(req[:], "lo")
		*(*uint16)(unsafe.Pointer(&req[16])) = unix.IFF_UP | unix.IFF_RUNNING
		b.add(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0).into(regScratch)
		b.add(unix.SYS_IOCTL, regScratch, unix.SIOCSIFFLAGS, hold(&b.program, req)).ref(0)
		b.add(unix.SYS_CLOSE, regScratch).ref(0)
	}
	if ns.early() {
		b.forkInto(false)
	}
}

// newUser has the child, born in a new user namespace, become its root once the parent has written
// the maps.
func (b *builder) newUser(ns *namespaces) {
	joins := ns.joins
	b.prelude = func() error {
		for _, j := range joins {
			if err := unix.Setns(j.fd, int(j.kind)); err != nil {
				return fmt.Errorf("join namespace %s: %w", j.path, err)
			}
		}
		return nil
	}
	b.say("wait for id maps")
	ids := ns.ids
	b.ask(asksMaps, func(_ context.Context, c child) error { return ids.write(c.pid) })
	b.beRoot()
}

// newTime has the child make a time namespace, set its clocks, and enter it. It still sees the host's
// procfs, which is verified to be one.
func (b *builder) newTime(offsets []byte) {
	b.say("make time namespace")
	b.add(unix.SYS_UNSHARE, unix.CLONE_NEWTIME)
	if len(offsets) > 0 {
		b.say("set time offsets")
		b.openProc("/proc/self/timens_offsets", unix.O_WRONLY)
		b.add(unix.SYS_WRITE, regScratch, b.bytes(offsets), uintptr(len(offsets))).ref(0)
		b.add(unix.SYS_CLOSE, regScratch).ref(0)
	}
	b.say("enter time namespace")
	b.openProc("/proc/self/ns", unix.O_PATH|unix.O_DIRECTORY)
	b.add(unix.SYS_OPENAT, regScratch, b.str("time_for_children"), unix.O_RDONLY|unix.O_CLOEXEC, 0).ref(0).into(regFree)
	b.add(unix.SYS_CLOSE, regScratch).ref(0)
	b.add(unix.SYS_SETNS, regFree, unix.CLONE_NEWTIME).ref(0)
	b.add(unix.SYS_CLOSE, regFree).ref(0)
}

// sysctls checks that each belongs to a namespace that is not the host's.
func (n *namespaces) sysctls(values map[string]string) error {
	for _, name := range sorted(values) {
		key := strings.ReplaceAll(name, "/", ".")
		var need specs.LinuxNamespaceType
		switch {
		case strings.Contains(name, "..") || strings.ContainsRune(name, 0) || name == "":
			return invalid("sysctl %q: no such name", name)
		case strings.HasPrefix(key, "net."):
			need = specs.NetworkNamespace
		case strings.HasPrefix(key, "fs.mqueue."), strings.HasPrefix(key, "kernel.shm"), strings.HasPrefix(key, "kernel.msg"), key == "kernel.sem":
			need = specs.IPCNamespace
		case key == "kernel.domainname":
			need = specs.UTSNamespace
		case key == "kernel.hostname":
			return invalid("sysctl %s: set the hostname instead", name)
		default:
			return invalid("sysctl %s: it is not of one container, it would change the host", name)
		}
		if !n.has[need] {
			return invalid("sysctl %s: the container shares the host's %s namespace", name, need)
		}
	}
	return nil
}
