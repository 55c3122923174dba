package native

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/internal/cgroup"
	"github.com/gantryd/gantry/shim/runtime"
)

func sorted[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// supported refuses by name what config.json asks for and this runtime does not do.
func supported(c *runtime.Config) error {
	s := c.Spec
	switch {
	case s == nil || s.Process == nil || s.Linux == nil:
		return invalid("config.json has no process or no linux section")
	case s.Root == nil && len(c.Rootfs) == 0:
		return invalid("config.json has no root filesystem")
	case s.Linux.CgroupsPath == "":
		return invalid("config.json has no linux.cgroupsPath")
	}
	field := ""
	l := s.Linux
	for name, asked := range map[string]bool{
		"hooks": s.Hooks != nil && hooked(s.Hooks), "solaris": s.Solaris != nil, "windows": s.Windows != nil, "vm": s.VM != nil,
		"zos": s.ZOS != nil, "freebsd": s.FreeBSD != nil,
		"linux.uidMappings": len(l.UIDMappings) > 0, "linux.gidMappings": len(l.GIDMappings) > 0,
		"linux.netDevices": len(l.NetDevices) > 0, "linux.mountLabel": l.MountLabel != "", "linux.intelRdt": l.IntelRdt != nil,
		"linux.memoryPolicy": l.MemoryPolicy != nil, "linux.timeOffsets": len(l.TimeOffsets) > 0,
		"linux.personality": l.Personality != nil && (l.Personality.Domain != specs.PerLinux || len(l.Personality.Flags) > 0),
	} {
		if asked && (field == "" || name < field) {
			field = name
		}
	}
	if field == "" {
		field = cgroup.Unsupported(l.Resources)
	}
	for i, m := range s.Mounts {
		if field == "" && (len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0) {
			field = fmt.Sprintf("mounts[%d].uidMappings", i)
		}
		if !path.IsAbs(m.Destination) {
			return invalid("mount %q: the destination must be an absolute path", m.Destination)
		}
	}
	if field != "" {
		return fmt.Errorf("%s is not supported: %w", field, errdefs.ErrNotImplemented)
	}
	if _, ok := rootPropagation[l.RootfsPropagation]; !ok {
		return invalid("linux.rootfsPropagation %q is unknown", l.RootfsPropagation)
	}
	return supportedProcess(s.Process)
}

func hooked(h *specs.Hooks) bool {
	//nolint:staticcheck // prestart is deprecated, and still would be ignored
	return len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer)+len(h.StartContainer)+len(h.Poststart)+len(h.Poststop) > 0
}

func supportedProcess(p *specs.Process) error {
	field := ""
	switch {
	case p.ApparmorProfile != "":
		field = "process.apparmorProfile"
	case p.SelinuxLabel != "":
		field = "process.selinuxLabel"
	case p.Scheduler != nil:
		field = "process.scheduler"
	case p.IOPriority != nil:
		field = "process.ioPriority"
	case p.ExecCPUAffinity != nil:
		field = "process.execCPUAffinity"
	case p.CommandLine != "":
		field = "process.commandLine"
	}
	if field != "" {
		return fmt.Errorf("%s is not supported: %w", field, errdefs.ErrNotImplemented)
	}
	if len(p.Args) == 0 || p.Args[0] == "" {
		return invalid("process.args names no command")
	}
	if !path.IsAbs(p.Cwd) {
		return invalid("process.cwd %q: it must be an absolute path", p.Cwd)
	}
	for _, a := range append([]string{p.Cwd}, p.Args...) {
		if strings.ContainsRune(a, 0) {
			return invalid("argument %q holds a NUL", a)
		}
	}
	return nil
}

// namespaces is what config.json says about them.
type namespaces struct {
	clone uint64 // flags of clone3: new ones
	joins []join
	has   map[specs.LinuxNamespaceType]bool // not the host's
	// The cgroup namespace is made by the child itself: the one that clone makes begins at the
	// cgroup that the parent is in.
	newCgroup bool
	newNet    bool
}

