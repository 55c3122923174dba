package containers

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

func newInspectCommand(env *cli.Env) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "inspect [flags] CONTAINER...", Short: "Show all that is known of containers",
		Args: cli.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runInspect(cmd.Context(), env, format, args) },
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "a template, as in '{{.State.Pid}}', or json")
	return cmd
}

func runInspect(ctx context.Context, env *cli.Env, format string, refs []string) error {
	return env.Inspect(format, refs, func(ref string) (any, error) { return Document(ctx, env, ref) })
}

// Document is what inspect shows of one container, under the names that docker's users know.
func Document(ctx context.Context, env *cli.Env, ref string) (any, error) {
	got, err := env.Containers().Get(ctx, &containersv1.GetRequest{Ref: ref})
	if err != nil {
		return nil, err
	}
	return document(got.GetContainer()), nil
}

type inspectDocument struct {
	ID              string `json:"Id"`
	Created         string
	Path            string
	Args            []string
	State           inspectState
	Image           string
	Name            string
	RestartCount    uint32
	Driver          string
	Platform        string
	Mounts          []inspectMount
	Config          inspectConfig
	HostConfig      inspectHostConfig
	NetworkSettings inspectNetworks
	Gantry          inspectGantry
}

type inspectState struct {
	Status     string
	Running    bool
	Paused     bool
	Restarting bool
	OOMKilled  bool
	Dead       bool
	Pid        uint32
	ExitCode   uint32
	Error      string
	Warnings   []string `json:",omitempty"`
	StartedAt  string
	FinishedAt string
}

type inspectMount struct {
	Type        string
	Name        string `json:",omitempty"`
	Source      string
	Destination string
	RW          bool
	Propagation string
}

type inspectConfig struct {
	Hostname    string
	Domainname  string
	User        string
	Tty         bool
	OpenStdin   bool
	StdinOnce   bool
	Env         []string
	Cmd         []string
	Image       string
	WorkingDir  string
	Entrypoint  []string
	Labels      map[string]string
	StopSignal  string `json:",omitempty"`
	StopTimeout *int64 `json:",omitempty"`
}

type inspectBinding struct{ HostIp, HostPort string } //nolint:revive,stylecheck // docker's spelling

type inspectNetworks struct {
	IPAddress   string
	IPPrefixLen int
	Gateway     string
	MacAddress  string
	Ports       map[string][]inspectBinding
	Networks    map[string]inspectNetwork
}

type inspectNetwork struct {
	IPAddress   string
	IPPrefixLen int
	Gateway     string
	MacAddress  string
	Aliases     []string
}

// inspectGantry is what docker has no word for.
type inspectGantry struct {
	Wanted   string
	Phase    string
	Run      uint64
	Message  string
	Reason   string
	Revision uint64
}

func document(c *containersv1.Container) *inspectDocument {
	status, meta := c.GetStatus(), c.GetMeta()
	d := &inspectDocument{
		ID: meta.GetId(), Created: stamp(meta.GetCreatedAt()), Args: []string{}, Image: c.GetOrigin().GetImageId(), Name: "/" + meta.GetName(),
		RestartCount: status.GetRestarts(), Driver: c.GetOrigin().GetSnapshotter(), Platform: "linux", Mounts: []inspectMount{},
		State: inspectState{
			Status: stateWord(c), Running: alive(c), Paused: stateWord(c) == "paused", Restarting: stateWord(c) == "restarting",
			OOMKilled: status.GetExit().GetReason() == "oom", Pid: status.GetPid(), ExitCode: status.GetExit().GetCode(),
			Error: status.GetMessage(), Warnings: status.GetWarnings(), StartedAt: stamp(status.GetStartedAt()), FinishedAt: stamp(status.GetExit().GetAt()),
		},
		Config: configDocument(c),
		Gantry: inspectGantry{
			Wanted: c.GetWanted().String(), Phase: status.GetPhase().String(), Run: status.GetRun(),
			Message: status.GetMessage(), Reason: status.GetExit().GetReason(), Revision: meta.GetRevision(),
		},
	}
	if words := c.GetCommand(); len(words) > 0 {
		d.Path, d.Args = words[0], words[1:]
	}
	if !alive(c) {
		d.State.Pid = 0
	}
	d.HostConfig = hostConfig(c)
	d.Mounts = mountDocuments(c.GetVolumes())
	d.NetworkSettings = networkSettings(c)
	return d
}

