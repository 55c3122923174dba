package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"unsafe"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/insecure"
	"github.com/gantryd/gantry/internal/seccomp"
	"github.com/gantryd/gantry/shim/runtime"
)

// process is everything about one process that is the same for the first of a container and for one
// that is added.
type process struct {
	spec    *specs.Process
	user    user
	caps    capSets
	filter  []unix.SockFilter
	flags   uint32 // of the filter
	stdio   [3]int // descriptors from low on
	tty     bool
	control int // the child's end
	ids     *idmap
	paths   []string
	env     []string
	limits  []limit
	traits  []trait
	listen  *listening // of the filter; nil: no call is told
	heard   func(context.Context, child) error
}

type limit struct {
	resource int
	name     string
	value    unix.Rlimit
}

// unlimited is the number of resource limits (RLIM_NLIMITS).
const unlimited = 16

// limitNames are setrlimit(2)'s, by number; they are the same on amd64 and arm64.
var limitNames = [unlimited]string{
	"CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME",
}

const capSysResource = 24

// rlimits are the limits to set. What this process may not raise is set as high as it may, and warn is told.
func (id identity) rlimits(list []specs.POSIXRlimit, warn func(string, ...any)) ([]limit, error) {
	var out []limit
	nofile := false
	for _, l := range list {
		n := slices.Index(limitNames[:], strings.TrimPrefix(l.Type, "RLIMIT_"))
		if n < 0 {
			return nil, fmt.Errorf("resource limit %q is unknown: %w", l.Type, errdefs.ErrInvalidArgument)
		}
		if l.Soft > l.Hard {
			return nil, fmt.Errorf("resource limit %s: the soft limit %d is above the hard limit %d: %w", l.Type, l.Soft, l.Hard, errdefs.ErrInvalidArgument)
		}
		v := unix.Rlimit{Cur: l.Soft, Max: l.Hard}
		if have := id.limits[n].Max; v.Max > have && (id.mapped || id.caps>>capSysResource&1 == 0) {
			warn("this host does not let a resource limit be raised; it is set as high as it may be", "limit", l.Type, "hard", have)
			v.Max, v.Cur = have, min(v.Cur, have)
		}
		nofile = nofile || n == unix.RLIMIT_NOFILE
		out = append(out, limit{n, l.Type, v})
	}
	if !nofile {
		// Go's runtime has raised this process's soft limit to the hard one; programs that close every
		// possible descriptor, or use select(2), expect what systems begin with.
		have := id.limits[unix.RLIMIT_NOFILE].Max
		out = append(out, limit{unix.RLIMIT_NOFILE, "RLIMIT_NOFILE", unix.Rlimit{Cur: min(1024, have), Max: have}})
	}
	return out, nil
}

// filterOf is the compiled filter, from bytes or from a profile.
func filterOf(compiled []byte, profile *specs.LinuxSeccomp) ([]unix.SockFilter, uint32, error) {
	if len(compiled) > 0 {
		f, err := seccomp.Parse(compiled)
		return f, seccomp.DefaultFlags, err
	}
	if profile == nil {
		return nil, 0, nil
	}
	f, err := seccomp.Translate(profile)
	if err != nil {
		return nil, 0, err
	}
	return f.Program, f.Flags, nil
}

// environment is env with HOME, and the paths that a command may mean.
func (p *process) environment() error {
	p.env = slices.Clone(p.spec.Env)
	search, home := "", false
	for _, kv := range p.env {
		if strings.ContainsRune(kv, 0) {
			return fmt.Errorf("environment: %q holds a NUL: %w", kv, errdefs.ErrInvalidArgument)
		}
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			search = v
		}
		home = home || strings.HasPrefix(kv, "HOME=")
	}
	if !home {
		p.env = append(p.env, "HOME="+p.user.home)
	}
	command := p.spec.Args[0]
	if strings.Contains(command, "/") {
		p.paths = []string{command}
		return nil
	}
	p.paths = nil
	for _, dir := range strings.Split(search, ":") {
		if dir == "" {
			dir = "."
		}
		p.paths = append(p.paths, path.Join(dir, command))
	}
	for i, s := range p.paths {
		if !strings.Contains(s, "/") {
			p.paths[i] = "./" + s
		}
	}
	return nil
}

