package unpack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/insecure"
)

// maxOpen is how many directories are kept open.
const maxOpen = 128

// tree is the directory a layer is unpacked into. Names in it are clean, relative, and "" for the directory
// itself; each is resolved inside it, whatever symbolic links the layer made.
type tree struct {
	root int
	dirs map[string]int // open directories by name
}

func newTree(root int) *tree { return &tree{root: root, dirs: map[string]int{}} }

// clean makes a name of what an archive calls a name. Absolute names are names in the layer; names that
// climb out of it are refused, since no honest tool writes them.
func clean(what, name string) (string, error) {
	depth := 0
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return "", layerError{fmt.Sprintf("%s %.200q climbs out of the layer", what, name), errdefs.ErrInvalidArgument}
			}
		default:
			depth++
		}
	}
	if strings.Contains(name, "\x00") {
		return "", layerError{fmt.Sprintf("%s %.200q has a NUL in it", what, name), errdefs.ErrInvalidArgument}
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/"), nil
}

func split(name string) (dir, base string) {
	dir, base = path.Split(name)
	return strings.TrimSuffix(dir, "/"), base
}

// open opens a directory, keeping it open for the next time. Links on the way are followed inside the tree.
func (t *tree) open(name string) (int, error) {
	if fd, ok := t.dirs[name]; ok {
		return fd, nil
	}
	fd, err := t.resolve(name, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return -1, err
	}
	t.dirs[name] = fd
	return fd, nil
}

// resolve opens name inside the tree; the caller closes it.
func (t *tree) resolve(name string, flags uint64) (int, error) {
	if name == "" {
		name = "."
	}
	if insecure.Without(insecure.Layer) {
		return unix.Openat(t.root, name, int(flags)|unix.O_CLOEXEC, 0)
	}
	for {
		fd, err := unix.Openat2(t.root, name, &unix.OpenHow{
			Flags:   flags | unix.O_CLOEXEC | unix.O_NONBLOCK,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
		})
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue // EAGAIN: something was renamed on the way; nobody but us is here, so it passes
		}
		return fd, err
	}
}

// trim keeps the open directories few. It is called between entries, since descriptors from open are good until then.
func (t *tree) trim() {
	if len(t.dirs) > maxOpen {
		t.forget()
	}
}

// forget closes the open directories. It must be called when one may have become another: when a directory or a link was removed.
func (t *tree) forget() {
	for _, fd := range t.dirs {
		_ = unix.Close(fd)
	}
	clear(t.dirs)
}

// stat describes base in an open directory, not following it. A nil answer means it is not there.
func stat(dir int, base string) (*unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(dir, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil //nolint:nilnil // see above
	}
	return &st, err
}

func isDir(st *unix.Stat_t) bool { return st != nil && st.Mode&unix.S_IFMT == unix.S_IFDIR }

// isWhiteout says whether this is overlayfs's mark for "removed".
func isWhiteout(st *unix.Stat_t) bool {
	return st != nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// removeAll removes base of an open directory and what is under it, following nothing.
func removeAll(dir int, base string) error {
	err := unix.Unlinkat(dir, base, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	err = unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
	if !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := eachChild(dir, base, removeAll); err != nil {
		return err
	}
	return unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
}

// eachChild calls fn for everything in the directory base of an open directory.
func eachChild(dir int, base string, fn func(dir int, base string) error) error {
	fd, err := unix.Openat(dir, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := fn(fd, n); err != nil {
			return err
		}
	}
	return nil
}

// setTimes sets the times of an open file.
func setTimes(fd int, ts *[2]unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(ts)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// failed words the failure of a system call on an entry.
func failed(verb, name string, err error) error {
	if err == nil {
		return nil
	}
	if name == "" {
		name = "/"
	}
	says := fmt.Sprintf("%s %q: %v", verb, name, err)
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return layerError{says + ": make room on that filesystem (`gantry system df` shows what gantry keeps)", errdefs.ErrResourceExhausted}
	case errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.ELOOP), errors.Is(err, unix.EMLINK), errors.Is(err, unix.EINVAL):
		return layerError{says, errdefs.ErrInvalidArgument}
	case errors.Is(err, fs.ErrPermission):
		return layerError{says + ": does gantryd have all of root's capabilities?", errdefs.ErrFailedPrecondition}
	}
	return layerError{says, errdefs.ErrInternal}
}
