package native

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Hooks are programs that config.json has run at moments of a container's life (OCI runtime
// specification, "Lifecycle"), with the container's state on their standard input:
//
//	prestart, createRuntime    created, before its root is the root: on the host
//	createContainer            then; a program of the host's, in the container's namespaces
//	startContainer             asked to start, before its program: of the container's, as its process
//	poststart                  after its program was executed: on the host
//	poststop                   deleted: on the host
//
// Where a container joins processes of others, it is among them only at the end (procfs.go): what hooks of
// create are told as its pid is its maker's, in the same namespaces but for that one, and they are not in
// that one either. A hook there would show its root, the host's, to whoever may look.
//
// The first that fails ends the container, but for poststop, whose failures are told to Warn.

// What a child says about hooks.
const (
	asksHooks = -4 // the container is there, and they may run
	hookEnded = -5 // more is its status, as wait(2) has it
)

// hookKind is one list of hooks.
type hookKind struct {
	name   string
	list   []specs.Hook
	status specs.ContainerState
	inside bool     // in the container's namespaces
	as     *process // whom it runs as there; nil: root with everything
}

// hookKinds are all lists, in the order of their moments.
func (c *container) hookKinds() (creating []hookKind, start, poststart, poststop hookKind) {
	h := c.hooks
	creating = []hookKind{
		{name: "prestart", list: h.Prestart, status: specs.StateCreating}, //nolint:staticcheck // deprecated, and done
		{name: "createRuntime", list: h.CreateRuntime, status: specs.StateCreating},
		{name: "createContainer", list: h.CreateContainer, status: specs.StateCreating, inside: true},
	}
	start = hookKind{name: "startContainer", list: h.StartContainer, status: specs.StateCreated, inside: true, as: c.process}
	poststart = hookKind{name: "poststart", list: h.Poststart, status: specs.StateRunning}
	poststop = hookKind{name: "poststop", list: h.Poststop, status: specs.StateStopped}
	return creating, start, poststart, poststop
}

// supportedHooks checks what config.json says about them.
func supportedHooks(s *specs.Spec) error {
	if s.Hooks == nil {
		return nil
	}
	creating, start, poststart, poststop := (&container{hooks: s.Hooks}).hookKinds()
	for _, k := range append(creating, start, poststart, poststop) {
		for i, h := range k.list {
			switch {
			case !path.IsAbs(h.Path):
				return invalid("hooks.%s[%d].path %q: it must be an absolute path", k.name, i, h.Path)
			case h.Timeout != nil && *h.Timeout <= 0:
				return invalid("hooks.%s[%d].timeout: %d seconds; it must be more than none", k.name, i, *h.Timeout)
			case slices.ContainsFunc(slices.Concat([]string{h.Path}, h.Args, h.Env), func(s string) bool { return strings.ContainsRune(s, 0) }):
				return invalid("hooks.%s[%d] holds a NUL", k.name, i)
			}
		}
	}
	return nil
}

// watch keeps what the hooks of a container will need.
func (c *container) watch(s *specs.Spec, bundle string, p *process) {
	c.state = specs.State{Version: s.Version, ID: c.id, Bundle: bundle, Annotations: s.Annotations}
	if s.Hooks == nil {
		return
	}
	c.hooks = s.Hooks
	if len(s.Hooks.StartContainer) > 0 {
		c.process = p
	}
}

// stage is the directory of the host's on which the root filesystem is seen by hooks that run in the
// container's namespaces and look for it there; "" if none does.
func stage(s *specs.Spec, bundle string) (string, error) {
	if s.Hooks == nil || len(s.Hooks.CreateContainer) == 0 {
		return "", nil
	}
	dir := ""
	if s.Root != nil {
		if dir = s.Root.Path; !path.IsAbs(dir) {
			dir = path.Join(bundle, dir)
		}
	}
	if st, err := os.Stat(dir); err != nil || !st.IsDir() || dir == path.Clean(bundle) {
		return "", invalid("hooks.createContainer: root.path names no directory (%s) where they could find the root filesystem", dir)
	}
	return dir, nil
}

