package containers

import (
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// securityFlags is what confines the processes, and what they are let out to.
type securityFlags struct {
	privileged                                             bool
	gpus                                                   string
	capAdd, capDrop, options, devices, deviceRules, groups []string
	oomScoreAdj                                            int
}

func (f *securityFlags) add(fs *pflag.FlagSet) {
	fs.BoolVar(&f.privileged, "privileged", false, "give it every capability and device, and hide, filter and protect nothing")
	fs.StringArrayVar(&f.capAdd, "cap-add", nil, "add a capability: NET_ADMIN, ALL")
	fs.StringArrayVar(&f.capDrop, "cap-drop", nil, "drop a capability: NET_RAW, ALL")
	fs.StringArrayVar(&f.options, "security-opt", nil, "no-new-privileges, seccomp=FILE|unconfined, apparmor=PROFILE, label=disable, systempaths=unconfined")
	fs.StringArrayVar(&f.devices, "device", nil, "give it a device of the host: /dev/sda[:/dev/xvda][:rwm], or vendor.com/class=name")
	fs.StringVar(&f.gpus, "gpus", "", `give it GPUs of nvidia: all, a number, or "device=0,1"`)
	fs.StringArrayVar(&f.deviceRules, "device-cgroup-rule", nil, `let it use devices by number: "c 189:* rwm"`)
	fs.StringArrayVar(&f.groups, "group-add", nil, "put the user into one more group, by number")
	fs.IntVar(&f.oomScoreAdj, "oom-score-adj", 0, "whom to choose when memory is short: -1000 (never it) to 1000")
}

func (f *securityFlags) apply(fs *pflag.FlagSet, spec *containersv1.Spec) error {
	spec.Privileged, spec.CapAdd, spec.CapDrop = f.privileged, f.capAdd, f.capDrop
	spec.DeviceRules, spec.Groups = f.deviceRules, f.groups
	if fs.Changed("oom-score-adj") {
		if f.oomScoreAdj < -1000 || f.oomScoreAdj > 1000 {
			return cli.Usagef("--oom-score-adj %d: write -1000 to 1000", f.oomScoreAdj)
		}
		n := int32(f.oomScoreAdj)
		spec.OomScoreAdj = &n
	}
	for _, g := range f.groups {
		if _, err := strconv.ParseUint(g, 10, 31); err != nil {
			return cli.Usagef("--group-add %q: write the group's number; in the image, getent group %s shows it", g, g)
		}
	}
	for _, d := range f.devices {
		one, err := ParseDevice(d)
		if err != nil {
			return err
		}
		spec.Devices = append(spec.Devices, one)
	}
	gpus, err := parseGPUs(f.gpus)
	if err != nil {
		return err
	}
	spec.Devices = append(spec.Devices, gpus...)
	for _, o := range f.options {
		if err := securityOption(spec, o); err != nil {
			return err
		}
	}
	return nil
}

// securityOption parses one value of --security-opt: KEY=VALUE, or as of old KEY:VALUE.
func securityOption(spec *containersv1.Spec, o string) error {
	key, value, has := strings.Cut(o, "=")
	if k, v, old := strings.Cut(o, ":"); old && len(k) < len(key) {
		key, value, has = k, v, true
	}
	switch key {
	case "no-new-privileges":
		on := true
		if has {
			var err error
			if on, err = strconv.ParseBool(value); err != nil {
				return cli.Usagef("--security-opt %q: write no-new-privileges, or no-new-privileges=false", o)
			}
		}
		spec.NoNewPrivileges = on
		return nil
	case "seccomp", "apparmor", "label", "systempaths":
		if value == "" {
			return cli.Usagef("--security-opt %q: write %s=VALUE", o, key)
		}
	}
	switch key {
	case "seccomp":
		return seccompOption(spec, value)
	case "apparmor":
		spec.Apparmor = value
	case "label":
		spec.Selinux = append(spec.Selinux, value)
	case "systempaths":
		if value != "unconfined" {
			return cli.Usagef("--security-opt %q: systempaths=unconfined is known", o)
		}
		spec.Unmask = true
	default:
		return cli.Usagef("--security-opt %q: no-new-privileges, seccomp=FILE, seccomp=unconfined, apparmor=PROFILE, label=disable and systempaths=unconfined are known", o)
	}
	return nil
}

// maxProfile bounds a seccomp profile, in bytes; Docker's own has 14 KiB.
const maxProfile = 512 << 10

// seccompOption reads the profile here: the daemon may be on another machine.
func seccompOption(spec *containersv1.Spec, value string) error {
	switch value {
	case "builtin":
		spec.Seccomp = nil
		return nil
	case "unconfined":
		spec.Seccomp = &containersv1.Seccomp{Unconfined: true}
		return nil
	}
	st, err := os.Stat(value)
	if err != nil {
		return cli.Usagef("--security-opt seccomp=%s: %w; write the path of a JSON file, or unconfined", value, err)
	}
	if !st.Mode().IsRegular() || st.Size() > maxProfile {
		return cli.Usagef("--security-opt seccomp=%s: it must be a file of %d bytes at most", value, maxProfile)
	}
	raw, err := os.ReadFile(value)
	if err != nil {
		return cli.Usagef("--security-opt seccomp=%s: %w", value, err)
	}
	if len(raw) == 0 {
		return cli.Usagef("--security-opt seccomp=%s: the file is empty", value)
	}
	spec.Seccomp = &containersv1.Seccomp{Profile: raw}
	return nil
}

// ParseDevice parses one value of --device: HOSTPATH[:PATH][:rwm], or a name of the Container Device Interface.
func ParseDevice(v string) (*containersv1.Device, error) {
	if class, name, ok := strings.Cut(v, "="); ok && name != "" && !strings.HasPrefix(v, "/") && strings.Contains(class, "/") {
		return &containersv1.Device{Cdi: v}, nil
	}
	parts := strings.Split(v, ":")
	d := &containersv1.Device{HostPath: parts[0]}
	switch {
	case len(parts) > 3:
		return nil, cli.Usagef("--device %q: too many colons; write /dev/sda:/dev/xvda:rwm", v)
	case len(parts) == 3:
		d.Path, d.Access = parts[1], parts[2]
	case len(parts) == 2 && strings.HasPrefix(parts[1], "/"):
		d.Path = parts[1]
	case len(parts) == 2:
		d.Access = parts[1]
	}
	switch {
	case !strings.HasPrefix(d.HostPath, "/"):
		return nil, cli.Usagef("--device %q: %q is no absolute path; write /dev/sda, or vendor.com/class=name", v, d.HostPath)
	case len(parts) == 3 && !strings.HasPrefix(d.Path, "/"):
		return nil, cli.Usagef("--device %q: %q is no absolute path in the container; write /dev/sda:/dev/xvda:rwm", v, d.Path)
	case len(parts) > 1 && d.Path == "" && d.Access == "", len(parts) == 3 && d.Access == "", strings.Trim(d.Access, "rwm") != "":
		return nil, cli.Usagef("--device %q: %q is neither a path nor some of r, w and m", v, parts[len(parts)-1])
	}
	return d, nil
}
