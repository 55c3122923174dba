package unpack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/insecure"
)

// keep are the capabilities that unpacking takes: to give files to anybody, with any mode, in directories of anybody
// (CHOWN, DAC_OVERRIDE, FOWNER, FSETID), to make devices (MKNOD), to give files capabilities (SETFCAP), and to mount and to set
// trusted.* attributes (SYS_ADMIN; the seccomp filter takes back most of what that one allows).
var keep = []uintptr{
	unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID,
	unix.CAP_MKNOD, unix.CAP_SETFCAP, unix.CAP_SYS_ADMIN,
}

// renounce takes from the calling thread, and so from the children it starts, the capabilities that are not to be kept, and the way to get
// any back. It is done before exec, since afterwards there are several threads and each would have to do it.
func renounce() error {
	for c := uintptr(0); c <= 63; c++ {
		if slices.Contains(keep, c) {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) { // the kernel knows no more of them
			break
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", c, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}

// base is where the layer's filesystem is mounted before it becomes the root. Any directory that every machine has would do; what it hides is not
// needed any more.
const base = "/proc"

// confine makes the mounts the whole world of this process.
func confine(mounts []Mount) error {
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0) // rather this than a container
	for r, v := range map[int]uint64{unix.RLIMIT_CORE: 0, unix.RLIMIT_MSGQUEUE: 0, unix.RLIMIT_MEMLOCK: 0} {
		if err := unix.Setrlimit(r, &unix.Rlimit{Cur: v, Max: v}); err != nil {
			return fmt.Errorf("set limit %d: %w", r, err)
		}
	}
	unix.Umask(0)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for _, m := range mounts {
		if err := mount(m, filepath.Join(base, m.Target)); err != nil {
			return fmt.Errorf("mount %s %s for the layer: %w", m.Type, m.Source, err)
		}
	}
	if insecure.Without(insecure.Cell) {
		return unix.Chdir(base)
	}
	if err := enter(base); err != nil {
		return err
	}
	return lock()
}

// enter makes dir the root and lets go of everything else.
func enter(dir string) error {
	if err := unix.Chdir(dir); err != nil {
		return fmt.Errorf("enter the layer: %w", err)
	}
	err := unix.PivotRoot(".", ".")
	if errors.Is(err, unix.EINVAL) {
		// The root is the initial ramfs, which cannot be put away. What stays below is hidden, and
		// the filter leaves no call that reaches it.
		if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move the layer to the root: %w", err)
		}
		if err := unix.Chroot("."); err != nil {
			return fmt.Errorf("make the layer the root: %w", err)
		}
		return unix.Chdir("/")
	}
	if err != nil {
		return fmt.Errorf("make the layer the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the old root: %w", err)
	}
	return unix.Chdir("/")
}

// harmless are the flags of every mount in here: nothing in a layer is for using, yet.
const harmless = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

func mount(m Mount, target string) error {
	var data []string
	flags := uintptr(0)
	for _, o := range m.Options {
		switch o {
		case "rw", "":
		case "ro":
			return fmt.Errorf("it is read-only: %w", errdefs.ErrFailedPrecondition)
		case "bind":
			flags |= unix.MS_BIND
		case "rbind":
			flags |= unix.MS_BIND | unix.MS_REC
		case "nosuid", "nodev", "noexec", "noatime", "relatime":
			// harmless has them, or nobody reads in here
		default:
			data = append(data, o)
		}
	}
	if m.Type == "bind" {
		flags |= unix.MS_BIND
	}
	if flags&unix.MS_BIND != 0 {
		if err := unix.Mount(m.Source, target, "", flags, ""); err != nil {
			return err
		}
		return unix.Mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|harmless, "")
	}
	all := strings.Join(data, ",")
	if len(all) < os.Getpagesize() {
		return unix.Mount(m.Source, target, m.Type, harmless, all)
	}
	return mountLong(m, target, data)
}

// mountLong is for options that do not fit in the one page of mount(2): overlay with many lower directories. It takes "lowerdir+", of
// Linux 6.5.
func mountLong(m Mount, target string, options []string) error {
	fs, err := unix.Fsopen(m.Type, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fs)
	for _, o := range options {
		k, v, isString := strings.Cut(o, "=")
		values := []string{v}
		if k == "lowerdir" {
			k, values = "lowerdir+", strings.Split(v, ":")
		}
		for _, v := range values {
			if isString {
				err = unix.FsconfigSetString(fs, k, v)
			} else {
				err = unix.FsconfigSetFlag(fs, k)
			}
			if err != nil {
				return fmt.Errorf("option %s: %w", k, err)
			}
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("fsconfig create: %w", err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return fmt.Errorf("fsmount: %w", err)
	}
	defer unix.Close(mnt)
	return unix.MoveMount(mnt, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}