// streams are the container's standard streams, each a descriptor from low on, blocking.
func (p *process) streams(s runtime.Stdio, open *files) error {
	for i, f := range []*os.File{s.In, s.Out, s.Err} {
		if f == nil {
			fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("open /dev/null: %w", err)
			}
			p.stdio[i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, low)
			_ = unix.Close(fd)
			if err != nil {
				return fmt.Errorf("open /dev/null: %w", err)
			}
			open.add(p.stdio[i])
			continue
		}
		rc, err := f.SyscallConn()
		if err != nil {
			return fmt.Errorf("standard stream %d: %w", i, err)
		}
		var ferr error
		err = rc.Control(func(fd uintptr) { p.stdio[i], ferr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, low) })
		if err == nil {
			err = ferr
		}
		if err != nil {
			return fmt.Errorf("standard stream %d: %w", i, err)
		}
		open.add(p.stdio[i])
		if err := unix.SetNonblock(p.stdio[i], false); err != nil {
			return fmt.Errorf("standard stream %d: %w", i, err)
		}
	}
	return nil
}

// owned are kinds of files whose owner must be the user, for /dev/stdout to be opened again.
func owned(fd int) bool {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return false
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFIFO, unix.S_IFSOCK:
		return true
	case unix.S_IFCHR:
		return unix.Major(st.Rdev) >= 136 && unix.Major(st.Rdev) <= 143 // pts
	}
	return false
}

// own gives the streams to the user of a container with ids of its own, who could not take them.
func (p *process) own() error {
	if p.ids == nil {
		return nil
	}
	uid, err := p.ids.uid(p.user.uid)
	if err != nil {
		return err
	}
	for _, fd := range p.stdio {
		if owned(fd) {
			if err := unix.Fchown(fd, int(uid), -1); err != nil && !errors.Is(err, unix.EROFS) {
				return fmt.Errorf("give standard stream to user %d: %w", uid, err)
			}
		}
	}
	return nil
}

// firstKept is the first descriptor behind the streams and the socket. With a small init it is the init's file,
// and then come the two ends of a pipe that tells process 2 when process 1 has become it.
const (
	firstKept = 4
	initHears = firstKept + 1
	initTells = firstKept + 2
)

// arrange has the child put its descriptors in order: streams, the socket to the parent, more (which is moved)
// from firstKept on, nothing else. From here on no descriptor of the host's is left to be found in /proc/self/fd.
func (b *program) arrange(p *process, more ...int) {
	b.say("arrange descriptors")
	for i, fd := range p.stdio {
		if p.ids == nil && p.user.uid != 0 && owned(fd) {
			b.add(unix.SYS_FCHOWN, uintptr(fd), uintptr(p.user.uid), ^uintptr(0)).ok(unix.EPERM, unix.EROFS)
		}
		b.add(unix.SYS_DUP3, uintptr(fd), uintptr(i), 0)
	}
	b.add(unix.SYS_DUP3, uintptr(p.control), 3, unix.O_CLOEXEC)
	b.addKind(kindTell, 3)
	last := uintptr(firstKept)
	for _, fd := range more {
		b.add(unix.SYS_DUP3, uintptr(fd), last, unix.O_CLOEXEC)
		b.add(unix.SYS_CLOSE, uintptr(fd))
		last++
	}
	if !insecure.Without(insecure.Descriptors) {
		b.add(unix.SYS_CLOSE_RANGE, last, uintptr(^uint32(0)), 0)
	}
}

