// Package unpack turns layers (tar archives, compressed or not) into filesystems.
//
// A layer is written by a stranger and unpacked by root, so it is unpacked by a child process that has nothing to lose:
// [Run] starts this program again (see [Main]) in mount, pid, network, ipc and uts namespaces of its own, with the few capabilities
// that unpacking takes. There it mounts the layer's filesystem, makes it its root, lets go of everything else,
// locks itself in with a seccomp filter, and only then reads the first byte. The compressed stream comes in over stdin
// and is decompressed inside; what came of it goes out over one pipe.
//
// That is the outer wall. The inner one is that every name is resolved by openat2(2) with RESOLVE_IN_ROOT and
// acted on through descriptors, so that even without the outer wall nothing outside would be touched.
//
// The layer format is the OCI image specification's (layer.md), and what archives in the wild make of it. An absolute
// name is a name in the layer, with or without its slash, as tar(1) and Docker take it; a name that climbs out with ".." is
// refused; so are entries below a symbolic link that leads nowhere in the layer. Devices are made as the layer says: it is the
// container's devices cgroup that keeps them shut.
package unpack

import (
	"context"
	_ "crypto/sha256" // the algorithms a digest may name
	_ "crypto/sha512"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/insecure"
)

// Form is how a layer's removals are written.
type Form string

// The forms.
const (
	// Apply is for a mounted filesystem with the parent's content in it: a whiteout removes.
	Apply Form = "apply"
	// Overlay is for an empty directory: a whiteout becomes what the kernel's overlayfs keeps in
	// an upper directory (package snapshotters has the details).
	Overlay Form = "overlay"
	// Measure writes nothing and needs no mounts: it is for what the result says.
	Measure Form = "measure"
)

// ErrNeedsParent says that a layer cannot be written in overlay form, because it refers to files below it (a hard link to one of
// them). Apply it to its mounted parent instead.
var ErrNeedsParent = errors.New("the layer links to a file of a layer below it")

// Mount is one mount(2) call, not yet made.
type Mount struct {
	Type    string   // overlay or bind for the first
	Source  string   // an absolute path, for bind
	Target  string   // relative to the first mount; "" for the first
	Options []string // as in fstab(5)
}

// Limits keep a layer from filling a machine. Zero means the default.
type Limits struct {
	Bytes   int64 // of the archive, and of the files that sparse entries claim to hold
	Entries int64
}

// The defaults are far above any honest layer.
const (
	DefaultBytes   = 1 << 40
	DefaultEntries = 20_000_000
)

// Job is one layer to unpack.
type Job struct {
	Mounts []Mount // of the filesystem to unpack into
	Form   Form
	// Parented says that, in overlay form, there will be a layer below. Directories that the layer does not describe are
	// marked, so that they take after it.
	Parented bool
	DiffID   digest.Digest // what the archive must be; "" for not known
	Limits   Limits
}

// Result is what was unpacked.
type Result struct {
	DiffID  digest.Digest // of the archive
	Bytes   int64         // of the archive
	Entries int64
}

// answer is what the child says. Class is "" for success.
type answer struct {
	Result Result
	Class  string `json:",omitempty"`
	Reason string `json:",omitempty"`
	Error  string `json:",omitempty"`
}

// classes are the errors that keep their class on the way out of the child.
var classes = map[string]error{
	"invalid-argument":    errdefs.ErrInvalidArgument,
	"failed-precondition": errdefs.ErrFailedPrecondition,
	"resource-exhausted":  errdefs.ErrResourceExhausted,
	"not-implemented":     errdefs.ErrNotImplemented,
	"data-loss":           errdefs.ErrDataLoss,
	"internal":            errdefs.ErrInternal,
}

const (
	argv0     = "gantry-unpack"
	needs     = "needs-parent"
	answerFD  = 3
	jobFD     = 4
	maxAnswer = 1 << 20
	maxWords  = 8 << 10
)

// Run unpacks the layer that r holds. When the layer is at fault the error is InvalidArgument (it is not well formed, or tries to leave
// its directory), DataLoss (it is not what DiffID says, or is cut short), NotImplemented (a compression or kind of entry that
// is not known) or ResourceExhausted (a limit, or the disk). An error of r comes back as it is. Whatever
// was unpacked by then stays in the mounts for the caller to drop. A reader that may wait should be an io.Closer whose Close wakes it; Run closes it.
func Run(ctx context.Context, job Job, r io.Reader) (Result, error) {
	if job.DiffID != "" {
		if err := job.DiffID.Validate(); err != nil {
			return Result{}, fmt.Errorf("unpack layer: digest %.80q: %w: %w", string(job.DiffID), err, errdefs.ErrInvalidArgument)
		}
	}
	if job.Form == Measure {
		job.Mounts = []Mount{{Type: "tmpfs", Source: "nothing", Options: []string{"size=0", "mode=0"}}}
	}
	if len(job.Mounts) == 0 {
		return Result{}, fmt.Errorf("unpack layer: nothing to mount: %w", errdefs.ErrInvalidArgument)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c, err := newChild(ctx, job)
	if err != nil {
		return Result{}, err
	}
	defer c.close()
	ended := c.start()
	if err := <-ended; err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return Result{}, fmt.Errorf("unpack layer: start the unpacker: %w", err)
	}
	c.afterStart()
	var ans answer
	answered, fed := make(chan error, 1), make(chan error, 1)
	go func() { answered <- json.NewDecoder(io.LimitReader(c.answerR, maxAnswer)).Decode(&ans) }()
	go func() {
		err := feed(c.stdinW, r)
		if err != nil {
			cancel(err) // the child would take it for an early end
		}
		fed <- err
	}()
	waitErr := <-ended
	ansErr := <-answered // the child was the only one to hold the other end
	_ = c.stdinW.Close()
	if closer, ok := r.(io.Closer); ok {
		_ = closer.Close() // wakes a feed that waits for bytes nobody wants any more
	}
	feedErr := <-fed
	switch cause := context.Cause(ctx); {
	case ansErr == nil:
		return ans.judge(job)
	case feedErr != nil && errors.Is(cause, feedErr):
		return Result{}, feedErr
	case cause != nil:
		return Result{}, fmt.Errorf("unpack layer: %w", cause)
	default:
		return Result{}, fmt.Errorf("unpack layer: the unpacker died (%w): %s: %w", orNil(waitErr, ansErr), c.words(), errdefs.ErrInternal)
	}
}

