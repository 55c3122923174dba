package containers

import (
	"context"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/gantryd/gantry/ctl/cli"
	containersv1 "github.com/gantryd/gantry/proto/gantry/containers/v1"
)

type stopOptions struct {
	seconds int
	signal  string
}

func (o *stopOptions) add(fs *pflag.FlagSet) {
	fs.IntVarP(&o.seconds, "time", "t", 10, "seconds between the signal and SIGKILL (also --timeout)")
	fs.StringVarP(&o.signal, "signal", "s", "", "signal that asks it to stop (default: the container's own, or SIGTERM)")
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "timeout" { // docker's newer word
			name = "time"
		}
		return pflag.NormalizedName(name)
	})
}

func (o *stopOptions) grace(cmd *cobra.Command) (*durationpb.Duration, error) {
	if !cmd.Flags().Changed("time") {
		return nil, nil //nolint:nilnil // unset means the container's own
	}
	if o.seconds < 0 {
		return nil, cli.Usagef("--time %d: seconds cannot be negative", o.seconds)
	}
	return durationpb.New(time.Duration(o.seconds) * time.Second), nil
}

func newStopCommand(env *cli.Env) *cobra.Command {
	var o stopOptions
	cmd := &cobra.Command{
		Use: "stop [flags] CONTAINER...", Short: "Ask containers to stop, and kill those that do not",
		Args: cli.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			grace, err := o.grace(cmd)
			if err != nil {
				return err
			}
			return runStop(cmd.Context(), env, grace, o.signal, args)
		},
	}
	o.add(cmd.Flags())
	return cmd
}

func runStop(ctx context.Context, env *cli.Env, grace *durationpb.Duration, signal string, refs []string) error {
	return env.Each(ctx, refs, func(ctx context.Context, ref string) error {
		_, err := env.Containers().Stop(ctx, &containersv1.StopRequest{Ref: ref, Grace: grace, Signal: signal})
		return err
	})
}

func newRestartCommand(env *cli.Env) *cobra.Command {
	var o stopOptions
	cmd := &cobra.Command{
		Use: "restart [flags] CONTAINER...", Short: "Stop containers and start them again",
		Args: cli.MinArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			grace, err := o.grace(cmd)
			if err != nil {
				return err
			}
			return env.Each(cmd.Context(), args, func(ctx context.Context, ref string) error {
				if _, err := env.Containers().Stop(ctx, &containersv1.StopRequest{Ref: ref, Grace: grace, Signal: o.signal}); err != nil {
					return err
				}
				started, err := env.Containers().Start(ctx, &containersv1.StartRequest{Ref: ref})
				warn(env, started.GetContainer().GetStatus().GetWarnings())
				return err
			})
		},
	}
	o.add(cmd.Flags())
	return cmd
}
