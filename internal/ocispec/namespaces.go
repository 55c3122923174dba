package ocispec

import (
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// The words for namespaces in Container.shared and in Options: as config.json names their types.
const (
	Network = string(specs.NetworkNamespace)
	PID     = string(specs.PIDNamespace)
	IPC     = string(specs.IPCNamespace)
	UTS     = string(specs.UTSNamespace)
)

const (
	ownMode       = containersv1.Namespace_MODE_UNSPECIFIED
	hostMode      = containersv1.Namespace_MODE_HOST
	joinedMode    = containersv1.Namespace_MODE_CONTAINER
	shareableMode = containersv1.Namespace_MODE_SHAREABLE
	noMode        = containersv1.Namespace_MODE_NONE
)

// modes are what each kind of namespace can be.
var modes = map[string][]containersv1.Namespace_Mode{
	PID: {ownMode, hostMode, joinedMode}, IPC: {ownMode, hostMode, joinedMode, shareableMode, noMode}, UTS: {ownMode, hostMode, joinedMode},
	"cgroup": {ownMode, hostMode}, "user": {ownMode, hostMode},
}

// Mode is where a namespace of a container comes from, and whose it is if it is another container's.
func Mode(s *containersv1.Spec, namespace string) (mode containersv1.Namespace_Mode, container string) {
	if namespace == Network {
		switch s.GetNetworkMode() {
		case containersv1.NetworkMode_NETWORK_MODE_HOST:
			return hostMode, ""
		case containersv1.NetworkMode_NETWORK_MODE_CONTAINER:
			return joinedMode, s.GetNetworkContainer()
		case containersv1.NetworkMode_NETWORK_MODE_UNSPECIFIED, containersv1.NetworkMode_NETWORK_MODE_NONE:
		}
		return ownMode, ""
	}
	n := map[string]*containersv1.Namespace{
		PID: s.GetPidNamespace(), IPC: s.GetIpcNamespace(), UTS: s.GetUtsNamespace(), "cgroup": s.GetCgroupNamespace(), "user": s.GetUserNamespace(),
	}[namespace]
	return n.GetMode(), n.GetContainer()
}

// Joined are the namespaces of other containers that one asks for, with their names or ids.
func Joined(s *containersv1.Spec) (out []*containersv1.Shared) {
	for _, ns := range []string{Network, PID, IPC, UTS} {
		if mode, of := Mode(s, ns); mode == joinedMode {
			out = append(out, &containersv1.Shared{Namespace: ns, Container: of})
		}
	}
	return out
}

// OwnNetwork reports whether a container has a network namespace of its own.
func OwnNetwork(s *containersv1.Spec) bool {
	mode, _ := Mode(s, Network)
	return mode == ownMode
}

func checkNamespaces(s *containersv1.Spec) error {
	for _, ns := range []string{PID, IPC, UTS, "cgroup", "user"} {
		mode, of := Mode(s, ns)
		if !slices.Contains(modes[ns], mode) {
			return invalid("%s namespace: it cannot be %s", ns, strings.ToLower(strings.TrimPrefix(mode.String(), "MODE_")))
		}
		if (mode == joinedMode) != (of != "") {
			return invalid("%s namespace: container %q: it takes the mode and a container, or neither", ns, of)
		}
	}
	if mode, of := Mode(s, Network); (mode == joinedMode) != (of != "") || mode != joinedMode && s.GetNetworkContainer() != "" {
		return invalid("network of container %q: it takes the mode and a container, or neither", s.GetNetworkContainer())
	}
	if err := checkShared(s); err != nil {
		return err
	}
	return checkSysctls(s)
}

// checkShared refuses what would change namespaces that are not the container's own.
func checkShared(s *containersv1.Spec) error {
	uts, _ := Mode(s, UTS)
	pid, _ := Mode(s, PID)
	ipc, _ := Mode(s, IPC)
	net, _ := Mode(s, Network)
	switch {
	case uts != ownMode && s.GetHostname()+s.GetDomainname() != "":
		return invalid("hostname %q: the names are not this container's own (its UTS namespace is shared): take one of them away", s.GetHostname()+s.GetDomainname())
	case net == joinedMode && s.GetHostname() != "":
		return invalid("hostname %q: a container on another's network goes by that one's name: take one of them away", s.GetHostname())
	case net == joinedMode && len(s.GetDns())+len(s.GetExtraHosts()) > 0:
		return invalid("name servers and more hosts: a container on another's network has that one's: name them there")
	case pid != ownMode && s.GetInit():
		return invalid("init: process 1 is not this container's own (its process namespace is shared): take one of them away")
	case ipc != ownMode && ipc != shareableMode && s.GetShmBytes() != 0:
		return invalid("size of /dev/shm: it is not this container's own (its IPC namespace is shared, or none): take one of them away")
	case s.GetShmBytes() < 0:
		return invalid("size of /dev/shm: %d: it cannot be negative", s.GetShmBytes())
	}
	if p := s.GetCgroupParent(); p != "" && (!path.IsAbs(p) || path.Clean(p) != p || p == "/" || strings.ContainsAny(p, "\x00\n")) {
		return invalid("cgroup parent %q: write an absolute path without . and .., as in /batch/night", p)
	}
	return nil
}

// sysctlOf are the kernel parameters that belong to a namespace, by their beginnings (namespaces(7)).
var sysctlOf = []struct{ prefix, namespace string }{
	{"net.", Network}, {"fs.mqueue.", IPC}, {"kernel.shm", IPC}, {"kernel.msg", IPC}, {"kernel.sem", IPC}, {"kernel.domainname", UTS},
}

func checkSysctls(s *containersv1.Spec) error {
	seen := map[string]bool{}
	for _, x := range s.GetSysctls() {
		name := strings.ReplaceAll(x.GetName(), "/", ".")
		of := ""
		for _, k := range sysctlOf {
			if strings.HasPrefix(name, k.prefix) {
				of = k.namespace
			}
		}
		switch {
		case name == "" || strings.Contains(name, "..") || strings.ContainsAny(x.GetName()+x.GetValue(), "\x00\n"):
			return invalid("sysctl %q=%q: no such parameter", x.GetName(), x.GetValue())
		case seen[name]:
			return invalid("sysctl %s: given twice", x.GetName())
		case name == "kernel.hostname":
			return invalid("sysctl %s: give the container a hostname instead", x.GetName())
		case of == "":
			return invalid("sysctl %s: it is the host's, not one container's; set it on the host (sysctl -w)", x.GetName())
		}
		if mode, _ := Mode(s, of); mode != ownMode && mode != shareableMode && mode != noMode {
			return invalid("sysctl %s: the container has no %s namespace of its own, and would change it for others: take one of them away", x.GetName(), of)
		}
		seen[name] = true
	}
	return nil
}

// sysctls are the user's over the daemon's.
func sysctls(s *containersv1.Spec) map[string]string {
	out := map[string]string{}
	if OwnNetwork(s) {
		out["net.ipv4.ip_unprivileged_port_start"] = "0"  // the ports of a namespace of one's own are no one else's
		out["net.ipv4.ping_group_range"] = "0 2147483647" // ping without a capability
	}
	for _, x := range s.GetSysctls() {
		out[strings.ReplaceAll(x.GetName(), "/", ".")] = x.GetValue()
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// namespaces are those that are not the host's: new ones, and those to join by path.
func namespaces(s *containersv1.Spec, o Options) []specs.LinuxNamespace {
	all := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	for _, ns := range []string{PID, IPC, UTS, "cgroup", Network} {
		mode, _ := Mode(s, ns)
		n := specs.LinuxNamespace{Type: specs.LinuxNamespaceType(ns)}
		switch {
		case mode == hostMode || slices.Contains(o.HostOf, ns):
			continue
		case ns == Network:
			n.Path = o.NetNS
		case mode == joinedMode:
			n.Path = o.Joined[ns]
		}
		all = append(all, n)
	}
	return all
}

// Hostname is the name that the container goes by: what the user says; that of the container, or the
// host, whose names or network it shares; else the short id.
func Hostname(c *containersv1.Container) string {
	s := c.GetSpec()
	if h := s.GetHostname(); h != "" {
		return h
	}
	for _, ns := range []string{UTS, Network} {
		mode, _ := Mode(s, ns)
		if mode == hostMode {
			if h, err := os.Hostname(); err == nil {
				return h
			}
		}
		for _, of := range c.GetShared() {
			if mode == joinedMode && of.GetNamespace() == ns && of.GetHostname() != "" {
				return of.GetHostname()
			}
		}
	}
	return c.GetMeta().GetId()[:min(12, len(c.GetMeta().GetId()))]
}

// names are those that the container's own UTS namespace gets; none if it is not its own.
func names(c *containersv1.Container) (host, domain string) {
	if mode, _ := Mode(c.GetSpec(), UTS); mode != ownMode {
		return "", ""
	}
	return Hostname(c), c.GetSpec().GetDomainname()
}

// shmBytes is the size of /dev/shm where the user does not say, as Docker's.
const shmBytes = 64 << 20

// ShmBytes is the size of /dev/shm.
func ShmBytes(s *containersv1.Spec) int64 {
	if n := s.GetShmBytes(); n > 0 {
		return n
	}
	return shmBytes
}

// memory are /dev/shm and /dev/mqueue, which go with the IPC namespace.
func memory(s *containersv1.Spec, o Options) []specs.Mount {
	opts := []string{"nosuid", "noexec", "nodev"}
	bind := func(at, from string) specs.Mount {
		return specs.Mount{Destination: at, Type: "bind", Source: from, Options: append([]string{"rbind", "rprivate"}, opts...)}
	}
	queue := specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: opts}
	mode, _ := Mode(s, IPC)
	switch {
	case mode == hostMode || slices.Contains(o.HostOf, IPC):
		return []specs.Mount{bind("/dev/shm", "/dev/shm"), queue} // the queues are those of the namespace it is mounted in
	case mode == noMode:
		return []specs.Mount{queue}
	case o.Shm != "":
		return []specs.Mount{bind("/dev/shm", o.Shm), queue}
	}
	size := "size=" + strconv.FormatInt(ShmBytes(s), 10)
	return []specs.Mount{{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: append(slices.Clone(opts), "mode=1777", size)}, queue}
}

// cgroupPath is where the container's processes are counted.
func cgroupPath(c *containersv1.Container, instance string) string {
	return path.Join(or(c.GetSpec().GetCgroupParent(), "/"+instance), c.GetMeta().GetId())
}
