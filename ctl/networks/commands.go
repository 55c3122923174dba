// Package networks is the network noun of the gantry command.
package networks

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/ctl/cli"
	networksv1 "github.com/gantryd/gantry/proto/gantry/networks/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

// Verbs returns the commands of the noun, in the order that help lists them.
func Verbs(env *cli.Env) []*cobra.Command {
	return []*cobra.Command{newCreateCommand(env), newListCommand(env), newInspectCommand(env), newRemoveCommand(env)}
}

type createOptions struct {
	driver, subnet, gateway string
	internal                bool
	options, labels         []string
}

func newCreateCommand(env *cli.Env) *cobra.Command {
	var o createOptions
	cmd := &cobra.Command{
		Use: "create [flags] NAME", Short: "Make a network",
		Args: cli.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runCreate(cmd.Context(), env, o, args[0]) },
	}
	fs := cmd.Flags()
	fs.StringVarP(&o.driver, "driver", "d", "bridge", "network driver")
	fs.StringVar(&o.subnet, "subnet", "", "addresses, as 10.20.30.0/24 (default: a /24 that this host does not use)")
	fs.StringVar(&o.gateway, "gateway", "", "the bridge's own address (default: the first)")
	fs.BoolVar(&o.internal, "internal", false, "no way out")
	fs.StringArrayVarP(&o.options, "opt", "o", nil, "an option of the driver: key=value")
	fs.StringArrayVar(&o.labels, "label", nil, "set a label: key=value")
	return cmd
}

func runCreate(ctx context.Context, env *cli.Env, o createOptions, name string) error {
	labels, err := cli.Labels(o.labels)
	if err != nil {
		return err
	}
	options, err := cli.Labels(o.options)
	if err != nil {
		return err
	}
	n := &networksv1.Network{Meta: &typesv1.Meta{Name: name, Labels: labels}, Driver: o.driver, Options: options, Internal: o.internal}
	if v := options["com.docker.network.driver.mtu"]; v != "" {
		mtu, err := strconv.ParseUint(v, 10, 16)
		if err != nil {
			return cli.Usagef("--opt com.docker.network.driver.mtu=%q: no MTU", v)
		}
		delete(options, "com.docker.network.driver.mtu")
		n.Mtu = uint32(mtu)
	}
	if o.subnet != "" {
		n.Subnets = []string{o.subnet}
	}
	if o.gateway != "" {
		if o.subnet == "" {
			return cli.Usagef("--gateway needs --subnet")
		}
		n.Gateways = []string{o.gateway}
	}
	resp, err := env.Networks().Create(ctx, &networksv1.CreateRequest{Network: n})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(env.Out, resp.GetNetwork().GetMeta().GetId())
	return err
}

type listOptions struct {
	quiet, noTrunc bool
	format         string
	filters        []string
}

func newListCommand(env *cli.Env) *cobra.Command {
	var o listOptions
	cmd := &cobra.Command{
		Use: "ls [flags]", Short: "List networks", Aliases: []string{"list"},
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runList(cmd.Context(), env, o) },
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.quiet, "quiet", "q", false, "only ids")
	fs.BoolVar(&o.noTrunc, "no-trunc", false, "do not shorten ids")
	fs.StringVar(&o.format, "format", "", "table, json, or a template: {{.ID}} {{.Name}} {{.Driver}} {{.Scope}} {{.Subnet}}")
	fs.StringArrayVarP(&o.filters, "filter", "f", nil, "only those that match: id=, name=, driver=, label=")
	return cmd
}

