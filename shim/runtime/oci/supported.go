package oci

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/runtime/native"
)

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}

// field is something that config.json may ask for, and the version of the specification that has it
// first: a program that knows only an older one would ignore it.
type field struct {
	name  string
	since version
	asked bool
}

// supported refuses by name what is asked for and the program would ignore.
func (k *knowledge) supported(name string, c *runtime.Config) error {
	s := c.Spec
	switch {
	case s == nil || s.Process == nil || s.Linux == nil:
		return invalid("config.json has no process or no linux section")
	case s.Root == nil && len(c.Rootfs) == 0:
		return invalid("config.json has no root filesystem")
	case s.Linux.CgroupsPath == "":
		return invalid("config.json has no linux.cgroupsPath")
	case c.Init:
		return refused(name, "a small init as process 1 (init)")
	case len(c.Seccomp) > 0 && s.Linux.Seccomp == nil:
		return refused(name, "a compiled seccomp filter without linux.seccomp")
	}
	if what := ignored(s, k); what != "" {
		return refused(name, what)
	}
	for _, f := range fields(s) {
		if f.asked && k.spec.before(f.since) {
			return refused(name, f.name+fmt.Sprintf(" (it knows version %v of the OCI runtime specification; that is of %v)", k.spec, f.since))
		}
	}
	if err := k.namespacesOf(name, c); err != nil {
		return err
	}
	if !slices.Contains(rootPropagations, s.Linux.RootfsPropagation) {
		return invalid("linux.rootfsPropagation %q is unknown", s.Linux.RootfsPropagation)
	}
	for _, m := range s.Mounts {
		if err := checkMount(m); err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		for _, o := range m.Options {
			if slices.Contains(recursive, o) && !k.recursive {
				return refused(name, "mount option "+o)
			}
		}
	}
	return supportedProcess(name, s.Process, k)
}

func refused(name, what string) error {
	return fmt.Errorf("runtime %s does not do %s: %w", name, what, errdefs.ErrNotImplemented)
}

// ignored is what programs pass over, or what this host does not have and they do not tell.
func ignored(s *specs.Spec, k *knowledge) string {
	l := s.Linux
	r := l.Resources
	if r == nil {
		r = &specs.LinuxResources{}
	}
	m := r.Memory
	if m == nil {
		m = &specs.LinuxMemory{}
	}
	for _, x := range []struct {
		name  string
		asked bool
	}{
		{"process.user.username", s.Process.User.Username != ""},
		{"linux.intelRdt", l.IntelRdt != nil},
		{"linux.mountLabel without SELinux", l.MountLabel != "" && !there("/sys/fs/selinux/enforce")},
		{"process.selinuxLabel without SELinux", s.Process.SelinuxLabel != "" && !there("/sys/fs/selinux/enforce")},
		{"process.apparmorProfile without AppArmor", confined(s.Process) && !there(apparmor)},
		{"linux.personality", l.Personality != nil && !k.personality},
		{"linux.personality.flags", l.Personality != nil && len(l.Personality.Flags) > 0},
		{"linux.resources.rdma", len(r.Rdma) > 0},
		{"linux.resources.memory.kernel", m.Kernel != nil},       //nolint:staticcheck // deprecated, and refused for that
		{"linux.resources.memory.kernelTCP", m.KernelTCP != nil}, //nolint:staticcheck // likewise
		{"linux.resources.memory.useHierarchy", m.UseHierarchy != nil},
	} {
		if x.asked {
			return x.name
		}
	}
	return ""
}

// apparmor is there where the kernel has it.
const apparmor = "/sys/kernel/security/apparmor/profiles"

func confined(p *specs.Process) bool {
	return p.ApparmorProfile != "" && p.ApparmorProfile != "unconfined"
}

