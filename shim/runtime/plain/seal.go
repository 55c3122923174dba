package plain

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Seal puts the shim's own executable out of a container's reach (CVE-2019-5736): a process that
// could open /proc/<pid>/exe of one that is about to enter its container could write to the host's
// program through it. The shim therefore runs from a read-only mount of its file that is attached nowhere, and
// is not dumpable, so that nobody without the host's own privileges can look into it. Where the
// executable is not read-only yet, Seal executes it again from such a mount and does not return.
func Seal() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("seal executable: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs("/proc/self/exe", &st); err != nil {
		return fmt.Errorf("seal executable: %w", err)
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return nil
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/proc/self/exe", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("seal executable: %w", err)
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return fmt.Errorf("seal executable: %w", err)
	}
	err = unix.Exec(fmt.Sprintf("/proc/self/fd/%d", fd), os.Args, os.Environ())
	return fmt.Errorf("seal executable: execute it again: %w", err)
}
