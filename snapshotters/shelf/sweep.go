package shelf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// sweeper gives back the space of what lies in the trash: one goroutine that looks there when woken.
// The trash itself is its queue, so it is neither bounded in memory nor lost in a crash.
type sweeper struct {
	dir    string
	log    *slog.Logger
	woken  chan struct{}
	done   chan struct{}
	cancel context.CancelCauseFunc
}

// sweepPause is how long the trash lies before it is swept. Deleting takes the same locks and processors as the
// start of the next container.
const sweepPause = 200 * time.Millisecond

var errStopped = errors.New("the driver is shutting down")

func (w *sweeper) start(dir string, log *slog.Logger) {
	ctx, cancel := context.WithCancelCause(context.Background())
	w.dir, w.log, w.cancel = dir, log, cancel
	w.woken, w.done = make(chan struct{}, 1), make(chan struct{})
	go w.run(ctx)
	w.wake() // for what the last process left
}

func (w *sweeper) stop() {
	if w.cancel != nil {
		w.cancel(errStopped)
		<-w.done
		w.cancel = nil
	}
}

func (w *sweeper) wake() {
	select {
	case w.woken <- struct{}{}:
	default:
	}
}

func (w *sweeper) run(ctx context.Context) {
	defer close(w.done)
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.woken:
		}
		select { // let whoever is in a hurry go first; what comes meanwhile is swept along
		case <-ctx.Done():
			return
		case <-time.After(sweepPause):
		}
		// What cannot be deleted stays until somebody wakes us again: no loop over a bad disk.
		if err := w.sweep(ctx); err != nil && ctx.Err() == nil {
			w.log.Warn("sweep the trash", "dir", w.dir, "err", err)
		}
	}
}

// sweep empties the trash, and again while deep directories are brought up into it.
func (w *sweeper) sweep(ctx context.Context) error {
	for {
		before := brought.Load()
		fd, err := unix.Open(w.dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		if err := emptyDir(ctx, fd, fd, 0); err != nil || brought.Load() == before {
			return err
		}
	}
}

// maxNest is how deep directories are entered; deeper ones are brought up into the trash first, so that
// a container that nests a million directories costs no more descriptors than this.
const maxNest = 64

// brought numbers directories that were brought up.
var brought atomic.Uint64

// emptyDir deletes everything in the directory fd, and closes fd. It follows no link: the files may
// still be in the hands of somebody who puts one where a directory was.
func emptyDir(ctx context.Context, trash, fd, depth int) error {
	d := os.NewFile(uintptr(fd), "trash")
	defer d.Close()
	var errs []error
	for {
		// One page at a time: a directory may hold more names than fit in memory.
		ents, err := d.ReadDir(1024)
		for _, e := range ents {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := deleteOne(ctx, trash, fd, e, depth); err != nil {
				errs = append(errs, fmt.Errorf("delete %q: %w", e.Name(), err))
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, err)
			}
			return errors.Join(errs[:min(len(errs), 8)]...)
		}
	}
}

func deleteOne(ctx context.Context, trash, parent int, e os.DirEntry, depth int) error {
	if !e.IsDir() {
		err := unix.Unlinkat(parent, e.Name(), 0)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EISDIR) { // a type the file system did not tell
			return err
		}
	}
	err := unix.Unlinkat(parent, e.Name(), unix.AT_REMOVEDIR)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if depth == maxNest {
		name := fmt.Sprintf("%d.%d.deep", os.Getpid(), brought.Add(1))
		return unix.Renameat(parent, e.Name(), trash, name)
	}
	for range 3 { // a file system may skip names while others are deleted around them
		fd, err := unix.Openat(parent, e.Name(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := emptyDir(ctx, trash, fd, depth+1); err != nil {
			return err
		}
		if err = unix.Unlinkat(parent, e.Name(), unix.AT_REMOVEDIR); errors.Is(err, unix.ENOENT) {
			return nil
		} else if !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
	}
	return unix.ENOTEMPTY
}
