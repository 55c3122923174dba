package containers

import (
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// specFlags is what create and run have in common: the words of docker's own flags.
type specFlags struct {
	name, user, workdir, entrypoint, hostname, domainname                    string
	restart, stopSignal, snapshotter, pull, runtime, platform, cidfile       string
	stopTimeout                                                              int
	interactive, tty, init, remove, readOnly, quiet                          bool
	env, envFiles, labels, volumes, mounts, tmpfs, publish, logOpts, ulimits []string
	hosts, dns, networks                                                     []string
	securityFlags
	resourceFlags
	namespaceFlags
}

// add declares the flags.
func (f *specFlags) add(fs *pflag.FlagSet) {
	fs.SetInterspersed(false)
	fs.Bool("help", false, "help for this command") // without cobra's -h, which is --hostname here
	fs.StringVar(&f.name, "name", "", "name of the container; one is made up if not given")
	fs.BoolVarP(&f.interactive, "interactive", "i", false, "keep stdin open")
	fs.BoolVarP(&f.tty, "tty", "t", false, "give the process a terminal")
	fs.BoolVar(&f.remove, "rm", false, "remove the container when it has exited")
	fs.StringArrayVarP(&f.env, "env", "e", nil, "set a variable: KEY=VALUE, or KEY to pass on this shell's")
	fs.StringArrayVar(&f.envFiles, "env-file", nil, "read variables from a file, one a line")
	fs.StringArrayVarP(&f.labels, "label", "l", nil, "set a label: key=value")
	fs.StringVarP(&f.workdir, "workdir", "w", "", "working directory in the container")
	fs.StringVarP(&f.user, "user", "u", "", "name or uid, and group: name|uid[:group|gid]")
	fs.StringVar(&f.entrypoint, "entrypoint", "", `run this instead of the image's entrypoint; "" for none`)
	fs.StringVarP(&f.hostname, "hostname", "h", "", "host name in the container; the short id if not given")
	fs.StringVar(&f.domainname, "domainname", "", "NIS domain name in the container")
	f.resourceFlags.add(fs)
	f.resourceFlags.addFixed(fs)
	f.namespaceFlags.add(fs)
	fs.StringArrayVarP(&f.volumes, "volume", "v", nil, "mount a host path or a volume: SOURCE:PATH[:ro]")
	fs.StringArrayVar(&f.mounts, "mount", nil, "the same in words: type=bind|volume|tmpfs,source=,target=[,readonly]")
	fs.StringArrayVar(&f.tmpfs, "tmpfs", nil, "mount memory: PATH[:size=64m,mode=1777]")
	fs.StringArrayVar(&f.networks, "network", nil, "network to join, which may be repeated; or none, host or container:NAME (default: the default network)")
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "net" { // docker's older word
			name = "network"
		}
		return pflag.NormalizedName(name)
	})
	fs.StringArrayVarP(&f.publish, "publish", "p", nil, "publish a port on the host: [[ADDRESS:]HOSTPORT:]PORT[/udp]")
	fs.StringArrayVar(&f.logOpts, "log-opt", nil, "bound the log: max-size=10m (-1 keeps all), max-file=3")
	fs.BoolVar(&f.init, "init", false, "run a small init as process 1, which reaps and forwards signals")
	fs.StringVar(&f.restart, "restart", "no", "start it again: no, on-failure[:N], always, unless-stopped")
	fs.StringVar(&f.stopSignal, "stop-signal", "", "signal that asks it to stop")
	fs.IntVar(&f.stopTimeout, "stop-timeout", 0, "seconds between that signal and SIGKILL (default 10)")
	fs.BoolVar(&f.readOnly, "read-only", false, "mount the root filesystem read-only")
	fs.StringArrayVar(&f.ulimits, "ulimit", nil, "set a limit: nofile=1024:2048")
	fs.StringArrayVar(&f.hosts, "add-host", nil, "add a line to /etc/hosts: name:address")
	fs.StringArrayVar(&f.dns, "dns", nil, "use this nameserver")
	f.securityFlags.add(fs)
	fs.StringVar(&f.snapshotter, "snapshotter", "", "storage driver (default: the daemon's)")
	fs.StringVar(&f.runtime, "runtime", "", "what makes the process: native, or an OCI runtime that the daemon knows (see: gantry info)")
	fs.StringVar(&f.platform, "platform", "", "platform of the image, if it is pulled: os/arch[/variant]")
	fs.StringVar(&f.pull, "pull", "missing", "pull the image first: always, missing, never")
	fs.StringVar(&f.cidfile, "cidfile", "", "write the container's id to this file, which must not be there")
	fs.BoolVarP(&f.quiet, "quiet", "q", false, "do not show how the pull goes")
}

