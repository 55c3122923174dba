package plain

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/cgroup"
)

// attributes are the options of mount(8) that are flags of a mount (mount_setattr(2)).
var attributes = map[string]struct{ set, clear uint64 }{
	"ro":            {unix.MOUNT_ATTR_RDONLY, 0},
	"rw":            {0, unix.MOUNT_ATTR_RDONLY},
	"nosuid":        {unix.MOUNT_ATTR_NOSUID, 0},
	"suid":          {0, unix.MOUNT_ATTR_NOSUID},
	"nodev":         {unix.MOUNT_ATTR_NODEV, 0},
	"dev":           {0, unix.MOUNT_ATTR_NODEV},
	"noexec":        {unix.MOUNT_ATTR_NOEXEC, 0},
	"exec":          {0, unix.MOUNT_ATTR_NOEXEC},
	"noatime":       {unix.MOUNT_ATTR_NOATIME, unix.MOUNT_ATTR__ATIME},
	"relatime":      {unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME},
	"strictatime":   {unix.MOUNT_ATTR_STRICTATIME, unix.MOUNT_ATTR__ATIME},
	"atime":         {unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME},
	"nodiratime":    {unix.MOUNT_ATTR_NODIRATIME, 0},
	"diratime":      {0, unix.MOUNT_ATTR_NODIRATIME},
	"nosymfollow":   {unix.MOUNT_ATTR_NOSYMFOLLOW, 0},
	"symfollow":     {0, unix.MOUNT_ATTR_NOSYMFOLLOW},
	"norelatime":    {0, 0},
	"nostrictatime": {0, 0},
	"async":         {0, 0},
	"defaults":      {0, 0},
}

var propagations = map[string]uintptr{
	"private": unix.MS_PRIVATE, "rprivate": unix.MS_PRIVATE | unix.MS_REC,
	"shared": unix.MS_SHARED, "rshared": unix.MS_SHARED | unix.MS_REC,
	"slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE | unix.MS_REC,
	"unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
}

// options are a mount's options, sorted out.
type options struct {
	set, clear  uint64
	recursive   bool // rbind
	propagation uintptr
	data        []string // for the filesystem itself
}

func sortOut(words []string) options {
	var o options
	for _, w := range words {
		if a, ok := attributes[w]; ok {
			o.set = o.set&^a.clear | a.set
			o.clear |= a.clear
			continue
		}
		if p, ok := propagations[w]; ok {
			o.propagation = p
			continue
		}
		switch w {
		case "bind":
		case "rbind":
			o.recursive = true
		default:
			o.data = append(o.data, w)
		}
	}
	return o
}

// tree is a root filesystem under construction, in the mount namespace of the calling thread.
type tree struct {
	root int // O_PATH descriptor of its top
	warn func(string, ...any)
}

const resolveInside = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS

// open opens a path of the container's, whatever links it goes through, inside the root.
func (t *tree) open(p string, flags uint64) (int, error) {
	for {
		fd, err := unix.Openat2(t.root, strings.TrimLeft(p, "/"), &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolveInside})
		if p == "/" || p == "" {
			fd, err = unix.Openat2(t.root, ".", &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolveInside})
		}
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue // a rename raced with the walk
		}
		if err != nil {
			return -1, &os.PathError{Op: "open", Path: p, Err: err}
		}
		return fd, nil
	}
}

