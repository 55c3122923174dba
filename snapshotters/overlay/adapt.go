package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/snapshotters"
	"github.com/gantryd/gantry/snapshotters/shelf"
)

// opaque is the attribute of a directory that hides its namesakes below.
const opaque = "trusted.overlay.opaque"

// adapt makes a layer that was unpacked on nothing fit to stand on below, the fs directories of its
// parents, nearest first:
//
//   - Directories that bear snapshotters.Inherit get the looks of their namesake below.
//   - Whiteouts of what is not there below go. The kernel does not look for whiteouts when
//     it lists a directory that only one layer has, so they would show, as files nobody can open.
//
// It may be killed anywhere and run again. Directories are entered by descriptor; the layer is nobody else's
// by now, but it was made from a stranger's archive.
func adapt(ctx context.Context, layer string, below []string) error {
	fd, err := unix.Open(layer, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: layer, Err: err}
	}
	if err := adaptDir(ctx, fd, &place{known: true, under: below}); err != nil {
		return fmt.Errorf("adapt the layer to its parent: %w", err)
	}
	return nil
}

// place is a directory of a layer and, once somebody wants to know, what it covers.
type place struct {
	up     *place
	name   string
	hides  bool // opaque
	known  bool
	under  []string // the directories it covers in the layers below, nearest first
	failed error
}

// covers returns the directories of the layers below that would show through if this one hid nothing.
func (p *place) covers() ([]string, error) {
	if !p.known {
		p.known = true
		if above, err := p.up.merged(); err != nil {
			p.failed = err
		} else {
			p.under, p.failed = follow(above, p.name)
		}
	}
	return p.under, p.failed
}

// merged returns those that do show through.
func (p *place) merged() ([]string, error) {
	if p.hides {
		return nil, nil
	}
	return p.covers()
}

// follow goes from directories that are merged with one another to their subdirectories called name.
func follow(dirs []string, name string) ([]string, error) {
	var out []string
	for _, d := range dirs {
		path := d + "/" + name
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); errors.Is(err, unix.ENOENT) {
			continue
		} else if err != nil {
			return nil, &os.PathError{Op: "lstat", Path: path, Err: err}
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			break // a file or a whiteout: it hides what is below
		}
		out = append(out, path)
		if hides, err := isOpaque(path); err != nil {
			return nil, err
		} else if hides {
			break
		}
	}
	return out, nil
}

func isOpaque(path string) (bool, error) {
	var b [1]byte
	n, err := unix.Lgetxattr(path, opaque, b[:])
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ERANGE) {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "lgetxattr", Path: path, Err: err}
	}
	return n == 1 && b[0] == 'y', nil
}

// shows says whether name can be seen in the layers below.
func (p *place) shows(name string) (bool, error) {
	dirs, err := p.merged()
	if err != nil {
		return false, err
	}
	for _, d := range dirs {
		var st unix.Stat_t
		if err := unix.Lstat(d+"/"+name, &st); errors.Is(err, unix.ENOENT) {
			continue
		} else if err != nil {
			return false, &os.PathError{Op: "lstat", Path: d + "/" + name, Err: err}
		}
		return !isWhiteout(&st), nil
	}
	return false, nil
}

func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// maxNest is how deep a layer's directories may nest. Every level keeps a descriptor, and a path longer
// than PATH_MAX could not be made by name.
const maxNest = 2048

// adaptDir adapts the directory fd and everything in it, and closes fd.
func adaptDir(ctx context.Context, fd int, p *place) error {
	d := os.NewFile(uintptr(fd), "layer")
	defer d.Close()
	if ctx.Err() != nil {
		return shelf.Ended(ctx)
	}
	var before unix.Stat_t
	if err := unix.Fstat(fd, &before); err != nil {
		return err
	}
	var b [1]byte
	n, err := unix.Fgetxattr(fd, opaque, b[:])
	p.hides = err == nil && n == 1 && b[0] == 'y'
	subs, dropped, err := dropWhiteouts(d, p)
	if err != nil {
		return err
	}
	if dropped { // it was not the layer's doing
		if err := setTimes(fd, before.Atim, before.Mtim); err != nil {
			return err
		}
	}
	for _, name := range subs {
		if p.depth() > maxNest {
			return fmt.Errorf("its directories nest deeper than %d", maxNest)
		}
		sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: name, Err: err}
		}
		if err := adaptDir(ctx, sub, &place{up: p, name: name}); err != nil {
			return err
		}
	}
	return inherit(fd, p)
}

