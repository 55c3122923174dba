// Package runtime is what a shim uses to make processes: a small interface with two implementations,
// native (namespaces, mounts and system calls of our own, the default) and any OCI runtime binary.
//
// A runtime makes processes and lets go of what it made; it does not wait for them. Whoever drives it
// is their parent (by clone, or as child subreaper) and reaps them, each by its pidfd or its pid.
// It keeps nothing on disk: when the process that drives it dies, its containers live on in the
// kernel, and whoever finds them ends them by their cgroup.
//
// Errors carry a class of containerd/errdefs. What config.json asks for and a runtime cannot do is
// refused by name at Create (NotImplemented), never ignored.
package runtime

import (
	"context"
	"errors"
	"os"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Runtime makes containers.
type Runtime interface {
	// Create makes c: its namespaces, root filesystem, cgroup and first process, everything up to,
	// and not including, that process's first instruction, and runs the hooks of that time. When
	// it fails nothing is left. A runtime that sees already here that the program cannot be
	// executed fails as Start would.
	// A container whose first process has exited is made again by Delete and another Create.
	Create(ctx context.Context, c *Config) (Container, error)
}

// Container is a container that was created. Its methods may be called from many goroutines.
type Container interface {
	// Init is the first process.
	Init() Process
	// Exec makes another process, up to its first instruction, in a container that was started.
	Exec(ctx context.Context, x *Exec) (Process, error)
	// Kill sends a signal to every process of the container. SIGKILL returns when none is left
	// but those that are not reaped yet; and it ends a paused container too.
	Kill(ctx context.Context, sig unix.Signal) error
	// Pause stops every process and returns when they stand still.
	Pause(ctx context.Context) error
	// Resume undoes Pause; of what runs it is a success.
	Resume(ctx context.Context) error
	// Update changes the bounds that r names and leaves the others.
	Update(ctx context.Context, r *specs.LinuxResources) error
	// Stats samples the cgroup; it answers after the last process has exited, until Delete.
	Stats(ctx context.Context) (Stats, error)
	// Delete kills what is left, removes the cgroup, lets go of the mounts and runs poststop hooks.
	// It may take 100 ms (the kernel writes back the root filesystem), and as long as hooks do:
	// report the exit first. Again: succeeds.
	Delete(ctx context.Context) error
}

// Process is one process of a container.
type Process interface {
	// PID is the process's number as the caller of the runtime sees it. It is 0 before Start where a
	// runtime cannot make a process without starting it; then there is no PIDFD and no Terminal either.
	PID() int
	// PIDFD stands for the process as long as it is open, also when the number is another's. It is
	// the runtime's and closed by Close.
	PIDFD() *os.File
	// Start lets the process's first instruction happen; it returns when the program is executed.
	// A program that is not there or cannot be executed is an error that ExitCode understands;
	// the process is then dead and reaped by the runtime.
	Start(ctx context.Context) error
	// Signal signals the process; of one that is gone it is ErrNotFound.
	Signal(sig unix.Signal) error
	// Terminal is the controlling side of the process's terminal, nil without one. It belongs to
	// the caller from the first call on, and Close leaves it open then.
	Terminal() *os.File
	// Close lets go of descriptors; a process that was never started is killed and reaped.
	Close() error
}

// Config is a container to be made.
type Config struct {
	ID     string
	Bundle string      // directory of config.json; relative paths in Spec start there
	Spec   *specs.Spec // read, never changed
	// Rootfs is mounted, one over the other, as the root filesystem; without any, Spec.Root.Path
	// is a directory. With the option "idmap" the first holds the ids of an image, and is seen with
	// those of the container's user namespace; an overlay has its layers mapped.
	Rootfs []Mount
	// User is name|uid[:group|gid], looked up in the container's own /etc/passwd and /etc/group;
	// "" means what Spec says.
	User string
	// Seccomp is a compiled filter (internal/seccomp); empty means what Spec says.
	Seccomp []byte
	// NetNS is the path of a pinned network namespace; "" means what Spec says.
	NetNS string
	// Init puts a small init before the process: it is pid 1, reaps, forwards signals, and exits
	// as the process does.
	Init  bool
	Stdio Stdio
	// Warn is told what was asked for and could only be done in part; nil: nobody is.
	Warn func(message string, args ...any)
}

// Exec is another process to be made.
type Exec struct {
	Spec  *specs.Process
	User  string // as Config.User
	Stdio Stdio
}

// Stdio is a process's standard streams. A runtime duplicates what it gets: the caller closes its
// copies when Create or Exec has returned. Nil is /dev/null. With a terminal all three are ignored.
type Stdio struct {
	In, Out, Err *os.File
}

// Mount is a filesystem as mount(8) would be told.
type Mount struct {
	Type    string // "overlay", "bind", "tmpfs", …
	Source  string
	Target  string // path below the root filesystem; "" is the root itself
	Options []string
}

// Stats is one sample of a container's cgroup.
type Stats struct {
	CPUUsec     uint64 // used by all processes so far, in microseconds
	MemoryBytes uint64 // used, without what the page cache can give back at once
	PIDs        uint64 // processes and threads
	OOMKills    uint64 // processes killed because memory ran out, so far
}

// CommandError says why a program could not be executed. Its class is NotFound,
// PermissionDenied, or FailedPrecondition for what is no program.
type CommandError struct {
	Command string // as the caller wrote it
	Reason  string // in words
	Class   error  // of errdefs
}

// Error is the sentence.
func (e *CommandError) Error() string { return "exec " + e.Command + ": " + e.Reason }

// Unwrap is the class.
func (e *CommandError) Unwrap() error { return e.Class }

// ExitCode is what Docker's users expect a run to exit with that ends in err: 127 for a command that
// is not there, 126 for one that cannot be executed, 125 for everything else.
func ExitCode(err error) int {
	var c *CommandError
	switch {
	case err == nil:
		return 0
	case !errors.As(err, &c):
		return 125
	case errdefs.IsNotFound(c.Class):
		return 127
	default:
		return 126
	}
}
