package native

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/shim/runtime"
)

// Exec: see runtime.Container.
func (c *container) Exec(ctx context.Context, x *runtime.Exec) (runtime.Process, error) {
	p, err := c.exec(ctx, x)
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	return p, nil
}

func (c *container) exec(ctx context.Context, x *runtime.Exec) (_ *proc, err error) {
	if err := supportedProcess(x.Spec); err != nil {
		return nil, err
	}
	var open files
	defer open.close()
	root, devpts, err := c.handles(&open)
	if err != nil {
		return nil, err
	}
	p, err := c.self.prepare(x.Spec, nil, nil, c.warn)
	if err != nil {
		return nil, err
	}
	p.filter, p.flags, p.ids, p.traits = c.filter, c.flags, c.ids, append(p.traits, c.traits...)
	p.listen = c.listen
	c.hear(p, specs.StateRunning)
	if p.caps.tracing() {
		c.watched.Store(true)
	}
	where := c.affinity
	if x.Spec.ExecCPUAffinity != nil {
		if where, err = readAffinity(x.Spec.ExecCPUAffinity); err != nil {
			return nil, err
		}
	}
	if p.user, err = lookup(x.User, x.Spec.User, func(name string) ([]byte, error) { return readInside(root, name) }); err != nil {
		return nil, err
	}
	if err := p.ids.hold(p.user); err != nil {
		return nil, err
	}
	if err := p.environment(); err != nil {
		return nil, err
	}
	var term *os.File
	if p.tty {
		if term, err = execTerminal(root, devpts, p, &open); err != nil {
			return nil, err
		}
	} else if err := p.streams(x.Stdio, &open); err != nil {
		return nil, err
	}
	err = p.own()
	var control *control
	var theirs int
	if err == nil {
		control, theirs, err = newControl()
	}
	if err == nil {
		p.control = theirs
		var made *proc
		if made, err = c.execIn(ctx, p, where, control, term, &open); err == nil {
			return made, nil
		}
		control.close()
	}
	if term != nil {
		_ = term.Close()
	}
	return nil, err
}

// handles are descriptors of the container's that stay open for this exec, if it runs.
func (c *container) handles(open *files) (root, devpts int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.init.mu.Lock()
	state := c.init.state
	c.init.mu.Unlock()
	switch {
	case c.root < 0 || state != started:
		return -1, -1, fmt.Errorf("the container does not run: %w", errdefs.ErrFailedPrecondition)
	case c.paused:
		return -1, -1, fmt.Errorf("the container is paused: resume it first: %w", errdefs.ErrFailedPrecondition)
	}
	if root, err = unix.FcntlInt(uintptr(c.root), unix.F_DUPFD_CLOEXEC, low); err != nil {
		return -1, -1, err
	}
	open.add(root)
	devpts = -1
	if c.devpts >= 0 {
		if devpts, err = unix.FcntlInt(uintptr(c.devpts), unix.F_DUPFD_CLOEXEC, low); err != nil {
			return -1, -1, err
		}
		open.add(devpts)
	}
	return root, devpts, nil
}

// execIn writes the program: into the cgroup, out of everything of the host's, into the namespaces,
// and only then a process that the container can see.
func (c *container) execIn(ctx context.Context, p *process, where affinity, ctl *control, term *os.File, open *files) (*proc, error) {
	b := &program{controlFD: p.control}
	b.reserve(execSteps)
	defer b.closeControl()
	entrance, err := c.group.Enter()
	if err != nil {
		return nil, err
	}
	defer entrance.Close()
	pidfd, err := c.init.dup()
	if err != nil {
		return nil, fmt.Errorf("the container does not run: %w: %w", errdefs.ErrFailedPrecondition, err)
	}
	open.add(pidfd)
	if err := b.oomScore(p.spec.OOMScoreAdj, c.warn); err != nil {
		return nil, err
	}
	b.labels(p.spec)
	b.prelude = where.before()
	b.enter(entrance)
	where.settle(b)
	b.arrange(p, pidfd)
	b.say("join the container's namespaces")
	b.now.class = errdefs.ErrFailedPrecondition // the container has just ended
	b.add(unix.SYS_SETNS, firstKept, uintptr(c.enters))
	b.add(unix.SYS_CLOSE, firstKept)
	if c.watched.Load() && p.confinedFirst(c.warn) {
		b.confine(p, c.self)
		b.forkInto(true)
		b.session(p)
	} else {
		b.forkInto(false)
		b.session(p)
		b.confine(p, c.self)
	}
	b.execute(p)
	made, err := c.launch(ctx, b, 0, entrance, ctl, term, true)
	if err != nil {
		return nil, err
	}
	made.command, made.paths, made.cwd = p.spec.Args[0], p.paths, p.spec.Cwd
	return made, nil
}

