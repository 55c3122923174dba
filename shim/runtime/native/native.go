// Package native is the runtime of gantry's own: namespaces, mounts by descriptor, cgroup, seccomp and
// exec, with nothing between the shim and the kernel.
//
// How a container starts. The parent, ordinary Go in the shim, does everything that does not need to
// be done inside: it mounts the root filesystem, volumes and /dev detached from any namespace (fsopen,
// fsmount, open_tree, mount_setattr), makes mount points, device nodes and terminals through their
// descriptors, looks the user up, and writes down what remains as a list of system calls (program).
// clone3 then makes a child in the new namespaces that runs the list with raw system calls, tells which
// call failed with what error, if one does, waits for a word of the parent, and executes the program.
//
// What it rests on, in security: no path that a container controls is resolved twice; nothing is
// mounted over, made or read through a symbolic link that leads out (openat2); what the container
// could have replaced is not trusted (/dev/null and procfs are the host's and a new mount); a child
// closes every descriptor before it can be seen; the shim's executable cannot be written (Seal). Each
// of these guards has an attack in test/escape, and a build in which it can be taken out (internal/insecure).
//
//	native.go create.go  Runtime and Create          program.go clone.go control.go  the list, the child, the socket
//	tree.go       paths in what is not yet mounted     rootfs.go mounts.go options.go dev.go hide.go  filesystems
//	namespaces.go userns.go overlay_mapped.go  what it is in, and whose ids it has     await.go  what the child says
//	traits.go copyup.go  how it is scheduled, what a tmpfs begins with
//	labels.go notify.go  AppArmor and SELinux; whom calls are told to
//	procfs.go     joining processes that may look at whoever comes
//	netdev.go     network devices of the host's that become the container's
//	hooks.go state.go  programs at moments of its life, and what they are told
//	spec.go user.go caps.go process.go  who it runs as, and with what    container.go exec.go watched.go  afterwards
//	terminal.go   terminals     seal.go init.go  the shim's executable, the small init
//
// It is longer than a package should be: who reads how a container starts reads all of it, and none of
// its parts has another user.
package native

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/insecure"
	"github.com/gantryd/gantry/shim/runtime"
)

// Runtime makes containers from this process.
type Runtime struct {
	self identity
}

// identity is what this process may do, which no child of it can exceed.
type identity struct {
	caps     uint64 // permitted
	bound    uint64 // in the bounding set
	lastCap  uint
	limits   [unlimited]unix.Rlimit
	oomScore int
	mapped   bool // in a user namespace: with capabilities over it, and none over the host
}

// New is a runtime in a process that was sealed (Seal).
func New() (*Runtime, error) {
	if !sealed() && !insecure.Without(insecure.Seal) {
		return nil, fmt.Errorf("make runtime: the executable of this process can be written by whom it starts: call native.Seal first: %w", errdefs.ErrFailedPrecondition)
	}
	self, err := whoami()
	if err != nil {
		return nil, fmt.Errorf("make runtime: %w", err)
	}
	return &Runtime{self: self}, nil
}

// whoami reads what this process may do.
var whoami = sync.OnceValues(func() (identity, error) {
	var id identity
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return id, err
	}
	for l := range strings.Lines(string(raw)) {
		name, value, _ := strings.Cut(l, ":")
		switch name {
		case "CapPrm":
			id.caps, err = strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		case "CapBnd":
			id.bound, err = strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		}
		if err != nil {
			return id, fmt.Errorf("read capabilities: %w", err)
		}
	}
	raw, err = os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return id, err
	}
	last, err := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 6)
	if err != nil {
		return id, fmt.Errorf("read number of capabilities: %w", err)
	}
	id.lastCap = uint(last)
	raw, err = os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return id, err
	}
	if id.oomScore, err = strconv.Atoi(strings.TrimSpace(string(raw))); err != nil {
		return id, fmt.Errorf("read oom_score_adj: %w", err)
	}
	for i := range id.limits {
		if err := unix.Getrlimit(i, &id.limits[i]); err != nil {
			return id, fmt.Errorf("read resource limit %d: %w", i, err)
		}
	}
	return id, nil
})

// files is descriptors to be closed together.
type files []int

func (f *files) add(fd int) int { *f = append(*f, fd); return fd }

func (f *files) close() {
	for _, fd := range *f {
		_ = unix.Close(fd)
	}
	*f = nil
}

var _ runtime.Runtime = (*Runtime)(nil)

func (r *Runtime) warner(c *runtime.Config) func(string, ...any) {
	if c.Warn == nil {
		return func(string, ...any) {}
	}
	return c.Warn
}

// Create makes a container: see runtime.Runtime.
func (r *Runtime) Create(ctx context.Context, cfg *runtime.Config) (runtime.Container, error) {
	if err := supported(cfg); err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	c, err := r.create(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	return c, nil
}
