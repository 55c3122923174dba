package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const memoryField = "linux.resources.memory."

func (g *Group) memory(r *specs.LinuxResources) error {
	m := r.Memory
	if m == nil {
		return nil
	}
	if m.CheckBeforeUpdate != nil && *m.CheckBeforeUpdate {
		if err := g.fits(m.Limit); err != nil {
			return err
		}
	}
	if g.inV2("memory") {
		return g.memoryV2(m)
	}
	if err := g.boundsV1(m); err != nil {
		return err
	}
	var list []setting
	add := func(file, value, field string) {
		list = append(list, setting{"memory", file, value, memoryField + field})
	}
	if m.Reservation != nil {
		add("memory.soft_limit_in_bytes", itoa(m.Reservation), "reservation")
	}
	if m.KernelTCP != nil {
		add("memory.kmem.tcp.limit_in_bytes", itoa(m.KernelTCP), "kernelTCP")
	}
	if m.Swappiness != nil {
		if *m.Swappiness > 100 {
			return fmt.Errorf("%sswappiness %d: it must be between 0 and 100: %w", memoryField, *m.Swappiness, errdefs.ErrInvalidArgument)
		}
		add("memory.swappiness", utoa(m.Swappiness), "swappiness")
	}
	if m.DisableOOMKiller != nil {
		value := "0"
		if *m.DisableOOMKiller {
			value = "1"
		}
		add("memory.oom_control", value, "disableOOMKiller")
	}
	return g.setAll(list)
}

// fits refuses a limit below what is in use: on v2 it would have the kernel kill.
func (g *Group) fits(limit *int64) error {
	if limit == nil || *limit < 0 {
		return nil
	}
	dir, err := g.controlled("memory")
	if err != nil {
		return fmt.Errorf("%scheckBeforeUpdate: %w", memoryField, err)
	}
	file := "memory.usage_in_bytes"
	if g.inV2("memory") {
		file = "memory.current"
	}
	used, err := number(filepath.Join(dir, file))
	if err != nil {
		return fmt.Errorf("%scheckBeforeUpdate: %w", memoryField, err)
	}
	if used > *limit {
		return fmt.Errorf("%slimit %d: %d bytes are in use: %w", memoryField, *limit, used, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// boundsV1 keeps the kernel's rule that memory is never above memory and swap together: the order of
// the two depends on whether they grow.
func (g *Group) boundsV1(m *specs.LinuxMemory) error {
	const memory, both = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
	swap := m.Swap
	if m.Limit != nil && *m.Limit == -1 && swap == nil {
		swap = m.Limit // without a bound for memory there is none for both
	}
	first := setting{"memory", memory, itoa(m.Limit), memoryField + "limit"}
	second := setting{"memory", both, itoa(swap), memoryField + "swap"}
	if m.Limit != nil {
		if now, err := number(filepath.Join(g.dir("memory"), memory)); err == nil && (*m.Limit < 0 || *m.Limit > now) {
			first, second = second, first
		}
	}
	for _, s := range []setting{first, second} {
		if s.value == "" {
			continue
		}
		err := g.set(s)
		if errors.Is(err, fs.ErrNotExist) && s.file == both {
			continue // a kernel that does not account swap; the daemon warns once
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (g *Group) memoryV2(m *specs.LinuxMemory) error {
	if m.Limit != nil {
		if err := g.set(setting{"memory", "memory.max", maxed(*m.Limit), memoryField + "limit"}); err != nil {
			return err
		}
	}
	if m.Swap != nil {
		value, err := g.swapV2(m)
		if err != nil {
			return err
		}
		if err := g.set(setting{"memory", "memory.swap.max", value, memoryField + "swap"}); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if m.Reservation != nil {
		value := itoa(m.Reservation)
		if *m.Reservation < 0 {
			value = "0"
		}
		return g.set(setting{"memory", "memory.low", value, memoryField + "reservation"})
	}
	return nil
}

// swapV2 is swap alone, which v2 bounds, where config.json has memory and swap together.
func (g *Group) swapV2(m *specs.LinuxMemory) (string, error) {
	if *m.Swap < 0 || *m.Swap == math.MaxInt64 {
		return "max", nil
	}
	limit := int64(-1)
	if m.Limit != nil {
		limit = *m.Limit
	} else if now, err := number(filepath.Join(g.h.V2+g.Path, "memory.max")); err == nil && now != math.MaxInt64 {
		limit = now
	}
	switch {
	case limit < 0:
		return "", fmt.Errorf("%sswap %d: memory has no limit of its own: give it one: %w", memoryField, *m.Swap, errdefs.ErrInvalidArgument)
	case *m.Swap < limit:
		return "", fmt.Errorf("%sswap %d: it is memory and swap together, and less than the %d of memory: %w", memoryField, *m.Swap, limit, errdefs.ErrInvalidArgument)
	}
	return strconv.FormatInt(*m.Swap-limit, 10), nil
}
