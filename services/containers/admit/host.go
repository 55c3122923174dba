package admit

import (
	"bufio"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gantryd/gantry/internal/hostdev"
	"github.com/gantryd/gantry/internal/ocispec"
	"github.com/gantryd/gantry/internal/seccomp"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// host is where the kernel says what it has.
type host struct{ sys string }

func thisHost() host { return host{sys: "/sys"} }

// checkHost refuses what this host does not have: a start would find out, but later.
func checkHost(spec *containersv1.Spec, h host) error {
	for _, d := range spec.GetDevices() {
		if d.GetCdi() != "" {
			continue
		}
		if _, err := hostdev.Find(d.GetHostPath(), d.GetHostPath()); err != nil {
			return err
		}
	}
	if p := spec.GetSeccomp().GetProfile(); len(p) > 0 {
		if _, err := seccomp.Load(p, ocispec.Capabilities(spec, nil)); err != nil {
			return err
		}
	}
	if err := h.apparmor(spec.GetApparmor()); err != nil {
		return err
	}
	return h.resources(spec.GetResources())
}

// resources looks for the block devices, processors and memory nodes that are named.
func (h host) resources(r *containersv1.Resources) error {
	for _, path := range ocispec.BlockPaths(r) {
		if _, _, err := hostdev.Block(path); err != nil {
			return err
		}
	}
	if err := h.online("processor", "devices/system/cpu/online", r.GetCpusetCpus()); err != nil {
		return err
	}
	return h.online("memory node", "devices/system/node/online", r.GetCpusetMems())
}

func (h host) online(what, file, list string) error {
	if list == "" {
		return nil
	}
	raw, err := os.ReadFile(filepath.Join(h.sys, file))
	if errors.Is(err, fs.ErrNotExist) { // a kernel without NUMA has one node
		raw, err = []byte("0"), nil
	}
	if err != nil {
		return err
	}
	there, err := ocispec.Set(strings.TrimSpace(string(raw)))
	if err != nil {
		return err
	}
	asked, err := ocispec.Set(list)
	if err != nil {
		return invalid("%s %q: %w", what, list, err)
	}
	for _, n := range asked {
		if !slices.Contains(there, n) {
			return invalid("%s %d of %q: this host has %s", what, n, list, strings.TrimSpace(string(raw)))
		}
	}
	return nil
}

// apparmor looks a profile up among those that are loaded (apparmorfs).
func (h host) apparmor(profile string) error {
	if profile == "" || profile == "unconfined" {
		return nil
	}
	on, err := os.ReadFile(filepath.Join(h.sys, "module/apparmor/parameters/enabled"))
	if errors.Is(err, fs.ErrNotExist) || err == nil && strings.TrimSpace(string(on)) != "Y" {
		return invalid("AppArmor profile %q: this kernel has no AppArmor, or it is turned off: take it away", profile)
	}
	if err != nil {
		return err
	}
	f, err := os.Open(filepath.Join(h.sys, "kernel/security/apparmor/profiles"))
	if err != nil {
		return invalid("AppArmor profile %q: which profiles are loaded cannot be read (is securityfs mounted?): %w", profile, err)
	}
	defer f.Close() //nolint:errcheck // it was only read
	for s := bufio.NewScanner(f); s.Scan(); {
		if name, _, ok := strings.Cut(s.Text(), " ("); ok && name == profile {
			return nil
		}
	}
	return invalid("AppArmor profile %q: it is not loaded; load it with apparmor_parser", profile)
}
