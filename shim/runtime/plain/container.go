package plain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"unsafe"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/cgroup"
	"github.com/gantryd/gantry/shim/runtime"
)

type container struct {
	group   *cgroup.Group
	spec    *specs.Spec
	seccomp []byte
	init    *process
	keep    int // holds the root filesystem: its unmount, which writes back, comes with Delete and not with the exit
}

func (c *container) Init() runtime.Process { return c.init }

func (c *container) Kill(ctx context.Context, sig unix.Signal) error {
	if sig == unix.SIGKILL {
		_ = c.init.Signal(sig)
		err := c.group.Kill(ctx)
		return err
	}
	pids, err := c.group.Pids()
	if err != nil {
		return err
	}
	for _, pid := range pids {
		_ = unix.Kill(pid, sig)
	}
	return nil
}

func (c *container) Pause(ctx context.Context) error  { return c.group.Freeze(ctx) }
func (c *container) Resume(ctx context.Context) error { return c.group.Thaw(ctx) }

func (c *container) Update(_ context.Context, r *specs.LinuxResources) error { return c.group.Limit(r) }

func (c *container) Stats(context.Context) (runtime.Stats, error) {
	s, err := c.group.Stats()
	return runtime.Stats{CPUUsec: uint64(s.CPU.Microseconds()), MemoryBytes: s.MemoryBytes, PIDs: s.Pids, OOMKills: s.OOMKills}, err
}

func (c *container) Delete(ctx context.Context) error {
	if err := c.group.Kill(ctx); err != nil {
		return err
	}
	if err := c.group.Remove(ctx); err != nil {
		return err
	}
	if c.keep >= 0 {
		_ = unix.Close(c.keep)
		c.keep = -1
	}
	return c.init.Close()
}

// Exec joins the container's namespaces.
func (c *container) Exec(ctx context.Context, e *runtime.Exec) (runtime.Process, error) {
	var p *process
	err := onThread(func() (err error) { p, err = c.join(ctx, e); return err })
	if err != nil {
		return nil, err
	}
	return p, nil
}

// join runs on a thread of its own, whose children begin in the container's pid namespace; the child
// enters the others itself.
func (c *container) join(ctx context.Context, e *runtime.Exec) (*process, error) {
	rootfd, err := unix.Open(fmt.Sprintf("/proc/%d/root", c.init.pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("exec: the container does not run: %w", errdefs.ErrFailedPrecondition)
	}
	defer unix.Close(rootfd) //nolint:errcheck // O_PATH
	if err := unix.PidfdSendSignal(c.init.pidfd, 0, nil, 0); err != nil {
		return nil, fmt.Errorf("exec: the container does not run: %w", errdefs.ErrFailedPrecondition)
	}
	b := &builder{c: &runtime.Config{Spec: c.spec, Stdio: e.Stdio}, spec: &specs.Spec{Process: e.Spec, Linux: c.spec.Linux}, t: tree{root: rootfd}, group: c.group}
	defer b.close()
	who, err := lookup(&b.t, e.User, e.Spec.User)
	if err != nil {
		return nil, err
	}
	b.slave = -1
	if e.Spec.Terminal {
		master, slave, err := openTerminal(&b.t)
		if err != nil {
			return nil, fmt.Errorf("make terminal: %w", err)
		}
		b.tty, b.slave = os.NewFile(uintptr(master), "terminal"), b.own(slave)
		_ = unix.Fchown(slave, int(who.uid), -1)
		if s := e.Spec.ConsoleSize; s != nil {
			_ = unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(s.Height), Col: uint16(s.Width)})
		}
	} else if err := b.pipes(e.Stdio); err != nil {
		return nil, err
	}
	entrance, err := c.group.Enter()
	if err != nil {
		return nil, err
	}
	defer entrance.Close()
	if err := unix.Setns(c.init.pidfd, unix.CLONE_NEWPID); err != nil {
		return nil, fmt.Errorf("exec: join pid namespace: %w", err)
	}
	p := &b.p
	for _, f := range entrance.Tasks {
		p.call("enter cgroup", unix.SYS_WRITE, f.Fd(), p.str("0"), 1)
	}
	flags := uintptr(unix.CLONE_NEWNS)
	for _, n := range c.spec.Linux.Namespaces {
		flags |= map[specs.LinuxNamespaceType]uintptr{
			specs.IPCNamespace: unix.CLONE_NEWIPC, specs.UTSNamespace: unix.CLONE_NEWUTS, specs.NetworkNamespace: unix.CLONE_NEWNET, specs.CgroupNamespace: unix.CLONE_NEWCGROUP,
		}[n.Type]
	}
	p.call("join namespaces", unix.SYS_SETNS, uintptr(c.init.pidfd), flags)
	p.call("begin a session", unix.SYS_SETSID)
	report, wait, err := newPipes()
	if err != nil {
		return nil, err
	}
	x := &exec{t: &b.t, p: p, spec: e.Spec, who: who, seccomp: c.seccomp, stdio: b.stdio, slave: b.slave, report: report.theirs, wait: wait.theirs}
	command, err := x.finish()
	if err != nil {
		report.close()
		wait.close()
		return nil, err
	}
	dir := -1
	if entrance.Dir != nil {
		dir = int(entrance.Dir.Fd())
	}
	pr := &process{command: command, program: p, report: report.ours, wait: wait.ours, tty: b.tty}
	if pr.pid, pr.pidfd, err = p.clone(0, dir, report.theirs, wait.theirs); err != nil {
		report.close()
		wait.close()
		return nil, err
	}
	_ = unix.Close(report.theirs)
	_ = unix.Close(wait.theirs)
	return pr, pr.ready(ctx)
}

