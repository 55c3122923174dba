// Package hostdev looks devices of the host up: nodes that a container is to have, and the numbers of
// block devices whose traffic is bounded.
//
// It reads and makes nothing. Errors name the path; of what is not there, or is no device, the class
// is InvalidArgument: whoever asked can ask for something else.
package hostdev

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxNodes bounds a directory of devices: a host has some hundreds.
const maxNodes = 4096

// Find is the device at path on the host, or all those below it if it is a directory, as nodes at and
// below to in the container. A link is followed first.
func Find(path, to string) ([]specs.LinuxDevice, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil, missing(path, err)
	}
	info, err := os.Stat(real)
	if err != nil {
		return nil, missing(path, err)
	}
	if !info.IsDir() {
		d, ok, err := node(real, to)
		if err != nil {
			return nil, missing(path, err)
		}
		if !ok {
			return nil, fmt.Errorf("device %s: it is no device; mount a file with --volume: %w", path, errdefs.ErrInvalidArgument)
		}
		return []specs.LinuxDevice{d}, nil
	}
	all, err := walk(real, to, func(string) bool { return false })
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("device %s: no device is in this directory: %w", path, errdefs.ErrInvalidArgument)
	}
	return all, err
}

func missing(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("device %s: this host has no such device: %w", path, errdefs.ErrInvalidArgument)
	}
	return fmt.Errorf("device %s: %w", path, err)
}

// others are directories in /dev that hold no devices, or those of one terminal or container only.
var others = map[string]bool{"pts": true, "shm": true, "fd": true, "mqueue": true, "hugepages": true, ".lxc": true, ".lxd-mounts": true, ".udev": true}

// own are nodes that every container has one of its own of.
var own = map[string]bool{"console": true, "ptmx": true}

// All is every device of the host that a privileged container has.
func All() ([]specs.LinuxDevice, error) {
	return walk("/dev", "/dev", func(rel string) bool { return others[rel] || own[rel] })
}

func walk(dir, to string, skip func(rel string) bool) ([]specs.LinuxDevice, error) {
	var all []specs.LinuxDevice
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // unplugged meanwhile
		}
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(strings.TrimPrefix(path, dir), "/")
		switch {
		case rel != "" && skip(rel) && e.IsDir():
			return fs.SkipDir
		case skip(rel) || e.Type()&fs.ModeDevice == 0:
			return nil
		}
		d, ok, err := node(path, filepath.Join(to, rel))
		if errors.Is(err, fs.ErrNotExist) || err == nil && !ok {
			return nil
		}
		if err != nil {
			return err
		}
		if all = append(all, d); len(all) > maxNodes {
			return fmt.Errorf("more than %d devices: %w", maxNodes, errdefs.ErrInvalidArgument)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("devices of %s: %w", dir, err)
	}
	return all, nil
}

// node describes a device node, with its owner and mode. ok is false for what is none.
func node(path, to string) (_ specs.LinuxDevice, ok bool, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return specs.LinuxDevice{}, false, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	d := specs.LinuxDevice{Path: to, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)), UID: &st.Uid, GID: &st.Gid}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return d, false, nil
	}
	mode := os.FileMode(st.Mode & 0o777)
	d.FileMode = &mode
	return d, true, nil
}

// Block is the number of the block device at path.
func Block(path string) (major, minor int64, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, 0, missing(path, &fs.PathError{Op: "stat", Path: path, Err: err})
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return 0, 0, fmt.Errorf("device %s: it is no block device; /dev/sda is an example: %w", path, errdefs.ErrInvalidArgument)
	}
	return int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev)), nil
}
