package containers

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

func newPauseCommand(env *cli.Env) *cobra.Command {
	return &cobra.Command{
		Use: "pause CONTAINER...", Short: "Freeze every process of containers",
		Args: cli.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.Each(cmd.Context(), args, func(ctx context.Context, ref string) error {
				_, err := env.Containers().Pause(ctx, &containersv1.PauseRequest{Ref: ref})
				return err
			})
		},
	}
}

func newUnpauseCommand(env *cli.Env) *cobra.Command {
	return &cobra.Command{
		Use: "unpause CONTAINER...", Short: "Let frozen containers go on", Aliases: []string{"resume"},
		Args: cli.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return env.Each(cmd.Context(), args, func(ctx context.Context, ref string) error {
				_, err := env.Containers().Resume(ctx, &containersv1.ResumeRequest{Ref: ref})
				return err
			})
		},
	}
}
