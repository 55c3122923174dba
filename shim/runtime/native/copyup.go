package native

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxDepth is how deep a directory is copied; each level takes descriptors.
const maxDepth = 200

// copyUp fills a new tmpfs, which is still detached, with what it will cover. Nothing is reached but
// from the descriptor of a directory, and no link is followed.
func (b *builder) copyUp(dest string, fd int, o options) error {
	p, err := b.find(dest)
	if err != nil {
		return fmt.Errorf("tmpcopyup: %w", err)
	}
	defer p.close()
	if p.fd < 0 {
		return fmt.Errorf("option tmpcopyup: what is there is not known yet: %w", errdefs.ErrInvalidArgument)
	}
	from, err := openDir(p.fd, ".")
	if err != nil {
		return fmt.Errorf("tmpcopyup: %w", err)
	}
	defer from.Close() //nolint:errcheck // it was only read
	to, err := openDir(fd, ".")
	if err != nil {
		return fmt.Errorf("tmpcopyup: %w", err)
	}
	defer to.Close() //nolint:errcheck // a directory
	if err := copyDir(from, to, 0); err != nil {
		return fmt.Errorf("tmpcopyup: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return fmt.Errorf("tmpcopyup: %w", err)
	}
	asked := map[string]bool{}
	for _, d := range o.data {
		key, _, _ := strings.Cut(d, "=")
		asked[key] = true
	}
	// What the directory was like, but for what is said about it.
	if !asked["uid"] && !asked["gid"] {
		err = unix.Fchown(int(to.Fd()), int(st.Uid), int(st.Gid))
	}
	if err == nil && !asked["mode"] {
		err = unix.Fchmod(int(to.Fd()), st.Mode&0o7777)
	}
	if err != nil {
		return fmt.Errorf("tmpcopyup: %w", err)
	}
	return nil
}

func openDir(at int, name string) (*os.File, error) {
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

func copyDir(from, to *os.File, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("directories are more than %d deep: %w", maxDepth, errdefs.ErrInvalidArgument)
	}
	names, err := from.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := copyEntry(from, to, name, depth); err != nil {
			var deeper *os.PathError
			if errors.As(err, &deeper) {
				deeper.Path = path.Join(name, deeper.Path)
				return err
			}
			return &os.PathError{Op: "copy", Path: name, Err: err}
		}
	}
	return nil
}

func copyEntry(from, to *os.File, name string, depth int) error {
	src, dst := int(from.Fd()), int(to.Fd())
	var st unix.Stat_t
	if err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := unix.Mkdirat(dst, name, 0o700); err != nil {
			return err
		}
		return copyOpened(src, dst, name, unix.O_DIRECTORY, &st, func(in, out *os.File) error { return copyDir(in, out, depth+1) })
	case unix.S_IFREG:
		return copyOpened(src, dst, name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR, &st, func(in, out *os.File) error {
			_, err := io.Copy(out, in)
			return err
		})
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(src, name, buf)
		if err == nil {
			err = unix.Symlinkat(string(buf[:n]), dst, name)
		}
		if err != nil {
			return err
		}
		return keep(dst, name, &st)
	}
	if err := unix.Mknodat(dst, name, st.Mode, int(st.Rdev)); err != nil {
		return err
	}
	if err := unix.Fchmodat(dst, name, st.Mode&0o7777, 0); err != nil {
		return err
	}
	return keep(dst, name, &st)
}

// copyOpened copies what must be opened for it. how is for the copy.
func copyOpened(src, dst int, name string, how int, st *unix.Stat_t, fn func(in, out *os.File) error) error {
	fd, err := unix.Openat(src, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	in := os.NewFile(uintptr(fd), name)
	defer in.Close() //nolint:errcheck // it was only read
	var is unix.Stat_t
	if err := unix.Fstat(fd, &is); err != nil {
		return err
	}
	if is.Mode&unix.S_IFMT != st.Mode&unix.S_IFMT {
		return fmt.Errorf("it was replaced: %w", errdefs.ErrFailedPrecondition)
	}
	ofd, err := unix.Openat(dst, name, how|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	out := os.NewFile(uintptr(ofd), name)
	defer out.Close() //nolint:errcheck // it is in memory
	if err := fn(in, out); err != nil {
		return err
	}
	if err := unix.Fchown(ofd, int(st.Uid), int(st.Gid)); err != nil { // first: it clears set-id bits and capabilities
		return err
	}
	if err := unix.Fchmod(ofd, st.Mode&0o7777); err != nil {
		return err
	}
	if err := copyXattrs(fd, ofd); err != nil {
		return err
	}
	return times(dst, name, st)
}

// keep gives a copy the owner and the times of what it copies.
func keep(dir int, name string, st *unix.Stat_t) error {
	if err := unix.Fchownat(dir, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return times(dir, name, st)
}

func times(dir int, name string, st *unix.Stat_t) error {
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// copyXattrs copies the extended attributes that a tmpfs takes: capabilities of files among them.
func copyXattrs(from, to int) error {
	buf := make([]byte, 64<<10) // XATTR_LIST_MAX, XATTR_SIZE_MAX
	n, err := unix.Flistxattr(from, buf)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list extended attributes: %w", err)
	}
	for _, name := range strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") {
			continue
		}
		n, err := unix.Fgetxattr(from, name, buf)
		if err == nil {
			err = unix.Fsetxattr(to, name, buf[:n], 0)
		}
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("copy extended attribute %s: %w", name, err)
		}
	}
	return nil
}
