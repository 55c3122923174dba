package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/cgroup"
	"github.com/gantryd/gantry/internal/insecure"
)

// builder puts one container together: what the parent does at once, and the program for the rest.
type builder struct {
	tree
	program
	open   files // to be closed when the child has its copies
	bundle string
	group  *cgroup.Group
	warn   func(string, ...any)
	root   int // the root filesystem, detached
	devpts int // the container's own devpts; -1: none that we made
	ids    *idmap
	label  string // of new filesystems, for SELinux
	// sysfs and procfs mount those that the child cannot; else nil.
	sysfs, procfs func(kind, source string, o options) (int, error)
	proc          bool
	stage         string // where the root filesystem is mounted before it becomes the root; "": over the host's
	// creating runs hooks before it does; nil: there are none.
	creating func(context.Context, child) error
}

// fsContext makes a detached mount of a new filesystem.
func fsContext(kind, source string, o options) (int, error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		if errors.Is(err, unix.ENODEV) {
			err = fmt.Errorf("this kernel has no filesystem %q: %w", kind, errdefs.ErrNotImplemented)
		}
		return -1, err
	}
	defer unix.Close(fs) //nolint:errcheck // a context holds nothing
	return filled(fs, source, o)
}

// filled is a detached mount of what a filesystem context says, with o.
func filled(fs int, source string, o options) (_ int, err error) {
	if source != "" {
		if err := unix.FsconfigSetString(fs, "source", source); err != nil {
			return -1, because(fs, err)
		}
	}
	for _, d := range o.data {
		key, value, hasValue := strings.Cut(d, "=")
		if hasValue {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return -1, fmt.Errorf("option %s: %w", d, because(fs, err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, because(fs, err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(o.set))
	if err != nil {
		return -1, because(fs, err)
	}
	return fd, nil
}

// because adds what the kernel has written into a filesystem context about its error.
func because(fs int, err error) error {
	buf := make([]byte, 1024)
	n, rerr := unix.Read(fs, buf)
	if rerr != nil || n < 3 {
		return err
	}
	return fmt.Errorf("%s: %w", strings.TrimSpace(string(buf[2:n])), err) // "e reason"
}

// bindFrom is a detached copy of what source names on the host.
func bindFrom(source string, o options) (fd int, dir bool, err error) {
	src, err := unix.Open(source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			err = fmt.Errorf("it does not exist: %w", errdefs.ErrInvalidArgument)
		}
		return -1, false, fmt.Errorf("bind source %s: %w", source, err)
	}
	defer unix.Close(src) //nolint:errcheck // O_PATH
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return -1, false, fmt.Errorf("bind source %s: %w", source, err)
	}
	flags := uint(unix.OPEN_TREE_CLONE | openTreeCloexec | unix.AT_EMPTY_PATH)
	if o.rbind {
		flags |= unix.AT_RECURSIVE
	}
	if o.propagation == unix.MS_SHARED {
		if shared, err := isShared(src); err != nil || !shared {
			return -1, false, errors.Join(err, fmt.Errorf("bind source %s: its mount is not shared, so nothing mounted in the container could reach the host: mount --make-shared it, or bind it private: %w", source, errdefs.ErrFailedPrecondition))
		}
	}
	fd, err = unix.OpenTree(src, "", flags)
	if err != nil {
		return -1, false, fmt.Errorf("bind source %s: %w", source, err)
	}
	if err := adjust(fd, o); err != nil {
		_ = unix.Close(fd)
		return -1, false, fmt.Errorf("bind source %s: %w", source, err)
	}
	return fd, st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// adjust gives a bound mount its attributes and its propagation, private unless asked otherwise.
// Read-only is meant for everything that is bound, not for its topmost mount.
func adjust(fd int, o options) error {
	all := attr(o.setAll, o.clearAll)
	if o.rbind && o.set&unix.MOUNT_ATTR_RDONLY != 0 && !insecure.Without(insecure.Below) {
		all.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	switch {
	case o.propagation == 0:
		all.Propagation = unix.MS_PRIVATE
	case o.propagation != unix.MS_SHARED && o.propagationAll:
		all.Propagation = o.propagation
	}
	if *all != (unix.MountAttr{}) {
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, all); err != nil {
			return fmt.Errorf("set attributes: %w", err)
		}
	}
	top := attr(o.set, o.clear)
	if o.propagation != unix.MS_SHARED && o.propagation != 0 && !o.propagationAll {
		top.Propagation = o.propagation
	}
	if *top != (unix.MountAttr{}) {
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, top); err != nil {
			return fmt.Errorf("set attributes: %w", err)
		}
	}
	return nil
}

// isShared looks the mount of fd up in mountinfo (proc_pid_mountinfo(5)).
func isShared(fd int) (bool, error) {
	raw, err := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(fd))
	if err != nil {
		return false, err
	}
	_, id, _ := strings.Cut(string(raw), "mnt_id:")
	id, _, _ = strings.Cut(strings.TrimSpace(id), "\n")
	raw, err = os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	for l := range strings.Lines(string(raw)) {
		if before, _, ok := strings.Cut(l, " - "); ok && strings.HasPrefix(l, id+" ") {
			return strings.Contains(before, " shared:"), nil
		}
	}
	return false, nil
}

// attach lets the child mount fd (or what is in a register) at canonical path at.
func (b *builder) attach(fd uintptr, isReg bool, at string) {
	b.inside(uintptr(b.root), false, relative("", at), unix.O_PATH, regScratch)
	o := b.add(unix.SYS_MOVE_MOUNT, fd, b.str(""), regScratch, b.str(""), unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH).ref(2)
	if isReg {
		o.ref(0)
	}
	b.add(unix.SYS_CLOSE, regScratch).ref(0)
}

// mount adds one mount of config.json.
func (b *builder) mount(m specs.Mount) error {
	o, err := mountOptions(m)
	if err != nil {
		return err
	}
	kind := m.Type
	if o.bind {
		kind = "bind"
	}
	if o.copyUp && kind != "tmpfs" {
		return fmt.Errorf("option tmpcopyup is for a tmpfs, not for a %s: %w", kind, errdefs.ErrInvalidArgument)
	}
	if o.remount {
		return b.remount(m, o)
	}
	if kind != "bind" { // nothing is below a new filesystem
		o.set = o.set&^o.clearAll | o.setAll
	}
	b.say("mount %s at %s", kindName(kind, m.Source), m.Destination)
	switch kind {
	case "bind":
		return b.bind(m, o)
	case "proc", "sysfs", "mqueue", "cgroup", "cgroup2":
		if o.mapped {
			return fmt.Errorf("a %s cannot be mounted with mapped ids: %w", kind, errdefs.ErrInvalidArgument)
		}
		if kind == "cgroup" || kind == "cgroup2" {
			return b.mountCgroup(m, o)
		}
		if !(kind == "sysfs" && b.sysfs != nil) && !(kind == "proc" && b.procfs != nil) {
			return b.mountLater(kind, m, o)
		}
	case "":
		return fmt.Errorf("no type: %w", errdefs.ErrInvalidArgument)
	}
	return b.mountNew(kind, m, o)
}

// mountNew mounts a filesystem that the parent can make.
func (b *builder) mountNew(kind string, m specs.Mount, o options) error {
	p, err := b.target(m.Destination, true)
	if err != nil {
		return err
	}
	source := m.Source
	if source == "" {
		source = kind
	}
	o.data = b.labeled(kind, b.mapped(kind, o.data))
	newMount := fsContext
	switch kind {
	case "sysfs":
		newMount = b.sysfs
	case "proc":
		newMount = b.procfs
	}
	fd, err := newMount(kind, source, o)
	if err != nil {
		return err
	}
	b.open.add(fd)
	if o.mapped {
		if err := b.mapMount(fd, o); err != nil {
			return err
		}
	}
	if o.copyUp {
		if err := b.copyUp(m.Destination, fd, o); err != nil {
			return err
		}
	}
	if kind == "devpts" && b.ids != nil {
		if err := b.ids.give(fd); err != nil {
			return err
		}
	}
	if kind == "devpts" && p.path == "/dev/pts" {
		b.devpts = fd
	}
	if kind == "proc" { // nobody looks into it from outside
		if !b.proc && o.set&unix.MOUNT_ATTR_RDONLY == 0 {
			b.proc = true
			b.add(unix.SYS_FCNTL, uintptr(fd), unix.F_DUPFD_CLOEXEC, low).into(regProc)
		}
		b.layers = append(b.layers, layer{p.path, unborn})
		b.attach(uintptr(fd), false, p.path)
		return nil
	}
	return b.put(fd, p.path, o)
}

// remount has the child change the attributes of what is mounted somewhere by then.
func (b *builder) remount(m specs.Mount, o options) error {
	if len(o.data) > 0 {
		return fmt.Errorf("option %q: to remount a filesystem with other options than those of the mount is not supported: %w", o.data[0], errdefs.ErrNotImplemented)
	}
	dest := path.Clean(m.Destination)
	if _, ok := b.mounted(dest); !ok {
		return fmt.Errorf("option remount: nothing is mounted there: %w", errdefs.ErrInvalidArgument)
	}
	if dest == "/proc" && o.set&unix.MOUNT_ATTR_RDONLY != 0 {
		b.proc = false // sysctls are written through another
	}
	b.say("remount %s", dest)
	b.inside(uintptr(b.root), false, relative("", dest), unix.O_PATH, regScratch)
	for _, x := range []struct {
		set, clear uint64
		flags      uintptr
	}{{o.setAll, o.clearAll, unix.AT_EMPTY_PATH | unix.AT_RECURSIVE}, {o.set, o.clear, unix.AT_EMPTY_PATH}} {
		if a := attr(x.set, x.clear); *a != (unix.MountAttr{}) {
			b.add(unix.SYS_MOUNT_SETATTR, regScratch, b.str(""), x.flags, hold(&b.program, a), unsafe.Sizeof(*a)).ref(0)
		}
	}
	b.add(unix.SYS_CLOSE, regScratch).ref(0)
	return nil
}

func kindName(kind, source string) string {
	if kind == "bind" {
		return source
	}
	return kind
}

// target is where a mount goes; it is made if it is missing.
func (b *builder) target(dest string, dir bool) (place, error) {
	p, err := b.make(dest, dir)
	if err != nil {
		return p, err
	}
	p.close()
	if p.path == "/" {
		return p, fmt.Errorf("nothing can be mounted over the root: %w", errdefs.ErrInvalidArgument)
	}
	if p.unborn {
		if p.path == "/proc" || strings.HasPrefix(p.path, "/proc/") {
			if l, ok := b.mounted("/proc"); ok && l.fd == unborn && !overProc[p.path] {
				return p, fmt.Errorf("nothing but some files can be mounted inside /proc: %w", errdefs.ErrInvalidArgument)
			}
		}
		return p, nil
	}
	if isDir := p.mode&unix.S_IFMT == unix.S_IFDIR; isDir != dir {
		want, have := "a file", "a directory"
		if dir {
			want, have = have, want
		}
		return p, fmt.Errorf("it is %s there, and %s is to be mounted on it: %w", have, want, errdefs.ErrInvalidArgument)
	}
	return p, nil
}

// overProc are files of procfs that tools such as LXCFS put their own over.
var overProc = map[string]bool{
	"/proc/cpuinfo": true, "/proc/diskstats": true, "/proc/meminfo": true, "/proc/stat": true, "/proc/swaps": true,
	"/proc/uptime": true, "/proc/loadavg": true, "/proc/slabinfo": true, "/proc/sys/kernel/ns_last_pid": true,
	"/proc/sys/crypto/fips_enabled": true, "/proc/net/dev": true,
}

// onlyProcfs refuses what would take procfs's place, at which a runtime, tools and the container's own
// programs look for what the kernel says (CVE-2019-16884).
func onlyProcfs(at string, fd int) error {
	if at != "/proc" || insecure.Without(insecure.OverProc) {
		return nil
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	if fs.Type != procMagic {
		return fmt.Errorf("nothing but a procfs can be mounted over /proc: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// put has fd mounted at path and makes it part of the tree.
func (b *builder) put(fd int, at string, o options) error {
	if err := onlyProcfs(at, fd); err != nil {
		return err
	}
	if o.propagation != 0 && !o.bind {
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: o.propagation}); err != nil {
			return fmt.Errorf("set propagation: %w", err)
		}
	}
	b.layers = append(b.layers, layer{at, fd})
	b.attach(uintptr(fd), false, at)
	return nil
}

func (b *builder) bind(m specs.Mount, o options) error {
	if len(o.data) > 0 {
		return fmt.Errorf("option %q is not one of a bind mount: %w", o.data[0], errdefs.ErrInvalidArgument)
	}
	source := m.Source
	if !filepath.IsAbs(source) {
		source = filepath.Join(b.bundle, source)
	}
	fd, dir, err := bindFrom(source, o)
	if err != nil {
		return err
	}
	b.open.add(fd)
	if o.mapped {
		if err := b.mapMount(fd, o); err != nil {
			return err
		}
	}
	p, err := b.target(m.Destination, dir)
	if err == nil {
		err = onlyProcfs(p.path, fd)
	}
	if err != nil {
		return err
	}
	b.layers = append(b.layers, layer{p.path, fd})
	b.attach(uintptr(fd), false, p.path)
	return nil
}

// mountLater has the child mount what depends on the namespaces it is in. An image whose /proc or /sys
// is a link would have its masks put beside what they are to cover (CVE-2023-27561, CVE-2023-28642).
func (b *builder) mountLater(kind string, m specs.Mount, o options) error {
	p, err := b.target(m.Destination, true)
	if err != nil {
		return err
	}
	dest := path.Clean(m.Destination)
	if (dest == "/proc" || dest == "/sys") && p.path != dest && !insecure.Without(insecure.ProcLink) {
		return fmt.Errorf("the image has a symbolic link there, to %s: %w", p.path, errdefs.ErrInvalidArgument)
	}
	if p.path == "/proc" && kind != "proc" && !insecure.Without(insecure.OverProc) {
		return fmt.Errorf("nothing but a procfs can be mounted over /proc: %w", errdefs.ErrInvalidArgument)
	}
	reg := uintptr(regFree)
	if kind == "proc" && !b.proc && o.set&unix.MOUNT_ATTR_RDONLY == 0 {
		b.proc, reg = true, regProc
	}
	b.newMount(kind, o, reg)
	b.attach(reg, true, p.path)
	if reg != regProc {
		b.add(unix.SYS_CLOSE, reg).ref(0)
	}
	b.layers = append(b.layers, layer{p.path, unborn})
	return nil
}

// newMount has the child make a detached mount of a new filesystem, into reg.
func (b *builder) newMount(kind string, o options, reg uintptr) {
	b.add(unix.SYS_FSOPEN, b.str(kind), unix.FSOPEN_CLOEXEC).into(regScratch)
	b.add(unix.SYS_FSCONFIG, regScratch, unix.FSCONFIG_SET_STRING, b.str("source"), b.str(kind), 0).ref(0)
	for _, d := range o.data {
		if key, value, ok := strings.Cut(d, "="); ok {
			b.add(unix.SYS_FSCONFIG, regScratch, unix.FSCONFIG_SET_STRING, b.str(key), b.str(value), 0).ref(0)
		} else {
			b.add(unix.SYS_FSCONFIG, regScratch, unix.FSCONFIG_SET_FLAG, b.str(d), 0, 0).ref(0)
		}
	}
	b.add(unix.SYS_FSCONFIG, regScratch, unix.FSCONFIG_CMD_CREATE, 0, 0, 0).ref(0)
	b.add(unix.SYS_FSMOUNT, regScratch, unix.FSMOUNT_CLOEXEC, uintptr(o.set)).ref(0).into(reg)
	b.add(unix.SYS_CLOSE, regScratch).ref(0)
}

// mountCgroup shows the container its own cgroup: on v2 the directory; on v1 a tmpfs with one
// directory for each hierarchy.
func (b *builder) mountCgroup(m specs.Mount, o options) error {
	p, err := b.target(m.Destination, true)
	if err != nil {
		return err
	}
	binds, links := b.group.Mounts()
	o.bind, o.data = true, nil
	if whole, ok := binds[""]; ok {
		fd, _, err := bindFrom(whole, o)
		if err != nil {
			return err
		}
		return b.put(b.open.add(fd), p.path, o)
	}
	top, err := fsContext("tmpfs", "cgroup", options{set: o.set &^ unix.MOUNT_ATTR_RDONLY, data: b.labeled("tmpfs", []string{"mode=755", "size=64k"})})
	if err != nil {
		return err
	}
	b.open.add(top)
	for name := range binds {
		if err := unix.Mkdirat(top, name, 0o755); err != nil {
			return err
		}
	}
	for name, to := range links {
		if err := unix.Symlinkat(to, top, name); err != nil {
			return err
		}
	}
	if o.set&unix.MOUNT_ATTR_RDONLY != 0 {
		if err := unix.MountSetattr(top, "", unix.AT_EMPTY_PATH, attr(unix.MOUNT_ATTR_RDONLY, 0)); err != nil {
			return err
		}
	}
	if err := b.put(top, p.path, o); err != nil {
		return err
	}
	for name, dir := range binds {
		fd, _, err := bindFrom(dir, o)
		if err != nil {
			return err
		}
		if err := b.put(b.open.add(fd), path.Join(p.path, name), o); err != nil {
			return err
		}
	}
	return nil
}