func (p *place) depth() int {
	n := 0
	for ; p.up != nil; p = p.up {
		n++
	}
	return n
}

// dropWhiteouts deletes the whiteouts in d that hide nothing, and returns the directories in it.
func dropWhiteouts(d *os.File, p *place) (subs []string, dropped bool, err error) {
	ents, err := d.ReadDir(-1)
	if err != nil {
		return nil, false, err
	}
	for _, e := range ents {
		if e.IsDir() {
			subs = append(subs, e.Name())
		}
		if e.Type()&os.ModeCharDevice == 0 {
			continue
		}
		var st unix.Stat_t
		if err := unix.Fstatat(int(d.Fd()), e.Name(), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return nil, false, &os.PathError{Op: "lstat", Path: e.Name(), Err: err}
		}
		if !isWhiteout(&st) {
			continue
		}
		if needed, err := p.shows(e.Name()); err != nil {
			return nil, false, err
		} else if needed {
			continue
		}
		if err := unix.Unlinkat(int(d.Fd()), e.Name(), 0); err != nil {
			return nil, false, &os.PathError{Op: "unlink", Path: e.Name(), Err: err}
		}
		dropped = true
	}
	return subs, dropped, nil
}

// inherit gives the directory fd the looks of its namesake below, if it bears the mark, and takes the mark off last.
func inherit(fd int, p *place) error {
	if _, err := unix.Fgetxattr(fd, snapshotters.Inherit, nil); err != nil {
		if errors.Is(err, unix.ENODATA) {
			return nil
		}
		return err
	}
	dirs, err := p.covers()
	if err != nil {
		return err
	}
	if len(dirs) > 0 {
		if err := copyLooks(dirs[0], fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil {
			return err
		}
	}
	if err := unix.Fremovexattr(fd, snapshotters.Inherit); err != nil && !errors.Is(err, unix.ENODATA) {
		return err
	}
	return nil
}

func setTimes(fd int, atime, mtime unix.Timespec) error {
	return unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), []unix.Timespec{atime, mtime}, 0)
}

// copyLooks gives the directory to the owner, mode, extended attributes and times of the directory from;
// not what overlayfs and we keep in attributes, which is about that layer and not about the directory.
func copyLooks(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: from, Err: err}
	}
	if err := unix.Chown(to, int(st.Uid), int(st.Gid)); err != nil { // first: it clears bits of the mode
		return &os.PathError{Op: "chown", Path: to, Err: err}
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: to, Err: err}
	}
	if err := copyAttributes(from, to); err != nil {
		return err
	}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, to, []unix.Timespec{st.Atim, st.Mtim}, 0); err != nil {
		return &os.PathError{Op: "utimensat", Path: to, Err: err}
	}
	return nil
}

func copyAttributes(from, to string) error {
	n, err := unix.Llistxattr(from, nil)
	if n == 0 || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "llistxattr", Path: from, Err: err}
	}
	names := make([]byte, n)
	if n, err = unix.Llistxattr(from, names); err != nil {
		return &os.PathError{Op: "llistxattr", Path: from, Err: err}
	}
	for name := range strings.SplitSeq(strings.TrimRight(string(names[:n]), "\x00"), "\x00") {
		if name == snapshotters.Inherit || strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") {
			continue
		}
		n, err := unix.Lgetxattr(from, name, nil)
		if err != nil {
			return &os.PathError{Op: "lgetxattr " + name, Path: from, Err: err}
		}
		value := make([]byte, n)
		if n, err = unix.Lgetxattr(from, name, value); err != nil {
			return &os.PathError{Op: "lgetxattr " + name, Path: from, Err: err}
		}
		if err := unix.Setxattr(to, name, value[:n], 0); err != nil {
			return &os.PathError{Op: "setxattr " + name, Path: to, Err: err}
		}
	}
	return nil
}
