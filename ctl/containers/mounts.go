package containers

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

func (f *specFlags) storage(spec *containersv1.Spec) error {
	for _, v := range f.volumes {
		m, err := ParseVolume(v)
		if err != nil {
			return err
		}
		spec.Volumes = append(spec.Volumes, m)
	}
	for _, v := range f.mounts {
		m, err := ParseMount(v)
		if err != nil {
			return err
		}
		spec.Volumes = append(spec.Volumes, m)
	}
	for _, v := range f.tmpfs {
		target, options, _ := strings.Cut(v, ":")
		if err := mountable(target); err != nil {
			return cli.Usagef("--tmpfs %q: %w", v, err)
		}
		m := &containersv1.VolumeMount{Kind: containersv1.VolumeMount_KIND_TMPFS, Target: target}
		if options != "" {
			m.Options = strings.Split(options, ",")
		}
		spec.Volumes = append(spec.Volumes, m)
	}
	return nil
}

var propagations = map[string]bool{
	"private": true, "rprivate": true, "shared": true, "rshared": true, "slave": true, "rslave": true,
}

// nothingToDo are docker's options that change nothing here: gantry gives no SELinux labels (z and Z ask for
// other ones), the kernel's page cache is the same on both sides (consistent, cached, delegated: of Docker
// on other systems), and a new volume begins empty (nocopy).
var nothingToDo = map[string]bool{
	"z": true, "Z": true, "consistent": true, "cached": true, "delegated": true, "default": true, "nocopy": true,
}

// ParseVolume parses one value of --volume: [SOURCE:]PATH[:OPTIONS]. A source that begins with
// / or . is a path of the host, any other is a volume.
func ParseVolume(v string) (*containersv1.VolumeMount, error) {
	parts := strings.Split(v, ":")
	m := &containersv1.VolumeMount{Kind: containersv1.VolumeMount_KIND_VOLUME}
	switch len(parts) {
	case 1:
		m.Target = parts[0]
	case 2, 3:
		m.Source, m.Target = parts[0], parts[1]
		if m.Source == "" {
			return nil, cli.Usagef("--volume %q: the source is empty; write SOURCE:PATH[:ro]", v)
		}
	default:
		return nil, cli.Usagef("--volume %q: too many colons; write SOURCE:PATH[:ro], or use --mount", v)
	}
	if err := mountable(m.Target); err != nil {
		return nil, cli.Usagef("--volume %q: %w", v, err)
	}
	if strings.HasPrefix(m.Source, "~") {
		return nil, cli.Usagef("--volume %q: ~ is the shell's, which reads it only at the beginning of a word; write \"$HOME\"", v)
	}
	if strings.HasPrefix(m.Source, "/") || strings.HasPrefix(m.Source, ".") {
		abs, err := filepath.Abs(m.Source)
		if err != nil {
			return nil, cli.Usagef("--volume %q: %w", v, err)
		}
		m.Source, m.Kind, m.CreateSource = abs, containersv1.VolumeMount_KIND_BIND, true
	}
	if len(parts) < 3 {
		return m, nil
	}
	if err := volumeOptions(m, v, parts[2]); err != nil {
		return nil, err
	}
	return m, nil
}

// mountable says why nothing can be mounted at a path in a container.
func mountable(target string) error {
	switch {
	case !path.IsAbs(target):
		return fmt.Errorf("the path in the container, %q, must be absolute", target)
	case path.Clean(target) == "/":
		return fmt.Errorf("the path in the container cannot be its root")
	}
	return nil
}

func volumeOptions(m *containersv1.VolumeMount, v, options string) error {
	for _, o := range strings.Split(options, ",") {
		switch {
		case o == "ro":
			m.ReadOnly = true
		case o == "nocopy" && m.Kind == containersv1.VolumeMount_KIND_BIND:
			return cli.Usagef("--volume %q: nocopy is for volumes, and %q is a path of the host", v, m.Source)
		case o == "rw" || o == "" || nothingToDo[o]:
		case propagations[o] && m.Kind != containersv1.VolumeMount_KIND_BIND:
			return cli.Usagef("--volume %q: %s is for paths of the host, and %q is a volume", v, o, m.Source)
		case propagations[o]:
			m.Propagation = o
		default:
			return cli.Usagef("--volume %q: option %q is not known; ro, rw and the propagations (rprivate, rslave, rshared) are, and z, Z, cached, delegated, consistent and nocopy change nothing", v, o)
		}
	}
	return nil
}

