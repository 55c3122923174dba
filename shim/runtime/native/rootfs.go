package native

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strings"
	"sync/atomic"
	"unsafe"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/insecure"
	"github.com/gantryd/gantry/shim/runtime"
)

// rootfs makes the root filesystem, detached. It stays open as long as the container: exec reads
// /etc/passwd through it, and the last close of it, which writes back an overlay, is Delete's.
func (b *builder) rootfs(cfg *runtime.Config) (int, error) {
	var err error
	if len(cfg.Rootfs) == 0 {
		dir := cfg.Spec.Root.Path
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(cfg.Bundle, dir)
		}
		b.root, _, err = bindFrom(dir, options{bind: true, rbind: true})
		if err != nil {
			return -1, fmt.Errorf("root filesystem: %w", err)
		}
		b.layers = []layer{{"/", b.root}}
		return b.root, nil
	}
	m := cfg.Rootfs[0]
	if m.Target != "" && m.Target != "/" {
		return -1, fmt.Errorf("root filesystem: its first mount is at %s, not at the root: %w", m.Target, errdefs.ErrInvalidArgument)
	}
	if b.root, err = b.detached(m); err != nil {
		return -1, fmt.Errorf("mount root filesystem (%s): %w", m.Type, err)
	}
	b.layers = []layer{{"/", b.root}}
	return b.root, nil
}

// rest mounts what lies below the root filesystem and belongs to it.
func (b *builder) rest(ms []runtime.Mount) error {
	for _, m := range ms {
		if m.Target == "" || m.Target == "/" {
			return fmt.Errorf("root filesystem: two mounts at the root: %w", errdefs.ErrInvalidArgument)
		}
		if err := b.mount(specsMount(m)); err != nil {
			return fmt.Errorf("root filesystem: mount %s: %w", m.Target, err)
		}
	}
	return nil
}

// detached is a mount of m that is in no namespace.
func (b *builder) detached(m runtime.Mount) (int, error) {
	o, err := parseOptions(m.Options)
	if err != nil {
		return -1, err
	}
	if o.mapped && b.ids == nil {
		return -1, fmt.Errorf("option idmap: the container has no user namespace: %w", errdefs.ErrInvalidArgument)
	}
	if m.Type == "overlay" && !o.bind {
		o.data = b.labeled(m.Type, o.data)
	}
	if o.mapped && m.Type == "overlay" && !o.bind {
		return overlayMapped(m.Source, o, b.ids)
	}
	fd, err := plainRoot(m, o)
	if err == nil && o.mapped {
		if err = mapMount(fd, o, b.ids); err != nil {
			_ = unix.Close(fd)
		}
	}
	return fd, err
}

func plainRoot(m runtime.Mount, o options) (int, error) {
	switch {
	case m.Type == "bind" || o.bind:
		if len(o.data) > 0 {
			return -1, fmt.Errorf("option %q is not one of a bind mount: %w", o.data[0], errdefs.ErrInvalidArgument)
		}
		fd, dir, err := bindFrom(m.Source, o)
		if err == nil && !dir {
			_ = unix.Close(fd)
			err = fmt.Errorf("%s is not a directory: %w", m.Source, errdefs.ErrInvalidArgument)
		}
		return fd, err
	case m.Type == "overlay":
		return overlay(m.Source, o)
	}
	return fsContext(m.Type, m.Source, o)
}

// oldOverlay is set once the kernel has shown that its overlay does not take layers one by one
// (before 6.7), or its options by fsconfig at all in more than 256 bytes (before 6.5).
var oldOverlay atomic.Bool

// overlay mounts layers one over the other. In the options they are a colon-separated list, which a
// kernel takes by fsconfig(2) only up to 256 bytes: so each is added by itself where that is known,
// else the whole goes through mount(2).
func overlay(source string, o options) (int, error) {
	if !oldOverlay.Load() {
		fd, err := fsContext("overlay", source, splitLower(o))
		if err == nil || !errors.Is(err, unix.EINVAL) {
			return fd, err
		}
		if old, oerr := overlayByPath(source, o); oerr == nil {
			oldOverlay.Store(true)
			return old, nil
		}
		return -1, err
	}
	return overlayByPath(source, o)
}

