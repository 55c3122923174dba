// Package ocispec writes a container in the words of the OCI runtime specification: config.json from a
// container's record, and the files under /etc that are made for it.
//
// It decides nothing about the host and touches nothing but the files it is told to write. The
// defaults are those that Docker's users know. There is a seccomp section only for a profile of the
// user's: the daemon's own filter is compiled once and travels to the shim as bytes.
package ocispec

import (
	"fmt"
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
	Instance string              // the daemon's name for what is its own in the kernel
	RootFS   string              // absolute path where the shim mounts the root filesystem
	Etc      string              // directory with hosts, hostname and resolv.conf; "" leaves the image's
	NetNS    string              // path of the network namespace; "" makes a new one, unless the mode is host
	Volumes  []*typesv1.Mount    // the volumes of Container.Volumes, as their backends mount them; Target is the path in the container
	Have     []string            // the daemon's own capabilities; nil means every one
	Joined   map[string]string   // paths of the namespaces of other containers, by type, but for the network's
	HostOf   []string            // namespaces that are the host's although another container's were asked for: that one has the host's
	Shm      string              // path of a tmpfs for /dev/shm that more than one container has; "": one of its own
	Blocks   map[string]Number   // block devices that Spec.resources names, by path
	Devices  []Device            // what Spec.devices, or privileged, mean on this host
	Seccomp  *specs.LinuxSeccomp // what Spec.seccomp means, if it is a profile of the user's
}

// Build describes c to a runtime.
func Build(c *containersv1.Container, o Options) (*specs.Spec, error) {
	p, err := process(c, o.Have)
	if err != nil {
		return nil, err
	}
	ms, err := mounts(c, o)
	if err != nil {
		return nil, err
	}
	s := &specs.Spec{
		Version: version,
		Process: p,
		Root:    &specs.Root{Path: o.RootFS, Readonly: c.GetSpec().GetReadOnly()},
		Mounts:  ms,
		Linux: &specs.Linux{
			Resources:   Resources(c.GetSpec().GetResources(), o.Blocks),
			CgroupsPath: cgroupPath(c, o.Instance),
			Namespaces:  namespaces(c.GetSpec(), o),
			Sysctl:      sysctls(c.GetSpec()),
			Devices:     nodes(o.Devices),
			Seccomp:     o.Seccomp,
		},
	}
	s.Hostname, s.Domainname = names(c)
	s.Linux.Resources.Devices = deviceRules(c.GetSpec(), o.Devices)
	if !c.GetSpec().GetPrivileged() && !c.GetSpec().GetUnmask() {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = masked(), readOnly()
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
	return s, nil
}

// Check refuses what a specification cannot say or a kernel cannot do, before anything is made for it.
// The errors are of class InvalidArgument.
func Check(s *containersv1.Spec, cpus int) error {
	for _, step := range []func() error{
		func() error { return checkEnv(s.GetEnv()) },
		func() error { return checkNames(s) },
		func() error { return checkResources(s.GetResources(), cpus) },
		func() error { return checkRlimits(s.GetRlimits()) },
		func() error { return checkSecurity(s) },
		func() error { return checkNamespaces(s) },
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
