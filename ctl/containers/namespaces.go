package containers

import (
	"strings"

	"github.com/docker/go-units"
	"github.com/spf13/pflag"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// namespaceFlags is whose a container's namespaces are, and what is set in them.
type namespaceFlags struct {
	pid, ipc, uts, cgroupns, userns, cgroupParent, shmSize string
	sysctls                                                []string
}

func (f *namespaceFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.pid, "pid", "", "process namespace: host, or container:NAME")
	fs.StringVar(&f.ipc, "ipc", "", "IPC namespace: private, shareable, none, host, or container:NAME")
	fs.StringVar(&f.uts, "uts", "", "UTS namespace (its names): host, or container:NAME")
	fs.StringVar(&f.cgroupns, "cgroupns", "", "cgroup namespace: private, or host")
	fs.StringVar(&f.userns, "userns", "", "user namespace: host")
	fs.StringVar(&f.cgroupParent, "cgroup-parent", "", "put its cgroup into this one: /batch")
	fs.StringVar(&f.shmSize, "shm-size", "", "size of /dev/shm in bytes: 1g (default 64m)")
	fs.StringArrayVar(&f.sysctls, "sysctl", nil, "set a parameter of its namespaces: net.core.somaxconn=1024")
}

// The words for modes, beside host and container:NAME.
var (
	privateOnly = map[string]containersv1.Namespace_Mode{"private": containersv1.Namespace_MODE_UNSPECIFIED}
	ipcModes    = map[string]containersv1.Namespace_Mode{
		"private": containersv1.Namespace_MODE_UNSPECIFIED, "shareable": containersv1.Namespace_MODE_SHAREABLE, "none": containersv1.Namespace_MODE_NONE,
	}
)

func (f *namespaceFlags) apply(spec *containersv1.Spec) error {
	for _, x := range []struct {
		flag, value, known string
		words              map[string]containersv1.Namespace_Mode
		join               bool
		to                 **containersv1.Namespace
	}{
		{"pid", f.pid, "private, host and container:NAME are known", privateOnly, true, &spec.PidNamespace},
		{"ipc", f.ipc, "private, shareable, none, host and container:NAME are known", ipcModes, true, &spec.IpcNamespace},
		{"uts", f.uts, "private, host and container:NAME are known", privateOnly, true, &spec.UtsNamespace},
		{"cgroupns", f.cgroupns, "private and host are known", privateOnly, false, &spec.CgroupNamespace},
		{"userns", f.userns, "host is known, which is the default", nil, false, &spec.UserNamespace},
	} {
		n := &containersv1.Namespace{}
		of, joins := strings.CutPrefix(x.value, "container:")
		mode, known := x.words[x.value]
		switch {
		case x.value == "":
			continue
		case x.value == "host":
			n.Mode = containersv1.Namespace_MODE_HOST
		case joins && x.join && of != "":
			n.Mode, n.Container = containersv1.Namespace_MODE_CONTAINER, of
		case known:
			n.Mode = mode
		default:
			return cli.Usagef("--%s %q: %s", x.flag, x.value, x.known)
		}
		*x.to = n
	}
	if f.cgroupParent != "" {
		spec.CgroupParent = "/" + strings.Trim(f.cgroupParent, "/")
	}
	if f.shmSize != "" {
		n, err := units.RAMInBytes(f.shmSize)
		if err != nil || n <= 0 {
			return cli.Usagef("--shm-size %q: no size; write bytes, or 64m, 1g", f.shmSize)
		}
		spec.ShmBytes = n
	}
	for _, v := range f.sysctls {
		name, value, ok := strings.Cut(v, "=")
		if name = strings.TrimSpace(name); !ok || name == "" {
			return cli.Usagef("--sysctl %q: write NAME=VALUE, as in net.core.somaxconn=1024", v)
		}
		spec.Sysctls = append(spec.Sysctls, &containersv1.Sysctl{Name: name, Value: value})
	}
	return nil
}
