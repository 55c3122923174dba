package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"unsafe"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/cgroup"
	"github.com/gantryd/gantry/internal/insecure"
	"github.com/gantryd/gantry/shim/runtime"
)

// create does what Create says, with everything undone if it fails.
func (r *Runtime) create(ctx context.Context, cfg *runtime.Config) (_ *container, err error) {
	b := &builder{bundle: cfg.Bundle, warn: r.warner(cfg), root: -1, devpts: -1}
	b.reserve(createSteps)
	defer b.open.close()
	ns, err := b.namespaces(cfg)
	if err != nil {
		return nil, err
	}
	c, p, err := r.container(cfg, ns, b.warn)
	if err != nil {
		return nil, err
	}
	c.watched.Store(p.caps.tracing())
	if c.hooks != nil {
		b.creating = c.creating
	}
	defer func() { //nolint:contextcheck // what was begun is undone although the caller has gone
		if err != nil {
			c.release()
		}
	}()
	if c.group, err = r.cgroup(cfg); err != nil {
		return nil, err
	}
	b.group = c.group
	if err = ns.ids.as(func() (err error) { c.root, err = b.rootfs(cfg); return err }); err != nil {
		return nil, err
	}
	control, theirs, err := newControl()
	if err != nil {
		return nil, err
	}
	p.control, b.controlFD = theirs, theirs
	defer b.closeControl()
	defer func() {
		if err != nil {
			control.close()
		}
	}()
	entrance, err := c.group.Enter()
	if err != nil {
		return nil, err
	}
	defer entrance.Close()
	var term *os.File
	if err = ns.ids.as(func() (err error) { term, err = b.write(cfg, ns, p, c.self, entrance); return err }); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && term != nil {
			_ = term.Close()
		}
	}()
	if b.devpts >= 0 {
		if c.devpts, err = unix.FcntlInt(uintptr(b.devpts), unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return nil, err
		}
	}
	c.init, err = c.launch(ctx, &b.program, ns.cloned(), entrance, control, term, ns.forks())
	if err != nil {
		return nil, err
	}
	c.init.command = cfg.Spec.Process.Args[0]
	c.init.paths, c.init.cwd = p.paths, cfg.Spec.Process.Cwd
	return c, nil
}

// container is what is known of it, and of its first process, before anything is made.
func (r *Runtime) container(cfg *runtime.Config, ns *namespaces, warn func(string, ...any)) (*container, *process, error) {
	c := &container{id: cfg.ID, self: r.self, ids: ns.ids, enters: ns.entered(), warn: warn, devpts: -1, root: -1}
	if ns.ids != nil {
		c.self = r.self.inUser()
	}
	p, err := c.self.prepare(cfg.Spec.Process, cfg.Seccomp, cfg.Spec.Linux.Seccomp, warn)
	if err != nil {
		return nil, nil, err
	}
	if c.traits, err = linuxTraits(cfg.Spec.Linux); err != nil {
		return nil, nil, err
	}
	if c.affinity, err = readAffinity(cfg.Spec.Process.ExecCPUAffinity); err != nil {
		return nil, nil, err
	}
	p.ids, p.traits = ns.ids, append(p.traits, c.traits...)
	c.filter, c.flags, c.listen = p.filter, p.flags, p.listen
	c.watch(cfg.Spec, cfg.Bundle, p)
	if cfg.Init && p.listen != nil {
		return nil, nil, fmt.Errorf("linux.seccomp: a listener (%s) together with an init is not supported: %w", specs.ActNotify, errdefs.ErrNotImplemented)
	}
	c.hear(p, specs.StateCreating)
	return c, p, nil
}

// namespaces reads what config.json says about them, and what that means for the rest.
func (b *builder) namespaces(cfg *runtime.Config) (*namespaces, error) {
	ns, err := readNamespaces(cfg, &b.open)
	if err != nil {
		return nil, err
	}
	if cfg.Init && ns.clone&unix.CLONE_NEWPID == 0 {
		return nil, invalid("an init needs a process namespace of the container's own")
	}
	if b.ids = ns.ids; b.ids != nil && !ns.newNet {
		b.sysfs = sysfsOf(ns.net)
	}
	for _, j := range ns.joins {
		if j.kind == unix.CLONE_NEWPID {
			b.procfs = procfsOf(j.fd)
		}
	}
	b.label = cfg.Spec.Linux.MountLabel
	if b.stage, err = stage(cfg.Spec, cfg.Bundle); err != nil {
		return nil, err
	}
	return ns, ns.sysctls(cfg.Spec.Linux.Sysctl)
}

