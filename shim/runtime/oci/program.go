package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/runtime/native"
)

// call is one execution of the program.
type call struct {
	dir    string // working directory: names of sockets may not be long
	keep   string // --root
	args   []string
	stdio  runtime.Stdio // nil: /dev/null
	before func() error  // done in the call's own mount namespace, before the program
	plain  bool          // no global arguments
}

// callTime bounds a call whose caller sets no bound.
const callTime = 30 * time.Second

// maxOutput bounds what is read of what the program says about itself, in bytes.
const maxOutput = 1 << 20

// call is args, told to the program about this container.
func (c *container) call(before func() error, args ...string) *call {
	return &call{dir: c.dir, keep: c.path(keepDir), args: args, before: before}
}

// run executes the program and waits for it. What it says is the error.
func (r *Runtime) run(ctx context.Context, c *call) (err error) {
	r.mu.Lock()
	r.last++
	log := filepath.Join(c.dir, "log."+strconv.FormatUint(r.last, 10))
	r.mu.Unlock()
	defer os.Remove(log) //nolint:errcheck // the directory goes, with what is in it
	argv := append([]string{r.o.Path}, r.o.Args...)
	if !c.plain {
		argv = append(argv, "--root", c.keep, "--log", log, "--log-format", "json")
	}
	argv = append(argv, c.args...)
	var st *os.ProcessState
	r.o.Guard(func() {
		native.OnThread(func() {
			if err = stage(c.before); err == nil {
				st, err = r.execute(ctx, c, argv)
			}
		})
	})
	switch {
	case err != nil:
		return err
	case st.Success():
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	return r.said(log, c.args[0], st)
}

// execute is called on the thread that has the call's namespace.
func (r *Runtime) execute(ctx context.Context, c *call, argv []string) (*os.ProcessState, error) {
	files := make([]*os.File, 3)
	for i, f := range []*os.File{c.stdio.In, c.stdio.Out, c.stdio.Err} {
		one, err := blocking(f)
		if err != nil {
			return nil, fmt.Errorf("standard stream %d: %w", i, err)
		}
		defer one.Close() //nolint:errcheck // a copy
		files[i] = one
	}
	p, err := os.StartProcess(r.o.Path, argv, &os.ProcAttr{
		Dir: c.dir, Env: environment(), Files: files,
		// A program that outlived this process would go on making what nobody knows of, after whoever buries
		// the container has looked. (The signal comes when this thread ends, which waits for the program.)
		Sys: &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL},
	})
	if err != nil {
		return nil, fmt.Errorf("runtime %s: execute %s: %w", r.o.Name, r.o.Path, err)
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, callTime, fmt.Errorf("runtime %s is not done within %v: %w", r.o.Name, callTime, context.DeadlineExceeded))
		defer cancel()
	}
	stop := context.AfterFunc(ctx, func() { _ = p.Kill() })
	defer stop()
	st, err := p.Wait()
	if err != nil {
		return nil, fmt.Errorf("runtime %s: wait for %s: %w", r.o.Name, r.o.Path, err)
	}
	if !st.Success() && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return st, nil
}

// environment is the program's. A shim has none, and programs look for others in PATH.
func environment() []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
}

// blocking is a copy of f, or /dev/null, that does not say EAGAIN to who reads or writes it.
func blocking(f *os.File) (*os.File, error) {
	if f == nil {
		return os.OpenFile(os.DevNull, os.O_RDWR, 0)
	}
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd, ferr := -1, error(nil)
	err = rc.Control(func(old uintptr) { fd, ferr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 3) })
	if err := errors.Join(err, ferr); err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), f.Name()), nil //nolint:gosec // a descriptor
}

