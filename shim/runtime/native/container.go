package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/cgroup"
	"github.com/gantryd/gantry/shim/runtime"
)

// container is a container that was created.
type container struct {
	id       string
	self     identity
	group    *cgroup.Group
	init     *proc
	ids      *idmap
	enters   uint64 // the namespaces that whoever is added joins, as flags of setns
	filter   []unix.SockFilter
	flags    uint32
	listen   *listening
	warn     func(string, ...any)
	traits   []trait      // of every process
	affinity affinity     // of those that are added, if they do not say otherwise
	hooks    *specs.Hooks // nil: none
	state    specs.State  // what they are told, without what changes
	process  *process     // whom startContainer hooks run as

	watched atomic.Bool // something in it may trace what is added

	mu      sync.Mutex
	created bool // its hooks ran, and those for its end will
	root    int  // the root filesystem's topmost mount: how the container's files are read
	devpts  int  // its devpts, if it has one of its own: where terminals are opened
	paused  bool
}

func (c *container) Init() runtime.Process { return c.init }

// release lets go of everything; what runs is killed. It is for a container that did not come to be.
func (c *container) release() {
	if c.init != nil {
		_ = c.init.Close()
	}
	if c.group != nil {
		ctx, cancel := context.WithTimeoutCause(context.Background(), 10*time.Second, errors.New("its cgroup is still in use"))
		defer cancel()
		_ = c.group.Kill(ctx)
		_ = c.group.Remove(ctx)
	}
	c.letGo()
	if c.hooks != nil {
		ctx, cancel := context.WithTimeoutCause(context.Background(), 10*time.Second, errors.New("it takes too long"))
		defer cancel()
		c.poststop(ctx)
	}
}

func (c *container) letGo() {
	c.mu.Lock()
	fds := []int{c.root, c.devpts}
	c.root, c.devpts = -1, -1
	c.mu.Unlock()
	for _, fd := range fds {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// Kill: see runtime.Container.
func (c *container) Kill(ctx context.Context, sig unix.Signal) error {
	if sig == unix.SIGKILL {
		c.mu.Lock()
		c.paused = false // whoever is killed is thawed for it
		c.mu.Unlock()
		return c.group.Kill(ctx)
	}
	pids, err := c.group.Pids()
	if err != nil {
		return fmt.Errorf("kill container: %w", err)
	}
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // gone
		}
		// The number may have been another's when it was opened; it is one of ours if it still is listed.
		if again, err := c.group.Pids(); err == nil && slices.Contains(again, pid) {
			_ = unix.PidfdSendSignal(fd, sig, nil, 0)
		}
		_ = unix.Close(fd)
	}
	return nil
}

// Pause: see runtime.Container.
func (c *container) Pause(ctx context.Context) error {
	if err := c.group.Freeze(ctx); err != nil {
		return fmt.Errorf("pause container: %w", err)
	}
	c.mu.Lock()
	c.paused = true
	c.mu.Unlock()
	return nil
}

// Resume: see runtime.Container.
func (c *container) Resume(ctx context.Context) error {
	if err := c.group.Thaw(ctx); err != nil {
		return fmt.Errorf("resume container: %w", err)
	}
	c.mu.Lock()
	c.paused = false
	c.mu.Unlock()
	return nil
}

// Update: see runtime.Container.
func (c *container) Update(_ context.Context, r *specs.LinuxResources) error {
	err := c.group.Limit(r)
	if err == nil && r != nil {
		err = c.group.Devices(r.Devices)
	}
	if err != nil {
		return fmt.Errorf("update container: %w", err)
	}
	return nil
}

// Stats: see runtime.Container.
func (c *container) Stats(context.Context) (runtime.Stats, error) {
	s, err := c.group.Stats()
	if err != nil {
		return runtime.Stats{}, fmt.Errorf("sample container: %w", err)
	}
	return runtime.Stats{
		CPUUsec: uint64(s.CPU / time.Microsecond), MemoryBytes: s.MemoryBytes, PIDs: s.Pids, OOMKills: s.OOMKills,
	}, nil
}

// Delete: see runtime.Container.
func (c *container) Delete(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, 10*time.Second, errors.New("processes of it do not end"))
		defer cancel()
	}
	err := c.group.Kill(ctx)
	if err == nil {
		err = errors.Join(c.init.Close(), c.group.Remove(ctx))
	}
	if err != nil {
		return fmt.Errorf("delete container: %w", err)
	}
	c.letGo()
	c.poststop(ctx)
	return nil
}

// proc is one process of a container.
type proc struct {
	c       *container
	child   child
	file    *os.File // the pidfd
	control *control
	program *program
	command string
	paths   []string
	cwd     string

	mu      sync.Mutex
	state   int
	term    *os.File
	termOut bool // it was handed out
}

const (
	created = iota
	started
	dead
)

// PID: see runtime.Process.
func (p *proc) PID() int { return p.child.pid }

// PIDFD: see runtime.Process.
func (p *proc) PIDFD() *os.File { return p.file }

// Terminal: see runtime.Process.
func (p *proc) Terminal() *os.File {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.termOut = p.term != nil
	return p.term
}

// Signal: see runtime.Process.
func (p *proc) Signal(sig unix.Signal) error {
	rc, err := p.file.SyscallConn()
	if err == nil {
		cerr := rc.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
		err = errors.Join(cerr, err)
	}
	if errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrClosed) {
		return fmt.Errorf("signal process %d: it has ended: %w", p.child.pid, errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("signal process %d: %w", p.child.pid, err)
	}
	return nil
}

// Close: see runtime.Process.
func (p *proc) Close() error {
	p.mu.Lock()
	state := p.state
	p.state = dead
	term := p.term
	if p.termOut {
		term = nil
	}
	p.term = nil
	p.mu.Unlock()
	if state == created {
		p.end()
	}
	p.control.close()
	if term != nil {
		_ = term.Close()
	}
	if err := p.file.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// end kills and reaps a process that never was started.
func (p *proc) end() {
	rc, err := p.file.SyscallConn()
	if err != nil {
		return
	}
	_ = rc.Control(func(fd uintptr) {
		_ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0)
		reap(child{pidfd: int(fd)})
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
	p.program.release()
	p.program = nil
	if err != nil {
		p.mu.Lock()
		p.state = dead
		p.mu.Unlock()
		p.end()
	}
	p.control.close()
	return err
}
