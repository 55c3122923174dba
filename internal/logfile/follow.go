package logfile

import (
	"context"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// pollTime is how often a log is looked at where the kernel does not say that it changed.
	pollTime = 50 * time.Millisecond
	// slowTime is how often it is looked at although the kernel does.
	slowTime = time.Second
)

// watch is told by the kernel that something in a directory changed. It is a hint: readers look.
type watch struct {
	f     *os.File
	poke  chan struct{} // of one place
	pumps sync.WaitGroup
}

// newWatch watches dir; nil: the kernel has no watch to spare, or there is no dir.
func newWatch(dir string) *watch {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil
	}
	if _, err := unix.InotifyAddWatch(fd, dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_DELETE_SELF); err != nil {
		_ = unix.Close(fd)
		return nil
	}
	w := &watch{f: os.NewFile(uintptr(fd), "inotify"), poke: make(chan struct{}, 1)} //nolint:gosec // a descriptor
	w.pumps.Go(func() {
		buf := make([]byte, 4096)
		for {
			if _, err := w.f.Read(buf); err != nil {
				return
			}
			select {
			case w.poke <- struct{}{}:
			default:
			}
		}
	})
	return w
}

func (w *watch) close() error {
	err := w.f.Close()
	w.pumps.Wait()
	return err
}

// wait returns when there may be more to read; false: there will not be.
func (r *Reader) wait(ctx context.Context) (bool, error) {
	if r.finished() {
		return false, nil
	}
	if r.watch == nil {
		if r.watch = newWatch(r.dir); r.watch != nil {
			return true, nil // what came before the watch, nobody told us of
		}
	}
	d, poke := pollTime, (chan struct{})(nil)
	if r.watch != nil {
		d, poke = slowTime, r.watch.poke
	}
	if !r.o.Until.IsZero() {
		d = min(d, max(0, time.Until(r.o.Until))+time.Millisecond)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-poke:
	case <-t.C:
	case <-r.o.Done: // once more: what is there now is all
		r.o.Follow = false
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	return true, nil
}

// finished reports whether nothing that is written from now on is wanted.
func (r *Reader) finished() bool {
	return !r.o.Until.IsZero() && time.Now().After(r.o.Until)
}
