package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/spec"
)

// maxConfig bounds config.json and the seccomp filter, in bytes.
const maxConfig = 16 << 20

// config is what boot and config.json say, for the runtime.
func (s *shim) config() (*runtime.Config, error) {
	var sp *specs.Spec
	err := passing(s.dir.Config(), func(raw []byte) (err error) {
		if sp, err = spec.Config(raw); err != nil {
			return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("config.json: %w", err)
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
	if _, err := sized(path); err != nil {
		return nil, err
	}
	return os.ReadFile(path) //nolint:gosec // the daemon names it
}

// passing has fn read a file in memory that is given back when it returns: fn keeps no part of it.
func passing(path string, fn func(raw []byte) error) error {
	size, err := sized(path)
	if err != nil {
		return err
	}
	f, err := os.Open(path) //nolint:gosec // the daemon names it
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // it was only read
	// Not the file itself: whoever cuts it short meanwhile would end this process.
	buf, err := unix.Mmap(-1, 0, max(size, 1), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return err
	}
	defer unix.Munmap(buf) //nolint:errcheck // it is ours
	n, err := io.ReadFull(f, buf[:size])
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) { // cut short meanwhile: fn says what is wrong with it
		return err
	}
	return fn(buf[:n])
}

// sized is the size of a file that is no larger than what a daemon writes.
func sized(path string) (int, error) {
	st, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	if st.Size() > maxConfig || !st.Mode().IsRegular() {
		return 0, fmt.Errorf("%s: %v of %d bytes: %w", path, st.Mode().Type(), st.Size(), errdefs.ErrInvalidArgument)
	}
	return int(st.Size()), nil
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
