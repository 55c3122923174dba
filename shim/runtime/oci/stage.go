package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/cgroup"
	"github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/runtime/native"
)

// stage gives the calling thread a mount namespace of its own, fit for the program, and does fn in it.
func stage(fn func() error) error {
	h, err := cgroup.Detect()
	if err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare mount namespace: %w", err)
	}
	if h.Mode == cgroup.Hybrid {
		// What is unmounted here would be unmounted on the host if the mount that it lies in were shared.
		if err := private(filepath.Dir(h.V2)); err != nil {
			return fmt.Errorf("hide %s: %w", h.V2, err)
		}
		if err := unix.Unmount(h.V2, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("hide %s: %w", h.V2, err)
		}
	}
	if fn == nil {
		return nil
	}
	return fn()
}

// private keeps what is done to the mount that dir lies in from other namespaces. All other mounts stay
// as they are: volumes may be shared with the host.
func private(dir string) error {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	for {
		err := unix.Mount("", dir, "", unix.MS_PRIVATE, "")
		if !errors.Is(err, unix.EINVAL) || dir == "/" {
			return err // EINVAL: no mount begins here
		}
		dir = filepath.Dir(dir)
	}
}

// mountRoot mounts a root filesystem at dir, which must be one of this call's namespace.
func mountRoot(dir string, ms []runtime.Mount) error {
	if err := private(dir); err != nil {
		return fmt.Errorf("root filesystem: %w", err)
	}
	for i, m := range ms {
		at := m.Target
		if at == "/" {
			at = ""
		}
		if (i == 0) != (at == "") {
			return fmt.Errorf("root filesystem: mount %d is at %q; the first, and no other, is at the root: %w", i, m.Target, errdefs.ErrInvalidArgument)
		}
		if err := mountAt(dir, at, m); err != nil {
			return fmt.Errorf("root filesystem: mount %s at /%s: %w", m.Type, at, err)
		}
	}
	return nil
}

// mountAt mounts m at a path of what is mounted at dir, as it means inside.
func mountAt(dir, at string, m runtime.Mount) error {
	fd, err := native.Detached(m)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // what is mounted stays
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root) //nolint:errcheck // O_PATH
	to := root
	if at != "" {
		if to, err = native.OpenIn(root, at, unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
			return &os.PathError{Op: "open", Path: at, Err: err}
		}
		defer unix.Close(to) //nolint:errcheck // O_PATH
	}
	return unix.MoveMount(fd, "", to, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}
