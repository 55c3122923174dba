// Package cdi gives containers devices by names of the Container Device Interface, vendor.com/class=name
// (github.com/cncf-tags/container-device-interface): the vendor's description of a device says which
// nodes, mounts, variables and hooks belong to it.
//
// Descriptions are read again each time: drivers write them when their hardware comes and goes. They are
// root's, as config.json is; what they say is done.
package cdi

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"
)

// Dirs is where descriptions are; later ones win.
type Dirs []string

// Usual is where vendors write them.
func Usual() Dirs { return cdi.DefaultSpecDirs }

// Check says whether every device is described. The error is InvalidArgument.
func (d Dirs) Check(names []string) error {
	if len(names) == 0 {
		return nil
	}
	_, err := d.find(names)
	return err
}

// Inject puts what belongs to the devices into spec.
func (d Dirs) Inject(spec *specs.Spec, names []string) error {
	if len(names) == 0 {
		return nil
	}
	known, err := d.find(names)
	if err != nil {
		return err
	}
	if _, err := known.InjectDevices(spec, names...); err != nil {
		return fmt.Errorf("device %s: %w: %w", strings.Join(names, ", "), err, errdefs.ErrFailedPrecondition)
	}
	// A rule without access, of a node that is to be seen and not used, would allow everything.
	r := spec.Linux.Resources
	r.Devices = slices.DeleteFunc(r.Devices, func(x specs.LinuxDeviceCgroup) bool { return x.Allow && x.Access == "" })
	return nil
}

func (d Dirs) find(names []string) (*cdi.Cache, error) {
	known, err := cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(d...))
	if err != nil {
		return nil, fmt.Errorf("descriptions of devices in %s: %w", strings.Join(d, ", "), err)
	}
	for _, n := range names {
		if _, _, _, err := parser.ParseQualifiedName(n); err != nil {
			return nil, fmt.Errorf("device %q: %w; write vendor.com/class=name: %w", n, err, errdefs.ErrInvalidArgument)
		}
		if known.GetDevice(n) == nil {
			return nil, d.unknown(known, n)
		}
	}
	return known, nil
}

// unknown tells what is known instead, and which descriptions could not be read: it may be in one of those.
func (d Dirs) unknown(known *cdi.Cache, name string) error {
	others := strings.Join(known.ListDevices(), ", ")
	if others == "" {
		others = "none"
	}
	err := fmt.Errorf("device %s: no description in %s has it (known: %s): %w", name, strings.Join(d, ", "), others, errdefs.ErrInvalidArgument)
	bad := known.GetErrors()
	for _, path := range slices.Sorted(maps.Keys(bad)) {
		err = fmt.Errorf("%w; %s is damaged: %w", err, path, errors.Join(bad[path]...))
	}
	return err
}
