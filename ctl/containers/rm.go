package containers

import (
	"context"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

type removeOptions struct{ force, volumes bool }

func newRemoveCommand(env *cli.Env) *cobra.Command {
	var o removeOptions
	cmd := &cobra.Command{
		Use: "rm [flags] CONTAINER...", Short: "Remove containers", Aliases: []string{"remove"},
		Args: cli.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runRemove(cmd.Context(), env, o, args) },
	}
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "kill them first if they run; what is not there is no error")
	cmd.Flags().BoolVarP(&o.volumes, "volumes", "v", false, "also remove the volumes without a name that only they used")
	return cmd
}

func runRemove(ctx context.Context, env *cli.Env, o removeOptions, refs []string) error {
	return env.Each(ctx, refs, func(ctx context.Context, ref string) error {
		_, err := env.Containers().Remove(ctx, &containersv1.RemoveRequest{Ref: ref, Force: o.force, Volumes: o.volumes})
		if o.force && cli.Code(err) == codes.NotFound {
			return cli.ErrNothing
		}
		return err
	})
}
