// Package oci is the runtime that has another program make its containers: crun, runc, runsc (gVisor),
// kata-runtime, or any other that takes the OCI command line.
//
// The program is told what to do by its arguments and by a bundle, which is written into a directory of
// the container's that is gone with it: whoever finds that directory without its shim removes it, ends
// the cgroup, and nothing is left. Every call of the program is a process of a few milliseconds, in a
// mount namespace of its own that ends with it. There the root filesystem is mounted while a container
// is made, and nowhere else; the container has copies of the mounts, and they end with it. There is no
// cgroup2 tree in it where the host's controllers are v1's: crun takes no part in the mixture.
//
//	oci.go          Runtime and Create            program.go words.go  a call of the program, and what it says
//	bundle.go       config.json as the program takes it     stage.go   the mount namespace of a call
//	supported.go    what is refused, by name      console.go  terminals
//	container.go process.go  afterwards
//
// It is not known when exactly the program executes a process that is added to a container: such a
// process has a number, and a terminal, only after Start.
package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/cgroup"
	"github.com/gantryd/gantry/shim/runtime"
)

// Options is which program, and where it may keep things.
type Options struct {
	Name string   // what its users call it; "" is the program's own name
	Path string   // absolute
	Args []string // before every verb
	// State is a directory of this runtime's alone, which is gone with its containers. It is made.
	State string
	// Guard runs a function that makes, and waits for, a child of this process; whoever reaps children
	// that are nobody's leaves new ones alone meanwhile. What Create and Start make stays when they
	// return: their callers guard them as a whole. Nil: nobody reaps.
	Guard func(run func())
}

// Runtime makes containers by a program. This process must be the subreaper of its descendants
// (prctl(2), PR_SET_CHILD_SUBREAPER): whoever the program leaves behind is its child.
type Runtime struct {
	o Options

	mu    sync.Mutex
	known *knowledge // of the program
	last  uint64     // number of the last call
}

var _ runtime.Runtime = (*Runtime)(nil)

// New is a runtime; the program is not asked anything yet.
func New(o Options) (*Runtime, error) {
	if !filepath.IsAbs(o.Path) || !filepath.IsAbs(o.State) {
		return nil, fmt.Errorf("make runtime: program %q, directory %q: both must be absolute paths: %w", o.Path, o.State, errdefs.ErrInvalidArgument)
	}
	if o.Name == "" {
		o.Name = filepath.Base(o.Path)
	}
	if o.Guard == nil {
		o.Guard = func(run func()) { run() }
	}
	if err := forgetIgnored(); err != nil {
		return nil, fmt.Errorf("make runtime: %w", err)
	}
	return &Runtime{o: o}, nil
}

// The signals that the C library keeps for itself (nptl(7)). Go leaves them as it finds them.
const firstOwn, lastOwn = 32, 33

// forgetIgnored no longer ignores what this process was started ignoring: programs hand that on to the
// container, where nothing is ignored unless it says so. Go has handlers for all signals but these two, which
// GNU make, for one, leaves ignored in all that it starts.
func forgetIgnored() error {
	var asUsual [4]uintptr // struct kernel_sigaction with SIG_DFL
	for sig := uintptr(firstOwn); sig <= lastOwn; sig++ {
		const maskSize = 8
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&asUsual)), 0, maskSize, 0, 0); errno != 0 {
			return fmt.Errorf("signal %d: %w", sig, errno)
		}
	}
	return nil
}

// endTime bounds clearing up after what failed, whoever has gone meanwhile.
const endTime = 10 * time.Second

// Create makes a container: see runtime.Runtime.
func (r *Runtime) Create(ctx context.Context, cfg *runtime.Config) (runtime.Container, error) {
	c, err := r.create(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	return c, nil
}

func (r *Runtime) create(ctx context.Context, cfg *runtime.Config) (_ *container, err error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	known, err := r.knows(ctx)
	if err != nil {
		return nil, err
	}
	if err := known.supported(r.o.Name, cfg); err != nil {
		return nil, err
	}
	c := &container{r: r, id: cfg.ID, dir: filepath.Join(r.o.State, cfg.ID), known: known, spec: cfg.Spec.Process, warn: cfg.Warn, root: -1}
	if c.warn == nil {
		c.warn = func(string, ...any) {}
	}
	if c.group, err = vacant(cfg.Spec.Linux.CgroupsPath); err != nil {
		return nil, err
	}
	defer func() { //nolint:contextcheck // what was begun is undone although the caller has gone
		if err != nil {
			c.release()
		}
	}()
	if err := c.layOut(); err != nil {
		return nil, err
	}
	call := c.call(nil, "create", "--bundle", c.dir, "--pid-file", c.path(pidFile))
	var term *console
	if cfg.Spec.Process.Terminal {
		if term, err = newConsole(c.dir, "tty"); err != nil {
			return nil, err
		}
		defer term.close()
		call.args = append(call.args, "--console-socket", term.path)
	} else {
		call.stdio = cfg.Stdio
	}
	call.args = append(call.args, cfg.ID)
	call.before = func() error { return c.prepare(cfg, known) }
	if err := r.run(ctx, call); err != nil {
		return nil, c.blame(err, c.spec)
	}
	if c.init, err = c.adopt(c.path(pidFile), term, c.spec); err != nil {
		return nil, err
	}
	return c, nil
}

// vacant is the cgroup of a container that is to be made. What runs under this name is another
// container, or this one: nothing of it is touched.
func vacant(where string) (*cgroup.Group, error) {
	if !strings.HasPrefix(where, "/") {
		where = "/" + where
	}
	g, err := cgroup.Open(where)
	if err != nil {
		return nil, err
	}
	if pids, err := g.Pids(); err != nil || len(pids) > 0 {
		return nil, errors.Join(err, fmt.Errorf("cgroup %s: %d processes are in it: %w", where, len(pids), errdefs.ErrAlreadyExists))
	}
	return g, nil
}

// The names in a container's directory.
const (
	configFile = "config.json"
	pidFile    = "pid"
	rootDir    = "rootfs" // where the root filesystem is mounted for the program
	keepDir    = "keep"   // the program's own
)

func (c *container) path(name string) string { return filepath.Join(c.dir, name) }

// layOut makes the container's directory anew.
func (c *container) layOut() error {
	if err := os.RemoveAll(c.dir); err != nil {
		return fmt.Errorf("make bundle: %w", err)
	}
	for _, d := range []string{rootDir, keepDir} {
		if err := os.MkdirAll(c.path(d), 0o700); err != nil {
			return fmt.Errorf("make bundle: %w", err)
		}
	}
	return nil
}

// release lets go of everything; what runs is killed. It is for a container that did not come to be.
func (c *container) release() {
	ctx, cancel := context.WithTimeoutCause(context.Background(), endTime, errors.New("its cgroup is still in use"))
	defer cancel()
	_ = c.group.Kill(ctx)
	if c.init != nil {
		_ = c.init.Close()
	}
	_ = c.r.run(ctx, c.call(nil, "delete", "--force", c.id))
	_ = c.group.Remove(ctx)
	_ = os.RemoveAll(c.dir)
	c.letGo()
}

func (c *container) letGo() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.root >= 0 {
		_ = unix.Close(c.root)
		c.root = -1
	}
}
