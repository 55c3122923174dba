package images

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"github.com/gantryd/gantry/ctl/cli"
	imagesv1 "github.com/gantryd/gantry/proto/gantry/images/v1"
)

func newRemoveCommand(env *cli.Env) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm [flags] IMAGE...", Short: "Remove names of images, and what nothing needs then", Aliases: []string{"remove"},
		Args: cli.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runRemove(cmd.Context(), env, force, args) },
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also while containers that do not run were made from it; what is not there is no error")
	return cmd
}

func runRemove(ctx context.Context, env *cli.Env, force bool, refs []string) error {
	var first error
	for _, ref := range refs {
		resp, err := env.Images().Remove(ctx, &imagesv1.RemoveRequest{Ref: ref, Force: force})
		if force && cli.Code(err) == codes.NotFound {
			continue
		}
		if err != nil {
			env.Complain(err)
			if first == nil {
				first = cli.Exit(cli.ExitCode(err))
			}
			continue
		}
		for _, u := range resp.GetUntagged() {
			_, _ = fmt.Fprintln(env.Out, "Untagged: "+u)
		}
		for _, d := range resp.GetDeleted() {
			_, _ = fmt.Fprintln(env.Out, "Deleted: "+d)
		}
	}
	return first
}
