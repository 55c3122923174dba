// Package volumes is the volume noun of the gantry command.
package volumes

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"github.com/gantryd/gantry/ctl/cli"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
	volumesv1 "github.com/gantryd/gantry/proto/gantry/volumes/v1"
)

// Verbs returns the commands of the noun, in the order that help lists them.
func Verbs(env *cli.Env) []*cobra.Command {
	return []*cobra.Command{newCreateCommand(env), newListCommand(env), newInspectCommand(env), newRemoveCommand(env)}
}

func newCreateCommand(env *cli.Env) *cobra.Command {
	var driver string
	var options, labels []string
	cmd := &cobra.Command{
		Use: "create [flags] [NAME]", Short: "Make a volume",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) <= 1 {
				return nil
			}
			return cli.ExactArgs(1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			name := ""
			if len(args) == 1 {
				name = args[0]
			}
			l, err := cli.Labels(labels)
			if err != nil {
				return err
			}
			o, err := cli.Labels(options)
			if err != nil {
				return err
			}
			resp, err := env.Volumes().Create(cmd.Context(), &volumesv1.CreateRequest{Volume: &volumesv1.Volume{
				Meta: &typesv1.Meta{Name: name, Labels: l}, Backend: driver, Options: o,
			}})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(env.Out, resp.GetVolume().GetMeta().GetName())
			return err
		},
	}
	cmd.Flags().StringVarP(&driver, "driver", "d", "local", "volume backend")
	cmd.Flags().StringArrayVarP(&options, "opt", "o", nil, "an option of the backend: key=value")
	cmd.Flags().StringArrayVar(&labels, "label", nil, "set a label: key=value")
	return cmd
}

type listOptions struct {
	quiet   bool
	format  string
	filters []string
}

func newListCommand(env *cli.Env) *cobra.Command {
	var o listOptions
	cmd := &cobra.Command{
		Use: "ls [flags]", Short: "List volumes", Aliases: []string{"list"},
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runList(cmd.Context(), env, o) },
	}
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "only names")
	cmd.Flags().StringVar(&o.format, "format", "", "table, json, or a template: {{.Name}} {{.Driver}} {{.Mountpoint}}")
	cmd.Flags().StringArrayVarP(&o.filters, "filter", "f", nil, "only those that match: name=, driver=, label=, dangling=")
	return cmd
}

func runList(ctx context.Context, env *cli.Env, o listOptions) error {
	filters, err := cli.Filters(o.filters)
	if err != nil {
		return err
	}
	stream, err := env.Volumes().List(ctx, &volumesv1.ListRequest{Filters: filters})
	if err != nil {
		return err
	}
	t := &cli.Table{Columns: []cli.Column{{Title: "DRIVER", Field: "Driver"}, {Title: "VOLUME NAME", Field: "Name"}}}
	err = cli.Stream(stream.Recv, func(m *volumesv1.ListResponse) error {
		v := m.GetVolume()
		if o.quiet && o.format == "" {
			_, err := fmt.Fprintln(env.Out, v.GetMeta().GetName())
			return err
		}
		t.Rows = append(t.Rows, map[string]string{
			"Name": v.GetMeta().GetName(), "Driver": v.GetBackend(), "Mountpoint": v.GetMountpoint(), "Scope": "local",
		})
		return nil
	})
	if err != nil || o.quiet && o.format == "" {
		return err
	}
	return t.Write(env.Out, o.format)
}

type inspectDocument struct {
	Name, Driver, Mountpoint, CreatedAt, Scope string
	Options, Labels                            map[string]string
	UsedBy                                     []string
}

func newInspectCommand(env *cli.Env) *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use: "inspect [flags] VOLUME...", Short: "Show all that is known of volumes",
		Args: cli.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.Inspect(format, args, func(ref string) (any, error) { return Document(cmd.Context(), env, ref) })
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "a template, as in '{{.Mountpoint}}', or json")
	return cmd
}

// Document is what inspect shows of one volume, under the names that docker's users know.
func Document(ctx context.Context, env *cli.Env, ref string) (any, error) {
	got, err := env.Volumes().Get(ctx, &volumesv1.GetRequest{Ref: ref})
	if err != nil {
		return nil, err
	}
	v := got.GetVolume()
	return &inspectDocument{
		Name: v.GetMeta().GetName(), Driver: v.GetBackend(), Mountpoint: v.GetMountpoint(), Scope: "local",
		CreatedAt: v.GetMeta().GetCreatedAt().AsTime().Format(time.RFC3339), Options: v.GetOptions(), Labels: v.GetMeta().GetLabels(),
		UsedBy: append([]string{}, got.GetContainerIds()...),
	}, nil
}

func newRemoveCommand(env *cli.Env) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm [flags] VOLUME...", Short: "Remove volumes that no container uses", Aliases: []string{"remove"},
		Args: cli.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.Each(cmd.Context(), args, func(ctx context.Context, ref string) error {
				_, err := env.Volumes().Remove(ctx, &volumesv1.RemoveRequest{Ref: ref})
				if force && cli.Code(err) == codes.NotFound {
					return nil
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "what is not there is no error")
	return cmd
}
