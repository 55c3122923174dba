package supervise

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/gantryd/gantry/internal/bundle"
	"github.com/gantryd/gantry/internal/insecure"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
)

// spawnTime bounds a shim's start.
const spawnTime = 10 * time.Second

// Spawn starts a shim in dir and waits until it listens. It makes the state directory. If it fails
// nothing is left of either.
func (s *Supervisor) Spawn(ctx context.Context, dir bundle.Dir, boot *shimv1.Boot) (_ Shim, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, spawnTime, fmt.Errorf("no word from the shim within %v: %w", spawnTime, context.DeadlineExceeded))
	defer cancel()
	defer func() {
		if err != nil {
			err = fmt.Errorf("start a shim: %w", err)
		}
	}()
	if err := makeState(dir); err != nil {
		return nil, err
	}
	if n := boot.GetShmBytes(); n > 0 {
		if err := shareMemory(dir, n); err != nil {
			return nil, errors.Join(err, DropState(dir))
		}
	}
	raw, err := proto.Marshal(boot)
	if err != nil {
		return nil, fmt.Errorf("boot: %w", err)
	}
	if p := s.slots.take(); p != nil { // if it is no good, a new one is
		if c, err := p.begin(ctx, dir, raw); err == nil {
			return c, nil
		}
	}
	p, err := s.startIn(dir)
	if err == nil {
		var c Shim
		if c, err = p.begin(ctx, dir, raw); err == nil {
			return c, nil
		}
		err = fmt.Errorf("%w%s", err, lastWords(dir))
	}
	return nil, errors.Join(err, DropState(dir))
}

// begin tells a shim what it is for, and waits until it listens. If it does not, it is gone.
func (c *child) begin(ctx context.Context, dir bundle.Dir, boot []byte) (Shim, error) {
	err := c.tell(ctx, boot)
	if err == nil {
		var shim Shim
		if shim, err = c.meet(ctx, dir); err == nil {
			return shim, nil
		}
	}
	c.kill()
	return nil, err
}

// tell writes a shim's one message, and its end. What became of one that does not read, meet finds out.
func (c *child) tell(ctx context.Context, boot []byte) error {
	defer c.stdin.Close() //nolint:errcheck // it is written, or not
	stop := context.AfterFunc(ctx, func() { _ = c.stdin.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := c.stdin.Write(boot); err != nil && !errors.Is(err, unix.EPIPE) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("boot: %w", err)
	}
	return nil
}

// makeState makes the state directory. What an earlier shim left in it goes, unless that shim lives.
func makeState(dir bundle.Dir) error {
	if err := os.MkdirAll(filepath.Dir(dir.State), 0o711); err != nil { //nolint:gosec // passed through, not listed
		return err
	}
	err := os.Mkdir(dir.State, 0o700)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if _, fd, err := identify(dir); err == nil {
		_ = unix.Close(fd)
		return fmt.Errorf("there is one: %w", errdefs.ErrAlreadyExists)
	}
	return errors.Join(DropState(dir), os.Mkdir(dir.State, 0o700))
}

// child is a shim that was started and has not said anything.
type child struct {
	p      *os.Process
	stdin  *os.File
	stdout *os.File
	done   chan struct{} // closed when it has ended and was reaped
}

// startIn executes a shim for dir. What it says before it is told anything is in shim.log too.
func (s *Supervisor) startIn(dir bundle.Dir) (*child, error) {
	stderr, err := os.OpenFile(filepath.Join(dir.State, bundle.LogFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer stderr.Close() //nolint:errcheck // the shim has it
	return s.start(dir.State, stderr)
}

// start executes the shim, which waits to be told what it is for.
func (s *Supervisor) start(cwd string, stderr *os.File) (_ *child, err error) {
	exe, err := s.executable()
	if err != nil {
		return nil, err
	}
	stdin, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stdin.Close() //nolint:errcheck // the shim has it
	r, stdout, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	defer stdout.Close() //nolint:errcheck // the shim has it
	// The descriptor is named in the child, which has it until exec. Its environment is for Go's runtime: with one
	// processor from the first instruction on a shim has fewer threads and caches, half a megabyte less than with two,
	// and not the pause that changing the number takes; and its threads need no room for the profiles of locks.
	p, err := os.StartProcess("/proc/self/fd/"+strconv.Itoa(int(exe.Fd())), []string{"gantry-shim"}, &os.ProcAttr{
		Dir: cwd, Env: append(insecure.Environ(), "GOMAXPROCS=1"), Files: []*os.File{stdin, stdout, stderr}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("execute %s: %w", s.o.Binary, err), w.Close(), r.Close())
	}
	c := &child{p: p, stdin: w, stdout: r, done: make(chan struct{})}
	// Whoever starts a process reaps it. This ends with the shim, or with this process: there is
	// nothing in it to wait for.
	go func() {
		st, err := p.Wait()
		close(c.done)
		s.log.Debug("a shim has ended", "pid", p.Pid, "state", st.String(), "err", err)
	}()
	return c, nil
}

// meet reads the shim's one message and connects to it.
func (c *child) meet(ctx context.Context, dir bundle.Dir) (Shim, error) {
	defer c.stdout.Close() //nolint:errcheck // it was only read
	stop := context.AfterFunc(ctx, func() { _ = c.stdout.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := bufio.NewReader(c.stdout).ReadSlice('\n')
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, fmt.Errorf("it ended without a word: %w", err)
	}
	booted := &shimv1.Booted{}
	if err := json.Unmarshal(line, booted); err != nil {
		return nil, fmt.Errorf("it said what nobody understands: %w", err)
	}
	if booted.GetError() != "" {
		return nil, errors.New(booted.GetError())
	}
	if int(booted.GetPid()) != c.p.Pid {
		return nil, fmt.Errorf("it says that it is process %d, and is %d: %w", booted.GetPid(), c.p.Pid, errdefs.ErrInternal)
	}
	return dial(ctx, dir)
}

// kill ends it and waits until it has.
func (c *child) kill() {
	_ = c.stdin.Close()
	_ = c.stdout.Close()
	_ = c.p.Kill()
	<-c.done
}

// executable is the shim's program on a read-only mount of its own. A process that goes into a
// container is for a moment a copy of the shim: who opens its /proc/<pid>/exe there finds nothing to
// write to (CVE-2019-5736). Its pages are the file's, shared by all shims.
func (s *Supervisor) executable() (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.binary != nil {
		return s.binary, nil
	}
	path, err := filepath.EvalSymlinks(s.o.Binary)
	if err != nil {
		return nil, fmt.Errorf("the shim's program: %w", err)
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open_tree %s: %w", path, err)
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return nil, errors.Join(fmt.Errorf("mount_setattr %s: %w", path, err), unix.Close(fd))
	}
	writeBack(path)
	s.binary = os.NewFile(uintptr(fd), path) //nolint:gosec // a descriptor
	return s.binary, nil
}

// writeBack has the kernel write a program to disk that was installed a moment ago: until then its
// pages count as the private dirty memory of whoever runs it. That it cannot be done harms nobody.
func writeBack(path string) {
	if f, err := os.Open(path); err == nil { //nolint:gosec // the daemon's own program
		_ = unix.Fdatasync(int(f.Fd())) //nolint:gosec // a descriptor
		_ = f.Close()
	}
}
