package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/runtime/native"
)

// proc is one process of a container.
type proc struct {
	c    *container
	spec *specs.Process
	name string // of the files that are the process's; "" is the first one's

	mu      sync.Mutex
	state   int
	pid     int
	file    *os.File // the pidfd; nil: there is no process yet
	stdio   runtime.Stdio
	term    *os.File
	termOut bool // it was handed out
}

const (
	created = iota
	started
	dead
)

var _ runtime.Process = (*proc)(nil)

// adopt is the process whose number the program left in a file. It is a child of ours by now, which
// nobody reaps: the number is its own.
func (c *container) adopt(file string, term *console, spec *specs.Process) (*proc, error) {
	p := &proc{c: c, spec: spec}
	if err := p.adopt(file, term); err != nil {
		return nil, err
	}
	return p, nil
}

func (p *proc) adopt(file string, term *console) error {
	pid, err := readPID(file)
	if err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("process %d: pidfd: %w", pid, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pid, p.file = pid, os.NewFile(uintptr(fd), "pidfd") //nolint:gosec // a descriptor
	if term != nil {
		p.term, err = term.receive(p.spec.User.UID, p.spec.ConsoleSize)
	}
	return err
}

// PID: see runtime.Process.
func (p *proc) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid
}

// PIDFD: see runtime.Process.
func (p *proc) PIDFD() *os.File {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.file
}

// Terminal: see runtime.Process.
func (p *proc) Terminal() *os.File {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.termOut = p.term != nil
	return p.term
}

// with calls fn with the descriptor that stands for the process.
func (p *proc) with(fn func(fd int) error) error {
	file := p.PIDFD()
	if file == nil {
		return unix.ESRCH
	}
	rc, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	err = rc.Control(func(fd uintptr) { ferr = fn(int(fd)) }) //nolint:gosec // a descriptor
	return errors.Join(err, ferr)
}

// ended reports whether the process has, or never began.
func (p *proc) ended() bool {
	ended := true
	err := p.with(func(fd int) error {
		ps := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // a descriptor
		n, err := unix.Poll(ps, 0)
		ended = n > 0
		return err
	})
	return err != nil && !errors.Is(err, unix.EINTR) || ended
}

// Signal: see runtime.Process.
func (p *proc) Signal(sig unix.Signal) error {
	err := p.with(func(fd int) error { return unix.PidfdSendSignal(fd, sig, nil, 0) })
	if errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("signal process %d: it has ended: %w", p.PID(), errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("signal process %d: %w", p.PID(), err)
	}
	return nil
}

// Close: see runtime.Process.
func (p *proc) Close() error {
	p.mu.Lock()
	state, term, file, stdio := p.state, p.term, p.file, p.stdio
	p.state, p.term, p.stdio = dead, nil, runtime.Stdio{}
	if p.termOut {
		term = nil
	}
	p.mu.Unlock()
	if state == created {
		p.end()
	}
	closeStdio(stdio)
	if term != nil {
		_ = term.Close()
	}
	if file == nil {
		return nil
	}
	if err := file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// end kills and reaps a process that never was started.
func (p *proc) end() {
	_ = p.with(func(fd int) error {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		for {
			err := unix.Waitid(unix.P_PIDFD, fd, nil, unix.WEXITED, nil)
			if !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	})
}

// Start: see runtime.Process.
func (p *proc) Start(ctx context.Context) error {
	p.mu.Lock()
	if p.state != created {
		p.mu.Unlock()
		return fmt.Errorf("start process: it was started before: %w", errdefs.ErrFailedPrecondition)
	}
	p.state = started
	p.mu.Unlock()
	err := p.start(ctx)
	if err != nil {
		p.mu.Lock()
		p.state = dead
		p.mu.Unlock()
		p.end()
		return fmt.Errorf("start process: %w", err)
	}
	return nil
}

func (p *proc) start(ctx context.Context) error {
	root, plain, err := p.c.inside()
	if err != nil {
		return err
	}
	defer unix.Close(root) //nolint:errcheck // O_PATH
	if plain {
		// What the kernel will not execute, the program says only to the container's own standard error.
		if err := native.Blame(root, p.spec); err != nil {
			return err
		}
	}
	if p.name == "" {
		return p.c.r.run(ctx, p.c.call(nil, "start", p.c.id))
	}
	return p.c.blame(p.add(ctx), p.spec)
}

// add has the program make and start a process beside the first one.
func (p *proc) add(ctx context.Context) error {
	if err := p.c.running(); err != nil {
		return err
	}
	spec, pid := p.c.path(p.name+".json"), p.c.path(p.name+".pid")
	defer os.Remove(spec) //nolint:errcheck // the directory goes, with what is in it
	defer os.Remove(pid)  //nolint:errcheck // likewise
	if err := writeJSON(spec, p.spec); err != nil {
		return err
	}
	p.mu.Lock()
	stdio := p.stdio
	p.stdio = runtime.Stdio{}
	p.mu.Unlock()
	defer closeStdio(stdio)
	call := p.c.call(nil, "exec", "--detach", "--pid-file", pid, "--process", spec)
	call.stdio = stdio
	var term *console
	if p.spec.Terminal {
		var err error
		if term, err = newConsole(p.c.dir, p.name+".tty"); err != nil {
			return err
		}
		defer term.close()
		call.args = append(call.args, "--console-socket", term.path)
	}
	call.args = append(call.args, p.c.id)
	if err := p.c.r.run(ctx, call); err != nil {
		return err
	}
	return p.adopt(pid, term)
}

// dup are copies of s, whose owner closes its own.
func dup(s runtime.Stdio) (out runtime.Stdio, err error) {
	for _, x := range []struct {
		from *os.File
		to   **os.File
	}{{s.In, &out.In}, {s.Out, &out.Out}, {s.Err, &out.Err}} {
		if x.from == nil {
			continue
		}
		if *x.to, err = blocking(x.from); err != nil {
			closeStdio(out)
			return runtime.Stdio{}, fmt.Errorf("standard streams: %w", err)
		}
	}
	return out, nil
}

func closeStdio(s runtime.Stdio) {
	for _, f := range []*os.File{s.In, s.Out, s.Err} {
		if f != nil {
			_ = f.Close()
		}
	}
}
