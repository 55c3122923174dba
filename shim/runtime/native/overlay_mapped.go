package native

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// overlayMapped mounts layers that hold the ids of an image as those of a container's user namespace:
// an overlay itself cannot be mapped, so each of its layers is. What the container writes has in the
// upper layer the ids that the container sees.
func overlayMapped(source string, o options, ids *idmap) (fd int, err error) {
	onThread(func() { fd, err = overlayMappedHere(source, o, ids) })
	if err != nil {
		return -1, fmt.Errorf("map ids: %w", err)
	}
	return fd, nil
}

// overlayMappedHere makes the mapped layers in a mount namespace that goes with its thread: older
// kernels take none that is in no namespace. Its names are short, so that mount(2) takes many.
func overlayMappedHere(source string, o options, ids *idmap) (int, error) {
	if err := ownMounts(); err != nil {
		return -1, err
	}
	const here = "/proc" // any directory: nobody else sees this namespace
	ns, err := ids.namespace()
	if err != nil {
		return -1, err
	}
	defer unix.Close(ns) //nolint:errcheck // the mounts hold the maps
	if err := unix.Mount("tmpfs", here, "tmpfs", 0, ""); err != nil {
		return -1, err
	}
	if err := unix.Chdir(here); err != nil {
		return -1, err
	}
	m := mapper{ns: ns}
	data, err := m.layers(o.data)
	if err != nil {
		return -1, err
	}
	if err := unix.Mkdir("all", 0o755); err != nil {
		return -1, err
	}
	// From here on as the container's root: a mapped layer takes files of nobody else.
	if err := ids.become(); err != nil {
		return -1, err
	}
	if err := unix.Mount(source, "all", "overlay", 0, data); err != nil {
		return -1, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, "all", unix.OPEN_TREE_CLONE|openTreeCloexec)
	if err != nil {
		return -1, err
	}
	if err := adjust(fd, options{set: o.set, clear: o.clear}); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// mapper mounts layers with mapped ids at 0, 1, 2, … below the working directory.
type mapper struct {
	ns, n int
}

// layers are the options of an overlay with the layers that m has mounted in place of those named.
func (m *mapper) layers(data []string) (string, error) {
	var out []string
	upper, work := "", ""
	for _, d := range data {
		key, value, _ := strings.Cut(d, "=")
		switch key {
		case "upperdir":
			upper = value
		case "workdir":
			work = value
		case "lowerdir":
			if strings.Contains(value, "::") || strings.Contains(value, `\`) {
				return "", fmt.Errorf("lowerdir %s: data-only layers and escaped names cannot be mapped: %w", value, errdefs.ErrNotImplemented)
			}
			var names []string
			for _, dir := range strings.Split(value, ":") {
				name, err := m.mount(dir)
				if err != nil {
					return "", err
				}
				names = append(names, name)
			}
			out = append(out, "lowerdir="+strings.Join(names, ":"))
		default:
			out = append(out, d)
		}
	}
	if upper == "" {
		return joined(out), nil
	}
	// They must be on one mount.
	top := commonDir([]string{"upperdir=" + upper, "workdir=" + work})
	if top == "" {
		return "", fmt.Errorf("upperdir %s and workdir %s have no directory in common: %w", upper, work, errdefs.ErrInvalidArgument)
	}
	name, err := m.mount(top)
	if err != nil {
		return "", err
	}
	out = append(out, "upperdir="+filepath.Join(name, upper[len(top):]), "workdir="+filepath.Join(name, work[len(top):]))
	return joined(out), nil
}

func (m *mapper) mount(dir string) (string, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|openTreeCloexec)
	if err != nil {
		return "", fmt.Errorf("layer %s: %w", dir, err)
	}
	defer unix.Close(fd) //nolint:errcheck // it is mounted
	if err := setMap(fd, m.ns, false); err != nil {
		return "", fmt.Errorf("layer %s: %w", dir, err)
	}
	name := strconv.Itoa(m.n)
	m.n++
	if err := unix.Mkdir(name, 0o755); err != nil {
		return "", err
	}
	return name, unix.MoveMount(fd, "", unix.AT_FDCWD, name, unix.MOVE_MOUNT_F_EMPTY_PATH)
}