// output is what the program says on its standard output.
func (r *Runtime) output(ctx context.Context, args ...string) ([]byte, error) {
	fd, err := unix.MemfdCreate("said", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "said") //nolint:gosec // a descriptor
	defer f.Close()                      //nolint:errcheck // it was only read
	if err := os.MkdirAll(r.o.State, 0o700); err != nil {
		return nil, err
	}
	if err := r.run(ctx, &call{dir: r.o.State, args: args, plain: true, stdio: runtime.Stdio{Out: f}}); err != nil {
		return nil, err
	}
	b := make([]byte, maxOutput)
	n, err := f.ReadAt(b, 0)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return b[:n], err
}

// knowledge is what a program says of itself.
type knowledge struct {
	spec       version         // of the OCI runtime specification: what is newer, it does not know
	namespaces map[string]bool // nil: it does not say
	recursive  bool            // options of mounts that hold for what is mounted below as well
	// personality says that it gives a process another one: crun does, and runc only since it knows 1.1.
	personality bool
}

// version is major, minor and patch.
type version [3]int

var versionPattern = regexp.MustCompile(`(\d+)\.(\d+)\.(\d+)`)

func parseVersion(s string) (v version, ok bool) {
	m := versionPattern.FindStringSubmatch(s)
	if m == nil {
		return v, false
	}
	for i := range v {
		v[i], _ = strconv.Atoi(m[i+1])
	}
	return v, true
}

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

func (v version) before(w version) bool {
	for i := range v {
		if v[i] != w[i] {
			return v[i] < w[i]
		}
	}
	return false
}

// oldest is what every program is taken to know: crun has always said 1.0.0, and meant more.
var oldest = version{1, 0, 2}

// knows asks the program, once, what it knows: by "features", which the specification has since 1.1,
// or else by the line of its version that says "spec".
func (r *Runtime) knows(ctx context.Context) (*knowledge, error) {
	r.mu.Lock()
	k := r.known
	r.mu.Unlock()
	if k != nil {
		return k, nil
	}
	if st, err := os.Stat(r.o.Path); err != nil || !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
		return nil, fmt.Errorf("runtime %s: there is no program at %s: %w", r.o.Name, r.o.Path, errdefs.ErrFailedPrecondition)
	}
	k = &knowledge{spec: oldest}
	raw, err := r.output(ctx, "features")
	var f struct {
		Max     string   `json:"ociVersionMax"`
		Options []string `json:"mountOptions"`
		Linux   struct {
			Namespaces []string `json:"namespaces"`
		} `json:"linux"`
	}
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err == nil && json.Unmarshal(raw, &f) == nil:
		k.learn(f.Max)
		k.recursive = slices.Contains(f.Options, "rro")
		if len(f.Linux.Namespaces) > 0 {
			k.namespaces = map[string]bool{}
			for _, n := range f.Linux.Namespaces {
				k.namespaces[n] = true
			}
		}
	default:
		if raw, err = r.output(ctx, "--version"); err != nil {
			return nil, fmt.Errorf("%s does not answer --version: %w", r.o.Path, err)
		}
		for l := range bytes.Lines(raw) {
			switch v, _ := parseVersion(string(l)); {
			case strings.HasPrefix(string(l), "spec:"):
				k.learn(string(l))
			case strings.HasPrefix(string(l), "crun version "):
				k.recursive, k.personality = !v.before(version{1, 4, 0}), true
			}
		}
	}
	k.personality = k.personality || !k.spec.before(version{1, 1, 0})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known = k
	return k, nil
}

func (k *knowledge) learn(s string) {
	if v, ok := parseVersion(s); ok && k.spec.before(v) {
		k.spec = v
	}
}

// readPID is the number that the program left in a file.
func readPID(file string) (int, error) {
	raw, err := os.ReadFile(file) //nolint:gosec // ours
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fmt.Errorf("it left no process number in %s: %w", file, errdefs.ErrInternal)
	}
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || pid < 2 {
		return 0, fmt.Errorf("it left %q as a process number: %w", raw, errdefs.ErrInternal)
	}
	return pid, nil
}
