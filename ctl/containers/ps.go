package containers

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

type listOptions struct {
	all, quiet, noTrunc, latest bool
	last                        int
	format                      string
	filters                     []string
}

func newListCommand(env *cli.Env) *cobra.Command {
	var o listOptions
	cmd := &cobra.Command{
		Use: "ls [flags]", Short: "List containers", Aliases: []string{"ps", "list"},
		Example: `  gantry ps -a --filter status=exited
  gantry ps --format '{{.Names}}\t{{.Status}}'`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runList(cmd.Context(), env, o) },
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.all, "all", "a", false, "also those that do not run")
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "only ids")
	fs.BoolVar(&o.noTrunc, "no-trunc", false, "do not shorten ids and commands")
	fs.BoolVarP(&o.latest, "latest", "l", false, "only the newest, whatever its state")
	fs.IntVarP(&o.last, "last", "n", -1, "only the newest n, whatever their state")
	fs.StringVar(&o.format, "format", "", `table, json, or a template: {{.ID}} {{.Names}} {{.Image}} {{.Command}} {{.CreatedAt}}
{{.RunningFor}} {{.Ports}} {{.State}} {{.Status}} {{.Labels}} {{.Mounts}} {{.Networks}}`)
	fs.StringArrayVarP(&o.filters, "filter", "f", nil, `only those that match: id=, name= (a regular expression), label=, status=, exited=, ancestor=,
network=, volume=, before=, since=, publish=, expose=`)
	return cmd
}

// list gathers what a request finds.
func list(ctx context.Context, env *cli.Env, req *containersv1.ListRequest) ([]*containersv1.Container, error) {
	stream, err := env.Containers().List(ctx, req)
	if err != nil {
		return nil, err
	}
	var found []*containersv1.Container
	err = cli.Stream(stream.Recv, func(m *containersv1.ListResponse) error {
		found = append(found, m.GetContainer())
		return nil
	})
	return found, err
}

func runList(ctx context.Context, env *cli.Env, o listOptions) error {
	filters, err := cli.Filters(o.filters)
	if err != nil {
		return err
	}
	if o.latest {
		o.last = 1
	}
	all := o.all || o.last > 0
	for _, f := range filters {
		all = all || f.GetKey() == "status" || f.GetKey() == "exited"
	}
	found, err := list(ctx, env, &containersv1.ListRequest{Filters: filters, All: all})
	if err != nil {
		return err
	}
	sort.SliceStable(found, func(i, j int) bool { // newest first, as docker has it
		return found[i].GetMeta().GetCreatedAt().AsTime().After(found[j].GetMeta().GetCreatedAt().AsTime())
	})
	if o.last > 0 {
		found = found[:min(len(found), o.last)]
	}
	t := &cli.Table{Columns: []cli.Column{
		{Title: "CONTAINER ID", Field: "ID"},
		{Title: "IMAGE", Field: "Image"},
		{Title: "COMMAND", Field: "Command"},
		{Title: "CREATED", Field: "RunningFor"},
		{Title: "STATUS", Field: "Status"},
		{Title: "PORTS", Field: "Ports"},
		{Title: "NAMES", Field: "Names"},
	}}
	for _, c := range found {
		row := listRow(env, c, o.noTrunc)
		if o.quiet && o.format == "" {
			if _, err := fmt.Fprintln(env.Out, row["ID"]); err != nil {
				return err
			}
			continue
		}
		t.Rows = append(t.Rows, row)
	}
	if o.quiet && o.format == "" {
		return nil
	}
	return t.Write(env.Out, o.format)
}

