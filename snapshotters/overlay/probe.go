package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// initialUserNamespace says whether uids here are the machine's (user_namespaces(7)).
func initialUserNamespace() bool {
	raw, err := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(raw))
	return err != nil || len(f) == 3 && f[0] == "0" && f[1] == "0" && f[2] == "4294967295"
}

// found is what the kernel and the file system of the root can do.
type found struct {
	options  []string
	volatile bool
}

// baseOptions are given with every mount, whatever the kernel was built or booted with:
//
//   - index=off: a directory may be mounted a second time (cp into a container), and copied to another disk.
//   - redirect_dir=nofollow, metacopy=off: what they read from attributes of a layer would let an
//     archive from a stranger point at files of other layers.
//   - userxattr, in a user namespace: it may not write trusted.* attributes. It switches the two above off by itself.
func baseOptions(initial bool) []string {
	if !initial {
		return []string{"userxattr", "index=off"}
	}
	return []string{"index=off", "redirect_dir=nofollow", "metacopy=off"}
}

// probe mounts an overlay in root, attached nowhere, and tries what the driver relies on.
func probe(root string) (_ found, err error) {
	dir, err := os.MkdirTemp(root, "probe-")
	if err != nil {
		return found{}, err
	}
	defer func() { err = errors.Join(err, sweepProbes(root)) }()
	f := found{options: baseOptions(initialUserNamespace())}
	for _, d := range []string{"lower/d", "upper", "work", "upper2", "work2"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return found{}, err
		}
	}
	for _, n := range []string{"a", "d/b"} {
		if err := os.WriteFile(filepath.Join(dir, "lower", n), nil, 0o600); err != nil {
			return found{}, err
		}
	}
	mnt, err := tryMount(dir, "upper", "work", f.options)
	if err != nil {
		return found{}, refuse(root, err)
	}
	err = errors.Join(tryWhiteouts(mnt, dir), unix.Close(mnt))
	if err != nil {
		return found{}, refuse(root, err)
	}
	if mnt, err := tryMount(dir, "upper2", "work2", append(f.options[:len(f.options):len(f.options)], "volatile")); err == nil {
		f.volatile = unix.Close(mnt) == nil
	}
	return f, nil
}

func refuse(root string, err error) error {
	var st unix.Statfs_t
	kind := "its file system"
	if unix.Statfs(root, &st) == nil {
		kind = fmt.Sprintf("its file system (magic %#x)", st.Type)
	}
	return fmt.Errorf("%s in %s cannot carry an overlay: give the driver a directory on ext4, xfs or btrfs, or use the driver native: %w: %w",
		kind, root, err, errdefs.ErrFailedPrecondition)
}

// sweepProbes deletes this probe and those of killed processes.
func sweepProbes(root string) error {
	old, err := filepath.Glob(filepath.Join(root, "probe-*"))
	for _, p := range old {
		err = errors.Join(err, os.RemoveAll(p))
	}
	return err
}

// tryMount makes an overlay mount of dir and returns its descriptor. Paths go by descriptor: a value given to
// fsconfig(2) holds at most 255 bytes.
func tryMount(dir, upper, work string, options []string) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fs)
	for opt, name := range map[string]string{"lowerdir": "lower", "upperdir": upper, "workdir": work} {
		fd, err := unix.Open(filepath.Join(dir, name), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, err
		}
		defer unix.Close(fd)
		if err := unix.FsconfigSetString(fs, opt, fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil {
			return -1, fmt.Errorf("%s: %w%s", opt, err, kernelSays(fs))
		}
	}
	for _, o := range options {
		if k, v, ok := strings.Cut(o, "="); ok {
			err = unix.FsconfigSetString(fs, k, v)
		} else {
			err = unix.FsconfigSetFlag(fs, o)
		}
		if err != nil {
			return -1, fmt.Errorf("option %s: %w%s", o, err, kernelSays(fs))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("mount: %w%s", err, kernelSays(fs))
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("fsmount: %w%s", err, kernelSays(fs))
	}
	return mnt, nil
}

// kernelSays returns the messages the kernel left in a file system context.
func kernelSays(fs int) string {
	var out strings.Builder
	for buf := make([]byte, 1024); ; {
		n, err := unix.Read(fs, buf)
		if err != nil || n <= 0 {
			return out.String()
		}
		out.WriteString(" (" + strings.TrimSpace(string(buf[:n])) + ")")
	}
}

// tryWhiteouts removes things through the mount and looks for what must then be in the upper directory:
// a kernel that lacks a feature of the upper file system mounts all the same, and only warns.
func tryWhiteouts(mnt int, dir string) error {
	if err := unix.Unlinkat(mnt, "a", 0); err != nil {
		return fmt.Errorf("remove a file of a lower directory: %w", err)
	}
	if err := unix.Unlinkat(mnt, "d/b", 0); err != nil {
		return fmt.Errorf("remove a file of a lower directory: %w", err)
	}
	if err := unix.Unlinkat(mnt, "d", unix.AT_REMOVEDIR); err != nil {
		return fmt.Errorf("remove a lower directory: %w", err)
	}
	if err := unix.Mkdirat(mnt, "d", 0o755); err != nil {
		return fmt.Errorf("make a directory in the place of a lower one: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(dir, "upper/a"), &st); err != nil || !isWhiteout(&st) {
		return errors.Join(errors.New("a removed file leaves no whiteout"), err)
	}
	attr := opaque
	if !initialUserNamespace() {
		attr = "user.overlay.opaque"
	}
	var b [1]byte
	if n, err := unix.Lgetxattr(filepath.Join(dir, "upper/d"), attr, b[:]); err != nil || n != 1 || b[0] != 'y' {
		return errors.Join(fmt.Errorf("a replaced directory is not marked by %s", attr), err)
	}
	return tryTypes(filepath.Join(dir, "lower"))
}

// tryTypes looks at the raw entries of a directory: overlayfs needs to know a whiteout without a stat of each.
func tryTypes(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.ReadDirent(fd, buf)
	if err != nil {
		return fmt.Errorf("getdents %s: %w", dir, err)
	}
	// struct linux_dirent64: ino 8, off 8, reclen 2, type 1, name (getdents(2))
	for buf = buf[:n]; len(buf) > 18; buf = buf[binary.NativeEndian.Uint16(buf[16:]):] {
		if buf[18] == unix.DT_UNKNOWN {
			return errors.New("a directory does not tell the types of its entries (xfs: mkfs with ftype=1)")
		}
	}
	return nil
}
