package containers

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantryd/gantry/internal/hostdev"
	"github.com/gantryd/gantry/internal/ocispec"
	"github.com/gantryd/gantry/internal/seccomp"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// ofHost fills in what a spec means on this host, now: devices may have other numbers than at Create.
func ofHost(s *containersv1.Spec, o *ocispec.Options) (err error) {
	if o.Devices, err = devices(s); err != nil {
		return err
	}
	if o.Blocks, err = blocks(s.GetResources()); err != nil {
		return err
	}
	if p := s.GetSeccomp().GetProfile(); len(p) > 0 {
		o.Seccomp, err = seccomp.Load(p, ocispec.Capabilities(s, o.Have))
	}
	return err
}

// blocks are the numbers of the block devices that r names.
func blocks(r *containersv1.Resources) (map[string]ocispec.Number, error) {
	all := map[string]ocispec.Number{}
	for _, path := range ocispec.BlockPaths(r) {
		major, minor, err := hostdev.Block(path)
		if err != nil {
			return nil, err
		}
		all[path] = ocispec.Number{Major: major, Minor: minor}
	}
	return all, nil
}

// devices are those that a container is given: what the user names and, if it is privileged, all
// others of the host.
func devices(s *containersv1.Spec) (out []ocispec.Device, err error) {
	for _, d := range s.GetDevices() {
		if d.GetCdi() != "" { // its description is put into config.json when that is made
			continue
		}
		found, err := hostdev.Find(d.GetHostPath(), or(d.GetPath(), d.GetHostPath()))
		if err != nil {
			return nil, err
		}
		for _, n := range found {
			out = append(out, ocispec.Device{LinuxDevice: n, Access: d.GetAccess()})
		}
	}
	if !s.GetPrivileged() {
		return out, nil
	}
	rest, err := hostdev.All()
	if err != nil {
		return nil, err
	}
	rest = slices.DeleteFunc(rest, func(n specs.LinuxDevice) bool {
		return slices.ContainsFunc(out, func(d ocispec.Device) bool { return d.Path == n.Path })
	})
	for _, n := range rest {
		out = append(out, ocispec.Device{LinuxDevice: n})
	}
	return out, nil
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