// request turns the flags and the arguments after them into a request.
func (f *specFlags) request(cmd *cobra.Command, args []string) (*containersv1.CreateRequest, error) {
	spec := &containersv1.Spec{
		Image: args[0], Args: args[1:], User: f.user, Workdir: f.workdir, Tty: f.tty,
		OpenStdin: f.interactive, Snapshotter: f.snapshotter, RemoveOnExit: f.remove,
		Hostname: f.hostname, Domainname: f.domainname, StopSignal: f.stopSignal, Init: f.init,
		ReadOnly: f.readOnly, ExtraHosts: f.hosts, Dns: f.dns, Runtime: f.runtime,
	}
	if cmd.Flags().Changed("entrypoint") {
		spec.ClearEntrypoint = f.entrypoint == ""
		if f.entrypoint != "" {
			spec.Entrypoint = []string{f.entrypoint}
		}
	}
	if cmd.Flags().Changed("stop-timeout") {
		if f.stopTimeout < 0 {
			return nil, cli.Usagef("--stop-timeout %d: seconds cannot be negative", f.stopTimeout)
		}
		spec.StopGrace = durationpb.New(time.Duration(f.stopTimeout) * time.Second)
	}
	labels, err := cli.Labels(f.labels)
	if err != nil {
		return nil, err
	}
	for _, step := range []func(*containersv1.Spec) error{
		f.environment, f.storage, f.networking, f.logging, f.restarts, f.limits,
		func(s *containersv1.Spec) error { return f.securityFlags.apply(cmd.Flags(), s) },
		func(s *containersv1.Spec) (err error) {
			s.Resources, err = f.resourceFlags.resources(cmd.Flags())
			return err
		},
		f.namespaceFlags.apply,
	} {
		if err := step(spec); err != nil {
			return nil, err
		}
	}
	return &containersv1.CreateRequest{Name: f.name, Labels: labels, Spec: spec}, nil
}

func (f *specFlags) environment(spec *containersv1.Spec) error {
	for _, file := range f.envFiles {
		vars, err := cli.EnvFile(file)
		if err != nil {
			return err
		}
		spec.Env = append(spec.Env, vars...)
	}
	for _, v := range f.env {
		kv, ok, err := cli.EnvVar(v)
		if err != nil {
			return cli.Usagef("--env %w", err)
		}
		if ok {
			spec.Env = append(spec.Env, kv)
		}
	}
	return nil
}