func orNil(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// judge makes of an answer what Run returns.
func (a answer) judge(job Job) (Result, error) {
	if a.Class != "" {
		class, ok := classes[a.Class]
		if !ok {
			class = errdefs.ErrInternal
		}
		if a.Reason == needs {
			class = fmt.Errorf("%w: %w", ErrNeedsParent, class)
		}
		where := job.Mounts[0].Source
		if errdefs.IsResourceExhausted(class) && where != "" {
			return Result{}, fmt.Errorf("unpack layer into %s: %s: %w", where, a.Error, class)
		}
		return Result{}, fmt.Errorf("unpack layer: %s: %w", a.Error, class)
	}
	if job.DiffID != "" && a.Result.DiffID != job.DiffID {
		return Result{}, fmt.Errorf("unpack layer: its content is %s, the image's configuration says %s: %w", a.Result.DiffID, job.DiffID, errdefs.ErrDataLoss)
	}
	return a.Result, nil
}

// feed copies r into the child. That the child stops listening is no error here: it will say why.
func feed(w *os.File, r io.Reader) error {
	buf := make([]byte, 256<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			if _, werr := w.Write(buf[:n]); werr != nil {
				return nil //nolint:nilerr // the child stopped listening, see above
			}
		}
		if errors.Is(err, io.EOF) {
			return w.Close()
		}
		if err != nil {
			return err
		}
	}
}

// child is the process and our ends of its pipes.
type child struct {
	cmd             *exec.Cmd
	stdinW, answerR *os.File
	theirs, ours    []*os.File
	stderr          *tail
}

func newChild(ctx context.Context, job Job) (*child, error) {
	raw, err := json.Marshal(job)
	if err != nil {
		return nil, fmt.Errorf("unpack layer: %w", err)
	}
	c := &child{stderr: &tail{}}
	pipe := func() (r, w *os.File) {
		if err != nil {
			return nil, nil
		}
		if r, w, err = os.Pipe(); err == nil {
			c.ours = append(c.ours, r, w)
		}
		return r, w
	}
	stdinR, stdinW := pipe()
	answerR, answerW := pipe()
	jobR, err2 := jobFile(raw)
	if err = errors.Join(err, err2); err != nil {
		c.close()
		return nil, fmt.Errorf("unpack layer: %w", err)
	}
	c.ours = append(c.ours, jobR)
	c.theirs = []*os.File{stdinR, answerW, jobR}
	c.stdinW, c.answerR = stdinW, answerR
	_, _ = unix.FcntlInt(stdinW.Fd(), unix.F_SETPIPE_SZ, 1<<20) // fewer wake-ups; a refusal costs only speed
	if err := unix.SetNonblock(int(stdinW.Fd()), true); err != nil {
		c.close()
		return nil, fmt.Errorf("unpack layer: %w", err)
	}
	c.cmd = exec.CommandContext(ctx, "/proc/self/exe")
	c.cmd.Args = []string{argv0}
	c.cmd.Env = insecure.Environ()
	c.cmd.Dir = "/"
	c.cmd.Stdin = stdinR
	c.cmd.Stderr = c.stderr
	c.cmd.ExtraFiles = []*os.File{answerFD - 3: answerW, jobFD - 3: jobR}
	c.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Setsid:     true,
		Pdeathsig:  syscall.SIGKILL,
	}
	return c, nil
}

// jobFile is the job as a file in memory, which no path names.
func jobFile(raw []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate("gantry-unpack-job", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "job")
	if _, err := f.WriteAt(raw, 0); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// start starts the child and sends what came of that, and then, if it started, how it ended. All of it happens on a thread that
// has given up what the child must not have, since a child inherits that; the thread ends with the child (the death signal
// follows the thread, not the process) and is never used for anything else.
func (c *child) start() <-chan error {
	ended := make(chan error, 2)
	onDisposableThread(func() {
		err := renounce()
		if err == nil {
			err = c.cmd.Start()
		}
		ended <- err
		if err == nil {
			ended <- c.cmd.Wait()
		}
	})
	return ended
}

// onDisposableThread runs fn in a goroutine with a thread that ends with it. The main thread would not end, but
// stay behind with what fn did to it; it is held until fn has another.
func onDisposableThread(fn func()) {
	has := make(chan struct{})
	go func() {
		runtime.LockOSThread() // and not unlocked: that is what ends the thread
		if unix.Gettid() != unix.Getpid() {
			close(has)
			fn()
			return
		}
		onDisposableThread(func() { close(has); fn() })
		runtime.UnlockOSThread()
	}()
	<-has
}

// afterStart closes the child's ends here, so that ends of files are seen.
func (c *child) afterStart() {
	for _, f := range c.theirs {
		_ = f.Close()
	}
}

func (c *child) close() {
	for _, f := range c.ours {
		_ = f.Close()
	}
}

func (c *child) words() string {
	if s := strings.TrimSpace(c.stderr.String()); s != "" {
		return s
	}
	return "it said nothing"
}

// tail keeps the first bytes of what the child says when it dies.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p[:min(len(p), maxWords-len(t.buf))]...)
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
