package native

import (
	"fmt"
	"path"
	"strings"
	"unsafe"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/insecure"
)

// nullDevice has the child open the host's /dev/null and verify that it is it. What a container or its
// image calls /dev/null could be anything, and a mask would then be a window (CVE-2025-31133).
func (b *builder) nullDevice() {
	b.say("open /dev/null")
	if insecure.Without(insecure.Null) {
		b.add(unix.SYS_OPENAT, uintptr(b.root), b.str("dev/null"), unix.O_PATH|unix.O_CLOEXEC, 0).into(regNull)
		return
	}
	b.add(unix.SYS_OPENAT, at, b.str("/dev/null"), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0).into(regNull)
	b.verifyNull(regNull)
}

func (b *builder) verifyNull(reg uintptr) {
	st := new(unix.Statx_t)
	addr := hold(&b.program, st)
	b.add(unix.SYS_STATX, reg, b.str(""), unix.AT_EMPTY_PATH, unix.STATX_TYPE, addr).ref(0)
	b.addKind(kindEqual, addr+unsafe.Offsetof(st.Mode), unix.S_IFMT, unix.S_IFCHR, uintptr(unix.ENODEV))
	b.addKind(kindEqual, addr+unsafe.Offsetof(st.Rdev_major), 0xffffffff, 1, uintptr(unix.ENODEV))
	b.addKind(kindEqual, addr+unsafe.Offsetof(st.Rdev_minor), 0xffffffff, 3, uintptr(unix.ENODEV))
}

// mask has the child cover paths: files by /dev/null, directories by one empty read-only tmpfs. What
// is not there needs no cover.
func (b *builder) mask(paths []string) error {
	if len(paths) == 0 {
		return nil
	}
	b.say("make empty directory")
	empty, err := fsContext("tmpfs", "tmpfs", options{
		set:  unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC,
		data: b.labeled("tmpfs", []string{"nr_blocks=1", "nr_inodes=1", "mode=555"}),
	})
	if err != nil {
		return fmt.Errorf("mask: %w", err)
	}
	b.open.add(empty)
	// A mount can be copied once it is in the namespace: it goes over something of the host's tree,
	// which the child is about to drop.
	b.add(unix.SYS_MOVE_MOUNT, uintptr(empty), b.str(""), at, b.str("/dev"), unix.MOVE_MOUNT_F_EMPTY_PATH)
	const tree, from = regFree, regFree + 1
	for _, p := range paths {
		if !path.IsAbs(p) {
			return fmt.Errorf("mask %q: not an absolute path: %w", p, errdefs.ErrInvalidArgument)
		}
		b.say("mask %s", p)
		rel := strings.TrimPrefix(path.Clean(p), "/")
		dir := b.inside(uintptr(b.root), false, rel, unix.O_PATH|unix.O_DIRECTORY, regScratch).ok(unix.ENOTDIR, unix.ENOENT)
		at1 := b.here() - 1
		_ = dir
		b.add(unix.SYS_OPEN_TREE, uintptr(empty), b.str(""), unix.OPEN_TREE_CLONE|openTreeCloexec|unix.AT_EMPTY_PATH).into(from)
		skip := b.here()
		b.addKind(kindGoto)
		b.ops[at1].to = b.here()
		b.inside(uintptr(b.root), false, rel, unix.O_PATH, regScratch).ok(unix.ENOENT, unix.ENOTDIR)
		at2 := b.here() - 1
		b.add(unix.SYS_OPEN_TREE, regNull, b.str(""), unix.OPEN_TREE_CLONE|openTreeCloexec|unix.AT_EMPTY_PATH).ref(0).into(from)
		b.ops[skip].to = b.here()
		b.add(unix.SYS_MOVE_MOUNT, from, b.str(""), regScratch, b.str(""), unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH).ref(0, 2)
		b.add(unix.SYS_CLOSE, from).ref(0)
		b.add(unix.SYS_CLOSE, regScratch).ref(0)
		b.ops[at2].to = b.here()
	}
	_ = tree
	return nil
}

// readOnly has the child cover paths by read-only copies of themselves.
func (b *builder) readOnly(paths []string) error {
	const from = regFree
	set := hold(&b.program, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE})
	for _, p := range paths {
		if !path.IsAbs(p) {
			return fmt.Errorf("make %q read-only: not an absolute path: %w", p, errdefs.ErrInvalidArgument)
		}
		b.say("make %s read-only", p)
		b.inside(uintptr(b.root), false, strings.TrimPrefix(path.Clean(p), "/"), unix.O_PATH, regScratch).ok(unix.ENOENT, unix.ENOTDIR)
		first := b.here() - 1
		b.add(unix.SYS_OPEN_TREE, regScratch, b.str(""), unix.OPEN_TREE_CLONE|openTreeCloexec|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE).ref(0).into(from)
		b.add(unix.SYS_MOUNT_SETATTR, from, b.str(""), unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, set, unsafe.Sizeof(unix.MountAttr{})).ref(0)
		b.add(unix.SYS_MOVE_MOUNT, from, b.str(""), regScratch, b.str(""), unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH).ref(0, 2)
		b.add(unix.SYS_CLOSE, from).ref(0)
		b.add(unix.SYS_CLOSE, regScratch).ref(0)
		b.ops[first].to = b.here()
	}
	return nil
}

// sysctl has the child write sysctls through a procfs that it has mounted itself, by descriptor: what
// is mounted on /proc by then could be something else, and a value would be written to what an
// attacker chose (CVE-2025-52881).
func (b *builder) sysctl(values map[string]string) {
	if len(values) == 0 {
		return
	}
	if !b.proc {
		b.say("mount procfs for sysctls")
		b.newMount("proc", options{set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC}, regProc)
	}
	for _, name := range sorted(values) {
		b.say("set sysctl %s", name)
		file := "sys/" + strings.ReplaceAll(name, ".", "/")
		if insecure.Without(insecure.Procfs) {
			b.add(unix.SYS_OPENAT, uintptr(b.root), b.str("proc/"+file), unix.O_WRONLY|unix.O_CLOEXEC, 0).into(regScratch)
		} else {
			how := &unix.OpenHow{Flags: unix.O_WRONLY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
			b.add(unix.SYS_OPENAT2, regProc, b.str(file), hold(&b.program, how), unsafe.Sizeof(*how)).ref(0).into(regScratch)
		}
		v := []byte(values[name])
		b.add(unix.SYS_WRITE, regScratch, b.bytes(v), uintptr(len(v))).ref(0)
		b.add(unix.SYS_CLOSE, regScratch).ref(0)
	}
}