// cgroup makes the container's cgroup with its limits.
func (r *Runtime) cgroup(cfg *runtime.Config) (*cgroup.Group, error) {
	where := cfg.Spec.Linux.CgroupsPath
	if where == "" {
		where = cfg.ID // as runc
	}
	if !strings.HasPrefix(where, "/") {
		where = "/" + where
	}
	g, err := cgroup.Open(where)
	if err != nil {
		return nil, err
	}
	// What runs under this name is another container, or this one: nothing of it is touched.
	if g.Exists() {
		if pids, err := g.Pids(); err != nil || len(pids) > 0 {
			return nil, errors.Join(err, fmt.Errorf("cgroup %s: %d processes are in it: %w", where, len(pids), errdefs.ErrAlreadyExists))
		}
	}
	if err := g.Create(); err != nil {
		return g, err
	}
	if res := cfg.Spec.Linux.Resources; res != nil {
		if err := g.Limit(res); err != nil {
			return g, err
		}
		if err := g.Devices(res.Devices); err != nil {
			return g, err
		}
	}
	return g, nil
}

// write makes what the parent can make, and the program for the rest.
func (b *builder) write(cfg *runtime.Config, ns *namespaces, p *process, self identity, e *cgroup.Entrance) (*os.File, error) {
	s := cfg.Spec
	if err := b.oomScore(s.Process.OOMScoreAdj, b.warn); err != nil {
		return nil, err
	}
	b.labels(s.Process)
	b.enter(e)
	b.join(ns)
	if err := b.netDevices(s.Linux.NetDevices, ns); err != nil {
		return nil, err
	}
	b.enterRoot()
	b.nullDevice()
	if err := b.filesystems(cfg); err != nil {
		return nil, err
	}
	var err error
	if p.user, err = lookup(cfg.User, s.Process.User, b.read); err != nil {
		return nil, err
	}
	if err := p.ids.hold(p.user); err != nil {
		return nil, err
	}
	if err := p.environment(); err != nil {
		return nil, err
	}
	// As Docker: a working directory that is not there is made. If it cannot be, the child says why.
	if dir, err := b.make(s.Process.Cwd, true); err == nil {
		dir.close()
	}
	var term *os.File
	if p.tty {
		if term, err = b.terminal(p); err != nil {
			return nil, err
		}
		if err = b.console(p.stdio[0]); err != nil {
			return term, errors.Join(err, term.Close())
		}
	} else if err = p.streams(cfg.Stdio, &b.open); err != nil {
		return nil, err
	}
	if err = p.own(); err == nil {
		err = b.finish(cfg, ns, p, self)
	}
	if err != nil {
		if term != nil {
			_ = term.Close()
		}
		return nil, err
	}
	return term, nil
}

// filesystems are all mounts, and /dev.
func (b *builder) filesystems(cfg *runtime.Config) error {
	s := cfg.Spec
	if len(cfg.Rootfs) > 1 {
		if err := b.rest(cfg.Rootfs[1:]); err != nil {
			return err
		}
	}
	boundDev, populated := false, false
	for _, m := range s.Mounts {
		dest := path.Clean(m.Destination)
		if !populated && strings.HasPrefix(dest, "/dev/") {
			// Whatever is mounted below /dev finds it as it will be.
			populated = true
			if err := b.populateDev(boundDev); err != nil {
				return err
			}
		}
		if err := b.mount(m); err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		if dest == "/dev" {
			boundDev, populated = m.Type != "tmpfs", false
		}
	}
	if !populated {
		if err := b.populateDev(boundDev); err != nil {
			return err
		}
	}
	for _, d := range s.Linux.Devices {
		if err := b.device(d); err != nil {
			return fmt.Errorf("make device %s: %w", d.Path, err)
		}
	}
	return nil
}

// finish writes the second half of the program, and closes the root filesystem for writing if it is read-only.
func (b *builder) finish(cfg *runtime.Config, ns *namespaces, p *process, self identity) (err error) {
	s := cfg.Spec
	if b.creating != nil { // before the host's /dev is covered for the masks
		b.say("wait for hooks")
		b.ask(asksHooks, b.creating)
	}
	b.sysctl(s.Linux.Sysctl)
	if err := b.mask(s.Linux.MaskedPaths); err != nil {
		return err
	}
	if err := b.readOnly(s.Linux.ReadonlyPaths); err != nil {
		return err
	}
	b.pivot(rootPropagation[s.Linux.RootfsPropagation])
	if err := b.names(s.Hostname, s.Domainname, ns); err != nil {
		return err
	}
	if s.Root != nil && s.Root.Readonly {
		if err := unix.MountSetattr(b.root, "", unix.AT_EMPTY_PATH, attr(unix.MOUNT_ATTR_RDONLY, 0)); err != nil {
			return fmt.Errorf("make root filesystem read-only: %w", err)
		}
	}
	var kept []int
	if cfg.Init {
		if kept, err = initFiles(&b.lent); err != nil {
			return err
		}
	}
	b.arrange(p, kept...)
	if cfg.Init {
		b.forkInit()
	}
	switch late := ns.late() && !ns.early(); {
	case late && p.confinedFirst(b.warn):
		b.confine(p, self)
		b.forkInto(true)
		b.session(p)
	case late:
		b.forkInto(false)
		fallthrough
	default:
		b.only(cfg.Init, func() { b.session(p) })
		b.confine(p, self)
	}
	if cfg.Init {
		b.beInit()
	}
	b.execute(p)
	return nil
}

