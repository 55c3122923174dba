package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"github.com/gantryd/gantry/ctl/cli"
	"github.com/gantryd/gantry/ctl/containers"
	"github.com/gantryd/gantry/ctl/images"
	"github.com/gantryd/gantry/ctl/networks"
	"github.com/gantryd/gantry/ctl/volumes"
)

// kinds are what "gantry inspect" looks among, in the order in which docker does.
var kinds = []struct {
	name string
	get  func(context.Context, *cli.Env, string) (any, error)
}{
	{"container", containers.Document},
	{"image", images.Document},
	{"network", networks.Document},
	{"volume", volumes.Document},
}

func newInspectCommand(env *cli.Env) *cobra.Command {
	var format, kind string
	cmd := &cobra.Command{
		Use: "inspect [flags] NAME...", Short: "Show all that is known of containers, images, networks or volumes",
		Args: cli.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.Inspect(format, args, func(ref string) (any, error) { return inspect(cmd.Context(), env, kind, ref) })
		},
	}
	cmd.Flags().StringVarP(&format, "format", "f", "", "a template, as in '{{.State.Pid}}', or json")
	cmd.Flags().StringVar(&kind, "type", "", "look only among these: container, image, network, volume")
	return cmd
}

func inspect(ctx context.Context, env *cli.Env, kind, ref string) (any, error) {
	known := false
	for _, k := range kinds {
		if kind != "" && kind != k.name {
			continue
		}
		known = true
		d, err := k.get(ctx, env, ref)
		switch cli.Code(err) {
		case codes.OK:
			return d, nil
		case codes.NotFound, codes.InvalidArgument: // not among these, or not a name that these can have
			continue
		default:
			return nil, err
		}
	}
	if !known {
		return nil, cli.Usagef("--type %q: container, image, network and volume are known", kind)
	}
	if kind == "" {
		kind = "container, image, network or volume"
	}
	return nil, fmt.Errorf("%s %s: not found", kind, ref)
}
