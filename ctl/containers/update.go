package containers

import (
	"context"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

// changeable is what each flag of update changes.
func changeable() map[string]string {
	return map[string]string{
		"memory": "resources.memory_bytes", "memory-swap": "resources.memory_swap_bytes", "memory-reservation": "resources.memory_reservation_bytes",
		"cpus": "resources.cpu_millis", "cpu-shares": "resources.cpu_shares", "cpu-period": "resources.cpu_period_usec", "cpu-quota": "resources.cpu_quota_usec",
		"cpuset-cpus": "resources.cpuset_cpus", "cpuset-mems": "resources.cpuset_mems", "pids-limit": "resources.pids", "blkio-weight": "resources.blkio_weight",
		"restart": "restart",
	}
}

func newUpdateCommand(env *cli.Env) *cobra.Command {
	var f resourceFlags
	var policy string
	cmd := &cobra.Command{
		Use: "update [flags] CONTAINER...", Short: "Change limits and the restart policy of containers, also while they run",
		Example: "  gantry update -m 512m --cpus 2 web\n  gantry update --restart on-failure:5 web db",
		Args:    cli.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &containersv1.UpdateRequest{Spec: &containersv1.Spec{}, UpdateMask: &fieldmaskpb.FieldMask{}}
			for flag, path := range changeable() {
				if cmd.Flags().Changed(flag) {
					req.UpdateMask.Paths = append(req.UpdateMask.Paths, path)
				}
			}
			if len(req.GetUpdateMask().GetPaths()) == 0 {
				return cli.Usagef("nothing to change is named; write what, as in --memory 512m")
			}
			var err error
			if req.Spec.Resources, err = f.resources(cmd.Flags()); err != nil {
				return err
			}
			if req.Spec.Restart, err = parseRestart(policy); err != nil {
				return err
			}
			return env.Each(cmd.Context(), args, func(ctx context.Context, ref string) error {
				req.Ref = ref
				_, err := env.Containers().Update(ctx, req)
				return err
			})
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().StringVar(&policy, "restart", "", "start it again: no, on-failure[:N], always, unless-stopped")
	return cmd
}