func there(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// fields are those of config.json that came after the oldest version.
func fields(s *specs.Spec) []field {
	l, v11, v13 := s.Linux, version{1, 1, 0}, version{1, 3, 0}
	fs := []field{
		{"domainname", v11, s.Domainname != ""},
		{"linux.timeOffsets", v11, len(l.TimeOffsets) > 0},
		{"linux.seccomp.listenerPath", v11, l.Seccomp != nil && l.Seccomp.ListenerPath != ""},
		{"linux.memoryPolicy", v13, l.MemoryPolicy != nil},
		{"linux.netDevices", v13, len(l.NetDevices) > 0},
	}
	for i, m := range s.Mounts {
		at := fmt.Sprintf("mounts[%d]", i)
		fs = append(fs, field{at + ".uidMappings", v11, len(m.UIDMappings)+len(m.GIDMappings) > 0})
	}
	if r := l.Resources; r != nil && r.CPU != nil {
		fs = append(fs,
			field{"linux.resources.cpu.idle", v11, r.CPU.Idle != nil},
			field{"linux.resources.cpu.burst", v11, r.CPU.Burst != nil})
	}
	return fs
}

// recursive are options of mounts that hold for what is mounted below as well.
var recursive = []string{
	"rro", "rrw", "rnosuid", "rsuid", "rnodev", "rdev", "rnoexec", "rexec", "rnodiratime", "rdiratime", "rrelatime", "rnorelatime", "rnoatime",
	"ratime", "rstrictatime", "rnostrictatime", "rnosymfollow", "rsymfollow", "idmap", "ridmap",
}

// plainOptions are the others that a bind mount may have; anything else the kernel would be handed, and
// ignore.
var plainOptions = []string{
	"bind", "rbind", "ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "sync", "async", "dirsync", "remount", "mand", "nomand",
	"atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime", "iversion", "noiversion", "silent",
	"loud", "defaults", "private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable",
}

// rootPropagations are the words of config.json for the propagation of the root mount.
var rootPropagations = []string{"", "private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable"}

// overProc are files of procfs that tools such as LXCFS put their own over.
var overProc = []string{
	"/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime", "/proc/loadavg", "/proc/slabinfo",
	"/proc/sys/kernel/ns_last_pid", "/proc/sys/crypto/fips_enabled", "/proc/net/dev",
}

func bound(m specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

func checkMount(m specs.Mount) error {
	switch dest := path.Clean(m.Destination); {
	case !path.IsAbs(m.Destination):
		return invalid("the destination must be an absolute path")
	case dest == "/":
		return invalid("nothing can be mounted over the root")
	case strings.HasPrefix(dest, "/proc/") && !slices.Contains(overProc, dest):
		return invalid("nothing but some files can be mounted inside /proc")
	}
	if !bound(m) {
		return nil
	}
	for _, o := range m.Options {
		if !slices.Contains(plainOptions, o) && !slices.Contains(recursive, o) {
			return invalid("option %q is not one of a bind mount", o)
		}
	}
	return nil
}

// namespacesOf refuses kinds that the program does not know, and paths that are of another kind.
func (k *knowledge) namespacesOf(name string, c *runtime.Config) error {
	has := map[specs.LinuxNamespaceType]bool{}
	for _, ns := range c.Spec.Linux.Namespaces {
		known := ns.Type != specs.TimeNamespace || !k.spec.before(version{1, 1, 0})
		if k.namespaces != nil {
			known = k.namespaces[string(ns.Type)]
		}
		if !known {
			return refused(name, "a "+string(ns.Type)+" namespace (linux.namespaces)")
		}
		if has[ns.Type] {
			return invalid("linux.namespaces: two of type %s", ns.Type)
		}
		has[ns.Type] = true
		if ns.Type == specs.MountNamespace && ns.Path != "" {
			return refused(name, "linux.namespaces: to join a mount namespace")
		}
		where := ns.Path
		if ns.Type == specs.NetworkNamespace && c.NetNS != "" {
			where = c.NetNS
		}
		if err := checkNamespace(ns.Type, where); err != nil {
			return err
		}
	}
	switch {
	case c.NetNS != "" && !has[specs.NetworkNamespace]:
		return invalid("linux.namespaces: a network namespace is given, and config.json shares the host's")
	case !has[specs.MountNamespace]:
		return refused(name, "linux.namespaces: a container without a mount namespace of its own")
	case (c.Spec.Hostname != "" || c.Spec.Domainname != "") && !has[specs.UTSNamespace]:
		return invalid("hostname %q: the container shares the host's names", c.Spec.Hostname)
	}
	for sysctl := range c.Spec.Linux.Sysctl {
		if strings.HasPrefix(sysctl, "net.") && !has[specs.NetworkNamespace] {
			return invalid("sysctl %s: it is the host's, as the container has no network namespace of its own", sysctl)
		}
		if err := checkSysctl(sysctl); err != nil {
			return err
		}
	}
	return nil
}

// checkSysctl refuses what no kernel of this version has. Some of the network's come with links, which
// the container alone has.
func checkSysctl(name string) error {
	file := strings.ReplaceAll(name, ".", "/")
	if file == "" || path.Clean("/"+file) != "/"+file {
		return invalid("sysctl %q: no such name", name)
	}
	if strings.Contains(name, ".conf.") || strings.Contains(name, ".neigh.") {
		return nil
	}
	if _, err := os.Stat("/proc/sys/" + file); err != nil { //nolint:gosec // clean
		return invalid("sysctl %s: this kernel has none of that name", name)
	}
	return nil
}

// updates refuses bounds that programs leave alone when they are to change them.
func updates(name string, r *specs.LinuxResources) error {
	field := ""
	switch b := r.BlockIO; {
	case len(r.Devices) > 0:
		field = "devices"
	case r.Network != nil:
		field = "network"
	case len(r.HugepageLimits) > 0:
		field = "hugepageLimits"
	case len(r.Rdma) > 0:
		field = "rdma"
	case len(r.Unified) > 0:
		field = "unified"
	case b != nil && (b.LeafWeight != nil || len(b.WeightDevice)+len(b.ThrottleReadBpsDevice)+len(b.ThrottleWriteBpsDevice)+
		len(b.ThrottleReadIOPSDevice)+len(b.ThrottleWriteIOPSDevice) > 0):
		field = "blockIO, but for its weight"
	default:
		return nil
	}
	return refused(name, "a change of linux.resources."+field)
}

var namespaceFlags = map[specs.LinuxNamespaceType]int{
	specs.PIDNamespace: unix.CLONE_NEWPID, specs.NetworkNamespace: unix.CLONE_NEWNET, specs.MountNamespace: unix.CLONE_NEWNS,
	specs.IPCNamespace: unix.CLONE_NEWIPC, specs.UTSNamespace: unix.CLONE_NEWUTS, specs.CgroupNamespace: unix.CLONE_NEWCGROUP,
	specs.UserNamespace: unix.CLONE_NEWUSER, specs.TimeNamespace: unix.CLONE_NEWTIME,
}

func checkNamespace(kind specs.LinuxNamespaceType, where string) error {
	if where == "" {
		return nil
	}
	fd, err := unix.Open(where, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s namespace %s: %w", kind, where, err)
	}
	defer unix.Close(fd) //nolint:errcheck // it was only looked at
	if is, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || is != namespaceFlags[kind] {
		return invalid("%s is not a %s namespace", where, kind)
	}
	return nil
}

func supportedProcess(name string, p *specs.Process, k *knowledge) error {
	for _, f := range []field{
		{"process.scheduler", version{1, 1, 0}, p.Scheduler != nil},
		{"process.ioPriority", version{1, 1, 0}, p.IOPriority != nil},
		{"process.execCPUAffinity", version{1, 2, 1}, p.ExecCPUAffinity != nil},
		{"process.commandLine", version{1 << 10, 0, 0}, p.CommandLine != ""}, // Windows'
	} {
		if f.asked && k.spec.before(f.since) {
			return refused(name, f.name)
		}
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
	for _, kv := range p.Env {
		if strings.ContainsRune(kv, 0) {
			return invalid("environment: %q holds a NUL", kv)
		}
	}
	return nil
}

// directory refuses a working directory that is not there, or is none.
func directory(root int, cwd string) error {
	fd, err := native.OpenIn(root, cwd, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("change to working directory %s: %w: %w", cwd, err, errdefs.ErrInvalidArgument)
	}
	return unix.Close(fd)
}

// sources refuses a volume of what is not there.
func sources(ms []specs.Mount) error {
	for _, m := range ms {
		if !bound(m) {
			continue
		}
		if _, err := os.Stat(m.Source); err != nil { //nolint:gosec // whoever writes config.json may name any path
			return fmt.Errorf("mount %s: the source does not exist: %w: %w", m.Destination, err, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// shared refuses a volume that is to be shared with a mount of the host which is not: what either side
// mounts below, the other would not see.
func shared(ms []specs.Mount) error {
	for _, m := range ms {
		if !bound(m) || !slices.Contains(m.Options, "shared") && !slices.Contains(m.Options, "rshared") {
			continue
		}
		ok, err := isShared(m.Source)
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		if !ok {
			return fmt.Errorf("mount %s: %s is not in a shared mount of the host: %w", m.Destination, m.Source, errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// isShared looks in mountinfo (proc_pid_mountinfo(5)) of the calling thread.
func isShared(source string) (bool, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, source, 0, unix.STATX_MNT_ID, &st); err != nil {
		return false, &os.PathError{Op: "stat", Path: source, Err: err}
	}
	raw, err := os.ReadFile(filepath.Join("/proc/thread-self", "mountinfo"))
	if err != nil {
		return false, err
	}
	for l := range strings.Lines(string(raw)) {
		f := strings.Fields(l)
		if len(f) < 7 || f[0] != strconv.FormatUint(st.Mnt_id, 10) {
			continue
		}
		end := max(slices.Index(f, "-"), 6)
		return slices.ContainsFunc(f[6:end], func(o string) bool { return strings.HasPrefix(o, "shared:") }), nil
	}
	return false, nil
}