// ParseMount parses one value of --mount: type=bind,source=/data,target=/data,readonly.
func ParseMount(v string) (*containersv1.VolumeMount, error) {
	r := csv.NewReader(strings.NewReader(v))
	fields, err := r.Read()
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("it is empty")
	}
	if err != nil {
		return nil, cli.Usagef("--mount %q: %w; write type=bind,source=/data,target=/data", v, err)
	}
	if _, err := r.Read(); !errors.Is(err, io.EOF) {
		return nil, cli.Usagef("--mount %q: it has more than one line", v)
	}
	m := &containersv1.VolumeMount{Kind: containersv1.VolumeMount_KIND_VOLUME}
	for _, f := range fields {
		key, value, has := strings.Cut(f, "=")
		if err := mountField(m, strings.ToLower(key), value, has); err != nil {
			return nil, cli.Usagef("--mount %q: %w", v, err)
		}
	}
	if err := mountSense(m); err != nil {
		return nil, cli.Usagef("--mount %q: %w", v, err)
	}
	return m, nil
}

// mountSense checks what only all fields together can tell.
func mountSense(m *containersv1.VolumeMount) error {
	if m.Target == "" {
		return fmt.Errorf("target is missing")
	}
	if err := mountable(m.Target); err != nil {
		return err
	}
	bind, tmpfs := m.Kind == containersv1.VolumeMount_KIND_BIND, m.Kind == containersv1.VolumeMount_KIND_TMPFS
	switch {
	case bind && !filepath.IsAbs(m.Source):
		return fmt.Errorf("source of a bind must be an absolute path")
	case !bind && strings.ContainsRune(m.Source, filepath.Separator):
		return fmt.Errorf("source %q is a path; add type=bind", m.Source)
	case tmpfs && m.Source != "":
		return fmt.Errorf("a tmpfs has no source")
	case !bind && m.Propagation != "":
		return fmt.Errorf("bind-propagation is for type=bind")
	case !tmpfs && len(m.Options) > 0:
		return fmt.Errorf("tmpfs-size and tmpfs-mode are for type=tmpfs")
	}
	return nil
}

var mountKinds = map[string]containersv1.VolumeMount_Kind{
	"bind":   containersv1.VolumeMount_KIND_BIND,
	"volume": containersv1.VolumeMount_KIND_VOLUME,
	"tmpfs":  containersv1.VolumeMount_KIND_TMPFS,
}

func mountField(m *containersv1.VolumeMount, key, value string, has bool) error {
	switch key {
	case "type":
		kind, ok := mountKinds[value]
		if !ok {
			return cli.Usagef("type %q is not known; bind, volume and tmpfs are", value)
		}
		m.Kind = kind
	case "source", "src":
		m.Source = value
	case "target", "dst", "destination":
		m.Target = value
	case "readonly", "ro":
		m.ReadOnly = true
		if has {
			on, err := strconv.ParseBool(value)
			if err != nil {
				return cli.Usagef("%s=%q: write true or false", key, value)
			}
			m.ReadOnly = on
		}
	case "bind-propagation":
		if !propagations[value] {
			return cli.Usagef("bind-propagation %q is not known", value)
		}
		m.Propagation = value
	case "consistency":
		if !nothingToDo[value] || value == "nocopy" || len(value) == 1 {
			return cli.Usagef("consistency %q is not known; consistent, cached and delegated are, and change nothing", value)
		}
	case "volume-nocopy": // it is what happens
	case "tmpfs-size":
		m.Options = append(m.Options, "size="+value)
	case "tmpfs-mode":
		m.Options = append(m.Options, "mode="+value)
	default:
		return cli.Usagef("%q is not known; type, source, target, readonly, bind-propagation, tmpfs-size and tmpfs-mode are", key)
	}
	return nil
}
