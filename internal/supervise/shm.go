package supervise

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/bundle"
)

// shareMemory mounts a tmpfs of this many bytes, for the /dev/shm of a container and of those that join
// its IPC namespace. It goes with DropState; a container that has it bound keeps it until it ends.
func shareMemory(dir bundle.Dir, bytes int64) error {
	path := dir.Shm()
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("share memory: %w", err)
	}
	opts := "mode=1777,size=" + strconv.FormatInt(bytes, 10)
	if err := unix.Mount("shm", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, opts); err != nil {
		return fmt.Errorf("share memory: mount %s: %w", path, err)
	}
	if err := unix.Mount("", path, "", unix.MS_PRIVATE, ""); err != nil {
		return errors.Join(fmt.Errorf("share memory: make %s private: %w", path, err), dropShm(dir))
	}
	return nil
}

func dropShm(dir bundle.Dir) error {
	err := unix.Unmount(dir.Shm(), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return fmt.Errorf("unmount %s: %w", dir.Shm(), err)
}

// DropState removes the state directory, with what is mounted in it. Of what is not there it succeeds.
func DropState(dir bundle.Dir) error {
	if err := dropShm(dir); err != nil {
		return err
	}
	return os.RemoveAll(dir.State)
}
