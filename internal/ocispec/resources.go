package ocispec

import (
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// minMemory is what a container needs to get as far as its first instruction.
const minMemory = 6 << 20

// period is the accounting period of the processor quota, in microseconds: the kernel's default.
const period = 100_000

// minQuota is the least quota that the kernel takes, in microseconds (kernel/sched/core.c, min_cfs_quota_period).
const minQuota = 1000

// maxPeriod is the longest period that it takes (max_cfs_quota_period).
const maxPeriod = 1_000_000

// Number is a block device's.
type Number struct{ Major, Minor int64 }

// Resources are the bounds of r in OCI words. blocks are the devices that it names, by path.
func Resources(r *containersv1.Resources, blocks map[string]Number) *specs.LinuxResources {
	out := &specs.LinuxResources{Memory: memoryBounds(r), CPU: cpuBounds(r), BlockIO: blockBounds(r, blocks)}
	if n := r.GetPids(); n > 0 {
		out.Pids = &specs.LinuxPids{Limit: &n}
	}
	return out
}

func memoryBounds(r *containersv1.Resources) *specs.LinuxMemory {
	m := &specs.LinuxMemory{}
	if n := r.GetMemoryBytes(); n > 0 {
		swap := int64(math.MaxInt64) // memory and swap together; as Docker, as much swap as memory
		if n < math.MaxInt64/2 {
			swap = 2 * n
		}
		if r.GetMemorySwapBytes() != 0 {
			swap = r.GetMemorySwapBytes()
		}
		m.Limit, m.Swap = &n, &swap
	}
	if n := r.GetMemoryReservationBytes(); n > 0 {
		m.Reservation = &n
	}
	if r != nil && r.MemorySwappiness != nil {
		n := uint64(r.GetMemorySwappiness())
		m.Swappiness = &n
	}
	if r.GetOomKillDisable() {
		yes := true
		m.DisableOOMKiller = &yes
	}
	if *m == (specs.LinuxMemory{}) {
		return nil
	}
	return m
}

func cpuBounds(r *containersv1.Resources) *specs.LinuxCPU {
	c := &specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	if n := r.GetCpuMillis(); n > 0 {
		quota, p := max(n*period/1000, minQuota), uint64(period)
		c.Quota, c.Period = &quota, &p
	}
	if n := r.GetCpuQuotaUsec(); n != 0 {
		c.Quota = &n
	}
	if n := r.GetCpuPeriodUsec(); n != 0 {
		c.Period = &n
	}
	if n := r.GetCpuShares(); n != 0 {
		c.Shares = &n
	}
	if *c == (specs.LinuxCPU{}) {
		return nil
	}
	return c
}

func blockBounds(r *containersv1.Resources, blocks map[string]Number) *specs.LinuxBlockIO {
	b := &specs.LinuxBlockIO{
		ThrottleReadBpsDevice: rates(r.GetReadBps(), blocks), ThrottleWriteBpsDevice: rates(r.GetWriteBps(), blocks),
		ThrottleReadIOPSDevice: rates(r.GetReadIops(), blocks), ThrottleWriteIOPSDevice: rates(r.GetWriteIops(), blocks),
	}
	if n := uint16(r.GetBlkioWeight()); n != 0 {
		b.Weight = &n
	}
	for _, d := range r.GetBlkioWeightDevices() {
		x, n := specs.LinuxWeightDevice{}, uint16(d.GetWeight())
		x.Major, x.Minor, x.Weight = blocks[d.GetPath()].Major, blocks[d.GetPath()].Minor, &n
		b.WeightDevice = append(b.WeightDevice, x)
	}
	if b.Weight == nil && len(BlockPaths(r)) == 0 {
		return nil
	}
	return b
}

func rates(list []*containersv1.DeviceRate, blocks map[string]Number) (out []specs.LinuxThrottleDevice) {
	for _, d := range list {
		x := specs.LinuxThrottleDevice{Rate: d.GetRate()}
		x.Major, x.Minor = blocks[d.GetPath()].Major, blocks[d.GetPath()].Minor
		out = append(out, x)
	}
	return out
}

// BlockPaths are the block devices of the host that r names.
func BlockPaths(r *containersv1.Resources) (paths []string) {
	for _, d := range r.GetBlkioWeightDevices() {
		paths = append(paths, d.GetPath())
	}
	for _, d := range slices.Concat(r.GetReadBps(), r.GetWriteBps(), r.GetReadIops(), r.GetWriteIops()) {
		paths = append(paths, d.GetPath())
	}
	return paths
}

func checkResources(r *containersv1.Resources, cpus int) error {
	for _, step := range []func() error{
		func() error { return checkMemory(r) },
		func() error { return checkCPU(r, cpus) },
		func() error { return checkBlocks(r) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	if r.GetPids() < -1 {
		return invalid("limit of %d processes: write a number, or -1 for no limit", r.GetPids())
	}
	return nil
}

func checkMemory(r *containersv1.Resources) error {
	m, swap, low := r.GetMemoryBytes(), r.GetMemorySwapBytes(), r.GetMemoryReservationBytes()
	switch {
	case m < 0:
		return invalid("memory limit %d: it cannot be negative", m)
	case m > 0 && m < minMemory:
		return invalid("memory limit %d bytes: at least %d MiB are needed", m, minMemory>>20)
	case swap < -1:
		return invalid("limit of memory and swap %d: write bytes, or -1 for no limit", swap)
	case swap != 0 && m == 0:
		return invalid("limit of memory and swap: give a memory limit as well")
	case swap > 0 && swap < m:
		return invalid("limit of memory and swap %d bytes: it counts both, and is less than the memory limit of %d", swap, m)
	case low < 0 || low > 0 && low < minMemory:
		return invalid("memory reservation %d bytes: at least %d MiB are needed", low, minMemory>>20)
	case m > 0 && low > m:
		return invalid("memory reservation %d bytes: it is above the memory limit of %d", low, m)
	case r.GetMemorySwappiness() < 0 || r.GetMemorySwappiness() > 100:
		return invalid("swappiness %d: it goes from 0 to 100", r.GetMemorySwappiness())
	}
	return nil
}

func checkCPU(r *containersv1.Resources, cpus int) error {
	n, quota, p := r.GetCpuMillis(), r.GetCpuQuotaUsec(), r.GetCpuPeriodUsec()
	switch {
	case n < 0 || n > 0 && n < 10:
		return invalid("%.3f processors: the least that the kernel can give is 0.01", float64(n)/1000)
	case n > int64(cpus)*1000:
		return invalid("%.2f processors: this host has %d", float64(n)/1000, cpus)
	case n > 0 && (quota != 0 || p != 0):
		return invalid("%.2f processors, and a quota or a period: they say the same: take one of them away", float64(n)/1000)
	case quota < -1 || quota > 0 && quota < minQuota:
		return invalid("processor quota %d µs: at least %d are needed, -1 means no limit", quota, minQuota)
	case p != 0 && (p < minQuota || p > maxPeriod):
		return invalid("processor period %d µs: it goes from %d to %d", p, minQuota, maxPeriod)
	case r.GetCpuShares() == 1 || r.GetCpuShares() > 262144:
		return invalid("processor shares %d: they go from 2 to 262144; 1024 is usual", r.GetCpuShares())
	}
	for what, list := range map[string]string{"processors": r.GetCpusetCpus(), "memory nodes": r.GetCpusetMems()} {
		if _, err := Set(list); err != nil {
			return invalid("%s %q: %w", what, list, err)
		}
	}
	return nil
}

func checkBlocks(r *containersv1.Resources) error {
	weight := func(of string, n uint32) error {
		if n != 0 && (n < 10 || n > 1000) {
			return invalid("block I/O weight %d%s: it goes from 10 to 1000", n, of)
		}
		return nil
	}
	if err := weight("", r.GetBlkioWeight()); err != nil {
		return err
	}
	for _, d := range r.GetBlkioWeightDevices() {
		if err := weight(" of "+d.GetPath(), d.GetWeight()); err != nil {
			return err
		}
	}
	for _, p := range BlockPaths(r) {
		if !path.IsAbs(p) || strings.ContainsRune(p, 0) {
			return invalid("block device %q: the path must be absolute", p)
		}
	}
	return nil
}

// maxSet bounds the numbers in a set: CONFIG_NR_CPUS is 8192 at most.
const maxSet = 8192

// Set reads numbers as cpuset(7) writes them: "0-2,7". Of "" there are none.
func Set(list string) (out []int, err error) {
	if list == "" {
		return nil, nil
	}
	for _, part := range strings.Split(list, ",") {
		from, to, ranged := strings.Cut(part, "-")
		if !ranged {
			to = from
		}
		a, err1 := strconv.ParseUint(from, 10, 16)
		b, err2 := strconv.ParseUint(to, 10, 16)
		if err1 != nil || err2 != nil || a > b || b >= maxSet {
			return nil, fmt.Errorf("%q is neither a number nor a range; write 0-2,7", part)
		}
		for n := a; n <= b; n++ {
			out = append(out, int(n))
		}
	}
	return out, nil
}

// limits are the names of setrlimit(2).
var limits = map[string]bool{
	"as": true, "core": true, "cpu": true, "data": true, "fsize": true, "locks": true, "memlock": true, "msgqueue": true,
	"nice": true, "nofile": true, "nproc": true, "rss": true, "rtprio": true, "rttime": true, "sigpending": true, "stack": true,
}

func checkRlimits(rs []*containersv1.Rlimit) error {
	seen := map[string]bool{}
	for _, r := range rs {
		switch {
		case !limits[r.GetName()]:
			return invalid("resource limit %q: no such limit; nofile and nproc are examples", r.GetName())
		case seen[r.GetName()]:
			return invalid("resource limit %q: given twice", r.GetName())
		case r.GetSoft() > r.GetHard():
			return invalid("resource limit %q: the soft limit %d is above the hard limit %d", r.GetName(), r.GetSoft(), r.GetHard())
		}
		seen[r.GetName()] = true
	}
	return nil
}

func rlimits(rs []*containersv1.Rlimit) []specs.POSIXRlimit {
	var out []specs.POSIXRlimit
	for _, r := range rs {
		out = append(out, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(r.GetName()), Soft: r.GetSoft(), Hard: r.GetHard()})
	}
	return out
}
