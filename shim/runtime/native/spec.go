package native

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

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
	}
	field := ""
	l := s.Linux
	for name, asked := range map[string]bool{
		"solaris": s.Solaris != nil, "windows": s.Windows != nil, "vm": s.VM != nil,
		"zos": s.ZOS != nil, "freebsd": s.FreeBSD != nil,
		"linux.intelRdt": l.IntelRdt != nil,
	} {
		if asked && (field == "" || name < field) {
			field = name
		}
	}
	if field == "" {
		field = cgroup.Unsupported(l.Resources)
	}
	for _, m := range s.Mounts {
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
	if err := supportedDevices(l); err != nil {
		return err
	}
	if err := supportedMountLabel(l); err != nil {
		return err
	}
	if err := supportedHooks(s); err != nil {
		return err
	}
	return supportedProcess(s.Process)
}

func supportedProcess(p *specs.Process) error {
	switch { // of another system
	case p.CommandLine != "":
		return fmt.Errorf("process.commandLine is not supported: %w", errdefs.ErrNotImplemented)
	case p.User.Username != "":
		return fmt.Errorf("process.user.username is not supported: %w", errdefs.ErrNotImplemented)
	}
	if err := supportedLabels(p); err != nil {
		return err
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
