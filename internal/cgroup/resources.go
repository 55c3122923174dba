package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Unsupported names the first field of r that cannot be done here, "" if there is none. What depends on
// the kernel's controllers and not on the version of cgroups Limit refuses by the same names.
func Unsupported(r *specs.LinuxResources) string {
	h, err := Detect()
	if err != nil {
		return ""
	}
	return unsupported(h.Mode, r)
}

func unsupported(mode Mode, r *specs.LinuxResources) string {
	if r == nil {
		return ""
	}
	v2 := mode == V2
	switch {
	case r.Network != nil && (r.Network.ClassID != nil || len(r.Network.Priorities) > 0):
		return "linux.resources.network"
	case len(r.Unified) > 0 && !v2:
		return "linux.resources.unified"
	}
	if m := r.Memory; m != nil {
		switch {
		case m.Kernel != nil: //nolint:staticcheck // kernels take it and do nothing
			return "linux.resources.memory.kernel"
		case m.KernelTCP != nil && v2:
			return "linux.resources.memory.kernelTCP"
		case m.Swappiness != nil && v2:
			return "linux.resources.memory.swappiness"
		case m.DisableOOMKiller != nil && *m.DisableOOMKiller && v2:
			return "linux.resources.memory.disableOOMKiller"
		case m.UseHierarchy != nil && !*m.UseHierarchy:
			return "linux.resources.memory.useHierarchy"
		}
	}
	if c := r.CPU; c != nil && v2 {
		switch {
		case c.RealtimePeriod != nil:
			return "linux.resources.cpu.realtimePeriod"
		case c.RealtimeRuntime != nil:
			return "linux.resources.cpu.realtimeRuntime"
		}
	}
	if b := r.BlockIO; b != nil && v2 {
		if b.LeafWeight != nil || slices.ContainsFunc(b.WeightDevice, func(d specs.LinuxWeightDevice) bool { return d.LeafWeight != nil }) {
			return "linux.resources.blockIO.leafWeight"
		}
	}
	return ""
}

// Limit applies r; what r does not name stays. Device rules are not limits: see Devices.
func (g *Group) Limit(r *specs.LinuxResources) error {
	if field := unsupported(g.h.Mode, r); field != "" {
		return fmt.Errorf("limit cgroup: %s is not supported by cgroup %s: %w", field, g.h.Mode, errdefs.ErrNotImplemented)
	}
	if r == nil {
		return nil
	}
	steps := []func(*specs.LinuxResources) error{g.memory, g.cpu, g.blockIO, g.hugepages, g.rdma, g.pids, g.unified}
	for _, step := range steps {
		if err := step(r); err != nil {
			return fmt.Errorf("limit cgroup: %w", err)
		}
	}
	return nil
}

// setting is one value for one file of a controller. field is what config.json calls it.
type setting struct {
	controller, file, value string
	field                   string
}

// set writes a setting; what the host lacks is named.
func (g *Group) set(s setting) error {
	dir, err := g.controlled(s.controller)
	if err != nil {
		return fmt.Errorf("%s: %w", s.field, err)
	}
	err = write(filepath.Join(dir, s.file), s.value)
	switch {
	case errors.Is(err, fs.ErrNotExist) && g.h.Mode == V2 && !g.handed(s.controller):
		return fmt.Errorf("%s: the %s controller is not handed down to %s: %w", s.field, s.controller, dir, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: this kernel does not have it (%s): %w: %w", s.field, s.file, err, errdefs.ErrNotImplemented)
	case errors.Is(err, unix.ENODEV) && g.Exists():
		return fmt.Errorf("%s: there is no such device: %w: %w", s.field, err, errdefs.ErrInvalidArgument)
	case err != nil:
		return fmt.Errorf("%s: %w", s.field, err)
	}
	return nil
}

func (g *Group) setAll(list []setting) error {
	for _, s := range list {
		if err := g.set(s); err != nil {
			return err
		}
	}
	return nil
}

// controlled is the group's directory where a controller is: in its v1 hierarchy, else in the v2 tree,
// which on a hybrid host may have those that v1 does not.
func (g *Group) controlled(controller string) (string, error) {
	if dir := g.dir(controller); dir != "" {
		return dir, nil
	}
	if g.h.Mode == V2 {
		return g.h.V2 + g.Path, nil
	}
	if g.h.V2 == "" || !has(g.h.V2, controller) {
		return "", fmt.Errorf("this host has no %s controller: %w", controller, errdefs.ErrNotImplemented)
	}
	return g.h.V2 + g.Path, g.handDown(controller)
}

// inV2 reports whether a controller's files are v2's.
func (g *Group) inV2(controller string) bool { return g.dir(controller) == "" }

// handed reports whether the group has a controller of the v2 tree.
func (g *Group) handed(controller string) bool { return has(g.h.V2+g.Path, controller) }

// has reports whether a directory of a v2 tree has a controller.
func has(dir, controller string) bool {
	raw, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	return err == nil && slices.Contains(strings.Fields(string(raw)), controller)
}

// handDown hands one controller of a hybrid host's v2 tree down to the group.
func (g *Group) handDown(controller string) error {
	dir := g.h.V2
	for _, name := range strings.Split(strings.TrimPrefix(g.Path, "/"), "/") {
		if !has(filepath.Join(dir, name), controller) {
			if err := write(filepath.Join(dir, "cgroup.subtree_control"), "+"+controller); err != nil {
				return fmt.Errorf("hand the %s controller down: %w", controller, err)
			}
		}
		dir = filepath.Join(dir, name)
	}
	return nil
}

func (g *Group) pids(r *specs.LinuxResources) error {
	if r.Pids == nil || r.Pids.Limit == nil {
		return nil
	}
	value := "max"
	if *r.Pids.Limit > 0 {
		value = itoa(r.Pids.Limit)
	}
	return g.set(setting{"pids", "pids.max", value, "linux.resources.pids.limit"})
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
