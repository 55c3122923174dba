package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func ptr[T any](v T) *T { return &v }

// fake is a group in a directory that looks like a v2 tree with these files and controllers.
func fake(t *testing.T, controllers string, files ...string) (*Group, string) {
	t.Helper()
	top := t.TempDir()
	dir := filepath.Join(top, "g")
	for _, d := range []string{top, dir} {
		if err := errors.Join(os.MkdirAll(d, 0o755), os.WriteFile(filepath.Join(d, "cgroup.controllers"), []byte(controllers+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range files {
		name, content, _ := strings.Cut(f, "=")
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return &Group{"/g", Hierarchies{Mode: V2, V2: top}}, dir
}

var device = specs.LinuxBlockIODevice{Major: 8, Minor: 16}

// limitsV2 are settings and what each writes where, "file=value" separated by ";".
var limitsV2 = []struct {
	name  string
	r     specs.LinuxResources
	files []string // with what is in them before
	want  string
}{
	{"memory", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(1000)), Swap: ptr(int64(1500)), Reservation: ptr(int64(700))}}, []string{"memory.max", "memory.swap.max", "memory.low"}, "memory.max=1000;memory.swap.max=500;memory.low=700"},
	{"no bounds", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-1)), Swap: ptr(int64(-1)), Reservation: ptr(int64(-1))}}, []string{"memory.max", "memory.swap.max", "memory.low"}, "memory.max=max;memory.swap.max=max;memory.low=0"},
	{"no swap", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(10)), Swap: ptr(int64(10))}}, []string{"memory.max", "memory.swap.max"}, "memory.max=10;memory.swap.max=0"},
	{"swap alone", specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: ptr(int64(5000))}}, []string{"memory.max=2000\n", "memory.swap.max"}, "memory.swap.max=3000"},
	{"a kernel without swap", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(10)), Swap: ptr(int64(10))}}, []string{"memory.max"}, "memory.max=10"},
	{"limit that fits", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(10)), CheckBeforeUpdate: ptr(true)}}, []string{"memory.max", "memory.current=9\n"}, "memory.max=10"},
	{"hierarchy", specs.LinuxResources{Memory: &specs.LinuxMemory{UseHierarchy: ptr(true), DisableOOMKiller: ptr(false)}}, nil, ""},
	{"cpu", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(5000)), Period: ptr(uint64(20000)), Burst: ptr(uint64(100)), Shares: ptr(uint64(1024)), Cpus: "0-1", Mems: "0"}}, []string{"cpu.max", "cpu.max.burst", "cpu.weight", "cpuset.cpus", "cpuset.mems"}, "cpu.max=5000 20000;cpu.max.burst=100;cpu.weight=39;cpuset.cpus=0-1;cpuset.mems=0"},
	{"period alone", specs.LinuxResources{CPU: &specs.LinuxCPU{Period: ptr(uint64(20000))}}, []string{"cpu.max"}, "cpu.max=max 20000"},
	{"idle", specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr(int64(1)), Shares: ptr(uint64(2))}}, []string{"cpu.idle"}, "cpu.idle=1"},
	{"weight of BFQ", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(500))}}, []string{"io.bfq.weight"}, "io.bfq.weight=500"},
	{"weight", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(1000))}}, []string{"io.weight"}, "io.weight=default 10000"},
	{"weight of a device", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{WeightDevice: []specs.LinuxWeightDevice{{LinuxBlockIODevice: device, Weight: ptr(uint16(10))}}}}, []string{"io.weight"}, "io.weight=8:16 1"},
	{"weight of a device of BFQ", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{WeightDevice: []specs.LinuxWeightDevice{{LinuxBlockIODevice: device, Weight: ptr(uint16(10))}}}}, []string{"io.bfq.weight"}, "io.bfq.weight=8:16 10"},
	{"throttles", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{
		ThrottleReadBpsDevice:   []specs.LinuxThrottleDevice{{LinuxBlockIODevice: device, Rate: 1}},
		ThrottleWriteBpsDevice:  []specs.LinuxThrottleDevice{{LinuxBlockIODevice: device, Rate: 2}},
		ThrottleReadIOPSDevice:  []specs.LinuxThrottleDevice{{LinuxBlockIODevice: device, Rate: 3}},
		ThrottleWriteIOPSDevice: []specs.LinuxThrottleDevice{{LinuxBlockIODevice: device}},
	}}, []string{"io.max"}, "io.max=8:16 rbps=1 wbps=2 riops=3 wiops=max"},
	{"huge pages", specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}}, []string{"hugetlb.2MB.max", "hugetlb.2MB.rsvd.max"}, "hugetlb.2MB.max=4194304;hugetlb.2MB.rsvd.max=4194304"},
	{"huge pages without reservation", specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "1GB", Limit: 0}}}, []string{"hugetlb.1GB.max"}, "hugetlb.1GB.max=0"},
	{"rdma", specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"mlx5_1": {HcaHandles: ptr(uint32(3)), HcaObjects: ptr(uint32(10000))}, "none": {}}}, []string{"rdma.max"}, "rdma.max=mlx5_1 hca_handle=3 hca_object=10000"},
	{"pids", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(-1))}}, []string{"pids.max"}, "pids.max=max"},
	{"unified", specs.LinuxResources{Unified: map[string]string{"memory.high": "100", "cpu.uclamp.max": "50.00", "cgroup.max.depth": "2"}}, []string{"memory.high", "cpu.uclamp.max", "cgroup.max.depth"}, "memory.high=100;cpu.uclamp.max=50.00;cgroup.max.depth=2"},
	{"unified over the rest", specs.LinuxResources{Unified: map[string]string{"pids.max": "7"}, Pids: &specs.LinuxPids{Limit: ptr(int64(5))}}, []string{"pids.max"}, "pids.max=7"},
}

