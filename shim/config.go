package main

import (
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/spec"
)

// maxConfig bounds config.json and the seccomp filter, in bytes.
const maxConfig = 16 << 20

// config is what boot and config.json say, for the runtime.
func (s *shim) config() (*runtime.Config, error) {
	raw, err := readBounded(s.dir.Config())
	if err != nil {
		return nil, fmt.Errorf("config.json: %w", err)
	}
	sp, err := spec.Config(raw)
	if err != nil {
		return nil, fmt.Errorf("config.json: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if sp.Process == nil || sp.Linux == nil {
		return nil, fmt.Errorf("config.json: no process, or nothing for linux: %w", errdefs.ErrInvalidArgument)
	}
	c := &runtime.Config{
		ID: s.boot.GetContainerId(), Bundle: s.dir.Root, Spec: sp, User: s.boot.GetUser(), NetNS: s.boot.GetNetns(),
		Init: s.boot.GetInit(), Warn: s.warn,
	}
	for _, m := range s.boot.GetRootfs() {
		c.Rootfs = append(c.Rootfs, runtime.Mount{Type: m.GetType(), Source: m.GetSource(), Target: m.GetTarget(), Options: m.GetOptions()})
	}
	if p := s.boot.GetSeccomp(); p != "" {
		if c.Seccomp, err = readBounded(p); err != nil {
			return nil, fmt.Errorf("seccomp filter: %w", err)
		}
	}
	return c, nil
}

func readBounded(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Size() > maxConfig || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %v of %d bytes: %w", path, st.Mode().Type(), st.Size(), errdefs.ErrInvalidArgument)
	}
	return os.ReadFile(path) //nolint:gosec // the daemon names it
}

// ownPids reports whether the container has a pid namespace of its own, so that all of it dies with init.
func ownPids(sp *specs.Spec) bool {
	for _, n := range sp.Linux.Namespaces {
		if n.Type == specs.PIDNamespace {
			return n.Path == ""
		}
	}
	return false
}
