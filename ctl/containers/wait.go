package containers

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

var conditions = map[string]containersv1.WaitRequest_Until{
	"not-running": containersv1.WaitRequest_UNTIL_UNSPECIFIED,
	"next-exit":   containersv1.WaitRequest_UNTIL_NEXT_EXIT,
	"removed":     containersv1.WaitRequest_UNTIL_REMOVED,
}

func newWaitCommand(env *cli.Env) *cobra.Command {
	var condition string
	cmd := &cobra.Command{
		Use: "wait [flags] CONTAINER...", Short: "Wait until containers stop, and print their exit codes",
		Args: cli.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			until, ok := conditions[condition]
			if !ok {
				return cli.Usagef("--condition %q: not-running, next-exit and removed are known", condition)
			}
			return runWait(cmd.Context(), env, until, args)
		},
	}
	cmd.Flags().StringVar(&condition, "condition", "not-running", "what to wait for: not-running, next-exit, removed")
	return cmd
}

func runWait(ctx context.Context, env *cli.Env, until containersv1.WaitRequest_Until, refs []string) error {
	var first error
	for _, ref := range refs {
		resp, err := env.Containers().Wait(ctx, &containersv1.WaitRequest{Ref: ref, Until: until})
		if cli.Cut(err) {
			err = fmt.Errorf("wait for container %s: the daemon went away meanwhile; the container goes on: ask again when the daemon is back: %w", ref, err)
		}
		if err != nil {
			env.Complain(err)
			if first == nil {
				first = cli.Exit(cli.ExitCode(err))
			}
			continue
		}
		if _, err := fmt.Fprintln(env.Out, resp.GetExit().GetCode()); err != nil {
			return err
		}
	}
	return first
}
