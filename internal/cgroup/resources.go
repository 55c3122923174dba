package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Unsupported names the first field of r that this package does not know, "" if there is none.
func Unsupported(r *specs.LinuxResources) string {
	if r == nil {
		return ""
	}
	switch {
	case r.BlockIO != nil:
		return "linux.resources.blockIO"
	case len(r.HugepageLimits) > 0:
		return "linux.resources.hugepageLimits"
	case r.Network != nil:
		return "linux.resources.network"
	case len(r.Rdma) > 0:
		return "linux.resources.rdma"
	case len(r.Unified) > 0:
		return "linux.resources.unified"
	}
	if m := r.Memory; m != nil {
		switch {
		case m.Kernel != nil, m.KernelTCP != nil: //nolint:staticcheck // deprecated, and refused for that
			return "linux.resources.memory.kernel"
		case m.Swappiness != nil:
			return "linux.resources.memory.swappiness"
		case m.DisableOOMKiller != nil && *m.DisableOOMKiller:
			return "linux.resources.memory.disableOOMKiller"
		}
	}
	if c := r.CPU; c != nil {
		switch {
		case c.RealtimePeriod != nil || c.RealtimeRuntime != nil:
			return "linux.resources.cpu.realtime"
		case c.Idle != nil:
			return "linux.resources.cpu.idle"
		case c.Burst != nil:
			return "linux.resources.cpu.burst"
		}
	}
	return ""
}

// Limit applies r; what r does not name stays. Device rules are not limits: see Devices.
func (g *Group) Limit(r *specs.LinuxResources) error {
	if field := Unsupported(r); field != "" {
		return fmt.Errorf("limit cgroup: %s is not supported: %w", field, errdefs.ErrNotImplemented)
	}
	if r == nil {
		return nil
	}
	var err error
	if g.h.Mode == V2 {
		err = g.limitV2(r)
	} else {
		err = g.limitV1(r)
	}
	if err != nil {
		return fmt.Errorf("limit cgroup: %w", err)
	}
	return nil
}

// set writes a value to a controller's file; a controller that the host lacks is named.
func (g *Group) set(controller, file, value string) error {
	dir := g.dir(controller)
	if g.h.Mode == V2 {
		dir = g.h.V2 + g.Path
	}
	if dir == "" {
		return fmt.Errorf("this host has no %s controller: %w", controller, errdefs.ErrNotImplemented)
	}
	err := write(filepath.Join(dir, file), value)
	if errors.Is(err, fs.ErrNotExist) && g.h.Mode == V2 {
		return fmt.Errorf("the %s controller is not handed down to %s: %w", controller, dir, err)
	}
	return err
}

func (g *Group) limitV1(r *specs.LinuxResources) error {
	if m := r.Memory; m != nil {
		if err := g.memoryV1(m); err != nil {
			return err
		}
	}
	if c := r.CPU; c != nil {
		for _, s := range []struct {
			controller, file, value string
			want                    bool
		}{
			{"cpu", "cpu.shares", utoa(c.Shares), c.Shares != nil},
			{"cpu", "cpu.cfs_period_us", utoa(c.Period), c.Period != nil},
			{"cpu", "cpu.cfs_quota_us", itoa(c.Quota), c.Quota != nil},
			{"cpuset", "cpuset.cpus", c.Cpus, c.Cpus != ""},
			{"cpuset", "cpuset.mems", c.Mems, c.Mems != ""},
		} {
			if s.want {
				if err := g.set(s.controller, s.file, s.value); err != nil {
					return err
				}
			}
		}
	}
	return g.pids(r.Pids)
}