// configDocument is what the process is told: the user's words over the image's.
func configDocument(c *containersv1.Container) inspectConfig {
	spec, image := c.GetSpec(), c.GetOrigin().GetConfig()
	d := inspectConfig{
		Hostname: or(spec.GetHostname(), cli.Short(c.GetMeta().GetId())), Domainname: spec.GetDomainname(),
		User: or(spec.GetUser(), image.GetUser()), Tty: spec.GetTty(), OpenStdin: spec.GetOpenStdin(), StdinOnce: spec.GetStdinOnce(),
		Env: append(append([]string{}, image.GetEnv()...), spec.GetEnv()...), Cmd: spec.GetArgs(), Entrypoint: spec.GetEntrypoint(),
		Image: spec.GetImage(), WorkingDir: or(spec.GetWorkdir(), image.GetWorkdir()), Labels: c.GetMeta().GetLabels(),
		StopSignal: or(spec.GetStopSignal(), image.GetStopSignal()),
	}
	if len(d.Entrypoint) == 0 && !spec.GetClearEntrypoint() {
		d.Entrypoint = image.GetEntrypoint()
		if len(d.Cmd) == 0 {
			d.Cmd = image.GetCmd()
		}
	}
	if d.Labels == nil {
		d.Labels = map[string]string{}
	}
	if g := spec.GetStopGrace(); g != nil {
		seconds := int64(g.AsDuration() / time.Second)
		d.StopTimeout = &seconds
	}
	return d
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func mountDocuments(volumes []*containersv1.VolumeMount) []inspectMount {
	out := []inspectMount{}
	for _, m := range volumes {
		d := inspectMount{Type: "volume", Source: m.GetSource(), Destination: m.GetTarget(), RW: !m.GetReadOnly(), Propagation: m.GetPropagation()}
		switch m.GetKind() {
		case containersv1.VolumeMount_KIND_BIND:
			d.Type = "bind"
			if d.Propagation == "" {
				d.Propagation = "rprivate"
			}
		case containersv1.VolumeMount_KIND_TMPFS:
			d.Type = "tmpfs"
		default:
			d.Name = m.GetSource()
		}
		out = append(out, d)
	}
	return out
}

func networkSettings(c *containersv1.Container) inspectNetworks {
	n := inspectNetworks{Ports: bindings(published(c)), Networks: map[string]inspectNetwork{}}
	for i, a := range c.GetStatus().GetAddresses() {
		one := inspectNetwork{Gateway: a.GetGateway(), MacAddress: a.GetMac()}
		if p, err := netip.ParsePrefix(a.GetAddress()); err == nil {
			one.IPAddress, one.IPPrefixLen = p.Addr().String(), p.Bits()
		}
		n.Networks[a.GetNetwork()] = one
		if i == 0 {
			n.IPAddress, n.IPPrefixLen, n.Gateway, n.MacAddress = one.IPAddress, one.IPPrefixLen, one.Gateway, one.MacAddress
		}
	}
	return n
}

func bindings(ports []*containersv1.PortMapping) map[string][]inspectBinding {
	m := map[string][]inspectBinding{}
	for _, p := range ports {
		for i := range max(p.GetCount(), 1) {
			proto := p.GetProtocol()
			if proto == "" {
				proto = "tcp"
			}
			b := inspectBinding{HostIp: p.GetHostAddress()}
			if b.HostIp == "" {
				b.HostIp = "0.0.0.0"
			}
			if p.GetHostPort() != 0 {
				b.HostPort = strconv.FormatUint(uint64(p.GetHostPort()+i), 10)
			}
			key := fmt.Sprintf("%d/%s", p.GetContainerPort()+i, proto)
			m[key] = append(m[key], b)
		}
	}
	return m
}

func stamp(t *timestamppb.Timestamp) string {
	if t == nil {
		return time.Time{}.Format(time.RFC3339Nano)
	}
	return t.AsTime().Format(time.RFC3339Nano)
}

func list0(l []string) []string {
	if l == nil {
		return []string{}
	}
	return l
}

func newPortCommand(env *cli.Env) *cobra.Command {
	return &cobra.Command{
		Use: "port CONTAINER [PORT[/PROTOCOL]]", Short: "Show where a container's ports are published",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 || len(args) == 2 {
				return nil
			}
			return cli.ExactArgs(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error { return runPort(cmd.Context(), env, args) },
	}
}

func runPort(ctx context.Context, env *cli.Env, args []string) error {
	got, err := env.Containers().Get(ctx, &containersv1.GetRequest{Ref: args[0]})
	if err != nil {
		return err
	}
	want := ""
	if len(args) == 2 {
		number, proto, has := strings.Cut(strings.ToLower(args[1]), "/")
		port, count, err := portRange(number)
		if err != nil || count != 1 {
			return cli.Usagef("%q is no port; write PORT or PORT/udp", args[1])
		}
		if !has {
			proto = "tcp"
		}
		want = fmt.Sprintf("%d/%s", port, proto)
	}
	found := false
	all := bindings(published(got.GetContainer()))
	for _, key := range slices.SortedFunc(maps.Keys(all), byPort) {
		for _, b := range all[key] {
			where := net.JoinHostPort(b.HostIp, b.HostPort)
			switch {
			case want == "":
				where = key + " -> " + where
			case want != key:
				continue
			}
			found = true
			if _, err := fmt.Fprintln(env.Out, where); err != nil {
				return err
			}
		}
	}
	if want != "" && !found {
		return &cli.ExitError{Code: 3, Err: fmt.Errorf("container %s: port %s is not published", args[0], want)}
	}
	return nil
}

// byPort orders "80/tcp" before "443/tcp".
func byPort(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) }
