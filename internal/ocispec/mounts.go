package ocispec

import (
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

func defaults() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
	}
}

// mounts are the defaults, the files under /etc, and what the user mounts; who mounts over a default
// takes its place. What is nearer the root comes first, so that a mount inside another is seen.
func mounts(c *containersv1.Container, o Options) ([]specs.Mount, error) {
	mine, err := volumes(c, o.Volumes)
	if err != nil {
		return nil, err
	}
	taken := map[string]bool{}
	for _, m := range mine {
		taken[m.Destination] = true
	}
	var all []specs.Mount
	for _, m := range append(defaults(), memory(c.GetSpec(), o)...) {
		if writable(c.GetSpec(), m.Destination) {
			m.Options = slices.DeleteFunc(m.Options, func(o string) bool { return o == "ro" })
		}
		if !taken[m.Destination] && (!taken["/dev"] || !strings.HasPrefix(m.Destination, "/dev/")) {
			all = append(all, m)
		}
	}
	for _, name := range []string{"resolv.conf", "hostname", "hosts"} {
		if to := "/etc/" + name; o.Etc != "" && !taken[to] && !taken["/etc"] {
			m := specs.Mount{Destination: to, Type: "bind", Source: filepath.Join(o.Etc, name), Options: []string{"rbind", "rprivate"}}
			if c.GetSpec().GetReadOnly() {
				m.Options = append(m.Options, "ro")
			}
			all = append(all, m)
		}
	}
	slices.SortStableFunc(mine, func(a, b specs.Mount) int { return depth(a.Destination) - depth(b.Destination) })
	return append(all, mine...), nil
}

// writable says which of the defaults a privileged container may write to: its cgroup, and the kernel's
// parameters unless all of its root filesystem is read-only. As Docker.
func writable(s *containersv1.Spec, at string) bool {
	return s.GetPrivileged() && (at == "/sys/fs/cgroup" || at == "/sys" && !s.GetReadOnly())
}

func depth(p string) int { return strings.Count(path.Clean(p), "/") }

func volumes(c *containersv1.Container, made []*typesv1.Mount) ([]specs.Mount, error) {
	at := map[string]*typesv1.Mount{}
	for _, m := range made {
		at[path.Clean(m.GetTarget())] = m
	}
	list := c.GetVolumes()
	if len(list) == 0 {
		list = c.GetSpec().GetVolumes()
	}
	var out []specs.Mount
	for _, v := range list {
		target := path.Clean(v.GetTarget())
		switch KindOf(v) {
		case containersv1.VolumeMount_KIND_BIND:
			out = append(out, specs.Mount{Destination: target, Type: "bind", Source: v.GetSource(), Options: bindOptions(v)})
		case containersv1.VolumeMount_KIND_TMPFS:
			out = append(out, specs.Mount{Destination: target, Type: "tmpfs", Source: "tmpfs", Options: tmpfsOptions(v)})
		default:
			m, ok := at[target]
			if !ok {
				return nil, invalid("volume %s at %s is not mounted", v.GetSource(), target)
			}
			opts := slices.Clone(m.GetOptions())
			if v.GetReadOnly() && !slices.Contains(opts, "ro") {
				opts = append(slices.DeleteFunc(opts, func(o string) bool { return o == "rw" }), "ro")
			}
			out = append(out, specs.Mount{Destination: target, Type: m.GetType(), Source: m.GetSource(), Options: opts})
		}
	}
	return out, nil
}

// KindOf is what v's source names: where it does not say, an absolute path is bound.
func KindOf(v *containersv1.VolumeMount) containersv1.VolumeMount_Kind {
	if k := v.GetKind(); k != containersv1.VolumeMount_KIND_UNSPECIFIED {
		return k
	}
	if strings.HasPrefix(v.GetSource(), "/") {
		return containersv1.VolumeMount_KIND_BIND
	}
	return containersv1.VolumeMount_KIND_VOLUME
}

