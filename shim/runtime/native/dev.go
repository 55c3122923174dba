package native

import (
	"errors"
	"fmt"
	"path"
	"strconv"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/insecure"
)

// device is a node that every container has (OCI runtime specification, "Default Devices").
type device struct {
	name         string
	major, minor uint32
}

var devices = []device{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}}

var devLinks = [][2]string{{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"}}

// populateDev fills /dev, unless it is a directory that somebody bound.
func (b *builder) populateDev(bound bool) error {
	if bound {
		return nil
	}
	dir, err := b.make("/dev", true)
	if err != nil {
		return fmt.Errorf("make /dev: %w", err)
	}
	defer dir.close()
	for _, d := range devices {
		if err := mknod(dir.fd, d.name, unix.S_IFCHR|0o666, unix.Mkdev(d.major, d.minor), 0, 0); err != nil {
			return fmt.Errorf("make /dev/%s: %w", d.name, err)
		}
	}
	for _, l := range devLinks {
		if err := unix.Symlinkat(l[0], dir.fd, l[1]); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("make /dev/%s: %w", l[1], err)
		}
	}
	return nil
}

func mknod(dir int, name string, mode uint32, dev uint64, uid, gid uint32) error {
	err := unix.Mknodat(dir, name, mode, int(dev))
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == mode&unix.S_IFMT && st.Rdev == dev {
			return nil
		}
		return fmt.Errorf("the image has something else in its place: %w", errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return err
	}
	if uid != 0 || gid != 0 {
		if err := unix.Fchownat(dir, name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	return setMode(dir, name, mode&0o7777) // mknod has taken the umask away
}

// setMode sets the mode of a node that was just made. The directory may be one that somebody else
// writes to, who has put a link to a file of the host's in its place.
func setMode(dir int, name string, mode uint32) error {
	if insecure.Without(insecure.Node) {
		return unix.Fchmodat(dir, name, mode, 0)
	}
	err := unix.Fchmodat(dir, name, mode, unix.AT_SYMLINK_NOFOLLOW)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	// Before Linux 6.6 there is no such call, and there never is one for a link.
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	p, err := look(name, fd)
	if err != nil {
		return err
	}
	defer p.close()
	if p.mode&unix.S_IFMT == unix.S_IFLNK {
		return unix.ELOOP
	}
	return unix.Chmod("/proc/self/fd/"+strconv.Itoa(p.fd), mode)
}

var deviceTypes = map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}

// device makes one node of config.json's linux.devices.
func (b *builder) device(d specs.LinuxDevice) error {
	kind, ok := deviceTypes[d.Type]
	if !ok {
		return fmt.Errorf("type %q: c, u, b and p are known: %w", d.Type, errdefs.ErrInvalidArgument)
	}
	dir, err := b.make(path.Dir(path.Clean("/"+d.Path)), true)
	if err != nil {
		return err
	}
	defer dir.close()
	if dir.unborn {
		return fmt.Errorf("no node can be made there: %w", errdefs.ErrInvalidArgument)
	}
	mode, uid, gid := uint32(0o666), uint32(0), uint32(0)
	if d.FileMode != nil {
		mode = uint32(*d.FileMode) & 0o7777
	}
	if d.UID != nil {
		uid = *d.UID
	}
	if d.GID != nil {
		gid = *d.GID
	}
	if uid, err = b.ids.uid(uid); err != nil {
		return err
	}
	if gid, err = b.ids.gid(gid); err != nil {
		return err
	}
	return mknod(dir.fd, path.Base(d.Path), kind|mode, unix.Mkdev(uint32(d.Major), uint32(d.Minor)), uid, gid)
}