// confine has the child become what the process is: its directory, limits, user, capabilities and
// filter, in an order in which each can still be done.
func (b *program) confine(p *process, id identity) {
	for _, t := range p.traits {
		t(b)
	}
	b.workdir(p.spec.Cwd)
	umask := uintptr(0o022)
	if p.spec.User.Umask != nil {
		umask = uintptr(*p.spec.User.Umask)
	}
	b.add(unix.SYS_UMASK, umask)
	for _, l := range p.limits {
		b.say("set resource limit %s", l.name)
		b.add(unix.SYS_PRLIMIT64, 0, uintptr(l.resource), hold(b, &l.value), 0)
	}
	if !insecure.Without(insecure.Keyring) {
		b.say("join session keyring")
		b.add(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0).ok(unix.ENOSYS, unix.EDQUOT)
	}
	b.say("drop capabilities")
	for c := uint(0); c <= id.lastCap; c++ {
		if p.caps.bounding>>c&1 == 0 && id.bound>>c&1 != 0 {
			b.add(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0)
		}
	}
	b.become(p.user)
	if p.caps.inheritable != 0 {
		b.say("set capabilities")
		b.capset(id.caps, id.caps, p.caps.inheritable)
		for c := uint(0); c <= id.lastCap; c++ {
			if p.caps.ambient>>c&1 != 0 {
				b.add(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c), 0, 0)
			}
		}
	}
	// A filter that may not gain privileges can be loaded without any, as the last thing; else it
	// takes CAP_SYS_ADMIN, and the filter must let through what follows.
	if !p.spec.NoNewPrivileges {
		b.load(p)
	}
	b.say("set capabilities")
	b.capset(p.caps.effective, p.caps.permitted, p.caps.inheritable)
	if p.spec.NoNewPrivileges {
		b.say("set no-new-privileges")
		b.add(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		b.load(p)
	}
}

func (b *program) become(u user) {
	b.say("become user %d", u.uid)
	const noFixup = 1 << 2 // SECBIT_NO_SETUID_FIXUP: a change of user leaves capabilities alone (linux/securebits.h)
	if u.uid != 0 {
		b.add(unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, noFixup, 0, 0, 0)
	}
	gids := slices.Clone(u.groups)
	if len(gids) == 0 {
		b.add(unix.SYS_SETGROUPS, 0, 0)
	} else {
		b.keep = append(b.keep, gids)
		b.add(unix.SYS_SETGROUPS, uintptr(len(gids)), uintptr(unsafe.Pointer(&gids[0])))
	}
	b.add(unix.SYS_SETRESGID, uintptr(u.gid), uintptr(u.gid), uintptr(u.gid))
	b.add(unix.SYS_SETRESUID, uintptr(u.uid), uintptr(u.uid), uintptr(u.uid))
	if u.uid != 0 {
		b.add(unix.SYS_PRCTL, unix.PR_SET_SECUREBITS, 0, 0, 0, 0)
	}
}

func (b *program) load(p *process) {
	if len(p.filter) == 0 {
		return
	}
	b.say("load seccomp filter")
	prog := &unix.SockFprog{Len: uint16(len(p.filter)), Filter: &p.filter[0]}
	flags := p.flags
	if p.heard != nil {
		flags |= unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
	} else {
		flags &^= unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV // there is nothing to receive
	}
	b.add(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), hold(b, prog))
	if p.heard != nil {
		b.tell(tellsListener, p.heard)
	}
}

// workdir has the child go to its directory, which may be reached through links of the container's but
// not through one of procfs to a descriptor; and then see that it is inside (CVE-2024-21626).
func (b *program) workdir(cwd string) {
	b.say("change to working directory %s", cwd)
	b.now.class = errdefs.ErrInvalidArgument
	if insecure.Without(insecure.Workdir) {
		b.add(unix.SYS_CHDIR, b.str(cwd))
		return
	}
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	b.add(unix.SYS_OPENAT2, at, b.str(cwd), hold(b, how), unsafe.Sizeof(*how)).into(regScratch)
	b.add(unix.SYS_FCHDIR, regScratch).ref(0)
	b.add(unix.SYS_CLOSE, regScratch).ref(0)
	addr := uintptr(unsafe.Pointer(&cwdSeen))
	b.add(unix.SYS_GETCWD, addr, unsafe.Sizeof(cwdSeen))
	// Outside of the root it would begin with "(unreachable)".
	b.addKind(kindEqual, addr, 0xff, '/', uintptr(unix.EXDEV))
}

// cwdSeen is where a child, in its own copy of this memory, sees its working directory's name.
var cwdSeen [unix.PathMax]byte

// execute has the child wait for the word to start, and execute.
func (b *program) execute(p *process) {
	b.say("unblock signals")
	none := uint64(0)
	b.add(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, hold(b, &none), 0, 8)
	b.say("start")
	b.addKind(kindReady)
	b.say("exec %s", p.spec.Args[0])
	b.addKind(kindExec, b.strs(p.paths), b.strs(p.spec.Args), b.strs(p.env))
}

