package ocispec

import (
	"math"
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

func resources(r *containersv1.Resources) *specs.LinuxResources {
	out := &specs.LinuxResources{Devices: deviceRules()}
	if m := r.GetMemoryBytes(); m > 0 {
		swap := int64(math.MaxInt64) // memory and swap together; as Docker, as much swap as memory
		if m < math.MaxInt64/2 {
			swap = 2 * m
		}
		out.Memory = &specs.LinuxMemory{Limit: &m, Swap: &swap}
	}
	if n := r.GetCpuMillis(); n > 0 {
		quota, p := max(n*period/1000, minQuota), uint64(period)
		out.CPU = &specs.LinuxCPU{Quota: &quota, Period: &p}
	}
	if n := r.GetPids(); n > 0 {
		out.Pids = &specs.LinuxPids{Limit: &n}
	}
	return out
}

// deviceRules lets a container make any device node and use those that every program expects.
func deviceRules() []specs.LinuxDeviceCgroup {
	every := int64(-1)
	rule := func(major, minor int64, access string) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: access}
	}
	return []specs.LinuxDeviceCgroup{
		{Access: "rwm"},
		rule(every, every, "m"),
		{Allow: true, Type: "b", Major: &every, Minor: &every, Access: "m"},
		rule(1, 3, "rwm"), rule(1, 5, "rwm"), rule(1, 7, "rwm"), rule(1, 8, "rwm"), rule(1, 9, "rwm"), // null zero full random urandom
		rule(5, 0, "rwm"), rule(5, 1, "rwm"), rule(5, 2, "rwm"), rule(136, every, "rwm"), // tty console ptmx pts
	}
}

func checkResources(r *containersv1.Resources, cpus int) error {
	switch {
	case r.GetMemoryBytes() < 0:
		return invalid("memory limit %d: it cannot be negative", r.GetMemoryBytes())
	case r.GetMemoryBytes() > 0 && r.GetMemoryBytes() < minMemory:
		return invalid("memory limit %d bytes: at least %d MiB are needed", r.GetMemoryBytes(), minMemory>>20)
	case r.GetCpuMillis() < 0 || r.GetCpuMillis() > 0 && r.GetCpuMillis() < 10:
		return invalid("%.3f processors: the least that the kernel can give is 0.01", float64(r.GetCpuMillis())/1000)
	case r.GetCpuMillis() > int64(cpus)*1000:
		return invalid("%.2f processors: this host has %d", float64(r.GetCpuMillis())/1000, cpus)
	case r.GetPids() < -1:
		return invalid("limit of %d processes: write a number, or -1 for no limit", r.GetPids())
	}
	return nil
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