func bindOptions(v *containersv1.VolumeMount) []string {
	opts := []string{"rbind", or(v.GetPropagation(), "rprivate")}
	if v.GetReadOnly() {
		opts = append(opts, "ro")
	}
	return opts
}

// tmpfsOptions puts the user's options over the defaults that they contradict.
func tmpfsOptions(v *containersv1.VolumeMount) []string {
	opts := []string{"noexec", "nosuid", "nodev"}
	no := map[string]string{"exec": "noexec", "suid": "nosuid", "dev": "nodev"}
	for _, o := range v.GetOptions() {
		if d, ok := no[o]; ok {
			opts = slices.DeleteFunc(opts, func(x string) bool { return x == d })
		} else if !slices.Contains(opts, o) {
			opts = append(opts, o)
		}
	}
	if v.GetReadOnly() {
		opts = append(opts, "ro")
	}
	return opts
}

var propagations = []string{"", "private", "rprivate", "shared", "rshared", "slave", "rslave"}

// tmpfsWords are the options of tmpfs(5) and mount(8) that make sense in a container.
var tmpfsWords = []string{
	"rw", "ro", "exec", "noexec", "suid", "nosuid", "dev", "nodev", "sync", "async", "atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime",
}

var tmpfsKeys = []string{"size", "mode", "uid", "gid", "nr_inodes", "nr_blocks"}

func checkVolumes(vs []*containersv1.VolumeMount) error {
	seen := map[string]bool{}
	for _, v := range vs {
		target := v.GetTarget()
		switch {
		case !path.IsAbs(target) || strings.ContainsRune(target, 0):
			return invalid("mount at %q: the path in the container must be absolute", target)
		case path.Clean(target) == "/":
			return invalid("mount at %q: the root filesystem is the image's; mount below it", target)
		case seen[path.Clean(target)]:
			return invalid("mount at %q: something is mounted there already", target)
		}
		seen[path.Clean(target)] = true
		if err := checkSource(v); err != nil {
			return err
		}
	}
	return nil
}

func checkSource(v *containersv1.VolumeMount) error {
	kind := KindOf(v)
	if kind != containersv1.VolumeMount_KIND_BIND && v.GetPropagation() != "" {
		return invalid("mount at %q: only a path of the host has a propagation", v.GetTarget())
	}
	if kind != containersv1.VolumeMount_KIND_TMPFS && len(v.GetOptions()) > 0 {
		return invalid("mount at %q: only a tmpfs has options", v.GetTarget())
	}
	switch kind {
	case containersv1.VolumeMount_KIND_BIND:
		if !path.IsAbs(v.GetSource()) || strings.ContainsRune(v.GetSource(), 0) {
			return invalid("mount at %q: the path on the host, %q, must be absolute", v.GetTarget(), v.GetSource())
		}
		if !slices.Contains(propagations, v.GetPropagation()) {
			return invalid("mount at %q: propagation %q is not known; rprivate, rslave and rshared are", v.GetTarget(), v.GetPropagation())
		}
	case containersv1.VolumeMount_KIND_TMPFS:
		if v.GetSource() != "" {
			return invalid("mount at %q: a tmpfs has no source", v.GetTarget())
		}
		for _, o := range v.GetOptions() {
			key, value, has := strings.Cut(o, "=")
			if has && slices.Contains(tmpfsKeys, key) && value != "" || !has && slices.Contains(tmpfsWords, o) {
				continue
			}
			return invalid("mount at %q: tmpfs option %q is not known; size=64m and mode=1777 are", v.GetTarget(), o)
		}
	case containersv1.VolumeMount_KIND_VOLUME:
		if strings.ContainsAny(v.GetSource(), "/\x00") {
			return invalid("mount at %q: %q is no name of a volume; a path of the host must be absolute", v.GetTarget(), v.GetSource())
		}
	default:
		return invalid("mount at %q: kind %d is not known", v.GetTarget(), kind)
	}
	return nil
}
