package snapshottest

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/plugins"
)

// mount mounts what a driver answered, attached nowhere: it belongs to a descriptor, so that a test that dies leaves
// nothing behind. dir leads into it until done is called.
func mount(ms []plugins.Mount) (dir string, done func() error, err error) {
	if len(ms) != 1 {
		return "", nil, fmt.Errorf("%d mounts: the suite can make one", len(ms))
	}
	var fd int
	switch m := ms[0]; m.Type {
	case "bind":
		fd, err = bind(m)
	case "overlay":
		fd, err = overlayMount(m)
	default:
		err = fmt.Errorf("a mount of type %q", m.Type)
	}
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d", fd), func() error { return unix.Close(fd) }, nil
}

func bind(m plugins.Mount) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, m.Source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open_tree %s: %w", m.Source, err)
	}
	for _, o := range m.Options {
		switch o {
		case "bind", "rbind", "rw":
		case "ro":
			if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
				return -1, errors.Join(fmt.Errorf("make %s read-only: %w", m.Source, err), unix.Close(fd))
			}
		default:
			return -1, errors.Join(fmt.Errorf("a bind mount with option %q", o), unix.Close(fd))
		}
	}
	return fd, nil
}

func overlayMount(m plugins.Mount) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fs)
	attr := 0
	for _, o := range m.Options {
		k, v, valued := strings.Cut(o, "=")
		switch {
		case o == "ro":
			attr = unix.MOUNT_ATTR_RDONLY
		case o == "rw":
		case k == "lowerdir":
			err = lower(fs, v)
		case valued:
			err = unix.FsconfigSetString(fs, k, v)
		default:
			err = unix.FsconfigSetFlag(fs, k)
		}
		if err != nil {
			return -1, fmt.Errorf("option %.100s: %w%s", o, err, words(fs))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("mount: %w%s", err, words(fs))
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
}

// lower gives the lower directories one by one where the kernel takes them so (Linux 6.8): a value
// of fsconfig(2) has at most 255 bytes.
func lower(fs int, dirs string) error {
	for d := range strings.SplitSeq(dirs, ":") {
		err := unix.FsconfigSetString(fs, "lowerdir+", d)
		if errors.Is(err, unix.EINVAL) && len(dirs) < 256 {
			return unix.FsconfigSetString(fs, "lowerdir", dirs)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// words returns what the kernel has to say.
func words(fs int) string {
	var out strings.Builder
	for b := make([]byte, 1024); ; {
		n, err := unix.Read(fs, b)
		if err != nil || n <= 0 {
			return out.String()
		}
		out.WriteString("; " + strings.TrimSpace(string(b[:n])))
	}
}