// ensure opens p, and makes what is missing: directories, and at the end a directory or a file.
func (t *tree) ensure(p string, dir bool) (int, error) {
	if fd, err := t.open(p, unix.O_PATH); err == nil {
		return fd, nil
	}
	names := strings.Split(strings.Trim(path.Clean("/"+p), "/"), "/")
	at, err := t.open("/", unix.O_PATH)
	if err != nil {
		return -1, err
	}
	for i, name := range names {
		sub := strings.Join(names[:i+1], "/")
		next, err := t.open(sub, unix.O_PATH)
		if errors.Is(err, unix.ENOENT) {
			// What is missing is made in the directory that was opened, never by a path.
			if i < len(names)-1 || dir {
				err = unix.Mkdirat(at, name, 0o755)
			} else {
				var fd int
				if fd, err = unix.Openat(at, name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_WRONLY, 0o644); err == nil {
					_ = unix.Close(fd)
				}
			}
			if err != nil && !errors.Is(err, unix.EEXIST) {
				_ = unix.Close(at)
				return -1, &os.PathError{Op: "make", Path: "/" + sub, Err: err}
			}
			next, err = t.open(sub, unix.O_PATH)
		}
		_ = unix.Close(at)
		if err != nil {
			return -1, err
		}
		at = next
	}
	return at, nil
}

// attach puts a detached mount on p, and closes it.
func (t *tree) attach(mnt int, p string, dir bool) error {
	defer unix.Close(mnt) //nolint:errcheck // it is attached, or an error is told
	fd, err := t.ensure(p, dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // O_PATH
	if err := unix.MoveMount(mnt, "", fd, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "mount at", Path: p, Err: err}
	}
	return nil
}