// forkInit splits off process 2, which goes on with the program, from process 1, which will be the
// small init (beInit). Of what follows only process 2 makes a session.
func (b *program) forkInit() {
	b.say("fork")
	b.add(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0).into(regFork)
	b.only(true, func() { b.add(unix.SYS_CLOSE, initTells) })
}

// only has process 2 alone do what fn adds.
func (b *program) only(withInit bool, fn func()) {
	if !withInit {
		fn()
		return
	}
	b.addKind(kindZero, regFork).ref(0)
	zero := b.here() - 1
	b.addKind(kindGoto)
	other := b.here() - 1
	b.ops[zero].to = b.here()
	fn()
	b.ops[other].to = b.here()
}

func (b *program) beInit() {
	b.addKind(kindZero, regFork).ref(0)
	first := b.here() - 1
	b.say("exec init")
	b.add(unix.SYS_EXECVEAT, firstKept, b.str(""), b.strs([]string{"gantry-init"}), b.strs(nil), unix.AT_EMPTY_PATH)
	b.ops[first].to = b.here()
	// Process 1 has what the host gave it until it executes, which closes its end of the pipe. Nothing of the
	// container's may run before.
	b.say("wait for init")
	b.add(unix.SYS_READ, initHears, b.bytes(make([]byte, 1)), 1)
	b.say("close init")
	b.add(unix.SYS_CLOSE, firstKept)
	b.add(unix.SYS_CLOSE, initHears)
}

// forkInto has the child make another in the process namespace it has joined, as a sibling of itself,
// tell the parent, and end. Only now is there somebody whom the container can see: its root is the
// container's already, and its descriptors are its own. It may be confined: by a filter, too.
func (b *program) forkInto(confined bool) {
	b.say("fork into process namespace")
	rec := &record{index: forked}
	recAddr := hold(b, rec)
	// struct cmsghdr and one descriptor (cmsg(3)): clone3 writes the pidfd where the message has it.
	cmsg := &struct {
		size        uint64
		level, kind int32
		fd, pad     int32
	}{size: 20, level: unix.SOL_SOCKET, kind: unix.SCM_RIGHTS}
	cmsgAddr := hold(b, cmsg)
	iov := &[2]uintptr{recAddr, uintptr(recordSize)}
	msg := &struct {
		name             uintptr
		nameLen          uint32
		_                uint32
		iov, iovLen      uintptr
		control, ctrlLen uintptr
		flags            int32
		_                int32
	}{iov: hold(b, iov), iovLen: 1, control: cmsgAddr, ctrlLen: unsafe.Sizeof(*cmsg)}
	pidfd, pid := cmsgAddr+unsafe.Offsetof(cmsg.fd), recAddr+unsafe.Offsetof(rec.more)
	ca := &cloneArgs{
		flags: unix.CLONE_PARENT | unix.CLONE_PIDFD | unix.CLONE_PARENT_SETTID,
		pidfd: uint64(pidfd), parentTID: uint64(pid),
	}
	if confined {
		b.add(unix.SYS_CLONE, cloneConfined, 0, pidfd).into(regFork)
	} else {
		b.add(unix.SYS_CLONE3, hold(b, ca), unsafe.Sizeof(*ca)).into(regFork)
	}
	b.addKind(kindZero, regFork).ref(0)
	first := b.here() - 1
	b.addKind(kindKeep, pid, regFork).ref(1)
	b.add(unix.SYS_SENDMSG, regControl, hold(b, msg), 0).ref(0)
	b.add(unix.SYS_EXIT_GROUP, 0)
	b.ops[first].to, b.forkedAt = b.here(), b.here()
}

// prepare reads what of the specification is the process's own.
func (id identity) prepare(spec *specs.Process, compiled []byte, profile *specs.LinuxSeccomp, warn func(string, ...any)) (*process, error) {
	p := &process{spec: spec, tty: spec.Terminal}
	var err error
	if p.caps, err = id.capabilities(spec.Capabilities, warn); err != nil {
		return nil, err
	}
	if p.limits, err = id.rlimits(spec.Rlimits, warn); err != nil {
		return nil, err
	}
	if p.traits, err = processTraits(spec); err != nil {
		return nil, err
	}
	if p.filter, p.flags, err = filterOf(compiled, profile); err != nil {
		return nil, err
	}
	if p.listen, err = listener(p.filter, profile); err != nil {
		return nil, err
	}
	return p, nil
}
