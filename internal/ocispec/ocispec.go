// Package ocispec writes a container in the words of the OCI runtime specification: config.json from a
// container's record, and the files under /etc that are made for it.
//
// It decides nothing about the host and touches nothing but the files it is told to write. The
// defaults are those that Docker's users know. There is no seccomp section: the filter is compiled
// once by the daemon and travels to the shim as bytes.
package ocispec

import (
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// version is the oldest version of the specification that has all that is used here: runtimes refuse
// what is newer than themselves, and Debian's crun knows nothing after 1.1.
const version = "1.1.0"

// Options is what a container's record does not say.
type Options struct {
	Instance string           // the daemon's name for what is its own in the kernel
	RootFS   string           // absolute path where the shim mounts the root filesystem
	Etc      string           // directory with hosts, hostname and resolv.conf; "" leaves the image's
	NetNS    string           // path of the network namespace; "" makes a new one, unless the mode is host
	Volumes  []*typesv1.Mount // the volumes of Container.Volumes, as their backends mount them; Target is the path in the container
}

// Build describes c to a runtime.
func Build(c *containersv1.Container, o Options) (*specs.Spec, error) {
	p, err := process(c)
	if err != nil {
		return nil, err
	}
	ms, err := mounts(c, o)
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version:    version,
		Process:    p,
		Root:       &specs.Root{Path: o.RootFS, Readonly: c.GetSpec().GetReadOnly()},
		Hostname:   Hostname(c),
		Domainname: c.GetSpec().GetDomainname(),
		Mounts:     ms,
		Linux: &specs.Linux{
			Resources:     resources(c.GetSpec().GetResources()),
			CgroupsPath:   "/" + o.Instance + "/" + c.GetMeta().GetId(),
			Namespaces:    namespaces(c, o.NetNS),
			MaskedPaths:   masked(),
			ReadonlyPaths: readOnly(),
		},
	}
	for _, m := range ms {
		// A mount that is shared with the host needs a root that lets it through.
		for _, opt := range m.Options {
			switch {
			case opt == "shared" || opt == "rshared":
				s.Linux.RootfsPropagation = "shared"
			case (opt == "slave" || opt == "rslave") && s.Linux.RootfsPropagation == "":
				s.Linux.RootfsPropagation = "rslave"
			}
		}
	}
	if c.GetSpec().GetNetworkMode() != containersv1.NetworkMode_NETWORK_MODE_HOST {
		s.Linux.Sysctl = map[string]string{
			"net.ipv4.ip_unprivileged_port_start": "0",            // the ports of a namespace of one's own are no one else's
			"net.ipv4.ping_group_range":           "0 2147483647", // ping without a capability
		}
	}
	return s, nil
}

func namespaces(c *containersv1.Container, netns string) []specs.LinuxNamespace {
	all := []specs.LinuxNamespace{
		{Type: specs.PIDNamespace},
		{Type: specs.IPCNamespace},
		{Type: specs.UTSNamespace},
		{Type: specs.MountNamespace},
		{Type: specs.CgroupNamespace},
	}
	if c.GetSpec().GetNetworkMode() != containersv1.NetworkMode_NETWORK_MODE_HOST {
		all = append(all, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: netns})
	}
	return all
}

// Hostname is the name that the container gives itself: what the user says, on the host's network the
// host's, else the short id.
func Hostname(c *containersv1.Container) string {
	if h := c.GetSpec().GetHostname(); h != "" {
		return h
	}
	if c.GetSpec().GetNetworkMode() == containersv1.NetworkMode_NETWORK_MODE_HOST {
		if h, err := os.Hostname(); err == nil {
			return h
		}
	}
	return c.GetMeta().GetId()[:min(12, len(c.GetMeta().GetId()))]
}

// Check refuses what a specification cannot say or a kernel cannot do, before anything is made for it.
// The errors are of class InvalidArgument.
func Check(s *containersv1.Spec, cpus int) error {
	for _, step := range []func() error{
		func() error { return checkEnv(s.GetEnv()) },
		func() error { return checkNames(s) },
		func() error { return checkResources(s.GetResources(), cpus) },
		func() error { return checkRlimits(s.GetRlimits()) },
		func() error { return checkVolumes(s.GetVolumes()) },
		func() error { return checkEtc(s) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func checkEnv(env []string) error {
	for _, kv := range env {
		key, _, _ := strings.Cut(kv, "=")
		if key == "" {
			return invalid("environment %q: a variable needs a name", kv)
		}
		if strings.ContainsRune(kv, 0) {
			return invalid("environment %q: holds a NUL", key)
		}
	}
	return nil
}

func checkNames(s *containersv1.Spec) error {
	if h := s.GetHostname(); len(h) > 64 || strings.ContainsAny(h, "\x00 \t\n/") {
		return invalid("hostname %q: at most 64 characters, no blanks and no slash", h)
	}
	if d := s.GetDomainname(); len(d) > 64 || strings.ContainsAny(d, "\x00 \t\n/") {
		return invalid("domainname %q: at most 64 characters, no blanks and no slash", d)
	}
	if w := s.GetWorkdir(); w != "" && w[0] != '/' {
		return invalid("working directory %q: it must be an absolute path", w)
	}
	for _, a := range append(append([]string{s.GetUser(), s.GetWorkdir()}, s.GetArgs()...), s.GetEntrypoint()...) {
		if strings.ContainsRune(a, 0) {
			return invalid("argument %q: holds a NUL", a)
		}
	}
	return nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, errdefs.ErrInvalidArgument)...)
}