// filesystem makes a new, detached mount.
func filesystem(kind, source string, o options) (int, error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("filesystem %s: %w", kind, err)
	}
	defer unix.Close(fs) //nolint:errcheck // the mount holds what it needs
	if source != "" {
		if err := unix.FsconfigSetString(fs, "source", source); err != nil {
			return -1, fmt.Errorf("filesystem %s: source %s: %w", kind, source, err)
		}
	}
	for _, d := range o.data {
		key, value, has := strings.Cut(d, "=")
		if has {
			err = unix.FsconfigSetString(fs, key, value)
		} else {
			err = unix.FsconfigSetFlag(fs, key)
		}
		if err != nil {
			return -1, fmt.Errorf("filesystem %s: option %s: %w", kind, d, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("filesystem %s: %w", kind, err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(o.set))
	if err != nil {
		return -1, fmt.Errorf("filesystem %s: %w", kind, err)
	}
	return mnt, nil
}

// overlay makes an overlay mount. Layers are given one by one where the kernel takes them so (6.5
// and newer), which has no limit on the length of all; else in one string.
func overlay(source string, o options) (int, error) {
	var lower []string
	var rest []string
	for _, d := range o.data {
		if v, ok := strings.CutPrefix(d, "lowerdir="); ok {
			lower = strings.Split(v, ":")
		} else {
			rest = append(rest, d)
		}
	}
	one := o
	one.data = slices.Clone(rest)
	for _, l := range lower {
		one.data = append(one.data, "lowerdir+="+l)
	}
	mnt, err := filesystem("overlay", source, one)
	if err == nil || !errors.Is(err, unix.EINVAL) {
		return mnt, err
	}
	all := strings.Join(lower, ":")
	if len(all) < 255 {
		o.data = append(rest, "lowerdir="+all)
		return filesystem("overlay", source, o)
	}
	return overlayByPage(source, append(rest, "lowerdir="+all), o.set)
}

// overlayByPage uses mount(2), whose options may fill a page. The mount point is a directory of ours.
func overlayByPage(source string, data []string, set uint64) (int, error) {
	text := strings.Join(data, ",")
	if len(text) >= os.Getpagesize() {
		return -1, fmt.Errorf("overlay: %d bytes of options, and this kernel takes %d: use an image with fewer layers, or a kernel of 6.5 or newer", len(text), os.Getpagesize()-1)
	}
	dir, err := os.MkdirTemp("", "gantry-overlay")
	if err != nil {
		return -1, err
	}
	defer os.Remove(dir) //nolint:errcheck // it is empty
	if err := unix.Mount(source, dir, "overlay", 0, text); err != nil {
		return -1, fmt.Errorf("filesystem overlay: %w", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH) //nolint:errcheck // the clone lives on
	mnt, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("filesystem overlay: %w", err)
	}
	if set != 0 {
		if err := unix.MountSetattr(mnt, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: set}); err != nil {
			return -1, fmt.Errorf("filesystem overlay: %w", err)
		}
	}
	return mnt, nil
}

// bind clones a mount of the host's, detached.
func bind(source string, o options) (mnt int, dir bool, err error) {
	src, err := unix.Open(source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, false, &os.PathError{Op: "open", Path: source, Err: err}
	}
	defer unix.Close(src) //nolint:errcheck // O_PATH
	return bindAt(src, source, o)
}

func bindAt(src int, source string, o options) (mnt int, dir bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return -1, false, &os.PathError{Op: "stat", Path: source, Err: err}
	}
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	if o.recursive {
		flags |= unix.AT_RECURSIVE
	}
	if mnt, err = unix.OpenTree(src, "", flags); err != nil {
		return -1, false, &os.PathError{Op: "bind", Path: source, Err: err}
	}
	attr := &unix.MountAttr{Attr_set: o.set, Attr_clr: o.clear}
	if o.set != 0 || o.clear != 0 {
		if err := unix.MountSetattr(mnt, "", unix.AT_EMPTY_PATH, attr); err != nil {
			_ = unix.Close(mnt)
			return -1, false, &os.PathError{Op: "bind", Path: source, Err: err}
		}
	}
	return mnt, st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// mount makes one mount of config.json. proc is left to the child, which is in the pid namespace.
func (t *tree) mount(m specs.Mount, g *cgroup.Group) error {
	o := sortOut(m.Options)
	wrap := func(err error) error {
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		return nil
	}
	var mnt int
	var err error
	dir := true
	switch m.Type {
	case "bind", "none", "":
		mnt, dir, err = bind(m.Source, o)
	case "cgroup", "cgroup2":
		return wrap(t.cgroups(m.Destination, o, g))
	case "overlay":
		mnt, err = overlay(m.Source, o)
	case "tmpfs", "devpts", "mqueue", "sysfs":
		mnt, err = filesystem(m.Type, m.Source, o)
	default:
		return wrap(fmt.Errorf("type %s is not supported: %w", m.Type, errdefs.ErrNotImplemented))
	}
	if err != nil {
		return wrap(err)
	}
	if err := t.attach(mnt, m.Destination, dir); err != nil {
		return wrap(err)
	}
	if o.propagation != 0 {
		fd, err := t.open(m.Destination, unix.O_PATH)
		if err != nil {
			return wrap(err)
		}
		defer unix.Close(fd) //nolint:errcheck // O_PATH
		attr := &unix.MountAttr{Propagation: uint64(o.propagation &^ unix.MS_REC)}
		flags := uint(unix.AT_EMPTY_PATH)
		if o.propagation&unix.MS_REC != 0 {
			flags |= unix.AT_RECURSIVE
		}
		return wrap(unix.MountSetattr(fd, "", flags, attr))
	}
	return nil
}

// cgroups shows the container its own group, read-only.
func (t *tree) cgroups(at string, o options, g *cgroup.Group) error {
	binds, links := g.Mounts()
	if source, whole := binds[""]; whole {
		mnt, _, err := bind(source, o)
		if err != nil {
			return err
		}
		return t.attach(mnt, at, true)
	}
	mnt, err := filesystem("tmpfs", "tmpfs", options{set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC, data: []string{"mode=755", "size=64k"}})
	if err != nil {
		return err
	}
	if err := t.attach(mnt, at, true); err != nil {
		return err
	}
	for name, source := range binds {
		mnt, _, err := bind(source, o)
		if err != nil {
			return err
		}
		if err := t.attach(mnt, filepath.Join(at, name), true); err != nil {
			return err
		}
	}
	fd, err := t.open(at, unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // O_PATH
	for name, to := range links {
		if err := unix.Symlinkat(to, fd, name); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: o.set})
}
