package containers

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

func newKillCommand(env *cli.Env) *cobra.Command {
	var signal string
	cmd := &cobra.Command{
		Use: "kill [flags] CONTAINER...", Short: "Send a signal to the main process of containers",
		Args: cli.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runKill(cmd.Context(), env, signal, args) },
	}
	cmd.Flags().StringVarP(&signal, "signal", "s", "KILL", "signal, by name or number")
	return cmd
}

func runKill(ctx context.Context, env *cli.Env, signal string, refs []string) error {
	return env.Each(ctx, refs, func(ctx context.Context, ref string) error {
		_, err := env.Containers().Kill(ctx, &containersv1.KillRequest{Ref: ref, Signal: signal})
		return err
	})
}
