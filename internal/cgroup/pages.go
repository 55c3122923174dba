package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// pageSize reports whether s is a size as the specification and the kernel write one: "2MB".
func pageSize(s string) bool {
	n := strings.TrimRight(s, "KMGTPEB")
	_, err := strconv.ParseUint(n, 10, 32)
	return err == nil && n[0] != '0' && len(s) == len(n)+2 && strings.HasSuffix(s, "B") && s[len(n)] != 'B'
}

// hugepages bounds what is in use and what is reserved, so that a program is told by mmap(2) and not by
// SIGBUS, where the kernel counts that.
func (g *Group) hugepages(r *specs.LinuxResources) error {
	for i, l := range r.HugepageLimits {
		field := fmt.Sprintf("linux.resources.hugepageLimits[%d]", i)
		if !pageSize(l.Pagesize) {
			return fmt.Errorf("%s.pageSize %q: not a size like 2MB: %w", field, l.Pagesize, errdefs.ErrInvalidArgument)
		}
		value, file := strconv.FormatUint(l.Limit, 10), "limit_in_bytes"
		if g.inV2("hugetlb") {
			file = "max"
		}
		if err := g.set(setting{"hugetlb", "hugetlb." + l.Pagesize + "." + file, value, field}); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				err = fmt.Errorf("%w: is %s a size of huge pages here?", err, l.Pagesize)
			}
			return err
		}
		if err := g.set(setting{"hugetlb", "hugetlb." + l.Pagesize + ".rsvd." + file, value, field}); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (g *Group) rdma(r *specs.LinuxResources) error {
	for _, device := range slices.Sorted(maps.Keys(r.Rdma)) {
		l := r.Rdma[device]
		if device == "" || strings.ContainsAny(device, " \n\x00") {
			return fmt.Errorf("linux.resources.rdma: device %q: no such name: %w", device, errdefs.ErrInvalidArgument)
		}
		value := device
		for _, x := range []struct {
			key  string
			most *uint32
		}{{"hca_handle", l.HcaHandles}, {"hca_object", l.HcaObjects}} {
			if x.most != nil {
				value += " " + x.key + "=" + strconv.FormatUint(uint64(*x.most), 10)
			}
		}
		if value == device {
			continue
		}
		if err := g.set(setting{"rdma", "rdma.max", value, "linux.resources.rdma." + device}); err != nil {
			return err
		}
	}
	return nil
}

// unified writes files of the v2 group as they are named. Those that say where processes are, or who may
// have controllers, are not limits.
func (g *Group) unified(r *specs.LinuxResources) error {
	for _, file := range slices.Sorted(maps.Keys(r.Unified)) {
		field := "linux.resources.unified." + file
		controller, _, ok := strings.Cut(file, ".")
		if !ok || controller == "" || strings.ContainsAny(file, "/\x00") || strings.Contains(file, "..") {
			return fmt.Errorf("%s: not the name of a controller's file: %w", field, errdefs.ErrInvalidArgument)
		}
		if controller == "cgroup" && file != "cgroup.max.descendants" && file != "cgroup.max.depth" && file != "cgroup.pressure" {
			return fmt.Errorf("%s: the runtime's own: %w", field, errdefs.ErrInvalidArgument)
		}
		// Some files take one line at a time.
		for l := range strings.Lines(r.Unified[file]) {
			if l = strings.TrimSuffix(l, "\n"); l == "" {
				continue
			}
			err := write(filepath.Join(g.h.V2+g.Path, file), l)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				return fmt.Errorf("%s: this kernel, or what the cgroup was handed down, does not have it: %w: %w", field, err, errdefs.ErrNotImplemented)
			case errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ERANGE):
				return fmt.Errorf("%s: %w: %w", field, err, errdefs.ErrInvalidArgument)
			case err != nil:
				return fmt.Errorf("%s: %w", field, err)
			}
		}
	}
	return nil
}
