package shelf

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Usage is what a snapshot takes on disk without its parents.
type Usage struct {
	Bytes  int64 `json:"bytes"`  // allocated, in whole blocks
	Inodes int64 `json:"inodes"` // a hard link counted once
}

// Count counts what a snapshot takes. What is committed does not change and is counted once.
func (s *Shelf) Count(ctx context.Context, key string) (Snapshot, Usage, error) {
	s.mu.Lock()
	e, ok := s.entries[key]
	if !ok || e.going {
		s.mu.Unlock()
		return Snapshot{}, Usage{}, fmt.Errorf("snapshot %q is not there: %w", key, errdefs.ErrNotFound)
	}
	sn, known := e.Snapshot, e.Usage
	s.mu.Unlock()
	if known != nil {
		return sn, *known, nil
	}
	u, err := du(ctx, s.FS(sn))
	if errors.Is(err, os.ErrNotExist) { // removed meanwhile
		return Snapshot{}, Usage{}, fmt.Errorf("snapshot %q is not there: %w", key, errdefs.ErrNotFound)
	}
	if err != nil {
		return Snapshot{}, Usage{}, fmt.Errorf("count snapshot %q: %w", key, err)
	}
	if sn.Kind == Committed {
		s.mu.Lock()
		e.Usage = &u
		s.mu.Unlock()
	}
	return sn, u, nil
}

// inode names a file within one machine.
type inode struct{ dev, ino uint64 }

// maxCounted is how deep directories are counted. Who nests more hides files from Stat, and from nothing else.
const maxCounted = 512

// du walks a directory that others may be writing to, by descriptors: no name of theirs leads outside.
func du(ctx context.Context, dir string) (Usage, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return Usage{}, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Usage{}, errors.Join(err, unix.Close(fd))
	}
	w := counting{u: Usage{Bytes: st.Blocks * 512, Inodes: 1}, dev: st.Dev, seen: map[inode]bool{}}
	err = w.walk(ctx, fd, 0)
	return w.u, err
}

// counting is a count under way.
type counting struct {
	u    Usage
	dev  uint64         // mounts below are not counted
	seen map[inode]bool // of files with several names
}

// walk counts what is in the directory fd, and closes it.
func (w *counting) walk(ctx context.Context, fd, depth int) error {
	d := os.NewFile(uintptr(fd), "snapshot")
	defer d.Close()
	for {
		if ctx.Err() != nil {
			return Ended(ctx)
		}
		names, err := d.Readdirnames(1024)
		for _, n := range names {
			if !w.entry(fd, n) || depth == maxCounted {
				continue
			}
			sub, err := unix.Openat(fd, n, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
				continue // went away
			}
			if err != nil {
				return err
			}
			if err := w.walk(ctx, sub, depth+1); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// entry counts one entry of the directory fd, and reports whether it is one to look into.
func (w *counting) entry(fd int, name string) bool {
	var st unix.Stat_t
	if unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return false // went away
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if id := (inode{st.Dev, st.Ino}); !isDir && st.Nlink > 1 {
		if w.seen[id] {
			return false
		}
		w.seen[id] = true
	}
	w.u.Bytes += st.Blocks * 512
	w.u.Inodes++
	return isDir && st.Dev == w.dev
}