type join struct {
	kind uint64
	path string
	fd   int
}

var namespaceFlags = map[specs.LinuxNamespaceType]uint64{
	specs.PIDNamespace: unix.CLONE_NEWPID, specs.NetworkNamespace: unix.CLONE_NEWNET, specs.MountNamespace: unix.CLONE_NEWNS,
	specs.IPCNamespace: unix.CLONE_NEWIPC, specs.UTSNamespace: unix.CLONE_NEWUTS, specs.CgroupNamespace: unix.CLONE_NEWCGROUP,
}

// readNamespaces sorts them and opens those to join.
func readNamespaces(c *runtime.Config, open *files) (*namespaces, error) {
	n := &namespaces{has: map[specs.LinuxNamespaceType]bool{}}
	for _, ns := range c.Spec.Linux.Namespaces {
		flag, ok := namespaceFlags[ns.Type]
		if !ok {
			return nil, fmt.Errorf("linux.namespaces: a %s namespace is not supported: %w", ns.Type, errdefs.ErrNotImplemented)
		}
		if n.has[ns.Type] {
			return nil, invalid("linux.namespaces: two of type %s", ns.Type)
		}
		n.has[ns.Type] = true
		where := ns.Path
		if ns.Type == specs.NetworkNamespace && c.NetNS != "" {
			where = c.NetNS
		}
		if where != "" {
			if err := n.join(ns.Type, flag, where, open); err != nil {
				return nil, err
			}
			continue
		}
		switch ns.Type {
		case specs.CgroupNamespace:
			n.newCgroup = true
			continue
		case specs.NetworkNamespace:
			n.newNet = true
		}
		n.clone |= flag
	}
	if c.NetNS != "" && !n.has[specs.NetworkNamespace] {
		return nil, invalid("linux.namespaces: a network namespace is given, and config.json shares the host's")
	}
	if n.clone&unix.CLONE_NEWNS == 0 {
		return nil, fmt.Errorf("linux.namespaces: a container without a mount namespace of its own is not supported: %w", errdefs.ErrNotImplemented)
	}
	return n, nil
}

func (n *namespaces) join(kind specs.LinuxNamespaceType, flag uint64, where string, open *files) error {
	if flag == unix.CLONE_NEWPID || flag == unix.CLONE_NEWNS {
		return fmt.Errorf("linux.namespaces: to join a %s namespace is not supported: %w", kind, errdefs.ErrNotImplemented)
	}
	fd, err := unix.Open(where, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s namespace %s: %w", kind, where, err)
	}
	open.add(fd)
	if is, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || uint64(is) != flag {
		return invalid("%s is not a %s namespace", where, kind)
	}
	n.joins = append(n.joins, join{flag, where, fd})
	return nil
}

// sysctls checks that each belongs to a namespace that is not the host's.
func (n *namespaces) sysctls(values map[string]string) error {
	for _, name := range sorted(values) {
		key := strings.ReplaceAll(name, "/", ".")
		var need specs.LinuxNamespaceType
		switch {
		case strings.Contains(name, "..") || strings.ContainsRune(name, 0) || name == "":
			return invalid("sysctl %q: no such name", name)
		case strings.HasPrefix(key, "net."):
			need = specs.NetworkNamespace
		case strings.HasPrefix(key, "fs.mqueue."), strings.HasPrefix(key, "kernel.shm"), strings.HasPrefix(key, "kernel.msg"), key == "kernel.sem":
			need = specs.IPCNamespace
		case key == "kernel.domainname":
			need = specs.UTSNamespace
		case key == "kernel.hostname":
			return invalid("sysctl %s: set the hostname instead", name)
		default:
			return invalid("sysctl %s: it is not of one container, it would change the host", name)
		}
		if !n.has[need] {
			return invalid("sysctl %s: the container shares the host's %s namespace", name, need)
		}
	}
	return nil
}
