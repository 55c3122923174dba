package oci

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/gantryd/gantry/shim/runtime"
	"github.com/gantryd/gantry/shim/runtime/native"
)

// prepare mounts the root filesystem in the call's namespace and writes config.json for the program.
func (c *container) prepare(cfg *runtime.Config, known *knowledge) error {
	root := c.path(rootDir)
	if len(cfg.Rootfs) > 0 {
		if err := mountRoot(root, cfg.Rootfs); err != nil {
			return err
		}
	} else if root = cfg.Spec.Root.Path; !filepath.IsAbs(root) {
		root = filepath.Join(cfg.Bundle, root)
	}
	ms := c.mounts(cfg, known)
	for _, check := range []func([]specs.Mount) error{sources, shared} {
		if err := check(ms); err != nil {
			return err
		}
	}
	// It stays open as long as the container: the last close of it, which writes back an overlay, is
	// Delete's, and a container whose processes the host does not see is known by it alone.
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("root filesystem: %w", &os.PathError{Op: "open", Path: root, Err: err})
	}
	c.mu.Lock()
	c.root = fd
	c.mu.Unlock()
	p, err := c.process(fd, cfg.Spec.Process, cfg.User)
	if err != nil {
		return err
	}
	c.spec = p
	// As Docker: a working directory that is not there is made, by the program.
	if err := directory(fd, p.Cwd); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return writeJSON(c.path(configFile), rewrite(cfg, p, ms, root, known))
}

// rewrite is config.json as the program takes it.
func rewrite(cfg *runtime.Config, p *specs.Process, ms []specs.Mount, root string, known *knowledge) *specs.Spec {
	s, l := *cfg.Spec, *cfg.Spec.Linux
	s.Process, s.Linux = p, &l
	if v, ok := parseVersion(s.Version); !ok || known.spec.before(v) {
		s.Version = known.spec.String()
	}
	s.Root = &specs.Root{Path: root}
	if cfg.Spec.Root != nil {
		s.Root.Readonly = cfg.Spec.Root.Readonly
	}
	if cfg.NetNS != "" {
		l.Namespaces = slices.Clone(l.Namespaces)
		for i := range l.Namespaces {
			if l.Namespaces[i].Type == specs.NetworkNamespace {
				l.Namespaces[i].Path = cfg.NetNS
			}
		}
	}
	if !strings.HasPrefix(l.CgroupsPath, "/") {
		l.CgroupsPath = "/" + l.CgroupsPath
	}
	if l.Resources != nil {
		res := *l.Resources
		res.Devices = every(res.Devices)
		l.Resources = &res
	}
	s.Mounts = ms
	if l.RootfsPropagation == "" {
		l.RootfsPropagation = propagation(s.Mounts)
	}
	return &s
}

// mounts are those of config.json with absolute sources. A volume that is read-only is so as a whole,
// with what is mounted below it.
func (c *container) mounts(cfg *runtime.Config, known *knowledge) []specs.Mount {
	ms := slices.Clone(cfg.Spec.Mounts)
	for i, m := range ms {
		if !bound(m) {
			continue
		}
		if !filepath.IsAbs(m.Source) {
			ms[i].Source = filepath.Join(cfg.Bundle, m.Source)
		}
		switch {
		case !slices.Contains(m.Options, "rbind") || !slices.Contains(m.Options, "ro") || !isDirectory(ms[i].Source):
		case known.recursive:
			ms[i].Options = append(slices.Clone(m.Options), "rro")
		default:
			c.warn("what is mounted below a read-only volume can be written to: the runtime knows no better", "mount", m.Destination)
		}
	}
	return ms
}

// isDirectory reports whether something can be mounted below path. Of a file, crun takes no option that
// holds for what is below.
func isDirectory(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// propagation is that of the root mount, without which volumes have none: the program begins with it.
func propagation(ms []specs.Mount) string {
	words := ""
	for _, m := range ms {
		switch {
		case slices.Contains(m.Options, "shared") || slices.Contains(m.Options, "rshared"):
			return "shared"
		case slices.Contains(m.Options, "slave") || slices.Contains(m.Options, "rslave"):
			words = "rslave"
		}
	}
	return words
}

// every writes "any" in rules for devices as crun understands it too: not as -1, and not as nothing.
func every(rules []specs.LinuxDeviceCgroup) []specs.LinuxDeviceCgroup {
	out := slices.Clone(rules)
	for i, d := range out {
		if d.Type == "" {
			out[i].Type = "a"
		}
		if d.Major != nil && *d.Major < 0 {
			out[i].Major = nil
		}
		if d.Minor != nil && *d.Minor < 0 {
			out[i].Minor = nil
		}
	}
	return out
}

// process is spec with what this host and the container's own files make of it.
func (c *container) process(root int, spec *specs.Process, words string) (*specs.Process, error) {
	p := *spec
	user, home, err := native.Account(root, words, spec.User)
	if err != nil {
		return nil, err
	}
	p.User = user
	if !confined(&p) && !there(apparmor) {
		p.ApparmorProfile = "" // it is as it is asked for
	}
	if !slices.ContainsFunc(p.Env, func(kv string) bool { return strings.HasPrefix(kv, "HOME=") }) {
		p.Env = append(slices.Clone(p.Env), "HOME="+home)
	}
	if err := native.Capabilities(spec.Capabilities, c.warn); err != nil {
		return nil, err
	}
	p.Rlimits, p.OOMScoreAdj, err = native.Limits(spec.Rlimits, spec.OOMScoreAdj, c.warn)
	return &p, err
}

func writeJSON(path string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", filepath.Base(path), err)
	}
	return os.WriteFile(path, raw, 0o600)
}
