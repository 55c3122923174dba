package plain

import (
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"unsafe"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/cgroup"
	"github.com/gantryd/gantry/shim/runtime"
)

// clone writes the child's program and lets it run as far as the word to go on.
func (b *builder) clone(ctx context.Context, e *cgroup.Entrance, who identity) (*process, error) {
	defer e.Close()
	p := &b.p
	for _, f := range e.Tasks {
		p.call("enter cgroup", unix.SYS_WRITE, f.Fd(), p.str("0"), 1)
	}
	flags := uint64(0)
	for _, n := range b.spec.Linux.Namespaces {
		switch n.Type {
		case specs.PIDNamespace:
			flags |= unix.CLONE_NEWPID
		case specs.CgroupNamespace:
			p.call("make cgroup namespace", unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
		}
	}
	p.call("begin a session", unix.SYS_SETSID)
	if err := b.proc(); err != nil {
		return nil, err
	}
	if err := b.cover(); err != nil {
		return nil, err
	}
	b.enterRoot()
	report, wait, err := newPipes()
	if err != nil {
		return nil, err
	}
	x := &exec{t: &b.t, p: p, spec: b.spec.Process, who: who, seccomp: b.c.Seccomp, stdio: b.stdio, slave: b.slave, report: report.theirs, wait: wait.theirs, initSession: true, init: b.c.Init}
	command, err := x.finish()
	if err != nil {
		return nil, err
	}
	dir := -1
	if e.Dir != nil {
		dir = int(e.Dir.Fd())
	}
	pr := &process{command: command, program: p, report: report.ours, wait: wait.ours, tty: b.tty}
	if pr.pid, pr.pidfd, err = p.clone(flags, dir, report.theirs, wait.theirs); err != nil {
		report.close()
		wait.close()
		return nil, err
	}
	_ = unix.Close(report.theirs)
	_ = unix.Close(wait.theirs)
	return pr, pr.ready(ctx)
}

// proc mounts procfs where config.json says: only a process in the pid namespace can. Then it
// makes read-only and covers what is to be, before anything of the container's runs.
func (b *builder) proc() error {
	const regFs, regMnt, regTmp = 0, 1, 2
	p := &b.p
	for _, m := range b.spec.Mounts {
		if m.Type != "proc" {
			continue
		}
		at, err := b.t.open(m.Destination, unix.O_PATH)
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		b.own(at)
		what := "mount " + m.Destination
		p.call(what, unix.SYS_FSOPEN, p.str("proc"), unix.FSOPEN_CLOEXEC).save = regFs
		p.call(what, unix.SYS_FSCONFIG, reg(regFs), unix.FSCONFIG_CMD_CREATE).refs = 1
		o := p.call(what, unix.SYS_FSMOUNT, reg(regFs), unix.FSMOUNT_CLOEXEC, uintptr(sortOut(m.Options).set))
		o.refs, o.save = 1, regMnt
		p.call(what, unix.SYS_MOVE_MOUNT, reg(regMnt), p.str(""), uintptr(at), p.str(""), unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH).refs = 1
		if m.Destination != "/proc" {
			continue
		}
		for _, ro := range b.spec.Linux.ReadonlyPaths {
			name, ok := strings.CutPrefix(ro, "/proc/")
			if !ok || !hostHas(ro) {
				continue
			}
			what := "make " + ro + " read-only"
			o := p.call(what, unix.SYS_OPEN_TREE, reg(regMnt), p.str(name), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
			o.refs, o.save = 1, regTmp
			attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}
			p.call(what, unix.SYS_MOUNT_SETATTR, reg(regTmp), p.str(""), unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, p.ptr(attr, unsafe.Pointer(attr)), unsafe.Sizeof(*attr)).refs = 1
			p.call(what, unix.SYS_MOVE_MOUNT, reg(regTmp), p.str(""), reg(regMnt), p.str(name), unix.MOVE_MOUNT_F_EMPTY_PATH).refs = 1 | 4
		}
		if err := b.maskProc(regMnt, regTmp); err != nil {
			return err
		}
	}
	return nil
}

// maskProc covers files of procfs with the kernel's null device, directories with nothing.
func (b *builder) maskProc(regMnt, regTmp int) error {
	p := &b.p
	null, err := nullDevice()
	if err != nil {
		return err
	}
	b.own(null)
	nothing, err := filesystem("tmpfs", "tmpfs", options{set: unix.MOUNT_ATTR_RDONLY, data: []string{"nr_blocks=1", "nr_inodes=1"}})
	if err != nil {
		return err
	}
	b.own(nothing)
	_ = regTmp
	for _, masked := range b.spec.Linux.MaskedPaths {
		name, ok := strings.CutPrefix(masked, "/proc/")
		st, err := os.Stat(masked)
		if !ok || err != nil {
			continue
		}
		mnt := -1
		if st.IsDir() {
			mnt, err = unix.OpenTree(nothing, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
			if err != nil { // older kernels clone no mount that is attached nowhere
				mnt, err = filesystem("tmpfs", "tmpfs", options{set: unix.MOUNT_ATTR_RDONLY, data: []string{"nr_blocks=1", "nr_inodes=1"}})
			}
		} else {
			mnt, err = unix.OpenTree(null, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
		}
		if err != nil {
			return fmt.Errorf("mask %s: %w", masked, err)
		}
		b.own(mnt)
		o := p.call("mask "+masked, unix.SYS_MOVE_MOUNT, uintptr(mnt), p.str(""), reg(regMnt), p.str(name), unix.MOVE_MOUNT_F_EMPTY_PATH)
		o.refs, o.ignore = 4, unix.ENOENT
	}
	return nil
}

// nullDevice opens /dev/null and makes sure that it is (CVE-2025-31133).
func nullDevice() (int, error) {
	fd, err := unix.Open("/dev/null", unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: "/dev/null", Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("/dev/null of this host is not the null device")
	}
	return fd, nil
}

func hostHas(p string) bool { _, err := os.Lstat(p); return err == nil }

// cover makes read-only and masks what is not procfs's, here on the thread.
func (b *builder) cover() error {
	for _, p := range b.spec.Linux.ReadonlyPaths {
		if strings.HasPrefix(p, "/proc/") {
			continue
		}
		fd, err := b.t.open(p, unix.O_PATH)
		if err != nil {
			continue // not there: nothing to protect
		}
		mnt, _, err := bindAt(fd, p, options{set: unix.MOUNT_ATTR_RDONLY, recursive: true})
		_ = unix.Close(fd)
		if err != nil {
			return err
		}
		if err := b.t.attach(mnt, p, true); err != nil {
			return err
		}
	}
	null, err := nullDevice()
	if err != nil {
		return err
	}
	b.own(null)
	for _, p := range b.spec.Linux.MaskedPaths {
		if strings.HasPrefix(p, "/proc/") {
			continue
		}
		fd, err := b.t.open(p, unix.O_PATH)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		err = unix.Fstat(fd, &st)
		_ = unix.Close(fd)
		if err != nil {
			return err
		}
		mnt := -1
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			mnt, err = filesystem("tmpfs", "tmpfs", options{set: unix.MOUNT_ATTR_RDONLY, data: []string{"nr_blocks=1", "nr_inodes=1"}})
		} else {
			mnt, _, err = bindAt(null, "/dev/null", options{})
		}
		if err != nil {
			return fmt.Errorf("mask %s: %w", p, err)
		}
		if err := b.t.attach(mnt, p, true); err != nil {
			return err
		}
	}
	return nil
}

// enterRoot makes the root filesystem the child's root and lets go of the host's.
func (b *builder) enterRoot() {
	p := &b.p
	dot := p.str(".")
	p.call("enter root filesystem", unix.SYS_FCHDIR, uintptr(b.t.root))
	p.call("enter root filesystem", unix.SYS_PIVOT_ROOT, dot, dot)
	p.call("let go of the host's root", unix.SYS_MOUNT, 0, dot, 0, unix.MS_SLAVE|unix.MS_REC, 0)
	p.call("let go of the host's root", unix.SYS_UMOUNT2, dot, unix.MNT_DETACH)
	p.call("enter root filesystem", unix.SYS_CHDIR, p.str("/"))
	if r := b.spec.Linux.RootfsPropagation; r != "" {
		p.call("set propagation of root", unix.SYS_MOUNT, 0, p.str("/"), 0, propagations[r], 0)
	}
	if b.spec.Root.Readonly {
		attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		p.call("make root read-only", unix.SYS_MOUNT_SETATTR, ^uintptr(99), p.str("/"), 0, p.ptr(attr, unsafe.Pointer(attr)), unsafe.Sizeof(*attr))
	}
}

// exec is the part of a program that makes a process what config.json says, and executes it. It
// is the same for the first process and for one that joins.
type exec struct {
	t            *tree
	p            *program
	spec         *specs.Process
	who          identity
	seccomp      []byte
	stdio        [3]int
	slave        int
	report, wait int
	initSession  bool // the first process: what is missing is made
	init         bool // the small init comes first
}

// finish writes it, and says what will be executed.
func (x *exec) finish() (command string, err error) {
	p := x.p
	if x.slave >= 0 {
		for i := range uintptr(3) {
			p.call("connect terminal", unix.SYS_DUP3, uintptr(x.slave), i, 0)
		}
		p.call("take terminal", unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	} else {
		for i := range 3 {
			p.call("connect pipes", unix.SYS_DUP3, uintptr(x.stdio[i]), uintptr(i), 0)
		}
	}
	p.call("make a keyring", unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0).ignore = unix.ENOSYS
	x.closeOthers()
	for _, l := range x.spec.Rlimits {
		n, ok := rlimits[l.Type]
		if !ok {
			return "", fmt.Errorf("limit %s: not known: %w", l.Type, errdefs.ErrInvalidArgument)
		}
		v := &unix.Rlimit{Cur: l.Soft, Max: l.Hard}
		p.call("set limit "+l.Type, unix.SYS_PRLIMIT64, 0, uintptr(n), p.ptr(v, unsafe.Pointer(v)), 0)
	}
	cwd := x.spec.Cwd
	if cwd == "" {
		cwd = "/"
	}
	if fd, err := x.t.ensure(cwd, true); err == nil {
		_ = unix.Close(fd)
	} else if x.initSession {
		return "", fmt.Errorf("working directory %s: %w", cwd, err)
	}
	p.call("enter working directory "+cwd, unix.SYS_CHDIR, p.str(cwd))
	buf := make([]byte, unix.PathMax)
	at := p.ptr(buf, unsafe.Pointer(&buf[0]))
	p.call("find working directory "+cwd, unix.SYS_GETCWD, at, uintptr(len(buf)))
	p.special("working directory "+cwd+" is outside of the container", kindInside, at)
	if err := x.identity(); err != nil {
		return "", err
	}
	umask := uintptr(0o022)
	if u := x.spec.User.Umask; u != nil {
		umask = uintptr(*u)
	}
	p.call("set umask", unix.SYS_UMASK, umask)
	command, err = x.find()
	if err != nil {
		return "", err
	}
	p.special("report", kindReady)
	if x.spec.NoNewPrivileges {
		x.load()
	}
	program, words := command, x.spec.Args
	if x.init {
		program, words = initPath, append([]string{InitName, command}, x.spec.Args...)
	}
	p.call("exec "+x.spec.Args[0], unix.SYS_EXECVE, p.str(program), x.vector(words), x.vector(x.environment()))
	return command, nil
}

// closeOthers leaves 0, 1, 2 and the two pipes: before the working directory is entered and anything of the
// container's is executed there is no descriptor of the host's to go through (CVE-2024-21626).
func (x *exec) closeOthers() {
	keep := []int{x.report, x.wait}
	slices.Sort(keep)
	from := uintptr(3)
	for _, k := range keep {
		if uintptr(k) > from {
			x.p.call("close descriptors", unix.SYS_CLOSE_RANGE, from, uintptr(k-1), 0)
		}
		from = uintptr(k) + 1
	}
	x.p.call("close descriptors", unix.SYS_CLOSE_RANGE, from, uintptr(^uint32(0)), 0)
}

// identity drops to whom the process runs as, with the capabilities of config.json.
func (x *exec) identity() error {
	p := x.p
	caps := x.spec.Capabilities
	if caps == nil {
		caps = &specs.LinuxCapabilities{}
	}
	sets := map[string]uint64{}
	for name, list := range map[string][]string{
		"bounding": caps.Bounding, "effective": caps.Effective, "permitted": caps.Permitted, "inheritable": caps.Inheritable, "ambient": caps.Ambient,
	} {
		var mask uint64
		for _, c := range list {
			n, ok := capabilityNumber(c)
			if !ok {
				return fmt.Errorf("capability %s: not known: %w", c, errdefs.ErrInvalidArgument)
			}
			mask |= 1 << n
		}
		sets[name] = mask
	}
	if !x.spec.NoNewPrivileges {
		x.load() // it needs CAP_SYS_ADMIN, which is about to go
	}
	last, err := capability.LastCap()
	if err != nil {
		return fmt.Errorf("find the kernel's capabilities: %w", err)
	}
	for c := range uintptr(last) + 1 {
		if sets["bounding"]>>c&1 == 0 {
			p.call("drop capability", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		}
	}
	p.call("keep capabilities", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
	groups := append([]uint32{}, x.who.groups...)
	var list uintptr
	if len(groups) > 0 {
		list = p.ptr(groups, unsafe.Pointer(&groups[0]))
	}
	p.call("set groups", unix.SYS_SETGROUPS, uintptr(len(groups)), list)
	p.call("set group", unix.SYS_SETRESGID, uintptr(x.who.gid), uintptr(x.who.gid), uintptr(x.who.gid))
	p.call("set user", unix.SYS_SETRESUID, uintptr(x.who.uid), uintptr(x.who.uid), uintptr(x.who.uid))
	p.call("keep capabilities", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 0, 0, 0, 0)
	effective, permitted := sets["effective"], sets["permitted"]
	if x.who.uid != 0 && len(caps.Ambient) == 0 {
		effective, permitted = 0, 0 // the kernel's own rule at exec, applied now
	}
	h := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	d := &[2]unix.CapUserData{}
	for i := range d {
		d[i] = unix.CapUserData{Effective: uint32(effective >> (32 * i)), Permitted: uint32(permitted >> (32 * i)), Inheritable: uint32(sets["inheritable"] >> (32 * i))}
	}
	p.call("set capabilities", unix.SYS_CAPSET, p.ptr(h, unsafe.Pointer(h)), p.ptr(d, unsafe.Pointer(d)))
	p.call("clear ambient capabilities", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	for c := range uintptr(last) + 1 {
		if sets["ambient"]>>c&1 == 1 {
			p.call("raise ambient capability", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0)
		}
	}
	if x.spec.NoNewPrivileges {
		p.call("give up new privileges", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	return nil
}

func capabilityNumber(name string) (uint, bool) {
	for _, c := range capability.ListKnown() {
		if "CAP_"+strings.ToUpper(c.String()) == strings.ToUpper(name) {
			return uint(c), true
		}
	}
	return 0, false
}

// load loads the filter.
func (x *exec) load() {
	if len(x.seccomp) == 0 {
		return
	}
	f := &unix.SockFprog{Len: uint16(len(x.seccomp) / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&x.seccomp[0]))}
	x.p.keep = append(x.p.keep, x.seccomp)
	x.p.call("load seccomp filter", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, x.p.ptr(f, unsafe.Pointer(f)))
}

func (x *exec) vector(words []string) uintptr {
	v := make([]uintptr, 0, len(words)+1)
	for _, w := range words {
		v = append(v, x.p.str(w))
	}
	v = append(v, 0)
	return x.p.ptr(v, unsafe.Pointer(&v[0]))
}

// environment is that of config.json, with HOME of the user's where it has none.
func (x *exec) environment() []string {
	for _, kv := range x.spec.Env {
		if strings.HasPrefix(kv, "HOME=") {
			return x.spec.Env
		}
	}
	return append(slices.Clone(x.spec.Env), "HOME="+x.who.home)
}

// find looks for the command as a shell would, in the container.
func (x *exec) find() (string, error) {
	name := x.spec.Args[0]
	fail := func(reason string, class error) error {
		return &runtime.CommandError{Command: name, Reason: reason, Class: class}
	}
	if strings.Contains(name, "/") {
		p := name
		if !path.IsAbs(p) {
			p = path.Join(x.spec.Cwd, p)
		}
		return name, x.executable(p, fail)
	}
	var search string
	for _, kv := range x.spec.Env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			search = v
		}
	}
	var found error
	for _, dir := range strings.Split(search, ":") {
		if dir == "" {
			dir = x.spec.Cwd
		}
		p := path.Join(dir, name)
		if !path.IsAbs(p) {
			p = path.Join(x.spec.Cwd, p)
		}
		err := x.executable(p, fail)
		if err == nil {
			return p, nil
		}
		if !errdefs.IsNotFound(err) {
			found = err
		}
	}
	if found != nil {
		return "", found
	}
	return "", fail("not found in $PATH", errdefs.ErrNotFound)
}

func (x *exec) executable(p string, fail func(string, error) error) error {
	fd, err := x.t.open(p, unix.O_PATH)
	if err != nil {
		return fail("no such file or directory", errdefs.ErrNotFound)
	}
	defer unix.Close(fd) //nolint:errcheck // O_PATH
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fail(err.Error(), errdefs.ErrPermissionDenied)
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return fail("is a directory", errdefs.ErrPermissionDenied)
	case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0:
		return fail("permission denied: the file is not executable", errdefs.ErrPermissionDenied)
	}
	return nil
}

var rlimits = map[string]int{
	"RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_STACK": unix.RLIMIT_STACK,
	"RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
}
