package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/cgroup"
	"github.com/gantryd/gantry/shim/runtime"
)

// container is a container that was created.
type container struct {
	r     *Runtime
	id    string
	dir   string // its bundle, and what the program keeps of it
	group *cgroup.Group
	known *knowledge
	init  *proc
	spec  *specs.Process // the first one's, once it is known with the user's numbers
	warn  func(string, ...any)

	mu     sync.Mutex
	root   int // the root filesystem, without what is mounted in it
	paused bool
	last   uint64 // number of the last process that was added
	gone   bool   // deleted
}

// Init: see runtime.Container.
func (c *container) Init() runtime.Process { return c.init }

// inside is the container's root as its processes see it. Where the host does not see them (in a
// sandbox, or a virtual machine) it is the root filesystem alone, and plain is false.
func (c *container) inside() (fd int, plain bool, err error) {
	if c.init.ended() {
		return -1, false, fmt.Errorf("the container does not run: %w", errdefs.ErrFailedPrecondition)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	var mine, theirs unix.Stat_t
	if err := unix.Fstat(c.root, &mine); err != nil {
		return -1, false, fmt.Errorf("the container is deleted: %w", errdefs.ErrFailedPrecondition)
	}
	fd, err = unix.Open("/proc/"+strconv.Itoa(c.init.PID())+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil && !c.init.ended() { // the number is still its own
		if unix.Fstat(fd, &theirs) == nil && mine.Dev == theirs.Dev && mine.Ino == theirs.Ino {
			return fd, true, nil
		}
	}
	if err == nil {
		_ = unix.Close(fd)
	}
	fd, err = unix.FcntlInt(uintptr(c.root), unix.F_DUPFD_CLOEXEC, 3)
	return fd, false, err
}

// plain reports whether the container's processes are processes of the host.
func (c *container) plain() bool {
	fd, plain, err := c.inside()
	if err == nil {
		_ = unix.Close(fd)
	}
	return plain
}

// Kill: see runtime.Container.
func (c *container) Kill(ctx context.Context, sig unix.Signal) error {
	if sig == unix.SIGKILL {
		c.mu.Lock()
		c.paused = false // whoever is killed is thawed for it
		c.mu.Unlock()
		return c.group.Kill(ctx)
	}
	if c.init.ended() {
		return nil
	}
	if !c.plain() {
		return c.do(ctx, "kill", "--all", c.id, strconv.Itoa(int(sig)))
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

// do has the program do something to the container, whose first argument is the verb.
func (c *container) do(ctx context.Context, args ...string) error {
	if err := c.r.run(ctx, c.call(nil, args...)); err != nil {
		return fmt.Errorf("%s container: %w", args[0], err)
	}
	return nil
}

// Pause: see runtime.Container.
func (c *container) Pause(ctx context.Context) error {
	if err := c.do(ctx, "pause", c.id); err != nil {
		return err
	}
	c.mu.Lock()
	c.paused = true
	c.mu.Unlock()
	return nil
}

// Resume: see runtime.Container.
func (c *container) Resume(ctx context.Context) error {
	c.mu.Lock()
	paused := c.paused
	c.mu.Unlock()
	if !paused {
		return nil
	}
	if err := c.do(ctx, "resume", c.id); err != nil {
		return err
	}
	c.mu.Lock()
	c.paused = false
	c.mu.Unlock()
	return nil
}

// Update: see runtime.Container.
func (c *container) Update(ctx context.Context, r *specs.LinuxResources) error {
	if err := updates(c.r.o.Name, r); err != nil {
		return fmt.Errorf("update container: %w", err)
	}
	f, err := os.CreateTemp(c.dir, "resources.*.json")
	if err != nil {
		return fmt.Errorf("update container: %w", err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // the directory goes, with what is in it
	if err := errors.Join(f.Close(), writeJSON(f.Name(), r)); err != nil {
		return fmt.Errorf("update container: %w", err)
	}
	return c.do(ctx, "update", "--resources", f.Name(), c.id)
}

// Stats: see runtime.Container.
func (c *container) Stats(context.Context) (runtime.Stats, error) {
	s, err := c.group.Stats()
	if err != nil {
		return runtime.Stats{}, fmt.Errorf("sample container: %w", err)
	}
	return runtime.Stats{
		CPUUsec: uint64(s.CPU / time.Microsecond), MemoryBytes: s.MemoryBytes, PIDs: s.Pids, OOMKills: s.OOMKills, //nolint:gosec // never below 0
	}, nil
}

// Delete: see runtime.Container.
func (c *container) Delete(ctx context.Context) error {
	c.mu.Lock()
	gone := c.gone
	c.mu.Unlock()
	if gone {
		return nil
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, endTime, errors.New("processes of it do not end"))
		defer cancel()
	}
	if err := c.group.Kill(ctx); err != nil {
		return fmt.Errorf("delete container: %w", err)
	}
	if err := c.init.Close(); err != nil {
		return fmt.Errorf("delete container: %w", err)
	}
	if err := c.do(ctx, "delete", "--force", c.id); err != nil && !errors.Is(err, fs.ErrNotExist) { // a program that is gone deletes nothing
		return err
	}
	if err := errors.Join(c.group.Remove(ctx), os.RemoveAll(c.dir)); err != nil {
		return fmt.Errorf("delete container: %w", err)
	}
	c.mu.Lock()
	c.gone = true
	c.mu.Unlock()
	c.letGo()
	return nil
}

// Exec: see runtime.Container. The process is made by Start.
func (c *container) Exec(_ context.Context, x *runtime.Exec) (runtime.Process, error) {
	p, err := c.exec(x)
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	return p, nil
}

func (c *container) exec(x *runtime.Exec) (*proc, error) {
	if err := supportedProcess(c.r.o.Name, x.Spec, c.known); err != nil {
		return nil, err
	}
	if err := c.running(); err != nil {
		return nil, err
	}
	root, _, err := c.inside()
	if err != nil {
		return nil, err
	}
	defer unix.Close(root) //nolint:errcheck // O_PATH
	spec, err := c.process(root, x.Spec, x.User)
	if err != nil {
		return nil, err
	}
	if err := directory(root, spec.Cwd); err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.last++
	n := strconv.FormatUint(c.last, 10)
	c.mu.Unlock()
	p := &proc{c: c, spec: spec, name: "exec." + n}
	if !spec.Terminal {
		if p.stdio, err = dup(x.Stdio); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// running says why no process can be added.
func (c *container) running() error {
	c.mu.Lock()
	paused := c.paused
	c.mu.Unlock()
	c.init.mu.Lock()
	state := c.init.state
	c.init.mu.Unlock()
	switch {
	case state != started || c.init.ended():
		return fmt.Errorf("the container does not run: %w", errdefs.ErrFailedPrecondition)
	case paused:
		return fmt.Errorf("the container is paused: resume it first: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}
