package supervise

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/bundle"
	shimv1 "github.com/gantryd/gantry/proto/gantry/shim/v1"
)

// Find reconnects to the shim of dir. It is errdefs.ErrNotFound if there is none, for certain: boot id,
// pid, start time or nonce do not agree. Any other error means that somebody may be there who does
// not answer. Nobody is signalled either way.
func (s *Supervisor) Find(ctx context.Context, dir bundle.Dir) (_ Shim, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("find the shim: %w", err)
		}
	}()
	is, fd, err := identify(dir)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd) //nolint:errcheck // of no use any more
	c, err := dial(ctx, dir)
	if err != nil {
		return nil, orGone(fd, fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable))
	}
	hello, err := c.Hello(ctx, &shimv1.HelloRequest{})
	if err != nil {
		return nil, errors.Join(orGone(fd, err), c.Close())
	}
	if hello.GetNonce() != is.Nonce || hello.GetContainerId() != is.Container {
		return nil, errors.Join(fmt.Errorf("another answers: %w", errdefs.ErrNotFound), c.Close())
	}
	return c, nil
}

// orGone is err, unless the process that fd stands for has ended: then that is certain.
func orGone(fd int, err error) error {
	if ended(fd) {
		return fmt.Errorf("it has just ended: %w", errdefs.ErrNotFound)
	}
	return err
}

// identify reads shim.json and returns a pidfd of the process that wrote it, which the caller closes.
func identify(dir bundle.Dir) (is bundle.Shim, fd int, err error) {
	is, err = dir.Shim()
	if errors.Is(err, fs.ErrNotExist) {
		return is, -1, fmt.Errorf("no shim.json: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return is, -1, err
	}
	boot, err := bundle.BootID()
	if err != nil {
		return is, -1, err
	}
	if is.BootID != boot {
		return is, -1, fmt.Errorf("it is of another boot: %w", errdefs.ErrNotFound)
	}
	if is.Container != dir.ID() {
		return is, -1, fmt.Errorf("shim.json is of container %.64q: %w", is.Container, errdefs.ErrNotFound)
	}
	fd, err = unix.PidfdOpen(is.PID, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // EINVAL: a thread's number by now
		return is, -1, fmt.Errorf("process %d is gone: %w", is.PID, errdefs.ErrNotFound)
	}
	if err != nil {
		return is, -1, fmt.Errorf("pidfd: %w", err)
	}
	// Looked at with the descriptor in hand: from here on the number can be nobody else's.
	started, err := bundle.StartTime(is.PID)
	if err == nil && started != is.Started {
		err = fmt.Errorf("process %d is another, or has ended: %w", is.PID, errdefs.ErrNotFound)
	}
	if err != nil {
		return is, -1, errors.Join(err, unix.Close(fd))
	}
	return is, fd, nil
}

// ended reports whether the process that fd stands for has.
func ended(fd int) bool {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // a descriptor
	n, err := unix.Poll(p, 0)
	return err == nil && n == 1
}

// Found is what is in one state directory.
type Found struct {
	ID    string
	Shim  bundle.Shim
	Alive bool // the process that wrote shim.json runs
}

// All ranges over the state directories below state, the daemon's: what is there, whether or not
// anybody knows of it.
func (s *Supervisor) All(state string) iter.Seq2[Found, error] {
	return func(yield func(Found, error) bool) {
		es, err := os.ReadDir(filepath.Join(state, "c"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			yield(Found{}, fmt.Errorf("shims: %w", err))
		}
		for _, e := range es {
			f := Found{ID: e.Name()}
			is, fd, err := identify(bundle.Dir{State: filepath.Join(state, "c", e.Name())})
			f.Shim = is
			if err == nil {
				f.Alive = true
				_ = unix.Close(fd)
			}
			if !yield(f, nil) {
				return
			}
		}
	}
}