// enter has the child put itself into the cgroup's v1 directories: with one thread that is cheap.
func (p *program) enter(e *cgroup.Entrance) {
	p.say("enter cgroup")
	zero := p.bytes([]byte("0"))
	for _, f := range e.Tasks {
		p.add(unix.SYS_WRITE, f.Fd(), zero, 1)
	}
}

func (b *builder) names(host, domain string, ns *namespaces) error {
	for _, n := range []struct {
		nr   uintptr
		what string
		name string
	}{{unix.SYS_SETHOSTNAME, "hostname", host}, {unix.SYS_SETDOMAINNAME, "domainname", domain}} {
		if n.name == "" {
			continue
		}
		if !ns.has["uts"] {
			return invalid("%s %q: the container shares the host's names", n.what, n.name)
		}
		b.say("set %s %s", n.what, n.name)
		b.add(n.nr, b.bytes([]byte(n.name)), uintptr(len(n.name)))
	}
	return nil
}

// procMagic is procfs's filesystem type (statfs(2)).
const procMagic = 0x9fa0

// oomScore has the child say how it is to be chosen when memory is short, while it still sees the
// host's procfs, which is verified to be one. Only the privileged may ask to be spared.
func (p *program) oomScore(adj *int, warn func(string, ...any)) error {
	id := whoamiNow()
	if adj == nil {
		if id.oomScore >= 0 {
			return nil
		}
		adj = new(int) // the daemon is spared for its own sake, not for its containers'
	}
	if *adj < id.oomScore && id.caps>>capSysResource&1 == 0 {
		warn("this host does not let a process be spared when memory is short", "oom_score_adj", *adj, "stays", id.oomScore)
	}
	if *adj < -1000 || *adj > 1000 {
		return invalid("process.oomScoreAdj %d: it must be between -1000 and 1000", *adj)
	}
	p.say("set oom_score_adj to %d", *adj)
	p.openProc("/proc/self/oom_score_adj", unix.O_WRONLY)
	v := fmt.Append(nil, *adj)
	p.add(unix.SYS_WRITE, regScratch, p.bytes(v), uintptr(len(v))).ref(0).ok(unix.EACCES, unix.EPERM)
	p.add(unix.SYS_CLOSE, regScratch).ref(0)
	return nil
}

// openProc has the child open a file of the host's procfs, which is verified to be one (CVE-2025-52881),
// into regScratch. It must not have left the host's root.
func (p *program) openProc(file string, flags uintptr) {
	p.add(unix.SYS_OPENAT, at, p.str(file), flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0).into(regScratch)
	if insecure.Without(insecure.Procfs) {
		return
	}
	st := new(unix.Statfs_t)
	addr := hold(p, st)
	p.add(unix.SYS_FSTATFS, regScratch, addr).ref(0)
	p.addKind(kindEqual, addr+unsafe.Offsetof(st.Type), 0xffffffff, procMagic, uintptr(unix.EXDEV))
}

// launch clones the child and waits until it is ready to start. forks says that the child makes
// another, which is the process, and ends.
func (c *container) launch(ctx context.Context, p *program, flags uint64, e *cgroup.Entrance, ctl *control, term *os.File, forks bool) (*proc, error) {
	dir := -1
	if e.Dir != nil {
		dir = int(e.Dir.Fd())
	}
	first, err := p.spawn(flags, dir)
	p.closeControl() // or its end, when the child dies, would not be seen
	if err != nil {
		return nil, fmt.Errorf("clone: %w", err)
	}
	return c.await(ctx, p, first, ctl, term, forks)
}

func (p *program) closeControl() {
	p.lent.close()
	if p.controlFD >= 0 {
		_ = unix.Close(p.controlFD)
		p.controlFD = -1
	}
}

// failed is the error that a record stands for.
func (p *program) failed(rec record) error {
	if rec.index < 0 || rec.index >= int64(len(p.steps)) {
		return fmt.Errorf("the child said %d: %w", rec.index, errdefs.ErrInternal)
	}
	return &stepError{step: p.steps[rec.index], errno: unix.Errno(rec.errno)}
}

func whoamiNow() identity { id, _ := whoami(); return id }
