package native

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotters/shelf"
)

// copyTree copies what is in the directory from, and the looks of from itself, to the directory to, which is
// empty: owners, modes, times of directories too, extended attributes, hard links within the tree, devices,
// holes. Blocks are shared where the file system can. Nothing is synced. It ends with ctx between two files, and
// inside a large one.
//
// (Not containerd/continuity's fs.CopyDir: that syncs every file, leaves directories with the time of the
// copy, and cannot be told to stop.)
func copyTree(ctx context.Context, from, to string) error {
	c := copier{ctx: ctx, links: map[inode]string{}, buf: make([]byte, 1<<20), to: to}
	src, err := unix.Open(from, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: from, Err: err}
	}
	dst, err := unix.Open(to, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return errors.Join(&os.PathError{Op: "open", Path: to, Err: err}, unix.Close(src))
	}
	if c.root, err = unix.Dup(dst); err != nil {
		return errors.Join(err, unix.Close(src), unix.Close(dst))
	}
	defer unix.Close(c.root)
	if err := c.dir(src, dst, ""); err != nil {
		return fmt.Errorf("copy the parent: %w", err)
	}
	return nil
}

// inode names a file within one machine.
type inode struct{ dev, ino uint64 }

type copier struct {
	ctx   context.Context //nolint:containedctx // one copy is one call
	root  int             // of the copy
	to    string
	links map[inode]string // of files with several names: the first, relative to root
	buf   []byte
}

// dir copies what is in src into dst, then the looks of src, and closes both. rel is its path, for hard links.
func (c *copier) dir(src, dst int, rel string) error {
	s, d := os.NewFile(uintptr(src), "source"), os.NewFile(uintptr(dst), "copy")
	defer s.Close()
	defer d.Close()
	for {
		names, err := s.Readdirnames(1024)
		for _, n := range names {
			if c.ctx.Err() != nil {
				return shelf.Ended(c.ctx)
			}
			if err := c.entry(src, dst, n, strings.TrimPrefix(rel+"/"+n, "/")); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return err
	}
	return c.looks(proc(src), proc(dst), &st, rel)
}

func proc(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// entry copies one name.
func (c *copier) entry(src, dst int, name, rel string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "lstat", Path: rel, Err: err}
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first, ok := c.links[id]; ok {
			if err := unix.Linkat(c.root, first, dst, name, 0); err != nil {
				return &os.PathError{Op: "link", Path: rel, Err: err}
			}
			return nil
		}
		c.links[id] = rel
	}
	switch kind {
	case unix.S_IFDIR:
		return c.subdir(src, dst, name, rel)
	case unix.S_IFREG:
		return c.file(src, dst, name, rel, &st)
	case unix.S_IFLNK:
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(src, name, target)
		if err == nil {
			err = unix.Symlinkat(string(target[:n]), dst, name)
		}
		if err != nil {
			return &os.PathError{Op: "copy link", Path: rel, Err: err}
		}
	default: // devices, pipes, sockets
		if err := unix.Mknodat(dst, name, st.Mode, int(st.Rdev)); err != nil {
			return &os.PathError{Op: "mknod", Path: rel, Err: err}
		}
	}
	return c.looks(proc(src)+"/"+name, proc(dst)+"/"+name, &st, rel)
}

func (c *copier) subdir(src, dst int, name, rel string) error {
	if err := unix.Mkdirat(dst, name, 0o700); err != nil {
		return &os.PathError{Op: "mkdir", Path: rel, Err: err}
	}
	in, err := unix.Openat(src, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: rel, Err: err}
	}
	out, err := unix.Openat(dst, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return errors.Join(&os.PathError{Op: "open", Path: rel, Err: err}, unix.Close(in))
	}
	return c.dir(in, out, rel)
}

func (c *copier) file(src, dst int, name, rel string, st *unix.Stat_t) error {
	in, err := unix.Openat(src, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: rel, Err: err}
	}
	defer unix.Close(in)
	out, err := unix.Openat(dst, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &os.PathError{Op: "create", Path: rel, Err: err}
	}
	err = c.content(in, out, st.Size)
	if err = errors.Join(err, unix.Close(out)); err != nil {
		return &os.PathError{Op: "copy", Path: rel, Err: err}
	}
	return c.looks(proc(src)+"/"+name, proc(dst)+"/"+name, st, rel)
}