func splitLower(o options) options {
	var data []string
	for _, d := range o.data {
		list, ok := strings.CutPrefix(d, "lowerdir=")
		if !ok || strings.Contains(list, "::") || strings.Contains(list, `\`) {
			data = append(data, d)
			continue
		}
		for _, dir := range strings.Split(list, ":") {
			data = append(data, "lowerdir+="+dir)
		}
	}
	o.data = data
	return o
}

// overlayByPath uses mount(2) in a mount namespace of a thread's own, takes a copy out, and lets the
// thread go, and the namespace with it.
func overlayByPath(source string, o options) (fd int, err error) {
	onThread(func() { fd, err = overlayHere(source, o) })
	return fd, err
}

// onThread runs fn on a thread that ends with it. That is never the process's first: it could not end,
// and its namespaces are what /proc/self shows as the process's.
func onThread(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		goruntime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			defer goruntime.UnlockOSThread()
			onThread(fn) // on another, as long as this one is held
			return
		}
		fn() // still locked at its end: the thread goes
	}()
	<-done
}

// ownMounts gives this thread, which ends soon, a mount namespace of its own.
func ownMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare mount namespace: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	return nil
}

func overlayHere(source string, o options) (int, error) {
	if err := ownMounts(); err != nil {
		return -1, err
	}
	data := joined(o.data)
	if dir := commonDir(o.data); len(data) >= os.Getpagesize() && dir != "" {
		if err := unix.Chdir(dir); err != nil {
			return -1, err
		}
		data = strings.ReplaceAll(strings.ReplaceAll(data, ":"+dir+"/", ":"), "="+dir+"/", "=")
	}
	if len(data) >= os.Getpagesize() {
		return -1, fmt.Errorf("the names of its layers are %d bytes long, and this kernel takes %d: %w", len(data), os.Getpagesize()-1, errdefs.ErrInvalidArgument)
	}
	const here = "/proc" // any directory: nobody else sees this namespace
	if err := unix.Mount(source, here, "overlay", 0, data); err != nil {
		return -1, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, here, unix.OPEN_TREE_CLONE|openTreeCloexec)
	if err != nil {
		return -1, err
	}
	if err := adjust(fd, options{set: o.set, clear: o.clear}); err != nil {
		_ = unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// joined is data as mount(2) has it, where a label, which has commas, is quoted.
func joined(data []string) string {
	out := slices.Clone(data)
	for i, d := range out {
		if key, value, ok := strings.Cut(d, "="); ok && strings.HasSuffix(key, "context") && !strings.HasPrefix(value, `"`) {
			out[i] = key + `="` + value + `"`
		}
	}
	return strings.Join(out, ",")
}

// commonDir is the directory that all layers of an overlay lie below.
func commonDir(data []string) string {
	var all []string
	for _, d := range data {
		key, value, _ := strings.Cut(d, "=")
		if key == "lowerdir" || key == "upperdir" || key == "workdir" {
			all = append(all, strings.Split(value, ":")...)
		}
	}
	if len(all) == 0 {
		return ""
	}
	dir := filepath.Dir(all[0])
	for _, p := range all {
		for dir != "/" && !strings.HasPrefix(p, dir+"/") {
			dir = filepath.Dir(dir)
		}
	}
	if dir == "/" {
		return ""
	}
	return dir
}

func specsMount(m runtime.Mount) specs.Mount {
	return specs.Mount{Destination: m.Target, Type: m.Type, Source: m.Source, Options: m.Options}
}

// rootPropagation are the words of config.json for the propagation of the root mount.
var rootPropagation = map[string]uint64{
	"": 0, "private": 0, "rprivate": 0, "shared": unix.MS_SHARED, "rshared": unix.MS_SHARED,
	"slave": unix.MS_SLAVE, "rslave": unix.MS_SLAVE, "unbindable": unix.MS_UNBINDABLE, "runbindable": unix.MS_UNBINDABLE,
}

// enterRoot has the child mount the root filesystem over its copy of the host's.
func (b *builder) enterRoot() {
	b.say("make mounts private")
	b.add(unix.SYS_MOUNT, 0, b.str("/"), 0, unix.MS_SLAVE|unix.MS_REC, 0)
	b.say("open host's root")
	b.add(unix.SYS_OPENAT, at, b.str("/"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0).into(regRoot)
	b.say("mount root filesystem")
	if b.stage != "" {
		b.add(unix.SYS_OPENAT, at, b.str(b.stage), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0).into(regScratch)
		b.add(unix.SYS_MOVE_MOUNT, uintptr(b.root), b.str(""), regScratch, b.str(""), unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH).ref(2)
		b.add(unix.SYS_CLOSE, regScratch).ref(0)
		return
	}
	b.add(unix.SYS_MOVE_MOUNT, uintptr(b.root), b.str(""), regRoot, b.str(""), unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH).ref(2)
}

// pivot has the child make it the only root there is.
func (b *builder) pivot(propagation uint64) {
	dot := b.str(".")
	b.say("pivot into root filesystem")
	b.add(unix.SYS_FCHDIR, uintptr(b.root))
	b.add(unix.SYS_PIVOT_ROOT, dot, dot)
	b.add(unix.SYS_FCHDIR, regRoot).ref(0)
	if !insecure.Without(insecure.OldRoot) {
		b.add(unix.SYS_UMOUNT2, dot, unix.MNT_DETACH)
	}
	b.add(unix.SYS_CHDIR, b.str("/"))
	if propagation != 0 {
		b.say("set propagation of root filesystem")
		b.add(unix.SYS_MOUNT_SETATTR, uintptr(b.root), b.str(""), unix.AT_EMPTY_PATH,
			hold(&b.program, &unix.MountAttr{Propagation: propagation}), unsafe.Sizeof(unix.MountAttr{}))
	}
}