// memoryV1 keeps the kernel's rule that memory is never above memory and swap together: the
// order of the two depends on whether they grow.
func (g *Group) memoryV1(m *specs.LinuxMemory) error {
	if m.Limit == nil && m.Reservation == nil {
		return nil
	}
	if m.Limit != nil {
		first, second := "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
		values := map[string]string{first: itoa(m.Limit)}
		if m.Swap != nil {
			values[second] = itoa(m.Swap)
		}
		if now, err := number(filepath.Join(g.dir("memory"), first)); err == nil && *m.Limit > now {
			first, second = second, first
		}
		for _, file := range []string{first, second} {
			v, ok := values[file]
			if !ok {
				continue
			}
			err := g.set("memory", file, v)
			if errors.Is(err, fs.ErrNotExist) && file == "memory.memsw.limit_in_bytes" {
				continue // a kernel that does not account swap; the daemon warns once
			}
			if err != nil {
				return err
			}
		}
	}
	if m.Reservation != nil {
		return g.set("memory", "memory.soft_limit_in_bytes", itoa(m.Reservation))
	}
	return nil
}

func (g *Group) pids(p *specs.LinuxPids) error {
	if p == nil || p.Limit == nil {
		return nil
	}
	value := "max"
	if *p.Limit > 0 {
		value = itoa(p.Limit)
	}
	return g.set("pids", "pids.max", value)
}

func (g *Group) limitV2(r *specs.LinuxResources) error {
	if m := r.Memory; m != nil {
		if m.Limit != nil {
			if err := g.set("memory", "memory.max", maxed(*m.Limit)); err != nil {
				return err
			}
			if m.Swap != nil {
				swap := *m.Swap
				if swap != -1 && swap != math.MaxInt64 {
					swap = max(swap-*m.Limit, 0) // v2 counts swap alone
				}
				if err := g.set("memory", "memory.swap.max", maxed(swap)); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
			}
		}
		if m.Reservation != nil {
			if err := g.set("memory", "memory.low", itoa(m.Reservation)); err != nil {
				return err
			}
		}
	}
	if c := r.CPU; c != nil {
		if err := g.cpuV2(c); err != nil {
			return err
		}
	}
	return g.pids(r.Pids)
}

func (g *Group) cpuV2(c *specs.LinuxCPU) error {
	if c.Quota != nil || c.Period != nil {
		quota, period := "max", uint64(100000)
		if c.Quota != nil && *c.Quota > 0 {
			quota = itoa(c.Quota)
		}
		if c.Period != nil {
			period = *c.Period
		}
		if err := g.set("cpu", "cpu.max", quota+" "+strconv.FormatUint(period, 10)); err != nil {
			return err
		}
	}
	if c.Shares != nil && *c.Shares > 0 {
		// The mapping of systemd and runc: 2..262144 onto 1..10000.
		weight := 1 + (min(max(*c.Shares, 2), 262144)-2)*9999/262142
		if err := g.set("cpu", "cpu.weight", strconv.FormatUint(weight, 10)); err != nil {
			return err
		}
	}
	if c.Cpus != "" {
		if err := g.set("cpuset", "cpuset.cpus", c.Cpus); err != nil {
			return err
		}
	}
	if c.Mems != "" {
		return g.set("cpuset", "cpuset.mems", c.Mems)
	}
	return nil
}

func maxed(n int64) string {
	if n < 0 || n == math.MaxInt64 {
		return "max"
	}
	return strconv.FormatInt(n, 10)
}

func itoa(n *int64) string {
	if n == nil {
		return ""
	}
	return strconv.FormatInt(*n, 10)
}

func utoa(n *uint64) string {
	if n == nil {
		return ""
	}
	return strconv.FormatUint(*n, 10)
}

// number reads a file that holds one number; "max" is the largest.
func number(path string) (int64, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	s := string(trim(raw))
	if s == "max" {
		return math.MaxInt64, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		return math.MaxInt64, nil
	}
	return n, err
}

func trim(b []byte) []byte {
	for len(b) > 0 && (b[len(b)-1] == '\n' || b[len(b)-1] == ' ') {
		b = b[:len(b)-1]
	}
	return b
}
