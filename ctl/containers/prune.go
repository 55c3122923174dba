package containers

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
	typesv1 "github.com/gantryd/gantry/proto/gantry/types/v1"
)

func newPruneCommand(env *cli.Env) *cobra.Command {
	var force bool
	var filters []string
	cmd := &cobra.Command{
		Use: "prune [flags]", Short: "Remove every container that does not run",
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fs, err := cli.Filters(filters)
			if err != nil {
				return err
			}
			if !force {
				ok, err := env.Confirm("This removes every container that does not run.")
				if err != nil || !ok {
					return err
				}
			}
			return runPrune(cmd.Context(), env, fs)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	cmd.Flags().StringArrayVar(&filters, "filter", nil, "only those that match: label=key[=value]")
	return cmd
}

func runPrune(ctx context.Context, env *cli.Env, filters []*typesv1.Filter) error {
	list, err := list(ctx, env, &containersv1.ListRequest{All: true, Filters: filters})
	if err != nil {
		return err
	}
	var failed error
	for _, c := range list {
		if p := c.GetStatus().GetPhase(); p != containersv1.Phase_PHASE_CREATED && p != containersv1.Phase_PHASE_EXITED {
			continue
		}
		_, err := env.Containers().Remove(ctx, &containersv1.RemoveRequest{Ref: c.GetMeta().GetId()})
		switch cli.Code(err) {
		case codes.OK:
			_, _ = fmt.Fprintln(env.Out, c.GetMeta().GetId())
		case codes.NotFound, codes.FailedPrecondition: // gone, or started, since it was listed
		default:
			env.Complain(err)
			failed = cli.Exit(cli.ExitCode(err))
		}
	}
	return failed
}
