// Package netns pins network namespaces: each is a file on which the namespace is bind
// mounted, so that it lives without a process and can be found by name.
//
// The files are the truth; a Dir remembers nothing. The directory is made a mount of its
// own, private, so that a pin costs nothing in other mount namespaces; those that were
// copied before (by unshare(2) of a mount namespace) lose their copies when the file is
// unlinked, so that a namespace goes when it is removed here and its last process ends.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/fault"
)

// nsfsMagic is what statfs(2) says of a namespace (linux/magic.h, NSFS_MAGIC).
const nsfsMagic = 0x6e736673

// self is the calling thread's own network namespace.
const self = "/proc/thread-self/ns/net"

// Dir is a directory of pinned network namespaces.
type Dir struct {
	path string

	mu    sync.Mutex
	ready bool // path is a private mount
}

// New returns the directory of pins at path, which is made with the first pin. Its parent exists by then.
func New(path string) *Dir { return &Dir{path: path} }

// Path is where the namespace id is, or would be, pinned.
func (d *Dir) Path(id string) string { return filepath.Join(d.path, id) }

// Pin makes a network namespace, with its loopback up, and pins it under id. What is pinned already stays.
func (d *Dir) Pin(id string) (string, error) {
	if err := valid(id); err != nil {
		return "", fmt.Errorf("pin network namespace %q: %w", id, err)
	}
	if err := d.prepare(); err != nil {
		return "", fmt.Errorf("pin network namespace %s: %w", id, err)
	}
	path := d.Path(id)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444) //nolint:gosec // not a secret; a mount point
	switch {
	case err == nil:
		_ = f.Close()
	case !errors.Is(err, fs.ErrExist):
		return "", fmt.Errorf("pin network namespace %s: %w", id, err)
	case pinned(path):
		return path, nil
	}
	fault.Point("netns.pin.file")
	if err := onThread(func() error { return bindNew(path) }); err != nil {
		return "", errors.Join(fmt.Errorf("pin network namespace %s: %w", id, err), d.Remove(id))
	}
	return path, nil
}

// bindNew makes a namespace on this thread and binds it on path.
func bindNew(path string) error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	if err := unix.Mount(self, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", path, err)
	}
	return nil
}

// loopbackUp brings up the loopback of this thread's namespace (netdevice(7)).
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // nothing was sent
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
}

// onThread runs fn on a thread that returns to the network namespace it came from. If
// it cannot, the thread ends with the goroutine that was locked to it.
func onThread(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open(self, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			done <- fmt.Errorf("open %s: %w", self, err)
			return
		}
		defer unix.Close(home) //nolint:errcheck // a namespace descriptor
		err = fn()
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// Find says where id is pinned.
func (d *Dir) Find(id string) (string, error) {
	if err := valid(id); err != nil {
		return "", fmt.Errorf("find network namespace %q: %w", id, err)
	}
	if path := d.Path(id); pinned(path) {
		return path, nil
	}
	return "", fmt.Errorf("network namespace %s is not there: %w", id, errdefs.ErrNotFound)
}

// Remove lets go of id. The namespace, and every link in it, ends once its last process
// does; the kernel takes its time over that, and nobody waits for it. Removing what is not there succeeds.
func (d *Dir) Remove(id string) error {
	if err := valid(id); err != nil {
		return fmt.Errorf("remove network namespace %q: %w", id, err)
	}
	path := d.Path(id)
	// Twice over: a crash between two Pins could have bound one on the other.
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	fault.Point("netns.remove.unmounted")
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", id, err)
	}
	return nil
}

// All ranges over the ids of every pin, also those of which only the file is left.
func (d *Dir) All() iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		entries, err := os.ReadDir(d.path)
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if err != nil {
			yield("", fmt.Errorf("list network namespaces: %w", err))
			return
		}
		for _, e := range entries {
			if !yield(e.Name(), nil) {
				return
			}
		}
	}
}

// Close takes the directory away if it holds no pin; otherwise it does nothing, and the pins stay.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if entries, err := os.ReadDir(d.path); errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) > 0 {
		return nil
	}
	if err := unix.Unmount(d.path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("unmount %s: %w", d.path, err)
	}
	d.ready = false
	if err := os.Remove(d.path); err != nil {
		return fmt.Errorf("remove the directory of network namespaces: %w", err)
	}
	return nil
}

// prepare makes the directory a private mount, once.
func (d *Dir) prepare() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.ready {
		return nil
	}
	if err := os.Mkdir(d.path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) { //nolint:gosec // holds no secret
		return err
	}
	mounted, err := isMount(d.path)
	if err != nil {
		return err
	}
	if !mounted {
		if err := unix.Mount(d.path, d.path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s on itself: %w", d.path, err)
		}
	}
	if err := unix.Mount("", d.path, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", d.path, err)
	}
	d.ready = true
	return nil
}

func isMount(path string) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &st); err != nil {
		return false, fmt.Errorf("statx %s: %w", path, err)
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, fmt.Errorf("statx %s: the kernel does not say what is a mount (Linux 5.8 does): %w", path, errdefs.ErrFailedPrecondition)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

func pinned(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == nsfsMagic
}

func valid(id string) error {
	if id == "" || len(id) > 128 || strings.ContainsAny(id, "/\x00") || id[0] == '.' {
		return fmt.Errorf("want 1 to 128 characters without '/', not beginning with '.': %w", errdefs.ErrInvalidArgument)
	}
	return nil
}
