package native

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// idmap is whose ids a container's are (user_namespaces(7)); nil: the host's own.
type idmap struct {
	uids, gids []specs.LinuxIDMapping
}

// maxExtents is how many lines a map may have (UID_GID_MAP_MAX_EXTENTS, linux/user_namespace.h).
const maxExtents = 340

// newIDMap checks what config.json says at field.
func newIDMap(field string, uids, gids []specs.LinuxIDMapping) (*idmap, error) {
	if len(uids) == 0 || len(gids) == 0 {
		return nil, invalid("%s.uidMappings and %[1]s.gidMappings belong together, and one is missing", field)
	}
	for name, list := range map[string][]specs.LinuxIDMapping{"uidMappings": uids, "gidMappings": gids} {
		if len(list) > maxExtents {
			return nil, invalid("%s.%s: %d lines, and the kernel takes %d", field, name, len(list), maxExtents)
		}
		for i, m := range list {
			if m.Size == 0 || uint64(m.ContainerID)+uint64(m.Size) > math.MaxUint32 || uint64(m.HostID)+uint64(m.Size) > math.MaxUint32 {
				return nil, invalid("%s.%s[%d]: %d ids from %d on, as %d: not a range of ids", field, name, i, m.Size, m.ContainerID, m.HostID)
			}
		}
	}
	return &idmap{uids, gids}, nil
}

func host(list []specs.LinuxIDMapping, id uint32) (uint32, bool) {
	for _, m := range list {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + (id - m.ContainerID), true
		}
	}
	return 0, false
}

// uid and gid are what the host calls an id of the container's.
func (m *idmap) uid(id uint32) (uint32, error) { return m.of("user", id) }
func (m *idmap) gid(id uint32) (uint32, error) { return m.of("group", id) }

func (m *idmap) of(kind string, id uint32) (uint32, error) {
	if m == nil {
		return id, nil
	}
	list := m.uids
	if kind == "group" {
		list = m.gids
	}
	if to, ok := host(list, id); ok {
		return to, nil
	}
	return 0, invalid("%s %d is not in the mappings of the container's user namespace", kind, id)
}

// hold reports whether the container can become u.
func (m *idmap) hold(u user) error {
	if m == nil {
		return nil
	}
	if _, err := m.uid(u.uid); err != nil {
		return err
	}
	for _, g := range append([]uint32{u.gid}, u.groups...) {
		if _, err := m.gid(g); err != nil {
			return err
		}
	}
	return nil
}

func mapText(list []specs.LinuxIDMapping) []byte {
	var b []byte
	for _, m := range list {
		b = fmt.Appendf(b, "%d %d %d\n", m.ContainerID, m.HostID, m.Size)
	}
	return b
}

func readMap(raw []byte) ([]specs.LinuxIDMapping, error) {
	var out []specs.LinuxIDMapping
	for l := range bytes.Lines(raw) {
		var m specs.LinuxIDMapping
		if _, err := fmt.Sscan(string(l), &m.ContainerID, &m.HostID, &m.Size); err != nil {
			return nil, fmt.Errorf("read id map: %w", err)
		}
		out = append(out, m)
	}
	return out, nil
}

// write gives the new user namespace of a process its maps.
func (m *idmap) write(pid int) error {
	for name, list := range map[string][]specs.LinuxIDMapping{"gid_map": m.gids, "uid_map": m.uids} {
		file := "/proc/" + strconv.Itoa(pid) + "/" + name
		fd, err := unix.Open(file, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			_, err = unix.Write(fd, mapText(list)) // all at once, or it is refused
			_ = unix.Close(fd)
		}
		if err != nil {
			return fmt.Errorf("write %s of the user namespace: %w", name, err)
		}
	}
	return nil
}

// bystander is a process in a user namespace that does nothing; fn looks at it from outside. adds is what
// it does first.
func bystander(flags uint64, adds func(*program), fn func(pid int) error) error {
	ctl, theirs, err := newControl()
	if err != nil {
		return err
	}
	defer ctl.close()
	p := &program{controlFD: theirs}
	if adds != nil {
		adds(p)
	}
	p.say("wait")
	p.addKind(kindReady)
	c, err := spawn(p, flags, -1, theirs)
	p.closeControl()
	if err != nil {
		return fmt.Errorf("clone: %w", err)
	}
	defer c.destroy()
	rec, _, err := ctl.read()
	switch {
	case err != nil:
		return err
	case rec.index != ready:
		return p.failed(rec)
	}
	return fn(c.pid)
}