func runList(ctx context.Context, env *cli.Env, o listOptions) error {
	filters, err := cli.Filters(o.filters)
	if err != nil {
		return err
	}
	stream, err := env.Networks().List(ctx, &networksv1.ListRequest{Filters: filters})
	if err != nil {
		return err
	}
	t := &cli.Table{Columns: []cli.Column{
		{Title: "NETWORK ID", Field: "ID"},
		{Title: "NAME", Field: "Name"},
		{Title: "DRIVER", Field: "Driver"},
		{Title: "SUBNET", Field: "Subnet"},
	}}
	err = cli.Stream(stream.Recv, func(m *networksv1.ListResponse) error {
		n := m.GetNetwork()
		id, subnet := n.GetMeta().GetId(), ""
		if !o.noTrunc {
			id = cli.Short(id)
		}
		if len(n.GetSubnets()) > 0 {
			subnet = n.GetSubnets()[0]
		}
		if o.quiet && o.format == "" {
			_, err := fmt.Fprintln(env.Out, id)
			return err
		}
		t.Rows = append(t.Rows, map[string]string{
			"ID": id, "Name": n.GetMeta().GetName(), "Driver": n.GetDriver(), "Scope": "local", "Subnet": subnet,
			"Internal": strconv.FormatBool(n.GetInternal()),
		})
		return nil
	})
	if err != nil || o.quiet && o.format == "" {
		return err
	}
	return t.Write(env.Out, o.format)
}

func newInspectCommand(env *cli.Env) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "inspect [flags] NETWORK...", Short: "Show all that is known of networks",
		Args: cli.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.Inspect(format, args, func(ref string) (any, error) { return Document(cmd.Context(), env, ref) })
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "a template, as in '{{.Driver}}', or json")
	return cmd
}

type inspectDocument struct {
	Name       string
	ID         string `json:"Id"`
	Created    string
	Scope      string
	Driver     string
	IPAM       inspectIPAM
	Internal   bool
	MTU        uint32
	Containers map[string]inspectEndpoint
	Options    map[string]string
	Labels     map[string]string
}

type inspectIPAM struct{ Config []inspectPool }

type inspectPool struct{ Subnet, Gateway string }

type inspectEndpoint struct {
	EndpointID, MacAddress, IPv4Address, Interface string
	Attached                                       bool
}

// Document is what inspect shows of one network, under the names that docker's users know.
func Document(ctx context.Context, env *cli.Env, ref string) (any, error) {
	got, err := env.Networks().Get(ctx, &networksv1.GetRequest{Ref: ref})
	if err != nil {
		return nil, err
	}
	n := got.GetNetwork()
	d := &inspectDocument{
		Name: n.GetMeta().GetName(), ID: n.GetMeta().GetId(), Created: n.GetMeta().GetCreatedAt().AsTime().Format(time.RFC3339Nano),
		Scope: "local", Driver: n.GetDriver(), Internal: n.GetInternal(), MTU: n.GetMtu(), IPAM: inspectIPAM{Config: []inspectPool{}},
		Containers: map[string]inspectEndpoint{}, Options: n.GetOptions(), Labels: n.GetMeta().GetLabels(),
	}
	for i, s := range n.GetSubnets() {
		p := inspectPool{Subnet: s}
		if i < len(n.GetGateways()) {
			p.Gateway = n.GetGateways()[i]
		}
		d.IPAM.Config = append(d.IPAM.Config, p)
	}
	for _, e := range got.GetEndpoints() {
		one := inspectEndpoint{EndpointID: e.GetId(), MacAddress: e.GetMac(), Interface: e.GetInterface(), Attached: e.GetAttached()}
		if len(e.GetAddresses()) > 0 {
			one.IPv4Address = e.GetAddresses()[0]
		}
		d.Containers[e.GetContainerId()] = one
	}
	return d, nil
}

func newRemoveCommand(env *cli.Env) *cobra.Command {
	return &cobra.Command{
		Use: "rm NETWORK...", Short: "Remove networks that nothing is connected to", Aliases: []string{"remove"},
		Args: cli.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.Each(cmd.Context(), args, func(ctx context.Context, ref string) error {
				_, err := env.Networks().Remove(ctx, &networksv1.RemoveRequest{Ref: ref})
				return err
			})
		},
	}
}
