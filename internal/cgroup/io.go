package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const ioField = "linux.resources.blockIO."

// throttles are the limits of devices: config.json's name, v1's file and v2's key in io.max.
func throttles(b *specs.LinuxBlockIO) []struct {
	field, v1, v2 string
	list          []specs.LinuxThrottleDevice
} {
	return []struct {
		field, v1, v2 string
		list          []specs.LinuxThrottleDevice
	}{
		{"throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps", b.ThrottleReadBpsDevice},
		{"throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps", b.ThrottleWriteBpsDevice},
		{"throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "riops", b.ThrottleReadIOPSDevice},
		{"throttleWriteIOPSDevice", "blkio.throttle.write_iops_device", "wiops", b.ThrottleWriteIOPSDevice},
	}
}

func (g *Group) blockIO(r *specs.LinuxResources) error {
	b := r.BlockIO
	if b == nil {
		return nil
	}
	if err := weights(b); err != nil {
		return err
	}
	if g.inV2("blkio") {
		return g.ioV2(b)
	}
	if b.Weight != nil {
		if err := g.weigh("blkio", []string{"blkio.weight", "blkio.bfq.weight"}, strconv.Itoa(int(*b.Weight)), "weight"); err != nil {
			return err
		}
	}
	if b.LeafWeight != nil {
		if err := g.weigh("blkio", []string{"blkio.leaf_weight"}, strconv.Itoa(int(*b.LeafWeight)), "leafWeight"); err != nil {
			return err
		}
	}
	for _, d := range b.WeightDevice {
		if d.Weight != nil {
			if err := g.weigh("blkio", []string{"blkio.weight_device", "blkio.bfq.weight_device"}, fmt.Sprintf("%d:%d %d", d.Major, d.Minor, *d.Weight), "weightDevice"); err != nil {
				return err
			}
		}
		if d.LeafWeight != nil {
			if err := g.weigh("blkio", []string{"blkio.leaf_weight_device"}, fmt.Sprintf("%d:%d %d", d.Major, d.Minor, *d.LeafWeight), "weightDevice"); err != nil {
				return err
			}
		}
	}
	for _, t := range throttles(b) {
		for _, d := range t.list {
			if err := g.set(setting{"blkio", t.v1, fmt.Sprintf("%d:%d %d", d.Major, d.Minor, d.Rate), ioField + t.field}); err != nil {
				return err
			}
		}
	}
	return nil
}

// weights are those that the specification allows.
func weights(b *specs.LinuxBlockIO) error {
	all := []*uint16{b.Weight, b.LeafWeight}
	for _, d := range b.WeightDevice {
		all = append(all, d.Weight, d.LeafWeight)
	}
	for _, w := range all {
		if w != nil && (*w < 10 || *w > 1000) {
			return fmt.Errorf("%sweight %d: it must be between 10 and 1000: %w", ioField, *w, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// weigh writes a weight to the first of the files that this kernel has: it depends on its I/O schedulers.
func (g *Group) weigh(controller string, files []string, value, field string) error {
	var err error
	for _, f := range files {
		if err = g.set(setting{controller, f, value, ioField + field}); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return fmt.Errorf("%w (no I/O scheduler of this kernel's weighs groups)", err)
}

func (g *Group) ioV2(b *specs.LinuxBlockIO) error {
	// BFQ takes the numbers as they are; io.weight has 1 to 10,000 for 10 to 1,000 (runc, systemd).
	weigh := func(device string, weight uint16, field string) error {
		err := g.set(setting{"io", "io.bfq.weight", device + strconv.Itoa(int(weight)), ioField + field})
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if device == "" {
			device = "default "
		}
		return g.weigh("io", []string{"io.weight"}, device+strconv.Itoa(1+(int(weight)-10)*9999/990), field)
	}
	if b.Weight != nil {
		if err := weigh("", *b.Weight, "weight"); err != nil {
			return err
		}
	}
	for _, d := range b.WeightDevice {
		if d.Weight != nil {
			if err := weigh(fmt.Sprintf("%d:%d ", d.Major, d.Minor), *d.Weight, "weightDevice"); err != nil {
				return err
			}
		}
	}
	// One line for a device has all that is said of it.
	lines := map[string][]string{}
	fields := map[string]string{}
	for _, t := range throttles(b) {
		for _, d := range t.list {
			rate := strconv.FormatUint(d.Rate, 10)
			if d.Rate == 0 {
				rate = "max" // as v1: no limit
			}
			device := fmt.Sprintf("%d:%d", d.Major, d.Minor)
			lines[device] = append(lines[device], t.v2+"="+rate)
			fields[device] = t.field
		}
	}
	for _, device := range slices.Sorted(maps.Keys(lines)) {
		if err := g.set(setting{"io", "io.max", device + " " + strings.Join(lines[device], " "), ioField + fields[device]}); err != nil {
			return err
		}
	}
	return nil
}
