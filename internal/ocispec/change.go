package ocispec

import (
	"math"
	"reflect"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Change is what to tell a runtime, so that a container with the bounds of from has those of to: what
// differs, and for a bound that is taken away the value that bounds nothing. stuck are those for which
// the kernel has no such value: they stay as they are until the next start. Nil: there is nothing to tell.
func Change(from, to *specs.LinuxResources) (change *specs.LinuxResources, stuck []string) {
	d := difference{}
	out := &specs.LinuxResources{}
	if !reflect.DeepEqual(from.Memory, to.Memory) {
		out.Memory = d.memory(zero(from.Memory), zero(to.Memory))
	}
	if !reflect.DeepEqual(from.CPU, to.CPU) {
		out.CPU = d.cpu(zero(from.CPU), zero(to.CPU))
	}
	if !reflect.DeepEqual(from.BlockIO, to.BlockIO) {
		out.BlockIO = d.blocks(zero(from.BlockIO), zero(to.BlockIO))
	}
	if !reflect.DeepEqual(from.Pids, to.Pids) {
		out.Pids = to.Pids
		if out.Pids == nil {
			none := int64(-1)
			out.Pids = &specs.LinuxPids{Limit: &none}
		}
	}
	if reflect.DeepEqual(out, &specs.LinuxResources{}) {
		return nil, d.stuck
	}
	return out, d.stuck
}

// difference notes on its way what cannot be taken away.
type difference struct{ stuck []string }

func (d *difference) stays(what string, gone bool) {
	if gone {
		d.stuck = append(d.stuck, what)
	}
}

// zero is what p points at, or nothing.
func zero[T any](p *T) T {
	var none T
	if p != nil {
		return *p
	}
	return none
}

func (d *difference) memory(from, to specs.LinuxMemory) *specs.LinuxMemory {
	d.stays("the memory reservation", from.Reservation != nil && to.Reservation == nil)
	d.stays("the swappiness", from.Swappiness != nil && to.Swappiness == nil)
	if from.Limit != nil && to.Limit == nil {
		most := int64(math.MaxInt64) // not -1: that could be written before the limit of memory and swap, which must not be below
		to.Limit, to.Swap = &most, &most
	}
	if from.DisableOOMKiller != nil && to.DisableOOMKiller == nil {
		no := false
		to.DisableOOMKiller = &no
	}
	return nonzero(to)
}

func (d *difference) cpu(from, to specs.LinuxCPU) *specs.LinuxCPU {
	d.stays("the set of processors", from.Cpus != "" && to.Cpus == "")
	d.stays("the set of memory nodes", from.Mems != "" && to.Mems == "")
	if from.Quota != nil && to.Quota == nil {
		none := int64(-1)
		to.Quota = &none
	}
	if from.Period != nil && to.Period == nil {
		usual := uint64(period)
		to.Period = &usual
	}
	if from.Shares != nil && to.Shares == nil {
		usual := uint64(usualShares)
		to.Shares = &usual
	}
	return nonzero(to)
}

// nonzero is a pointer to v, nil if there is nothing in it.
func nonzero[T any](v T) *T {
	if reflect.ValueOf(v).IsZero() {
		return nil
	}
	return &v
}

// usualShares is the weight of a cgroup that has no other (cgroup v1's cpu.shares).
const usualShares = 1024

func (d *difference) blocks(from, to specs.LinuxBlockIO) *specs.LinuxBlockIO {
	d.stays("the block I/O weight", from.Weight != nil && to.Weight == nil)
	for _, w := range from.WeightDevice {
		same := func(x specs.LinuxWeightDevice) bool { return x.Major == w.Major && x.Minor == w.Minor }
		d.stays("the block I/O weight of a device", !slices.ContainsFunc(to.WeightDevice, same))
	}
	to.ThrottleReadBpsDevice = changeRates(from.ThrottleReadBpsDevice, to.ThrottleReadBpsDevice)
	to.ThrottleWriteBpsDevice = changeRates(from.ThrottleWriteBpsDevice, to.ThrottleWriteBpsDevice)
	to.ThrottleReadIOPSDevice = changeRates(from.ThrottleReadIOPSDevice, to.ThrottleReadIOPSDevice)
	to.ThrottleWriteIOPSDevice = changeRates(from.ThrottleWriteIOPSDevice, to.ThrottleWriteIOPSDevice)
	return nonzero(to)
}

// changeRates adds a rate of 0, which bounds nothing, for each device that had one.
func changeRates(from, to []specs.LinuxThrottleDevice) []specs.LinuxThrottleDevice {
	out := slices.Clone(to)
	for _, d := range from {
		if !slices.ContainsFunc(to, func(x specs.LinuxThrottleDevice) bool { return x.Major == d.Major && x.Minor == d.Minor }) {
			d.Rate = 0
			out = append(out, d)
		}
	}
	return out
}
