package native

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/insecure"
)

// resealed is set while a process executes itself, so that it does so once.
const resealed = "GANTRY_RESEALED"

// Seal makes sure that no container can write to the executable of this process, or look into the
// process (CVE-2019-5736): a child of it is inside the container for a moment before it executes
// something else, and its /proc/<pid>/exe is the file that every other shim on the host executes.
//
// It makes the process non-dumpable and, unless the executable is on a read-only mount or in a sealed
// memory file already, executes it again from a read-only mount that nothing else can see. Call it
// first in main; on success it returns in a process that is sealed.
func Seal() error {
	if insecure.Without(insecure.Seal) {
		return nil
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("seal: make process non-dumpable: %w", err)
	}
	if sealed() {
		_ = os.Unsetenv(resealed)
		return nil
	}
	if os.Getenv(resealed) != "" {
		return errors.New("seal: a read-only mount of the executable is not read-only")
	}
	fd, err := readOnlySelf()
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	if err := os.Setenv(resealed, "1"); err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	err = execveat(fd, os.Args, os.Environ())
	return fmt.Errorf("seal: execute again: %w", err)
}

// ReadOnlyMount is a descriptor of the file at path on a read-only mount of its own. Who starts shims
// makes one, once, and executes /proc/self/fd/<n>: then Seal has nothing to do.
func ReadOnlyMount(path string) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|openTreeCloexec)
	if err != nil {
		return -1, &os.PathError{Op: "open_tree", Path: path, Err: err}
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
		_ = unix.Close(fd)
		return -1, &os.PathError{Op: "mount_setattr", Path: path, Err: err}
	}
	return fd, nil
}

func readOnlySelf() (int, error) {
	const self = "/proc/self/exe"
	path, err := os.Readlink(self)
	if err != nil {
		return -1, err
	}
	fd, err := ReadOnlyMount(path)
	if err != nil {
		return -1, err
	}
	var have, want unix.Stat_t
	err = errors.Join(unix.Fstat(fd, &have), unix.Stat(self, &want))
	if err == nil && (have.Dev != want.Dev || have.Ino != want.Ino) {
		err = fmt.Errorf("%s was replaced since this process began: %w", path, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// sealed reports whether no process can open this one's executable for writing.
func sealed() bool {
	const self = "/proc/self/exe"
	if errors.Is(unix.Access(self, unix.W_OK), unix.EROFS) {
		return true
	}
	fd, err := unix.Open(self, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd) //nolint:errcheck // it was only looked at
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	const need = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	return err == nil && seals&need == need
}

func execveat(fd int, argv, env []string) error {
	var p program
	empty := p.str("")
	_, _, errno := unix.Syscall6(unix.SYS_EXECVEAT, uintptr(fd), empty, p.strs(argv), p.strs(env), unix.AT_EMPTY_PATH, 0)
	return errno
}
