package containers

import (
	"encoding/csv"
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
		if !path.IsAbs(target) {
			return cli.Usagef("--tmpfs %q: the path in the container must be absolute", v)
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
	if !path.IsAbs(m.Target) {
		return nil, cli.Usagef("--volume %q: the path in the container must be absolute", v)
	}
	if strings.HasPrefix(m.Source, "/") || strings.HasPrefix(m.Source, ".") || strings.HasPrefix(m.Source, "~") {
		abs, err := filepath.Abs(m.Source)
		if err != nil {
			return nil, cli.Usagef("--volume %q: %w", v, err)
		}
		m.Source, m.Kind, m.CreateSource = abs, containersv1.VolumeMount_KIND_BIND, true
	}
	if len(parts) < 3 {
		return m, nil
	}
	for _, o := range strings.Split(parts[2], ",") {
		switch {
		case o == "ro":
			m.ReadOnly = true
		case o == "rw" || o == "":
		case propagations[o]:
			m.Propagation = o
		default:
			return nil, cli.Usagef("--volume %q: option %q is not known; ro, rw and the propagations (rprivate, rslave, rshared) are", v, o)
		}
	}
	return m, nil
}

// ParseMount parses one value of --mount: type=bind,source=/data,target=/data,readonly.
func ParseMount(v string) (*containersv1.VolumeMount, error) {
	fields, err := csv.NewReader(strings.NewReader(v)).Read()
	if err != nil {
		return nil, cli.Usagef("--mount %q: %w", v, err)
	}
	m := &containersv1.VolumeMount{Kind: containersv1.VolumeMount_KIND_VOLUME}
	for _, f := range fields {
		key, value, has := strings.Cut(f, "=")
		if err := mountField(m, strings.ToLower(key), value, has); err != nil {
			return nil, cli.Usagef("--mount %q: %w", v, err)
		}
	}
	if !path.IsAbs(m.Target) {
		return nil, cli.Usagef("--mount %q: target must be an absolute path", v)
	}
	if m.Kind == containersv1.VolumeMount_KIND_BIND && !filepath.IsAbs(m.Source) {
		return nil, cli.Usagef("--mount %q: source of a bind must be an absolute path", v)
	}
	return m, nil
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
	case "tmpfs-size":
		m.Options = append(m.Options, "size="+value)
	case "tmpfs-mode":
		m.Options = append(m.Options, "mode="+value)
	default:
		return cli.Usagef("%q is not known; type, source, target, readonly, bind-propagation, tmpfs-size and tmpfs-mode are", key)
	}
	return nil
}
