package cgroup

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const cpuField = "linux.resources.cpu."

func (g *Group) cpu(r *specs.LinuxResources) error {
	c := r.CPU
	if c == nil {
		return nil
	}
	var err error
	if g.inV2("cpu") {
		err = g.cpuV2(c)
	} else {
		err = g.cpuV1(c)
	}
	if err != nil {
		return err
	}
	for _, s := range []setting{
		{"cpuset", "cpuset.cpus", c.Cpus, cpuField + "cpus"},
		{"cpuset", "cpuset.mems", c.Mems, cpuField + "mems"},
	} {
		if s.value != "" {
			if err := g.set(s); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *Group) cpuV1(c *specs.LinuxCPU) error {
	for _, s := range []setting{
		{"cpu", "cpu.idle", itoa(c.Idle), cpuField + "idle"}, // before shares, which an idle group does not take
		{"cpu", "cpu.shares", utoa(c.Shares), cpuField + "shares"},
		{"cpu", "cpu.cfs_period_us", utoa(c.Period), cpuField + "period"},
		{"cpu", "cpu.cfs_quota_us", itoa(c.Quota), cpuField + "quota"},
		{"cpu", "cpu.cfs_burst_us", utoa(c.Burst), cpuField + "burst"},
		{"cpu", "cpu.rt_period_us", utoa(c.RealtimePeriod), cpuField + "realtimePeriod"},
		{"cpu", "cpu.rt_runtime_us", itoa(c.RealtimeRuntime), cpuField + "realtimeRuntime"},
	} {
		if s.value == "" || s.file == "cpu.shares" && c.Idle != nil && *c.Idle != 0 {
			continue
		}
		err := g.set(s)
		if errors.Is(err, unix.EINVAL) && s.file == "cpu.rt_runtime_us" {
			return fmt.Errorf("%w: the cgroup above, %s, has less realtime time to give: set its %s first: %w", err, filepath.Dir(g.Path), s.file, errdefs.ErrFailedPrecondition)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (g *Group) cpuV2(c *specs.LinuxCPU) error {
	if c.Idle != nil {
		if err := g.set(setting{"cpu", "cpu.idle", itoa(c.Idle), cpuField + "idle"}); err != nil {
			return err
		}
	}
	if c.Quota != nil || c.Period != nil {
		quota, period := "max", uint64(100000)
		if c.Quota != nil && *c.Quota > 0 {
			quota = itoa(c.Quota)
		}
		if c.Period != nil {
			period = *c.Period
		}
		if err := g.set(setting{"cpu", "cpu.max", quota + " " + strconv.FormatUint(period, 10), cpuField + "quota"}); err != nil {
			return err
		}
	}
	if c.Burst != nil {
		if err := g.set(setting{"cpu", "cpu.max.burst", utoa(c.Burst), cpuField + "burst"}); err != nil {
			return err
		}
	}
	if c.Shares != nil && *c.Shares > 0 && (c.Idle == nil || *c.Idle == 0) {
		// The mapping of systemd and runc: 2..262144 onto 1..10000.
		weight := 1 + (min(max(*c.Shares, 2), 262144)-2)*9999/262142
		return g.set(setting{"cpu", "cpu.weight", strconv.FormatUint(weight, 10), cpuField + "shares"})
	}
	return nil
}