// pipe has one end for us and one for the child.
type pipe struct{ ours, theirs int }

func (p pipe) close() { _ = unix.Close(p.ours); _ = unix.Close(p.theirs) }

// newPipes makes one for the child's reports and one for the word to go on.
func newPipes() (report, wait pipe, err error) {
	var a, b [2]int
	if err := unix.Pipe2(a[:], unix.O_CLOEXEC); err != nil {
		return report, wait, err
	}
	if err := unix.Pipe2(b[:], unix.O_CLOEXEC); err != nil {
		_ = unix.Close(a[0])
		_ = unix.Close(a[1])
		return report, wait, err
	}
	return pipe{a[0], a[1]}, pipe{b[1], b[0]}, nil
}

// process is a child of ours.
type process struct {
	pid, pidfd   int
	command      string
	program      *program
	report, wait int
	tty          *os.File

	mu     sync.Mutex
	closed bool
	file   *os.File
}

func (p *process) PID() int { return p.pid }

func (p *process) PIDFD() *os.File {
	if p.file == nil {
		p.file = os.NewFile(uintptr(p.pidfd), "pidfd")
	}
	return p.file
}

func (p *process) Terminal() *os.File { return p.tty }

// ready waits until the child waits, or reaps it and says what went wrong.
func (p *process) ready(context.Context) error {
	f, err := p.read()
	if err == nil && f.index == -1 {
		return nil
	}
	p.reap()
	if err == nil {
		return p.program.sentence(f)
	}
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("start process: it died before it could say why (is there memory and room for processes in its cgroup?)")
	}
	return err
}

func (p *process) read() (failure, error) {
	var buf [16]byte
	n, err := unix.Read(p.report, buf[:])
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Read(p.report, buf[:])
	}
	if err != nil {
		return failure{}, err
	}
	if n != 16 {
		return failure{}, io.EOF
	}
	return *(*failure)(unsafe.Pointer(&buf)), nil
}

func (p *process) reap() {
	_ = unix.PidfdSendSignal(p.pidfd, unix.SIGKILL, nil, 0)
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(p.pid, &ws, 0, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
}

// Start says the word; the report pipe closes when the program is executed.
func (p *process) Start(context.Context) error {
	if _, err := unix.Write(p.wait, []byte{1}); err != nil {
		return fmt.Errorf("start process: %w", err)
	}
	f, err := p.read()
	if errors.Is(err, io.EOF) {
		p.shut()
		return nil
	}
	p.reap()
	if err != nil {
		return err
	}
	return p.execError(f)
}

func (p *process) execError(f failure) error {
	err := p.program.sentence(f)
	name := p.command
	if !strings.HasPrefix(p.program.names[f.index], "exec ") {
		return err
	}
	class, reason := error(errdefs.ErrPermissionDenied), unix.Errno(f.errno).Error()
	switch unix.Errno(f.errno) {
	case unix.ENOENT:
		class, reason = errdefs.ErrNotFound, "no such file or directory: the program's interpreter, the one its first line or its ELF header names, is not in the image"
	case unix.ENOEXEC:
		class, reason = errdefs.ErrFailedPrecondition, "exec format error: no program for this machine"
	}
	return &runtime.CommandError{Command: name, Reason: reason, Class: class}
}

func (p *process) Signal(sig unix.Signal) error {
	err := unix.PidfdSendSignal(p.pidfd, sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal process: it has ended: %w", errdefs.ErrNotFound)
	}
	return err
}

func (p *process) shut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.closed = true
		_ = unix.Close(p.report)
		_ = unix.Close(p.wait)
	}
}

func (p *process) Close() error {
	p.shut()
	return nil
}

// check refuses by name what is not done here.
func check(s *specs.Spec) error {
	refuse := func(field string) error {
		return fmt.Errorf("config.json: %s is not supported: %w", field, errdefs.ErrNotImplemented)
	}
	switch {
	case s.Process == nil || len(s.Process.Args) == 0:
		return fmt.Errorf("config.json: process.args is missing: %w", errdefs.ErrInvalidArgument)
	case s.Linux == nil || s.Root == nil:
		return fmt.Errorf("config.json: linux or root is missing: %w", errdefs.ErrInvalidArgument)
	case s.Hooks != nil:
		return refuse("hooks")
	case len(s.Linux.UIDMappings) > 0 || len(s.Linux.GIDMappings) > 0:
		return refuse("linux.uidMappings")
	case len(s.Linux.Devices) > 0:
		return refuse("linux.devices")
	case s.Linux.Seccomp != nil:
		return refuse("linux.seccomp")
	case s.Process.ApparmorProfile != "":
		return refuse("process.apparmorProfile")
	case s.Process.SelinuxLabel != "" || s.Linux.MountLabel != "":
		return refuse("process.selinuxLabel")
	}
	return nil
}