// content copies size bytes: by sharing the blocks of the whole file, else by the kernel, else by hand; the
// latter two from one hole to the next.
func (c *copier) content(in, out int, size int64) error {
	if size == 0 || unix.IoctlFileClone(out, in) == nil {
		return nil
	}
	if err := unix.Ftruncate(out, size); err != nil {
		return err
	}
	for off := int64(0); off < size; {
		start, err := unix.Seek(in, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // holes to the end
		}
		end := size
		if err != nil {
			start = off // a file system that knows of no holes
		} else if end, err = unix.Seek(in, start, unix.SEEK_HOLE); err != nil {
			return err
		}
		if err := c.extent(in, out, start, end); err != nil {
			return err
		}
		off = end
	}
	return nil
}

// chunk is how much is copied before ctx is looked at.
const chunk = 16 << 20

func (c *copier) extent(in, out int, off, end int64) error {
	for off < end {
		if c.ctx.Err() != nil {
			return shelf.Ended(c.ctx)
		}
		from, to := off, off
		n, err := unix.CopyFileRange(in, &from, out, &to, int(min(end-off, chunk)), 0)
		if err != nil || n == 0 { // not by this kernel between these file systems, or not from this one
			if n, err = c.byHand(in, out, off, end); err != nil {
				return err
			}
			if n == 0 {
				return nil // it became shorter; what is committed does not
			}
		}
		off += int64(n)
	}
	return nil
}

func (c *copier) byHand(in, out int, off, end int64) (int, error) {
	n, err := unix.Pread(in, c.buf[:min(end-off, int64(len(c.buf)))], off)
	if err != nil {
		return 0, err
	}
	for done := 0; done < n; {
		w, err := unix.Pwrite(out, c.buf[done:n], off+int64(done))
		if err != nil {
			return 0, err
		}
		done += w
	}
	return n, nil
}

// looks gives the file to the owner, attributes, mode and times of from, which st describes; both paths
// end in a name that is not followed, or in a descriptor.
func (c *copier) looks(from, to string, st *unix.Stat_t, rel string) error {
	chown, flags := unix.Lchown, unix.AT_SYMLINK_NOFOLLOW
	isDir, isLink := st.Mode&unix.S_IFMT == unix.S_IFDIR, st.Mode&unix.S_IFMT == unix.S_IFLNK
	if isDir { // named by descriptor, which is a link to follow
		chown, flags = unix.Chown, 0
	}
	if err := chown(to, int(st.Uid), int(st.Gid)); err != nil {
		return &os.PathError{Op: "chown", Path: rel, Err: err}
	}
	if err := attributes(from, to, isDir); err != nil {
		return fmt.Errorf("%s: %w", rel, err)
	}
	if !isLink { // after the owner, which clears bits of it, and the attributes, of which an ACL writes it
		if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
			return &os.PathError{Op: "chmod", Path: rel, Err: err}
		}
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, flags); err != nil {
		return &os.PathError{Op: "utimensat", Path: rel, Err: err}
	}
	return nil
}

// attributes copies extended attributes.
func attributes(from, to string, follow bool) error {
	list, get, set := unix.Llistxattr, unix.Lgetxattr, unix.Lsetxattr
	if follow {
		list, get, set = unix.Listxattr, unix.Getxattr, unix.Setxattr
	}
	n, err := list(from, nil)
	if n == 0 || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	names := make([]byte, max(n, 0))
	if err == nil {
		n, err = list(from, names)
	}
	if err != nil {
		return fmt.Errorf("list attributes: %w", err)
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		n, err := get(from, name, nil)
		value := make([]byte, max(n, 0))
		if err == nil && n > 0 {
			n, err = get(from, name, value)
		}
		if err == nil {
			err = set(to, name, value[:n], 0)
		}
		if err != nil {
			return fmt.Errorf("copy attribute %s: %w", name, err)
		}
	}
	return nil
}