func TestLimitsV2(t *testing.T) {
	t.Parallel()
	for _, c := range limitsV2 {
		g, dir := fake(t, "cpu cpuset io memory pids hugetlb rdma", c.files...)
		if err := g.Limit(&c.r); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		for _, f := range strings.Split(c.want, ";") {
			name, want, ok := strings.Cut(f, "=")
			if !ok {
				continue
			}
			if raw, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(raw) != want {
				t.Errorf("%s: %s is %q, want %q (%v)", c.name, name, raw, want, err)
			}
		}
	}
}

// TestRefusedV2: what v2, or this kernel, does not have, and what makes no sense, is refused by name.
func TestRefusedV2(t *testing.T) {
	t.Parallel()
	for want, r := range map[string]specs.LinuxResources{
		"linux.resources.network":                 {Network: &specs.LinuxNetwork{ClassID: ptr(uint32(1))}},
		"linux.resources.memory.kernel":           {Memory: &specs.LinuxMemory{Kernel: ptr(int64(1))}}, //nolint:staticcheck // refused
		"linux.resources.memory.kernelTCP":        {Memory: &specs.LinuxMemory{KernelTCP: ptr(int64(1))}},
		"linux.resources.memory.swappiness":       {Memory: &specs.LinuxMemory{Swappiness: ptr(uint64(1))}},
		"linux.resources.memory.disableOOMKiller": {Memory: &specs.LinuxMemory{DisableOOMKiller: ptr(true)}},
		"linux.resources.memory.useHierarchy":     {Memory: &specs.LinuxMemory{UseHierarchy: ptr(false)}},
		"linux.resources.memory.swap 5":           {Memory: &specs.LinuxMemory{Swap: ptr(int64(5))}},
		"linux.resources.memory.swap 6":           {Memory: &specs.LinuxMemory{Swap: ptr(int64(6)), Limit: ptr(int64(7))}},
		"linux.resources.memory.limit 5":          {Memory: &specs.LinuxMemory{Limit: ptr(int64(5)), CheckBeforeUpdate: ptr(true)}},
		"linux.resources.cpu.realtimePeriod":      {CPU: &specs.LinuxCPU{RealtimePeriod: ptr(uint64(1))}},
		"linux.resources.cpu.realtimeRuntime":     {CPU: &specs.LinuxCPU{RealtimeRuntime: ptr(int64(1))}},
		"linux.resources.cpu.burst":               {CPU: &specs.LinuxCPU{Burst: ptr(uint64(1))}},
		"linux.resources.cpu.idle":                {CPU: &specs.LinuxCPU{Idle: ptr(int64(1))}},
		"linux.resources.blockIO.leafWeight":      {BlockIO: &specs.LinuxBlockIO{LeafWeight: ptr(uint16(100))}},
		"linux.resources.blockIO.weight 1001":     {BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(1001))}},
		"linux.resources.blockIO.weight:":         {BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(100))}},
		"linux.resources.hugepageLimits[0]":       {HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "3MB"}}},
		"pageSize \"2mb\"":                        {HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2mb"}}},
		"pageSize \"../x\"":                       {HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "../x"}}},
		"pageSize \"\"":                           {HugepageLimits: []specs.LinuxHugepageLimit{{}}},
		"linux.resources.rdma.mlx5":               {Rdma: map[string]specs.LinuxRdma{"mlx5": {HcaHandles: ptr(uint32(1))}}},
		"linux.resources.rdma: device":            {Rdma: map[string]specs.LinuxRdma{"a b": {HcaHandles: ptr(uint32(1))}}},
		"linux.resources.unified.nothing":         {Unified: map[string]string{"nothing": "1"}},
		"linux.resources.unified.memory.odd":      {Unified: map[string]string{"memory.odd": "1"}},
		"linux.resources.unified.a../../b":        {Unified: map[string]string{"a../../b": "1"}},
		"linux.resources.unified.cgroup.procs":    {Unified: map[string]string{"cgroup.procs": "1"}},
	} {
		g, _ := fake(t, "cpu memory io hugetlb rdma", "memory.max=max\n", "memory.swap.max", "memory.current=9\n", "cgroup.procs")
		err := g.Limit(&r)
		if err == nil || !strings.Contains(err.Error(), want) || !errdefs.IsNotImplemented(err) && !errdefs.IsInvalidArgument(err) && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", want, err)
		}
	}
	g, _ := fake(t, "memory")
	if err := g.Limit(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(5))}}); err == nil || !strings.Contains(err.Error(), "pids controller is not handed down") {
		t.Errorf("a controller that is not handed down: %v", err)
	}
}