func listRow(env *cli.Env, c *containersv1.Container, noTrunc bool) map[string]string {
	id, command := c.GetMeta().GetId(), commandText(c)
	if !noTrunc {
		id = cli.Short(id)
		if r := []rune(command); len(r) > 20 {
			command = string(r[:19]) + "…"
		}
	}
	created := c.GetMeta().GetCreatedAt().AsTime()
	var ports, mounts, networks, labels []string
	for _, p := range published(c) {
		ports = append(ports, portText(p))
	}
	for _, m := range c.GetSpec().GetVolumes() {
		mounts = append(mounts, m.GetSource())
	}
	networks = append(networks, networkNames(c)...)
	for k, v := range c.GetMeta().GetLabels() {
		labels = append(labels, k+"="+v)
	}
	sort.Strings(labels)
	return map[string]string{
		"ID": id, "Image": c.GetSpec().GetImage(), "Command": `"` + command + `"`,
		"CreatedAt": created.Local().Format("2006-01-02 15:04:05 -0700 MST"), "RunningFor": env.Ago(created),
		"Ports": strings.Join(ports, ", "), "State": stateWord(c), "Status": statusText(env, c),
		"Names": c.GetMeta().GetName(), "Labels": strings.Join(labels, ","),
		"Mounts": strings.Join(mounts, ","), "Networks": strings.Join(networks, ","),
		"Message": c.GetStatus().GetMessage(),
	}
}

// published is what ps shows of ports: only what is reachable now.
func published(c *containersv1.Container) []*containersv1.PortMapping {
	if !alive(c) {
		return nil
	}
	if ports := c.GetStatus().GetPorts(); len(ports) > 0 {
		return ports
	}
	return nil
}

func networkNames(c *containersv1.Container) []string {
	switch c.GetSpec().GetNetworkMode() {
	case containersv1.NetworkMode_NETWORK_MODE_HOST:
		return []string{"host"}
	case containersv1.NetworkMode_NETWORK_MODE_NONE:
		return []string{"none"}
	case containersv1.NetworkMode_NETWORK_MODE_CONTAINER:
		return []string{"container:" + sharedWith(c, "network", c.GetSpec().GetNetworkContainer())}
	case containersv1.NetworkMode_NETWORK_MODE_UNSPECIFIED:
	}
	var names []string
	for _, n := range c.GetSpec().GetNetworks() {
		names = append(names, n.GetNetwork())
	}
	if names == nil {
		names = []string{"bridge"}
	}
	return names
}

// commandText is the command, with what the image adds.
func commandText(c *containersv1.Container) string {
	return strings.Join(c.GetCommand(), " ")
}

func alive(c *containersv1.Container) bool {
	switch c.GetStatus().GetPhase() {
	case containersv1.Phase_PHASE_RUNNING, containersv1.Phase_PHASE_PAUSED, containersv1.Phase_PHASE_STOPPING:
		return true
	default:
		return false
	}
}

// stateWord is docker's word for the phase; "unreachable" is ours.
func stateWord(c *containersv1.Container) string {
	switch c.GetStatus().GetPhase() {
	case containersv1.Phase_PHASE_RUNNING, containersv1.Phase_PHASE_STOPPING:
		return "running"
	case containersv1.Phase_PHASE_RESTARTING:
		return "restarting"
	case containersv1.Phase_PHASE_PAUSED:
		return "paused"
	case containersv1.Phase_PHASE_EXITED:
		return "exited"
	case containersv1.Phase_PHASE_UNREACHABLE:
		return "unreachable"
	default: // also while its first process is being made
		return "created"
	}
}

func statusText(env *cli.Env, c *containersv1.Container) string {
	s := c.GetStatus()
	since := func(t time.Time) string { return units.HumanDuration(env.Now().Sub(t)) }
	switch stateWord(c) {
	case "running":
		return "Up " + since(s.GetStartedAt().AsTime())
	case "paused":
		return "Up " + since(s.GetStartedAt().AsTime()) + " (Paused)"
	case "exited":
		return fmt.Sprintf("Exited (%d) %s ago", s.GetExit().GetCode(), since(s.GetExit().GetAt().AsTime()))
	case "restarting":
		return fmt.Sprintf("Restarting (%d) %s ago", s.GetExit().GetCode(), since(s.GetExit().GetAt().AsTime()))
	case "unreachable":
		return "Unreachable"
	}
	return "Created"
}
