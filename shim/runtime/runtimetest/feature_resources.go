package runtimetest

import (
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantryd/gantry/internal/cgroup"
	"github.com/gantryd/gantry/shim/runtime"
)

func ptr[T any](v T) *T { return &v }

func onV2() bool {
	h, err := cgroup.Detect()
	return err == nil && h.Mode == cgroup.V2
}

// resource is a limit: config.json's name, what is asked for, and what is then read in v1's file of a
// controller, "memory/memory.swappiness", and in v2's; "" says that this version does not have it. Where
// the two differ, want is "v1's|v2's".
func resource(name string, r specs.LinuxResources, v1, v2, want string) feature {
	file := func() string {
		if onV2() {
			return v2
		}
		return v1
	}
	if before, after, ok := strings.Cut(want, "|"); ok {
		if want = before; onV2() {
			want = after
		}
	}
	return feature{
		name: "linux.resources." + name,
		here: func() bool {
			return file() != "" && (hasCgroupFile(file()) || strings.HasSuffix(file(), "/hugetlb.2MB.max"))
		},
		ask: func(b *Box) *runtime.Config {
			c := b.Sh("cat /sys/fs/cgroup/" + file())
			pids := c.Spec.Linux.Resources.Pids
			devices := c.Spec.Linux.Resources.Devices
			all := r
			if all.Pids == nil {
				all.Pids = pids
			}
			all.Devices = devices
			c.Spec.Linux.Resources = &all
			return c
		},
		want: want,
	}
}

// hasCgroupFile reports whether groups have a file, by making one.
func hasCgroupFile(file string) bool {
	g, err := cgroup.Open(above + "/probe")
	if err != nil || g.Create() != nil {
		return false
	}
	defer func() { _ = g.RemoveIfEmpty() }()
	binds, links := g.Mounts()
	if onV2() {
		_, err := os.Stat(filepath.Join(binds[""], file))
		return err == nil
	}
	controller, name, _ := strings.Cut(file, "/")
	if to := links[controller]; to != "" {
		controller = to
	}
	_, err = os.Stat(filepath.Join(binds[controller], name))
	return binds[controller] != "" && err == nil
}

var resourceFeatures = []feature{
	resource("cpu.shares", specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(262144))}}, "cpu/cpu.shares", "cpu.weight", "262144|10000"),
	resource("cpu.quota", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(20000)), Period: ptr(uint64(50000))}}, "cpu/cpu.cfs_quota_us", "cpu.max", "20000|20000 50000"),
	resource("cpu.burst", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(20000)), Burst: ptr(uint64(1000))}}, "cpu/cpu.cfs_burst_us", "cpu.max.burst", "1000"),
	resource("cpu.idle", specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr(int64(1))}}, "cpu/cpu.idle", "cpu.idle", "1"),
	resource("cpu.cpus", specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0", Mems: "0"}}, "cpuset/cpuset.cpus", "cpuset.cpus", "0"),
	resource("cpu.realtimePeriod", specs.LinuxResources{CPU: &specs.LinuxCPU{RealtimePeriod: ptr(uint64(500000))}}, "cpu/cpu.rt_period_us", "", "500000"),
	resource("memory.limit", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20))}}, "memory/memory.limit_in_bytes", "memory.max", "67108864"),
	resource("memory.swap", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), Swap: ptr(int64(96 << 20))}}, "memory/memory.memsw.limit_in_bytes", "memory.swap.max", "100663296|33554432"),
	resource("memory.reservation", specs.LinuxResources{Memory: &specs.LinuxMemory{Reservation: ptr(int64(32 << 20))}}, "memory/memory.soft_limit_in_bytes", "memory.low", "33554432"),
	resource("memory.swappiness", specs.LinuxResources{Memory: &specs.LinuxMemory{Swappiness: ptr(uint64(7))}}, "memory/memory.swappiness", "", "7"),
	resource("memory.kernelTCP", specs.LinuxResources{Memory: &specs.LinuxMemory{KernelTCP: ptr(int64(1 << 20))}}, "memory/memory.kmem.tcp.limit_in_bytes", "", "1048576"),
	resource("memory.disableOOMKiller", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(64 << 20)), DisableOOMKiller: ptr(true)}}, "memory/memory.oom_control", "", "oom_kill_disable 1\nunder_oom 0\noom_kill 0"),
	resource("memory.kernel", specs.LinuxResources{Memory: &specs.LinuxMemory{Kernel: ptr(int64(1 << 20))}}, "", "", ""), //nolint:staticcheck // refused: kernels do nothing about it
	resource("memory.useHierarchy", specs.LinuxResources{Memory: &specs.LinuxMemory{UseHierarchy: ptr(false)}}, "", "", ""),
	resource("blockIO.weight", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(300))}}, "blkio/blkio.bfq.weight", "io.weight", "300|default 2930"),
	resource("blockIO.leafWeight", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{LeafWeight: ptr(uint16(300))}}, "blkio/blkio.leaf_weight", "", "300"),
	resource("hugepageLimits", specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}}, hugetlb(), "hugetlb.2MB.max", "4194304"),
	resource("rdma", specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"no-such-device": {HcaHandles: ptr(uint32(1))}}}, "", "", ""),
	resource("network", specs.LinuxResources{Network: &specs.LinuxNetwork{ClassID: ptr(uint32(1))}}, "", "", ""),
	resource("unified", specs.LinuxResources{Unified: map[string]string{"memory.high": "67108864"}}, "", "memory.high", "67108864"),
	resource("pids.limit", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(33))}}, "pids/pids.max", "pids.max", "33"),
	{name: "linux.intelRdt", here: nowhere, ask: spec("true", func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{ClosID: "x"} })},
}

// hugetlb is where a hybrid host shows its limits of huge pages: v1's directory, or the v2 tree's.
func hugetlb() string {
	h, err := cgroup.Detect()
	if err != nil {
		return ""
	}
	for _, v1 := range h.V1 {
		if v1.Has("hugetlb") {
			return "hugetlb/hugetlb.2MB.limit_in_bytes"
		}
	}
	if raw, err := os.ReadFile(filepath.Join(h.V2, "cgroup.controllers")); err != nil || !strings.Contains(string(raw), "hugetlb") {
		return ""
	}
	return filepath.Base(h.V2) + "/hugetlb.2MB.max"
}