// creating runs the hooks of create, while the child waits before it changes its root.
func (c *container) creating(ctx context.Context, p child) error {
	c.mu.Lock()
	c.created = true
	c.mu.Unlock()
	kinds, _, _, _ := c.hookKinds()
	for _, k := range kinds {
		if err := c.runHooks(ctx, k, p); err != nil {
			return err
		}
	}
	return nil
}

// poststop runs the hooks of a container that is no more, once.
func (c *container) poststop(ctx context.Context) {
	c.mu.Lock()
	due := c.created && c.hooks != nil
	c.created = false
	c.mu.Unlock()
	if !due {
		return
	}
	_, _, _, k := c.hookKinds()
	for i := range k.list {
		if err := c.hook(ctx, k, i, child{}); err != nil {
			c.warn("a hook failed", "err", err)
		}
	}
}

// runHooks runs one list, up to the first that fails.
func (c *container) runHooks(ctx context.Context, k hookKind, p child) error {
	for i := range k.list {
		if err := c.hook(ctx, k, i, p); err != nil {
			return err
		}
	}
	return nil
}

// hook runs one and waits for it.
func (c *container) hook(ctx context.Context, k hookKind, i int, p child) error {
	h := k.list[i]
	if h.Timeout != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, time.Duration(*h.Timeout)*time.Second, fmt.Errorf("it took longer than the %d s it has: %w", *h.Timeout, context.DeadlineExceeded))
		defer cancel()
	}
	said, err := c.hookOutput(ctx, k, h, p)
	if err == nil {
		return nil
	}
	if said = strings.TrimSpace(said); said != "" {
		err = fmt.Errorf("%w: it said %q", err, said)
	}
	return fmt.Errorf("hook %s[%d] (%s): %w", k.name, i, h.Path, err)
}

// hookOutput answers the beginning of what a hook wrote.
func (c *container) hookOutput(ctx context.Context, k hookKind, h specs.Hook, p child) (string, error) {
	var open files
	defer open.close()
	state := c.state
	state.Status, state.Pid = k.status, p.pid
	if k.inside {
		state.Pid = insidePID(p.pid)
	}
	raw, err := stateJSON(state)
	if err != nil {
		return "", err
	}
	in, err := memory("state", raw, &open)
	if err != nil {
		return "", err
	}
	out, err := memory("output", nil, &open)
	if err != nil {
		return "", err
	}
	ctl, theirs, err := newControl()
	if err != nil {
		return "", err
	}
	defer ctl.close()
	b := &program{controlFD: theirs}
	defer b.closeControl()
	as := process{}
	if k.as != nil {
		as = *k.as
		as.heard = nil // calls that would be told are not there for it
	}
	as.stdio, as.control = [3]int{in, out, out}, theirs
	first, err := c.spawnHook(b, k, h, &as, p, &open)
	if err != nil {
		return "", err
	}
	defer first.destroy()
	rec, _, err := ctl.next(ctx)
	if err != nil && unix.PidfdSendSignal(first.pidfd, 0, nil, 0) == nil {
		_ = unix.Kill(-first.pid, unix.SIGKILL) // with what it has started: the group is theirs as long as first lives
	}
	buf := make([]byte, 512)
	n, _ := unix.Pread(out, buf, 0)
	said := string(buf[:max(n, 0)])
	switch ws := unix.WaitStatus(rec.more); {
	case err != nil:
		return said, err
	case rec.index != hookEnded:
		return said, b.failed(rec)
	case ws.Signaled():
		return said, fmt.Errorf("killed by %s: %w", unix.SignalName(ws.Signal()), errdefs.ErrFailedPrecondition)
	case ws.ExitStatus() != 0:
		return said, fmt.Errorf("exit status %d: %w", ws.ExitStatus(), errdefs.ErrFailedPrecondition)
	}
	return said, nil
}