// namespace is a descriptor of a user namespace with these maps.
func (m *idmap) namespace() (fd int, err error) {
	fd = -1
	err = bystander(unix.CLONE_NEWUSER, nil, func(pid int) error {
		if err := m.write(pid); err != nil {
			return err
		}
		fd, err = unix.Open("/proc/"+strconv.Itoa(pid)+"/ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("make user namespace: %w", err)
	}
	return fd, nil
}

// mapsOf reads the maps of a user namespace that is joined. The kernel shows them of a process only.
func mapsOf(fd int) (*idmap, error) {
	m := &idmap{}
	err := bystander(0, func(p *program) {
		p.say("join user namespace")
		p.add(unix.SYS_SETNS, uintptr(fd), unix.CLONE_NEWUSER)
	}, func(pid int) error {
		for name, list := range map[string]*[]specs.LinuxIDMapping{"uid_map": &m.uids, "gid_map": &m.gids} {
			raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/" + name)
			if err != nil {
				return err
			}
			if *list, err = readMap(raw); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read maps of user namespace: %w", err)
	}
	return m, nil
}

// as runs fn as the container's root makes files: on a thread of its own, with every capability kept.
// What is made by then, and on a filesystem that is mapped could not be made by anybody else, is the
// container's.
func (m *idmap) as(fn func() error) (err error) {
	if m == nil {
		return fn()
	}
	onThread(func() {
		if err = m.become(); err == nil {
			err = fn()
		}
	})
	return err
}

// become changes whom the files that this thread makes belong to. The thread must end with it.
func (m *idmap) become() error {
	if m == nil {
		return nil
	}
	uid, err := m.uid(0)
	if err != nil {
		return err
	}
	gid, err := m.gid(0)
	if err != nil {
		return err
	}
	head := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(head, &caps[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	_, gerr := unix.SetfsgidRetGid(int(gid))
	_, uerr := unix.SetfsuidRetUid(int(uid)) // takes capabilities over files away: they come back
	if err := errors.Join(gerr, uerr); err != nil {
		return fmt.Errorf("make files as user %d: %w", uid, err)
	}
	if err := unix.Capset(head, &caps[0]); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	return nil
}

// give makes what fd stands for the container's root's.
func (m *idmap) give(fd int) error {
	uid, err := m.uid(0)
	if err != nil {
		return err
	}
	gid, err := m.gid(0)
	if err != nil {
		return err
	}
	return unix.Fchownat(fd, "", int(uid), int(gid), unix.AT_EMPTY_PATH)
}

// inUser is what a process may do in a user namespace: everything, but nothing of the host's.
func (id identity) inUser() identity {
	id.caps, id.bound, id.mapped = 1<<(id.lastCap+1)-1, 1<<(id.lastCap+1)-1, true
	return id
}

// asksMaps is what a child says when it is in its new user namespace.
const asksMaps = -3

// beRoot has the child become the root of the user namespace that it is in.
func (p *program) beRoot() {
	p.say("become root of the user namespace")
	p.add(unix.SYS_SETGROUPS, 0, 0)
	p.add(unix.SYS_SETRESGID, 0, 0, 0)
	p.add(unix.SYS_SETRESUID, 0, 0, 0)
}

// ask has the child say something, and wait until the parent has done something about it (answers).
func (p *program) ask(what int64, answer func(context.Context, child) error) {
	p.tell(what, answer)
	p.asks |= 1 << -what
	buf := new([recordSize]byte)
	addr := hold(p, buf)
	p.add(unix.SYS_READ, regControl, addr, uintptr(recordSize)).ref(0)
	p.addKind(kindEqual, addr, 0xff, 1, uintptr(unix.EPIPE)) // else the parent has gone
}

// tell has the child say something, and at which step, and go on.
func (p *program) tell(what int64, answer func(context.Context, child) error) {
	if p.answers == nil {
		p.answers = map[int64]func(context.Context, child) error{}
	}
	p.answers[what] = answer
	p.add(unix.SYS_WRITE, regControl, hold(p, &record{index: what, more: int64(p.here())}), uintptr(recordSize)).ref(0)
}

// mapMount has a detached mount show ids through a map.
func (b *builder) mapMount(fd int, o options) error {
	ids := o.ids
	if ids == nil {
		ids = b.ids
	}
	if ids == nil {
		return fmt.Errorf("option idmap: the container has no user namespace, and the mount names no mappings: %w", errdefs.ErrInvalidArgument)
	}
	return mapMount(fd, o, ids)
}

func mapMount(fd int, o options, ids *idmap) error {
	ns, err := ids.namespace()
	if err != nil {
		return err
	}
	defer unix.Close(ns) //nolint:errcheck // the mount holds the maps
	return setMap(fd, ns, o.mapAll)
}

// setMap has a detached mount, or all of a tree, show ids through the maps of a user namespace.
func setMap(fd, ns int, all bool) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if all {
		flags |= unix.AT_RECURSIVE
	}
	err := unix.MountSetattr(fd, "", flags, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns)})
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EPERM) {
		var st unix.Statfs_t
		_ = unix.Fstatfs(fd, &st)
		return fmt.Errorf("its filesystem (type %#x) cannot be mounted with mapped ids: %w: %w", st.Type, err, errdefs.ErrNotImplemented)
	}
	if err != nil {
		return fmt.Errorf("map ids: %w", err)
	}
	return nil
}

// mountOptions are a mount's, with its own maps.
func mountOptions(m specs.Mount) (options, error) {
	o, err := parseOptions(m.Options)
	if err != nil || len(m.UIDMappings)+len(m.GIDMappings) == 0 {
		return o, err
	}
	o.mapped = true
	o.ids, err = newIDMap("mount "+m.Destination, m.UIDMappings, m.GIDMappings)
	return o, err
}

// mapped has ids in options of a filesystem that the parent mounts mean the container's.
func (b *builder) mapped(kind string, data []string) []string {
	if b.ids == nil || kind != "tmpfs" && kind != "devpts" {
		return data
	}
	var out []string
	for _, d := range data {
		key, value, _ := strings.Cut(d, "=")
		if n, ok := parseID(value); ok && (key == "uid" || key == "gid") {
			list := b.ids.uids
			if key == "gid" {
				list = b.ids.gids
			}
			if to, ok := host(list, n); ok {
				d = fmt.Sprintf("%s=%d", key, to)
			}
		}
		out = append(out, d)
	}
	return out
}

// sysfsOf mounts the sysfs that shows a network namespace which a container with ids of its own
// shares: it has no power over it, so it could not itself. net is -1 for this process's.
func sysfsOf(net int) func(kind, source string, o options) (int, error) {
	return func(kind, source string, o options) (fd int, err error) {
		onThread(func() {
			if net >= 0 {
				if err = unix.Setns(net, unix.CLONE_NEWNET); err != nil {
					err = fmt.Errorf("join network namespace: %w", err)
					return
				}
			}
			fd, err = fsContext(kind, source, o)
		})
		return fd, err
	}
}