// TestHybridController: what v1 does not have, the v2 tree of a hybrid host may, and hands it down.
func TestHybridController(t *testing.T) {
	t.Parallel()
	g, dir := fake(t, "hugetlb", "hugetlb.2MB.max")
	g.h.Mode = Hybrid
	r := &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 7}}}
	if err := g.Limit(r); err != nil {
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(filepath.Join(dir, "hugetlb.2MB.max")); err != nil || string(raw) != "7" {
		t.Errorf("%q %v", raw, err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "cgroup.controllers"), nil, 0o644), os.WriteFile(filepath.Join(g.h.V2, "cgroup.subtree_control"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := g.Limit(r); err != nil {
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(filepath.Join(g.h.V2, "cgroup.subtree_control")); err != nil || string(raw) != "+hugetlb" {
		t.Errorf("%q %v", raw, err)
	}
	if err := g.Limit(&specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"x": {HcaHandles: ptr(uint32(1))}}}); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "linux.resources.rdma.x: this host has no rdma controller") {
		t.Errorf("%v", err)
	}
}

// TestLimitsV1 writes every limit that the kernel here has, and reads it back.
func TestLimitsV1(t *testing.T) {
	g := group(t)
	if g.h.Mode == V2 {
		t.Skip("SKIPPED: this host has no cgroup v1; see TestLimitsV2 and the runtime's suite")
	}
	if dir := g.dir("cpu"); dir != "" { // realtime needs some from above
		_ = write(filepath.Join(filepath.Dir(dir), "cpu.rt_runtime_us"), "20000")
	}
	block := someDisk(t)
	for _, c := range []struct {
		controller, file, want string
		r                      specs.LinuxResources
	}{
		{"cpu", "cpu.idle", "1", specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr(int64(1)), Shares: ptr(uint64(512))}}},
		{"cpu", "cpu.shares", "512", specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: ptr(int64(0)), Shares: ptr(uint64(512))}}},
		{"cpu", "cpu.cfs_burst_us", "5000", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(20000)), Burst: ptr(uint64(5000))}}},
		{"cpu", "cpu.rt_runtime_us", "9000", specs.LinuxResources{CPU: &specs.LinuxCPU{RealtimePeriod: ptr(uint64(1000000)), RealtimeRuntime: ptr(int64(9000))}}},
		{"cpuset", "cpuset.cpus", "0", specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0", Mems: "0"}}},
		{"memory", "memory.soft_limit_in_bytes", "1048576", specs.LinuxResources{Memory: &specs.LinuxMemory{Reservation: ptr(int64(1 << 20))}}},
		{"memory", "memory.swappiness", "17", specs.LinuxResources{Memory: &specs.LinuxMemory{Swappiness: ptr(uint64(17))}}},
		{"memory", "memory.kmem.tcp.limit_in_bytes", "1048576", specs.LinuxResources{Memory: &specs.LinuxMemory{KernelTCP: ptr(int64(1 << 20))}}},
		{"memory", "memory.oom_control", "oom_kill_disable 1", specs.LinuxResources{Memory: &specs.LinuxMemory{DisableOOMKiller: ptr(true)}}},
		{"memory", "memory.oom_control", "oom_kill_disable 0", specs.LinuxResources{Memory: &specs.LinuxMemory{DisableOOMKiller: ptr(false)}}},
		{"memory", "memory.memsw.limit_in_bytes", "33554432", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(16 << 20)), Swap: ptr(int64(32 << 20))}}},
		{"memory", "memory.memsw.limit_in_bytes", "67108864", specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: ptr(int64(64 << 20))}}},
		{"memory", "memory.memsw.limit_in_bytes", "9223372036854771712", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(-1))}}},
		{"blkio", "blkio.throttle.read_bps_device", block.name(" 1000000"), specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: block.rate(1000000)}}},
		{"blkio", "blkio.throttle.write_bps_device", block.name(" 2000000"), specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleWriteBpsDevice: block.rate(2000000)}}},
		{"blkio", "blkio.throttle.read_iops_device", block.name(" 300"), specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleReadIOPSDevice: block.rate(300)}}},
		{"blkio", "blkio.throttle.write_iops_device", block.name(" 400"), specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleWriteIOPSDevice: block.rate(400)}}},
		{"blkio", "blkio.bfq.weight", "300", specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: ptr(uint16(300))}}},
	} {
		at := filepath.Join(g.dir(c.controller), c.file)
		if _, err := os.Stat(at); err != nil {
			// What the kernel does not have must be refused by name, and never pass.
			if err := g.Limit(&c.r); !errdefs.IsNotImplemented(err) {
				t.Errorf("%s is not here, and: %v", c.file, err)
			}
			continue
		}
		if err := g.Limit(&c.r); err != nil {
			t.Errorf("%s: %v", c.file, err)
			continue
		}
		if raw, err := os.ReadFile(at); err != nil || !strings.Contains("\n"+string(raw), "\n"+c.want+"\n") {
			t.Errorf("%s is %q, want %q (%v)", c.file, raw, c.want, err)
		}
	}
	for want, r := range map[string]specs.LinuxResources{
		"linux.resources.unified":                        {Unified: map[string]string{"memory.high": "1"}},
		"linux.resources.memory.kernel":                  {Memory: &specs.LinuxMemory{Kernel: ptr(int64(1))}}, //nolint:staticcheck // refused
		"linux.resources.memory.swappiness 101":          {Memory: &specs.LinuxMemory{Swappiness: ptr(uint64(101))}},
		"linux.resources.cpu.realtimeRuntime":            {CPU: &specs.LinuxCPU{RealtimeRuntime: ptr(int64(900000))}},
		"linux.resources.blockIO.leafWeight":             {BlockIO: &specs.LinuxBlockIO{LeafWeight: ptr(uint16(100))}},
		"throttleReadBpsDevice: there is no such device": {BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: disk{4000, 77}.rate(1)}},
		"linux.resources.hugepageLimits[0].pageSize":     {HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "big"}}},
	} {
		if err := g.Limit(&r); err == nil || !strings.Contains(err.Error(), want) || !errdefs.IsNotImplemented(err) && !errdefs.IsInvalidArgument(err) && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// disk is a block device of this machine's.
type disk specs.LinuxBlockIODevice

func someDisk(t *testing.T) disk {
	t.Helper()
	all, _ := filepath.Glob("/sys/block/*/dev")
	for _, f := range all {
		if queue, err := os.ReadFile(filepath.Join(filepath.Dir(f), "size")); err != nil || string(queue) == "0\n" {
			continue
		}
		raw, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		var d disk
		if _, err := fmt.Sscanf(string(raw), "%d:%d", &d.Major, &d.Minor); err == nil {
			return d
		}
	}
	t.Skip("SKIPPED: this machine has no block device to throttle")
	return disk{}
}

func (d disk) name(rest string) string { return fmt.Sprintf("%d:%d%s", d.Major, d.Minor, rest) }

func (d disk) rate(n uint64) []specs.LinuxThrottleDevice {
	return []specs.LinuxThrottleDevice{{LinuxBlockIODevice: specs.LinuxBlockIODevice(d), Rate: n}}
}