func (f *specFlags) networking(spec *containersv1.Spec) error {
	for _, name := range f.networks {
		of, shared := strings.CutPrefix(name, "container:")
		switch {
		case (name == "none" || name == "host" || shared) && len(f.networks) > 1:
			return cli.Usagef("--network %s: a container on the host's network, on another's or on none joins no other; take the rest of %s away", name, strings.Join(f.networks, ", "))
		case name == "none":
			spec.NetworkMode = containersv1.NetworkMode_NETWORK_MODE_NONE
		case name == "host":
			spec.NetworkMode = containersv1.NetworkMode_NETWORK_MODE_HOST
		case shared && of == "":
			return cli.Usagef("--network %q: write container:NAME", name)
		case shared:
			spec.NetworkMode, spec.NetworkContainer = containersv1.NetworkMode_NETWORK_MODE_CONTAINER, of
		case (name == "" || name == "default") && len(f.networks) == 1:
		case name == "" || name == "default":
			spec.Networks = append(spec.Networks, &containersv1.NetworkAttachment{Network: "bridge"})
		default:
			spec.Networks = append(spec.Networks, &containersv1.NetworkAttachment{Network: name})
		}
	}
	for _, p := range f.publish {
		ports, err := ParsePublish(p)
		if err != nil {
			return err
		}
		spec.Ports = append(spec.Ports, ports)
	}
	if len(spec.Ports) > 0 && spec.NetworkMode == containersv1.NetworkMode_NETWORK_MODE_CONTAINER {
		return cli.Usagef("--publish with --network %s: publish the port of that container, whose network it is", f.networks[0])
	}
	if len(spec.Ports) > 0 && spec.NetworkMode == containersv1.NetworkMode_NETWORK_MODE_NONE {
		return cli.Usagef("--publish with --network none: nothing could reach the port; take one of them away")
	}
	return nil
}

func (f *specFlags) logging(spec *containersv1.Spec) error {
	for _, o := range f.logOpts {
		key, value, _ := strings.Cut(o, "=")
		if spec.Log == nil {
			spec.Log = &containersv1.LogOptions{}
		}
		switch key {
		case "max-size":
			if value == "-1" {
				spec.Log.MaxBytes = -1
				continue
			}
			n, err := units.RAMInBytes(value)
			if err != nil || n <= 0 {
				return cli.Usagef("--log-opt %q: no size; write max-size=10m, or max-size=-1 to keep everything", o)
			}
			spec.Log.MaxBytes = n
		case "max-file":
			n, err := strconv.ParseUint(value, 10, 16)
			if err != nil || n == 0 {
				return cli.Usagef("--log-opt %q: no number of files; write max-file=3", o)
			}
			spec.Log.MaxFiles = uint32(n)
		default:
			return cli.Usagef("--log-opt %q: max-size and max-file are known", o)
		}
	}
	return nil
}

func (f *specFlags) restarts(spec *containersv1.Spec) (err error) {
	if spec.Restart, err = parseRestart(f.restart); err != nil {
		return err
	}
	if f.remove && spec.GetRestart() != nil {
		return cli.Usagef("--restart %s with --rm: a container cannot be both started again and removed; take one of them away", f.restart)
	}
	return nil
}

// parseRestart reads the value of --restart; nil means never.
func parseRestart(word string) (*containersv1.RestartPolicy, error) {
	name, count, hasCount := strings.Cut(word, ":")
	if hasCount && name != "on-failure" {
		return nil, cli.Usagef("--restart %q: only on-failure takes a count", word)
	}
	p := &containersv1.RestartPolicy{}
	switch name {
	case "", "no":
		return nil, nil //nolint:nilnil // as documented
	case "on-failure":
		p.When = containersv1.RestartPolicy_WHEN_FAILED
		if hasCount {
			n, err := strconv.ParseUint(count, 10, 31)
			if err != nil {
				return nil, cli.Usagef("--restart %q: no count; write on-failure:5", word)
			}
			p.MaxAttempts = uint32(n)
		}
	case "always", "unless-stopped":
		p.When = containersv1.RestartPolicy_WHEN_EXITED
	default:
		return nil, cli.Usagef("--restart %q: no, on-failure[:N], always and unless-stopped are known", word)
	}
	return p, nil
}

func (f *specFlags) limits(spec *containersv1.Spec) error {
	for _, u := range f.ulimits {
		l, err := units.ParseUlimit(u)
		if err != nil {
			return cli.Usagef("--ulimit %q: %w; write nofile=1024:2048", u, err)
		}
		soft, hard := uint64(l.Soft), uint64(l.Hard) //nolint:gosec // -1 is the kernel's own word for no limit
		spec.Rlimits = append(spec.Rlimits, &containersv1.Rlimit{Name: l.Name, Soft: soft, Hard: hard})
	}
	return nil
}