// spawnHook writes and starts the program of a hook: a process that makes the hook's, waits for it, so
// that nobody else can have taken its status, and says how it ended. The hook ends with it.
func (c *container) spawnHook(b *program, k hookKind, h specs.Hook, as *process, p child, open *files) (child, error) {
	dir := -1
	var more []int
	if k.inside {
		e, err := c.group.Enter()
		if err != nil {
			return child{}, err
		}
		defer e.Close()
		if k.as != nil {
			b.labels(as.spec)
		}
		b.enter(e)
		if e.Dir != nil {
			dir = int(e.Dir.Fd())
		}
		fd, err := unix.FcntlInt(uintptr(p.pidfd), unix.F_DUPFD_CLOEXEC, low)
		if err != nil {
			return child{}, err
		}
		more = append(more, open.add(fd))
	}
	b.arrange(&process{stdio: as.stdio, control: as.control}, more...)
	if k.inside {
		b.say("join the container's namespaces")
		b.add(unix.SYS_SETNS, firstKept, uintptr(c.enters))
		b.add(unix.SYS_CLOSE, firstKept)
		if c.ids != nil {
			b.beRoot()
		}
	} else {
		b.say("change to %s", c.state.Bundle)
		b.add(unix.SYS_CHDIR, b.str(c.state.Bundle))
	}
	b.say("make session")
	b.add(unix.SYS_SETSID)
	b.say("fork")
	b.add(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0).into(regFork)
	b.addKind(kindZero, regFork).ref(0)
	made := b.here() - 1
	ended := &record{index: hookEnded}
	b.say("wait")
	b.add(unix.SYS_WAIT4, regFork, hold(b, &ended.more), 0, 0).ref(0)
	b.add(unix.SYS_WRITE, regControl, hold(b, ended), uintptr(recordSize)).ref(0)
	b.add(unix.SYS_EXIT_GROUP, 0)
	b.ops[made].to = b.here()
	if k.as != nil {
		b.confine(as, c.self)
	}
	b.say("tie to its parent")
	b.add(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0)
	b.say("unblock signals")
	none := uint64(0)
	b.add(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, hold(b, &none), 0, 8)
	args := h.Args
	if len(args) == 0 {
		args = []string{h.Path}
	}
	b.say("exec")
	b.addKind(kindExec, b.strs([]string{h.Path}), b.strs(args), b.strs(h.Env))
	first, err := b.spawn(0, dir)
	b.closeControl()
	return first, err
}

// memory is a file that is nowhere but in memory, read from its beginning.
func memory(name string, content []byte, open *files) (int, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("make file in memory: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // a higher number is kept
	if len(content) > 0 {
		if _, err := unix.Pwrite(fd, content, 0); err != nil {
			return -1, fmt.Errorf("make file in memory: %w", err)
		}
	}
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, low)
	if err != nil {
		return -1, fmt.Errorf("make file in memory: %w", err)
	}
	return open.add(high), nil
}

// insidePID is what a process is called in the process namespace that it is in (proc_pid_status(5)).
func insidePID(pid int) int {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return pid
	}
	for l := range bytes.Lines(raw) {
		if list, ok := bytes.CutPrefix(l, []byte("NSpid:")); ok {
			if f := bytes.Fields(list); len(f) > 0 {
				if n, err := strconv.Atoi(string(f[len(f)-1])); err == nil {
					return n
				}
			}
		}
	}
	return pid
}

// beginning runs the hooks that come before the container's program.
func (p *proc) beginning(ctx context.Context) error {
	if p.c.hooks == nil || p != p.c.init {
		return nil
	}
	_, k, _, _ := p.c.hookKinds()
	return p.c.runHooks(ctx, k, p.child)
}

// begun runs those that come after.
func (p *proc) begun(ctx context.Context) error {
	if p.c.hooks == nil || p != p.c.init {
		return nil
	}
	_, _, k, _ := p.c.hookKinds()
	return p.c.runHooks(ctx, k, p.child)
}
