// Package runtime is the small interface through which a shim makes, joins and ends the processes
// of one container. Package native is the default behind it.
//
// A Runtime belongs to one container and one shim. It keeps nothing on disk: what lasts is the
// kernel's (the cgroup) and the bundle's.
package runtime

import (
	"context"
	"os"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Mount is one mount(2) call, not yet made; Target is relative to the root filesystem's top.
type Mount struct {
	Type, Source, Target string
	Options              []string
}

// Container is what to make.
type Container struct {
	ID      string
	Spec    *specs.Spec // config.json; Linux.CgroupsPath is the cgroup, below the root of each hierarchy
	Rootfs  []Mount     // the first is the root filesystem, others are mounted in it
	RootDir string      // an empty directory of the shim's, where the root filesystem may be mounted in a namespace of its own
	User    string      // name|uid[:group|gid], looked up in the root filesystem; "" means Spec.Process.User
	Seccomp []byte      // a compiled filter: an array of struct sock_filter (seccomp(2)); nil means none
	NetNS   string      // path of a pinned network namespace; "" means what Spec says
	Init    bool        // a small init is process 1, the command its child
	Stdio   Stdio
}

// Exec is another process for a container that runs.
type Exec struct {
	Process *specs.Process
	User    string // as in Container
	Stdio   Stdio
}

// Stdio is the process's ends of its pipes. The caller closes its copies once Create or Exec has
// returned. With Process.Terminal they are not used: Process.Terminal has the other end.
type Stdio struct{ In, Out, Err *os.File }

// Runtime makes one container. Create comes first, and once a run; Delete ends a run.
//
// Errors: errdefs.NotFound, the command is not there; errdefs.PermissionDenied, it cannot be
// executed; errdefs.NotImplemented, config.json asks for what this runtime does not do, by name;
// anything else has no class that a caller could act on.
type Runtime interface {
	// Create makes the namespaces, the cgroup and the mounts, and a process in them that waits.
	Create(ctx context.Context, c *Container) (Process, error)
	// Exec makes another process in them, which waits too.
	Exec(ctx context.Context, e *Exec) (Process, error)
	// KillAll ends every process of the container with SIGKILL, frozen ones too.
	KillAll(ctx context.Context) error
	// Pause freezes every process; Resume thaws them.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Update changes limits; nil fields stay.
	Update(ctx context.Context, r *specs.LinuxResources) error
	// Stats samples the cgroup.
	Stats(ctx context.Context) (Stats, error)
	// Delete ends what is left and removes the cgroup. Of what is gone it succeeds.
	Delete(ctx context.Context) error
}

// Process is one process of a container, a child of the shim.
type Process interface {
	// Pid is the process id in the shim's namespace.
	Pid() int
	// Terminal is the shim's end of the terminal, nil if there is none. The caller closes it.
	Terminal() *os.File
	// Start lets it execute its command, and returns once it has or cannot.
	Start(ctx context.Context) error
	// Signal sends a signal; to a process that has ended it does nothing.
	Signal(sig unix.Signal) error
	// Wait reaps it and returns how it ended. Call it once, after Start or instead of it.
	Wait() (unix.WaitStatus, error)
}

// Stats is one sample of a cgroup.
type Stats struct {
	CPU         time.Duration
	MemoryBytes uint64
	Pids        uint64
	OOMKills    uint64 // processes that the kernel killed for want of memory, since Create
}