// dup is another descriptor of the process, if it has not ended.
func (p *proc) dup() (int, error) {
	rc, err := p.file.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	cerr := rc.Control(func(f uintptr) {
		if err = unix.PidfdSendSignal(int(f), 0, nil, 0); err == nil {
			fd, err = unix.FcntlInt(f, unix.F_DUPFD_CLOEXEC, low)
		}
	})
	return fd, errors.Join(cerr, err)
}

// readInside reads a regular file of a running container.
func readInside(root int, name string) ([]byte, error) {
	fd, err := openIn(root, name, unix.O_PATH, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	p, err := look(name, fd)
	if err != nil {
		return nil, err
	}
	defer p.close()
	return readRegular(p.fd, p.mode, name)
}

func execTerminal(root, devpts int, p *process, open *files) (*os.File, error) {
	var ptmx int
	var err error
	if devpts >= 0 {
		ptmx, err = openIn(devpts, "ptmx", unix.O_RDWR|unix.O_NOCTTY, unix.RESOLVE_NO_SYMLINKS)
	} else {
		ptmx, err = openIn(root, "dev/pts/ptmx", unix.O_PATH, unix.RESOLVE_NO_SYMLINKS)
		if err == nil {
			at := ptmx
			ptmx, err = openPtmx(at)
			_ = unix.Close(at)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open terminal: the container has no /dev/pts: %w", err)
	}
	master, slave, err := terminal(ptmx, p.spec.ConsoleSize)
	if err != nil {
		return nil, err
	}
	open.add(slave)
	p.stdio = [3]int{slave, slave, slave}
	return master, nil
}

// start lets the child execute and says why it could not.
func (p *proc) start(ctx context.Context) error {
	if err := p.beginning(ctx); err != nil {
		return fmt.Errorf("start process: %w", err)
	}
	if err := p.control.proceed(); err != nil {
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
			return fmt.Errorf("start process: it was killed before: %w", errdefs.ErrFailedPrecondition)
		}
		return fmt.Errorf("start process: %w", err)
	}
	rec, _, err := p.control.next(ctx)
	switch {
	case errors.Is(err, io.EOF):
		// Executed, which closes the child's end.
		if err := p.begun(ctx); err != nil {
			return fmt.Errorf("start process: %w", err)
		}
		return nil
	case err != nil:
		return fmt.Errorf("start process: %w", err)
	case rec.index < 0 || rec.index >= int64(len(p.program.ops)) || p.program.ops[rec.index].kind != kindExec:
		return fmt.Errorf("start process: %w", p.program.failed(rec))
	}
	return p.explain(rec)
}

// explain says in words why a command was not executed. The child is still there, and with it all
// that is mounted.
func (p *proc) explain(rec record) error {
	errno := unix.Errno(rec.errno)
	e := &runtime.CommandError{Command: p.command, Reason: errno.Error(), Class: errdefs.ErrPermissionDenied}
	p.c.mu.Lock()
	root := p.c.root
	if root >= 0 {
		root, _ = unix.FcntlInt(uintptr(root), unix.F_DUPFD_CLOEXEC, low)
	}
	p.c.mu.Unlock()
	if root < 0 {
		return e
	}
	defer unix.Close(root) //nolint:errcheck // O_PATH
	which := p.paths[min(max(rec.more, 0), int64(len(p.paths)-1))]
	switch errno {
	case unix.ENOENT, unix.ENOTDIR:
		e.Class = errdefs.ErrNotFound
		for _, candidate := range p.paths {
			if missing := p.interpreter(root, candidate); missing != "" {
				e.Reason = "no such file or directory: the interpreter " + strconv.Quote(missing) + " of " + candidate
				return e
			}
		}
		if path.Base(p.command) == p.command {
			e.Reason = "executable file not found in $PATH"
		}
	case unix.EACCES, unix.EPERM:
		e.Reason = "permission denied"
		if fd, err := openIn(root, p.absolute(which), unix.O_PATH|unix.O_DIRECTORY, 0); err == nil {
			_ = unix.Close(fd)
			e.Reason = "is a directory"
		}
	case unix.ENOEXEC:
		e.Reason = "exec format error: it is built for another machine, or a script that does not begin with #!"
		e.Class = errdefs.ErrFailedPrecondition
	case unix.E2BIG:
		e.Reason = "its arguments and environment are too long"
		e.Class = errdefs.ErrInvalidArgument
	default: // the kernel's own word
	}
	return e
}

func (p *proc) absolute(name string) string {
	if path.IsAbs(name) {
		return name
	}
	return path.Join(p.cwd, name)
}

// interpreter is what a file that is there says to execute it with, and that is not there.
func (p *proc) interpreter(root int, name string) string {
	fd, err := openIn(root, p.absolute(name), unix.O_PATH, 0)
	if err != nil {
		return ""
	}
	at, err := look(name, fd)
	if err != nil || at.mode&unix.S_IFMT != unix.S_IFREG {
		at.close()
		return ""
	}
	defer at.close()
	f, err := os.Open("/proc/self/fd/" + strconv.Itoa(at.fd))
	if err != nil {
		return ""
	}
	defer f.Close() //nolint:errcheck // it was only read
	head := make([]byte, 256)
	n, _ := f.ReadAt(head, 0)
	interp := interpreterOf(head[:n], f)
	if interp == "" {
		return ""
	}
	if fd, err := openIn(root, p.absolute(interp), unix.O_PATH, 0); err == nil {
		_ = unix.Close(fd)
		return ""
	}
	return interp
}

// interpreterOf reads a script's first line (execve(2)) or an ELF file's PT_INTERP (elf(5)).
func interpreterOf(head []byte, f io.ReaderAt) string {
	if script, ok := bytes.CutPrefix(head, []byte("#!")); ok {
		line, _, _ := bytes.Cut(script, []byte("\n"))
		if fields := bytes.Fields(line); len(fields) > 0 {
			return string(fields[0])
		}
		return ""
	}
	return elfInterpreter(head, f)
}

// elfInterpreter is an ELF file's PT_INTERP, if it is a 64-bit little-endian one.
func elfInterpreter(head []byte, f io.ReaderAt) string {
	if len(head) < 64 || !bytes.HasPrefix(head, []byte("\x7fELF\x02\x01")) {
		return ""
	}
	le := binary.LittleEndian
	off, size, n := le.Uint64(head[32:]), int64(le.Uint16(head[54:])), int64(le.Uint16(head[56:]))
	if size < 56 || off > maxRead {
		return ""
	}
	prog := make([]byte, 56)
	for i := range n {
		if _, err := f.ReadAt(prog, int64(off)+i*size); err != nil {
			return ""
		}
		at, length := le.Uint64(prog[8:]), le.Uint64(prog[32:])
		if le.Uint32(prog) != 3 || length > unix.PathMax || at > 1<<40 { // PT_INTERP
			continue
		}
		name := make([]byte, length)
		if _, err := f.ReadAt(name, int64(at)); err != nil {
			return ""
		}
		return string(bytes.TrimRight(name, "\x00"))
	}
	return ""
}
